//! A statement that was refused because its server is read-only. Its client waits until it is
//! known whether the node is the writer: then the refusal is its answer. Else the statement goes to
//! the writer, as if it had not been sent.

use std::time::{Duration, Instant};

use crate::client::replay::Refused;
use crate::ids::LaneId;
use crate::switchover::view::View;

/// A client that waits.
#[derive(Debug)]
pub struct Doubt {
    /// What was refused.
    pub refused: Refused,
    lane: LaneId,
    epoch: u64,
    since: Instant,
}

/// What is known of a doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The node is the writer.
    Writer,
    /// It is not, or not any more.
    Other,
    /// Nothing yet.
    Open,
}

/// Longest wait for a probe's word.
const PATIENCE: Duration = Duration::from_secs(2);

impl Doubt {
    /// A node has refused a statement while this view was published.
    pub fn new(now: Instant, refused: Refused, lane: LaneId, view: &View) -> Self {
        Doubt { refused, lane, epoch: view.epoch, since: now }
    }

    /// What is known by now.
    pub fn finding(&self, now: Instant, view: &View) -> Finding {
        if view.epoch != self.epoch || view.writer.is_none_or(|node| node.0 != self.lane.0) {
            return Finding::Other;
        }
        let late = now.saturating_duration_since(self.since) > PATIENCE;
        if late || view.confirmed.is_some_and(|at| at >= self.since) {
            return Finding::Writer;
        }
        Finding::Open
    }
}
