//! The process as the operating system knows it: its user, its limits, its name, its pid file,
//! and its way into the background.

use std::ffi::{CString, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::unistd::{User, initgroups, setgid, setuid};
use rustix::process::{
    Pid, Resource, Rlimit, geteuid, getrlimit, setrlimit, setsid, test_kill_process,
};
use switchyard_config::{Config, Settings, reason};

use crate::log::{Level, Log, Stderr};

/// Switches to a user, and refuses to work as root. Must be called before there are threads.
pub fn become_user(name: Option<&str>) -> Result<(), String> {
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        let user = User::from_name(name).ok().flatten();
        let user = user.ok_or_else(|| format!("could not find user '{name}' to switch to"))?;
        if user.uid.as_raw() != geteuid().as_raw() {
            let plain = CString::new(name).map_err(|error| error.to_string())?;
            initgroups(&plain, user.gid).map_err(|e| format!("failed to set groups: {e}"))?;
            setgid(user.gid).map_err(|e| format!("failed to assume identity of group: {e}"))?;
            setuid(user.uid).map_err(|e| format!("failed to assume identity of user: {e}"))?;
        }
    }
    if geteuid().is_root() { Err("Switchyard should not run as root".into()) } else { Ok(()) }
}

/// Gives the process the name that tools like `ps` and `top` show. The default leaves it the name
/// of its file.
pub fn name(settings: &Settings) {
    if settings.job_name != Settings::default().job_name
        && let Ok(name) = CString::new(settings.job_name.as_str())
    {
        // A name is a convenience: without it everything works.
        let _ = rustix::thread::set_name(&name);
    }
}

/// Option of a process that was started to live in the background.
pub const BACKGROUND: &str = "--in-background";

/// Byte by which it says that it is up.
const UP: u8 = b'+';

/// Starts the process again for the background and waits until it is up or has failed.
///
/// A running program cannot be forked safely; a second one needs nothing of the first.
pub fn start_in_background() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("switchyard"));
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).arg(BACKGROUND).args(arguments);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            eprintln!("cannot start in the background: {}", reason(&error));
            return ExitCode::FAILURE;
        }
    };
    let mut byte = [0];
    let up = child.stdout.take().is_some_and(|mut pipe| pipe.read_exact(&mut byte).is_ok());
    if up && byte[0] == UP {
        return ExitCode::SUCCESS;
    }
    // The child has said on stderr and in the log why.
    let code = child.wait().ok().and_then(|status| status.code()).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1).max(1))
}

/// Leaves the terminal's session.
pub fn leave_session() -> Result<(), String> {
    setsid().map(drop).map_err(|error| format!("setsid: {error}"))
}

/// Tells who started us that we are up, and gives up the standard streams.
pub fn settle_in_background(log: &Log) -> Result<(), String> {
    log.set_stderr(Stderr::Quiet);
    let streams = || -> std::io::Result<File> {
        let pipe = std::io::stdout().as_fd().try_clone_to_owned()?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(pipe.into())
    };
    let mut pipe = streams().map_err(|error| format!("standard streams: {}", reason(&error)))?;
    // Whoever started us may be gone already.
    let _ = pipe.write_all(&[UP]);
    Ok(())
}

/// Refuses to start beside a living process with the same pid file.
pub fn check_pidfile(path: &str, log: &Log) -> Result<(), String> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    if is_alive(&text) {
        return Err(format!("pidfile '{path}' exists, another instance running?"));
    }
    log.write(Level::Log, "stale pidfile, removing");
    fs::remove_file(path)
        .map_err(|error| format!("could not remove stale pidfile '{path}': {}", reason(&error)))
}

/// Whether the process of a pid file lives. Where processes count from 1 again after each start,
/// as in containers, the file of a predecessor may name ourselves.
fn is_alive(text: &str) -> bool {
    let pid: i32 = text.trim().parse().unwrap_or(0);
    // A negative number is no process, and not to be asked about.
    let Some(pid) = Pid::from_raw(pid.max(0)) else { return false };
    if pid == rustix::process::getpid() {
        return false;
    }
    test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

/// Writes the pid file.
pub fn write_pidfile(path: &str) -> Result<(), String> {
    if Path::new(path).as_os_str().is_empty() {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
    file.and_then(|mut file| writeln!(file, "{}", std::process::id()))
        .map_err(|error| format!("could not open pidfile '{path}': {}", reason(&error)))
}

/// Raises the limit of descriptors as far as it goes, and tells it.
pub fn note_descriptors(config: &Config, users: usize, log: &Log) {
    let limit = getrlimit(Resource::Nofile);
    // Refusal leaves the limit as it was, and the line tells it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let limit = getrlimit(Resource::Nofile);
    let show = |limit: Option<u64>| limit.map_or("unlimited".to_string(), |n| n.to_string());
    let line = format!(
        "kernel file descriptor limit: {} (hard: {}); max_client_conn: {}, \
         max expected fd use: {}",
        show(limit.current),
        show(limit.maximum),
        config.settings.max_client_conn,
        expected_descriptors(config, users),
    );
    log.write(Level::Log, &line);
}

/// Descriptors for logs, listeners and the like.
const RESERVE: i64 = 10;
/// Servers of the console, as PgBouncer counts them.
const CONSOLE_SERVERS: i64 = 2;

fn expected_descriptors(config: &Config, users: usize) -> i64 {
    let users = i64::try_from(users).unwrap_or(i64::MAX);
    let servers = config.databases.values().map(|database| {
        let size = i64::try_from(config.overrides(database, "").pool_size()).unwrap_or(0);
        if database.user.is_some() { size } else { size.saturating_mul(users) }
    });
    let servers = servers.fold(CONSOLE_SERVERS, i64::saturating_add);
    config.settings.max_client_conn.saturating_add(RESERVE).saturating_add(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alive() {
        let own = std::process::id();
        for (text, alive) in [("", false), ("x", false), ("0", false), ("-1", false), ("1", true)] {
            assert_eq!(is_alive(text), alive, "{text}");
        }
        assert!(!is_alive(&format!("{own}\n")));
        assert!(!is_alive("2147483647"));
    }
}
