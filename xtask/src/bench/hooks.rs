//! What rules and functions cost: CPU time of the pooler per transaction on top of none, and that
//! of the Python processes beside it. What they do to latencies is in `patience`.

use std::io::{self, Write};
use std::time::Duration;

use switchyard_testkit::{Postgres, Rules, Venv};

use super::{CLIENTS, Plan, Subject, median, start};

/// The table of expressions as it is published, and a rewriting function that changes nothing.
pub(super) const TABLE: &str = r"
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

pub(super) const NONE: &str = "
def routing_rules(username, query, in_transaction):
    return None
def rewrite_query(username, query, in_transaction):
    return None
";

/// A parser in the function.
const PARSING: &str = "
import sqlparse
def routing_rules(username, query, in_transaction):
    sqlparse.parse(query)
    return None
";

pub(super) const FUNCTIONS: [&str; 2] = ["routing_rules", "rewrite_query"];

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
    let (parsing, venv) = (Rules::new(PARSING)?, Venv::new(&["sqlparse"])?);
    if let Some(venv) = &venv {
        let lines = parsing.settings(&["routing_rules"]);
        let lines = format!("{lines}hook_python = {}\n", venv.path().display());
        cases.push(("sqlparse in the function", lines));
    }
    let mut script = tempfile::NamedTempFile::new()?;
    script.write_all(SCRIPT.as_bytes())?;
    let (script, clients) = (script.path().display().to_string(), CLIENTS.to_string());
    let measure = |settings: &str, pace: Option<f64>| -> io::Result<Cost> {
        let pooler = start(subject, server, settings)?;
        let run = |seconds: u32| {
            let (seconds, pace) = (seconds.to_string(), pace.map(|pace| format!("{pace:.0}")));
            let mut arguments = vec!["-f", &script, "-c", &clients, "-T", &seconds];
            arguments.extend(pace.iter().flat_map(|pace| ["-R", pace.as_str()]));
            pooler.pgbench_with(&arguments, "prefer")
        };
        run(1)?;
        let before = (pooler.cpu()?, pooler.cpu_of_children()?);
        let count = run(plan.seconds)?.max(1) as f64;
        let micros = |spent: Duration| spent.as_micros() as f64 / count;
        Ok(Cost {
            ours: micros(pooler.cpu()? - before.0),
            python: micros(pooler.cpu_of_children()?.saturating_sub(before.1)),
            rate: count / f64::from(plan.seconds.max(1)),
        })
    };
    let mut results: Vec<Vec<Cost>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..plan.rounds.max(1) {
        for ((_, settings), results) in cases.iter().zip(&mut results) {
            results.push(measure(settings, None)?);
        }
    }
    let bare = Cost::median(&results[0]);
    for ((name, _), results) in cases.iter().zip(&results) {
        let cost = Cost::median(results);
        // A loop that sleeps between messages spends more on each of them.
        let mut base = bare.ours;
        if cost.rate < bare.rate / 2.0 {
            base = measure("", Some(cost.rate))?.ours;
            row(
                subject,
                &format!("none, at the {:.0} a second of the next", cost.rate),
                base,
                base,
            );
        }
        row(subject, name, cost.ours, base);
        println!("| of Python beside it | | {:.2} | |", cost.python);
    }
    Ok(())
}

fn row(subject: &Subject, name: &str, micros: f64, base: f64) {
    let (what, more) = ("CPU \u{b5}s per transaction, rules", micros - base);
    println!("| {what}: {name} | {} | {micros:.2} | {more:+.2} |", subject.name);
}

/// Microseconds of CPU per transaction, and transactions a second.
#[derive(Clone, Copy)]
struct Cost {
    ours: f64,
    python: f64,
    rate: f64,
}

impl Cost {
    fn median(costs: &[Cost]) -> Cost {
        let of = |part: fn(&Cost) -> f64| median(&mut costs.iter().map(part).collect::<Vec<_>>());
        Cost { ours: of(|c| c.ours), python: of(|c| c.python), rate: of(|c| c.rate) }
    }
}
