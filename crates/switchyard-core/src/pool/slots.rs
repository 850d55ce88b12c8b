//! The slots of a pool: every server in one state, counted by lane and, for limits that several
//! pools share, over all of them.

use std::time::Instant;

use crate::ids::{LaneId, ServerId, WorkerId};
use crate::pool::lane::{Lane, Tally};
use crate::pool::{Effect, Pool};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Connecting or logging in.
    Opening,
    /// Parked, owned by the pool.
    Idle,
    /// Owned by a worker that checks it.
    Testing,
    /// Owned by a worker that looks at what came from it while it was idle.
    Claimed,
    /// Owned by a worker: linked, or being reset.
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    Fresh,
    /// Must not be used again, for this reason.
    Stale(&'static str),
}

#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) lane: LaneId,
    pub(super) home: WorkerId,
    /// Which host of the lane it leads to.
    pub(super) host: usize,
    pub(super) state: State,
    pub(super) freshness: Freshness,
    pub(super) started: Instant,
    pub(super) used: Instant,
}

fn counter(tally: &mut Tally, state: State) -> &mut usize {
    match state {
        State::Opening => &mut tally.opening,
        State::Idle => &mut tally.idle,
        State::Testing | State::Claimed => &mut tally.testing,
        State::Busy => &mut tally.busy,
    }
}

impl Pool {
    pub(super) fn lane(&self, id: LaneId) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.id == id)
    }

    pub(super) fn lane_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.id == id)
    }

    pub(super) fn tally(&self, lane: LaneId) -> Tally {
        self.lane(lane).map_or(Tally::default(), |lane| lane.tally)
    }

    /// Makes a permit. Its share of common limits must have been taken.
    pub(super) fn insert(&mut self, now: Instant, lane: LaneId, home: WorkerId) {
        self.minted += 1;
        let id = ServerId(self.minted);
        let (state, freshness) = (State::Opening, Freshness::Fresh);
        let mut host = 0;
        if let Some(lane) = self.lane_mut(lane) {
            lane.tally.opening += 1;
            host = lane.hosts.choose(now);
        }
        let slot = Slot { lane, home, host, state, freshness, started: now, used: now };
        self.slots.insert(id, slot);
        self.effects.push_back(Effect::Open(id, lane, home));
    }

    /// A server is gone.
    pub(super) fn remove(&mut self, id: ServerId) -> Option<Slot> {
        let slot = self.slots.remove(&id)?;
        if let Some(lane) = self.lane_mut(slot.lane) {
            *counter(&mut lane.tally, slot.state) -= 1;
            lane.tally.stale -= usize::from(matches!(slot.freshness, Freshness::Stale(_)));
        }
        if let Some(share) = &self.share {
            share.give();
        }
        Some(slot)
    }

    pub(super) fn set_state(&mut self, id: ServerId, state: State) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let before = std::mem::replace(&mut slot.state, state);
        let lane = slot.lane;
        if let Some(lane) = self.lane_mut(lane) {
            *counter(&mut lane.tally, before) -= 1;
            *counter(&mut lane.tally, state) += 1;
            if state == State::Busy {
                lane.lent();
            }
        }
    }

    pub(super) fn lend(&mut self, id: ServerId, worker: WorkerId, state: State) {
        self.set_state(id, state);
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.home = worker;
        }
    }

    /// Marks a server that must not be used again.
    pub(super) fn spoil(&mut self, id: ServerId, reason: &'static str) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let before = std::mem::replace(&mut slot.freshness, Freshness::Stale(reason));
        let lane = slot.lane;
        if let Some(lane) = self.lane_mut(lane).filter(|_| !matches!(before, Freshness::Stale(_))) {
            lane.tally.stale += 1;
        }
    }

    /// Takes an idle server out of those parked; answers whether it was there.
    pub(super) fn unpark(&mut self, id: ServerId) -> bool {
        let Some(slot) = self.slots.get(&id) else { return false };
        let (lane, home) = (slot.lane, slot.home);
        self.lane_mut(lane).is_some_and(|lane| lane.unpark(id, home))
    }

    /// An idle server that was unparked is closed.
    pub(super) fn discard(&mut self, id: ServerId, reason: &'static str) {
        self.remove(id);
        self.effects.push_back(Effect::Close(id, reason));
    }

    /// An idle server is closed.
    pub(super) fn expel(&mut self, id: ServerId, reason: &'static str) {
        if self.unpark(id) {
            self.discard(id, reason);
        }
    }

    pub(super) fn idle_ids(&self) -> Vec<ServerId> {
        self.lanes.iter().flat_map(Lane::idle_ids).collect()
    }

    /// The server of a lane that has been idle for longest.
    pub(super) fn longest_idle_of(&self, lane: LaneId) -> Option<(Instant, ServerId)> {
        let ids = self.lane(lane)?.oldest_idle();
        ids.filter_map(|id| Some((self.slots.get(&id)?.used, id))).min()
    }
}
