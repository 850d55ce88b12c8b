//! Each message is judged once, also one that is sent again because its server was read-only, and
//! no verdict is taken for that of another message.

use switchyard_core::batch::Batch;
use switchyard_core::client::replay::{Answers, Keeping};
use switchyard_core::client::session::{
    Approval, Detour, Flow, Hooking, Loyalty, Misuse, Reprepare, Rules, Session, Simple, Stop,
    Tracking, Untracked,
};
use switchyard_core::params::{Params, Tracked};
use switchyard_core::prepared::Registry;
use switchyard_core::server::link::Link;
use switchyard_wire::build::{self, Report};
use switchyard_wire::tag::{backend, frontend};

/// A session in front of one server, and how often something was asked.
struct World {
    tracked: Tracked,
    registry: Registry,
    session: Session,
    asked: Vec<String>,
    sent: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let tracked = Tracked::new(&[]);
        let session = Session::new(Params::unset(&tracked));
        let (registry, asked, sent) = (Registry::default(), Vec::new(), Vec::new());
        World { tracked, registry, session, asked, sent }
    }

    fn link(&self) -> Link {
        let mut link = Link::new(Params::unset(&self.tracked));
        link.begin(Loyalty::Stays);
        link
    }

    /// Runs over `input`; `x` in a text becomes `y`. Answers what is left, and why.
    fn run(&mut self, link: &mut Link, input: &[u8]) -> (Vec<u8>, Stop) {
        let mut at = 0;
        loop {
            let rules = Rules {
                keeping: Keeping::On,
                tracking: Tracking::On(10),
                hooking: Hooking::On,
                detour: Detour::Stays,
                loyalty: Loyalty::Stays,
                misuse: Misuse::Closes,
                reprepare: Reprepare::Off,
                simple: Simple::Allowed,
                untracked: Untracked::Ignore,
                tracked: &self.tracked,
                message_max: 1 << 20,
                registry: &self.registry,
                outstanding_max: 1000,
            };
            let mut flow = Flow::default();
            let rest = &input[at..];
            let (used, stop) = self.session.advance(Some(link), rest, &mut flow, &rules);
            self.sent.extend_from_slice(flow.server.bytes(rest));
            at += used;
            let Stop::Ask(range) = stop else { return (input[at..].to_vec(), stop) };
            let text = String::from_utf8_lossy(&rest[range]).into_owned();
            let changed = text.replace('x', "y");
            self.session.approve(match changed == text {
                true => Approval::Unchanged,
                false => Approval::Text(changed.into()),
            });
            self.asked.push(text);
        }
    }

    /// The server says something.
    fn answer(&mut self, link: &mut Link, bytes: &[u8]) -> Answers {
        let client = Some(self.session.linked_client());
        let mut shown = Batch::default();
        link.receive(bytes, &mut shown, &self.tracked, client);
        let answers = self.session.answers(shown.bytes(bytes));
        if link.is_quiet() {
            self.session.settled();
        }
        answers
    }

    fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }
}

/// Queries in the simple protocol.
fn queries(texts: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    texts.iter().for_each(|text| build::query(&mut out, text.as_bytes()));
    out
}

/// A group that prepares and runs a statement.
fn group(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    build::parse(&mut out, b"", text.as_bytes(), &[0, 0]);
    build::message(&mut out, frontend::BIND, |out| out.extend_from_slice(&[0; 8]));
    build::message(&mut out, frontend::EXECUTE, |out| out.extend_from_slice(&[0; 5]));
    build::empty(&mut out, frontend::SYNC);
    out
}

fn refusal() -> Vec<u8> {
    let mut out = Vec::new();
    let message = "cannot execute INSERT in a read-only transaction";
    let report = Report { severity: "ERROR", sqlstate: "25006", message, detail: None };
    build::error_response(&mut out, report);
    build::ready_for_query(&mut out, b'I');
    out
}

#[test]
fn what_is_sent_again_is_not_judged_again() {
    for (input, sent) in [
        (queries(&["insert x"]), queries(&["insert y"])),
        (queries(&["insert"]), queries(&["insert"])),
        (group("insert x"), group("insert y")),
        (group("insert"), group("insert")),
    ] {
        let mut world = World::new();
        let link = &mut world.link();
        assert_eq!(world.run(link, &input), (Vec::new(), Stop::More));
        assert_eq!(world.take_sent(), sent);
        let Answers::Refused(refused) = world.answer(link, &refusal()) else {
            panic!("it was refused")
        };
        // What is kept is what was judged, whatever it was before.
        assert_eq!(refused.bytes, sent);
        world.session.forget(&refused);
        let next = [refused.bytes, queries(&["select x"])].concat();
        let link = &mut world.link();
        assert_eq!(world.run(link, &next), (Vec::new(), Stop::More));
        assert_eq!(world.take_sent(), [sent, queries(&["select y"])].concat());
        assert_eq!(world.asked.len(), 2, "{:?}", world.asked);
        assert_eq!(world.asked[1], "select x");
    }
}

#[test]
fn nothing_is_judged_behind_what_may_be_sent_again() {
    let mut world = World::new();
    let link = &mut world.link();
    let input = queries(&["insert", "select x"]);
    let (rest, stop) = world.run(link, &input);
    assert_eq!((rest, stop), (queries(&["select x"]), Stop::Full));
    assert_eq!(world.asked, ["insert"]);
    // An answer shows that the first one is done.
    let mut answer = Vec::new();
    build::message(&mut answer, backend::COMMAND_COMPLETE, |out| {
        build::cstr(out, b"INSERT 0 1");
    });
    build::ready_for_query(&mut answer, b'I');
    assert_eq!(world.answer(link, &answer), Answers::Pass(Vec::new()));
    assert_eq!(world.run(link, &queries(&["select x"])), (Vec::new(), Stop::More));
    assert_eq!(world.asked, ["insert", "select x"]);
}
