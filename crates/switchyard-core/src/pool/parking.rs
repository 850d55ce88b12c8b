//! The idle connections of a pool, and the errands that its decisions turn into.
//!
//! A pool decides by identities. A connection has one owner at a time: the worker that uses it, or
//! the parking of its pool. Not here: the lock around both, and who runs which errand.
//! Invariant: the parked connections are the pool's idle slots.

use std::collections::HashMap;
use std::time::Instant;

use foldhash::fast::RandomState;

use crate::ids::{LaneId, ServerId, Ticket, WorkerId};
use crate::pool::{Checkin, Checkout, Effect, OpenFailure, Pool, Want};

/// The idle connections of one pool.
#[derive(Debug)]
pub struct Parking<S> {
    parked: HashMap<ServerId, S, RandomState>,
}

/// What came of a checkout.
#[derive(Debug)]
pub enum Lent<S> {
    /// Use this server at once.
    Server(S),
    /// The client is in the queue.
    Wait,
    /// Logins have been failing; the reason.
    Refused(String),
}

/// Something that a worker has to do after a decision of a pool.
#[derive(Debug)]
pub enum Errand<S> {
    /// Open a connection.
    Open(ServerId, LaneId, WorkerId),
    /// Hand a connection to a waiting client.
    Give(S, Ticket),
    /// Check a connection.
    Check(S, WorkerId),
    /// Close a connection that was idle.
    Close(S, &'static str),
    /// Tell a waiting client why there is no server.
    Fail(Ticket, OpenFailure),
    /// Let a client finish its login.
    Welcome(Ticket),
    /// Give up what is being opened or checked.
    Abort(ServerId, WorkerId, &'static str),
    /// A server of the reserve is opened for this client: the log tells.
    Reserve(Ticket),
    /// A limit shared with other pools is reached: one of them parts with an idle server.
    Evict,
}

impl<S> Errand<S> {
    /// The worker that has to act; `home` answers where a connection lives. Nobody in particular
    /// has to make room.
    pub fn worker(&self, home: impl Fn(&S) -> WorkerId) -> Option<WorkerId> {
        match self {
            Errand::Open(_, _, worker) | Errand::Check(_, worker) | Errand::Abort(_, worker, _) => {
                Some(*worker)
            }
            Errand::Give(_, ticket)
            | Errand::Fail(ticket, _)
            | Errand::Welcome(ticket)
            | Errand::Reserve(ticket) => Some(ticket.worker),
            Errand::Close(server, _) => Some(home(server)),
            Errand::Evict => None,
        }
    }
}

impl<S> Default for Parking<S> {
    fn default() -> Self {
        Parking { parked: HashMap::default() }
    }
}

impl<S> Parking<S> {
    /// A client needs a server.
    pub fn checkout(
        &mut self,
        pool: &mut Pool,
        now: Instant,
        ticket: Ticket,
        want: Want,
    ) -> Lent<S> {
        let checkout = pool.checkout(now, ticket, want);
        self.lent(checkout)
    }

    /// The same for a client that is logging in.
    pub fn checkout_for_login(
        &mut self,
        pool: &mut Pool,
        now: Instant,
        ticket: Ticket,
        want: Want,
    ) -> Lent<S> {
        let checkout = pool.checkout_for_login(now, ticket, want);
        self.lent(checkout)
    }

    fn lent(&mut self, checkout: Checkout) -> Lent<S> {
        match checkout {
            Checkout::Granted(id) => self.take(id).map_or(Lent::Wait, Lent::Server),
            Checkout::Wait => Lent::Wait,
            Checkout::Refused(reason) => Lent::Refused(reason),
        }
    }

    /// A server is free: reset, answered, status idle. Answers what is to be done with it, unless
    /// it was parked.
    pub fn checkin(
        &mut self,
        pool: &mut Pool,
        now: Instant,
        (id, worker): (ServerId, WorkerId),
        server: S,
    ) -> Option<Errand<S>> {
        match pool.checkin(now, id, worker) {
            Checkin::Idle => {
                self.parked.insert(id, server);
                None
            }
            Checkin::Give(ticket) => Some(Errand::Give(server, ticket)),
            Checkin::Check => Some(Errand::Check(server, worker)),
            Checkin::Close(reason) => Some(Errand::Close(server, reason)),
        }
    }

    /// Something happened on an idle server: its home worker takes it out, if it is there.
    pub fn claim(&mut self, pool: &mut Pool, id: ServerId) -> Option<S> {
        if pool.claim(id) { self.take(id) } else { None }
    }

    /// A parked connection.
    pub fn server(&self, id: ServerId) -> Option<&S> {
        self.parked.get(&id)
    }

    /// All parked connections.
    pub fn servers(&self) -> impl Iterator<Item = &S> {
        self.parked.values()
    }

    /// The next errand that the pool's decisions have brought about, oldest first.
    pub fn poll_errand(&mut self, pool: &mut Pool) -> Option<Errand<S>> {
        loop {
            let errand = match pool.poll_effect()? {
                Effect::Open(id, lane, worker) => Some(Errand::Open(id, lane, worker)),
                Effect::Fail(ticket, failure) => Some(Errand::Fail(ticket, failure)),
                Effect::Welcome(ticket) => Some(Errand::Welcome(ticket)),
                Effect::Abort(id, worker, reason) => Some(Errand::Abort(id, worker, reason)),
                Effect::Reserve(ticket) => Some(Errand::Reserve(ticket)),
                Effect::Evict => Some(Errand::Evict),
                Effect::Give(id, ticket) => self.take(id).map(|s| Errand::Give(s, ticket)),
                Effect::Check(id, worker) => self.take(id).map(|s| Errand::Check(s, worker)),
                Effect::Close(id, reason) => self.take(id).map(|s| Errand::Close(s, reason)),
            };
            if errand.is_some() {
                return errand;
            }
        }
    }

    /// Panics if an invariant is broken. All errands must have been polled.
    pub fn check(&self, pool: &Pool) {
        pool.check();
        let mut parked: Vec<ServerId> = self.parked.keys().copied().collect();
        let mut idle = pool.idle_ids();
        parked.sort_unstable();
        idle.sort_unstable();
        assert_eq!(parked, idle, "the idle slots are the parked connections");
    }

    fn take(&mut self, id: ServerId) -> Option<S> {
        let server = self.parked.remove(&id);
        debug_assert!(server.is_some(), "who has an idle slot is parked");
        server
    }
}
