//! The machine that watches one cluster and publishes its writer.
//!
//! ```text
//! Unknown ──elected──► Stable ──signal──► Suspect ──writer answers──► Stable
//!                        │                   │
//!                        └──── lost ─────────┴──► Searching ──elected──► Stable
//! ```
//!
//! Not here: pools, clients, sockets. Invariants: epochs only grow; one writer at most is
//! published per epoch; an answer to a question that is no longer open changes nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::discovery::Discovery;
use super::election::{Memory, Oddity, Refusal, Verdict, challenger, elect};
use super::node::{FAILURES_UNTIL_DOWN, Listing, Node, Pace, Standing};
use super::options::Options;
use super::probe::{Answer, ProbeId, Question, SignalKind, TopologyId, Via};
use super::snapshot::{CHANGES_MAX, Change, ClusterSnapshot, NodeSnapshot};
use super::topology::{Endpoint, Listed};
use super::view::{NodeId, NodeState, NodeView, Role, View};

/// How a line is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// LOG.
    Log,
    /// WARNING.
    Warning,
    /// ERROR.
    Error,
}

/// Orders for the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask a node; answered by `handle_answer`.
    Ask {
        /// The node.
        node: NodeId,
        /// Where it listens.
        endpoint: Endpoint,
        /// Identity of the question.
        id: ProbeId,
        /// The question.
        question: Question,
        /// The connection to ask on.
        via: Via,
        /// When the answer is no longer wanted.
        deadline: Instant,
    },
    /// Run the topology query on a node; answered by `handle_topology`.
    RunTopology {
        /// The node.
        node: NodeId,
        /// Identity of the run.
        id: TopologyId,
    },
    /// Close the connection to a node that is no more.
    Forget(NodeId),
    /// Pools have to act on this.
    Publish(View),
    /// Write a line.
    Log(Severity, String),
}

/// What is known of the writer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// No writer was found yet; ends with the first election.
    Unknown,
    /// The writer answers.
    Stable(NodeId),
    /// Something went wrong with the writer; its own probe decides.
    Suspect(NodeId, Instant),
    /// The writer is lost and clients are held; ends with an election.
    Searching(Search),
}

/// A search for a writer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Search {
    since: Instant,
    reason: String,
    lost: Option<NodeId>,
}

/// The machine of one cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) options: Options,
    pub(super) nodes: Vec<Node>,
    pub(super) discovery: Discovery,
    pub(super) minted: u32,
    state: State,
    memory: Memory,
    probes: u64,
    published: View,
    history: Vec<Change>,
    told: Told,
    effects: VecDeque<Effect>,
}

/// Lines that are repeated at most every [`REPEAT`].
#[derive(Clone, Debug)]
struct Told {
    started: Instant,
    silence: Instant,
    refusals: Option<Instant>,
    error: Option<String>,
}

impl Cluster {
    /// A cluster of which only the entry's own hosts are known.
    pub fn new(now: Instant, options: Options) -> Self {
        let mut cluster = Cluster {
            nodes: Vec::new(),
            discovery: Discovery::new(now),
            minted: 0,
            state: State::Unknown,
            memory: Memory::default(),
            probes: 0,
            published: View::default(),
            history: Vec::new(),
            told: Told { started: now, silence: now + REPEAT, refusals: None, error: None },
            effects: VecDeque::new(),
            options,
        };
        for endpoint in cluster.options.hosts.clone() {
            let hint = super::topology::Hint::None;
            let listed = Listed { name: endpoint.to_string(), endpoint, hint };
            cluster.add(now, listed, Listing::Bootstrap);
        }
        cluster.handle_timeout(now);
        cluster
    }

    /// Other settings; nodes, writer and history stay.
    pub fn handle_options(&mut self, now: Instant, options: Options) {
        self.options = options;
        self.discovery.due = Some(now);
        self.handle_timeout(now);
    }

    /// An answer to a question, or the loss of the connection it was asked on.
    pub fn handle_answer(&mut self, now: Instant, node: NodeId, id: ProbeId, answer: Answer) {
        let pace = self.pace(now);
        let Some(node) = self.nodes.iter_mut().find(|known| known.id == node) else { return };
        if !node.awaits(id) {
            return;
        }
        if let Answer::Full(facts) = &answer {
            self.memory.learn(facts);
        }
        node.answer(now, answer, pace);
        self.judge(now);
        self.handle_timeout(now);
    }

    /// Something went wrong on a connection of a pool.
    pub fn handle_signal(&mut self, now: Instant, node: Option<NodeId>, kind: SignalKind) {
        if kind == SignalKind::Operator {
            self.discovery.due = Some(now);
        }
        let State::Stable(writer) = self.state else { return self.hurry(now) };
        if node.is_some_and(|node| node != writer) {
            return;
        }
        self.state = State::Suspect(writer, now);
        match kind {
            SignalKind::ReadOnly | SignalKind::Operator => {
                self.nodes.iter_mut().for_each(|node| node.want_full(now));
            }
            SignalKind::Disconnected | SignalKind::ShuttingDown | SignalKind::ConnectFailed => {
                self.hurry(now);
            }
        }
        self.judge(now);
        self.handle_timeout(now);
    }

    /// It is later: asks what is due and ends what took too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        let pace = self.pace(now);
        let run = |nodes: &[Node]| nodes.iter().map(|n| n.failures.total).sum::<u64>();
        let before = run(&self.nodes);
        self.nodes.iter_mut().for_each(|node| node.expire(now, pace));
        if run(&self.nodes) != before {
            self.judge(now);
        }
        self.remove_missing(now);
        for node in &mut self.nodes {
            let id = ProbeId(self.probes + 1);
            if let Some(asking) = node.ask(now, id, &self.options.timings) {
                self.probes += 1;
                let (node, endpoint) = (node.id, node.endpoint.clone());
                let (question, via, deadline) = (asking.question, asking.via, asking.deadline);
                self.effects.push_back(Effect::Ask { node, endpoint, id, question, via, deadline });
            }
        }
        self.discover(now);
        self.complain(now);
        self.publish(now);
    }

    /// Pools have acted on the last election, for so many clients that waited.
    pub fn handle_release(&mut self, now: Instant, clients: usize) {
        let State::Stable(_) = self.state else { return };
        let Some(change) = self.history.last_mut() else { return };
        change.released = Some((now, clients));
        let (lost, database) = (change.lost, &self.options.database);
        let took = now.saturating_duration_since(lost).as_millis();
        let text = format!("cluster \"{database}\": released {clients} clients after {took} ms");
        self.log(Severity::Log, text);
    }

    /// The next order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call `handle_timeout`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let topology = self.discovery.due.filter(|_| self.discovery.running.is_none());
        let answered = self.nodes.iter().any(|n| n.failures.run == 0 && n.facts.is_some());
        let silence = self.writer().is_none().then_some(self.told.silence);
        let nodes = self.nodes.iter().map(Node::due);
        nodes.chain(topology.filter(|_| answered)).chain(silence).min()
    }

    /// The writer that clients may use.
    pub fn writer(&self) -> Option<NodeId> {
        match self.state {
            State::Stable(writer) | State::Suspect(writer, _) => Some(writer),
            State::Unknown | State::Searching(_) => None,
        }
    }

    /// What was published last.
    pub fn view(&self) -> &View {
        &self.published
    }

    /// Numbers for operators.
    pub fn snapshot(&self) -> ClusterSnapshot {
        let (state, held_since) = match &self.state {
            State::Unknown => ("holding", Some(self.told.started)),
            State::Stable(_) => ("ok", None),
            State::Suspect(..) => ("suspect", None),
            State::Searching(search) => ("holding", Some(search.since)),
        };
        ClusterSnapshot {
            database: self.options.database.clone(),
            state,
            writer: self.writer(),
            writer_since: self.history.last().map(|change| change.elected),
            system: self.memory.system,
            timeline: self.memory.timeline,
            held_since,
            changes: self.history.clone(),
            topology_at: self.discovery.read_at,
            error: self.told.error.clone(),
            nodes: self.nodes.iter().filter_map(|node| self.node_snapshot(node)).collect(),
        }
    }

    /// Panics if an invariant is broken.
    pub fn check(&self) {
        self.nodes.iter().for_each(Node::check);
        assert_eq!(self.published.writer, self.writer(), "what is decided is published");
        for pair in self.history.windows(2) {
            assert!(pair[0].epoch < pair[1].epoch, "epochs grow");
        }
    }
}

impl Cluster {
    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(super) fn log(&mut self, severity: Severity, text: String) {
        if severity == Severity::Error {
            self.told.error = Some(text.clone());
        }
        self.effects.push_back(Effect::Log(severity, text));
    }

    /// Decides what the nodes' last answers mean for the writer.
    pub(super) fn judge(&mut self, now: Instant) {
        match self.state.clone() {
            State::Unknown if !self.discovery.settled() || !self.all_heard() => {}
            State::Unknown | State::Searching(_) => self.search(now),
            State::Stable(writer) => self.watch(now, writer, None),
            State::Suspect(writer, since) => self.watch(now, writer, Some(since)),
        }
    }

    fn watch(&mut self, now: Instant, writer: NodeId, suspect: Option<Instant>) {
        let Some(node) = self.nodes.iter().find(|node| node.id == writer) else {
            return self.lose(now, writer, "removed");
        };
        let failures = node.failures.run;
        let error = node.failures.text.clone().unwrap_or_default();
        match node.standing {
            Standing::Reader => return self.lose(now, writer, "it is a standby"),
            Standing::Down if failures == 0 => return self.lose(now, writer, "unclear answer"),
            Standing::Down | Standing::Writer(_) => {}
        }
        if failures >= FAILURES_UNTIL_DOWN || (failures > 0 && suspect.is_some()) {
            return self.lose(now, writer, &error);
        }
        if failures > 0 {
            self.state = State::Suspect(writer, now);
            return self.hurry(now);
        }
        let answered = node.meters.answered_at;
        if suspect.is_some_and(|since| answered.is_some_and(|at| at > since)) {
            self.state = State::Stable(writer);
            // Pools give nothing to a suspect writer until they hear of it.
            self.effects.push_back(Effect::Publish(self.published.clone()));
        }
        let ballots: Vec<_> = self.nodes.iter().map(Node::ballot).collect();
        match challenger(self.options.fencing, &self.memory, &ballots) {
            Verdict::Elect(other, _) => {
                self.lose(now, writer, "another node has a higher timeline");
                self.seat(now, other, Oddity::None);
            }
            Verdict::Split(one, other) => {
                self.lose(now, writer, "two writers");
                self.split(now, one, other);
            }
            Verdict::Nobody | Verdict::Confirm(_) => {}
        }
    }

    fn search(&mut self, now: Instant) {
        let ballots: Vec<_> = self.nodes.iter().map(Node::ballot).collect();
        let (verdict, refusals) = elect(self.options.fencing, &self.memory, &ballots);
        match verdict {
            Verdict::Elect(node, oddity) => return self.seat(now, node, oddity),
            Verdict::Confirm(node) => {
                if let Some(node) = self.nodes.iter_mut().find(|known| known.id == node) {
                    node.want_full(now);
                }
            }
            Verdict::Split(one, other) => self.split(now, one, other),
            Verdict::Nobody => {}
        }
        if refusals.is_empty() || self.told.refusals.is_some_and(|at| now < at + REPEAT) {
            return;
        }
        self.told.refusals = Some(now);
        for (node, refusal) in refusals {
            let (name, database) = (self.name(node), self.options.database.clone());
            let (severity, text) = match refusal {
                Refusal::Foreign(found, expected) => (
                    Severity::Error,
                    format!(
                        "node {name} belongs to another cluster (system identifier {found}, \
                         expected {expected})"
                    ),
                ),
                Refusal::Stale(found, expected) => (
                    Severity::Warning,
                    format!(
                        "node {name} is a stale writer (timeline {found}, expected at least \
                         {expected})"
                    ),
                ),
                Refusal::SameTimeline(timeline) => (
                    Severity::Warning,
                    format!(
                        "cluster \"{database}\": node {name} is on timeline {timeline} of the lost \
                         writer and is not taken (writer_fencing = strict)"
                    ),
                ),
            };
            self.log(severity, text);
        }
    }

    fn split(&mut self, now: Instant, one: NodeId, other: NodeId) {
        if self.told.refusals.is_some_and(|at| now < at + REPEAT) {
            return;
        }
        self.told.refusals = Some(now);
        let (one, other) = (self.name(one), self.name(other));
        let database = &self.options.database;
        let text = format!("two writers in cluster \"{database}\": {one} and {other}");
        self.log(Severity::Error, text);
    }

    fn lose(&mut self, now: Instant, writer: NodeId, reason: &str) {
        let until = now + self.options.timings.server_failed_delay;
        if let Some(node) = self.nodes.iter_mut().find(|node| node.id == writer) {
            node.unseat(until);
        }
        let database = &self.options.database;
        let text = format!("cluster \"{database}\": writer lost ({reason}), holding clients");
        let reason = reason.to_owned();
        self.state = State::Searching(Search { since: now, reason, lost: Some(writer) });
        self.told.silence = now + REPEAT;
        self.told.refusals = None;
        self.published.epoch += 1;
        self.publish(now);
        self.log(Severity::Log, text);
        self.hurry(now);
        self.search(now);
    }

    fn seat(&mut self, now: Instant, id: NodeId, oddity: Oddity) {
        let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) else { return };
        node.failed_until = None;
        let (name, endpoint) = (node.name.clone(), node.endpoint.clone());
        let facts = node.facts.clone();
        let timeline = facts.as_ref().and_then(|facts| facts.timeline);
        let before = self.memory.timeline;
        self.memory.system = self.memory.system.or(facts.and_then(|facts| facts.system));
        self.memory.timeline = self.memory.timeline.max(timeline);
        self.memory.writer = Some(id);
        let (since, reason, lost) = match &self.state {
            State::Searching(search) => (search.since, search.reason.clone(), search.lost),
            State::Unknown | State::Stable(_) | State::Suspect(..) => {
                (self.told.started, "start".into(), None)
            }
        };
        self.state = State::Stable(id);
        self.published.epoch += 1;
        self.publish(now);
        let (database, took) = (&self.options.database, now.saturating_duration_since(since));
        let line = timeline.map_or("unknown".into(), |timeline| timeline.to_string());
        let text = format!(
            "cluster \"{database}\": new writer {name} ({endpoint}), timeline {line}, after {} ms",
            took.as_millis()
        );
        self.log(Severity::Log, text);
        if oddity == Oddity::SwappedOnOneTimeline {
            let database = &self.options.database;
            let text = format!("cluster \"{database}\": writer changed without a new timeline");
            self.log(Severity::Warning, text);
        }
        if self.history.len() == CHANGES_MAX {
            self.history.remove(0);
        }
        self.history.push(Change {
            epoch: self.published.epoch,
            reason,
            old: lost.map(|node| self.name(node)).unwrap_or_default(),
            new: name,
            timelines: (before, timeline),
            lost: since,
            elected: now,
            released: None,
        });
        self.discovery.due = Some(now);
    }

    /// Publishes roles and states if any of them changed.
    fn publish(&mut self, now: Instant) {
        let nodes: Vec<NodeView> =
            self.nodes.iter().map(|node| self.node_view(now, node)).collect();
        let (old, writer) = (&self.published, self.writer());
        if old.nodes == nodes && old.writer == writer {
            return;
        }
        let mut lines = Vec::new();
        for node in nodes.iter().filter(|node| node.role == Role::Reader) {
            if old.node(node.id).is_none_or(|before| before.role != Role::Reader) {
                let database = &self.options.database;
                lines.push(format!("cluster \"{database}\": node {} up as reader", node.name));
            }
        }
        self.published.nodes = nodes;
        self.published.writer = writer;
        self.effects.push_back(Effect::Publish(self.published.clone()));
        lines.into_iter().for_each(|line| self.log(Severity::Log, line));
    }

    fn node_view(&self, now: Instant, node: &Node) -> NodeView {
        let (role, state) = if Some(node.id) == self.writer() {
            let listed = matches!(node.listing, Listing::Listed | Listing::Bootstrap);
            (Role::Writer, if listed { NodeState::Up } else { NodeState::Removed })
        } else {
            node.public(now, &self.memory)
        };
        NodeView {
            id: node.id,
            name: node.name.clone(),
            host: node.endpoint.host.clone(),
            port: node.endpoint.port,
            role,
            state,
        }
    }

    fn node_snapshot(&self, node: &Node) -> Option<NodeSnapshot> {
        let view = self.published.node(node.id)?.clone();
        let answer = match node.standing {
            Standing::Down => "unknown",
            Standing::Reader => "reader",
            Standing::Writer(_) => "writer",
        };
        Some(NodeSnapshot {
            view,
            timeline: node.facts.as_ref().and_then(|facts| facts.timeline),
            lsn: node.facts.as_ref().and_then(|facts| facts.lsn),
            round_trip: node.meters.round_trip,
            answered_at: node.meters.answered_at,
            failures: node.failures.total,
            answer,
            error: node.failures.text.clone(),
            up_since: node.meters.up_since,
            failed_until: node.failed_until,
        })
    }

    fn complain(&mut self, now: Instant) {
        let since = match &self.state {
            State::Unknown => self.told.started,
            State::Searching(search) => search.since,
            State::Stable(_) | State::Suspect(..) => return,
        };
        if now < self.told.silence {
            return;
        }
        self.told.silence = now + REPEAT;
        let (database, seconds) = (&self.options.database, (now - since).as_secs());
        let text = format!("cluster \"{database}\": no writer for {seconds} s");
        self.log(Severity::Warning, text);
    }

    fn hurry(&mut self, now: Instant) {
        self.nodes.iter_mut().for_each(|node| node.hurry(now));
    }

    fn pace(&self, now: Instant) -> Pace {
        let timings = &self.options.timings;
        let at_rest = timings.polling_frequency;
        let fast = timings.probe_fast.max(Duration::from_millis(1)).min(at_rest);
        let since = match &self.state {
            State::Stable(_) => return Pace { interval: at_rest, at_rest },
            State::Unknown => self.told.started,
            State::Suspect(_, since) => *since,
            State::Searching(search) => search.since,
        };
        let long = now.saturating_duration_since(since).saturating_sub(FAST_FOR);
        // It grows with the time beyond: after a second more it is a tenth of that second.
        let interval = if long.is_zero() { fast } else { fast.max(long / 10).min(at_rest) };
        Pace { interval, at_rest }
    }

    fn name(&self, id: NodeId) -> String {
        let node = self.nodes.iter().find(|node| node.id == id);
        node.map(|node| node.name.clone()).unwrap_or_default()
    }
}

/// How often a line about a lasting state is repeated.
const REPEAT: Duration = Duration::from_secs(10);
/// How long probes without a writer stay fast.
const FAST_FOR: Duration = Duration::from_secs(10);
