//! Many changes of writer in a row under load, and what they leave behind in the pooler.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Client, Cluster, Cost, Pooler, Writers, wait_until};

/// What the pooler holds, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Open files beside clients and servers.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory in KiB.
    pub memory: u64,
}

/// What a row of changes cost and left.
#[derive(Debug)]
pub struct Endurance {
    /// After the first changes, in which every node was the writer once.
    pub before: Holdings,
    /// In the end.
    pub after: Holdings,
    /// What the writing clients saw.
    pub cost: Cost,
    /// Changes without a HOLD before them, in which statements may be under way.
    pub unheld: usize,
    /// Records of all changes.
    pub records: usize,
}

/// Changes until every node was the writer.
const WARMING: usize = 3;
/// Rows between two changes.
const ROWS: u64 = 300;
/// How long connections may take to be closed.
const LINGERING: Duration = Duration::from_secs(10);

/// Changes the writer so many times, every other time with a HOLD before it.
pub fn endure(program: &Path, changes: usize, clients: usize) -> io::Result<Endurance> {
    let mut cluster = Cluster::start()?;
    let settings = "pool_mode = transaction\nmax_client_conn = 1000";
    let pooler = Pooler::start(program, &cluster.entry("app"), settings)?;
    readers(&pooler)?;
    let mut admin = Client::connect(pooler.port, "pgbouncer")?;
    let writers = Writers::start(&cluster, pooler.port, "app", clients)?;
    writers.run(ROWS)?;
    let (mut before, mut unheld, mut last) = (None, 0, None);
    for round in 0..WARMING + changes {
        if round == WARMING {
            before = Some(settled(&pooler, &mut admin)?);
        }
        if round % 2 == 0 {
            admin.run("hold app")?;
        } else {
            unheld += 1;
        }
        last = Some(cluster.switch_over()?);
        readers(&pooler)?;
        writers.run(ROWS)?;
    }
    let change = last.ok_or_else(|| io::Error::other("no change"))?;
    let cost = writers.finish(&change)?;
    wait_until("nobody", || counts(&mut admin).is_ok_and(|counts| counts == "0 clients, 0 busy"))?;
    let before = before.ok_or_else(|| io::Error::other("no change"))?;
    let mut after = settled(&pooler, &mut admin)?;
    // What is on its way to be closed is no leak; what stays until the end of patience is one.
    let began = Instant::now();
    while after.descriptors > before.descriptors && began.elapsed() < LINGERING {
        after = settled(&pooler, &mut admin)?;
    }
    let records = admin.run("show switchovers")?.len();
    Ok(Endurance { before, after, cost, unheld, records })
}

fn readers(pooler: &Pooler) -> io::Result<()> {
    wait_until("two standbys", || {
        pooler.console("show nodes").is_ok_and(|text| text.matches("|reader|up|").count() == 2)
    })
}

/// Clients in pools of the cluster, and servers in use.
fn counts(admin: &mut Client) -> io::Result<String> {
    let (mut clients, mut busy) = (0, 0);
    for row in admin.run("show pools")?.iter().filter(|row| row.starts_with("app")) {
        let numbers: Vec<usize> = row.split('|').filter_map(|cell| cell.parse().ok()).collect();
        // cl_active, cl_waiting and two kinds of cancel requests; then sv_active.
        clients += numbers.iter().take(4).sum::<usize>();
        busy += numbers.get(4).copied().unwrap_or_default();
    }
    Ok(format!("{clients} clients, {busy} busy"))
}

/// Looks twice, until nothing has changed between two looks at connections.
fn settled(pooler: &Pooler, admin: &mut Client) -> io::Result<Holdings> {
    let mut found = None;
    wait_until("quiet", || {
        let mut connections = || -> io::Result<usize> {
            let clients = admin.run("show clients")?.len();
            Ok(clients + admin.run("show servers")?.len())
        };
        let Ok(before) = connections() else { return false };
        let Ok(open) = files(pooler, "fd") else { return false };
        let same = connections().is_ok_and(|after| after == before);
        found = open.checked_sub(before).filter(|_| same);
        found.is_some()
    })?;
    Ok(Holdings {
        descriptors: found.unwrap_or_default(),
        threads: files(pooler, "task")?,
        memory: pooler.resident()?,
    })
}

fn files(pooler: &Pooler, what: &str) -> io::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/{what}", pooler.pid()))?.count())
}
