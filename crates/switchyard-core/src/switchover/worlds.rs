//! All small worlds: three nodes, every sequence of a few events, and what must hold in each.

#![cfg(test)]

use std::time::{Duration, Instant};

use super::cluster::{Cluster, Effect};
use super::options::{DrainAction, Fencing, Newcomers, Options, Plan, PromoteBy, Timings};
use super::planned::{Command, CommandId};
use super::probe::{
    Answer, Cheap, Facts, Failure, FailureKind, Proof, Question, SignalKind, Status, Stream,
};
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
    /// Transactions on the writer.
    running: usize,
    /// Whether nodes do as they are told when they are to be promoted.
    promotes: Result<(), String>,
    answers: Vec<Result<(), String>>,
}

fn options() -> Options {
    Options {
        database: "d".into(),
        hosts: vec![Endpoint { host: "n".into(), port: 1 }],
        port: 5432,
        topology_query: "q".into(),
        fencing: Fencing::Strict,
        newcomers: Newcomers::Refuse,
        lag_max: None,
        plan: Plan { promote: PromoteBy::Sql, ..Plan::default() },
        timings: Timings::default(),
    }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let standby = Real { up: true, writer: false, timeline: 1 };
        let nodes = [Real { writer: true, ..standby }, standby, standby];
        let cluster = Cluster::new(now, options());
        let mut world = World {
            now,
            nodes,
            known: [false; 3],
            cluster,
            published: 0,
            running: 0,
            promotes: Ok(()),
            answers: Vec::new(),
        };
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
                        lsn: Some(7),
                        started: None,
                        cheap: Cheap::Enough,
                        stream: Stream::Unknown,
                        // Some writers have to be asked once more.
                        proof: if real.timeline.is_multiple_of(2) {
                            Proof::Writes
                        } else {
                            Proof::Unknown
                        },
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
            Effect::Count(round) => {
                self.cluster.handle_running(self.now, round, self.running);
            }
            Effect::Kill(_) => self.running = 0,
            Effect::Promote { id, endpoint, .. } => {
                assert_eq!(self.running, 0, "nothing runs on the old writer");
                let result = self.promotes.clone();
                if result.is_ok() {
                    self.promote(usize::from(endpoint.port) - 1);
                }
                self.cluster.handle_promoted(self.now, id, result);
            }
            Effect::Verify { id, .. } => self.cluster.handle_verified(self.now, id, Ok(())),
            Effect::Answer(_, result) => self.answers.push(result),
            Effect::Forget(_) | Effect::Log(..) | Effect::Recorded(_) | Effect::Remember(..) => {}
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Kill(at) => self.nodes[at].up = false,
            Event::Start(at) => self.nodes[at].up = true,
            Event::Promote(at) if self.nodes[at].up && !self.nodes[at].writer => self.promote(at),
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

    fn promote(&mut self, at: usize) {
        let highest = self.nodes.iter().map(|node| node.timeline).max().unwrap_or(0);
        self.nodes[at].writer = true;
        self.nodes[at].timeline = highest + 1;
    }

    fn command(&mut self, command: Command) {
        self.cluster.handle_command(self.now, CommandId(1), command);
    }

    fn is_held(&self) -> bool {
        self.cluster.view().is_holding()
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

#[test]
fn a_switchover_holds_until_the_new_writer_is_verified() {
    let mut world = World::new();
    world.running = 2;
    world.command(Command::Switchover(None));
    world.run(50);
    assert!(world.is_held() && world.answers.is_empty());
    assert_eq!(world.chosen(), Some(0), "what runs can end");
    world.running = 0;
    world.run(20);
    assert_eq!(world.answers, [Ok(())]);
    assert!(!world.is_held());
    assert_ne!(world.chosen(), Some(0));
}

#[test]
fn transactions_that_do_not_end_abort_it_or_are_ended() {
    for action in [DrainAction::Abort, DrainAction::Kill] {
        let mut world = World::new();
        let mut own = options();
        own.plan.drain_action = action;
        world.cluster.handle_options(world.now, own);
        world.running = 2;
        world.command(Command::Switchover(None));
        world.run(10_100);
        assert!(!world.is_held());
        let aborted = "switchover aborted: 2 transactions still running".to_owned();
        match action {
            DrainAction::Abort => {
                assert_eq!(world.answers, [Err(aborted)]);
                assert_eq!(world.chosen(), Some(0));
            }
            DrainAction::Kill => assert_eq!(world.answers, [Ok(())]),
        }
    }
}

#[test]
fn a_promotion_that_fails_ends_with_an_election_of_all() {
    let mut world = World::new();
    world.promotes = Err("no".into());
    world.command(Command::Switchover(None));
    world.run(300);
    assert_eq!(world.answers, [Err("promotion failed: no".into())]);
    assert!(!world.is_held());
    assert_eq!(world.chosen(), Some(0));
}

#[test]
fn every_event_during_a_switchover_ends_with_an_answer_and_the_rightful_writer() {
    let events = [
        Event::Kill(0),
        Event::Kill(1),
        Event::Promote(2),
        Event::Signal,
        Event::Start(0),
        Event::Wait,
    ];
    for code in 0..events.len().pow(3) {
        let mut world = World::new();
        world.running = code % 2;
        world.command(Command::Switchover(None));
        let mut rest = code;
        for _ in 0..3 {
            world.happen(events[rest % events.len()]);
            rest /= events.len();
        }
        world.running = 0;
        world.run(400);
        assert_eq!(world.answers.len(), 1, "{code}");
        let highest = world.nodes.iter().filter(|n| n.writer).map(|n| n.timeline).max();
        match world.rightful().filter(|at| Some(world.nodes[*at].timeline) == highest) {
            Some(at) => {
                assert_eq!(world.chosen(), Some(at), "{code}");
                assert!(!world.is_held(), "{code}");
            }
            None => assert!(world.is_held(), "{code}"),
        }
    }
}

#[test]
fn a_hold_ends_with_release_or_with_another_writer() {
    for released in [true, false] {
        let mut world = World::new();
        world.command(Command::Hold);
        world.run(10);
        assert_eq!(world.answers, [Ok(())]);
        world.happen(Event::Kill(0));
        world.happen(Event::Signal);
        world.happen(Event::Start(0));
        world.run(100);
        assert!(world.is_held(), "the same writer is still held");
        if released {
            world.command(Command::Release);
        } else {
            world.happen(Event::Promote(1));
        }
        world.run(100);
        assert!(!world.is_held());
        assert_eq!(world.chosen(), Some(if released { 0 } else { 1 }));
    }
}

#[test]
fn a_hold_without_a_writer_outlasts_the_same_writer() {
    let mut world = World::new();
    world.happen(Event::Kill(0));
    world.happen(Event::Signal);
    world.command(Command::Hold);
    world.run(20);
    world.happen(Event::Start(0));
    world.run(100);
    assert!(world.is_held());
    assert_eq!(world.chosen(), Some(0));
}
