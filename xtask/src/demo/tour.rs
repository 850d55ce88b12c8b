//! The steps of the tour. Each runs, tells its figures and says whether it held.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use switchyard_testkit::{Client, Cost};

use super::screen::Screen;
use super::stage::{POOL, Stage, UNCHANGED, UNROUTED};
use crate::switchover::{self, IDLE, Kind};

/// One step's result.
pub(crate) struct Step {
    pub(crate) title: &'static str,
    pub(crate) figures: String,
    pub(crate) held: bool,
}

/// How many steps the tour has.
pub(crate) const STEPS: usize = 7;

const CLIENTS: u64 = 200;
const QUERIES: u64 = 100;
/// A stall that nobody would call a switchover's.
const BEARABLE: f64 = 1000.0;

const BY_WORD: &str = r#"
def routing_rules(username, query, in_transaction):
    if "tablea" in query:
        return "dev.1"
    return "dev.2"
"#;

const BY_TABLE: &str = r#"
import re

routing = {
    r".*tablea.*": "dev.1",
    r".*tableb.*": "dev.2",
}

def routing_rules(username, query, in_transaction):
    for pattern, database in routing.items():
        if re.match(pattern, query):
            return database
    return None
"#;

const BY_STAR: &str = r#"
import re

summaries = [
    (r"select store_name, sum\(amount\) total from sales join store using \(store_id\) group by 1",
     "select store_name, total from sales_by_store"),
    (r"select month_name, sum\(amount\) total from sales join month using \(month_id\) group by 1",
     "select month_name, total from sales_by_month"),
]

def rewrite_query(username, query, in_transaction):
    for pattern, summary in summaries:
        query = re.sub(pattern, summary, query)
    return query
"#;

/// Runs all steps; those done are in `steps` even when a later one breaks off.
pub(crate) fn run(stage: &mut Stage, screen: &mut Screen, steps: &mut Vec<Step>) -> io::Result<()> {
    type Play = fn(&mut Stage, &mut Screen) -> io::Result<(String, bool)>;
    let plays: [(&'static str, Play); STEPS] = [
        ("200 clients on 10 server connections", share),
        ("routing by a word in the query", route_by_word),
        ("routing by a table of expressions", route_by_table),
        ("rewriting queries on a star schema", rewrite),
        ("planned switchover under 20 writers", planned),
        ("failover by kill -9 under 20 writers", killed),
        ("SWITCHOVER on the console, 20 writers", ordered),
    ];
    for (title, play) in plays {
        screen.title(title)?;
        let (figures, held) = play(stage, screen)?;
        screen.say(&format!("{} {figures}", if held { "ok:" } else { "FAILED:" }));
        steps.push(Step { title, figures, held });
    }
    Ok(())
}

fn share(stage: &mut Stage, screen: &mut Screen) -> io::Result<(String, bool)> {
    let (done, wrong, broken) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (port, total) = (stage.pooler.port, CLIENTS * QUERIES);
    let client = |number: u64| -> io::Result<()> {
        let mut client = Client::connect(port, "dev")?;
        for query in 0..QUERIES {
            let rows = client.run(&format!("select {number} * 1000 + {query}"))?;
            let right = rows == [(number * 1000 + query).to_string()];
            wrong.fetch_add(u64::from(!right), Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    let (client, broken) = (&client, &broken);
    let start = Instant::now();
    let mut most = 0;
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            scope.spawn(move || {
                if client(number).is_err() {
                    broken.store(true, Ordering::Relaxed);
                }
            });
        }
        let count = "select count(*) from pg_stat_activity where backend_type = 'client backend' \
                     and application_name <> 'psql'";
        screen.follow(total, "queries", || {
            let seen = stage.singles[0].sql(count).ok();
            most = most.max(seen.and_then(|text| text.trim().parse().ok()).unwrap_or(0));
            if broken.load(Ordering::Relaxed) { total } else { done.load(Ordering::Relaxed) }
        })
    })?;
    let (done, wrong) = (done.into_inner(), wrong.into_inner());
    let rate = done as f64 / start.elapsed().as_secs_f64();
    let figures = format!(
        "{done} answers, {rate:.0} a second, {wrong} wrong; at most {most} server connections"
    );
    Ok((figures, done == total && wrong == 0 && (1..=POOL).contains(&most)))
}

/// Runs queries over one connection to `dev`, each with the server that should answer.
fn route(
    stage: &Stage,
    screen: &mut Screen,
    expected: &[(&str, usize)],
) -> io::Result<(String, bool)> {
    let mut client = Client::connect(stage.pooler.port, "dev")?;
    let mut right = 0;
    for (query, server) in expected {
        let answer = client.run(query)?.join(" ");
        let known = stage.singles.iter().position(|single| single.port.to_string() == answer);
        let name = known.map_or("nowhere".to_owned(), |index| format!("dev.{}", index + 1));
        screen.say(&format!("{query:28} ran on {name}"));
        right += usize::from(known == Some(*server));
    }
    Ok((
        format!("{right} of {} queries went where they should", expected.len()),
        right == expected.len(),
    ))
}

fn route_by_word(stage: &mut Stage, screen: &mut Screen) -> io::Result<(String, bool)> {
    stage.load(screen, BY_WORD, UNCHANGED)?;
    let expected = [
        ("select server from tablea", 0),
        ("select server from tableb", 1),
        ("select server from tablea", 0),
    ];
    route(stage, screen, &expected)
}

fn route_by_table(stage: &mut Stage, screen: &mut Screen) -> io::Result<(String, bool)> {
    stage.load(screen, BY_TABLE, UNCHANGED)?;
    // The rule for the rest is None: it stays where the query before it went.
    let expected = [
        ("select server from tablea", 0),
        ("select server from tableb", 1),
        ("select server from tablec", 1),
        ("select server from tablea", 0),
        ("select server from tablec", 0),
    ];
    route(stage, screen, &expected)
}

fn rewrite(stage: &mut Stage, screen: &mut Screen) -> io::Result<(String, bool)> {
    let queries = ["store", "month"].map(|name| {
        format!(
            "select {name}_name, sum(amount) total from sales join {name} \
             using ({name}_id) group by 1"
        )
    });
    let ask = |client: &mut Client| -> io::Result<(Vec<Vec<String>>, Duration)> {
        let (start, mut answers) = (Instant::now(), Vec::new());
        for query in &queries {
            let mut rows = client.run(query)?;
            rows.sort();
            answers.push(rows);
        }
        Ok((answers, start.elapsed()))
    };
    stage.load(screen, UNROUTED, UNCHANGED)?;
    let mut client = Client::connect(stage.pooler.port, "dev")?;
    let (before, long) = ask(&mut client)?;
    stage.load(screen, UNROUTED, BY_STAR)?;
    client.run("select 1")?;
    let (after, short) = ask(&mut client)?;
    // The server remembers the last text that each of its sessions ran.
    let seen = stage.singles[0].sql(
        "select count(*) from pg_stat_activity where pid <> pg_backend_pid() \
         and query ~ '^select month_name, total from sales_by_month'",
    )?;
    let same = before == after && before.iter().all(|rows| !rows.is_empty());
    let figures = format!(
        "two queries took {:.1} ms before and {:.1} ms after, {} rows",
        long.as_secs_f64() * 1000.0,
        short.as_secs_f64() * 1000.0,
        if same { "with the same" } else { "with OTHER" }
    );
    stage.load(screen, UNROUTED, UNCHANGED)?;
    Ok((figures, same && seen.trim() != "0"))
}

fn planned(stage: &mut Stage, screen: &mut Screen) -> io::Result<(String, bool)> {
    change(stage, screen, Kind::Planned)
}

fn ordered(stage: &mut Stage, screen: &mut Screen) -> io::Result<(String, bool)> {
    change(stage, screen, Kind::Console)
}

fn killed(stage: &mut Stage, screen: &mut Screen) -> io::Result<(String, bool)> {
    change(stage, screen, Kind::Killed)
}

fn change(stage: &mut Stage, screen: &mut Screen, kind: Kind) -> io::Result<(String, bool)> {
    screen.progress(0, 1, "switchovers")?;
    let old = stage.cluster.writer().port;
    let (cost, idle) = switchover::change(&mut stage.cluster, &stage.pooler, kind)?;
    let [first, median, last] = cost.milliseconds();
    let Cost { errors, disconnects, wrong, lost, doubled, acknowledged, .. } = cost;
    screen.say(&format!("the writer moved from port {old} to {}", stage.cluster.writer().port));
    screen.say(&format!("{IDLE} idle clients: {idle} errors"));
    for text in &cost.complaints {
        screen.say(&format!("writers in the middle of a statement were told: {text}"));
    }
    let figures = format!(
        "stall first {first:.1}, median {median:.1}, last {last:.1} ms; {} errors, {acknowledged} \
         rows acknowledged, {lost} lost, {doubled} twice, {wrong} wrong answers",
        errors + disconnects
    );
    let exact = idle + wrong + lost + doubled == 0;
    // A statement that was under way on a lost writer fails once for its client, no more. A server
    // that stops in good order ends its sessions one by one: who was told early may, on a busy
    // machine, get another one before the watch on the node is told. Where the pooler itself
    // changes the writer, it lets statements end first.
    let bearable = match kind {
        Kind::Console => 0,
        Kind::Planned | Kind::Back => 2 * switchover::WRITERS,
        Kind::Killed | Kind::Frozen | Kind::Cut | Kind::Restarted => switchover::WRITERS,
    };
    Ok((figures, exact && errors + disconnects <= bearable && last <= BEARABLE))
}
