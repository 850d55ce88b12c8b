//! What can be asked of a pool without changing it, and its invariants.

use std::time::{Duration, Instant};

use crate::ids::{LaneId, ServerId};
use crate::pool::lane::Tally;
use crate::pool::shares::Share;
use crate::pool::slots::{Freshness, Slot, State};
use crate::pool::terms::Counts;
use crate::pool::{Lanes, Pool};

/// Questions.
impl Pool {
    /// Numbers for SHOW; `lane` limits them to one node.
    pub fn counts(&self, now: Instant, lane: Option<LaneId>) -> Counts {
        let mut counts =
            Counts { waiting: self.queues.len() + self.logins.len(), ..Counts::default() };
        for slot in self.slots.values().filter(|slot| lane.is_none_or(|lane| slot.lane == lane)) {
            match slot.state {
                State::Opening => counts.opening += 1,
                State::Testing | State::Claimed => counts.testing += 1,
                State::Busy => counts.busy += 1,
                State::Idle if self.is_unchecked(now, slot) => counts.used += 1,
                State::Idle => counts.idle += 1,
            }
        }
        counts
    }

    /// Whether one more connection may carry a cancel request while so many do: with them a pool
    /// may have twice its size, whatever the other limits say.
    pub fn has_room_for_cancel(&self, cancels: usize) -> bool {
        self.limits.size == 0 || self.slots.len() + cancels < 2 * self.limits.size
    }

    /// Number of servers in any state.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no server.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Since when the first waiter waits.
    pub fn oldest_wait(&self) -> Option<Instant> {
        self.queues.oldest().or(self.logins.front().map(|(_, since)| *since))
    }

    /// The lane of a server.
    pub fn lane_of(&self, id: ServerId) -> Option<LaneId> {
        self.slots.get(&id).map(|slot| slot.lane)
    }

    /// Which host of its lane's list a server leads to.
    pub fn host_of(&self, id: ServerId) -> usize {
        self.slots.get(&id).map_or(0, |slot| slot.host)
    }

    /// Whether nothing is given out.
    pub fn is_paused(&self) -> bool {
        self.gate.is_paused()
    }

    /// How much of the time since then the pool was paused.
    pub fn paused_since(&self, since: Instant, now: Instant) -> Duration {
        self.gate.closed_since(since, now)
    }

    /// Its place among the pools that share limits.
    pub fn share(&self) -> Option<&Share> {
        self.share.as_ref()
    }

    /// Whether a server was idle for so long that it is checked before its next use.
    pub fn is_used(&self, now: Instant, id: ServerId) -> bool {
        self.slots.get(&id).is_some_and(|slot| self.is_unchecked(now, slot))
    }

    /// Whether a lane leads to the writer.
    pub fn is_writer(&self, lane: LaneId) -> bool {
        self.lanes.iter().any(|known| known.id == lane && known.role.writes())
    }

    /// When a server was logged in, and when it was last used.
    pub fn times(&self, id: ServerId) -> Option<(Instant, Instant)> {
        self.slots.get(&id).map(|slot| (slot.started, slot.used))
    }

    /// Whether a server must not be used again.
    pub fn is_stale(&self, id: ServerId) -> bool {
        self.slots.get(&id).is_none_or(|slot| slot.freshness != Freshness::Fresh)
    }

    /// Whether any server must not be used again.
    pub fn has_stale(&self) -> bool {
        self.slots.values().any(|slot| slot.freshness != Freshness::Fresh)
    }

    /// Panics if an invariant is broken.
    pub fn check(&self) {
        self.queues.check();
        for lane in &self.lanes {
            let slots = || self.slots.values().filter(|slot| slot.lane == lane.id);
            let count = |state| slots().filter(|slot| slot.state == state).count();
            let stale = |slot: &&Slot| matches!(slot.freshness, Freshness::Stale(_));
            let tally = Tally {
                opening: count(State::Opening),
                idle: count(State::Idle),
                testing: count(State::Testing) + count(State::Claimed),
                busy: count(State::Busy),
                stale: slots().filter(stale).count(),
            };
            assert_eq!(tally, lane.tally, "every slot is counted in its state");
            assert_eq!(tally.idle, lane.idle_len(), "idle slots are the parked ones");
            for id in lane.idle_ids() {
                assert!(self.slots.contains_key(&id), "a parked server has a slot");
            }
            let waiting = self.queues.count(|want| self.lanes.accept(want, lane.id));
            assert!(
                self.gate.is_paused() || waiting <= self.testing() || tally.idle == 0,
                "nobody waits while an eligible idle server exists, but for its check"
            );
        }
    }

    fn testing(&self) -> usize {
        self.lanes.iter().map(|lane| lane.tally.testing).sum()
    }
}
