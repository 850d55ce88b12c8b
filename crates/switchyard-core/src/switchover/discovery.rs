//! The list of a cluster's nodes: when the topology query runs, and who comes and goes.
//!
//! Invariants: an empty or failing result never empties the list; the writer stays as long as
//! it is the writer.

use std::time::{Duration, Instant};

use super::cluster::{Cluster, Effect, Severity};
use super::node::{Listing, Node};
use super::probe::{ProbeId, TopologyId};
use super::topology::{Listed, TopologyRow, listed};
use super::view::NodeId;

/// When the topology query runs.
#[derive(Clone, Debug)]
pub(super) struct Discovery {
    pub(super) due: Option<Instant>,
    pub(super) running: Option<TopologyId>,
    pub(super) minted: u64,
    pub(super) read_at: Option<Instant>,
    tried: Tried,
}

/// Whether a result of any kind has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Never,
    Once,
}

impl Discovery {
    pub(super) fn new(now: Instant) -> Self {
        Discovery { due: Some(now), running: None, minted: 0, read_at: None, tried: Tried::Never }
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
        if self.discovery.running != Some(id) {
            return;
        }
        self.discovery.running = None;
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
        self.adopt(now, nodes);
        self.judge(now);
    }

    /// Runs the query if it is due and somebody answers: the writer, else any node.
    pub(super) fn discover(&mut self, now: Instant) {
        let due = self.discovery.due.is_some_and(|due| due <= now);
        if !due || self.discovery.running.is_some() {
            return;
        }
        let answers = |node: &&Node| node.failures.run == 0 && node.facts.is_some();
        let writer = self.nodes.iter().filter(answers).find(|node| Some(node.id) == self.writer());
        let Some(node) = writer.or_else(|| self.nodes.iter().find(answers)) else { return };
        self.discovery.minted += 1;
        let (node, id) = (node.id, TopologyId(self.discovery.minted));
        self.discovery.running = Some(id);
        self.effect(Effect::RunTopology { node, id });
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

    fn topology_failed(&mut self, now: Instant, text: String) {
        self.discovery.due = Some(now + TOPOLOGY_RETRY);
        self.log(Severity::Error, text);
        self.judge(now);
    }

    fn adopt(&mut self, now: Instant, wanted: Vec<Listed>) {
        for node in &mut self.nodes {
            let known = wanted.iter().find(|listed| listed.endpoint == node.endpoint);
            match (known, &node.listing) {
                (Some(listed), _) => {
                    node.name.clone_from(&listed.name);
                    node.listing = Listing::Listed;
                }
                (None, Listing::Listed) => node.listing = Listing::Missing(now),
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
        self.minted += 1;
        let text = format!("cluster \"{}\": node {} added", self.options.database, listed.name);
        if listing == Listing::Listed {
            self.log(Severity::Log, text);
        }
        self.nodes.push(Node::new(now, NodeId(self.minted), listed, listing));
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

    /// Whether every node's first question is settled.
    pub(super) fn all_heard(&self) -> bool {
        let heard = |node: &Node| node.facts.is_some() || node.failures.total > 0;
        self.nodes.iter().all(heard) && self.nodes.iter().all(|n| n.last_question() > ProbeId(0))
    }
}

/// Pause after a topology query that failed.
const TOPOLOGY_RETRY: Duration = Duration::from_secs(5);
