//! What clients of a cluster experience in a hold: how many wait, how long each was stalled, and
//! what those were told whose server was lost. Counted under the identity of the hold's record.
//!
//! Nothing is counted, and no lock taken, outside a hold and the moment after it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use switchyard_core::switchover::view::View;

/// The counts of one hold.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    began: Option<Instant>,
    released: Option<Instant>,
    /// Clients that waited when it ended.
    pub held: usize,
    /// Clients that stayed and were told one error.
    pub errors: usize,
    /// Clients that were closed.
    pub disconnected: usize,
    /// Clients whose wait was too long.
    pub timeouts: usize,
    /// Milliseconds that clients waited.
    stalls: Vec<u32>,
}

/// What befell a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// It was told and stays.
    Error,
    /// It was closed.
    Disconnect,
    /// It waited for too long.
    Timeout,
}

/// The meters of one entry.
#[derive(Debug, Default)]
pub struct Meters {
    /// The hold that is counted; 0 is none.
    current: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    tallies: BTreeMap<u64, Tally>,
    /// Blows before anybody knew that the writer is lost.
    early: Option<(Instant, Tally)>,
}

/// Holds that are remembered.
const TALLIES_MAX: usize = 101;
/// Stalls that are remembered of one hold.
const STALLS_MAX: usize = 100_000;
/// Longest time between the loss of a server and the loss of the writer for one to count for the
/// other.
const EARLY: Duration = Duration::from_secs(2);
/// Longest time after a release in which a client that waited may still get a server.
const LATE: Duration = Duration::from_secs(60);

impl Meters {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A view was published while so many clients waited.
    pub fn publish(&self, now: Instant, view: &View, waiting: usize) {
        let current = self.current.load(Ordering::Relaxed);
        if !view.is_holding() {
            if let Some(tally) = self.lock().tallies.get_mut(&current)
                && tally.released.is_none()
            {
                tally.released = Some(now);
                tally.held = waiting;
            }
            return;
        }
        if view.event == 0 || view.event == current {
            return;
        }
        let mut inner = self.lock();
        let early = inner.early.take().filter(|(at, _)| now.duration_since(*at) < EARLY);
        let tally = early.map(|(_, tally)| tally).unwrap_or_default();
        inner.tallies.insert(view.event, Tally { began: Some(now), ..tally });
        while inner.tallies.len() > TALLIES_MAX {
            inner.tallies.pop_first();
        }
        self.current.store(view.event, Ordering::Relaxed);
    }

    /// A client that waited since then got a server.
    #[inline]
    pub fn served(&self, now: Instant, since: Instant) {
        if self.current.load(Ordering::Relaxed) != 0 {
            self.stalled(now, since);
        }
    }

    fn stalled(&self, now: Instant, since: Instant) {
        let current = self.current.load(Ordering::Relaxed);
        let mut inner = self.lock();
        let Some(tally) = inner.tallies.get_mut(&current) else { return };
        let Some(began) = tally.began else { return };
        let Some(released) = tally.released else { return };
        if now.saturating_duration_since(released) > LATE {
            self.current.store(0, Ordering::Relaxed);
        } else if since < released && tally.stalls.len() < STALLS_MAX {
            let stall = now.saturating_duration_since(since.max(began)).as_millis();
            tally.stalls.push(u32::try_from(stall).unwrap_or(u32::MAX));
        }
    }

    /// Something befell a client because of its server or of the hold.
    pub fn befell(&self, now: Instant, blow: Blow) {
        let current = self.current.load(Ordering::Relaxed);
        let mut inner = self.lock();
        let Inner { tallies, early } = &mut *inner;
        let open = tallies.get_mut(&current).filter(|tally| {
            tally.released.is_none_or(|at| now.saturating_duration_since(at) < EARLY)
        });
        let tally = match open {
            Some(tally) => tally,
            None => {
                if early.as_ref().is_none_or(|(at, _)| now.duration_since(*at) > EARLY) {
                    *early = Some((now, Tally::default()));
                }
                let Some((_, tally)) = early else { return };
                tally
            }
        };
        match blow {
            Blow::Error => tally.errors += 1,
            Blow::Disconnect => tally.disconnected += 1,
            Blow::Timeout => tally.timeouts += 1,
        }
    }

    /// The counts of a hold.
    pub fn tally(&self, event: u64) -> Option<Tally> {
        self.lock().tallies.get(&event).cloned()
    }
}

impl Tally {
    /// Stalls in milliseconds: the median, the 99th percentile and the longest.
    pub fn stalls(&self) -> Option<[u32; 3]> {
        let mut stalls = self.stalls.clone();
        stalls.sort_unstable();
        let last = stalls.len().checked_sub(1)?;
        let at = |percent: usize| stalls.get((last * percent).div_ceil(100)).copied();
        Some([at(50)?, at(99)?, *stalls.last()?])
    }
}

#[cfg(test)]
mod tests {
    use switchyard_core::switchover::view::NodeId;

    use super::*;

    #[test]
    fn a_hold_counts_who_waited_through_its_end() {
        let (meters, start) = (Meters::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        meters.befell(at(0), Blow::Error);
        let lost = View { event: 3, ..View::default() };
        let found = View { event: 3, writer: Some(NodeId(1)), ..View::default() };
        meters.publish(at(10), &lost, 0);
        meters.befell(at(20), Blow::Timeout);
        meters.publish(at(110), &found, 2);
        meters.served(at(111), at(50));
        meters.served(at(113), at(5));
        meters.served(at(114), at(112));
        let tally = meters.tally(3).unwrap_or_default();
        assert_eq!((tally.held, tally.errors, tally.timeouts), (2, 1, 1));
        assert_eq!(tally.stalls(), Some([103, 103, 103]));
    }
}
