//! The list of a cluster's nodes: when the topology query runs, and who comes and goes.
//!
//! While there is no writer the query runs more often, on each node that answers in turn: the next
//! writer may have an address that nobody knows yet, and nodes need not agree. When none of them
//! answers, the entry's own hosts are asked again, because all nodes may have moved; such an alias
//! serves to read the list and is neither published nor elected.
//!
//! Invariants: an empty or failing result never empties the list; the writer stays as long as
//! it is the writer.

use std::time::{Duration, Instant};

use super::cluster::{Cluster, Effect, Severity};
use super::node::{Listing, Node};
use super::probe::{ProbeId, SignalKind, TopologyId};
use super::topology::{Endpoint, Hint, Listed, TopologyRow, listed};
use super::view::NodeId;

/// When the topology query runs.
#[derive(Clone, Debug)]
pub(super) struct Discovery {
    pub(super) due: Option<Instant>,
    running: Option<Running>,
    minted: u64,
    pub(super) read_at: Option<Instant>,
    tried: Tried,
    /// Since when no listed node answers, and there is no writer.
    deserted: Option<Instant>,
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
            deserted: None,
            patience: Patience::Ordinary,
        }
    }

    /// The writer is lost: the list is read again soon, unless it would be anyway.
    pub(super) fn look_again(&mut self, now: Instant) {
        let soon = now + SEARCH_FIRST;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
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
        let refresh = (!refresh.is_zero()).then_some(refresh);
        let refresh = match self.writer() {
            Some(_) => refresh,
            None => Some(refresh.map_or(SEARCH_AGAIN, |refresh| refresh.min(SEARCH_AGAIN))),
        };
        self.discovery.due = refresh.map(|refresh| now + refresh);
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
                let home = self.discovery.deserted.map(|since| since + HOME_AFTER);
                let home = home.filter(|_| self.hosts_beside().next().is_some());
                let due = self.discovery.due.filter(|_| self.nodes.iter().any(Node::answers));
                home.into_iter().chain(due).min()
            }
        }
    }

    /// Whether the node is one of the entry's own hosts beside a list that does not name it.
    pub(super) fn is_alias(&self, node: &Node) -> bool {
        node.is_bootstrap() && self.discovery.read_at.is_some()
    }

    /// Goes back to the entry's own hosts when no listed node has answered for a while, and leaves
    /// them when one does.
    pub(super) fn go_home(&mut self, now: Instant) {
        if self.discovery.read_at.is_none() {
            return;
        }
        let answers = |node: &Node| node.answers() && !node.is_bootstrap();
        if self.writer().is_some() || self.nodes.iter().any(answers) {
            self.discovery.deserted = None;
            return self.remove_bootstrap();
        }
        let since = *self.discovery.deserted.get_or_insert(now);
        if now >= since + HOME_AFTER {
            self.add_hosts(now);
        }
    }

    /// The entry's own hosts that are no nodes.
    fn hosts_beside(&self) -> impl Iterator<Item = &Endpoint> {
        let known = |endpoint: &&Endpoint| self.nodes.iter().all(|n| n.endpoint != **endpoint);
        self.options.hosts.iter().filter(known)
    }

    /// Watches the entry's own hosts, unless they are listed.
    pub(super) fn add_hosts(&mut self, now: Instant) {
        for endpoint in self.hosts_beside().cloned().collect::<Vec<_>>() {
            let listed = Listed { name: endpoint.to_string(), endpoint, hint: Hint::None };
            self.add(now, listed, Listing::Bootstrap);
        }
    }

    fn remove_bootstrap(&mut self) {
        let bootstrap = self.nodes.iter().filter(|node| node.is_bootstrap()).map(|node| node.id);
        let gone: Vec<NodeId> = bootstrap.collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// Runs the query if it is due and somebody answers: the writer, else any node.
    pub(super) fn discover(&mut self, now: Instant) {
        if let Some(running) = self.discovery.running.as_ref().filter(|r| r.deadline <= now) {
            let id = running.id;
            self.handle_topology(now, id, Err("no answer in time".into()));
        }
        // Who does not answer probes is not waited for: another node is asked.
        let silent = |running: &mut Running| {
            self.nodes.iter().all(|node| node.id != running.node || !node.answers())
        };
        self.discovery.running.take_if(silent);
        let due = self.discovery.due.is_some_and(|due| due <= now);
        if !due || self.discovery.running.is_some() {
            return;
        }
        let ids = self.nodes.iter().filter(|node| node.answers()).map(|node| node.id);
        let answering: Vec<NodeId> = ids.collect();
        let writer = answering.iter().find(|id| Some(**id) == self.writer());
        // Without a writer each in turn: one that knows the next writer may be the last of them.
        let turn = usize::try_from(self.discovery.minted).unwrap_or(0) % answering.len().max(1);
        if let Some(node) = writer.or(answering.get(turn)) {
            self.run_topology(now, *node, Purpose::Nodes);
        }
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
        if self.discovery.deserted.is_none() {
            self.remove_bootstrap();
        }
        for listed in wanted {
            // The name belongs to the node that is listed under it.
            let stale = |node: &&mut Node| {
                node.name == listed.name
                    && node.endpoint != listed.endpoint
                    && matches!(node.listing, Listing::Missing(_))
            };
            if let Some(node) = self.nodes.iter_mut().find(stale) {
                node.name = node.endpoint.to_string();
            }
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
        self.told.reticent.remove(&id);
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

/// Time after the loss of a writer before the list is read again: most are found by then.
const SEARCH_FIRST: Duration = Duration::from_millis(500);
/// Longest time between two readings while there is no writer.
const SEARCH_AGAIN: Duration = Duration::from_secs(1);
/// How long no listed node answers before the entry's own hosts are asked.
const HOME_AFTER: Duration = Duration::from_secs(1);
/// Longest topology query.
const TOPOLOGY_PATIENCE: Duration = Duration::from_secs(6);
/// Pause after a topology query that failed.
const TOPOLOGY_RETRY: Duration = Duration::from_secs(5);
