//! Servers for those who wait: idle ones first, then permits to open more.

use std::time::Instant;

use crate::ids::{LaneId, ServerId, Ticket, WorkerId};
use crate::pool::lane::LaneRole;
use crate::pool::{Effect, Fitness, Freshness, Gate, Lanes, Pool, Slot, State};

impl Pool {
    /// The waiter that a free server of `lane` goes to.
    pub(super) fn next_waiter(&self, lane: LaneId, worker: WorkerId) -> Option<Ticket> {
        if self.queues.is_empty() {
            return None;
        }
        self.queues.next(worker, self.limits.fairness, |want| self.lanes.accept(want, lane))
    }

    /// Gives idle servers to waiters, as after RESUME or an election, and opens more.
    pub(super) fn serve_waiters(&mut self, now: Instant) {
        if self.gate == Gate::Paused {
            return;
        }
        for (ticket, want) in self.queues.in_order() {
            let Some(id) = self.take_idle(want, ticket.worker) else { continue };
            match self.fitness(now, id) {
                // Right after an election there is no time for a check: a dead connection is
                // noticed by the first write, and the statement was not sent anywhere else.
                Fitness::Good | Fitness::Unchecked => {
                    self.queues.remove(ticket);
                    self.lend(id, ticket.worker, State::Busy);
                    self.effects.push_back(Effect::Give(id, ticket));
                }
                Fitness::Spent(reason) => self.discard(id, reason),
            }
        }
        self.open_for_waiters(now);
    }

    /// Gives or checks idle servers as long as more clients wait than servers are being checked.
    pub(super) fn use_idle(&mut self, now: Instant) {
        let none = self.lanes.iter().all(|lane| lane.idle_len() == 0);
        if none || self.queues.is_empty() || self.gate == Gate::Paused {
            return;
        }
        let testing = self.slots.values().filter(|slot| slot.state == State::Testing);
        let mut coming: Vec<LaneId> = testing.map(|slot| slot.lane).collect();
        for (ticket, want) in self.queues.in_order() {
            if let Some(at) = coming.iter().position(|lane| self.lanes.accept(want, *lane)) {
                coming.swap_remove(at);
                continue;
            }
            while let Some(id) = self.take_idle(want, ticket.worker) {
                match self.fitness(now, id) {
                    Fitness::Spent(reason) => {
                        self.discard(id, reason);
                        continue;
                    }
                    Fitness::Unchecked => self.check_first(id, ticket.worker),
                    Fitness::Good => {
                        self.queues.remove(ticket);
                        self.lend(id, ticket.worker, State::Busy);
                        self.effects.push_back(Effect::Give(id, ticket));
                    }
                }
                break;
            }
        }
    }

    /// Mints permits: no more than there are waiters without a prospect.
    pub(super) fn open_for_waiters(&mut self, now: Instant) {
        self.use_idle(now);
        let nobody = self.queues.is_empty() && self.logins.is_empty();
        if self.gate == Gate::Paused || nobody || self.is_full() {
            return;
        }
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            let (id, role) = (lane.id, lane.role);
            if lane.failed.as_ref().is_some_and(|failed| now < failed.retry_at) {
                continue;
            }
            let mut waiters = self.queues.workers_waiting(|want| self.lanes.accept(want, id));
            if role == LaneRole::Writer || self.lanes.len() == 1 {
                waiters.extend(self.logins.iter().take(1).map(|(ticket, _)| ticket.worker));
            }
            let prospects = self.prospects(id);
            for worker in waiters.into_iter().skip(prospects) {
                if !self.mint(now, id, worker) {
                    break;
                }
            }
        }
    }

    pub(super) fn prospects(&self, lane: LaneId) -> usize {
        let coming = |slot: &&Slot| {
            slot.lane == lane && matches!(slot.state, State::Opening | State::Testing)
        };
        self.slots.values().filter(coming).count()
    }

    /// Mints one permit if the lane has room.
    pub(super) fn mint(&mut self, now: Instant, lane: LaneId, home: WorkerId) -> bool {
        if self.limits.size > 0 && self.lane_len(lane) >= self.limits.size {
            return false;
        }
        self.minted += 1;
        let id = ServerId(self.minted);
        let (state, freshness) = (State::Opening, Freshness::Fresh);
        self.slots.insert(id, Slot { lane, home, state, freshness, started: now, used: now });
        self.effects.push_back(Effect::Open(id, lane, home));
        true
    }
}
