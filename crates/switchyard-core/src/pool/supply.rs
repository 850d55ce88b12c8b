//! Servers for those who wait: idle ones first, then permits to open more.

use std::time::Instant;

use crate::ids::{LaneId, ServerId, WorkerId};
use crate::pool::lane::LaneRole;
use crate::pool::queue::Waiter;
use crate::pool::slots::State;
use crate::pool::{Effect, Fitness, Lanes, Pool, Want, Welcome};

/// Whether servers that were idle for long are given out unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Checked,
    Unchecked,
}

/// What the oldest of those who found no server waits for.
#[derive(Clone, Copy, Debug, Default)]
struct Denied {
    since: Option<Instant>,
}

impl Pool {
    /// The waiter that a free server of `lane` goes to.
    pub(super) fn next_waiter(&self, lane: LaneId, worker: WorkerId) -> Option<Waiter> {
        if self.queues.is_empty() {
            return None;
        }
        self.queues.next(worker, self.limits.fairness, |want| self.lanes.accept(want, lane))
    }

    /// Gives idle servers to waiters, as after RESUME or an election, and opens more.
    pub(super) fn serve_waiters(&mut self, now: Instant) {
        // Right after an election there is no time for a check: a dead connection is noticed by
        // the first write, and the statement was not sent anywhere else.
        self.use_idle(now, Trust::Unchecked);
        self.open_for_waiters(now);
    }

    /// Gives or checks idle servers as long as more clients wait than servers are being checked.
    fn use_idle(&mut self, now: Instant, trust: Trust) {
        if self.gate.is_paused() || self.queues.is_empty() {
            return;
        }
        while let Some(waiter) = self.queues.first(|want| self.has_idle_for(want, trust)) {
            let Some(id) = self.take_idle(waiter.want, waiter.ticket.worker) else { return };
            match self.fitness(now, id) {
                Fitness::Spent(reason) => self.discard(id, reason),
                Fitness::Unchecked if trust == Trust::Checked => {
                    self.check_first(id, waiter.ticket.worker);
                }
                Fitness::Good | Fitness::Unchecked => {
                    self.queues.remove(waiter.ticket);
                    self.lend(id, waiter.ticket.worker, State::Busy);
                    self.effects.push_back(Effect::Give(id, waiter.ticket));
                }
            }
        }
    }

    /// Whether those who wait for this can use an idle server.
    fn has_idle_for(&self, want: Want, trust: Trust) -> bool {
        let lanes = || self.lanes.iter().filter(|lane| self.lanes.accept(want, lane.id));
        if lanes().all(|lane| lane.idle_len() == 0) {
            return false;
        }
        let coming: usize = lanes().map(|lane| lane.tally.testing).sum();
        trust == Trust::Unchecked || self.queues.count(|other| other == want) > coming
    }

    /// Mints permits: no more than there are waiters without a prospect.
    pub(super) fn open_for_waiters(&mut self, now: Instant) {
        self.use_idle(now, Trust::Checked);
        let mut denied = Denied::default();
        if !self.gate.is_paused() && self.is_wanting() {
            for index in 0..self.lanes.len() {
                self.open_lane(now, index, &mut denied);
            }
        }
        self.set_hunger(denied.since);
    }

    /// Whether anybody waits for a server.
    fn is_wanting(&self) -> bool {
        !self.queues.is_empty() || !self.logins.is_empty() || self.welcome == Welcome::Wanted
    }

    fn open_lane(&mut self, now: Instant, index: usize, denied: &mut Denied) {
        let lane = &self.lanes[index];
        let (id, tally) = (lane.id, lane.tally);
        let room = self.room(id);
        let leads = lane.role == LaneRole::Writer || self.lanes.len() == 1;
        let greets = leads && self.welcome != Welcome::Known;
        // The usual case under load: nothing can be opened, which needs no look at the queue.
        if lane.is_barred(now) || (room == 0 && !greets && self.limits.reserve.size == 0) {
            return;
        }
        let waiting = self.queues.count(|want| self.lanes.accept(want, id));
        let logins =
            usize::from(greets && (!self.logins.is_empty() || self.welcome == Welcome::Wanted));
        let missing = (waiting + logins).saturating_sub(tally.prospects());
        if missing == 0 {
            return;
        }
        let first = self.queues.first(|want| self.lanes.accept(want, id));
        let since = first.map(|waiter| waiter.since).or(self.logins.front().map(|(_, at)| *at));
        let since = since.unwrap_or(now);
        let workers =
            self.queues.last_workers(missing.min(room), |want| self.lanes.accept(want, id));
        let greeted = self.logins.front().map_or(WorkerId(0), |(ticket, _)| ticket.worker);
        for index in 0..missing.min(room) {
            if !self.take_share(since) {
                denied.since = denied.since.into_iter().chain([since]).min();
                return;
            }
            self.insert(now, id, workers.get(index).copied().unwrap_or(greeted));
        }
        if room > 0 {
            return;
        }
        // One beyond the size may open to learn the parameters for a welcome.
        let beyond = self.tally(id).total().saturating_sub(self.limits.size);
        if logins > 0 && beyond == 0 && tally.opening == 0 {
            if self.take_share(since) {
                self.insert(now, id, greeted);
            } else {
                denied.since = denied.since.into_iter().chain([since]).min();
            }
            return;
        }
        let (size, after) = (self.limits.reserve.size, self.limits.reserve.after);
        let due = |waiter: &Waiter| now.saturating_duration_since(waiter.since) >= after;
        let Some(waiter) = first.filter(|w| beyond < size && !after.is_zero() && due(w)) else {
            return;
        };
        if self.take_share(since) {
            self.effects.push_back(Effect::Reserve(waiter.ticket));
            self.insert(now, id, waiter.ticket.worker);
        } else {
            denied.since = denied.since.into_iter().chain([since]).min();
        }
    }

    /// Permits that a lane's size leaves.
    pub(super) fn room(&self, lane: LaneId) -> usize {
        match self.limits.size {
            0 => usize::MAX,
            size => size.saturating_sub(self.tally(lane).total()),
        }
    }

    /// Takes a share of the limits that are common to several pools.
    pub(super) fn take_share(&self, since: Instant) -> bool {
        self.share.as_ref().is_none_or(|share| share.take(since))
    }

    /// Tells the common limits whether this pool was denied a share.
    fn set_hunger(&mut self, since: Option<Instant>) {
        if self.hunger == since {
            return;
        }
        let before = std::mem::replace(&mut self.hunger, since);
        if let Some(share) = &self.share {
            share.set_hunger(since);
        }
        if before.is_none() {
            self.effects.push_back(Effect::Evict);
        }
    }

    /// Shares of common limits may be free: opens what was denied.
    pub fn retry(&mut self, now: Instant) {
        self.open_for_waiters(now);
        if self.hunger.is_some() {
            self.effects.push_back(Effect::Evict);
        }
    }

    /// Since when the server that `evict` would close has been idle.
    pub fn longest_idle(&self) -> Option<Instant> {
        if !self.queues.is_empty() {
            return None;
        }
        let idle = self.lanes.iter().filter_map(|lane| self.longest_idle_of(lane.id));
        idle.min().map(|(since, _)| since)
    }

    /// Another pool needs a share of a common limit: the server idle for longest is closed.
    pub fn evict(&mut self) {
        let idle = self.lanes.iter().filter_map(|lane| self.longest_idle_of(lane.id)).min();
        if let Some((_, id)) = idle.filter(|_| self.queues.is_empty()) {
            self.expel(id, "evicted");
        }
    }

    /// Whether a pool that shares a limit has the better claim to a server that is free here.
    pub(super) fn is_outranked(&self, waiter: Option<&Waiter>) -> bool {
        let rival = self.share.as_ref().and_then(|share| share.rival());
        rival.is_some_and(|since| waiter.is_none_or(|own| since + HANDOVER < own.since))
    }

    pub(super) fn check_first(&mut self, id: ServerId, worker: WorkerId) {
        self.lend(id, worker, State::Testing);
        self.effects.push_back(Effect::Check(id, worker));
    }
}

/// How much longer a waiter of another pool must have waited before a server is closed to open
/// one there: a new login costs as much as many transactions.
const HANDOVER: std::time::Duration = std::time::Duration::from_millis(50);
