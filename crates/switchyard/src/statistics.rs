//! Totals of databases, and averages over the period since the last finished one began.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::log::Level;
use crate::shared::Shared;

/// Counters in SHOW STATS' order.
pub type Values = [u64; 12];

/// Counters at a moment.
#[derive(Clone, Debug)]
struct Mark {
    at: Instant,
    databases: BTreeMap<String, Values>,
}

/// The last two marks.
#[derive(Debug, Default)]
pub struct Statistics {
    previous: Option<Mark>,
    latest: Option<Mark>,
}

/// Positions of times among the counters.
const XACTS: usize = 1;
const QUERIES: usize = 2;

impl Shared {
    /// Totals of each database that has pools.
    pub fn totals(&self) -> BTreeMap<String, Values> {
        let mut totals: BTreeMap<String, Values> = BTreeMap::new();
        for pool in self.pools() {
            let sum = totals.entry(pool.entry.name.clone()).or_default();
            sum.iter_mut().zip(pool.totals()).for_each(|(sum, value)| *sum += value);
        }
        totals
    }

    /// Averages of a database with these totals.
    pub fn averages(&self, name: &str, totals: &Values) -> Values {
        let statistics = self.statistics.lock();
        let statistics = statistics.unwrap_or_else(std::sync::PoisonError::into_inner);
        let mark = statistics.previous.as_ref().or(statistics.latest.as_ref());
        let zero = Values::default();
        let before = mark.and_then(|mark| mark.databases.get(name)).unwrap_or(&zero);
        let seconds = mark.map_or(Duration::ZERO, |mark| mark.at.elapsed()).as_secs_f64();
        average(before, totals, seconds)
    }

    /// A period may be over: the averages' base moves on and the stats line is written.
    pub fn tick(&self, now: Instant) {
        let snapshot = self.snapshot();
        let period = u64::try_from(snapshot.config.settings.stats_period).unwrap_or(60).max(1);
        let totals = self.totals();
        let mut statistics =
            self.statistics.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(latest) = &statistics.latest else {
            statistics.latest = Some(Mark { at: now, databases: totals });
            return;
        };
        let passed = now.saturating_duration_since(latest.at);
        if passed < Duration::from_secs(period) {
            return;
        }
        let sum = |databases: &BTreeMap<String, Values>| {
            databases.values().fold(Values::default(), |mut sum, values| {
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                sum
            })
        };
        let rates = average(&sum(&latest.databases), &sum(&totals), passed.as_secs_f64());
        statistics.previous = statistics.latest.replace(Mark { at: now, databases: totals });
        drop(statistics);
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
