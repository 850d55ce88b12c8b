//! Counters after traffic that is known.

use std::io;
use std::time::Instant;

use switchyard_testkit::raw::Message;
use switchyard_testkit::{Pooler, Raw, wait_until};

use super::{row, rows};

/// A client that counts what it sends and gets.
struct Counting {
    raw: Raw,
    sent: usize,
    got: usize,
}

impl Counting {
    fn new(port: u16) -> io::Result<Self> {
        let raw = Raw::connect(port, &[("user", "app"), ("database", "postgres")])?;
        Ok(Counting { raw, sent: 0, got: 0 })
    }

    /// Sends messages and reads this many ReadyForQuery.
    fn exchange(&mut self, messages: &[(char, &[u8])], ready: usize) -> io::Result<()> {
        for (tag, body) in messages {
            self.sent += body.len() + 5;
            self.raw.send(*tag, body)?;
        }
        for _ in 0..ready {
            let size = |(_, body): &Message| body.len() + 5;
            self.got += self.raw.answer()?.iter().map(size).sum::<usize>();
        }
        Ok(())
    }
}

/// Counters of the database, in the order of SHOW STATS_TOTALS.
fn counters(console: &mut Raw) -> io::Result<Vec<u64>> {
    let row = row(console, "show stats_totals", "postgres|")?;
    Ok(row.iter().skip(1).filter_map(|value| value.parse().ok()).collect())
}

const SYNC: (char, &[u8]) = ('S', b"");
const EXECUTE: (char, &[u8]) = ('E', b"\0\0\0\0\0");

#[test]
fn every_counter_is_exact() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    for mode in ["transaction", "session"] {
        let (_postgres, pooler) = crate::start(&format!("pool_mode = {mode}\nworkers = 2"))?;
        let mut console = Raw::console(pooler.port, "postgres")?;
        let start = Instant::now();
        let mut client = Counting::new(pooler.port)?;
        assert_eq!(counters(&mut console)?, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], "{mode}");
        client.exchange(&[('Q', b"select 1\0")], 1)?;
        for sql in [&b"begin\0"[..], b"select pg_sleep(0.05)\0", b"commit\0", b"nonsense\0"] {
            client.exchange(&[('Q', sql)], 1)?;
        }
        let unnamed = [('P', &b"\0select 2\0\0\0"[..]), ('B', b"\0\0\0\0\0\0\0\0"), EXECUTE, SYNC];
        client.exchange(&unnamed, 1)?;
        let parse = ('P', &b"s\0select 3\0\0\0"[..]);
        let bind = ('B', &b"\0s\0\0\0\0\0\0\0"[..]);
        client.exchange(&[parse, bind, EXECUTE, SYNC], 1)?;
        client.exchange(&[bind, EXECUTE, SYNC], 1)?;
        // Two groups at once, answered as one: whether the second begins before the first has
        // been answered is a matter of luck, so that only one of them is sent here.
        client.exchange(&[bind, EXECUTE, bind, EXECUTE, SYNC], 1)?;
        let elapsed = start.elapsed().as_micros() as u64;
        let found = counters(&mut console)?;
        let [assignments, xacts, queries, received, sent, xact_time, query_time, wait, rest @ ..] =
            &found[..]
        else {
            panic!("too few counters: {found:?}");
        };
        assert_eq!((*xacts, *queries), (7, 9), "{mode}");
        assert_eq!(*assignments, if mode == "transaction" { 7 } else { 1 }, "{mode}");
        assert_eq!((*received, *sent), (client.sent as u64, client.got as u64), "{mode}");
        assert_eq!(*wait, 0, "{mode}");
        assert!((50_000..elapsed).contains(query_time), "{mode} {found:?}");
        assert!((*query_time..elapsed).contains(xact_time), "{mode} {found:?}");
        let tracked = if mode == "transaction" { [1, 1, 4, 1] } else { [0, 0, 0, 1] };
        assert_eq!(rest, tracked, "{mode}");
        check_sums(&mut console, &found)?;
    }
    Ok(())
}

/// SHOW STATS and TOTALS say the same; the console counts its own first command and its login.
fn check_sums(console: &mut Raw, found: &[u64]) -> io::Result<()> {
    let stats = row(console, "show stats", "postgres|")?;
    let totals: Vec<u64> = stats[1..13].iter().filter_map(|value| value.parse().ok()).collect();
    assert_eq!(totals, found);
    let own = row(console, "show stats_totals", "pgbouncer|")?;
    assert_eq!(own[1..].join(" "), "0 1 1 0 0 0 0 0 0 0 0 1");
    let sums = rows(console, "show totals")?;
    let names: Vec<&str> = sums.iter().filter_map(|row| Some(row.split_once('|')?.0)).collect();
    let parts = "server_assignment_count xact_count query_count client_bytes server_bytes \
                 xact_time query_time wait_time ps_client_parse_count ps_server_parse_count \
                 ps_bind_count client_login_count";
    let parts: Vec<&str> = parts.split_whitespace().collect();
    let all =
        ["total", "avg"].map(|prefix| parts.iter().map(move |name| format!("{prefix}_{name}")));
    assert_eq!(names, all.into_iter().flatten().collect::<Vec<_>>());
    let sum = |index: usize| sums[index].rsplit_once('|').map_or("", |(_, value)| value).to_owned();
    for (index, value) in found.iter().enumerate() {
        let own = if [1, 2, 11].contains(&index) { 1 } else { 0 };
        assert_eq!(sum(index), (value + own).to_string(), "{}", names[index]);
    }
    Ok(())
}

#[test]
fn waiting_counts_from_the_query_to_the_server() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = crate::start("pool_mode = transaction\ndefault_pool_size = 1")?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let mut first = Counting::new(pooler.port)?;
    let mut second = Counting::new(pooler.port)?;
    first.exchange(&[('Q', b"begin\0")], 1)?;
    let start = Instant::now();
    second.exchange(&[('Q', b"select 1\0")], 0)?;
    let mut waited = 0;
    wait_until("a tenth of a second", || {
        let row = row(&mut console, "show pools", "postgres|app|").unwrap_or_default();
        let part = |index: usize| row.get(index).and_then(|part| part.parse::<u64>().ok());
        waited = part(13).unwrap_or(0) * 1_000_000 + part(14).unwrap_or(0);
        waited > 100_000
    })?;
    first.exchange(&[('Q', b"commit\0")], 1)?;
    second.exchange(&[], 1)?;
    let elapsed = start.elapsed().as_micros() as u64;
    let found = counters(&mut console)?;
    assert!((waited..=elapsed).contains(&found[7]), "{waited} {found:?} {elapsed}");
    // The time in the queue belongs to the query.
    assert!(found[6] >= found[7], "{found:?}");
    Ok(())
}

#[test]
fn averages_are_those_of_the_last_period() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\nstats_period = 1\nlog_stats = 1";
    let (_postgres, pooler) = crate::start(settings)?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let mut client = Counting::new(pooler.port)?;
    // One query after the other: their number and their time say what an average must be.
    wait_until("averages", || {
        let asked = client.exchange(&[('Q', b"select pg_sleep(0.01)\0")], 1).is_ok();
        let row = row(&mut console, "show stats_averages", "postgres|").unwrap_or_default();
        let part = |index: usize| row.get(index).and_then(|part| part.parse::<u64>().ok());
        let (queries, time) = (part(3).unwrap_or(0), part(7).unwrap_or(0));
        asked && queries >= 1 && time >= 10_000 && queries * time <= 1_000_000
    })?;
    wait_until("line in the log", || {
        let asked = client.exchange(&[('Q', b"select pg_sleep(0.01)\0")], 1).is_ok();
        asked && has_stats_line(&pooler)
    })
}

fn has_stats_line(pooler: &Pooler) -> bool {
    let log = pooler.log().unwrap_or_default();
    let lines = log.lines().filter(|line| line.contains("LOG stats: "));
    lines.into_iter().any(|line| line.contains(" queries/s, ") && !line.contains(" 0 queries/s, "))
}
