//! All small worlds: three nodes, every sequence of a few events, and what must hold in each.

#![cfg(test)]

use std::time::{Duration, Instant};

use super::cluster::{Cluster, Effect};
use super::options::{Fencing, Options, Timings};
use super::probe::{Answer, Cheap, Facts, Failure, FailureKind, Question, SignalKind, Status};
use super::topology::{Endpoint, TopologyRow};

/// A node of the world.
#[derive(Clone, Copy)]
struct Real {
    up: bool,
    writer: bool,
    timeline: u32,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Kill(usize),
    Start(usize),
    Promote(usize),
    Demote(usize),
    Signal,
    Wait,
}

struct World {
    now: Instant,
    nodes: [Real; 3],
    known: [bool; 3],
    cluster: Cluster,
    published: u64,
}

fn options() -> Options {
    Options {
        database: "d".into(),
        hosts: vec![Endpoint { host: "n".into(), port: 1 }],
        port: 5432,
        topology_query: "q".into(),
        fencing: Fencing::Strict,
        timings: Timings::default(),
    }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let standby = Real { up: true, writer: false, timeline: 1 };
        let nodes = [Real { writer: true, ..standby }, standby, standby];
        let cluster = Cluster::new(now, options());
        let mut world = World { now, nodes, known: [false; 3], cluster, published: 0 };
        world.run(300);
        world
    }

    /// So many milliseconds pass.
    fn run(&mut self, milliseconds: u32) {
        for _ in 0..milliseconds {
            while let Some(effect) = self.cluster.poll_effect() {
                self.act(effect);
                self.cluster.check();
            }
            self.now += Duration::from_millis(1);
            if self.cluster.poll_timeout().is_some_and(|at| at <= self.now) {
                self.cluster.handle_timeout(self.now);
                self.cluster.check();
            }
        }
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Ask { node, endpoint, id, question, .. } => {
                let at = usize::from(endpoint.port) - 1;
                let real = self.nodes[at];
                let answer = if !real.up {
                    let (kind, text) = (FailureKind::Refused, "refused".into());
                    Answer::Failed(Failure { kind, text })
                } else if question == Question::Cheap {
                    if real.writer != self.known[at] { Answer::Promoted } else { Answer::Same }
                } else {
                    self.known[at] = real.writer;
                    Answer::Full(Facts {
                        status: if real.writer { Status::Writer } else { Status::Reader },
                        system: Some(7),
                        timeline: Some(real.timeline),
                        lsn: None,
                        started: None,
                        cheap: Cheap::Enough,
                    })
                };
                self.cluster.handle_answer(self.now, node, id, answer);
            }
            Effect::RunTopology { id, .. } => {
                let row = |port: u16| TopologyRow {
                    endpoint: Some("n".into()),
                    port: Some(port.to_string()),
                    ..TopologyRow::default()
                };
                self.cluster.handle_topology(self.now, id, Ok((1..=3).map(row).collect()));
            }
            Effect::Publish(view) => {
                assert!(view.epoch >= self.published, "epochs only grow");
                self.published = view.epoch;
            }
            Effect::Forget(_) | Effect::Log(..) => {}
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Kill(at) => self.nodes[at].up = false,
            Event::Start(at) => self.nodes[at].up = true,
            Event::Promote(at) if self.nodes[at].up && !self.nodes[at].writer => {
                let highest = self.nodes.iter().map(|node| node.timeline).max().unwrap_or(0);
                self.nodes[at].writer = true;
                self.nodes[at].timeline = highest + 1;
            }
            // A standby follows the highest timeline.
            Event::Demote(at) => {
                let highest = self.nodes.iter().map(|node| node.timeline).max().unwrap_or(0);
                self.nodes[at] = Real { up: true, writer: false, timeline: highest };
            }
            Event::Signal => {
                self.cluster.handle_signal(self.now, None, SignalKind::Disconnected);
            }
            Event::Promote(_) => {}
            Event::Wait => self.run(50),
        }
        self.run(3);
    }

    /// The node that must be the writer once all is quiet: the only one with the highest claim.
    fn rightful(&self) -> Option<usize> {
        let writers = (0..3).filter(|at| self.nodes[*at].up && self.nodes[*at].writer);
        writers.max_by_key(|at| self.nodes[*at].timeline)
    }

    fn chosen(&self) -> Option<usize> {
        self.cluster.view().writer_node().map(|node| usize::from(node.port) - 1)
    }
}

#[test]
fn every_small_world_ends_with_its_rightful_writer() {
    let events = [
        Event::Kill(0),
        Event::Start(0),
        Event::Promote(1),
        Event::Promote(2),
        Event::Demote(0),
        Event::Kill(1),
        Event::Signal,
        Event::Wait,
    ];
    let depth = 4;
    for code in 0..events.len().pow(depth) {
        let mut world = World::new();
        assert_eq!(world.chosen(), Some(0));
        let mut seen = 1;
        let mut story = Vec::new();
        let mut rest = code;
        for _ in 0..depth {
            let event = events[rest % events.len()];
            rest /= events.len();
            story.push(event);
            world.happen(event);
            seen = world
                .nodes
                .iter()
                .filter(|n| n.writer && n.up)
                .fold(seen, |s, n| s.max(n.timeline));
        }
        world.run(400);
        // A lower timeline than one that was writing may stay refused: that is fencing.
        let rightful = world.rightful().filter(|at| world.nodes[*at].timeline >= seen);
        match rightful {
            Some(at) => assert_eq!(world.chosen(), Some(at), "{story:?}"),
            None => assert!(
                world.chosen().is_none_or(|at| world.nodes[at].up && world.nodes[at].writer),
                "{story:?}"
            ),
        }
    }
}

#[test]
fn a_promotion_is_seen_within_milliseconds() {
    let mut world = World::new();
    world.happen(Event::Kill(0));
    world.happen(Event::Signal);
    assert_eq!(world.chosen(), None);
    world.run(30);
    world.nodes[1] = Real { up: true, writer: true, timeline: 2 };
    world.run(4);
    assert_eq!(world.chosen(), Some(1));
}

#[test]
fn a_signal_alone_changes_nothing() {
    let mut world = World::new();
    let before = world.published;
    for _ in 0..20 {
        world.happen(Event::Signal);
        assert_eq!(world.chosen(), Some(0));
    }
    assert_eq!(world.published, before);
}
