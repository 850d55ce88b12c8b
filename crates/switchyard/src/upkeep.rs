//! What happens to pools by themselves: their own maintenance, the end of those that nobody uses,
//! and those that have to be there before a client comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::entries::Entry;
use crate::log::Level;
use crate::pools::Orders;
use crate::shared::Shared;

impl Shared {
    /// One maintenance pass over all pools.
    pub fn keep_pools(&self, now: Instant, orders: &mut Orders) {
        let snapshot = self.snapshot();
        let settings = &snapshot.config.settings;
        for entry in self.entries() {
            for pool in entry.pools() {
                let clients = pool.clients.load(Ordering::Relaxed);
                pool.decide(orders, |inner| inner.machine.tick(now, clients));
            }
            if !settings.pool_idle_timeout.is_zero() {
                self.free_idle(&entry, now, settings.pool_idle_timeout);
            }
        }
        self.sharing.settle(now, orders);
    }

    fn free_idle(&self, entry: &Arc<Entry>, now: Instant, limit: Duration) {
        let snapshot = self.snapshot();
        let definition = entry.definition();
        if definition.user.as_deref().is_some_and(|user| {
            entry.is_cluster() || snapshot.overrides(&definition, user).min_pool_size() > 0
        }) {
            return;
        }
        entry.free_idle_pools(now, limit, |user, age| {
            let line = format!(
                "cleaning up idle pool for user {user} on db {} because: pool idle timeout \
                 (age= {}s)",
                entry.name,
                age.as_secs()
            );
            self.log.write(Level::Log, &line);
        });
    }

    /// Makes the pools that exist without a client: those to clusters, and those of forced users
    /// that keep servers ready.
    pub fn make_standing_pools(&self) {
        let snapshot = self.snapshot();
        for entry in self.entries() {
            let definition = entry.definition();
            if let Some(user) = &definition.user
                && (entry.is_cluster() || snapshot.overrides(&definition, user).min_pool_size() > 0)
            {
                self.pool(&entry, user);
            }
        }
    }
}
