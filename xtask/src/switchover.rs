//! The pooler's share of a switchover: how long after the new writer's first own commit the first,
//! the median and the last of all writing clients get through the pooler, in every way in which a
//! writer can change, with few clients and with many; and what watching costs.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use switchyard_testkit::{Client, Cluster, Cost, Pooler, Writers, endure, wait_until};

/// Clients that write without a pause.
pub(crate) const WRITERS: usize = 20;
/// Clients that are connected and silent.
pub(crate) const IDLE: usize = 10;

/// Clients of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Crowd {
    /// Those that write without a pause.
    writers: usize,
    /// Those that are connected and silent.
    idle: usize,
}

/// Each kind of change is measured with each of them.
const CROWDS: [(Crowd, &str); 2] = [
    (Crowd { writers: WRITERS, idle: IDLE }, "20 writers"),
    (Crowd { writers: 50, idle: 450 }, "500 clients, 450 idle"),
];
/// Time over which the cost of watching is measured.
const REST: Duration = Duration::from_secs(20);
/// Most that watching three nodes may cost, in percent of a core: at rest, and without a writer.
const WATCHING_MAX: [(&str, f64); 2] = [("at rest", 0.2), ("without a writer", 5.0)];

/// Changes of writer without a pause between them.
const CHANGES: usize = 100;
const IN_A_ROW: &str = "100 in a row";

/// What happens to the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is stopped in good order, then a standby is promoted.
    Planned,
    /// Its postmaster is killed, then a standby is promoted.
    Killed,
    /// The console switches over.
    Console,
    /// It freezes; more than half a second later a standby is promoted.
    Frozen,
    /// A standby is promoted, and within a second the role goes back.
    Back,
    /// All its sessions are cut.
    Cut,
    /// It restarts in place.
    Restarted,
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Planned, "planned"),
    (Kind::Console, "SWITCHOVER on the console"),
    (Kind::Killed, "kill -9"),
    (Kind::Frozen, "SIGSTOP"),
    (Kind::Back, "there and back"),
    (Kind::Cut, "all sessions cut"),
    (Kind::Restarted, "restart in place"),
];

/// Runs every kind so many times, or only those with such a name, and prints a row for each:
/// medians and, in brackets, worst runs.
pub(crate) fn run(program: &Path, rounds: usize, wanted: &[String]) -> io::Result<()> {
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    if WATCHING_MAX.iter().any(|(what, _)| wants(what)) {
        rest(program)?;
    }
    println!(
        "| change | first ms | median ms | last ms | disconnects | errors | idle | wrong rows |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let rows = KINDS.into_iter().flat_map(|(kind, change)| {
        CROWDS.map(|(crowd, clients)| (kind, crowd, format!("{change}, {clients}")))
    });
    for (kind, crowd, name) in rows.filter(|(.., name)| wants(name)) {
        let (mut stalls, mut counts) = ([Vec::new(), Vec::new(), Vec::new()], [0; 4]);
        for _ in 0..rounds {
            let mut cluster = Cluster::start()?;
            let settings = "pool_mode = transaction\nmax_client_conn = 1000\npromote_sql = 1";
            let pooler = Pooler::start(program, &cluster.entry("app"), settings)?;
            let (cost, idle) = changed(&mut cluster, &pooler, kind, crowd)?;
            let milliseconds = cost.milliseconds();
            stalls.iter_mut().zip(milliseconds).for_each(|(all, one)| all.push(one));
            let wrong = cost.wrong + cost.doubled + cost.lost + cost.stale;
            let now = [cost.disconnects, cost.errors, idle, wrong];
            counts.iter_mut().zip(now).for_each(|(worst, one)| *worst = one.max(*worst));
        }
        let [first, median, last] = stalls.map(|mut all| {
            all.sort_by(f64::total_cmp);
            let worst = all.last().copied().unwrap_or_default();
            format!("{:.1} ({worst:.1})", all[all.len() / 2])
        });
        let [disconnects, errors, idle, wrong] = counts;
        println!(
            "| {name} | {first} | {median} | {last} | {disconnects} | {errors} | {idle} | {wrong} |"
        );
    }
    if wants(IN_A_ROW) {
        in_a_row(program)?;
    }
    Ok(())
}

/// A hundred changes of writer, and what is left of them.
fn in_a_row(program: &Path) -> io::Result<()> {
    let all = endure(program, CHANGES, WRITERS)?;
    println!("{IN_A_ROW} ({WRITERS} writers; every other one without HOLD: {}):", all.unheld);
    println!("| figure | before | after |\n|---|---|---|");
    let (before, after, cost) = (all.before, all.after, &all.cost);
    println!("| descriptors beside connections | {} | {} |", before.descriptors, after.descriptors);
    println!("| threads | {} | {} |", before.threads, after.threads);
    println!("| resident KiB | {} | {} |", before.memory, after.memory);
    println!(
        "{} rows acknowledged, {} errors, {} disconnects, {} wrong, {} lost, {} doubled; \
         {} records",
        cost.acknowledged,
        cost.errors,
        cost.disconnects,
        cost.wrong,
        cost.lost,
        cost.doubled,
        all.records
    );
    Ok(())
}

/// What watching three nodes costs, with and without a writer.
fn rest(program: &Path) -> io::Result<()> {
    let cluster = Cluster::start()?;
    let pooler = Pooler::start(program, &cluster.entry("app"), "pool_mode = transaction")?;
    let readers =
        || pooler.console("show nodes").is_ok_and(|text| text.matches("|reader|").count() > 1);
    wait_until("two standbys", readers)?;
    for (what, most) in WATCHING_MAX {
        if what != "at rest" {
            cluster.nodes().iter().try_for_each(|node| node.stop("immediate"))?;
        }
        let (before, began) = (pooler.cpu_of_threads()?, Instant::now());
        std::thread::sleep(REST);
        let spent = pooler.cpu_of_threads()?.saturating_sub(before);
        let share = spent.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
        println!("CPU of watching three nodes, {what}: {share:.2} % of a core (wanted: {most})");
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
    changed(cluster, pooler, kind, Crowd { writers: WRITERS, idle: IDLE })
}

/// The same with these clients.
fn changed(
    cluster: &mut Cluster,
    pooler: &Pooler,
    kind: Kind,
    crowd: Crowd,
) -> io::Result<(Cost, usize)> {
    // A planned change needs no third node.
    let needed = if kind == Kind::Console { 1 } else { 2 };
    wait_until("standbys", || {
        let nodes = pooler.console("show nodes");
        nodes.is_ok_and(|text| text.matches("|reader|").count() >= needed)
    })?;
    let mut idle = Vec::new();
    for _ in 0..crowd.idle {
        idle.push(Client::connect(pooler.port, "app")?);
    }
    let writers = Writers::start(cluster, pooler.port, "app", crowd.writers)?;
    writers.run(5000)?;
    let change = match kind {
        Kind::Planned => cluster.switch_over()?,
        Kind::Killed => cluster.fail_over()?,
        Kind::Console => cluster.hand_over(|port| {
            // A standby that was given another writer is refused until it is seen to follow that.
            let order = format!("switchover app \"127.0.0.1:{port}\"");
            wait_until("switchover", || pooler.console(&order).is_ok())
        })?,
        Kind::Frozen => cluster.freeze_over()?,
        Kind::Back => {
            let first = cluster.switch_over()?;
            cluster.switch_to(first.old)?
        }
        Kind::Cut => cluster.cut()?,
        Kind::Restarted => cluster.restart()?,
    };
    writers.run(1000)?;
    let cost = writers.finish(&change)?;
    let failures = idle.iter_mut().filter_map(|client| client.run("select 1").err()).count();
    Ok((cost, failures))
}
