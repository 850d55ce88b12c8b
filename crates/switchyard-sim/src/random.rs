//! Randomness from a seed: the same seed gives the same world on every machine.

use std::time::Duration;

/// A splitmix64 generator, behind bytes that somebody has made up.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
    given: std::collections::VecDeque<u8>,
}

/// Where a world comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed<'a> {
    /// A number.
    Number(u64),
    /// The first choices, as a fuzzer makes them up.
    Choices(&'a [u8]),
}

impl Random {
    /// The generator of a seed.
    pub fn new(seed: Seed<'_>) -> Self {
        let (state, given) = match seed {
            Seed::Number(state) => (state, &[][..]),
            Seed::Choices(given) => (0, given),
        };
        Random { state, given: given.iter().copied().collect() }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        if let Some(low) = self.given.pop_front() {
            let high = self.given.pop_front().unwrap_or_default();
            return u64::from(u16::from_be_bytes([high, low]));
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end.max(1) as u64) as usize
    }

    /// A number from `first` to `last`.
    pub fn between(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// True once in so many times.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A time from `first` to `last` microseconds, short ones more often.
    pub fn micros(&mut self, first: u64, last: u64) -> Duration {
        let (a, b) = (self.bits() % 1000, self.bits() % 1000);
        Duration::from_micros(first + (last - first) * (a * b) / 1_000_000)
    }

    /// A time from `first` to `last` milliseconds.
    pub fn millis(&mut self, first: u64, last: u64) -> Duration {
        Duration::from_micros(1000 * first + self.bits() % (1000 * (last - first) + 1))
    }
}
