//! Entries of `[databases]` as the workers share them: definition, state, counters, pools.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use switchyard_auth::secret::Secret;
use switchyard_config::Database;
use switchyard_core::switchover::view::View;

use crate::meters::Meters;
use crate::pools::SharedPool;
use crate::shared::Full;
use crate::statistics::{self, Values};

/// One entry. It outlives reloads of its definition.
#[derive(Debug)]
pub struct Entry {
    /// Name in the ini.
    pub name: String,
    /// Clients, from the moment their database is known.
    pub clients: AtomicUsize,
    /// What holds cost its clients.
    pub meters: Meters,
    definition: Mutex<Arc<Database>>,
    origin: AtomicU8,
    idle_since: Mutex<Option<Instant>>,
    state: AtomicU8,
    view: Mutex<Arc<View>>,
    found: Mutex<HashMap<String, Secret>>,
    pools: Mutex<Vec<Arc<SharedPool>>>,
    retired: Mutex<Values>,
}

/// Whether an entry takes new logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It does.
    Enabled,
    /// DISABLE.
    Disabled,
}

/// Where an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of its own.
    Declared,
    /// The `*` entry.
    Automatic,
}

impl Entry {
    /// A new entry.
    pub fn new(name: String, definition: Database, origin: Origin) -> Self {
        Entry {
            name,
            clients: AtomicUsize::new(0),
            meters: Meters::default(),
            definition: Mutex::new(Arc::new(definition)),
            origin: AtomicU8::new(u8::from(origin == Origin::Automatic)),
            idle_since: Mutex::default(),
            state: AtomicU8::new(0),
            view: Mutex::default(),
            found: Mutex::default(),
            pools: Mutex::new(Vec::new()),
            retired: Mutex::default(),
        }
    }

    /// The definition in force.
    pub fn definition(&self) -> Arc<Database> {
        Arc::clone(&self.definition.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A reload changed the definition.
    pub fn define(&self, definition: Database) {
        *self.definition.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(definition);
    }

    /// Where it comes from.
    pub fn origin(&self) -> Origin {
        match self.origin.load(Ordering::Relaxed) {
            0 => Origin::Declared,
            _ => Origin::Automatic,
        }
    }

    /// It has a line of its own from now on.
    pub fn declare(&self) {
        self.origin.store(0, Ordering::Relaxed);
    }

    /// Since when nobody uses it, after a look at it that found it used or not.
    pub fn idle_since(&self, now: Instant, used: bool) -> Option<Instant> {
        let mut since = self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = if used { None } else { Some(since.unwrap_or(now)) };
        *since
    }

    /// Counts a client, unless there are `limit` of them.
    pub fn came(&self, limit: Option<usize>) -> Result<(), Full> {
        let room = |count: usize| limit.is_none_or(|limit| count < limit).then_some(count + 1);
        let counted = self.clients.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        counted.map(drop).map_err(|_| Full)
    }

    /// Whether new logins are taken.
    pub fn admission(&self) -> Admission {
        match self.state.load(Ordering::Relaxed) {
            0 => Admission::Enabled,
            _ => Admission::Disabled,
        }
    }

    /// DISABLE and ENABLE.
    pub fn set_admission(&self, admission: Admission) {
        self.state.store(u8::from(admission == Admission::Disabled), Ordering::Relaxed);
    }

    /// Nodes of the cluster as last published; empty for plain entries.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The cluster was published anew.
    pub fn set_view(&self, view: View) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    /// Whether it leads to a cluster.
    pub fn is_cluster(&self) -> bool {
        self.definition().topology_query.is_some()
    }

    /// The secret of a user that auth_query has found for this entry.
    pub fn found(&self, user: &str) -> Option<Secret> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).get(user).cloned()
    }

    /// auth_query has found a user.
    pub fn find(&self, user: &str, secret: Secret) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(user.into(), secret);
    }

    /// Its pools.
    pub fn pools(&self) -> Vec<Arc<SharedPool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was counted for its pools, those that were freed included.
    pub fn totals(&self) -> Values {
        // The list stays locked, so that no pool is counted twice or not at all.
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut totals = *self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        pools.iter().for_each(|pool| statistics::add(&mut totals, &pool.totals()));
        totals
    }

    /// Frees the pools that nobody uses: nobody else knows them and they have no server.
    pub fn free_pools(&self) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| {
            // Whoever wants a pool gets it from this list, which is locked.
            let used = Arc::strong_count(pool) > 1 || !pool.lock().machine.is_empty();
            if !used {
                statistics::add(&mut retired, &pool.totals());
            }
            used
        });
    }

    /// Frees the pools that nobody has used for so long; `told` hears of each.
    pub fn free_idle_pools(
        &self,
        now: Instant,
        limit: Duration,
        mut told: impl FnMut(&str, Duration),
    ) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| {
            let mut inner = pool.lock();
            let used = Arc::strong_count(pool) > 1 || !inner.machine.is_empty();
            let since = if used { None } else { Some(inner.unused.unwrap_or(now)) };
            inner.unused = since;
            let idle = since.map(|since| now.saturating_duration_since(since));
            let Some(idle) = idle.filter(|idle| *idle >= limit) else { return true };
            drop(inner);
            statistics::add(&mut retired, &pool.totals());
            told(&pool.user, idle);
            false
        });
    }

    /// The pool of a user, made by `make` if there is none.
    pub fn pool(&self, user: &str, make: impl FnOnce() -> SharedPool) -> (Arc<SharedPool>, Made) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.iter().find(|pool| pool.user == user) {
            return (Arc::clone(pool), Made::Before);
        }
        let pool = Arc::new(make());
        pools.push(Arc::clone(&pool));
        (pool, Made::Now)
    }
}

/// Whether a pool existed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It was there.
    Before,
    /// It was made now.
    Now,
}
