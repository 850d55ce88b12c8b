//! What hooks do to latencies: what a lone client waits for its functions, what others notice of
//! one user's bad function, and what the death of a process costs.

use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use switchyard_testkit::{Pooler, Postgres, Rules};

use super::hooks::{FUNCTIONS, NONE, TABLE};
use super::{CLIENTS, Plan, Subject, median, start};

const SLEEPING: &str = r"
import time
def routing_rules(username, query, in_transaction):
    if username == 'app':
        time.sleep(0.3)
    return None
";

const BURNING: &str = r"
import time
def routing_rules(username, query, in_transaction):
    if username == 'app':
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
    return None
";

/// Microseconds of pgbench's transactions with these arguments, in rising order.
fn latencies(pooler: &Pooler, arguments: &[&str]) -> io::Result<Vec<u32>> {
    let directory = tempfile::tempdir()?;
    let prefix = directory.path().join("log").display().to_string();
    pooler.pgbench_with(&[arguments, &["-S", "-l", "--log-prefix", &prefix]].concat(), "prefer")?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory.path())? {
        let text = std::fs::read_to_string(entry?.path())?;
        let third = |line: &str| line.split(' ').nth(2)?.parse::<u32>().ok();
        found.extend(text.lines().filter_map(third));
    }
    found.sort_unstable();
    if found.is_empty() { Err(io::Error::other("pgbench measured nothing")) } else { Ok(found) }
}

fn percentile(sorted: &[u32], percent: usize) -> f64 {
    f64::from(sorted[(sorted.len() - 1) * percent / 100])
}

/// Median latency of a lone client, without functions and with them, in turn.
pub(super) fn alone(plan: &Plan, subject: &Subject, server: &Postgres) -> io::Result<()> {
    let (none, table) = (Rules::new(NONE)?, Rules::new(TABLE)?);
    let cases = [
        ("none", String::new()),
        ("return None", none.settings(&FUNCTIONS)),
        ("table of expressions", table.settings(&FUNCTIONS)),
    ];
    let mut results = [const { Vec::new() }; 3];
    let seconds = plan.seconds.to_string();
    for _ in 0..plan.rounds.max(1) {
        for ((_, settings), results) in cases.iter().zip(&mut results) {
            let pooler = start(subject, server, settings)?;
            latencies(&pooler, &["-c", "1", "-T", "1"])?;
            results.push(percentile(&latencies(&pooler, &["-c", "1", "-T", &seconds])?, 50));
        }
    }
    let mut bare = None;
    for ((name, _), results) in cases.iter().zip(&mut results) {
        let micros = median(results);
        let more = micros - *bare.get_or_insert(micros);
        let name = format!("p50 \u{b5}s of a lone client, rules: {name}");
        println!("| {name} | {} | {micros:.0} | {more:+.0} |", subject.name);
    }
    Ok(())
}

/// Latencies of a user whose functions are fast, while another's are bad and while they are not.
pub(super) fn beside(plan: &Plan, subject: &Subject, server: &Postgres) -> io::Result<()> {
    let (clients, seconds) = (CLIENTS.to_string(), plan.seconds.to_string());
    let full = ["-c", &clients, "-T", &seconds];
    let (sleeping, burning) = (Rules::new(SLEEPING)?, Rules::new(BURNING)?);
    let settings = sleeping.settings(&["routing_rules"]);
    compare(subject, server, &settings, "sleeps, full load", &full)?;
    let settings = burning.settings(&["routing_rules"]);
    let most = start(subject, server, &settings)?.pgbench_with(&full, "prefer")?;
    let third = (most / u64::from(plan.seconds.max(1)) / 3).to_string();
    let paced = [&full[..], &["-R", &third]].concat();
    compare(subject, server, &settings, "burns CPU, a third of the load", &paced)
}

fn compare(
    subject: &Subject,
    server: &Postgres,
    settings: &str,
    what: &str,
    arguments: &[&str],
) -> io::Result<()> {
    let mut quiet = None;
    for bad in [false, true] {
        let pooler = start(subject, server, settings)?;
        let over = AtomicBool::new(!bad);
        let measured = std::thread::scope(|scope| {
            let user = scope.spawn(|| -> io::Result<()> {
                let mut client = pooler.session("app", "postgres")?;
                while !over.load(Ordering::Relaxed) {
                    client.run("select 1")?;
                }
                Ok(())
            });
            let measured = latencies(&pooler, arguments);
            over.store(true, Ordering::Relaxed);
            user.join().map_err(|_| io::Error::other("a panic"))??;
            measured
        })?;
        let (p50, p99) = (percentile(&measured, 50), percentile(&measured, 99) / 1000.0);
        let more = p50 - *quiet.get_or_insert(p50);
        let when = if bad { what } else { "is fast" };
        let what = format!("others' p50 \u{b5}s and p99 ms, one user's function {when}");
        println!("| {what} | {} | {p50:.0}, {p99:.2} | {more:+.0} |", subject.name);
    }
    Ok(())
}

/// Throughput while a process is killed by SIGSEGV every second, beside that of quiet times.
pub(super) fn deaths(plan: &Plan, subject: &Subject, server: &Postgres) -> io::Result<()> {
    let rules = Rules::new(NONE)?;
    let settings = format!("{}route_on_error = pass\n", rules.settings(&FUNCTIONS));
    let (clients, seconds) = (CLIENTS.to_string(), plan.seconds.max(2).to_string());
    let mut ratios = Vec::new();
    let mut killed = 0;
    for _ in 0..plan.rounds.max(1) {
        let pooler = start(subject, server, &settings)?;
        let run = || pooler.pgbench_with(&["-S", "-c", &clients, "-T", &seconds], "prefer");
        let quiet = run()?;
        let over = AtomicBool::new(false);
        let disturbed = std::thread::scope(|scope| {
            let killer = scope.spawn(|| -> io::Result<usize> {
                let (mut killed, mut next) = (0, Instant::now());
                while !over.load(Ordering::Relaxed) {
                    if Instant::now() >= next {
                        next += Duration::from_secs(1);
                        killed += kill_one(&pooler)?;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(killed)
            });
            let disturbed = run();
            over.store(true, Ordering::Relaxed);
            killed += killer.join().map_err(|_| io::Error::other("a panic"))??;
            disturbed
        })?;
        ratios.push(disturbed as f64 / quiet.max(1) as f64);
    }
    let ratio = median(&mut ratios);
    let what =
        format!("throughput while processes die ({killed} by SIGSEGV), share of quiet times");
    println!("| {what} | {} | {ratio:.2} | |", subject.name);
    Ok(())
}

/// Ends the oldest of the pooler's interpreters; answers how many that were.
fn kill_one(pooler: &Pooler) -> io::Result<usize> {
    let Some(pid) = pooler.children()?.first().copied() else { return Ok(0) };
    let status = Command::new("kill").args(["-SEGV", &pid.to_string()]).status()?;
    Ok(usize::from(status.success()))
}
