//! A directory in which a pooler is run with files of our making, for tests of its start, its
//! files and its end.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::{directory, free_port, unprivileged, wait_until};

/// A directory with a port of its own.
#[derive(Debug)]
pub struct Workplace {
    /// TCP port on 127.0.0.1.
    pub port: u16,
    directory: tempfile::TempDir,
}

/// What a program said until its end.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error, without the time and process of log lines.
    pub stderr: String,
}

/// A process that ends with its value.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Workplace {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        Ok(Workplace { port: free_port()?, directory: directory()? })
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) -> io::Result<()> {
        std::fs::write(self.path(name), text)
    }

    /// A file's text; empty if there is none.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Writes `pooler.ini`: a port, a socket, a log and an admin, and then these lines.
    pub fn ini(&self, lines: &str) -> io::Result<()> {
        let (port, at) = (self.port, self.directory.path().display());
        self.write("users", "\"postgres\" \"secret\"\n")?;
        self.write(
            "pooler.ini",
            &format!(
                "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir = {at}\nlogfile = {at}/log\nadmin_users = postgres\n\
                 auth_type = trust\nauth_file = {at}/users\n{lines}\n"
            ),
        )
    }

    /// The program, run here by an unprivileged user.
    pub fn command(&self, program: &Path) -> Command {
        self.here(unprivileged(program))
    }

    /// The program, run here by ourselves, whoever we are.
    pub fn own_command(&self, program: &Path) -> Command {
        self.here(Command::new(program))
    }

    fn here(&self, mut command: Command) -> Command {
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    /// Runs a program to its end.
    pub fn run(&self, command: &mut Command) -> io::Result<Said> {
        let (out, err) = (self.path("stdout"), self.path("stderr"));
        // Into files: a child that goes into the background may keep a pipe open.
        command.stdout(File::create(&out)?).stderr(File::create(&err)?);
        let code = command.status()?.code();
        let stderr = std::fs::read_to_string(err)?;
        let lines = stderr.lines().map(|line| match line.split_once("] ") {
            Some((head, text)) if head.contains(" [") => text,
            _ => line,
        });
        let stderr = lines.collect::<Vec<_>>().join("\n");
        Ok(Said { code, stdout: std::fs::read_to_string(out)?, stderr })
    }

    /// Starts a program that goes on; its standard error goes to the file `stderr`.
    pub fn start(&self, command: &mut Command) -> io::Result<Running> {
        command.stdout(Stdio::null()).stderr(File::create(self.path("stderr"))?);
        Ok(Running { child: command.spawn()? })
    }

    /// Starts the program on `pooler.ini` and waits until it is up.
    pub fn up(&self, program: &Path) -> io::Result<Running> {
        let running = self.start(self.command(program).args(["-q", "pooler.ini"]))?;
        wait_until("process up", || self.read("log").contains("process up: "))?;
        Ok(running)
    }
}

impl Running {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) -> io::Result<()> {
        signal(self.pid(), name)
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let mut status = None;
        wait_until("end of the process", || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        status.ok_or_else(|| io::Error::other("no status"))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

/// Sends a signal to a process.
pub fn signal(pid: u32, name: &str) -> io::Result<()> {
    crate::run(Command::new("kill").args([&format!("-{name}"), &pid.to_string()])).map(drop)
}

/// Stops a process until it gets the signal CONT, and waits until all its threads stand still: the
/// signal is heard by one of them first, and the others may do something meanwhile.
pub fn freeze(pid: u32) -> io::Result<()> {
    signal(pid, "STOP")?;
    let stands = |stat: &str| {
        let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
        state == Some("T")
    };
    wait_until("threads that stand still", || {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let stats = tasks.map(|task| std::fs::read_to_string(task.path().join("stat")));
        stats.flatten().all(|stat| stands(&stat))
    })
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
