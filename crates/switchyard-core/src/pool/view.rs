//! Changes of a cluster as a pool sees them: roles of nodes, and the loss of a writer's server.

use std::time::{Duration, Instant};

use crate::ids::LaneId;
use crate::pool::lane::{Lane, LaneRole};
use crate::pool::{Pool, Want};
use crate::switchover::view::{Gate, Lag, NodeId, NodeState, NodeView, Role, View};

/// Longest wait for a probe's word about a suspect writer; it is as long as a probe may take.
const SUSPICION: Duration = Duration::from_millis(150);

impl Pool {
    /// The nodes of the cluster and their roles have changed. Servers of a node that lost the
    /// writer's role are closed, lent ones when they come back, idle ones at once, or soon if
    /// clients waited for the next writer and have been served.
    pub fn set_view(&mut self, now: Instant, roles: &[(LaneId, LaneRole)]) {
        let mut lost: Vec<LaneId> = Vec::new();
        let awaited = (!self.queues.is_empty()).then_some(now);
        for &(id, role) in roles {
            match self.lane_mut(id) {
                None => {
                    let lane = Lane::new(id, role, self.queues.workers());
                    self.lanes.push(lane);
                }
                Some(lane) => {
                    match (lane.role.writes(), role.writes()) {
                        (true, false) => lost.push(id),
                        (false, true) => lane.awaited = awaited,
                        (true, true) | (false, false) => {}
                    }
                    // A writer that is only confirmed is tried no sooner than that.
                    if !(lane.role.writes() && role.writes()) {
                        lane.failed = None;
                    }
                    lane.role = role;
                }
            }
        }
        let gone: Vec<LaneId> = self.lanes.iter().map(|lane| lane.id).collect();
        for id in gone.into_iter().filter(|id| !roles.iter().any(|(known, _)| known == id)) {
            lost.push(id);
            if let Some(lane) = self.lane_mut(id) {
                lane.role = LaneRole::Down;
            }
        }
        // Who waits comes first; the room that closed servers leave is for those who still wait.
        if !lost.is_empty() {
            self.serve_waiters(now);
            // Who has been served needs no room, and each server takes its time to end.
            let patient = self.is_quiet_time(now) && self.hunger.is_none();
            for id in lost {
                match patient {
                    true => self.retire_lane(id, "database configuration changed"),
                    false => self.recycle_lane(id, "database configuration changed"),
                }
            }
        }
        self.refuse_waiters();
        self.serve_waiters(now);
        self.keep_standbys(now);
    }

    /// A server of this lane was lost: if it is the writer's, nothing new goes there until the next
    /// view, or for [`SUSPICION`] at most.
    pub fn suspect(&mut self, now: Instant, lane: LaneId) {
        if let Some(lane) = self.lane_mut(lane).filter(|lane| lane.role == LaneRole::Writer) {
            lane.role = LaneRole::Suspect;
            lane.suspect_until = Some(now + SUSPICION);
        }
    }

    pub(super) fn end_suspicion(&mut self, now: Instant) {
        let over = |lane: &&mut Lane| {
            lane.role == LaneRole::Suspect && lane.suspect_until.is_some_and(|until| now >= until)
        };
        let mut lanes = self.lanes.iter_mut().filter(over).peekable();
        if lanes.peek().is_some() {
            lanes.for_each(|lane| lane.role = LaneRole::Writer);
            self.serve_waiters(now);
        }
    }
}

/// The lanes of a published cluster.
pub fn roles(view: &View) -> Vec<(LaneId, LaneRole)> {
    let role = |node: &NodeView| match (node.role, node.lag) {
        (Role::Unknown, _) if node.state == NodeState::FailedDelay => LaneRole::Resting,
        (Role::Writer, _) if view.gate == Gate::Held => LaneRole::Held,
        (Role::Writer, _) => LaneRole::Writer,
        (Role::Reader, Lag::Fine) => LaneRole::Reader,
        (Role::Reader, Lag::TooFar) => LaneRole::Behind,
        (Role::Unknown, _) => LaneRole::Down,
    };
    view.nodes.iter().map(|node| (LaneId(node.id.0), role(node))).collect()
}

/// Whether a linked client can finish on this lane what it came for: a node that is not the writer
/// any more cannot take its writes, and one that answers nothing cannot do anything.
pub fn serves(view: &View, lane: LaneId, purpose: Want) -> bool {
    view.node(NodeId(lane.0)).is_some_and(|node| match purpose {
        Want::Writer => node.role == Role::Writer,
        Want::Reader | Want::ReaderOnly | Want::Any | Want::Node(_) => node.role != Role::Unknown,
    })
}

/// Whether a connection that is being opened to this lane would take a place in the pool until it
/// times out, because its node answers nothing.
pub fn is_vain(view: &View, lane: LaneId) -> bool {
    view.node(NodeId(lane.0)).is_none_or(|node| node.role == Role::Unknown)
}
