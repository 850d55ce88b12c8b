//! Connections that are opened on standbys beforehand, so that a promotion finds them ready.

use std::time::{Duration, Instant};

use crate::ids::{LaneId, WorkerId};
use crate::pool::{Effect, Failing, OpenFailure, Pool, Reopen, Standby, Want, Welcome};

impl Pool {
    pub(super) fn standby_target(&self, now: Instant) -> usize {
        match self.limits.standby {
            Standby::Fixed(count) => count,
            Standby::Auto => {
                let peak = self.lanes.iter().filter_map(|lane| lane.peak(now, PEAK_SPAN)).max();
                peak.unwrap_or(0).max(1)
            }
        }
    }

    /// Opens connections to standbys beforehand, so that a promotion finds them ready.
    pub(super) fn keep_standbys(&mut self, now: Instant) {
        let writer = self.lanes.iter().find(|lane| lane.role.writes()).map(|l| l.id);
        if let Some(writer) = writer {
            let tally = self.tally(writer);
            let busy = tally.busy + tally.prospects();
            if let Some(lane) = self.lane_mut(writer) {
                lane.note_use(now, busy);
            }
        }
        if self.gate.is_paused() || self.lanes.len() < 2 {
            return;
        }
        let had_some = self.welcome != Welcome::Unknown;
        let lost_all = had_some && self.slots.is_empty() && self.queues.is_empty();
        if lost_all && self.limits.reopen == Reopen::OnRequest {
            // The next client opens connections again.
            return;
        }
        if self.is_quiet_time(now) {
            return;
        }
        let target = self.standby_target(now);
        let standbys: Vec<LaneId> = self
            .lanes
            .iter()
            .filter(|lane| lane.role.stands_by())
            .filter(|lane| !lane.is_barred(now))
            .map(|lane| lane.id)
            .collect();
        for lane in standbys {
            let have = self.tally(lane).total();
            for index in have..target {
                let worker = WorkerId((index % self.queues.workers()) as u16);
                if self.room(lane) == 0 || !self.take_share(now) {
                    break;
                }
                self.insert(now, lane, worker);
            }
        }
    }
}

/// The moment after a change of writer.
impl Pool {
    /// Whether clients that waited for a writer go on right now.
    pub(super) fn is_quiet_time(&self, now: Instant) -> bool {
        let began = self.lanes.iter().filter_map(|lane| lane.awaited);
        began.into_iter().any(|at| now.saturating_duration_since(at) < QUIET)
    }
}

/// The loss of nodes.
impl Pool {
    /// Whether the cluster has lost its writer.
    pub(super) fn has_no_writer(&self) -> bool {
        self.lanes.len() > 1 && !self.lanes.iter().any(|lane| lane.role.writes())
    }

    /// Clients are not held (`switchover_hold = 0`): those who wait for the writer are told.
    pub(super) fn refuse_waiters(&mut self) {
        if self.limits.failing == Failing::Wait || !self.has_no_writer() {
            return;
        }
        let told = self.queues.take_all(|want| want == Want::Writer);
        let failure = OpenFailure::connect(NO_WRITER);
        self.effects.extend(told.into_iter().map(|t| Effect::Fail(t, failure.clone())));
    }
}

/// What clients are told that are not held.
pub(super) const NO_WRITER: &str = "no writer";
/// Time after a change of writer that belongs to the clients that waited for it: logins elsewhere,
/// and servers that end, would take turns of the processor from them.
const QUIET: Duration = Duration::from_millis(100);
/// Span over which the peak use of the writer is remembered.
const PEAK_SPAN: Duration = Duration::from_secs(60);
