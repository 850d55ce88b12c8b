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

/// One change of the writer.
#[derive(Clone, Debug)]
pub struct Change {
    /// Epoch that it began.
    pub epoch: u64,
    /// Why the old writer was given up.
    pub reason: String,
    /// Old writer's name.
    pub old: String,
    /// New writer's name.
    pub new: String,
    /// Timelines before and after.
    pub timelines: (Option<u32>, Option<u32>),
    /// When the writer was lost.
    pub lost: Instant,
    /// When the new one was elected.
    pub elected: Instant,
    /// When pools had given clients its servers, and how many clients had waited.
    pub released: Option<(Instant, usize)>,
}

/// A cluster.
#[derive(Clone, Debug)]
pub struct ClusterSnapshot {
    /// Name of the entry.
    pub database: String,
    /// `ok`, `suspect`, `holding`.
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
    /// Changes of the writer, oldest first, at most [`CHANGES_MAX`].
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
