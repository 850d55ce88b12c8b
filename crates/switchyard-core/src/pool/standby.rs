//! Connections that are opened on standbys beforehand, so that a promotion finds them ready.

use std::time::{Duration, Instant};

use crate::ids::{LaneId, WorkerId};
use crate::pool::lane::LaneRole;
use crate::pool::{Pool, Standby};

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
        let writer = self.lanes.iter().find(|lane| lane.role == LaneRole::Writer).map(|l| l.id);
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
        let target = self.standby_target(now);
        let standbys: Vec<LaneId> = self
            .lanes
            .iter()
            .filter(|lane| lane.role == LaneRole::Reader)
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

/// Span over which the peak use of the writer is remembered.
const PEAK_SPAN: Duration = Duration::from_secs(60);
