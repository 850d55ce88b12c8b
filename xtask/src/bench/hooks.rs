//! What rules and functions cost: CPU time of the pooler per transaction on top of none, and that
//! of the Python processes beside it. What they do to latencies is in `patience`.

use std::io::{self, Write};
use std::time::Duration;

use switchyard_testkit::{Pooler, Postgres, Rules, Venv};

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
