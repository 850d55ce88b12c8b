//! PAUSE of a pool: whether servers are given out, and for how long they were not.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Pauses that are remembered; more than these within one wait are not believed.
const REMEMBERED: usize = 16;

/// The gate.
#[derive(Debug, Default)]
pub(super) struct Gate {
    paused: Option<Instant>,
    pauses: VecDeque<(Instant, Instant)>,
}

impl Gate {
    pub(super) fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    pub(super) fn pause(&mut self, now: Instant) {
        self.paused.get_or_insert(now);
    }

    pub(super) fn open(&mut self, now: Instant) {
        if let Some(since) = self.paused.take() {
            self.pauses.push_back((since, now));
            if self.pauses.len() > REMEMBERED {
                self.pauses.pop_front();
            }
        }
    }

    /// How much of the time since then it was closed.
    pub(super) fn closed_since(&self, since: Instant, now: Instant) -> Duration {
        let open = self.paused.map(|at| (at, now));
        let pauses = self.pauses.iter().copied().chain(open);
        pauses.map(|(from, to)| to.saturating_duration_since(from.max(since))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_of_a_pause_that_lies_in_the_wait_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut gate = Gate::default();
        gate.pause(at(10));
        gate.pause(at(12));
        assert_eq!(gate.closed_since(at(11), at(15)), Duration::from_secs(4));
        gate.open(at(20));
        gate.open(at(21));
        gate.pause(at(30));
        assert_eq!(gate.closed_since(at(0), at(35)), Duration::from_secs(15));
        assert_eq!(gate.closed_since(at(18), at(35)), Duration::from_secs(7));
        assert_eq!(gate.closed_since(at(25), at(35)), Duration::from_secs(5));
    }
}
