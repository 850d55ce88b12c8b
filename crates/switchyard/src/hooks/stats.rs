//! Counters of the hooks, one block a loop; only that loop adds to them. They outlive the modules.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::pools::Stats;

/// Names of the modules' own counters that are kept.
const COUNTERS_MAX: usize = 1000;

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// rewrite_query.
    Rewrite,
    /// routing_rules.
    Route,
}

/// Counters of one function in one loop.
#[derive(Debug, Default)]
pub struct HookStats {
    /// Messages judged.
    pub calls: AtomicU64,
    /// Texts changed, or moves to another key.
    pub changed: AtomicU64,
    /// The same text or key returned.
    pub identical: AtomicU64,
    /// None returned.
    pub none: AtomicU64,
    /// Keys that are no entry.
    pub unknown: AtomicU64,
    /// Failures.
    pub errors: AtomicU64,
    /// Failures because of `hook_timeout`.
    pub timeouts: AtomicU64,
    /// Keys ignored inside a transaction or group.
    pub ignored: AtomicU64,
    /// Microseconds in the functions.
    pub micros: AtomicU64,
    /// Longest of them.
    pub longest: AtomicU64,
    /// Differences of the shadow function.
    pub shadow: AtomicU64,
}

impl HookStats {
    /// Counts a call that took so long.
    pub fn took(&self, micros: u64) {
        Stats::add(&self.calls, 1);
        Stats::add(&self.micros, micros);
        if micros > self.longest.load(Ordering::Relaxed) {
            self.longest.store(micros, Ordering::Relaxed);
        }
    }

    fn counters(&self) -> [&AtomicU64; 11] {
        [
            &self.calls,
            &self.changed,
            &self.identical,
            &self.none,
            &self.unknown,
            &self.errors,
            &self.timeouts,
            &self.ignored,
            &self.micros,
            &self.longest,
            &self.shadow,
        ]
    }
}

/// Sums over all loops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookTotals {
    /// Messages judged.
    pub calls: u64,
    /// Texts changed, or moves to another key.
    pub changed: u64,
    /// The same text or key returned.
    pub identical: u64,
    /// None returned.
    pub none: u64,
    /// Keys that are no entry.
    pub unknown: u64,
    /// Failures.
    pub errors: u64,
    /// Failures because of `hook_timeout`.
    pub timeouts: u64,
    /// Keys ignored inside a transaction or group.
    pub ignored: u64,
    /// Microseconds in the functions.
    pub micros: u64,
    /// Longest of them.
    pub longest: u64,
    /// Differences of the shadow function.
    pub shadow: u64,
}

/// Counters of both functions.
#[derive(Debug)]
pub struct AllStats {
    loops: Box<[[HookStats; 2]]>,
    last_errors: [Mutex<String>; 2],
    workers: AtomicU64,
    counters: Mutex<BTreeMap<String, u64>>,
}

impl AllStats {
    /// For so many loops.
    pub fn new(loops: usize) -> Self {
        AllStats {
            loops: (0..loops).map(|_| Default::default()).collect(),
            last_errors: Default::default(),
            workers: AtomicU64::new(0),
            counters: Mutex::default(),
        }
    }

    /// The counters of a loop.
    pub fn of(&self, home: usize, hook: Hook) -> &HookStats {
        &self.loops[home][hook as usize]
    }

    /// Sums of a function.
    pub fn totals(&self, hook: Hook) -> HookTotals {
        let mut sums = [0u64; 11];
        for block in &self.loops {
            let counters = block[hook as usize].counters();
            for (index, (sum, counter)) in sums.iter_mut().zip(counters).enumerate() {
                let value = counter.load(Ordering::Relaxed);
                *sum = if index == 9 { value.max(*sum) } else { sum.wrapping_add(value) };
            }
        }
        let [
            calls,
            changed,
            identical,
            none,
            unknown,
            errors,
            timeouts,
            ignored,
            micros,
            longest,
            shadow,
        ] = sums;
        HookTotals {
            calls,
            changed,
            identical,
            none,
            unknown,
            errors,
            timeouts,
            ignored,
            micros,
            longest,
            shadow,
        }
    }

    /// The last failure of a function.
    pub fn last_error(&self, hook: Hook) -> String {
        let text = self.last_errors[hook as usize].lock();
        text.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a failure.
    pub fn note_error(&self, hook: Hook, text: &str) {
        let mut last =
            self.last_errors[hook as usize].lock().unwrap_or_else(PoisonError::into_inner);
        text.clone_into(&mut last);
    }

    /// A counter of the modules' own grows. Beyond the number that is kept, new ones are not.
    pub fn grow(&self, name: &str, amount: u64) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counters.get_mut(name) {
            *count = count.saturating_add(amount);
        } else if counters.len() < COUNTERS_MAX {
            counters.insert(name.to_owned(), amount);
        }
    }

    /// The modules' own counters.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.iter().map(|(name, count)| (name.clone(), *count)).collect()
    }

    /// Number of processes, as the first loop sees them.
    pub fn workers(&self) -> u64 {
        self.workers.load(Ordering::Relaxed)
    }

    /// Notes the number of processes.
    pub fn set_workers(&self, count: usize) {
        self.workers.store(count as u64, Ordering::Relaxed);
    }
}
