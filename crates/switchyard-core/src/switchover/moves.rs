//! Small worlds in which names move: nodes are known by names, each of which leads to one of a few
//! servers, and a probe stays where it was connected to until somebody looks the name up.

#![cfg(test)]

use std::time::{Duration, Instant};

use super::cluster::{Cluster, Effect};
use super::options::{Fencing, Newcomers, Options, Plan, Timings};
use super::probe::{
    Answer, Cheap, Facts, Failure, FailureKind, ProbeId, Proof, Question, SignalKind, Status,
    Stream, Via,
};
use super::topology::{Endpoint, TopologyRow};
use super::view::NodeId;

#[derive(Clone, Copy)]
struct Server {
    up: bool,
    writer: bool,
    timeline: u32,
}

/// The connection of a name's probe.
#[derive(Clone, Copy, Default)]
struct Line {
    server: Option<usize>,
    last: Option<(NodeId, ProbeId)>,
    known: bool,
}

#[derive(Clone)]
struct World {
    now: Instant,
    servers: [Server; 2],
    /// Where each name leads.
    leads: [usize; 2],
    lines: [Line; 2],
    cluster: Cluster,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Kill(usize),
    /// As what it was.
    Start(usize),
    Promote(usize),
    /// A name leads to the other server from here on.
    Move(usize),
    /// Both do.
    Swap,
    Wait,
}

const EVENTS: [Event; 9] = [
    Event::Kill(0),
    Event::Start(0),
    Event::Kill(1),
    Event::Start(1),
    Event::Promote(1),
    Event::Move(0),
    Event::Move(1),
    Event::Swap,
    Event::Wait,
];

/// Shortest step of time.
const TICK: Duration = Duration::from_millis(1);

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let server = Server { up: true, writer: false, timeline: 1 };
        let options = Options {
            database: "d".into(),
            hosts: vec![Endpoint { host: "n".into(), port: 1 }],
            port: 5432,
            topology_query: "q".into(),
            fencing: Fencing::Strict,
            newcomers: Newcomers::Refuse,
            lag_max: None,
            plan: Plan::default(),
            timings: Timings::default(),
        };
        let mut world = World {
            now,
            servers: [Server { writer: true, ..server }, server],
            leads: [0, 1],
            lines: [Line::default(); 2],
            cluster: Cluster::new(now, options),
        };
        world.run(300);
        world
    }

    fn run(&mut self, milliseconds: u64) {
        let end = self.now + Duration::from_millis(milliseconds);
        loop {
            while let Some(effect) = self.cluster.poll_effect() {
                self.act(effect);
                self.cluster.check();
            }
            self.check();
            let due = self.cluster.poll_timeout().map(|at| at.max(self.now + TICK));
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.now = due;
            self.cluster.handle_timeout(self.now);
        }
        self.now = end;
    }

    /// Whoever is the writer has the highest claim that was heard.
    fn check(&self) {
        if let Some(writer) = self.cluster.view().writer_node() {
            let at = self.lines[usize::from(writer.port) - 1].server;
            let claim = at.map(|at| self.servers[at].timeline);
            let seen = self.cluster.snapshot().timeline;
            assert!(claim.is_none_or(|claim| Some(claim) >= seen), "a stale writer is used");
        }
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Ask { node, endpoint, id, question, via, .. } => {
                let name = usize::from(endpoint.port) - 1;
                let line = &mut self.lines[name];
                let question = match (via, line.server) {
                    (Via::Open, Some(_)) => question,
                    (Via::Open | Via::Fresh, _) => Question::Full,
                };
                if via == Via::Fresh || line.server.is_none() {
                    line.server = Some(self.leads[name]);
                }
                line.last = Some((node, id));
                let at = line.server.filter(|at| self.servers[*at].up);
                let answer = match (at, question) {
                    (None, _) => failed("refused"),
                    (Some(at), Question::Cheap) if self.servers[at].writer == line.known => {
                        Answer::Same
                    }
                    (Some(_), Question::Cheap) => Answer::Promoted,
                    (Some(at), Question::Full) => {
                        line.known = self.servers[at].writer;
                        Answer::Full(self.servers[at].facts(at))
                    }
                };
                self.cluster.handle_answer(self.now, node, id, answer);
            }
            Effect::RunTopology { id, .. } => {
                let row = |port: u16| TopologyRow {
                    endpoint: Some("n".into()),
                    port: Some(port.to_string()),
                    ..TopologyRow::default()
                };
                self.cluster.handle_topology(self.now, id, Ok((1..=2).map(row).collect()));
            }
            Effect::Count(round) => self.cluster.handle_running(self.now, round, 0),
            Effect::Verify { id, .. } => self.cluster.handle_verified(self.now, id, Ok(())),
            Effect::Promote { .. }
            | Effect::Kill(_)
            | Effect::Forget(_)
            | Effect::Answer(..)
            | Effect::Recorded(_)
            | Effect::Remember(..)
            | Effect::Publish(_)
            | Effect::Log(..) => {}
        }
    }

    /// The names are looked up: what is connected to elsewhere is given up.
    fn look_up(&mut self) {
        for name in 0..2 {
            let line = self.lines[name];
            let (Some(at), Some((node, id))) = (line.server, line.last) else { continue };
            if at != self.leads[name] {
                self.lines[name].server = None;
                self.cluster.handle_signal(self.now, Some(node), SignalKind::Moved);
                let failure = failed("the name has another address");
                self.cluster.handle_answer(self.now, node, id, failure);
                self.run(1);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Kill(at) => {
                self.servers[at].up = false;
                for name in 0..2 {
                    let line = self.lines[name];
                    if let (Some(on), Some((node, id))) = (line.server, line.last)
                        && on == at
                    {
                        self.lines[name].server = None;
                        self.cluster.handle_answer(self.now, node, id, failed("closed"));
                    }
                }
            }
            Event::Start(at) => self.servers[at].up = true,
            Event::Promote(at) if self.servers[at].up && !self.servers[at].writer => {
                let highest = self.servers.iter().map(|server| server.timeline).max();
                let timeline = highest.unwrap_or(0) + 1;
                self.servers[at] = Server { up: true, writer: true, timeline };
            }
            Event::Promote(_) => {}
            Event::Move(name) => self.leads[name] = 1 - self.leads[name],
            Event::Swap => self.leads = [1 - self.leads[0], 1 - self.leads[1]],
            Event::Wait => self.run(50),
        }
        self.run(3);
    }
}

impl Server {
    fn facts(self, at: usize) -> Facts {
        Facts {
            status: if self.writer { Status::Writer } else { Status::Reader },
            system: Some(7),
            timeline: Some(self.timeline),
            lsn: Some(7),
            started: i64::try_from(at).ok(),
            cheap: Cheap::Enough,
            stream: Stream::Unknown,
            proof: if self.writer { Proof::Writes } else { Proof::ReadOnly },
        }
    }
}

fn failed(text: &str) -> Answer {
    Answer::Failed(Failure { kind: FailureKind::Closed, text: text.into() })
}

#[test]
fn the_writer_is_found_where_its_name_is_whenever_names_are_looked_up() {
    let (depth, first) = (4, World::new());
    for code in 0..EVENTS.len().pow(depth) {
        let (mut world, mut rest, mut story) = (first.clone(), code, Vec::new());
        // Looking up at one moment more or less decides what was seen of the rest.
        let looked = code % 3;
        for step in 0..depth {
            let event = EVENTS[rest % EVENTS.len()];
            rest /= EVENTS.len();
            story.push(event);
            world.happen(event);
            if step as usize % 3 == looked {
                world.look_up();
            }
        }
        world.run(5);
        world.look_up();
        world.run(150);
        let seen = world.cluster.snapshot().timeline.unwrap_or(0);
        let fit = |at: usize| {
            let server = world.servers[at];
            let named = world.leads.contains(&at);
            server.up && server.writer && server.timeline >= seen && named
        };
        let rightful = (0..2).filter(|at| fit(*at)).max_by_key(|at| world.servers[*at].timeline);
        let chosen = world.cluster.view().writer_node();
        let chosen = chosen.map(|node| world.leads[usize::from(node.port) - 1]);
        assert_eq!(chosen, rightful, "{story:?}");
    }
}
