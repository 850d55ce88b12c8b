//! The machine that watches one cluster and publishes its writer.
//!
//! ```text
//! Unknown ──elected──► Stable ──signal──► Suspect ──writer answers──► Stable
//!                        │                   │
//!                        └──── lost ─────────┴──► Searching ──elected──► Stable
//! ```
//!
//! Here its inputs and outputs; `judge` decides who writes, `planned` are operators' holds and
//! switchovers, `discovery` the list of nodes, `publish` what others are told.
//! Not here: pools, clients, sockets. Invariants: epochs only grow; one writer at most is
//! published per epoch; an answer to a question that is no longer open changes nothing.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::discovery::{Discovery, Patience};
use super::election::Memory;
use super::node::{Node, Pace, Standing};
use super::options::Options;
use super::planned::{CommandId, Operation, PromotionId};
use super::probe::{Answer, Facts, ProbeId, Question, SignalKind, TopologyId, Via};
use super::record::Records;
use super::snapshot::Change;
use super::topology::Endpoint;
use super::view::{Gate, NodeId, View};

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
    /// Count the transactions that run on the writer; answered by `handle_running`.
    Count(u64),
    /// Close the servers that are linked to clients of this node.
    Kill(NodeId),
    /// Promote a node; answered by `handle_promoted`.
    Promote {
        /// Identity of the question.
        id: PromotionId,
        /// The node.
        node: NodeId,
        /// Its name.
        name: String,
        /// Where it listens.
        endpoint: Endpoint,
        /// Name of the writer that goes.
        old: String,
        /// When nobody waits any more.
        deadline: Instant,
    },
    /// Open a transaction that could write on a node; answered by `handle_verified`.
    Verify {
        /// Identity of the question.
        id: PromotionId,
        /// The node.
        node: NodeId,
    },
    /// An operator's command has come to its end.
    Answer(CommandId, Result<(), String>),
    /// A record is complete.
    Recorded(Box<Change>),
    /// System and timeline have to outlast the process.
    Remember(Option<u64>, Option<u32>),
    /// Write a line.
    Log(Severity, String),
}

/// What is known of the writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No writer was found yet; ends with the first election.
    Unknown,
    /// The writer answers.
    Stable(NodeId),
    /// Something went wrong with the writer; its own probe decides.
    Suspect(NodeId, Suspicion),
    /// The writer is lost and clients are held; ends with an election.
    Searching(Search),
}

/// A search for a writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Search {
    pub(super) since: Instant,
    pub(super) split: Split,
    pub(super) hearing: Hearing,
}

/// Who has to answer before there is an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hearing {
    /// Nobody: a good claim is enough.
    Any,
    /// Everybody who can, because a promotion may or may not have happened.
    All,
}

/// Whether two nodes have the same claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    No,
    Yes,
}

/// A doubt about the writer; an answer to a question that was asked later ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suspicion {
    pub(super) since: Instant,
    pub(super) cause: Cause,
    /// The kind of question that counts.
    pub(super) question: Question,
    /// A sign that came later, while the question was open.
    pub(super) again: Option<Instant>,
}

/// What a doubt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A probe that failed.
    Probe,
    /// Something seen elsewhere.
    Signal(SignalKind),
}

/// The machine of one cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) options: Options,
    pub(super) nodes: Vec<Node>,
    pub(super) discovery: Discovery,
    pub(super) minted: Minted,
    pub(super) state: State,
    pub(super) memory: Memory,
    pub(super) published: View,
    pub(super) records: Records,
    pub(super) operation: Operation,
    pub(super) told: Told,
    /// Whether an operator holds clients in the view that was last taken.
    shown: Gate,
    effects: VecDeque<Effect>,
}

/// Identities given out so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Minted {
    pub(super) nodes: u32,
    pub(super) probes: u64,
    pub(super) questions: u64,
}

/// Lines that are repeated at most every [`REPEAT`].
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) started: Instant,
    pub(super) silence: Instant,
    pub(super) refusals: Option<Instant>,
    pub(super) error: Option<String>,
    /// Nodes that keep something back, once it was told.
    pub(super) reticent: BTreeSet<NodeId>,
}

impl Cluster {
    /// A cluster of which only the entry's own hosts are known.
    pub fn new(now: Instant, options: Options) -> Self {
        Self::remembering(now, options, None, None)
    }

    /// The same with the system and the timeline that an earlier process has seen.
    pub fn remembering(
        now: Instant,
        options: Options,
        system: Option<u64>,
        timeline: Option<u32>,
    ) -> Self {
        let mut cluster = Cluster {
            nodes: Vec::new(),
            discovery: Discovery::new(now),
            minted: Minted::default(),
            state: State::Unknown,
            memory: Memory { system, timeline, ..Memory::default() },
            published: View::default(),
            records: Records::default(),
            operation: Operation::None,
            told: Told {
                started: now,
                silence: now + REPEAT,
                refusals: None,
                error: None,
                reticent: BTreeSet::new(),
            },
            shown: Gate::Open,
            effects: VecDeque::new(),
            options,
        };
        cluster.add_hosts(now);
        cluster.handle_timeout(now);
        cluster
    }

    /// Other settings; nodes, writer and history stay. Another query removes at once what it does
    /// not list.
    pub fn handle_options(&mut self, now: Instant, options: Options) {
        if self.options.topology_query != options.topology_query {
            self.discovery.patience = Patience::None;
        }
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
        let noted = match &answer {
            Answer::Same => None,
            Answer::Promoted => Some("reports a promotion".to_owned()),
            Answer::Full(facts) => Some(facts.text()),
            Answer::Failed(failure) => Some(failure.text.clone()),
        };
        if let Answer::Full(facts) = &answer {
            self.memory.learn(facts);
        }
        let full = matches!(answer, Answer::Full(_));
        node.answer(now, answer, pace);
        let (id, name) = (node.id, node.name.clone());
        if full {
            self.measure(id);
            self.tell_reticence(id);
        }
        if let Some(noted) = noted {
            self.records.note(now, || format!("node {name}: {noted}"));
        }
        self.judge(now);
        self.handle_timeout(now);
    }

    /// Something went wrong on a connection of a pool.
    pub fn handle_signal(&mut self, now: Instant, node: Option<NodeId>, kind: SignalKind) {
        if kind == SignalKind::Operator {
            self.discovery.due = Some(now);
        }
        let full = !kind.weighs();
        if full {
            self.nodes.iter_mut().for_each(|node| node.want_full(now));
        }
        let (writer, suspicion) = match self.state {
            State::Stable(writer) => (writer, None),
            State::Suspect(writer, suspicion) => (writer, Some(suspicion)),
            State::Unknown | State::Searching(_) => return self.hurry(now),
        };
        if node.is_some_and(|node| node != writer) {
            return;
        }
        let cause = Cause::Signal(kind);
        let question = if full { Question::Full } else { Question::Cheap };
        let suspicion = match suspicion {
            None => Suspicion { since: now, cause, question, again: None },
            Some(old) => {
                let cause =
                    if kind.weighs() || old.cause == Cause::Probe { cause } else { old.cause };
                let question = if full { question } else { old.question };
                Suspicion { cause, question, again: Some(now), ..old }
            }
        };
        self.state = State::Suspect(writer, suspicion);
        self.hurry(now);
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
        self.go_home(now);
        self.proceed(now);
        // One turn for all nodes costs little more than one for each of them.
        if matches!(self.state, State::Stable(_)) && self.nodes.iter().any(|n| n.is_due(now)) {
            self.nodes.iter_mut().for_each(|node| node.join(now, pace.interval / 2));
        }
        for node in &mut self.nodes {
            let id = ProbeId(self.minted.probes + 1);
            if let Some(asking) = node.ask(now, id, &self.options.timings) {
                self.minted.probes += 1;
                let (node, endpoint) = (node.id, node.endpoint.clone());
                let (question, via, deadline) = (asking.question, asking.via, asking.deadline);
                self.effects.push_back(Effect::Ask { node, endpoint, id, question, via, deadline });
            }
        }
        self.discover(now);
        self.complain(now);
        self.publish(now);
    }

    /// Pools have acted on the end of a hold, for so many clients that waited.
    pub fn handle_release(&mut self, now: Instant, clients: usize) {
        if self.published.is_holding() {
            return;
        }
        let database = &self.options.database;
        let Some(open) = self.records.open() else { return };
        open.released = Some((now, clients));
        let took = now.saturating_duration_since(open.began).as_millis();
        let text = format!("cluster \"{database}\": released {clients} clients after {took} ms");
        self.log(Severity::Log, text);
        let result = self.records.open().map_or(String::new(), |open| open.result.clone());
        let result = if result.is_empty() { "ok" } else { &result };
        if let Some(change) = self.records.close(result) {
            self.effects.push_back(Effect::Recorded(Box::new(change)));
        }
    }

    /// The next order.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.effects.pop_front();
        if let Some(Effect::Publish(view)) = &effect {
            self.shown = view.gate;
        }
        effect
    }

    /// When to call `handle_timeout`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let silence = self.writer().is_none().then_some(self.told.silence);
        let nodes = self.nodes.iter().map(Node::due);
        nodes.chain(self.discovery_due()).chain(self.operation_due()).chain(silence).min()
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

    /// Panics if an invariant is broken.
    pub fn check(&self) {
        self.nodes.iter().for_each(Node::check);
        assert_eq!(self.published.writer, self.writer(), "what is decided is published");
        self.records.check();
    }
}

impl Cluster {
    /// Publishes. While an operator holds clients, a view that nobody has taken yet makes way for
    /// the next: a change of writer is one step for pools.
    pub(super) fn show(&mut self) {
        if self.shown == Gate::Held {
            self.effects.retain(|effect| !matches!(effect, Effect::Publish(_)));
        }
        self.effects.push_back(Effect::Publish(self.published.clone()));
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(super) fn log(&mut self, severity: Severity, text: String) {
        if severity == Severity::Error {
            self.told.error = Some(text.clone());
        }
        self.effects.push_back(Effect::Log(severity, text));
    }

    pub(super) fn hurry(&mut self, now: Instant) {
        self.nodes.iter_mut().for_each(|node| node.hurry(now));
    }

    /// The facts of a node of another system are those of this cluster from here on.
    pub(super) fn take_over(&mut self, facts: &Facts) {
        let (system, timeline) = (facts.system, facts.timeline);
        self.memory = Memory { system, timeline, ..Memory::default() };
    }

    fn measure(&mut self, id: NodeId) {
        let head = self.writer().and_then(|id| self.nodes.iter().find(|node| node.id == id));
        let head = head.and_then(|node| node.facts.as_ref()?.lsn);
        if let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) {
            node.measure(head);
        }
    }

    fn pace(&self, now: Instant) -> Pace {
        let timings = &self.options.timings;
        // So many questions a second at most, however many nodes there are.
        let share = Duration::from_micros(50 * self.nodes.len() as u64);
        let retry = 10 * share;
        let at_rest = timings.polling_frequency.max(share);
        let full = match self.options.lag_max {
            Some(_) => FULL_INTERVAL_LAG,
            None => FULL_INTERVAL,
        };
        let fast = timings.probe_fast.max(Duration::from_millis(1)).max(share).min(at_rest);
        let since = match (&self.state, self.operation.since()) {
            (_, Some(since)) => since,
            (State::Stable(_), None) => return Pace { interval: at_rest, at_rest, retry, full },
            (State::Unknown, None) => self.told.started,
            (State::Suspect(_, suspicion), None) => suspicion.since,
            (State::Searching(search), None) => search.since,
        };
        let long = now.saturating_duration_since(since).saturating_sub(FAST_FOR);
        // It grows with the time beyond: after a second more it is a tenth of that second.
        let interval = if long.is_zero() { fast } else { fast.max(long / 10).min(at_rest) };
        Pace { interval, at_rest, retry, full }
    }

    pub(super) fn name(&self, id: NodeId) -> String {
        let node = self.nodes.iter().find(|node| node.id == id);
        node.map(|node| node.name.clone()).unwrap_or_default()
    }

    /// Nodes that are the same running server as one that was listed before them, and answers.
    pub(super) fn is_double(&self, at: usize) -> bool {
        let server = |node: &Node| node.facts.as_ref().and_then(Facts::server);
        let Some(own) = self.nodes.get(at).and_then(server) else { return false };
        let stands = |node: &&Node| node.standing != Standing::Down && !self.is_alias(node);
        let before = self.nodes[..at].iter().filter(stands);
        before.filter_map(server).any(|other| other == own)
    }
}

/// How often a line about a lasting state is repeated.
pub(super) const REPEAT: Duration = Duration::from_secs(10);
/// How long probes without a writer stay fast.
const FAST_FOR: Duration = Duration::from_secs(10);
/// Longest time between two full questions.
const FULL_INTERVAL: Duration = Duration::from_secs(5);
/// The same while positions decide whether readers are used.
const FULL_INTERVAL_LAG: Duration = Duration::from_secs(1);
