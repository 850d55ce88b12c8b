//! The pooler's share of a switchover: how long after the new writer's first own commit the first,
//! the median and the last of twenty writing clients get through the pooler. A failover kills the
//! writer's postmaster, a planned change stops it; then a standby is promoted.

use std::io;
use std::path::Path;

use switchyard_testkit::{Client, Cluster, Cost, Pooler, Writers, wait_until};

/// Clients that write without a pause.
pub(crate) const WRITERS: usize = 20;
/// Clients that are connected and silent.
pub(crate) const IDLE: usize = 10;

/// The two ways in which a writer changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Planned,
    Killed,
}

/// Runs both kinds of change and prints a row for each run.
pub(crate) fn run(program: &Path, rounds: usize) -> io::Result<()> {
    println!("| change | first ms | median ms | last ms | disconnects | errors | idle | lost |");
    println!("|---|---|---|---|---|---|---|---|");
    for (kind, name) in [(Kind::Planned, "planned"), (Kind::Killed, "kill -9")] {
        for _ in 0..rounds {
            let mut cluster = Cluster::start()?;
            let pooler = Pooler::start(program, &cluster.entry("app"), "pool_mode = transaction")?;
            let (cost, idle) = change(&mut cluster, &pooler, kind)?;
            let [first, median, last] = cost.milliseconds();
            println!(
                "| {name} | {first:.1} | {median:.1} | {last:.1} | {} | {} | {idle} | {} |",
                cost.disconnects,
                cost.errors + cost.wrong + cost.doubled,
                cost.lost
            );
        }
    }
    Ok(())
}

/// Changes the writer of the entry `app` under load; answers the cost for the writers and the
/// number of idle clients that saw an error.
pub(crate) fn change(
    cluster: &mut Cluster,
    pooler: &Pooler,
    kind: Kind,
) -> io::Result<(Cost, usize)> {
    let readers =
        || pooler.console("show nodes").is_ok_and(|text| text.matches("|reader|").count() > 1);
    wait_until("two standbys", readers)?;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(Client::connect(pooler.port, "app")?);
    }
    let writers = Writers::start(cluster, pooler.port, "app", WRITERS)?;
    writers.run(5000)?;
    let change = match kind {
        Kind::Planned => cluster.switch_over()?,
        Kind::Killed => cluster.fail_over()?,
    };
    writers.run(1000)?;
    let cost = writers.finish(&change)?;
    let failures = idle.iter_mut().filter_map(|client| client.run("select 1").err()).count();
    Ok((cost, failures))
}
