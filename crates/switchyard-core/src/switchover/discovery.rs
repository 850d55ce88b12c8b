//! The list of a cluster's nodes: when the topology query runs, and who comes and goes.
//!
//! Invariants: an empty or failing result never empties the list; the writer stays as long as
//! it is the writer.

use std::time::{Duration, Instant};

use super::cluster::{Cluster, Effect, Severity};
use super::node::{Listing, Node};
use super::probe::{ProbeId, SignalKind, TopologyId};
use super::topology::{Hint, Listed, TopologyRow, listed};
use super::view::NodeId;

/// When the topology query runs.
#[derive(Clone, Debug)]
pub(super) struct Discovery {
    pub(super) due: Option<Instant>,
    running: Option<Running>,
    minted: u64,
    pub(super) read_at: Option<Instant>,
    tried: Tried,
    pub(super) patience: Patience,
}

/// A run of the query.
#[derive(Clone, Debug)]
struct Running {
    id: TopologyId,
    node: NodeId,
    deadline: Instant,
    purpose: Purpose,
}

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The list of nodes.
    Nodes,
    /// Whether a node of another system lists itself (`accept_new_system`).
    Adoption(NodeId),
}

/// How long a missing node stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// For `topology_removal_delay`.
    Ordinary,
    /// Not at all: the query is another one.
    None,
}

/// Whether a result of any kind has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Never,
    Once,
}

impl Discovery {
    pub(super) fn new(now: Instant) -> Self {
        Discovery {
            due: Some(now),
            running: None,
            minted: 0,
            read_at: None,
            tried: Tried::Never,
            patience: Patience::Ordinary,
        }
    }

    /// Whether the list of nodes is as good as it gets.
    pub(super) fn settled(&self) -> bool {
        self.tried == Tried::Once
    }
}

impl Cluster {
    /// Rows of a topology query, or why there are none.
    pub fn handle_topology(
        &mut self,
        now: Instant,
        id: TopologyId,
        result: Result<Vec<TopologyRow>, String>,
    ) {
        let Some(running) = self.discovery.running.take_if(|running| running.id == id) else {
            return;
        };
        if let Purpose::Adoption(node) = running.purpose {
            return self.adoption(now, node, result);
        }
        self.discovery.tried = Tried::Once;
        let database = self.options.database.clone();
        let rows = match result {
            Ok(rows) => rows,
            Err(text) => {
                let text = format!("topology query of \"{database}\" failed: {text}");
                return self.topology_failed(now, text);
            }
        };
        let (nodes, ignored) = listed(&rows, self.options.port);
        for what in ignored {
            let text = format!("topology of \"{database}\": ignored: {what}");
            self.log(Severity::Warning, text);
        }
        if nodes.is_empty() {
            let text = format!("topology query of \"{database}\" returned no nodes");
            return self.topology_failed(now, text);
        }
        if nodes.len() == 1 && self.discovery.read_at.is_none() {
            self.log(Severity::Warning, format!("cluster \"{database}\" has one node only"));
        }
        let refresh = self.options.timings.topology_refresh;
        self.discovery.due = (!refresh.is_zero()).then(|| now + refresh);
        self.discovery.read_at = Some(now);
        let hinted = nodes.iter().find(|node| node.hint == Hint::Writer);
        let hinted = hinted.map(|node| node.endpoint.clone());
        self.adopt(now, nodes);
        self.trust(running.node);
        let writer = self.writer().and_then(|id| self.nodes.iter().find(|node| node.id == id));
        let doubtful = writer.is_some_and(|writer| {
            writer.listing != Listing::Listed
                || hinted.is_some_and(|endpoint| endpoint != writer.endpoint)
        });
        if doubtful {
            return self.handle_signal(now, None, SignalKind::Topology);
        }
        self.judge(now);
        self.handle_timeout(now);
    }

    /// When something is due here, if somebody answers.
    pub(super) fn discovery_due(&self) -> Option<Instant> {
        match &self.discovery.running {
            Some(running) => Some(running.deadline),
            None => {
                let answers = |n: &Node| n.failures.run == 0 && n.facts.is_some();
                self.discovery.due.filter(|_| self.nodes.iter().any(answers))
            }
        }
    }

    /// Runs the query if it is due and somebody answers: the writer, else any node.
    pub(super) fn discover(&mut self, now: Instant) {
        if let Some(running) = self.discovery.running.as_ref().filter(|r| r.deadline <= now) {
            let id = running.id;
            self.handle_topology(now, id, Err("no answer in time".into()));
        }
        let due = self.discovery.due.is_some_and(|due| due <= now);
        if !due || self.discovery.running.is_some() {
            return;
        }
        let answers = |node: &&Node| node.failures.run == 0 && node.facts.is_some();
        let writer = self.nodes.iter().filter(answers).find(|node| Some(node.id) == self.writer());
        let Some(node) = writer.or_else(|| self.nodes.iter().find(answers)) else { return };
        let node = node.id;
        self.run_topology(now, node, Purpose::Nodes);
    }

    /// Asks a candidate of another system whether its own topology lists it.
    pub(super) fn ask_adoption(&mut self, now: Instant, node: NodeId) {
        if self.discovery.running.is_none() {
            self.run_topology(now, node, Purpose::Adoption(node));
        }
    }

    fn run_topology(&mut self, now: Instant, node: NodeId, purpose: Purpose) {
        self.discovery.minted += 1;
        let (id, deadline) = (TopologyId(self.discovery.minted), now + TOPOLOGY_PATIENCE);
        self.discovery.running = Some(Running { id, node, deadline, purpose });
        self.effect(Effect::RunTopology { node, id });
    }

    fn adoption(&mut self, now: Instant, id: NodeId, result: Result<Vec<TopologyRow>, String>) {
        let Some(node) = self.nodes.iter().find(|node| node.id == id) else { return };
        let Some(facts) = node.facts.clone() else { return };
        let (listed, _) = listed(&result.unwrap_or_default(), self.options.port);
        if self.writer().is_some() || !listed.iter().any(|other| other.endpoint == node.endpoint) {
            return;
        }
        let (database, name) = (&self.options.database, &node.name);
        let system = facts.system.map_or("unknown".into(), |system| system.to_string());
        let text = format!("cluster \"{database}\": node {name} brings system {system}");
        self.log(Severity::Warning, text);
        self.take_over(&facts);
        self.judge(now);
        self.handle_timeout(now);
    }

    /// Removes nodes that have been missing for long enough.
    pub(super) fn remove_missing(&mut self, now: Instant) {
        let delay = self.options.timings.topology_removal_delay;
        let writer = self.writer();
        let over = |node: &Node| match node.listing {
            Listing::Missing(since) => Some(node.id) != writer && since + delay <= now,
            Listing::Listed | Listing::Bootstrap => false,
        };
        let gone: Vec<NodeId> = self.nodes.iter().filter(|n| over(n)).map(|n| n.id).collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// A node that lists itself among the first nodes says which system is meant: one that is
    /// listed by mistake, and answers alone, must not take its place.
    fn trust(&mut self, id: NodeId) {
        let listed = |node: &&Node| node.id == id && node.listing == Listing::Listed;
        let node = self.nodes.iter().find(listed);
        if let Some(facts) = node.and_then(|node| node.facts.clone()) {
            self.memory.system = self.memory.system.or(facts.system);
            self.memory.learn(&facts);
        }
    }

    fn topology_failed(&mut self, now: Instant, text: String) {
        self.discovery.due = Some(now + TOPOLOGY_RETRY);
        self.log(Severity::Error, text);
        self.judge(now);
    }

    fn adopt(&mut self, now: Instant, wanted: Vec<Listed>) {
        let delay = self.options.timings.topology_removal_delay;
        let since = match std::mem::replace(&mut self.discovery.patience, Patience::Ordinary) {
            Patience::Ordinary => now,
            Patience::None => now.checked_sub(delay).unwrap_or(now),
        };
        for node in &mut self.nodes {
            let known = wanted.iter().find(|listed| listed.endpoint == node.endpoint);
            match (known, &node.listing) {
                (Some(listed), _) => {
                    node.name.clone_from(&listed.name);
                    node.listing = Listing::Listed;
                }
                (None, Listing::Listed) => node.listing = Listing::Missing(since),
                (None, Listing::Missing(_) | Listing::Bootstrap) => {}
            }
        }
        let bootstrap = |node: &&Node| node.listing == Listing::Bootstrap;
        let gone: Vec<NodeId> = self.nodes.iter().filter(bootstrap).map(|n| n.id).collect();
        gone.into_iter().for_each(|id| self.remove(id));
        for listed in wanted {
            if !self.nodes.iter().any(|node| node.endpoint == listed.endpoint) {
                self.add(now, listed, Listing::Listed);
            }
        }
    }

    pub(super) fn add(&mut self, now: Instant, listed: Listed, listing: Listing) {
        self.minted.nodes += 1;
        let text = format!("cluster \"{}\": node {} added", self.options.database, listed.name);
        if listing == Listing::Listed {
            self.log(Severity::Log, text);
        }
        self.nodes.push(Node::new(now, NodeId(self.minted.nodes), listed, listing));
    }

    fn remove(&mut self, id: NodeId) {
        let Some(at) = self.nodes.iter().position(|node| node.id == id) else { return };
        let node = self.nodes.remove(at);
        if node.listing != Listing::Bootstrap {
            let database = &self.options.database;
            let text = format!("cluster \"{database}\": node {} removed", node.name);
            self.log(Severity::Log, text);
        }
        self.effect(Effect::Forget(id));
    }
}

/// Whether every node's first question is settled.
pub(super) fn heard_all(nodes: &[Node]) -> bool {
    let heard = |node: &Node| node.facts.is_some() || node.failures.total > 0;
    nodes.iter().all(heard) && nodes.iter().all(|node| node.last_question() > ProbeId(0))
}

/// Longest topology query.
const TOPOLOGY_PATIENCE: Duration = Duration::from_secs(6);
/// Pause after a topology query that failed.
const TOPOLOGY_RETRY: Duration = Duration::from_secs(5);
