//! Totals of databases, and averages over the period since the last finished one began. What was
//! counted for a pool outlives it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use switchyard_core::ids::WorkerId;

use crate::entries::Entry;
use crate::log::Level;
use crate::pools::Stats;
use crate::shared::Shared;
use crate::worker::console::CONSOLE;

/// Counters in SHOW STATS' order.
pub type Values = [u64; 12];

/// Adds counters to others.
pub fn add(sum: &mut Values, values: &Values) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
}

/// Counters at a moment.
#[derive(Clone, Debug)]
struct Mark {
    at: Instant,
    databases: BTreeMap<String, Values>,
    all: Values,
}

/// The last two marks.
#[derive(Debug, Default)]
struct Marks {
    previous: Option<Mark>,
    latest: Option<Mark>,
}

impl Marks {
    /// The base of averages.
    fn base(&self) -> Option<&Mark> {
        self.previous.as_ref().or(self.latest.as_ref())
    }
}

/// What is counted beside the pools of entries.
#[derive(Debug)]
pub struct Ledger {
    console: Box<[Stats]>,
    /// Of entries that are gone.
    retired: Mutex<Values>,
    marks: Mutex<Marks>,
}

/// Positions of times among the counters.
const XACTS: usize = 1;
const QUERIES: usize = 2;

impl Ledger {
    /// Nothing counted yet.
    pub fn new(workers: usize) -> Self {
        Ledger {
            console: (0..workers).map(|_| Stats::default()).collect(),
            retired: Mutex::default(),
            marks: Mutex::default(),
        }
    }

    /// A worker's counters of the console; only that worker adds to them.
    pub fn console(&self, worker: WorkerId) -> &Stats {
        &self.console[usize::from(worker.0)]
    }

    /// An entry is gone: what it counted stays in the sum of all.
    pub fn retire(&self, entry: &Entry) {
        add(&mut self.retired.lock().unwrap_or_else(PoisonError::into_inner), &entry.totals());
    }
}

impl Shared {
    /// Totals of each database that has pools, by name. The console has one.
    pub fn totals(&self) -> BTreeMap<String, Values> {
        let entries = self.entries().into_iter().filter(|entry| !entry.pools().is_empty());
        let mut totals: BTreeMap<String, Values> =
            entries.map(|entry| (entry.name.clone(), entry.totals())).collect();
        totals.insert(CONSOLE.into(), Stats::sum(&self.ledger.console));
        totals
    }

    /// Totals of everything there ever was.
    pub fn all_totals(&self) -> Values {
        let mut all = *self.ledger.retired.lock().unwrap_or_else(PoisonError::into_inner);
        self.entries().iter().for_each(|entry| add(&mut all, &entry.totals()));
        add(&mut all, &Stats::sum(&self.ledger.console));
        all
    }

    /// Averages of a database, or of everything, with these totals.
    pub fn averages(&self, name: Option<&str>, totals: &Values) -> Values {
        let marks = self.ledger.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let zero = Values::default();
        let Some(mark) = marks.base() else { return zero };
        let before = match name {
            Some(name) => mark.databases.get(name).unwrap_or(&zero),
            None => &mark.all,
        };
        average(before, totals, mark.at.elapsed().as_secs_f64())
    }

    /// A period may be over: the averages' base moves on and the stats line is written.
    pub fn tick(&self, now: Instant) {
        let snapshot = self.snapshot();
        let period = u64::try_from(snapshot.config.settings.stats_period).unwrap_or(60).max(1);
        let mut marks = self.ledger.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = marks.latest.as_ref().map(|latest| now.saturating_duration_since(latest.at));
        if passed.is_some_and(|passed| passed < Duration::from_secs(period)) {
            return;
        }
        let entries = self.entries();
        let counted = entries.iter().map(|entry| (entry.name.clone(), entry.totals()));
        let mut databases: BTreeMap<String, Values> = counted.collect();
        databases.insert(CONSOLE.into(), Stats::sum(&self.ledger.console));
        let mark = Mark { at: now, databases, all: self.all_totals() };
        let all = mark.all;
        let Some(old) = marks.latest.replace(mark) else { return };
        let rates = average(&old.all, &all, passed.unwrap_or_default().as_secs_f64());
        marks.previous = Some(old);
        drop(marks);
        if snapshot.config.settings.log_stats {
            self.log.write(Level::Log, &stats_line(&rates));
        }
    }
}

fn average(before: &Values, after: &Values, seconds: f64) -> Values {
    let mut change = Values::default();
    for (index, slot) in change.iter_mut().enumerate() {
        *slot = after[index].saturating_sub(before[index]);
    }
    let [assignments, xacts, queries, _, _, xact_time, query_time, wait_time, ..] = change;
    let per = |amount: u64, count: u64| amount.checked_div(count).unwrap_or(0);
    let rate = |amount: u64| if seconds > 0.0 { (amount as f64 / seconds) as u64 } else { 0 };
    let mut rates = change.map(rate);
    rates[XACTS] = rate(xacts);
    rates[QUERIES] = rate(queries);
    rates[5] = per(xact_time, xacts);
    rates[6] = per(query_time, queries);
    rates[7] = per(wait_time, assignments);
    rates
}

fn stats_line(rates: &Values) -> String {
    let [_, xacts, queries, received, sent, xact, query, wait, parses, served, binds, logins] =
        rates;
    format!(
        "stats: {xacts} xacts/s, {queries} queries/s, {parses} client parses/s, \
         {served} server parses/s, {binds} binds/s, {logins} client logins/s, \
         in {received} B/s, out {sent} B/s, xact {xact} us, query {query} us, wait {wait} us"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_times_per_event() {
        let before = [1; 12];
        let after = [11, 21, 41, 101, 201, 2001, 4001, 1001, 1, 1, 1, 3];
        let rates = average(&before, &after, 2.0);
        assert_eq!(rates, [5, 10, 20, 50, 100, 100, 100, 100, 0, 0, 0, 1]);
        assert_eq!(average(&before, &after, 0.0)[0], 0);
    }
}
