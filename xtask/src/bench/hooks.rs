//! What rules and functions cost: CPU time of the pooler per transaction on top of none, that of
//! the Python processes beside it, and what one user's sleeping function does to the others.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use switchyard_testkit::{Client, Pooler, Postgres, Rules};

use super::{CLIENTS, Plan, Subject, median, start};

/// The table of expressions as it is published, and a rewriting function that changes nothing.
const TABLE: &str = r"
import re
routing = {r'.*tablea.*': 'postgres', r'.*tableb.*': 'postgres'}
def routing_rules(username, query, in_transaction):
    for expression, database in routing.items():
        if re.match(expression, query):
            return database
    return None
def rewrite_query(username, query, in_transaction):
    return query
";

const NONE: &str = "
def routing_rules(username, query, in_transaction):
    return None
def rewrite_query(username, query, in_transaction):
    return None
";

const SLEEPING: &str = r"
import time
def routing_rules(username, query, in_transaction):
    if username == 'app':
        time.sleep(0.3)
    return None
";

const FUNCTIONS: [&str; 2] = ["routing_rules", "rewrite_query"];

/// Few enough texts for a cache that goes by the text.
const SCRIPT: &str = "\\set aid random(1, 1000)
select abalance from pgbench_accounts where aid = :aid;
";

/// Expressions none of which fits pgbench's statement.
fn native(count: usize) -> String {
    let rules = (0..count).map(|n| format!("rule{n} = query='from table{n}\\b' -> postgres\n"));
    format!("[routes]\n{}", rules.collect::<String>())
}

/// The cost of each kind of rule.
pub(super) fn costs(plan: &Plan, subject: &Subject, server: &Postgres) -> io::Result<()> {
    let pure = format!("switchyard_pure = True\n{TABLE}");
    let modules = [Rules::new(&pure)?, Rules::new(NONE)?, Rules::new(TABLE)?];
    let mut cases = vec![("none", String::new()), ("20 native expressions", native(20))];
    let names = ["table of expressions, pure", "return None", "table of expressions"];
    let lines = modules.iter().map(|rules| rules.settings(&FUNCTIONS));
    cases.extend(names.into_iter().zip(lines));
    let mut script = tempfile::NamedTempFile::new()?;
    script.write_all(SCRIPT.as_bytes())?;
    let (script, clients) = (script.path().display().to_string(), CLIENTS.to_string());
    let run = |pooler: &Pooler, seconds: u32| {
        let seconds = seconds.to_string();
        pooler.pgbench_with(&["-f", &script, "-c", &clients, "-T", &seconds], "prefer")
    };
    let mut results = vec![(Vec::new(), Vec::new()); cases.len()];
    for _ in 0..plan.rounds.max(1) {
        for ((_, settings), (ours, python)) in cases.iter().zip(&mut results) {
            let pooler = start(subject, server, settings)?;
            run(&pooler, 1)?;
            let before = (pooler.cpu()?, pooler.cpu_of_children()?);
            let count = run(&pooler, plan.seconds)?.max(1) as f64;
            let micros = |spent: Duration| spent.as_micros() as f64 / count;
            ours.push(micros(pooler.cpu()? - before.0));
            python.push(micros(pooler.cpu_of_children()?.saturating_sub(before.1)));
        }
    }
    let mut bare = None;
    for ((name, _), (ours, python)) in cases.iter().zip(&mut results) {
        let (ours, python) = (median(ours), median(python));
        let more = ours - *bare.get_or_insert(ours);
        println!("| CPU \u{b5}s per transaction, rules: {name} | {} | {ours:.2} | +{more:.2} |", {
            &subject.name
        });
        println!("| of Python beside it | | {python:.2} | |");
    }
    Ok(())
}

/// Latency of users whose functions are fast, while a user's function sleeps and while none does.
pub(super) fn sleepers(plan: &Plan, subject: &Subject, server: &Postgres) -> io::Result<()> {
    let rules = Rules::new(SLEEPING)?;
    let pooler = start(subject, server, &rules.settings(&["routing_rules"]))?;
    for (name, sleeping) in [("nobody sleeps", false), ("one user's function sleeps", true)] {
        let end = Instant::now() + Duration::from_secs(plan.seconds.into());
        let measured = std::thread::scope(|scope| -> io::Result<Vec<Duration>> {
            let sleeper = scope.spawn(|| -> io::Result<()> {
                let mut client = pooler.session("app", "postgres")?;
                while sleeping && Instant::now() < end {
                    client.run("select 1")?;
                }
                Ok(())
            });
            let mut client = Client::connect(pooler.port, "postgres")?;
            let mut measured = Vec::new();
            while Instant::now() < end {
                let start = Instant::now();
                client.run("select 1")?;
                measured.push(start.elapsed());
            }
            sleeper.join().map_err(|_| io::Error::other("a panic"))??;
            Ok(measured)
        });
        let mut measured = measured?;
        measured.sort();
        let p99 = measured[measured.len() * 99 / 100].as_secs_f64() * 1000.0;
        println!("| p99 ms of another user, {name} | {} | {p99:.2} | |", subject.name);
    }
    Ok(())
}
