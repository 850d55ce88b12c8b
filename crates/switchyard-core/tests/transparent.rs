//! Behind servers that change from transaction to transaction and know few statements, a client is
//! told what one server of its own would tell it.

mod model;

use std::collections::HashSet;

use model::{Model, shape};
use proptest::prelude::*;
use switchyard_core::batch::Batch;
use switchyard_core::client::session::{
    Flow, Hooking, Loyalty, Misuse, Reprepare, Rules, Session, Simple, Stop, Tracking, Untracked,
};
use switchyard_core::params::{Params, Tracked};
use switchyard_core::prepared::Registry;
use switchyard_core::server::link::Link;
use switchyard_wire::build;
use switchyard_wire::tag::frontend;

/// Statements that a client prepares.
const TEXTS: [&str; 8] = ["rows", "ok", "begin", "commit", "rollback", "fail", "bad", ""];

/// What it sends as a simple query besides.
const SIMPLE: [&str; 3] = ["deallocate all", "copy", "copy early"];

/// What a client does.
#[derive(Clone, Debug)]
enum Step {
    Query(&'static str),
    Call,
    /// Messages up to a Sync.
    Group(Vec<Part>, End),
}

/// How a group ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Sync,
    /// COPY from the client; the Syncs come before its data, within, and behind.
    Copy(&'static str, u8, CopyEnd),
    /// As the last thing before the Sync.
    Deallocate,
}

#[derive(Clone, Copy, Debug)]
enum CopyEnd {
    Done,
    Fail,
}

/// A part of a group.
#[derive(Clone, Debug)]
enum Part {
    Parse(u8, &'static str),
    Bind(u8, u8),
    DescribeStatement(u8),
    DescribePortal(u8),
    Execute(u8),
    CloseStatement(u8),
    ClosePortal(u8),
    Flush,
    /// Parse, Bind, Describe and Execute of the unnamed statement.
    Unnamed(&'static str),
}

fn name(index: u8) -> Vec<u8> {
    format!("s{index}").into_bytes()
}

fn portal(index: u8) -> Vec<u8> {
    if index == 0 { Vec::new() } else { format!("p{index}").into_bytes() }
}

fn bind(out: &mut Vec<u8>, portal: &[u8], statement: &[u8]) {
    build::message(out, frontend::BIND, |out| {
        build::cstr(out, portal);
        build::cstr(out, statement);
        out.extend_from_slice(&[0; 6]);
    });
}

fn describe(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    build::message(out, frontend::DESCRIBE, |out| {
        out.push(kind);
        build::cstr(out, name);
    });
}

fn execute(out: &mut Vec<u8>, portal: &[u8]) {
    build::message(out, frontend::EXECUTE, |out| {
        build::cstr(out, portal);
        out.extend_from_slice(&[0; 4]);
    });
}

fn unnamed(out: &mut Vec<u8>, sql: &str) {
    build::parse(out, b"", sql.as_bytes(), &[0, 0]);
    bind(out, b"", b"");
    describe(out, b'P', b"");
    execute(out, b"");
}

fn copy_data(out: &mut Vec<u8>, end: CopyEnd, within: impl Fn(&mut Vec<u8>)) {
    build::message(out, frontend::COPY_DATA, |out| out.extend_from_slice(b"a\n"));
    within(out);
    build::message(out, frontend::COPY_DATA, |out| out.extend_from_slice(b"b\n"));
    match end {
        CopyEnd::Done => build::empty(out, frontend::COPY_DONE),
        CopyEnd::Fail => build::message(out, frontend::COPY_FAIL, |out| build::cstr(out, b"no")),
    }
}

fn bytes(step: &Step) -> Vec<u8> {
    let mut out = Vec::new();
    let sync = |out: &mut Vec<u8>| build::empty(out, frontend::SYNC);
    match step {
        Step::Query(sql) => {
            build::query(&mut out, sql.as_bytes());
            if sql.starts_with("copy") {
                copy_data(&mut out, CopyEnd::Done, |_| {});
            }
        }
        Step::Call => build::message(&mut out, frontend::FUNCTION_CALL, |_| {}),
        Step::Group(parts, end) => {
            for part in parts {
                match part {
                    Part::Parse(index, sql) => {
                        build::parse(&mut out, &name(*index), sql.as_bytes(), &[0, 0]);
                    }
                    Part::Bind(index, to) => bind(&mut out, &portal(*to), &name(*index)),
                    Part::DescribeStatement(index) => describe(&mut out, b'S', &name(*index)),
                    Part::DescribePortal(index) => describe(&mut out, b'P', &portal(*index)),
                    Part::Execute(index) => execute(&mut out, &portal(*index)),
                    Part::CloseStatement(index) => build::close(&mut out, b'S', &name(*index)),
                    Part::ClosePortal(index) => build::close(&mut out, b'P', &portal(*index)),
                    Part::Flush => build::empty(&mut out, frontend::FLUSH),
                    Part::Unnamed(sql) => unnamed(&mut out, sql),
                }
            }
            match end {
                End::Sync => {}
                End::Deallocate => unnamed(&mut out, "deallocate all"),
                End::Copy(sql, syncs, end) => {
                    unnamed(&mut out, sql);
                    if syncs & 1 != 0 {
                        sync(&mut out);
                    }
                    copy_data(&mut out, *end, |out| {
                        if syncs & 2 != 0 {
                            sync(out);
                        }
                    });
                }
            }
            sync(&mut out);
        }
    }
    out
}

fn text() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&TEXTS[..])
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        4 => (0..5u8, text()).prop_map(|(index, sql)| Part::Parse(index, sql)),
        4 => (0..5u8, 0..2u8).prop_map(|(index, to)| Part::Bind(index, to)),
        2 => (0..5u8).prop_map(Part::DescribeStatement),
        1 => (0..2u8).prop_map(Part::DescribePortal),
        3 => (0..2u8).prop_map(Part::Execute),
        2 => (0..5u8).prop_map(Part::CloseStatement),
        1 => (0..2u8).prop_map(Part::ClosePortal),
        1 => Just(Part::Flush),
        2 => text().prop_map(Part::Unnamed),
    ]
}

fn end() -> impl Strategy<Value = End> {
    let copy = prop_oneof![Just("copy"), Just("copy early")];
    let how = prop_oneof![Just(CopyEnd::Done), Just(CopyEnd::Fail)];
    prop_oneof![
        6 => Just(End::Sync),
        1 => Just(End::Deallocate),
        1 => (copy, 0..4u8, how).prop_map(|(sql, syncs, end)| End::Copy(sql, syncs, end)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => prop_oneof![text(), prop::sample::select(&SIMPLE[..])].prop_map(Step::Query),
        1 => Just(Step::Call),
        6 => (prop::collection::vec(part(), 0..7), end()).prop_map(|(p, end)| Step::Group(p, end)),
    ]
}

/// A server behind the pooler.
struct Server {
    link: Link,
    model: Model,
    input: Vec<u8>,
}

/// The pooler with one client and some servers.
struct World {
    tracked: Tracked,
    registry: Registry,
    limit: usize,
    session: Session,
    servers: Vec<Server>,
    linked: Option<usize>,
    next: usize,
    input: Vec<u8>,
    told: Vec<u8>,
}

impl World {
    fn new(servers: usize, limit: usize) -> Self {
        let tracked = Tracked::new(&[]);
        let params = Params::unset(&tracked);
        let server = |_| Server {
            link: Link::new(params.clone()),
            model: Model::default(),
            input: Vec::new(),
        };
        World {
            registry: Registry::default(),
            limit,
            session: Session::new(params.clone()),
            servers: (0..servers).map(server).collect(),
            linked: None,
            next: 0,
            input: Vec::new(),
            told: Vec::new(),
            tracked,
        }
    }

    /// Bytes of the client.
    fn send(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let rules = Rules {
            detour: switchyard_core::client::session::Detour::Stays,
            keeping: switchyard_core::client::replay::Keeping::Off,
            tracking: Tracking::On(self.limit),
            hooking: Hooking::Off,
            loyalty: Loyalty::Leaves,
            misuse: Misuse::Fails,
            reprepare: Reprepare::Off,
            simple: Simple::Allowed,
            untracked: Untracked::Ignore,
            tracked: &self.tracked,
            message_max: 1 << 20,
            registry: &self.registry,
            outstanding_max: 1000,
        };
        loop {
            let mut flow = Flow::default();
            let link = self.linked.map(|index| &mut self.servers[index].link);
            let (used, stop) = self.session.advance(link, &self.input, &mut flow, &rules);
            self.told.append(&mut flow.client);
            if let Some(index) = self.linked {
                self.servers[index].model.receive(flow.server.bytes(&self.input));
                self.servers[index].link.check();
            } else {
                assert!(flow.server.is_empty(), "bytes for nobody");
            }
            self.input.drain(..used);
            match stop {
                Stop::More => return self.part(),
                Stop::NeedServer => {
                    let index = self.next % self.servers.len();
                    let mut flow = Flow::default();
                    let link = &mut self.servers[index].link;
                    link.begin(Loyalty::Leaves);
                    assert_eq!(self.session.link(link, &self.tracked, &mut flow), None);
                    self.linked = Some(index);
                }
                other => unreachable!("{other:?}"),
            }
        }
    }

    /// Some bytes of the linked server's answers arrive; answers whether there are more.
    fn hear(&mut self, most: usize) -> bool {
        let Some(index) = self.linked else { return false };
        let server = &mut self.servers[index];
        let count = most.min(server.model.output.len());
        server.input.extend(server.model.output.drain(..count));
        let mut out = Batch::default();
        let client = Some(self.session.linked_client());
        let received = server.link.receive(&server.input, &mut out, &self.tracked, client);
        assert_eq!(received.failure, None);
        assert_eq!(received.unexpected, None);
        self.told.extend_from_slice(out.bytes(&server.input));
        server.input.drain(..received.consumed);
        server.link.check();
        let more = !server.model.output.is_empty();
        self.part();
        more
    }

    /// The server is given back if it is free.
    fn part(&mut self) {
        let Some(index) = self.linked else { return };
        let server = &self.servers[index];
        if server.link.is_free() && !self.session.is_inside_message() {
            assert!(server.model.output.is_empty(), "a free server owes nothing");
            let named: HashSet<_> =
                server.model.statements.keys().filter(|n| !n.is_empty()).collect();
            let (sure, more) = (server.link.statements(), server.link.unsure_statements());
            assert!((sure..=sure + more).contains(&named.len()), "{named:?} {sure} {more}");
            self.linked = None;
            self.next += 1;
        }
    }
}

/// What one server alone tells.
fn alone(steps: &[Step]) -> String {
    let mut model = Model::default();
    steps.iter().for_each(|step| model.receive(&bytes(step)));
    shape(&model.output)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn servers_that_change_are_like_one(
        steps in prop::collection::vec(step(), 1..12),
        servers in 1usize..4,
        limit in 1usize..5,
        sizes in prop::collection::vec((1usize..60, 0usize..40), 1..40),
    ) {
        let mut world = World::new(servers, limit);
        let mut sizes = sizes.iter().cycle();
        for step in &steps {
            let stream = bytes(step);
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let &(send, hear) = sizes.next().expect("an endless iterator");
                let (now, later) = rest.split_at(send.min(rest.len()));
                world.send(now);
                rest = later;
                if hear > 0 {
                    world.hear(hear);
                }
            }
            while world.hear(sizes.next().expect("an endless iterator").0) {}
        }
        prop_assert_eq!(shape(&world.told), alone(&steps));
    }

    #[test]
    fn whole_pipelines_are_answered_in_order(
        groups in prop::collection::vec(
            (prop::collection::vec((0..4u8, any::<bool>()), 0..6), any::<bool>()), 1..20),
        servers in 1usize..3,
        limit in 1usize..4,
        sizes in prop::collection::vec(1usize..200, 1..20),
    ) {
        let mut steps = Vec::new();
        let mut parts: Vec<Part> = Vec::new();
        for index in 0..4 {
            parts.push(Part::Parse(index, ["rows", "ok", "fail", "rows"][usize::from(index)]));
        }
        steps.push(Step::Group(parts, End::Sync));
        for (uses, close) in groups {
            let mut parts = Vec::new();
            for (index, describe) in uses {
                if describe {
                    parts.push(Part::DescribeStatement(index));
                }
                parts.extend([Part::Bind(index, 0), Part::Execute(0)]);
            }
            if close {
                parts.push(Part::CloseStatement(9));
            }
            steps.push(Step::Group(parts, End::Sync));
        }
        let stream: Vec<u8> = steps.iter().flat_map(bytes).collect();
        let mut world = World::new(servers, limit);
        let mut sizes = sizes.iter().cycle();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let size = *sizes.next().expect("an endless iterator");
            let (now, later) = rest.split_at(size.min(rest.len()));
            world.send(now);
            rest = later;
            if size % 3 == 0 {
                world.hear(size);
            }
        }
        while world.hear(*sizes.next().expect("an endless iterator")) {}
        prop_assert_eq!(shape(&world.told), alone(&steps));
        prop_assert_eq!(world.linked, None);
    }
}
