//! What others make of the same changes of writer: Debian's pgbouncer with a list of hosts, and
//! HAProxy with a check that asks each node whether it is in recovery. Beside them the pooler.

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use switchyard_testkit::{Cluster, Cost, Forward, Pooler, Writers, free_port, wait_until};

use crate::switchover::WRITERS;

const PGBOUNCER: &str = "/usr/sbin/pgbouncer";
const HAPROXY: &str = "/usr/sbin/haproxy";
/// Rows that are written after a change, while an old writer may be back.
const AFTERWARDS: u64 = 2000;

/// What happens to the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It is stopped in good order.
    Planned,
    /// It is killed.
    Killed,
    /// It is killed, and comes back as the writer that it was.
    Back,
}

const KINDS: [(Kind, &str); 3] =
    [(Kind::Planned, "planned"), (Kind::Killed, "kill -9"), (Kind::Back, "old writer comes back")];

/// Who stands in front of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Ours,
    Pgbouncer,
    Haproxy,
}

const ALL: [(Who, &str); 3] =
    [(Who::Ours, "switchyard"), (Who::Pgbouncer, "pgbouncer"), (Who::Haproxy, "HAProxy")];

/// Something that listens in front of a cluster, for as long as the value lives.
struct Front {
    port: u16,
    database: &'static str,
    _pooler: Option<Pooler>,
    child: Option<Child>,
    _directory: Option<tempfile::TempDir>,
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Prints one table of all of them.
pub(crate) fn run(program: &Path, rounds: usize) -> io::Result<()> {
    println!(
        "| change | in front | first ms | median ms | last ms | disconnects | errors | lost rows |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (kind, change) in KINDS {
        for (who, name) in ALL {
            let there = match who {
                Who::Ours => true,
                Who::Pgbouncer => Path::new(PGBOUNCER).exists(),
                Who::Haproxy => Path::new(HAPROXY).exists(),
            };
            if !there {
                println!("| {change} | {name} | not installed | | | | | |");
                continue;
            }
            let mut costs = Vec::new();
            for _ in 0..rounds.max(1) {
                costs.push(once(program, who, kind)?);
            }
            println!("| {change} | {name} | {}", row(&costs));
        }
    }
    Ok(())
}

/// Medians and, in brackets, worst runs; a run in which a client never wrote again is `never`.
fn row(costs: &[Option<Cost>]) -> String {
    let mut cells = String::new();
    for index in 0..3 {
        let mut all: Vec<f64> = costs
            .iter()
            .map(|cost| cost.as_ref().map_or(f64::INFINITY, |cost| cost.milliseconds()[index]))
            .collect();
        all.sort_by(f64::total_cmp);
        let text = |value: Option<&f64>| match value {
            Some(value) if value.is_finite() => format!("{value:.1}"),
            Some(_) | None => "never".into(),
        };
        let (median, worst) = (text(all.get(all.len() / 2)), text(all.last()));
        cells.push_str(&format!("{median} ({worst}) | "));
    }
    let worst = |of: fn(&Cost) -> usize| costs.iter().flatten().map(of).max().unwrap_or(0);
    let (disconnects, errors) = (worst(|cost| cost.disconnects), worst(|cost| cost.errors));
    format!("{cells}{disconnects} | {errors} | {} |", worst(|cost| cost.lost))
}

fn once(program: &Path, who: Who, kind: Kind) -> io::Result<Option<Cost>> {
    let mut cluster = Cluster::start()?;
    let front = match who {
        Who::Ours => ours(program, &cluster)?,
        Who::Pgbouncer => pgbouncer(&cluster)?,
        Who::Haproxy => haproxy(&cluster)?,
    };
    let writers = Writers::start(&cluster, front.port, front.database, WRITERS)?;
    writers.run(2000)?;
    let change = match kind {
        Kind::Planned => cluster.switch_over()?,
        Kind::Killed => cluster.fail_over()?,
        Kind::Back => {
            let change = cluster.fail_over()?;
            cluster.revive(change.old)?;
            change
        }
    };
    if writers.run(AFTERWARDS).is_err() {
        return Ok(None);
    }
    match writers.finish(&change) {
        Ok(cost) => Ok(Some(cost)),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
        Err(error) => Err(error),
    }
}

fn ours(program: &Path, cluster: &Cluster) -> io::Result<Front> {
    let pooler = Pooler::start(program, &cluster.entry("app"), "pool_mode = transaction")?;
    let readers =
        || pooler.console("show nodes").is_ok_and(|text| text.matches("|reader|").count() > 1);
    wait_until("two standbys", readers)?;
    Ok(Front {
        port: pooler.port,
        database: "app",
        _pooler: Some(pooler),
        child: None,
        _directory: None,
    })
}

/// A list of hosts has one port: each node is reached through an address of its own.
fn pgbouncer(cluster: &Cluster) -> io::Result<Front> {
    let port = free_port()?;
    let mut hosts = Vec::new();
    for (index, node) in cluster.nodes().iter().enumerate() {
        let host = format!("127.0.0.{}", index + 11);
        Forward::new(TcpListener::bind((host.as_str(), port))?, node.port);
        hosts.push(host);
    }
    let entry = format!(
        "app = host={} port={port} dbname=postgres user=postgres pool_size=20",
        hosts.join(",")
    );
    let settings = "pool_mode = transaction\nserver_login_retry = 1";
    let pooler = Pooler::start(Path::new(PGBOUNCER), &entry, settings)?;
    Ok(Front {
        port: pooler.port,
        database: "app",
        _pooler: Some(pooler),
        child: None,
        _directory: None,
    })
}

fn haproxy(cluster: &Cluster) -> io::Result<Front> {
    let (directory, port) = (tempfile::tempdir()?, free_port()?);
    let psql = switchyard_testkit::programs()?.join("psql");
    let check = directory.path().join("check");
    let text = format!(
        "#!/bin/sh\n{} -X -h \"$3\" -p \"$4\" -U postgres -d postgres -tAc \
         'select pg_is_in_recovery()' 2>/dev/null | grep -q f\n",
        psql.display()
    );
    std::fs::write(&check, text)?;
    let executable = Command::new("chmod").arg("755").arg(&check).arg(directory.path()).status()?;
    if !executable.success() {
        return Err(io::Error::other("chmod"));
    }
    let mut config = format!(
        "global\n  external-check\n  insecure-fork-wanted\ndefaults\n  mode tcp\n  \
         timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n  timeout check 1s\n\
         listen writer\n  bind 127.0.0.1:{port}\n  option external-check\n  \
         external-check path /usr/bin:/bin\n  external-check command {}\n  \
         default-server inter 500ms fall 1 rise 1 on-marked-down shutdown-sessions\n",
        check.display()
    );
    for (index, node) in cluster.nodes().iter().enumerate() {
        config.push_str(&format!("  server n{index} 127.0.0.1:{} check\n", node.port));
    }
    let file = directory.path().join("haproxy.cfg");
    std::fs::write(&file, config)?;
    let mut command = Command::new(HAPROXY);
    command.arg("-db").arg("-f").arg(&file).stdin(Stdio::null());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let front = Front {
        port,
        database: "postgres",
        _pooler: None,
        child: Some(child),
        _directory: Some(directory),
    };
    wait_until("HAProxy", || {
        switchyard_testkit::Client::connect(port, "postgres")
            .is_ok_and(|mut client| client.run("insert into direct values (0)").is_ok())
    })?;
    Ok(front)
}
