//! Real PostgreSQL servers and poolers in front of them, driven from outside: programs, files and
//! sockets only. For tests and benchmarks; everything started here ends with its value.

mod certificates;
mod client;
mod cluster;
mod endurance;
mod extended;
mod faults;
mod forward;
mod model;
mod names;
mod patroni;
mod pooler;
mod postgres;
mod python;
pub mod raw;
mod rules;
mod session;
mod space;
mod wall;
mod workplace;
mod writers;

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

pub use certificates::{Certificates, KeyKind};
pub use client::Client;
pub use cluster::{Change, Cluster};
pub use endurance::{Endurance, Holdings, endure};
pub use extended::Messages;
pub use faults::first_commit;
pub use forward::Forward;
pub use model::{Model, Peer};
pub use names::NameServer;
pub use patroni::{Member, PROGRAMS, Patroni};
pub use pooler::Pooler;
pub use postgres::{Postgres, programs};
pub use python::{Python, Venv};
pub use raw::Raw;
pub use rules::Rules;
pub use session::Session;
pub use space::Space;
pub use wall::Wall;
pub use workplace::{Running, Said, Workplace, freeze, signal};
pub use writers::{Cost, Writers};

/// Unprivileged user that servers run as when we are root, which PostgreSQL refuses.
pub(crate) const USER: &str = "postgres";

/// Longest wait for something to come up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command that runs as an unprivileged user.
pub(crate) fn unprivileged(program: &Path) -> Command {
    if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// Runs a command to its end; its failure is an error with what it printed.
pub fn run(command: &mut Command) -> io::Result<String> {
    let Output { status, stdout, stderr } = command.output()?;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(text);
    }
    let stderr = String::from_utf8_lossy(&stderr);
    Err(io::Error::other(format!("{command:?}: {status}\n{text}{stderr}")))
}

/// A TCP port that nobody uses at this moment.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Asks again and again until the answer is yes.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> io::Result<()> {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no {what}")));
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(())
}

/// A directory that the unprivileged user owns.
pub(crate) fn directory() -> io::Result<tempfile::TempDir> {
    let directory = tempfile::Builder::new().prefix("switchyard").tempdir()?;
    if rustix::process::geteuid().is_root() {
        run(Command::new("chown").arg(USER).arg(directory.path()))?;
    }
    Ok(directory)
}
