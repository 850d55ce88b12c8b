//! What start-up needs of the operating system: sockets, the pid file, the user, limits.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, geteuid, getrlimit};
use switchyard_config::{Config, Settings};
use switchyard_io::Listener;
use switchyard_io::listener::PortSharing;

use crate::log::{Level, Log};

/// Switches to a user, and refuses to work as root.
pub fn become_user(user: Option<&str>) -> Result<(), String> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let refused = "Switchyard should not run as root";
    let Some(user) = user else { return Err(refused.into()) };
    // Changing the ids of all threads of a running process needs the C library's own function;
    // starting again through setpriv does the same without it.
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let error = std::os::unix::process::CommandExt::exec(
        std::process::Command::new("setpriv")
            .args(["--reuid", user, "--regid", user, "--init-groups", "--"])
            .arg(program)
            .args(arguments),
    );
    Err(format!("cannot become user {user}: setpriv: {error}"))
}

/// Sockets to listen on, and the files to remove at the end.
pub fn open(settings: &Settings, log: &Log) -> Result<(Vec<Listener>, Vec<PathBuf>), String> {
    let port = u16::try_from(settings.listen_port).map_err(|_| "listen_port is no port number")?;
    let mut files = Vec::new();
    let unix = open_unix(settings, port, log, &mut files)?;
    let mut listeners = open_tcp(settings, port, log);
    if listeners.is_empty() && !settings.listen_addr.list.is_empty() {
        let list = settings.listen_addr.list.join(",");
        return Err(format!("failed to listen on any address in listen_addr list: {list}"));
    }
    listeners.extend(unix);
    if listeners.is_empty() {
        return Err("nowhere to listen on".into());
    }
    Ok((listeners, files))
}

fn addresses(name: &str, port: u16) -> Vec<SocketAddr> {
    if name == "*" {
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        return any.map(|address| SocketAddr::new(address, port)).to_vec();
    }
    (name, port).to_socket_addrs().map(Iterator::collect).unwrap_or_default()
}

fn open_tcp(settings: &Settings, port: u16, log: &Log) -> Vec<Listener> {
    let backlog = i32::try_from(settings.listen_backlog).unwrap_or(128);
    let sharing = if settings.so_reuseport { PortSharing::Shared } else { PortSharing::Exclusive };
    let mut listeners = Vec::new();
    for name in &settings.listen_addr.list {
        let addresses = addresses(name, port);
        if addresses.is_empty() {
            log.write(Level::Warning, &format!("cannot listen on {name}: unknown address"));
        }
        for address in addresses {
            match Listener::tcp(address, backlog, sharing) {
                Ok(listener) => {
                    log.write(Level::Log, &format!("listening on {address}"));
                    listeners.push(listener);
                }
                Err(error) => {
                    let line = format!("cannot listen on {address}: bind(): {error}");
                    log.write(Level::Warning, &line);
                }
            }
        }
    }
    listeners
}

fn open_unix(
    settings: &Settings,
    port: u16,
    log: &Log,
    files: &mut Vec<PathBuf>,
) -> Result<Option<Listener>, String> {
    let directory = settings.unix_socket_dir.as_str();
    if directory.is_empty() {
        return Ok(None);
    }
    let path = format!("{directory}/.s.PGSQL.{port}");
    let file = PathBuf::from(&path);
    if !path.starts_with('@') {
        if Path::new(&format!("{path}.lock")).exists() {
            return Err(format!("unix port {port} is in use"));
        }
        if UnixStream::connect(&file).is_ok() {
            return Err("unix socket is in use, cannot continue".into());
        }
        // A stale file of a process that died is in the way.
        let _ = fs::remove_file(&file);
    }
    let listener = Listener::unix(&path).map_err(|error| {
        log.write(Level::Error, &format!("cannot listen on unix:{path}: {error}"));
        "failed to create unix socket".to_string()
    })?;
    if !path.starts_with('@') {
        let mode = u32::try_from(settings.unix_socket_mode).unwrap_or(0o777);
        fs::set_permissions(&file, Permissions::from_mode(mode))
            .map_err(|error| format!("cannot set the mode of {path}: {error}"))?;
        files.push(file);
    }
    log.write(Level::Log, &format!("listening on unix:{path}"));
    Ok(Some(listener))
}

/// Refuses to start beside a living process with the same pid file.
pub fn check_pidfile(settings: &Settings, log: &Log) -> Result<(), String> {
    let path = settings.pidfile.as_str();
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    let pid: u32 = text.trim().parse().unwrap_or(0);
    if pid > 0 && Path::new(&format!("/proc/{pid}")).exists() {
        return Err(format!("pidfile '{path}' exists, another instance running?"));
    }
    log.write(Level::Log, "stale pidfile, removing");
    fs::remove_file(path).map_err(|error| format!("cannot remove pidfile '{path}': {error}"))
}

/// Writes the pid file.
pub fn write_pidfile(path: &str) -> Result<(), String> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| writeln!(file, "{}", std::process::id()))
        .map_err(|error| format!("cannot write pidfile '{path}': {error}"))
}

/// Server connections that the configuration allows.
pub fn server_slots(config: &Config) -> i64 {
    let users = i64::try_from(config.users.len()).unwrap_or(0).max(1);
    let slots = |database: &switchyard_config::Database| {
        let size = database.pool_size.unwrap_or(config.settings.default_pool_size);
        if database.user.is_some() { size } else { size * users }
    };
    config.databases.values().map(slots).sum()
}

/// The line about descriptors.
pub fn note_descriptors(expected: i64, clients: i64, log: &Log) {
    let limit = getrlimit(Resource::Nofile);
    let show = |limit: Option<u64>| limit.map_or("unlimited".to_string(), |n| n.to_string());
    let line = format!(
        "kernel file descriptor limit: {} (hard: {}); max_client_conn: {clients}, \
         max expected fd use: {expected}",
        show(limit.current),
        show(limit.maximum),
    );
    log.write(Level::Log, &line);
}
