//! A pool: the servers for one (database, user), who waits for them, and who gets one.
//!
//! One machine under one short lock, shared by all workers. Each idle server has a home worker:
//! a checkout takes a local one, steals another worker's if that comes first by a bound, else
//! opens, else waits. A released server goes to a local waiter unless another worker's has waited
//! longer by a bound.
//! A pool to a cluster has a lane for each node; other pools have one.
//!
//! Not here: sockets, logins, what a client asks for. Invariants: every slot is in one state;
//! slots of a lane never exceed the size and its reserve; no waiter while an eligible idle server
//! exists. Where to go next: `supply` for who gets a server, `upkeep` for what happens by itself,
//! `shares` for limits over several pools.

mod gate;
mod hosts;
mod lane;
pub mod parking;
mod questions;
mod queue;
pub mod shares;
mod slots;
mod standby;
mod supply;
mod terms;
mod upkeep;
mod view;

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use foldhash::fast::RandomState;

use crate::ids::{LaneId, ServerId, Ticket, WorkerId};
use gate::Gate;
pub use hosts::HostOrder;
use hosts::Others;
use lane::{Failed, Lane};
pub use lane::{LaneRole, Want};
use queue::Queues;
use shares::Share;
use slots::{Freshness, Slot, State};
use standby::NO_WRITER;
pub use terms::{
    Checkin, Checkout, Counts, Effect, Failing, Limits, Minimum, OpenFailure, OpenFailureKind,
    Order, Reopen, Reserve, Retry, Standby,
};
pub use view::{is_vain, roles, serves};

/// What is known of the parameters that clients are welcomed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Welcome {
    /// Nothing: logins wait for a first server.
    Unknown,
    /// They are those of the servers in use.
    Known,
    /// The servers they came from are to be replaced; they are good until others are known.
    Outdated,
    /// The same, and somebody has logged in since: a server is opened for others.
    Wanted,
}

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
    share: Option<Share>,
    /// Since when the first of those waits who were denied a share of common limits.
    hunger: Option<Instant>,
    /// When a server was last closed for its age.
    retired: Option<Instant>,
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
            gate: Gate::default(),
            welcome: Welcome::Unknown,
            effects: VecDeque::new(),
            share: None,
            hunger: None,
            retired: None,
        }
    }

    /// The same pool under limits that it shares with others. It must not have servers yet.
    pub fn sharing(mut self, share: Share) -> Self {
        assert!(self.slots.is_empty(), "every server takes its share");
        self.share = Some(share);
        self
    }

    /// The next order for the shell.
    #[inline]
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// A client needs a server.
    pub fn checkout(&mut self, now: Instant, ticket: Ticket, want: Want) -> Checkout {
        if !self.gate.is_paused() {
            if self.queues.is_empty()
                && let Some(id) = self.lend_idle(now, ticket.worker, want)
            {
                return Checkout::Granted(id);
            }
            if let Some(reason) = self.remembered_error(now, ticket.worker, want) {
                return Checkout::Refused(reason);
            }
        }
        self.wait(now, ticket, want);
        Checkout::Wait
    }

    /// The same for a client that is logging in: while nobody has got a server yet, it waits.
    pub fn checkout_for_login(&mut self, now: Instant, ticket: Ticket, want: Want) -> Checkout {
        match self.checkout(now, ticket, want) {
            Checkout::Refused(_) if self.welcome == Welcome::Unknown => {
                self.wait(now, ticket, want);
                Checkout::Wait
            }
            checkout => checkout,
        }
    }

    fn wait(&mut self, now: Instant, ticket: Ticket, want: Want) {
        self.queues.push(ticket, want, now);
        self.open_for_waiters(now);
    }

    /// An idle server that is fit for use; one that has to be checked first is sent there.
    fn lend_idle(&mut self, now: Instant, worker: WorkerId, want: Want) -> Option<ServerId> {
        while let Some(id) = self.take_idle(want, worker) {
            match self.fitness(now, id) {
                Fitness::Good => {
                    self.lend(id, worker, State::Busy);
                    return Some(id);
                }
                Fitness::Unchecked => {
                    self.check_first(id, worker);
                    return None;
                }
                Fitness::Spent(reason) => self.discard(id, reason),
            }
        }
        None
    }

    /// A waiting client is gone, or was served otherwise.
    pub fn leave(&mut self, now: Instant, ticket: Ticket) {
        self.queues.remove(ticket);
        if let Some(at) = self.logins.iter().position(|(waiting, _)| *waiting == ticket) {
            self.logins.remove(at);
        }
        if self.hunger.is_some() {
            self.open_for_waiters(now);
        }
    }

    /// A client that has logged in needs the parameters of a server for its welcome. Answers
    /// whether they are known; otherwise `Effect::Welcome` or `Effect::Fail` follows.
    pub fn await_welcome(&mut self, now: Instant, ticket: Ticket) -> bool {
        match self.welcome {
            Welcome::Known => return true,
            Welcome::Outdated | Welcome::Wanted => self.welcome = Welcome::Wanted,
            Welcome::Unknown => self.logins.push_back((ticket, now)),
        }
        self.open_for_waiters(now);
        self.welcome != Welcome::Unknown
    }

    /// A server is free: reset, answered, status idle.
    pub fn checkin(&mut self, now: Instant, id: ServerId, worker: WorkerId) -> Checkin {
        let Some(slot) = self.slots.get_mut(&id) else { return Checkin::Close("close_needed") };
        slot.home = worker;
        // With a lifetime of nothing each server is still used once.
        let unused = slot.state == State::Testing && slot.used <= slot.started;
        slot.used = now;
        let (lane, state, freshness) = (slot.lane, slot.state, slot.freshness);
        let reason = match self.unfit(lane, freshness) {
            None if !unused => self.retire(now, id),
            found => found,
        };
        if let Some(reason) = reason {
            self.remove(id);
            self.open_for_waiters(now);
            return Checkin::Close(reason);
        }
        let waiter = self.next_waiter(lane, worker);
        if self.is_outranked(waiter.as_ref()) {
            self.remove(id);
            self.open_for_waiters(now);
            return Checkin::Close("evicted");
        }
        let always = self.limits.check_delay.is_some_and(|delay| delay.is_zero());
        match waiter {
            Some(_) if always && matches!(state, State::Busy | State::Claimed) => {
                self.lend(id, worker, State::Testing);
                Checkin::Check
            }
            Some(waiter) => {
                self.queues.remove(waiter.ticket);
                self.lend(id, waiter.ticket.worker, State::Busy);
                Checkin::Give(waiter.ticket)
            }
            None => {
                self.set_state(id, State::Idle);
                if let Some(lane) = self.lane_mut(lane) {
                    lane.park(now, id, worker);
                }
                Checkin::Idle
            }
        }
    }

    /// Why a server that comes back is closed, if it is.
    fn unfit(&self, lane: LaneId, freshness: Freshness) -> Option<&'static str> {
        if let Freshness::Stale(reason) = freshness {
            return Some(reason);
        }
        if self.gate.is_paused() {
            return Some("pause mode");
        }
        (self.excess(lane) > 0).then_some("too many servers in the pool")
    }

    /// Why a server is closed for its age, if it is.
    fn retire(&mut self, now: Instant, id: ServerId) -> Option<&'static str> {
        (self.is_over_age(now, id) && self.may_retire(now)).then(|| {
            self.retired = Some(now);
            "server lifetime over"
        })
    }

    /// A permit was used: the server is logged in and waits to be checked in.
    pub fn opened(&mut self, now: Instant, id: ServerId) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        assert_eq!(slot.state, State::Opening, "a permit is used once");
        slot.started = now;
        let (lane, host, fresh) = (slot.lane, slot.host, slot.freshness == Freshness::Fresh);
        // A server that was just logged in needs no check.
        self.set_state(id, State::Testing);
        if let Some(lane) = self.lane_mut(lane) {
            lane.failed = None;
            lane.hosts.succeeded(host);
        }
        if fresh || self.welcome == Welcome::Unknown {
            self.welcome = Welcome::Known;
        }
        let waiting = std::mem::take(&mut self.logins);
        self.effects.extend(waiting.into_iter().map(|(ticket, _)| Effect::Welcome(ticket)));
    }

    /// A permit came to nothing.
    pub fn open_failed(&mut self, now: Instant, id: ServerId, failure: OpenFailure) {
        let Some(slot) = self.remove(id) else { return };
        let usable = self.tally(slot.lane).usable();
        let retry = self.limits.retry;
        let refused = failure.kind == OpenFailureKind::Login;
        if let Some(lane) = self.lane_mut(slot.lane)
            // Another host of the list may be tried at once. A server that refuses the login is
            // there: the others would refuse it as well.
            && (lane.hosts.failed(slot.started, slot.host, now + retry.pause(1))
                == Others::AllFailing
                || refused)
        {
            // Attempts that were under way together failed together.
            let again = |failed: &Failed| failed.count + u32::from(slot.started >= failed.retry_at);
            let count = lane.failed.as_ref().map_or(1, again);
            let retry_at = slot.started + retry.pause(count);
            let retry_at = lane.failed.as_ref().map_or(retry_at, |f| f.retry_at.max(retry_at));
            let (began, reason) = (slot.started, failure.reason.clone());
            lane.failed = Some(Failed { began, retry_at, reason, count });
        }
        if refused && usable == 0 {
            let mut told = self.queues.take_all(|want| self.lanes.accept(want, slot.lane));
            told.extend(std::mem::take(&mut self.logins).into_iter().map(|(ticket, _)| ticket));
            self.effects.extend(told.into_iter().map(|t| Effect::Fail(t, failure.clone())));
        }
        self.open_for_waiters(now);
    }

    /// A server that a worker owned is gone.
    pub fn closed(&mut self, now: Instant, id: ServerId) {
        if self.remove(id).is_some() {
            self.open_for_waiters(now);
        }
    }

    /// Something happened on an idle server: its home worker takes it out. Answers whether it
    /// was there; it then counts as in use until `checkin` or `closed`.
    pub fn claim(&mut self, id: ServerId) -> bool {
        if self.slots.get(&id).is_none_or(|slot| slot.state != State::Idle) {
            return false;
        }
        self.set_state(id, State::Claimed);
        self.unpark(id)
    }

    /// A client that needs a server, while none is there and logins have been failing, is told so
    /// until one succeeds. It may bring about the next attempt.
    fn remembered_error(&mut self, now: Instant, worker: WorkerId, want: Want) -> Option<String> {
        if self.limits.failing == Failing::Wait {
            return None;
        }
        if self.has_no_writer() && want == Want::Writer {
            return Some(NO_WRITER.into());
        }
        let lane = self.lanes.iter().find(|lane| self.lanes.accept(want, lane.id))?;
        let reason = lane.failed.as_ref()?.reason.clone();
        let (id, tally, barred) = (lane.id, lane.tally, lane.is_barred(now));
        if tally.usable() > 0 {
            return None;
        }
        if !barred && tally.opening == 0 && self.room(id) > 0 && self.take_share(now) {
            self.insert(now, id, worker);
        }
        Some(reason)
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
            Want::Node(node) => match lane.role {
                LaneRole::Held | LaneRole::Resting => false,
                LaneRole::Writer
                | LaneRole::Suspect
                | LaneRole::Reader
                | LaneRole::Behind
                | LaneRole::Down => lane.id == node,
            },
        }
    }
}

impl Pool {
    /// The next idle server for a want, of the least used lane.
    fn take_idle(&mut self, want: Want, worker: WorkerId) -> Option<ServerId> {
        let order = self.limits.order;
        if let [lane] = &mut self.lanes[..] {
            if !matches!(want, Want::Writer) && !matches!(lane.role, LaneRole::Writer) {
                return None;
            }
            let leads = lane.role == LaneRole::Writer;
            return if leads { lane.take(worker, order) } else { None };
        }
        let mut eligible: Vec<(usize, usize)> = (0..self.lanes.len())
            .filter(|index| self.lanes.accept(want, self.lanes[*index].id))
            .map(|index| (self.lanes[index].tally.busy, index))
            .collect();
        eligible.sort_unstable();
        eligible.into_iter().find_map(|(_, index)| self.lanes[index].take(worker, order))
    }

    fn fitness(&self, now: Instant, id: ServerId) -> Fitness {
        let Some(slot) = self.slots.get(&id) else { return Fitness::Spent("close_needed") };
        match slot.freshness {
            Freshness::Stale(reason) => Fitness::Spent(reason),
            Freshness::Fresh if self.is_unchecked(now, slot) => Fitness::Unchecked,
            Freshness::Fresh => Fitness::Good,
        }
    }

    fn is_unchecked(&self, now: Instant, slot: &Slot) -> bool {
        self.limits.check_delay.is_some_and(|delay| {
            delay.is_zero() || now.saturating_duration_since(slot.used) > delay
        })
    }
}
