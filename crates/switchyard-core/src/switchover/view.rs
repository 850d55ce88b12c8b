//! What a cluster tells its pools: who writes, who reads, who is gone.

use std::time::Instant;

use super::topology::Endpoint;

/// A node of a cluster; never used again for another node during the cluster's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// What a node may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The elected writer.
    Writer,
    /// A healthy standby.
    Reader,
    /// Neither is known.
    Unknown,
}

impl Role {
    /// Text of console columns.
    pub fn text(self) -> &'static str {
        match self {
            Role::Writer => "writer",
            Role::Reader => "reader",
            Role::Unknown => "unknown",
        }
    }
}

/// Whether a node can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// It answers probes in its role.
    Up,
    /// It does not answer.
    Down,
    /// It was the writer and failed; ordinary connections wait for `server_failed_delay`.
    FailedDelay,
    /// It answers, but another timeline, another system or a second writer forbids its use.
    Fenced,
    /// The topology lists it no more; it stays because it is the writer.
    Removed,
}

impl NodeState {
    /// Text of console columns.
    pub fn text(self) -> &'static str {
        match self {
            NodeState::Up => "up",
            NodeState::Down => "down",
            NodeState::FailedDelay => "failed_delay",
            NodeState::Fenced => "fenced",
            NodeState::Removed => "removed",
        }
    }
}

/// Whether a reader is close enough to the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// It is, or nobody asks for it.
    Fine,
    /// It is further behind than `reader_max_lag`.
    TooFar,
}

/// Whether the writer takes new transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// It does.
    #[default]
    Open,
    /// An operator holds clients.
    Held,
}

/// A node as pools see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Identity.
    pub id: NodeId,
    /// Name inside the cluster, as in the key `D@NAME`.
    pub name: String,
    /// Host name, address or socket directory.
    pub host: String,
    /// Port.
    pub port: u16,
    /// What it may be used for.
    pub role: Role,
    /// Whether it can be used.
    pub state: NodeState,
    /// Whether it is close enough to the writer.
    pub lag: Lag,
}

impl NodeView {
    /// Whether connections may be opened to it.
    pub fn alive(&self) -> bool {
        matches!(self.state, NodeState::Up | NodeState::Removed)
    }
}

/// The published truth about a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Grows whenever the writer changes, to or from nobody included.
    pub epoch: u64,
    /// The last hold, operators' and others: the identity of its record.
    pub event: u64,
    /// The writer; nobody means: hold clients.
    pub writer: Option<NodeId>,
    /// Whether the writer takes new transactions.
    pub gate: Gate,
    /// The writer was asked after this moment, because of a doubt, and is the writer.
    pub confirmed: Option<Instant>,
    /// All nodes, oldest first.
    pub nodes: Vec<NodeView>,
}

impl View {
    /// The node with this identity.
    pub fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The node with this name, or listening at this `host:port`.
    pub fn by_name(&self, name: &str) -> Option<&NodeView> {
        let at = |node: &NodeView| format!("{}:{}", node.host, node.port);
        self.nodes.iter().find(|node| node.name == name || at(node) == name)
    }

    /// The node whose host name begins with this label, if only one does.
    pub fn by_label(&self, label: &str) -> Option<&NodeView> {
        let endpoint = |node: &NodeView| Endpoint { host: node.host.clone(), port: node.port };
        let mut found = self.nodes.iter().filter(|node| endpoint(node).label() == Some(label));
        found.next().filter(|_| found.next().is_none())
    }

    /// Whether clients of the writer are held.
    pub fn is_holding(&self) -> bool {
        self.writer.is_none() || self.gate == Gate::Held
    }

    /// The elected writer.
    pub fn writer_node(&self) -> Option<&NodeView> {
        self.writer.and_then(|id| self.node(id))
    }
}
