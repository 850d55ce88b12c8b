//! A pool: the servers for one (database, user), who waits for them, and who gets one.
//!
//! One machine under one short lock, shared by all workers. Each idle server has a home worker:
//! a checkout takes a local one first, steals second, opens third, waits last. A released server
//! goes to a local waiter unless another worker's has waited longer by a bound.
//! A pool to a cluster has a lane for each node; other pools have one.
//!
//! Not here: sockets, logins, what a client asks for. Invariants: every slot is in one state;
//! slots of a lane never exceed the size; no waiter while an eligible idle server exists.

mod lane;
mod questions;
mod queue;
mod standby;
mod supply;
mod terms;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use crate::ids::{LaneId, ServerId, Ticket, WorkerId};
use lane::{Failed, Lane};
pub use lane::{LaneRole, Want};
use queue::Queues;
pub use terms::{
    Checkin, Checkout, Counts, Effect, Failing, Limits, OpenFailure, OpenFailureKind, Order,
    Standby,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Connecting or logging in.
    Opening,
    /// Parked, owned by the pool.
    Idle,
    /// Owned by a worker that checks it.
    Testing,
    /// Owned by a worker: linked, or being reset.
    Busy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    Fresh,
    /// Must not be used again, for this reason.
    Stale(&'static str),
}

#[derive(Clone, Debug)]
struct Slot {
    lane: LaneId,
    home: WorkerId,
    state: State,
    freshness: Freshness,
    started: Instant,
    used: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    Paused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Welcome {
    Unknown,
    Known,
}

/// Longest wait for a probe's word about a suspect writer; it is as long as a probe may take.
const SUSPICION: Duration = Duration::from_millis(150);

/// The pool.
#[derive(Debug)]
pub struct Pool {
    limits: Limits,
    lanes: Vec<Lane>,
    slots: HashMap<ServerId, Slot, RandomState>,
    minted: u64,
    queues: Queues,
    logins: VecDeque<(Ticket, Instant)>,
    gate: Gate,
    welcome: Welcome,
    effects: VecDeque<Effect>,
}

impl Pool {
    /// A pool of a plain entry: one lane, which is its own writer.
    pub fn new(limits: Limits, workers: usize) -> Self {
        let mut pool = Pool::for_cluster(limits, workers);
        pool.lanes.push(Lane::new(LaneId(0), LaneRole::Writer, workers));
        pool
    }

    /// A pool of a cluster: without a lane until the first view comes.
    pub fn for_cluster(limits: Limits, workers: usize) -> Self {
        Pool {
            limits,
            lanes: Vec::new(),
            slots: HashMap::default(),
            minted: 0,
            queues: Queues::new(workers),
            logins: VecDeque::new(),
            gate: Gate::Open,
            welcome: Welcome::Unknown,
            effects: VecDeque::new(),
        }
    }

    /// The next order for the shell.
    #[inline]
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// A client needs a server.
    pub fn checkout(&mut self, now: Instant, ticket: Ticket, want: Want) -> Checkout {
        if self.gate == Gate::Open && self.queues.is_empty() {
            while let Some(id) = self.take_idle(want, ticket.worker) {
                match self.fitness(now, id) {
                    Fitness::Good => {
                        self.lend(id, ticket.worker, State::Busy);
                        return Checkout::Granted(id);
                    }
                    Fitness::Unchecked => {
                        self.check_first(id, ticket.worker);
                        break;
                    }
                    Fitness::Spent(reason) => self.discard(id, reason),
                }
            }
            if let Some(reason) = self.remembered_error(now, want) {
                return Checkout::Refused(reason);
            }
        }
        self.queues.push(ticket, want, now);
        self.open_for_waiters(now);
        Checkout::Wait
    }

    /// A waiting client is gone, or was served otherwise.
    pub fn leave(&mut self, ticket: Ticket) {
        self.queues.remove(ticket);
        self.logins.retain(|(waiting, _)| *waiting != ticket);
    }

    /// A client that has logged in needs the parameters of a server for its welcome. Answers
    /// whether they are known; otherwise `Effect::Welcome` or `Effect::Fail` follows.
    pub fn await_welcome(&mut self, now: Instant, ticket: Ticket) -> bool {
        if self.welcome == Welcome::Known {
            return true;
        }
        self.logins.push_back((ticket, now));
        self.open_for_waiters(now);
        false
    }

    /// A server is free: reset, answered, status idle.
    pub fn checkin(&mut self, now: Instant, id: ServerId, worker: WorkerId) -> Checkin {
        let Some(slot) = self.slots.get_mut(&id) else { return Checkin::Close("close_needed") };
        slot.home = worker;
        slot.used = now;
        let (lane, freshness) = (slot.lane, slot.freshness);
        if let Freshness::Stale(reason) = freshness {
            self.slots.remove(&id);
            self.open_for_waiters(now);
            return Checkin::Close(reason);
        }
        if self.gate == Gate::Paused {
            self.slots.remove(&id);
            return Checkin::Close("pause mode");
        }
        let waiter = self.next_waiter(lane, worker);
        if self.lane_excess(lane) > 0 {
            self.slots.remove(&id);
            return Checkin::Close("too many servers in the pool");
        }
        let spent = self.is_over_age(now, id);
        if spent && (waiter.is_none() || self.limits.lifetime.is_zero()) {
            self.slots.remove(&id);
            self.open_for_waiters(now);
            return Checkin::Close("server lifetime over");
        }
        match waiter {
            Some(ticket) => {
                self.queues.remove(ticket);
                self.lend(id, ticket.worker, State::Busy);
                Checkin::Give(ticket)
            }
            None => {
                self.set_state(id, State::Idle);
                if let Some(lane) = self.lane_mut(lane) {
                    lane.park(id, worker);
                }
                Checkin::Idle
            }
        }
    }

    /// A permit was used: the server is logged in and waits to be checked in.
    pub fn opened(&mut self, now: Instant, id: ServerId) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        assert_eq!(slot.state, State::Opening, "a permit is used once");
        slot.state = State::Busy;
        slot.started = now;
        let lane = slot.lane;
        if let Some(lane) = self.lane_mut(lane) {
            lane.failed = None;
        }
        self.welcome = Welcome::Known;
        let waiting = std::mem::take(&mut self.logins);
        self.effects.extend(waiting.into_iter().map(|(ticket, _)| Effect::Welcome(ticket)));
    }

    /// A permit came to nothing.
    pub fn open_failed(&mut self, now: Instant, id: ServerId, failure: OpenFailure) {
        let Some(slot) = self.slots.remove(&id) else { return };
        let retry_at = slot.started + self.limits.login_retry;
        let usable = self.usable(slot.lane);
        if let Some(lane) = self.lane_mut(slot.lane) {
            lane.failed = Some(Failed { retry_at, reason: failure.text.clone() });
        }
        if failure.kind == OpenFailureKind::Login && usable == 0 {
            let mut told = self.queues.take_all(|want| self.lanes.accept(want, slot.lane));
            told.extend(std::mem::take(&mut self.logins).into_iter().map(|(ticket, _)| ticket));
            self.effects.extend(told.into_iter().map(|t| Effect::Fail(t, failure.clone())));
        }
        self.open_for_waiters(now);
    }

    /// A server that a worker owned is gone.
    pub fn closed(&mut self, now: Instant, id: ServerId) {
        if self.slots.remove(&id).is_some() {
            self.open_for_waiters(now);
        }
    }

    /// Something happened on an idle server: its home worker takes it out. Answers whether it
    /// was there; it then counts as in use until `checkin` or `closed`.
    pub fn claim(&mut self, id: ServerId) -> bool {
        let Some(slot) = self.slots.get_mut(&id) else { return false };
        if slot.state != State::Idle {
            return false;
        }
        slot.state = State::Testing;
        let (lane, home) = (slot.lane, slot.home);
        self.lane_mut(lane).is_some_and(|lane| lane.unpark(id, home))
    }

    /// It is later: closes what is over its time and opens what may be tried again.
    pub fn tick(&mut self, now: Instant) {
        for id in self.expired(now) {
            let idle_out = self.is_over_idle(now, id);
            let reason = if idle_out { "server idle timeout" } else { "server lifetime over" };
            if self.unpark(id) {
                self.discard(id, reason);
            }
        }
        self.end_suspicion(now);
        self.open_for_waiters(now);
        self.keep_standbys(now);
    }

    /// The nodes of the cluster and their roles have changed. Servers of a node that lost the
    /// writer's role are closed, idle ones at once, lent ones when they come back.
    pub fn set_view(&mut self, now: Instant, roles: &[(LaneId, LaneRole)]) {
        for &(id, role) in roles {
            match self.lane_mut(id) {
                None => {
                    let lane = Lane::new(id, role, self.queues.workers());
                    self.lanes.push(lane);
                }
                Some(lane) => {
                    let wrote = matches!(lane.role, LaneRole::Writer | LaneRole::Suspect);
                    let lost = wrote && role != LaneRole::Writer;
                    lane.role = role;
                    lane.failed = None;
                    if lost {
                        self.recycle_lane(id, "database configuration changed");
                    }
                }
            }
        }
        let gone: Vec<LaneId> = self.lanes.iter().map(|lane| lane.id).collect();
        for id in gone.into_iter().filter(|id| !roles.iter().any(|(known, _)| known == id)) {
            self.recycle_lane(id, "database configuration changed");
            if let Some(lane) = self.lane_mut(id) {
                lane.role = LaneRole::Down;
            }
        }
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

    fn end_suspicion(&mut self, now: Instant) {
        let over = |lane: &&mut Lane| {
            lane.role == LaneRole::Suspect && lane.suspect_until.is_some_and(|until| now >= until)
        };
        let mut lanes = self.lanes.iter_mut().filter(over).peekable();
        if lanes.peek().is_some() {
            lanes.for_each(|lane| lane.role = LaneRole::Writer);
            self.serve_waiters(now);
        }
    }

    /// All servers are marked; idle ones close now (RECONNECT, changed settings).
    pub fn recycle(&mut self, now: Instant, reason: &'static str) {
        let lanes: Vec<LaneId> = self.lanes.iter().map(|lane| lane.id).collect();
        lanes.into_iter().for_each(|lane| self.recycle_lane(lane, reason));
        self.open_for_waiters(now);
    }

    /// The parameters of a server are asked for anew: who logs in waits for a fresh one.
    pub fn forget_welcome(&mut self) {
        self.welcome = Welcome::Unknown;
    }

    /// PAUSE: nothing is given out, idle servers close, lent ones when they come back.
    pub fn pause(&mut self) {
        self.gate = Gate::Paused;
        for id in self.idle_ids() {
            if self.unpark(id) {
                self.discard(id, "pause mode");
            }
        }
    }

    /// RESUME.
    pub fn resume(&mut self, now: Instant) {
        self.gate = Gate::Open;
        self.serve_waiters(now);
    }

    /// New settings; they act at the next decision.
    pub fn set_limits(&mut self, now: Instant, limits: Limits) {
        self.limits = limits;
        let lanes: Vec<LaneId> = self.lanes.iter().map(|lane| lane.id).collect();
        for lane in lanes {
            for _ in 0..self.lane_excess(lane) {
                let idle = self.lane_mut(lane).and_then(Lane::oldest_idle);
                let Some(id) = idle.filter(|id| self.unpark(*id)) else { break };
                self.discard(id, "too many servers in the pool");
            }
        }
        self.open_for_waiters(now);
    }
}

enum Fitness {
    Good,
    Unchecked,
    Spent(&'static str),
}

/// Which lanes a want accepts.
trait Lanes {
    fn accept(&self, want: Want, lane: LaneId) -> bool;
}

impl Lanes for Vec<Lane> {
    fn accept(&self, want: Want, id: LaneId) -> bool {
        let readers = || self.iter().any(|lane| lane.role == LaneRole::Reader);
        let Some(lane) = self.iter().find(|lane| lane.id == id) else { return false };
        match want {
            Want::Writer => lane.role == LaneRole::Writer,
            Want::Reader if readers() => lane.role == LaneRole::Reader,
            Want::Reader => lane.role == LaneRole::Writer,
            Want::ReaderOnly => lane.role == LaneRole::Reader,
            Want::Any => matches!(lane.role, LaneRole::Writer | LaneRole::Reader),
            Want::Node(node) => lane.id == node,
        }
    }
}

impl Pool {
    fn lane_mut(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.id == id)
    }

    /// The next idle server for a want: local ones of the least used lane first, then stolen.
    fn take_idle(&mut self, want: Want, worker: WorkerId) -> Option<ServerId> {
        let order = self.limits.order;
        if let [lane] = &mut self.lanes[..] {
            if !matches!(want, Want::Writer) && !matches!(lane.role, LaneRole::Writer) {
                return None;
            }
            return (lane.role == LaneRole::Writer).then(|| lane.take(worker, order)).flatten();
        }
        let mut eligible: Vec<(usize, usize)> = (0..self.lanes.len())
            .filter(|index| self.lanes.accept(want, self.lanes[*index].id))
            .map(|index| (self.busy(self.lanes[index].id), index))
            .collect();
        eligible.sort_unstable();
        eligible.into_iter().find_map(|(_, index)| self.lanes[index].take(worker, order))
    }

    fn busy(&self, lane: LaneId) -> usize {
        let busy = |slot: &&Slot| slot.lane == lane && slot.state == State::Busy;
        self.slots.values().filter(busy).count()
    }

    fn usable(&self, lane: LaneId) -> usize {
        let usable = |slot: &&Slot| slot.lane == lane && slot.state != State::Opening;
        self.slots.values().filter(usable).count()
    }

    fn fitness(&self, now: Instant, id: ServerId) -> Fitness {
        let Some(slot) = self.slots.get(&id) else { return Fitness::Spent("close_needed") };
        if let Freshness::Stale(reason) = slot.freshness {
            return Fitness::Spent(reason);
        }
        if self.is_unchecked(now, slot) { Fitness::Unchecked } else { Fitness::Good }
    }

    fn is_unchecked(&self, now: Instant, slot: &Slot) -> bool {
        self.limits
            .check_delay
            .is_some_and(|delay| now.saturating_duration_since(slot.used) > delay)
    }

    fn is_over_age(&self, now: Instant, id: ServerId) -> bool {
        let age = self.slots.get(&id).map(|slot| now.saturating_duration_since(slot.started));
        age.is_some_and(|age| age >= self.limits.lifetime)
    }

    fn is_over_idle(&self, now: Instant, id: ServerId) -> bool {
        let idle = self.slots.get(&id).map(|slot| now.saturating_duration_since(slot.used));
        !self.limits.idle_timeout.is_zero() && idle.is_some_and(|i| i >= self.limits.idle_timeout)
    }

    /// Slots of a lane beyond its size.
    fn lane_excess(&self, lane: LaneId) -> usize {
        if self.limits.size == 0 {
            return 0;
        }
        self.lane_len(lane).saturating_sub(self.limits.size)
    }

    /// Slots of a lane.
    fn lane_len(&self, lane: LaneId) -> usize {
        if self.lanes.len() == 1 {
            return self.slots.len();
        }
        self.slots.values().filter(|slot| slot.lane == lane).count()
    }

    /// The usual case under load: nothing can be opened, which needs no look at the queue.
    fn is_full(&self) -> bool {
        self.lanes.len() == 1 && self.limits.size > 0 && self.slots.len() >= self.limits.size
    }

    fn set_state(&mut self, id: ServerId, state: State) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.state = state;
        }
    }

    fn lend(&mut self, id: ServerId, worker: WorkerId, state: State) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.state = state;
            slot.home = worker;
        }
    }

    fn check_first(&mut self, id: ServerId, worker: WorkerId) {
        self.lend(id, worker, State::Testing);
        self.effects.push_back(Effect::Check(id, worker));
    }

    /// An idle server that was unparked is closed.
    fn discard(&mut self, id: ServerId, reason: &'static str) {
        self.slots.remove(&id);
        self.effects.push_back(Effect::Close(id, reason));
    }

    fn unpark(&mut self, id: ServerId) -> bool {
        let Some(slot) = self.slots.get(&id) else { return false };
        let (lane, home) = (slot.lane, slot.home);
        self.lane_mut(lane).is_some_and(|lane| lane.unpark(id, home))
    }

    fn idle_ids(&self) -> Vec<ServerId> {
        self.lanes.iter().flat_map(Lane::idle_ids).collect()
    }

    fn recycle_lane(&mut self, lane: LaneId, reason: &'static str) {
        for (id, slot) in &mut self.slots {
            if slot.lane != lane {
                continue;
            }
            slot.freshness = Freshness::Stale(reason);
            if slot.state == State::Idle {
                self.effects.push_back(Effect::Close(*id, reason));
            }
        }
        self.slots.retain(|_, slot| slot.lane != lane || slot.state != State::Idle);
        if let Some(lane) = self.lane_mut(lane) {
            lane.clear_idle();
        }
    }

    fn remembered_error(&self, now: Instant, want: Want) -> Option<String> {
        if self.limits.failing == Failing::Wait {
            return None;
        }
        let lane = self.lanes.iter().find(|lane| self.lanes.accept(want, lane.id))?;
        let failed = lane.failed.as_ref().filter(|failed| now < failed.retry_at)?;
        let empty = !self.slots.values().any(|slot| slot.lane == lane.id);
        empty.then(|| failed.reason.clone())
    }

    fn expired(&self, now: Instant) -> Vec<ServerId> {
        let kept = |id: &ServerId| {
            let lane = self.lane_of(*id).and_then(|id| self.lanes.iter().find(|l| l.id == id));
            lane.is_some_and(|lane| {
                lane.role == LaneRole::Reader && lane.idle_len() <= self.standby_target(now)
            })
        };
        let mut expired: Vec<ServerId> = self
            .idle_ids()
            .into_iter()
            .filter(|id| self.is_over_age(now, *id) || (self.is_over_idle(now, *id) && !kept(id)))
            .collect();
        // One at a time for age, so that a pool is not emptied at once.
        let over_age = |id: &ServerId| !self.is_over_idle(now, *id);
        if let Some(first) = expired.iter().position(over_age) {
            let first = expired[first];
            expired.retain(|id| *id == first || !over_age(id));
        }
        expired
    }
}
