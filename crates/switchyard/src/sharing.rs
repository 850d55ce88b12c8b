//! Limits that pools share (max_db_connections, max_user_connections): who belongs to them, and
//! how a pool that is denied a server gets one that another pool does not need.
//!
//! The decisions are `switchyard_core::pool::shares`'. No pool's lock is held while another's is
//! taken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use foldhash::fast::RandomState;
use switchyard_core::pool::shares::{Group, Member, Share, SharedLimits};

use crate::pools::{Orders, SharedPool};

/// All pools that share limits.
#[derive(Debug, Default)]
pub struct Sharing {
    limits: SharedLimits,
    pools: Mutex<HashMap<Member, Weak<SharedPool>, RandomState>>,
}

impl Sharing {
    /// A place for a pool that is being made.
    pub fn join(&self, database: &str, user: &str) -> Share {
        self.limits.join(database, user)
    }

    /// Sets the limits that a pool of this database and user is under; 0 means none.
    pub fn set_limits(
        &self,
        (database, of_database): (&str, usize),
        (user, of_user): (&str, usize),
    ) {
        let mut limits = self.limits.lock();
        limits.set_limit(Group::Database(database.into()), of_database);
        limits.set_limit(Group::User(user.into()), of_user);
    }

    /// A pool was made.
    pub fn add(&self, pool: &Arc<SharedPool>) {
        let member = pool.lock().machine.share().map(Share::member);
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, known| known.strong_count() > 0);
        pools.extend(member.map(|member| (member, Arc::downgrade(pool))));
    }

    fn pool(&self, member: Member) -> Option<Arc<SharedPool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).get(&member)?.upgrade()
    }

    /// A pool was denied a server: for each limit that is reached, the server of another pool that
    /// has been idle for longest is closed.
    pub fn make_room(&self, pool: &SharedPool, orders: &mut Orders) {
        let Some(member) = pool.lock().machine.share().map(Share::member) else { return };
        let victims = self.limits.lock().victims(member);
        for group in victims {
            let pools = group.into_iter().filter_map(|member| self.pool(member));
            let idle = pools.filter_map(|pool| {
                let since = pool.lock().machine.longest_idle()?;
                Some((since, pool))
            });
            if let Some((_, pool)) = idle.min_by_key(|(since, _)| *since) {
                pool.decide(orders, |inner| inner.machine.evict());
            }
        }
    }

    /// Tells pools that they may open servers now. Costs one load while nobody is denied any.
    pub fn settle(&self, now: Instant, orders: &mut Orders) {
        if !self.limits.is_contended() {
            return;
        }
        loop {
            // The guard must not live on while a pool is locked.
            let hint = self.limits.lock().poll_hint();
            let Some(member) = hint else { return };
            if let Some(pool) = self.pool(member) {
                pool.decide(orders, |inner| inner.machine.retry(now));
            }
        }
    }
}
