//! Any chunking of a client's stream gives the same bytes to its server and to itself.

use proptest::prelude::*;
use switchyard_core::client::replay::Keeping;
use switchyard_core::client::session::{
    Flow, Hooking, Loyalty, Misuse, Reprepare, Rules, Session, Simple, Stop, Tracking, Untracked,
};
use switchyard_core::params::{Params, Tracked};
use switchyard_core::prepared::Registry;
use switchyard_core::server::link::Link;
use switchyard_wire::build;
use switchyard_wire::tag::frontend;

/// A message of a client.
#[derive(Clone, Debug)]
enum Sent {
    Query(String),
    Parse(u8, String),
    Bind(u8, Vec<u8>),
    Describe(u8),
    Execute,
    Close(u8),
    Sync,
}

/// A statement's name; the first is the unnamed one.
fn name(index: u8) -> Vec<u8> {
    if index == 0 { Vec::new() } else { format!("s{index}").into_bytes() }
}

fn bytes(sent: &[Sent]) -> Vec<u8> {
    let mut out = Vec::new();
    for sent in sent {
        match sent {
            Sent::Query(sql) => build::query(&mut out, sql.as_bytes()),
            Sent::Parse(index, sql) => {
                build::parse(&mut out, &name(*index), sql.as_bytes(), &[0, 0]);
            }
            Sent::Bind(index, value) => build::message(&mut out, frontend::BIND, |out| {
                build::cstr(out, b"");
                build::cstr(out, &name(*index));
                out.extend_from_slice(value);
            }),
            Sent::Describe(index) => build::message(&mut out, frontend::DESCRIBE, |out| {
                out.push(b'S');
                build::cstr(out, &name(*index));
            }),
            Sent::Execute => build::message(&mut out, frontend::EXECUTE, |out| {
                build::cstr(out, b"");
                out.extend_from_slice(&[0; 4]);
            }),
            Sent::Close(index) => build::close(&mut out, b'S', &name(*index)),
            Sent::Sync => build::empty(&mut out, frontend::SYNC),
        }
    }
    out
}

fn messages() -> impl Strategy<Value = Vec<Sent>> {
    let sent = prop_oneof![
        "[a-z ]{0,40}".prop_map(Sent::Query),
        (0..4u8, "[a-z ]{0,40}").prop_map(|(index, sql)| Sent::Parse(index, sql)),
        (0..4u8, prop::collection::vec(any::<u8>(), 0..60))
            .prop_map(|(index, value)| Sent::Bind(index, value)),
        (0..4u8).prop_map(Sent::Describe),
        Just(Sent::Execute),
        (0..4u8).prop_map(Sent::Close),
        Just(Sent::Sync),
    ];
    prop::collection::vec(sent, 1..20)
}

fn rules<'a>(tracking: Tracking, tracked: &'a Tracked, registry: &'a Registry) -> Rules<'a> {
    Rules {
        keeping: Keeping::Off,
        tracking,
        hooking: Hooking::Off,
        detour: switchyard_core::client::session::Detour::Stays,
        loyalty: Loyalty::Stays,
        misuse: Misuse::Closes,
        reprepare: Reprepare::Off,
        simple: Simple::Allowed,
        untracked: Untracked::Ignore,
        tracked,
        message_max: 1 << 20,
        registry,
        outstanding_max: 1000,
    }
}

/// Sends a stream in pieces; answers what reached the server and the client, and the end.
fn run(stream: &[u8], cuts: &[usize], tracking: Tracking) -> (Vec<u8>, Vec<u8>, Option<Stop>) {
    let (tracked, registry) = (Tracked::new(&[]), Registry::default());
    let rules = rules(tracking, &tracked, &registry);
    let mut session = Session::new(Params::unset(&tracked));
    let mut link = Link::new(Params::unset(&tracked));
    let mut flow = Flow::default();
    let (mut server, mut client, mut input) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = 0;
    for end in cuts.iter().copied().chain([stream.len()]) {
        let end = end.clamp(at, stream.len());
        input.extend_from_slice(&stream[at..end]);
        at = end;
        let (used, stop) = session.advance(Some(&mut link), &input, &mut flow, &rules);
        server.extend_from_slice(flow.server.bytes(&input));
        client.append(&mut flow.client);
        flow.server.clear();
        link.check();
        input.drain(..used);
        if stop != Stop::More {
            return (server, client, Some(stop));
        }
    }
    (server, client, None)
}

/// A session that has been linked to a server whose parameters differ, and has sent a stream there.
struct Linked {
    session: Session,
    link: Link,
    server: Vec<u8>,
    client: Vec<u8>,
    stop: Stop,
}

fn params(tracked: &Tracked, name: &[u8]) -> Params {
    let mut params = Params::unset(tracked);
    params.set(switchyard_core::params::APPLICATION_NAME, name);
    params
}

fn send(mut session: Session, stream: &[u8], rules: &Rules<'_>) -> Linked {
    let mut link = Link::new(params(rules.tracked, b"other"));
    let mut flow = Flow::default();
    link.begin(rules.loyalty);
    session.link(&mut link, rules.tracked, &mut flow);
    let (used, stop) = session.advance(Some(&mut link), stream, &mut flow, rules);
    let server = flow.server.bytes(&stream[..used]).to_vec();
    Linked { session, link, server, client: flow.client, stop }
}

proptest! {
    #[test]
    fn what_reached_no_server_was_never_sent(
        sent in messages(),
        limit in prop_oneof![Just(None), (1usize..4).prop_map(Some)],
    ) {
        let (tracked, registry) = (Tracked::new(&[]), Registry::default());
        let tracking = limit.map_or(Tracking::Off, Tracking::On);
        let rules = Rules { loyalty: Loyalty::Leaves, ..rules(tracking, &tracked, &registry) };
        let fresh = || Session::new(params(&tracked, b"own"));
        let mut sent = sent;
        sent.push(Sent::Sync);
        let stream = bytes(&sent);
        // The texts of this one keep their names while the others come and go.
        let expected = send(fresh(), &stream, &rules);
        let mut lost = send(fresh(), &stream, &rules);
        prop_assert_eq!(&lost.server, &expected.server);
        let plain = !expected.server.windows(7).any(|bytes| bytes == b"D\0\0\0\x06?\0");
        let back = lost.session.takes_back(&mut lost.link, &stream);
        prop_assert_eq!(back, expected.stop == Stop::More && plain);
        if back {
            prop_assert_eq!(lost.session.statements(), 0);
            let again = send(lost.session, &stream, &rules);
            prop_assert_eq!(again.server, expected.server);
            prop_assert_eq!(again.client, expected.client);
        }
    }

    #[test]
    fn chunking_changes_nothing(
        sent in messages(),
        cuts in prop::collection::vec(0usize..2000, 0..30),
        limit in prop_oneof![Just(None), (1usize..4).prop_map(Some)],
    ) {
        let tracking = limit.map_or(Tracking::Off, Tracking::On);
        let stream = bytes(&sent);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (stream.len() + 1)).collect();
        cuts.sort_unstable();
        let whole = run(&stream, &[], tracking);
        prop_assert_eq!(run(&stream, &cuts, tracking), whole.clone());
        let singles: Vec<usize> = (0..stream.len()).collect();
        prop_assert_eq!(run(&stream, &singles, tracking), whole);
    }
}
