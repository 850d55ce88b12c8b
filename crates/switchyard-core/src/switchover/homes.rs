//! Small worlds in which nodes get other addresses: the list of nodes is what the server says that
//! is asked for it, and the entry's own host is an alias that leads wherever it is pointed.

#![cfg(test)]

use std::time::{Duration, Instant};

use super::cluster::{Cluster, Effect, Severity};
use super::options::{Fencing, Newcomers, Options, Plan, Timings};
use super::probe::{
    Answer, Cheap, Facts, Failure, FailureKind, Proof, Question, SignalKind, Status, Stream,
};
use super::topology::{Endpoint, TopologyRow};

/// Port of the entry's own host.
const ALIAS: u16 = 1;
/// System identifier of all servers.
const SYSTEM: u64 = 7;

/// A server; it listens on a port of the host `n`.
#[derive(Clone)]
struct Server {
    port: u16,
    up: bool,
    status: Status,
    timeline: Option<u32>,
    position: Option<u64>,
    system: Option<u64>,
    started: i64,
    /// What its topology query answers: names and ports.
    list: Result<Vec<(&'static str, u16)>, String>,
}

struct World {
    now: Instant,
    servers: Vec<Server>,
    /// The server that the alias leads to.
    alias: usize,
    cluster: Cluster,
    log: Vec<(Severity, String)>,
    /// Servers in the order in which they were asked for the list.
    readings: Vec<usize>,
    /// How often the machine was woken.
    turns: u64,
}

fn options() -> Options {
    Options {
        database: "d".into(),
        hosts: vec![Endpoint { host: "n".into(), port: ALIAS }],
        port: 5432,
        topology_query: "q".into(),
        fencing: Fencing::Strict,
        newcomers: Newcomers::Refuse,
        lag_max: None,
        plan: Plan::default(),
        timings: Timings::default(),
    }
}

fn server(port: u16, status: Status) -> Server {
    let list = Ok(vec![("", 11), ("", 12), ("", 13)]);
    let (timeline, position, system) = (Some(1), Some(100), Some(SYSTEM));
    let started = i64::from(port);
    Server { port, up: true, status, timeline, position, system, started, list }
}

impl World {
    /// A writer and two standbys.
    fn new() -> Self {
        Self::of(options(), |_| {})
    }

    fn of(options: Options, change: impl FnOnce(&mut Vec<Server>)) -> Self {
        let now = Instant::now();
        let mut servers = vec![
            server(11, Status::Writer),
            server(12, Status::Reader),
            server(13, Status::Reader),
        ];
        change(&mut servers);
        let cluster = Cluster::new(now, options);
        let (log, readings) = (Vec::new(), Vec::new());
        let mut world = World { now, servers, alias: 0, cluster, log, readings, turns: 0 };
        world.run(300);
        world
    }

    /// So many milliseconds pass.
    fn run(&mut self, milliseconds: u64) {
        let end = self.now + Duration::from_millis(milliseconds);
        loop {
            while let Some(effect) = self.cluster.poll_effect() {
                self.act(effect);
                self.cluster.check();
            }
            let settled = self.cluster.snapshot().topology_at.is_some();
            let alias = self.cluster.view().nodes.iter().any(|node| node.port == ALIAS);
            assert!(!settled || !alias, "an alias is no node");
            let due = self.cluster.poll_timeout().map(|at| at.max(self.now + TICK));
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.now = due;
            self.turns += 1;
            self.cluster.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn at(&self, port: u16) -> Option<usize> {
        match port {
            ALIAS => Some(self.alias),
            port => self.servers.iter().position(|server| server.port == port),
        }
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Ask { node, endpoint, id, question, .. } => {
                let server = self.at(endpoint.port).map(|at| &self.servers[at]);
                let answer = match server.filter(|server| server.up) {
                    None => failed(),
                    Some(_) if question == Question::Cheap => Answer::Same,
                    Some(server) => Answer::Full(server.facts()),
                };
                self.cluster.handle_answer(self.now, node, id, answer);
            }
            Effect::RunTopology { node, id } => {
                let nodes = self.cluster.snapshot().nodes;
                let listed = nodes.iter().find(|known| known.view.id == node);
                // Who is not published is the alias.
                let port = listed.map_or(ALIAS, |node| node.view.port);
                let at = self.at(port).filter(|at| self.servers[*at].up);
                self.readings.extend(at);
                let list = at.map_or(Err("closed".into()), |at| self.servers[at].list.clone());
                let row = |(name, port): (&str, u16)| TopologyRow {
                    endpoint: Some("n".into()),
                    port: Some(port.to_string()),
                    id: Some(name.to_owned()),
                    ..TopologyRow::default()
                };
                let rows = list.map(|list| list.into_iter().map(row).collect());
                self.cluster.handle_topology(self.now, id, rows);
            }
            Effect::Log(severity, text) => self.log.push((severity, text)),
            Effect::Publish(_)
            | Effect::Count(_)
            | Effect::Verify { .. }
            | Effect::Promote { .. }
            | Effect::Kill(_)
            | Effect::Forget(_)
            | Effect::Answer(..)
            | Effect::Recorded(_)
            | Effect::Remember(..) => {}
        }
    }

    /// A server ends.
    fn stop(&mut self, at: usize) {
        self.servers[at].up = false;
        self.cluster.handle_signal(self.now, None, SignalKind::Disconnected);
        self.run(200);
    }

    /// It starts again, listening elsewhere, and the lists of all servers are these.
    fn move_to(&mut self, at: usize, port: u16, list: &[(&'static str, u16)]) {
        let started = i64::from(port);
        let old = self.servers[at].clone();
        self.servers[at] = Server { port, up: true, started, ..old };
        self.servers.iter_mut().for_each(|server| server.list = Ok(list.to_vec()));
    }

    fn chosen(&self) -> Option<u16> {
        self.cluster.view().writer_node().map(|node| node.port)
    }

    fn told(&self, part: &str) -> usize {
        self.log.iter().filter(|(_, text)| text.contains(part)).count()
    }
}

impl Server {
    fn facts(&self) -> Facts {
        Facts {
            status: self.status,
            system: self.system,
            timeline: self.timeline,
            lsn: self.position,
            started: Some(self.started),
            cheap: Cheap::Enough,
            stream: Stream::Unknown,
            proof: Proof::Unknown,
        }
    }
}

fn failed() -> Answer {
    Answer::Failed(Failure { kind: FailureKind::Refused, text: "refused".into() })
}

/// Shortest step of time.
const TICK: Duration = Duration::from_millis(1);

#[test]
fn a_writer_that_starts_at_another_address_goes_on_there() {
    let mut world = World::new();
    assert_eq!(world.chosen(), Some(11));
    world.stop(0);
    assert_eq!(world.chosen(), None);
    world.move_to(0, 21, &[("", 21), ("", 12), ("", 13)]);
    world.run(2000);
    assert_eq!(world.chosen(), Some(21));
    assert_eq!(world.told("goes on at another address"), 1);
    assert_eq!(world.cluster.snapshot().timeline, Some(1));
}

#[test]
fn a_copy_of_the_lost_writer_is_refused() {
    // Behind what the writer has told; behind what a standby has; and one whose like is listed.
    let listed = [("", 11), ("", 21), ("", 12), ("", 13)];
    for (position, seen, list) in [
        (Some(99), 100, &listed[1..]),
        (Some(104), 105, &listed[1..]),
        (Some(200), 100, &listed[..]),
    ] {
        let mut world = World::new();
        world.stop(0);
        world.servers[1].position = Some(seen);
        let copy = Server { position, ..server(21, Status::Writer) };
        world.servers.push(copy);
        world.servers.iter_mut().for_each(|server| server.list = Ok(list.to_vec()));
        world.run(12_000);
        assert_eq!(world.chosen(), None, "{position:?} {seen}");
        assert!(world.told("is not taken (writer_fencing = strict)") > 0, "{:?}", world.log);
        // A promotion is always taken.
        world.servers[2] =
            Server { timeline: Some(2), status: Status::Writer, ..world.servers[2].clone() };
        world.cluster.handle_signal(world.now, None, SignalKind::Operator);
        world.run(100);
        assert_eq!(world.chosen(), Some(13));
    }
}

#[test]
fn nodes_that_have_all_moved_are_found_through_the_entry_s_own_host() {
    let mut world = World::new();
    (0..3).for_each(|at| world.stop(at));
    world.run(10_000);
    assert_eq!(world.chosen(), None);
    let list = [("", 21), ("", 22), ("", 23)];
    // The alias leads to a standby.
    world.alias = 1;
    (0..3).for_each(|at| world.move_to(at, list[at].1, &list));
    world.run(3000);
    assert_eq!(world.chosen(), Some(21), "{:?}", world.log);
    world.run(70_000);
    let nodes = world.cluster.snapshot().nodes;
    let mut ports: Vec<u16> = nodes.iter().map(|node| node.view.port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [21, 22, 23]);
}

#[test]
fn an_alias_that_leads_to_the_writer_does_not_stand_for_it() {
    let mut world = World::new();
    (0..3).for_each(|at| world.stop(at));
    world.run(2000);
    // The list is the old one, and nobody is there but the writer under the alias.
    world.servers[0].port = 99;
    world.servers[0].up = true;
    world.run(5000);
    assert_eq!(world.chosen(), None);
    // Its host is given up as soon as a listed node answers.
    world.servers[0].port = 11;
    world.run(1500);
    assert_eq!(world.chosen(), Some(11));
}

#[test]
fn nobody_is_in_a_hurry_whose_own_host_is_a_node() {
    let mut own = options();
    own.hosts = vec![Endpoint { host: "n".into(), port: 11 }];
    let mut world = World::of(own, |_| {});
    (0..3).for_each(|at| world.stop(at));
    world.run(70_000);
    // A minute later each node is asked once a second.
    let before = world.turns;
    world.run(10_000);
    assert!(world.turns - before < 100, "{}", world.turns - before);
    (0..3).for_each(|at| world.servers[at].up = true);
    world.run(2000);
    assert_eq!(world.chosen(), Some(11));
}

#[test]
fn without_a_writer_each_node_is_asked_for_the_list_in_turn() {
    let mut world = World::new();
    // One knows nothing, and one knows the next writer.
    world.servers[1].list = Err("relation does not exist".into());
    world.stop(0);
    world.servers.push(Server { timeline: Some(2), ..server(24, Status::Writer) });
    world.servers[2].list = Ok(vec![("", 24), ("", 12), ("", 13)]);
    world.readings.clear();
    world.run(8000);
    assert_eq!(world.chosen(), Some(24), "{:?} {:?}", world.readings, world.log);
}

#[test]
fn a_node_that_falls_silent_is_not_waited_for_with_the_list() {
    let mut world = World::new();
    world.cluster.handle_signal(world.now, None, SignalKind::Operator);
    // The writer was asked for it, and dies before it answers.
    while let Some(effect) = world.cluster.poll_effect() {
        if !matches!(effect, Effect::RunTopology { .. }) {
            world.act(effect);
        }
    }
    world.readings.clear();
    world.stop(0);
    world.run(1000);
    assert!(!world.readings.is_empty(), "another node was asked");
}

#[test]
fn a_name_goes_with_the_node_that_is_listed_under_it() {
    let names = [("a", 11), ("b", 12), ("c", 13)];
    let mut world = World::of(options(), |servers| {
        servers.iter_mut().for_each(|server| server.list = Ok(names.to_vec()));
    });
    assert_eq!(world.cluster.view().by_name("a").map(|node| node.port), Some(11));
    world.stop(0);
    world.move_to(0, 21, &[("a", 21), ("b", 12), ("c", 13)]);
    world.run(2000);
    assert_eq!(world.cluster.view().by_name("a").map(|node| node.port), Some(21));
    assert_eq!(world.cluster.view().by_name("n:11").map(|node| node.port), Some(11));
}

#[test]
fn a_list_that_was_never_read_leaves_the_entry_unmanaged() {
    let mut world = World::of(options(), |servers| {
        servers.iter_mut().for_each(|server| server.list = Err("no such table".into()));
    });
    assert_eq!(world.chosen(), Some(ALIAS));
    let snapshot = world.cluster.snapshot();
    let error = "topology query of \"d\" failed: no such table";
    assert_eq!((snapshot.state, snapshot.error.as_deref()), ("unmanaged", Some(error)));
    world.servers[0].list = Ok(vec![("", 11), ("", 12), ("", 13)]);
    world.run(7000);
    assert_eq!((world.cluster.snapshot().state, world.chosen()), ("ok", Some(11)));
}

#[test]
fn what_a_node_keeps_back_is_told_once() {
    let mut world = World::of(options(), |servers| {
        servers[1].timeline = None;
        (servers[2].system, servers[2].position) = (None, None);
    });
    world.run(20_000);
    assert_eq!(world.told("does not tell probes"), 2, "{:?}", world.log);
    assert_eq!(world.told("node n:12 does not tell probes its timeline"), 1);
    assert_eq!(world.told("node n:13 does not tell probes its system identifier, position"), 1);
}

#[test]
fn nodes_are_asked_together_at_rest() {
    let mut own = options();
    own.timings.topology_refresh = Duration::from_millis(1030);
    let mut world = World::of(own, |_| {});
    // Nodes that are added between two questions to the others.
    for port in [14, 15, 16] {
        world.servers.push(server(port, Status::Reader));
        let list: Vec<_> = (11..=port).map(|port| ("", port)).collect();
        world.servers.iter_mut().for_each(|server| server.list = Ok(list.clone()));
        world.run(1200);
    }
    assert_eq!(world.cluster.view().nodes.len(), 6);
    let before = world.turns;
    world.run(1000);
    let turns = world.turns - before;
    assert!((9..=12).contains(&turns), "{turns} turns in ten intervals");
}

#[test]
fn a_login_may_take_as_long_as_a_probe() {
    for (patience, wanted) in [(150, 1000), (3000, 3000)] {
        let mut own = options();
        own.timings.probe_timeout = Duration::from_millis(patience);
        let now = Instant::now();
        let mut cluster = Cluster::new(now, own);
        let asked = std::iter::from_fn(|| cluster.poll_effect()).find_map(|effect| match effect {
            Effect::Ask { deadline, .. } => Some(deadline - now),
            _ => None,
        });
        assert_eq!(asked, Some(Duration::from_millis(wanted)));
    }
}
