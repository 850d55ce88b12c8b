//! Orchestrators in front of real servers, and the pooler in front of both.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use switchyard_testkit::{Change, Patroni, Pooler, Writers, first_commit};

use crate::packages;

/// Clients that write without a pause.
const WRITERS: usize = 20;

/// Who changes the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// SWITCHOVER on the console, with Patroni's REST interface as `promote_command`.
    Console,
    /// The same with `patroni_url`.
    Url,
    /// Patroni, asked over its REST interface.
    Asked,
    /// Patroni, because the leader was killed.
    Killed,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Console, "SWITCHOVER, promote_command"),
    (Kind::Url, "SWITCHOVER, patroni_url"),
    (Kind::Asked, "switchover asked of Patroni"),
    (Kind::Killed, "kill -9 of the leader"),
];

/// Lets Patroni change the leader in every way, so many times, and prints what it costs.
pub(crate) fn patroni(root: &Path, rounds: usize) -> Result<(), String> {
    packages::postgres()?;
    packages::patroni()?;
    let built = Command::new("cargo").args(["build", "--release"]).current_dir(root).status();
    if !built.is_ok_and(|status| status.success()) {
        return Err("the build failed".into());
    }
    run(&root.join("target/release/switchyard"), rounds).map_err(|error| error.to_string())
}

fn run(program: &Path, rounds: usize) -> io::Result<()> {
    let cluster = Patroni::start()?;
    println!(
        "| change | stall ms | first ms | median ms | last ms | disconnects | errors | wrong rows |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (kind, name) in KINDS {
        let own = [cluster.promote_command(), String::new()];
        let [command, url] = if kind == Kind::Url { [String::new(), cluster.urls()] } else { own };
        let entry = format!("{} {url}", cluster.entry("app"));
        let settings = format!("pool_mode = transaction\nmax_client_conn = 1000\n{command}");
        let pooler = Pooler::start(program, &entry, &settings)?;
        for _ in 0..rounds {
            let leader = cluster.settle()?;
            let writers = Writers::begin(leader.port, pooler.port, "app", WRITERS)?;
            writers.run(2000)?;
            let change = change(&cluster, &pooler, kind)?;
            writers.run(1000)?;
            let cost = writers.finish(&change)?;
            let [first, median, last] = cost.milliseconds();
            let stall = (change.accepted - change.gone).as_millis();
            let wrong = cost.wrong + cost.doubled + cost.lost + cost.stale;
            println!(
                "| {name} | {stall} | {first:.1} | {median:.1} | {last:.1} | {} | {} | {wrong} |",
                cost.disconnects, cost.errors
            );
        }
    }
    Ok(())
}

fn change(cluster: &Patroni, pooler: &Pooler, kind: Kind) -> io::Result<Change> {
    let (leader, candidate) = (cluster.settle()?, cluster.candidate()?);
    let (gone, direct) = (Instant::now(), first_commit(candidate.port));
    match kind {
        Kind::Console | Kind::Url => {
            pooler.console(&format!("switchover app {}", candidate.name)).map(drop)?
        }
        Kind::Asked => cluster.hand_over(leader, candidate)?,
        Kind::Killed => cluster.kill(leader)?,
    }
    let accepted = direct.join().map_err(|_| io::Error::other("a panic"))??;
    Ok(Change { old: leader.port, new: candidate.port, gone, accepted })
}
