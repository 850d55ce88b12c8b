//! Pools shared by all workers: the machine, the parked connections, and the counters.
//!
//! One lock guards the machine and the connections it owns; it is held for a decision, never for
//! input or output. What has to be done afterwards comes back as orders.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use switchyard_auth::scram::Keys;
use switchyard_config::PoolMode;
use switchyard_core::client::replay::Keeping;
use switchyard_core::client::session::Loyalty;
use switchyard_core::ids::{ServerId, Ticket, WorkerId};
use switchyard_core::params::Params;
use switchyard_core::pool::parking::{Errand, Lent, Parking};
use switchyard_core::pool::{Pool, Want};
use switchyard_core::server::duty::Tenure;
use switchyard_core::switchover::view::Gate;

use crate::entries::Entry;
use crate::statistics::{self, Values};
use crate::worker::server::Server;

/// Parameters of the first server of a pool, for welcomes.
#[derive(Debug)]
pub struct Welcome {
    /// The first messages: AuthenticationOk, and the reported parameters that are not tracked, in
    /// the server's order.
    pub greeting: Vec<u8>,
    /// Tracked ones.
    pub params: Params,
}

/// A pool.
#[derive(Debug)]
pub struct SharedPool {
    /// The entry it belongs to.
    pub entry: Arc<Entry>,
    /// User at the server.
    pub user: String,
    /// Clients that logged in to it.
    pub clients: AtomicUsize,
    /// Counters, one block a worker.
    pub stats: Box<[Stats]>,
    mode: AtomicU8,
    prepared: AtomicUsize,
    loyalty: AtomicU8,
    reviewed: AtomicBool,
    held: AtomicBool,
    keeps: AtomicBool,
    inner: Mutex<Inner>,
}

/// What the lock guards.
#[derive(Debug)]
pub struct Inner {
    /// Who gets what.
    pub machine: Pool,
    /// Idle connections.
    pub parking: Parking<Box<Server>>,
    /// For logins.
    pub welcome: Option<Arc<Welcome>>,
    /// Keys of a client's SCRAM login, for logins to servers.
    pub keys: Option<Keys>,
    /// Since when it has neither clients nor servers.
    pub unused: Option<Instant>,
    /// Connections that carry cancel requests.
    cancels: usize,
}

/// The right to one connection that carries a cancel request.
#[derive(Debug)]
pub struct CancelPermit(Arc<SharedPool>);

impl CancelPermit {
    /// Whose it is.
    pub fn pool(&self) -> &Arc<SharedPool> {
        &self.0
    }
}

impl Drop for CancelPermit {
    fn drop(&mut self) {
        self.0.lock().cancels -= 1;
    }
}

/// Something that a worker has to do after a decision.
pub type Order = Errand<Box<Server>>;

/// Orders with the pools that gave them, oldest first.
pub type Orders = Vec<(Arc<SharedPool>, Order)>;

/// Counters of one worker for one pool; only that worker adds to them.
#[derive(Debug, Default)]
pub struct Stats {
    /// Servers linked to clients.
    pub assignments: AtomicU64,
    /// Transactions begun.
    pub xacts: AtomicU64,
    /// Queries begun.
    pub queries: AtomicU64,
    /// Bytes from clients.
    pub received: AtomicU64,
    /// Bytes to clients.
    pub sent: AtomicU64,
    /// Microseconds in transactions.
    pub xact_time: AtomicU64,
    /// Microseconds in queries.
    pub query_time: AtomicU64,
    /// Microseconds in queues.
    pub wait_time: AtomicU64,
    /// Named Parse messages of clients.
    pub client_parses: AtomicU64,
    /// Parse messages sent for them.
    pub server_parses: AtomicU64,
    /// Bind messages that name a tracked statement.
    pub binds: AtomicU64,
    /// Logins.
    pub logins: AtomicU64,
}

impl Stats {
    /// Adds to a counter that only the calling thread writes: no locked instruction is needed.
    #[inline]
    pub fn add(counter: &AtomicU64, amount: u64) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// The sum over all workers' blocks.
    pub fn sum(blocks: &[Stats]) -> Values {
        blocks.iter().map(Stats::values).fold(Values::default(), |mut sum, values| {
            statistics::add(&mut sum, &values);
            sum
        })
    }

    /// All counters, in SHOW STATS' order.
    pub fn values(&self) -> Values {
        [
            &self.assignments,
            &self.xacts,
            &self.queries,
            &self.received,
            &self.sent,
            &self.xact_time,
            &self.query_time,
            &self.wait_time,
            &self.client_parses,
            &self.server_parses,
            &self.binds,
            &self.logins,
        ]
        .map(|counter| counter.load(Ordering::Relaxed))
    }
}

impl SharedPool {
    /// A pool with this machine.
    pub fn new(entry: Arc<Entry>, user: String, machine: Pool, workers: usize) -> Self {
        let (welcome, keys, unused, cancels) = (None, None, None, 0);
        let parking = Parking::default();
        let inner = Inner { machine, parking, welcome, keys, unused, cancels };
        SharedPool {
            entry,
            user,
            clients: AtomicUsize::new(0),
            stats: (0..workers).map(|_| Stats::default()).collect(),
            mode: AtomicU8::new(0),
            prepared: AtomicUsize::new(0),
            loyalty: AtomicU8::new(0),
            reviewed: AtomicBool::new(false),
            held: AtomicBool::new(false),
            keeps: AtomicBool::new(false),
            inner: Mutex::new(inner),
        }
    }

    /// Sets what sessions look at in passing.
    pub fn set_rules(&self, mode: PoolMode, prepared: usize) {
        let code = match mode {
            PoolMode::Session => 0,
            PoolMode::Transaction => 1,
            PoolMode::Statement => 2,
        };
        self.mode.store(code, Ordering::Relaxed);
        self.prepared.store(prepared, Ordering::Relaxed);
    }

    /// The forced user of the entry has changed: clients of this pool may belong to another one.
    pub fn review(&self) {
        self.reviewed.store(true, Ordering::Relaxed);
    }

    /// Whether clients may belong to another pool.
    #[inline]
    pub fn is_reviewed(&self) -> bool {
        self.reviewed.load(Ordering::Relaxed)
    }

    /// Sets what becomes of a client whose server is lost.
    pub fn set_loyalty(&self, loyalty: Loyalty) {
        let code = match loyalty {
            Loyalty::Leaves => 0,
            Loyalty::Stays => 1,
            Loyalty::Returns => 2,
        };
        self.loyalty.store(code, Ordering::Relaxed);
    }

    /// What becomes of a client whose server is lost in the middle of its work.
    #[inline]
    pub fn loyalty(&self) -> Loyalty {
        match self.loyalty.load(Ordering::Relaxed) {
            0 => Loyalty::Leaves,
            1 => Loyalty::Stays,
            _ => Loyalty::Returns,
        }
    }

    /// Sets whether first statements are kept for another server.
    pub fn set_keeping(&self, keeping: Keeping) {
        self.keeps.store(keeping == Keeping::On, Ordering::Relaxed);
    }

    /// Whether first statements are kept for another server.
    #[inline]
    pub fn keeping(&self) -> Keeping {
        if self.keeps.load(Ordering::Relaxed) { Keeping::On } else { Keeping::Off }
    }

    /// An operator holds clients, or does so no more.
    pub fn set_gate(&self, gate: Gate) {
        self.held.store(gate == Gate::Held, Ordering::Relaxed);
    }

    /// Whether an operator holds clients.
    #[inline]
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// When a server goes back.
    #[inline]
    pub fn mode(&self) -> PoolMode {
        match self.mode.load(Ordering::Relaxed) {
            0 => PoolMode::Session,
            1 => PoolMode::Transaction,
            _ => PoolMode::Statement,
        }
    }

    /// How long a client keeps its server.
    #[inline]
    pub fn tenure(&self) -> Tenure {
        match self.mode() {
            PoolMode::Session => Tenure::Session,
            PoolMode::Transaction => Tenure::Transaction,
            PoolMode::Statement => Tenure::Statement,
        }
    }

    /// Named statements kept per server; 0 means that names pass unchanged.
    #[inline]
    pub fn prepared_max(&self) -> usize {
        match self.mode() {
            PoolMode::Session => 0,
            PoolMode::Transaction | PoolMode::Statement => self.prepared.load(Ordering::Relaxed),
        }
    }

    /// The guarded part.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a decision and collects what has to be done about it.
    pub fn decide<R>(self: &Arc<Self>, orders: &mut Orders, f: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.lock();
        let result = f(&mut inner);
        inner.collect(self, orders);
        result
    }

    /// A permit for a connection that carries a cancel request, unless there are enough.
    pub fn cancel_permit(self: &Arc<Self>) -> Option<CancelPermit> {
        let mut inner = self.lock();
        if !inner.machine.has_room_for_cancel(inner.cancels) {
            return None;
        }
        inner.cancels += 1;
        Some(CancelPermit(Arc::clone(self)))
    }

    /// Numbers of one statistics counter set over all workers.
    pub fn totals(&self) -> Values {
        Stats::sum(&self.stats)
    }

    /// Since when the first waiter waits.
    pub fn oldest_wait(&self) -> Option<Instant> {
        self.lock().machine.oldest_wait()
    }
}

impl Inner {
    /// A client needs a server.
    pub fn checkout(&mut self, now: Instant, ticket: Ticket, want: Want) -> Lent<Box<Server>> {
        self.parking.checkout(&mut self.machine, now, ticket, want)
    }

    /// The same for a client that is logging in.
    pub fn checkout_for_login(&mut self, now: Instant, ticket: Ticket) -> Lent<Box<Server>> {
        self.parking.checkout_for_login(&mut self.machine, now, ticket, Want::Writer)
    }

    /// A server is free; answers what is to be done with it, unless it was parked.
    pub fn checkin(
        &mut self,
        now: Instant,
        place: (ServerId, WorkerId),
        server: Box<Server>,
    ) -> Option<Order> {
        self.parking.checkin(&mut self.machine, now, place, server)
    }

    /// Something happened on an idle server: takes it out, if it is there.
    pub fn claim(&mut self, id: ServerId) -> Option<Box<Server>> {
        self.parking.claim(&mut self.machine, id)
    }

    /// Collects what the machine's decisions have brought about.
    fn collect(&mut self, pool: &Arc<SharedPool>, orders: &mut Orders) {
        while let Some(order) = self.parking.poll_errand(&mut self.machine) {
            orders.push((Arc::clone(pool), order));
        }
    }
}
