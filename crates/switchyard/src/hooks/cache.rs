//! Results of pure functions, by the exact question.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use switchyard_core::hook::frame::Verdict;

/// Longest text that is remembered, in bytes.
pub const TEXT_MAX: usize = 4096;

/// Results of pure functions. Two halves: when the newer one is full it becomes the older.
#[derive(Debug, Default)]
pub struct Cache {
    half: usize,
    newer: HashMap<Box<[u8]>, Verdict, RandomState>,
    older: HashMap<Box<[u8]>, Verdict, RandomState>,
}

impl Cache {
    /// For so many questions.
    pub fn new(size: usize) -> Self {
        Cache { half: size.div_ceil(2), ..Cache::default() }
    }

    /// Whether it remembers anything at all.
    pub fn is_on(&self) -> bool {
        self.half > 0
    }

    /// What was said about a question.
    pub fn find(&mut self, key: &[u8]) -> Option<Verdict> {
        if let Some(verdict) = self.newer.get(key) {
            return Some(verdict.clone());
        }
        let (key, verdict) = self.older.remove_entry(key)?;
        self.keep(key, verdict.clone());
        Some(verdict)
    }

    /// Remembers a verdict.
    pub fn keep(&mut self, key: Box<[u8]>, verdict: Verdict) {
        if self.half == 0 {
            return;
        }
        if self.newer.len() >= self.half {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(key, verdict);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.newer.clear();
        self.older.clear();
    }
}

#[cfg(test)]
mod tests {
    use switchyard_core::hook::frame::Outcome;

    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let mut cache = Cache::new(4);
        let verdict = Verdict { rewrite: Outcome::Off, route: Outcome::Same };
        for number in 0..100u8 {
            cache.keep(Box::new([number]), verdict.clone());
            if number > 0 {
                assert!(cache.find(&[1]).is_some(), "{number}");
            }
        }
        assert!(cache.find(&[50]).is_none());
        assert!(cache.newer.len() + cache.older.len() <= 4);
        cache.clear();
        assert!(cache.find(&[1]).is_none());
    }
}
