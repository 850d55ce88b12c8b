//! What a cluster tells others: its view for pools, its numbers and lines for operators.

use std::time::Instant;

use super::cluster::{Cluster, REPEAT, Severity, Split, State};
use super::election::Refusal;
use super::node::{Listing, Node, Standing};
use super::snapshot::{ClusterSnapshot, NodeSnapshot};
use super::view::{Gate, Lag, NodeId, NodeState, NodeView, Role};

impl Cluster {
    /// Publishes roles and states if any of them changed.
    pub(super) fn publish(&mut self, now: Instant) {
        let places = (0..self.nodes.len()).filter(|at| !self.is_alias(&self.nodes[*at]));
        let nodes: Vec<NodeView> = places.map(|at| self.node_view(now, at)).collect();
        let (old, writer, gate) = (&self.published, self.writer(), self.operation.gate());
        if old.nodes == nodes && old.writer == writer && old.gate == gate {
            return;
        }
        let mut lines = Vec::new();
        for node in nodes.iter().filter(|node| node.role == Role::Reader) {
            if old.node(node.id).is_none_or(|before| before.role != Role::Reader) {
                let database = &self.options.database;
                let text = format!("cluster \"{database}\": node {} up as reader", node.name);
                lines.push((Severity::Log, text));
            }
        }
        for node in nodes.iter().filter(|node| node.state == NodeState::Removed) {
            let before = old.node(node.id).map(|before| before.state);
            if Some(node.id) != writer && before != Some(NodeState::Removed) {
                let database = &self.options.database;
                let text = format!(
                    "cluster \"{database}\": node {} is the same server as another node",
                    node.name
                );
                lines.push((Severity::Warning, text));
            }
        }
        // While there is no writer, refusals are told by the search for one.
        for node in nodes.iter().filter(|node| node.state == NodeState::Fenced) {
            let before = old.node(node.id).map(|before| before.state);
            // A search that knew no system yet has told nothing.
            let untold = old.writer.is_none() && self.told.refusals.is_none();
            if writer.is_some() && (before != Some(NodeState::Fenced) || untold) {
                lines.extend(self.fence(node.id).map(|refusal| self.refused(node.id, refusal)));
            }
        }
        self.published.nodes = nodes;
        self.published.writer = writer;
        self.published.gate = gate;
        self.show();
        lines.into_iter().for_each(|(severity, line)| self.log(severity, line));
    }

    /// Why a node is fenced, as far as that is known.
    fn fence(&self, id: NodeId) -> Option<Refusal> {
        let facts = self.nodes.iter().find(|node| node.id == id)?.facts.as_ref()?;
        match (facts.system.zip(self.memory.system), facts.timeline.zip(self.memory.timeline)) {
            (Some((found, expected)), _) if found != expected => {
                Some(Refusal::Foreign(found, expected))
            }
            (_, Some((found, expected))) if found < expected => {
                Some(Refusal::Stale(found, expected))
            }
            _ => None,
        }
    }

    fn node_view(&self, now: Instant, at: usize) -> NodeView {
        let node = &self.nodes[at];
        let (role, state) = if Some(node.id) == self.writer() {
            let listed = matches!(node.listing, Listing::Listed | Listing::Bootstrap);
            (Role::Writer, if listed { NodeState::Up } else { NodeState::Removed })
        } else if self.is_double(at) {
            (Role::Unknown, NodeState::Removed)
        } else {
            node.public(now, &self.memory)
        };
        let behind = self.options.lag_max.zip(node.meters.lag).is_some_and(|(max, lag)| lag > max);
        NodeView {
            id: node.id,
            name: node.name.clone(),
            host: node.endpoint.host.clone(),
            port: node.endpoint.port,
            role,
            state,
            lag: if behind && role == Role::Reader { Lag::TooFar } else { Lag::Fine },
        }
    }

    /// Numbers for operators.
    pub fn snapshot(&self) -> ClusterSnapshot {
        let (state, held_since) = match &self.state {
            _ if self.operation.gate() == Gate::Held && self.writer().is_some() => {
                (self.operation.text(), self.operation.since())
            }
            State::Unknown => ("holding", Some(self.told.started)),
            // Nothing but the entry's own host is known: nobody could take over.
            State::Stable(_) if self.discovery.read_at.is_none() => ("unmanaged", None),
            State::Stable(_) => ("ok", None),
            State::Suspect(..) => ("suspect", None),
            State::Searching(search) => match search.split {
                Split::Yes => ("split", Some(search.since)),
                Split::No => ("holding", Some(search.since)),
            },
        };
        ClusterSnapshot {
            database: self.options.database.clone(),
            state,
            writer: self.writer(),
            writer_since: self.records.seated,
            system: self.memory.system,
            timeline: self.memory.timeline,
            held_since,
            changes: self.records.all(),
            topology_at: self.discovery.read_at,
            error: self.told.error.clone(),
            nodes: self.nodes.iter().filter_map(|node| self.node_snapshot(node)).collect(),
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
            lag: node.meters.lag,
            round_trip: node.meters.round_trip,
            answered_at: node.meters.answered_at,
            failures: node.failures.total,
            answer,
            error: node.failures.text.clone(),
            up_since: node.meters.up_since,
            failed_until: node.failed_until,
        })
    }

    /// A node that keeps back what elections go by is named once.
    pub(super) fn tell_reticence(&mut self, id: NodeId) {
        let Some(node) = self.nodes.iter().find(|node| node.id == id) else { return };
        let Some(facts) = node.facts.as_ref().filter(|_| node.standing != Standing::Down) else {
            return;
        };
        let known = [
            (facts.system.is_some(), "system identifier"),
            (facts.timeline.is_some(), "timeline"),
            (facts.lsn.is_some(), "position"),
        ];
        let kept: Vec<&str> = known.iter().filter(|(known, _)| !known).map(|(_, n)| *n).collect();
        if kept.is_empty() || !self.told.reticent.insert(id) {
            return;
        }
        let (database, name) = (&self.options.database, &node.name);
        let text = format!(
            "cluster \"{database}\": node {name} does not tell probes its {}",
            kept.join(", ")
        );
        self.log(Severity::Log, text);
    }

    pub(super) fn complain(&mut self, now: Instant) {
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
}
