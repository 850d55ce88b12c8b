//! What operators see of a cluster: the numbers of SHOW CLUSTERS, NODES and SWITCHOVERS.

use std::time::{Duration, Instant};

use super::view::{NodeId, NodeView};

/// One node.
#[derive(Clone, Debug)]
pub struct NodeSnapshot {
    /// As published.
    pub view: NodeView,
    /// Timeline it last told.
    pub timeline: Option<u32>,
    /// Position it last told.
    pub lsn: Option<u64>,
    /// Bytes behind the writer.
    pub lag: Option<u64>,
    /// Round trip of the last answered question.
    pub round_trip: Option<Duration>,
    /// When it last answered.
    pub answered_at: Option<Instant>,
    /// Failures in all.
    pub failures: u64,
    /// What it last said.
    pub answer: &'static str,
    /// The last failure.
    pub error: Option<String>,
    /// Since when it answers.
    pub up_since: Option<Instant>,
    /// Until when ordinary connections to it wait.
    pub failed_until: Option<Instant>,
}

/// Why clients were held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An operator wanted it.
    Planned,
    /// The writer was lost, and another node took over or has to.
    Failover,
    /// The same node was the writer again.
    Restart,
    /// An operator's switchover that came to nothing.
    Aborted,
}

impl Kind {
    /// Text of console columns.
    pub fn text(self) -> &'static str {
        match self {
            Kind::Planned => "planned",
            Kind::Failover => "failover",
            Kind::Restart => "restart",
            Kind::Aborted => "aborted",
        }
    }
}

/// One hold and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Identity; later ones are higher.
    pub id: u64,
    /// Why clients were held.
    pub kind: Kind,
    /// What began it.
    pub trigger: String,
    /// Old writer's name.
    pub old: String,
    /// New writer's name, once there is one.
    pub new: String,
    /// Timelines before and after.
    pub timelines: (Option<u32>, Option<u32>),
    /// The first sign of trouble, or the operator's command.
    pub began: Instant,
    /// When the writer was given up.
    pub detected: Instant,
    /// When the new one was elected.
    pub elected: Option<Instant>,
    /// When pools had given clients its servers, and how many clients had waited.
    pub released: Option<(Instant, usize)>,
    /// The step under way, or how it ended.
    pub result: String,
    /// Signs, answers and decisions, in order.
    pub journal: Vec<(Instant, String)>,
}

/// A cluster.
#[derive(Clone, Debug)]
pub struct ClusterSnapshot {
    /// Name of the entry.
    pub database: String,
    /// `ok`, `suspect`, `holding`, `draining`, `split`, `unmanaged`.
    pub state: &'static str,
    /// The writer.
    pub writer: Option<NodeId>,
    /// Since when it is.
    pub writer_since: Option<Instant>,
    /// System identifier.
    pub system: Option<u64>,
    /// Highest timeline seen.
    pub timeline: Option<u32>,
    /// Since when clients are held.
    pub held_since: Option<Instant>,
    /// Holds, oldest first, at most [`CHANGES_MAX`] and the one under way.
    pub changes: Vec<Change>,
    /// When the topology was last read.
    pub topology_at: Option<Instant>,
    /// The last trouble.
    pub error: Option<String>,
    /// All nodes.
    pub nodes: Vec<NodeSnapshot>,
}

/// Changes that are remembered.
pub const CHANGES_MAX: usize = 100;
