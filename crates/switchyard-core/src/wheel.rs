//! When to look at whom: a wheel of rough times, which costs nothing for those who are not in it.
//!
//! It answers keys at the times at which they were put in, at most a turn ahead; whoever is due
//! later is looked at once a turn and put in again. Keys that were put in twice come out twice:
//! the caller remembers which time counts.

use std::time::{Duration, Instant};

/// A time on a wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(u32);

/// Times of one turn; a power of two.
const SLOTS: u32 = 1024;

/// The wheel.
#[derive(Debug)]
pub struct Wheel<K> {
    start: Instant,
    grain: Duration,
    slots: Vec<Vec<K>>,
    /// The first time that has not come.
    next: u32,
}

impl<K> Wheel<K> {
    /// A wheel that begins now; times are told apart by a grain.
    pub fn new(now: Instant, grain: Duration) -> Self {
        assert!(!grain.is_zero(), "times have to differ");
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        Wheel { start: now, grain, slots, next: 0 }
    }

    /// The last time that has passed when it is `now`.
    fn passed(&self, now: Instant) -> u32 {
        let grains =
            now.saturating_duration_since(self.start).as_nanos() / self.grain.as_nanos().max(1);
        u32::try_from(grains).unwrap_or(u32::MAX - SLOTS)
    }

    /// When a key that is due at this moment would be answered.
    pub fn tick(&self, at: Instant) -> Tick {
        let last = self.next.saturating_add(SLOTS - 1);
        Tick(self.passed(at).saturating_add(1).clamp(self.next, last))
    }

    /// Puts a key in; it is answered when the moment has passed, or once before that.
    pub fn put(&mut self, at: Instant, key: K) -> Tick {
        let tick = self.tick(at);
        self.slots[(tick.0 % SLOTS) as usize].push(key);
        tick
    }

    /// It is `now`: takes out those whose time has come, with that time.
    pub fn turn(&mut self, now: Instant) -> Vec<(Tick, K)> {
        let passed = self.passed(now);
        if passed < self.next {
            return Vec::new();
        }
        let last = passed.min(self.next.saturating_add(SLOTS - 1));
        let mut found = Vec::new();
        for tick in self.next..=last {
            let keys = std::mem::take(&mut self.slots[(tick % SLOTS) as usize]);
            found.extend(keys.into_iter().map(|key| (Tick(tick), key)));
        }
        self.next = passed.saturating_add(1);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nobody_is_early_or_more_than_a_grain_late() {
        let start = Instant::now();
        let grain = Duration::from_millis(50);
        let mut wheel = Wheel::new(start, grain);
        for millis in [0, 1, 49, 50, 51, 10_000, 51_000] {
            wheel.put(start + Duration::from_millis(millis), millis);
        }
        let mut seen = 0;
        for now in (0..52_000).step_by(10) {
            for (_, due) in wheel.turn(start + Duration::from_millis(now)) {
                assert!((due..=due + 60).contains(&now), "{due} at {now}");
                seen += 1;
            }
        }
        assert_eq!(seen, 7);
    }

    #[test]
    fn who_is_due_after_a_turn_is_seen_once_before() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start, Duration::from_secs(1));
        let due = start + Duration::from_secs(5000);
        let early = wheel.put(due, "late");
        assert!(early < Tick(SLOTS));
        assert_eq!(wheel.turn(start + Duration::from_secs(1022)), []);
        assert_eq!(wheel.turn(start + Duration::from_secs(1023)), [(early, "late")]);
        let again = wheel.put(due, "late");
        // A sleep of many turns loses nobody.
        assert_eq!(wheel.turn(start + Duration::from_secs(100_000)), [(again, "late")]);
    }

    proptest! {
        #[test]
        fn everybody_comes_out_at_the_time_that_was_told(
            steps in prop::collection::vec((0u64..3000, 0u64..2000), 1..200),
        ) {
            let start = Instant::now();
            let mut wheel = Wheel::new(start, Duration::from_millis(1));
            let (mut now, mut open) = (start, Vec::new());
            for (index, (ahead, step)) in steps.into_iter().enumerate() {
                let tick = wheel.put(now + Duration::from_millis(ahead), index);
                open.push((tick, index));
                now += Duration::from_millis(step);
                for found in wheel.turn(now) {
                    let at = open.iter().position(|one| *one == found);
                    prop_assert!(at.is_some(), "{found:?} was not put in");
                    open.swap_remove(at.unwrap_or_default());
                }
                let next = Tick(wheel.next);
                prop_assert!(open.iter().all(|(tick, _)| *tick >= next), "{open:?} {next:?}");
            }
            let end = now + Duration::from_secs(10);
            prop_assert_eq!(wheel.turn(end).len(), open.len());
        }
    }
}
