//! The thread that watches a cluster: what the machine orders is done at the nodes of the world,
//! with ways that take time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use switchyard_core::switchover::cluster::{Cluster, Effect};
use switchyard_core::switchover::options::Options;
use switchyard_core::switchover::planned::{Command, CommandId, PromotionId};
use switchyard_core::switchover::probe::{
    Answer, Cheap, Facts, Failure, FailureKind, ProbeId, Proof, Question, Status, Stream,
    TopologyId,
};
use switchyard_core::switchover::topology::TopologyRow;
use switchyard_core::switchover::view::NodeId;

use crate::env::{Env, Event};
use crate::node::{Health, Node, Position};
use crate::pooler::Pooler;

/// A question on its way to a node of the world.
#[derive(Clone, Debug)]
enum Asked {
    Probe(NodeId, ProbeId, Question),
    Topology(TopologyId),
    Promote(PromotionId),
    Verify(PromotionId),
}

/// What comes back.
#[derive(Clone, Debug)]
enum Input {
    Answer(NodeId, ProbeId, Answer),
    Topology(TopologyId, Result<Vec<TopologyRow>, String>),
    Promoted(PromotionId, Result<(), String>),
    Verified(PromotionId, Result<(), String>),
    Running(u64, usize),
    Command(Command),
}

/// The thread.
#[derive(Debug)]
pub struct Watch {
    /// The machine.
    pub cluster: Cluster,
    asked: BTreeMap<u64, (usize, Asked)>,
    inputs: BTreeMap<u64, Input>,
    minted: u64,
    /// Questions that a silent node has not answered.
    held: VecDeque<u64>,
    /// The last question to each node of the world.
    last: BTreeMap<usize, (NodeId, ProbeId)>,
    /// What each node said of its position when it was last asked for everything.
    known: BTreeMap<usize, Position>,
    writers: BTreeMap<u64, Option<NodeId>>,
    /// The timeline that each node has told, and the highest of all.
    told: BTreeMap<NodeId, u32>,
    highest: u32,
    due: Option<Instant>,
    /// Nodes that say they write although they do not.
    pub liars: Vec<usize>,
    /// What is promoted by the pooler, for the world to do.
    pub promotions: Vec<usize>,
    commands: u64,
    /// Commands answered so far.
    pub answers: u64,
}

impl Watch {
    /// A cluster that nobody has looked at.
    pub fn new(env: &Env, options: Options) -> Self {
        Watch {
            cluster: Cluster::new(env.now, options),
            asked: BTreeMap::new(),
            inputs: BTreeMap::new(),
            minted: 0,
            held: VecDeque::new(),
            last: BTreeMap::new(),
            known: BTreeMap::new(),
            writers: BTreeMap::new(),
            told: BTreeMap::new(),
            highest: 0,
            due: None,
            liars: Vec::new(),
            promotions: Vec::new(),
            commands: 0,
            answers: 0,
        }
    }

    /// An operator's command.
    pub fn command(&mut self, env: &mut Env, command: Command) {
        self.commands += 1;
        self.later(env, Input::Command(command), 300);
    }

    /// Commands that were not answered.
    pub fn unanswered(&self) -> u64 {
        self.commands - self.answers
    }

    fn later(&mut self, env: &mut Env, input: Input, latency: u64) {
        self.minted += 1;
        self.inputs.insert(self.minted, input);
        let pause = env.random.micros(1, latency);
        env.after(pause, Event::Answer(self.minted));
    }

    fn ask(&mut self, env: &mut Env, node: usize, asked: Asked) {
        self.minted += 1;
        self.asked.insert(self.minted, (node, asked));
        let pause = env.random.micros(20, LATENCY);
        env.after(pause, Event::Ask(self.minted));
    }

    /// A question has arrived at its node.
    pub fn arrived(&mut self, env: &mut Env, id: u64, nodes: &[Node]) {
        let Some((at, asked)) = self.asked.get(&id).cloned() else { return };
        let Some(node) = nodes.get(at) else { return };
        if node.health == Health::Silent {
            self.held.push_back(id);
            return;
        }
        self.asked.remove(&id);
        let up = node.health == Health::Up;
        let writes = node.disk.position == Position::Writer;
        let input = match asked {
            Asked::Probe(lane, probe, _) if !up => {
                let failure = Failure { kind: FailureKind::Refused, text: "refused".into() };
                Input::Answer(lane, probe, Answer::Failed(failure))
            }
            Asked::Probe(lane, probe, Question::Cheap) => {
                let same = self.known.get(&at) == Some(&node.disk.position);
                Input::Answer(lane, probe, if same { Answer::Same } else { Answer::Promoted })
            }
            Asked::Probe(lane, probe, Question::Full) => {
                self.known.insert(at, node.disk.position);
                let lies = self.liars.contains(&at);
                let status = if writes || lies { Status::Writer } else { Status::Reader };
                Input::Answer(lane, probe, Answer::Full(facts(node, status)))
            }
            Asked::Topology(topology) if up => Input::Topology(topology, Ok(rows(nodes))),
            Asked::Topology(topology) => Input::Topology(topology, Err("refused".into())),
            Asked::Promote(promotion) => {
                if up && !writes {
                    self.promotions.push(at);
                }
                let result = if up { Ok(()) } else { Err("refused".into()) };
                Input::Promoted(promotion, result)
            }
            Asked::Verify(promotion) => {
                let result = if up && writes { Ok(()) } else { Err("read-only".into()) };
                Input::Verified(promotion, result)
            }
        };
        self.later(env, input, LATENCY);
    }

    /// A silent node speaks again: it answers what it was asked.
    pub fn speaks(&mut self, env: &mut Env) {
        for id in std::mem::take(&mut self.held) {
            env.after(Duration::from_micros(10), Event::Ask(id));
        }
    }

    /// The connections to a node are lost.
    pub fn lost(&mut self, env: &mut Env, node: usize) {
        self.known.remove(&node);
        if let Some((lane, probe)) = self.last.get(&node).copied() {
            let failure = Failure { kind: FailureKind::Closed, text: "closed".into() };
            self.later(env, Input::Answer(lane, probe, Answer::Failed(failure)), LATENCY);
        }
    }

    /// Something has come back.
    pub fn heard(&mut self, env: &mut Env, pooler: &mut Pooler, id: u64) {
        let Some(input) = self.inputs.remove(&id) else { return };
        let now = env.now;
        match input {
            Input::Answer(node, probe, answer) => {
                if let Answer::Full(facts) = &answer
                    && let Some(timeline) = facts.timeline
                {
                    self.told.insert(node, timeline);
                    self.highest = self.highest.max(timeline);
                }
                self.cluster.handle_answer(now, node, probe, answer);
            }
            Input::Topology(topology, rows) => self.cluster.handle_topology(now, topology, rows),
            Input::Promoted(promotion, result) => {
                self.cluster.handle_promoted(now, promotion, result);
            }
            Input::Verified(promotion, result) => {
                self.cluster.handle_verified(now, promotion, result);
            }
            Input::Running(round, count) => self.cluster.handle_running(now, round, count),
            Input::Command(command) => {
                self.minted += 1;
                self.cluster.handle_command(now, CommandId(self.minted), command);
            }
        }
        self.obey(env, pooler);
    }

    /// Signs that workers have seen.
    pub fn signs(&mut self, env: &mut Env, pooler: &mut Pooler) {
        let Some(entry) = &mut pooler.entry else { return };
        let signs = std::mem::take(&mut entry.signs);
        for (node, kind) in signs {
            self.cluster.handle_signal(env.now, Some(node), kind);
            self.obey(env, pooler);
        }
    }

    /// It is later.
    pub fn wake(&mut self, env: &mut Env, pooler: &mut Pooler) {
        if self.due.is_none_or(|due| due > env.now) {
            // Another time was asked for since.
            return;
        }
        self.due = None;
        if self.cluster.poll_timeout().is_some_and(|at| at <= env.now) {
            self.cluster.handle_timeout(env.now);
        }
        self.obey(env, pooler);
    }

    /// Carries out what the machine orders.
    pub fn obey(&mut self, env: &mut Env, pooler: &mut Pooler) {
        while let Some(effect) = self.cluster.poll_effect() {
            if let Some(clients) = self.act(env, pooler, effect) {
                self.cluster.handle_release(env.now, clients);
            }
        }
        self.cluster.check();
        let Some(at) = self.cluster.poll_timeout() else { return };
        if self.due.is_none_or(|due| at < due) {
            self.due = Some(at);
            let pause = at.saturating_duration_since(env.now);
            env.after(pause.max(Duration::from_micros(1)), Event::Watch);
        }
    }

    fn act(&mut self, env: &mut Env, pooler: &mut Pooler, effect: Effect) -> Option<usize> {
        match effect {
            Effect::Ask { node, endpoint, id, question, .. } => {
                let at = usize::from(endpoint.port) - 1;
                self.last.insert(at, (node, id));
                self.ask(env, at, Asked::Probe(node, id, question));
            }
            Effect::RunTopology { node, id } => {
                let view = self.cluster.view().node(node);
                let at = view.map_or(0, |node| usize::from(node.port) - 1);
                self.ask(env, at, Asked::Topology(id));
            }
            Effect::Forget(_) => {}
            Effect::Publish(view) => {
                env.note(|| {
                    let nodes = view.nodes.iter().map(|n| format!("{}:{:?}", n.port, n.role));
                    let nodes: Vec<_> = nodes.collect();
                    let (epoch, writer, gate) = (view.epoch, view.writer, view.gate);
                    format!("epoch {epoch}: writer {writer:?}, {gate:?}, {nodes:?}")
                });
                let last = self.writers.keys().next_back().copied().unwrap_or_default();
                assert!(view.epoch >= last, "epochs only grow");
                if let Some(writer) = view.writer
                    && view.epoch > last
                {
                    let told = self.told.get(&writer).copied();
                    assert_eq!(told, Some(self.highest), "{writer:?} was left behind");
                }
                let writer = self.writers.entry(view.epoch).or_insert(view.writer);
                assert_eq!(*writer, view.writer, "one writer in epoch {}", view.epoch);
                return pooler.publish(env, view);
            }
            Effect::Count(round) => {
                let writer = pooler.view().and_then(|view| view.writer);
                let running = writer.map_or(0, |node| pooler.running(node));
                self.later(env, Input::Running(round, running), 300);
            }
            Effect::Kill(node) => pooler.kill(env, node),
            Effect::Promote { id, endpoint, .. } => {
                self.ask(env, usize::from(endpoint.port) - 1, Asked::Promote(id));
            }
            Effect::Verify { id, node } => {
                let view = self.cluster.view().node(node);
                let at = view.map_or(0, |node| usize::from(node.port) - 1);
                self.ask(env, at, Asked::Verify(id));
            }
            Effect::Answer(_, result) => {
                env.note(|| format!("a command is answered: {result:?}"));
                self.answers += 1;
            }
            Effect::Log(_, text) => env.note(|| text),
            Effect::Recorded(_) | Effect::Remember(..) => {}
        }
        None
    }
}

fn facts(node: &Node, status: Status) -> Facts {
    Facts {
        status,
        system: Some(7),
        timeline: Some(node.disk.timeline),
        lsn: Some(node.disk.log.len() as u64),
        started: None,
        cheap: Cheap::Enough,
        stream: Stream::Unknown,
        proof: if status == Status::Writer { Proof::Writes } else { Proof::ReadOnly },
    }
}

fn rows(nodes: &[Node]) -> Vec<TopologyRow> {
    let row = |port: usize| TopologyRow {
        endpoint: Some("n".into()),
        port: Some(port.to_string()),
        ..TopologyRow::default()
    };
    (1..=nodes.len()).map(row).collect()
}

/// Longest way to a node or back, in microseconds.
const LATENCY: u64 = 1500;
