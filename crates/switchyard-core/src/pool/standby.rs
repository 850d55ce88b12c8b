//! Connections that are opened on standbys beforehand, so that a promotion finds them ready.

use std::time::{Duration, Instant};

use crate::ids::{LaneId, WorkerId};
use crate::pool::lane::LaneRole;
use crate::pool::{Gate, Pool, Standby};

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
            let busy = self.busy(writer) + self.prospects(writer);
            if let Some(lane) = self.lane_mut(writer) {
                lane.note_use(now, busy);
            }
        }
        if self.gate == Gate::Paused || self.lanes.len() < 2 {
            return;
        }
        let target = self.standby_target(now);
        let standbys: Vec<LaneId> = self
            .lanes
            .iter()
            .filter(|lane| lane.role == LaneRole::Reader)
            .filter(|lane| lane.failed.as_ref().is_none_or(|failed| now >= failed.retry_at))
            .map(|lane| lane.id)
            .collect();
        for lane in standbys {
            let have = self.lane_len(lane);
            for index in have..target {
                let worker = WorkerId((index % self.queues.workers()) as u16);
                if !self.mint(now, lane, worker) {
                    break;
                }
            }
        }
    }
}

/// Span over which the peak use of the writer is remembered.
const PEAK_SPAN: Duration = Duration::from_secs(60);
