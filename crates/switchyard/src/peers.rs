//! Other poolers that cancel requests are passed on to, and how many are under way to each.
//!
//! Several processes behind one address do not know each other's clients. A key tells which of them
//! has made it (`worker/cancel_key`), and that one is asked on a connection of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Cancel requests under way to one peer.
#[derive(Debug)]
pub struct PeerPool {
    /// Its id.
    pub id: u32,
    under_way: AtomicUsize,
}

/// The right to one connection to a peer.
#[derive(Debug)]
pub struct PeerPermit(Arc<PeerPool>);

impl PeerPermit {
    /// Whose it is.
    pub fn pool(&self) -> &Arc<PeerPool> {
        &self.0
    }
}

impl Drop for PeerPermit {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

impl PeerPool {
    /// A permit, unless as many as `size` are in use; 0 is no limit.
    pub fn permit(self: &Arc<Self>, size: usize) -> Option<PeerPermit> {
        let more = |count: usize| (size == 0 || count < size).then_some(count + 1);
        let taken = self.under_way.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.is_ok().then(|| PeerPermit(Arc::clone(self)))
    }
}

/// Those peers that anything was passed on to.
#[derive(Debug, Default)]
pub struct Peers(Mutex<BTreeMap<u32, Arc<PeerPool>>>);

impl Peers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<PeerPool>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool of a peer, made when it is first used.
    pub fn pool(&self, id: u32) -> Arc<PeerPool> {
        let made = || Arc::new(PeerPool { id, under_way: AtomicUsize::new(0) });
        Arc::clone(self.lock().entry(id).or_insert_with(made))
    }

    /// Ids of all of them, in order.
    pub fn ids(&self) -> Vec<u32> {
        self.lock().keys().copied().collect()
    }

    /// Forgets those that are no peers any more, and answers them.
    pub fn forget(&self, is_peer: impl Fn(u32) -> bool) -> Vec<Arc<PeerPool>> {
        let mut pools = self.lock();
        let gone: Vec<u32> = pools.keys().copied().filter(|id| !is_peer(*id)).collect();
        gone.iter().filter_map(|id| pools.remove(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_come_back_and_pools_go_with_their_peer() {
        let peers = Peers::default();
        let pool = peers.pool(7);
        let first = pool.permit(1).expect("room for one");
        assert!(pool.permit(1).is_none());
        assert!(pool.permit(0).is_some(), "0 is no limit");
        drop(first);
        assert!(peers.pool(7).permit(1).is_some());
        assert_eq!(peers.ids(), [7]);
        assert!(peers.forget(|id| id == 7).is_empty());
        assert_eq!(peers.forget(|id| id == 8).iter().map(|pool| pool.id).collect::<Vec<_>>(), [7]);
        assert!(peers.ids().is_empty());
    }
}
