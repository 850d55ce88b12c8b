//! What happens to a pool by itself or by an operator: servers closed for their age, idleness or
//! number, servers kept ready, PAUSE and RECONNECT, changed settings.

use std::time::{Duration, Instant};

use crate::ids::{LaneId, ServerId, WorkerId};
use crate::pool::hosts::{HostList, HostOrder};
use crate::pool::lane::{Lane, LaneRole};
use crate::pool::slots::{Freshness, State};
use crate::pool::{Effect, Limits, Minimum, Pool, Welcome};

impl Pool {
    /// It is later: closes what is over its time and opens what may be tried again. `clients` is
    /// the number of clients of the pool.
    pub fn tick(&mut self, now: Instant, clients: usize) {
        self.close_retired(now);
        self.close_idle(now);
        self.close_aged(now);
        self.end_suspicion(now);
        self.open_for_waiters(now);
        if self.hunger.is_some() {
            self.effects.push_back(Effect::Evict);
        }
        self.keep_minimum(now, clients);
        self.keep_standbys(now);
    }

    fn close_idle(&mut self, now: Instant) {
        if self.limits.idle_timeout.is_zero() {
            return;
        }
        for index in 0..self.lanes.len() {
            let lane = self.lanes[index].id;
            let kept = self.kept(now, &self.lanes[index]);
            while self.tally(lane).usable() > kept
                && let Some((since, id)) = self.longest_idle_of(lane)
                && now.saturating_duration_since(since) >= self.limits.idle_timeout
            {
                self.expel(id, "server idle timeout");
            }
        }
    }

    /// Servers of a lane that idleness does not close.
    fn kept(&self, now: Instant, lane: &Lane) -> usize {
        let standby = if lane.role.stands_by() { self.standby_target(now) } else { 0 };
        let minimum = if lane.role == LaneRole::Writer { self.limits.minimum.count() } else { 0 };
        standby.max(minimum)
    }

    /// Servers that are too old, one at a time, so that a pool is not emptied at once.
    fn close_aged(&mut self, now: Instant) {
        while self.may_retire(now) {
            let ids = self.idle_ids().into_iter();
            let aged = ids.filter(|id| self.is_over_age(now, *id));
            let oldest = aged.min_by_key(|id| self.slots.get(id).map(|slot| slot.started));
            let Some(id) = oldest else { return };
            self.retired = Some(now);
            self.expel(id, "server lifetime over");
        }
    }

    /// Whether enough time has passed since a server was last closed for its age.
    pub(super) fn may_retire(&self, now: Instant) -> bool {
        let gap = match u32::try_from(self.limits.size) {
            Ok(0) | Err(_) => Duration::ZERO,
            Ok(size) => self.limits.lifetime / size,
        };
        self.retired.is_none_or(|at| now.saturating_duration_since(at) >= gap)
    }

    pub(super) fn is_over_age(&self, now: Instant, id: ServerId) -> bool {
        let age = self.slots.get(&id).map(|slot| now.saturating_duration_since(slot.started));
        age.is_some_and(|age| age >= self.limits.lifetime)
    }

    /// Servers of a lane beyond its size and reserve; those that are to be replaced anyway count
    /// as gone.
    pub(super) fn excess(&self, lane: LaneId) -> usize {
        if self.limits.size == 0 {
            return 0;
        }
        let tally = self.tally(lane);
        (tally.total() - tally.stale).saturating_sub(self.limits.size + self.limits.reserve.size)
    }

    /// Opens one server if there are fewer than the minimum.
    fn keep_minimum(&mut self, now: Instant, clients: usize) {
        let wanted = match self.limits.minimum {
            Minimum::Attended(_) if clients == 0 => 0,
            Minimum::Attended(count) | Minimum::Always(count) => count,
        };
        let writer = self.lanes.iter().find(|lane| lane.role == LaneRole::Writer);
        let Some(lane) = writer.filter(|_| wanted > 0 && !self.gate.is_paused()) else { return };
        let (id, have) = (lane.id, lane.tally.total());
        if have >= wanted || lane.is_barred(now) || self.room(id) == 0 {
            return;
        }
        if self.take_share(now) {
            self.insert(now, id, WorkerId((have % self.queues.workers()) as u16));
        }
    }

    /// All servers are marked; idle ones close now, for this reason, and what is being opened is
    /// given up (RECONNECT, changed settings).
    pub fn recycle(&mut self, now: Instant, reason: &'static str) {
        if self.welcome == Welcome::Known {
            self.welcome = Welcome::Outdated;
        }
        for lane in self.lane_ids() {
            self.recycle_lane(lane, reason);
            self.abort_all(lane, State::Opening, "connect string changed");
            if let Some(lane) = self.lane_mut(lane) {
                lane.failed = None;
                lane.hosts.forgive();
            }
        }
        self.open_for_waiters(now);
    }

    /// Servers for which `lost` answers true must not be used again: idle ones close now.
    pub fn recycle_some(&mut self, now: Instant, lost: &[ServerId], reason: &'static str) {
        for id in lost {
            let Some(slot) = self.slots.get(id) else { continue };
            if slot.state == State::Idle {
                self.expel(*id, reason);
            } else {
                self.spoil(*id, reason);
            }
        }
        self.open_for_waiters(now);
    }

    /// PAUSE: nothing is given out; idle servers close, and those being opened or checked; lent
    /// ones when they come back.
    pub fn pause(&mut self, now: Instant) {
        self.pause_because(now, "pause mode");
    }

    /// The same for another reason than a PAUSE, which is told of the servers that close at once.
    pub fn pause_because(&mut self, now: Instant, reason: &'static str) {
        self.gate.pause(now);
        for id in self.idle_ids() {
            self.expel(id, reason);
        }
        for lane in self.lane_ids() {
            self.abort_all(lane, State::Opening, reason);
            self.abort_all(lane, State::Testing, reason);
        }
        self.open_for_waiters(now);
    }

    /// RESUME.
    pub fn resume(&mut self, now: Instant) {
        self.gate.open(now);
        self.serve_waiters(now);
    }

    /// New settings; they act at the next decision.
    pub fn set_limits(&mut self, now: Instant, limits: Limits) {
        let before = std::mem::replace(&mut self.limits, limits);
        if before.retry != self.limits.retry {
            self.reconsider_retries();
        }
        for lane in self.lane_ids() {
            while self.excess(lane) > 0
                && let Some((_, id)) = self.longest_idle_of(lane)
            {
                self.expel(id, "too many servers in the pool");
            }
        }
        self.open_for_waiters(now);
    }

    /// Pauses after failed logins are as long as they would have been with the settings in force.
    fn reconsider_retries(&mut self) {
        let retry = self.limits.retry;
        for lane in &mut self.lanes {
            lane.hosts.forgive();
            if let Some(failed) = &mut lane.failed {
                failed.retry_at = failed.began + retry.pause(failed.count);
            }
        }
    }

    /// The pool of a plain entry leads to one of so many hosts. Those that were failing are
    /// remembered if the list is as long as before.
    pub fn set_hosts(&mut self, count: usize, order: HostOrder) {
        for lane in &mut self.lanes {
            if !lane.hosts.is(count, order) {
                lane.hosts = HostList::new(count, order);
            }
        }
    }

    fn lane_ids(&self) -> Vec<LaneId> {
        self.lanes.iter().map(|lane| lane.id).collect()
    }

    fn ids(&self, lane: LaneId, state: State) -> Vec<ServerId> {
        let slots = self.slots.iter().filter(|(_, slot)| slot.lane == lane && slot.state == state);
        let mut ids: Vec<ServerId> = slots.map(|(id, _)| *id).collect();
        // The order of a hash map is nobody's decision.
        ids.sort_unstable();
        ids
    }

    fn abort_all(&mut self, lane: LaneId, state: State, reason: &'static str) {
        for id in self.ids(lane, state) {
            if let Some(slot) = self.remove(id) {
                self.effects.push_back(Effect::Abort(id, slot.home, reason));
            }
        }
    }

    /// No server of a lane is used again; idle ones are closed by the next [`Pool::tick`].
    pub(super) fn retire_lane(&mut self, lane: LaneId, reason: &'static str) {
        let slots = self.slots.iter().filter(|(_, slot)| slot.lane == lane);
        for id in slots.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.spoil(id, reason);
        }
    }

    fn close_retired(&mut self, now: Instant) {
        if self.lanes.iter().all(|lane| lane.tally.stale == 0) || self.is_quiet_time(now) {
            return;
        }
        for id in self.idle_ids() {
            if let Some(Freshness::Stale(reason)) = self.slots.get(&id).map(|slot| slot.freshness) {
                self.expel(id, reason);
            }
        }
    }

    pub(super) fn recycle_lane(&mut self, lane: LaneId, reason: &'static str) {
        for id in self.ids(lane, State::Idle) {
            self.expel(id, reason);
        }
        let rest = self.slots.iter().filter(|(_, slot)| slot.lane == lane);
        for id in rest.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.spoil(id, reason);
        }
    }
}
