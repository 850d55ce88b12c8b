//! A pooler that reads a pgbouncer.ini: ours or another one.

use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{Session, directory, free_port, postgres, run, unprivileged, wait_until};

/// A running pooler.
#[derive(Debug)]
pub struct Pooler {
    /// TCP port on 127.0.0.1.
    pub port: u16,
    child: Child,
    directory: tempfile::TempDir,
}

/// Clock ticks a second in /proc; fixed by the kernel's interface.
const TICKS: u64 = 100;

/// Runs SQL through psql; answers unaligned rows without headers.
pub(crate) fn psql(
    host: &str,
    port: u16,
    user: &str,
    database: &str,
    sql: &str,
) -> io::Result<String> {
    run(Command::new(postgres::programs()?.join("psql"))
        .env("PGPASSWORD", "secret")
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", host, "-U", user])
        .args(["-p", &port.to_string(), "-d", database, "-c", sql]))
}

impl Pooler {
    /// Starts `program` with these `[databases]` lines and `[pgbouncer]` lines; users `postgres`
    /// and `app` have the password `secret`.
    pub fn start(program: &Path, databases: &str, settings: &str) -> io::Result<Self> {
        Self::start_under(&[], program, databases, settings)
    }

    /// The same under another command, which runs the program that its last argument names.
    pub fn start_under(
        wrapper: &[&str],
        program: &Path,
        databases: &str,
        settings: &str,
    ) -> io::Result<Self> {
        let (directory, port) = (directory()?, free_port()?);
        let at = directory.path().display();
        let own = settings.lines().any(|line| line.starts_with("logfile"));
        let logfile = if own { String::new() } else { format!("logfile = {at}/log\n") };
        let ini = format!(
            "[databases]\n{databases}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir = {at}\nauth_file = {at}/users\n\
             {logfile}admin_users = postgres\nauth_type = trust\n{settings}\n"
        );
        std::fs::write(directory.path().join("pooler.ini"), ini)?;
        let users = "\"postgres\" \"secret\"\n\"app\" \"secret\"\n";
        std::fs::write(directory.path().join("users"), users)?;
        let mut command = match wrapper {
            [] => unprivileged(program),
            [first, rest @ ..] => {
                let mut command = unprivileged(Path::new(first));
                command.args(rest).arg(program);
                command
            }
        };
        command.arg("-q").arg(directory.path().join("pooler.ini"));
        // A group of its own: Ctrl-C at a terminal is for the one who started it.
        command.process_group(0);
        // Whoever reads our own output must not wait for the pooler's end.
        let errors = File::create(directory.path().join("stderr"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let child = command.spawn()?;
        let pooler = Pooler { port, child, directory };
        wait_until("pooler", || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(pooler)
    }

    /// The ini file.
    pub fn ini(&self) -> PathBuf {
        self.directory.path().join("pooler.ini")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log so far.
    pub fn log(&self) -> io::Result<String> {
        std::fs::read_to_string(self.directory.path().join("log"))
    }

    /// Runs SQL as a user on a database.
    pub fn sql(&self, user: &str, database: &str, sql: &str) -> io::Result<String> {
        psql("127.0.0.1", self.port, user, database, sql)
    }

    /// Opens a session that stays.
    pub fn session(&self, user: &str, database: &str) -> io::Result<Session> {
        Session::open(self.port, user, database)
    }

    /// Runs a console command.
    pub fn console(&self, command: &str) -> io::Result<String> {
        self.sql("postgres", "pgbouncer", command)
    }

    /// CPU time of the process and all its threads, in user and kernel mode.
    pub fn cpu(&self) -> io::Result<Duration> {
        let fields = stat_fields(&format!("/proc/{}/stat", self.child.id()))?;
        Ok(spent(&fields))
    }

    /// CPU time of the threads that run now, to the nanosecond: for shares that are too small for
    /// the ticks of `cpu`.
    pub fn cpu_of_threads(&self) -> io::Result<Duration> {
        let mut spent = Duration::ZERO;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            let time = text.split_whitespace().next().and_then(|time| time.parse().ok());
            spent += Duration::from_nanos(time.unwrap_or(0));
        }
        Ok(spent)
    }

    /// CPU time of the processes that it has started, as far as they still run.
    pub fn cpu_of_children(&self) -> io::Result<Duration> {
        // Who has ended meanwhile has no such file.
        let stats =
            self.children()?.into_iter().map(|pid| stat_fields(&format!("/proc/{pid}/stat")));
        Ok(stats.flatten().map(|fields| spent(&fields)).sum())
    }

    /// The processes that it has started and that still run, by number.
    pub fn children(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Ok(fields) = stat_fields(&format!("/proc/{pid}/stat")) else { continue };
            if fields.get(1) == Some(&u64::from(self.child.id())) {
                found.push(pid);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Resident memory in KiB.
    pub fn resident(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        Ok(line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0))
    }

    /// Runs pgbench's read-only script; answers the number of transactions.
    pub fn pgbench(&self, mode: &str, clients: u32, seconds: u32) -> io::Result<u64> {
        let (clients, seconds) = (clients.to_string(), seconds.to_string());
        self.pgbench_with(&["-S", "-M", mode, "-c", &clients, "-T", &seconds], "prefer")
    }

    /// A pgbench command with these arguments.
    pub fn pgbench_command(&self, arguments: &[&str], sslmode: &str) -> io::Result<Command> {
        let mut command = Command::new(postgres::programs()?.join("pgbench"));
        command.env("PGSSLMODE", sslmode).env("PGPASSWORD", "secret").env("PGUSER", "postgres");
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string());
        command.arg("-n").args(arguments).arg("postgres");
        Ok(command)
    }

    /// Runs pgbench with these arguments; answers the number of transactions.
    pub fn pgbench_with(&self, arguments: &[&str], sslmode: &str) -> io::Result<u64> {
        let text = run(&mut self.pgbench_command(arguments, sslmode)?)?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("number of transactions actually processed:"));
        let count = line.and_then(|line| line.trim().split('/').next()?.parse().ok());
        count.ok_or_else(|| io::Error::other(text.clone()))
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

/// The fields of a stat file of proc(5) behind the name, from the state on; words count as 0.
fn stat_fields(path: &str) -> io::Result<Vec<u64>> {
    let stat = std::fs::read_to_string(path)?;
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(after.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

/// Time in user and kernel mode.
fn spent(fields: &[u64]) -> Duration {
    let ticks: u64 = fields.iter().skip(11).take(2).sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
