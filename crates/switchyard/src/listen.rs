//! Listening sockets: where, with which rights, and what is said about those that cannot be made.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::unistd::Group;
use rustix::fs::Mode;
use rustix::process::umask;
use switchyard_config::{Settings, reason};
use switchyard_io::Listener;
use switchyard_io::listener::PortSharing;

use crate::log::{Level, Log};

/// What the process listens on.
#[derive(Debug, Default)]
pub struct Opened {
    /// The sockets.
    pub listeners: Vec<Listener>,
    /// Files to remove at the end.
    pub files: Vec<PathBuf>,
}

impl Opened {
    /// Handles by which TCP listeners can be shut from any thread.
    pub fn handles(&self) -> Vec<OwnedFd> {
        self.listeners.iter().filter_map(Listener::handle).collect()
    }
}

/// Path of the unix socket; `None` if there is to be none.
pub fn unix_path(settings: &Settings) -> Option<String> {
    let directory = settings.unix_socket_dir.as_str();
    (!directory.is_empty()).then(|| format!("{directory}/.s.PGSQL.{}", settings.listen_port))
}

/// Refuses to start where another process answers on the unix socket.
pub fn check_unix(settings: &Settings) -> Result<(), String> {
    let Some(path) = unix_path(settings) else { return Ok(()) };
    let answers = match path.strip_prefix('@') {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            std::os::unix::net::SocketAddr::from_abstract_name(name)
                .is_ok_and(|address| UnixStream::connect_addr(&address).is_ok())
        }
        None => UnixStream::connect(&path).is_ok(),
    };
    if answers { Err("unix socket is in use, cannot continue".into()) } else { Ok(()) }
}

/// Opens all sockets.
pub fn open(settings: &Settings, log: &Log) -> Result<Opened, String> {
    let port = u16::try_from(settings.listen_port).map_err(|_| "listen_port is no port number")?;
    let mut opened = Opened { listeners: open_tcp(settings, port, log)?, files: Vec::new() };
    open_unix(settings, log, &mut opened)?;
    if opened.listeners.is_empty() {
        return Err("nowhere to listen on".into());
    }
    Ok(opened)
}

fn addresses(name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if name == "*" {
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        return Ok(any.map(|address| SocketAddr::new(address, port)).to_vec());
    }
    (name, port).to_socket_addrs().map(Iterator::collect).map_err(|error| {
        let text = reason(&error);
        let text = text.rsplit_once(": ").map_or(text.as_str(), |(_, words)| words);
        format!("cannot listen on {name}: getaddrinfo(): {text}")
    })
}

fn open_tcp(settings: &Settings, port: u16, log: &Log) -> Result<Vec<Listener>, String> {
    let backlog = i32::try_from(settings.listen_backlog).unwrap_or(i32::MAX);
    let sharing = if settings.so_reuseport { PortSharing::Shared } else { PortSharing::Exclusive };
    let mut listeners = Vec::new();
    for name in &settings.listen_addr.list {
        let addresses = match addresses(name, port) {
            Ok(addresses) => addresses,
            Err(line) => {
                log.write(Level::Warning, &line);
                continue;
            }
        };
        for address in addresses {
            match Listener::tcp(address, backlog, sharing) {
                Ok(listener) => {
                    log.write(Level::Log, &format!("listening on {address}"));
                    tune(&listener, settings, log);
                    listeners.push(listener);
                }
                Err(failed) => {
                    let reason = reason(&failed.error);
                    let line = format!("cannot listen on {address}: {}: {reason}", failed.name);
                    log.write(Level::Warning, &line);
                }
            }
        }
    }
    if listeners.is_empty() && !settings.listen_addr.list.is_empty() {
        let list = settings.listen_addr.list.join(",");
        return Err(format!("failed to listen on any address in listen_addr list: {list}"));
    }
    Ok(listeners)
}

/// Brings an open listener in line with tcp_defer_accept and tcp_keepalive.
pub fn tune(listener: &Listener, settings: &Settings, log: &Log) {
    if let Err(error) = listener.set_keepalive(settings.tcp_keepalive) {
        let line = format!("setsockopt/SO_KEEPALIVE failed: {}", reason(&error));
        log.write(Level::Warning, &line);
    }
    if let Err(error) = listener.set_defer_accept(settings.tcp_defer_accept) {
        let line = format!("setsockopt/TCP_DEFER_ACCEPT failed: {}", reason(&error));
        log.write(Level::Warning, &line);
    }
}

fn open_unix(settings: &Settings, log: &Log, opened: &mut Opened) -> Result<(), String> {
    let Some(path) = unix_path(settings) else { return Ok(()) };
    let is_file = !path.starts_with('@');
    if is_file {
        if fs::symlink_metadata(format!("{path}.lock")).is_ok() {
            return Err(format!("unix port {} is in use", settings.listen_port));
        }
        // Nobody answers there: it is the file of a process that died.
        let _ = fs::remove_file(&path);
    }
    let group = group(settings).map_err(|text| failed_unix(log, &path, &text))?;
    let backlog = i32::try_from(settings.listen_backlog).unwrap_or(i32::MAX);
    let mode = u32::try_from(settings.unix_socket_mode).unwrap_or(0o777) & 0o777;
    // The file is never open to more than it has to be, not even for a moment.
    let before = umask(Mode::from_raw_mode(!mode & 0o777));
    let listener = Listener::unix(&path, backlog);
    umask(before);
    let listener = listener
        .map_err(|error| failed_unix(log, &path, &format!("bind(): {}", reason(&error))))?;
    if is_file {
        if let Some(group) = group {
            chown(&path, None, Some(group)).map_err(|error| {
                failed_unix(log, &path, &format!("chown(): {}", reason(&error)))
            })?;
        }
        opened.files.push(PathBuf::from(&path));
    }
    log.write(Level::Log, &format!("listening on unix:{path}"));
    opened.listeners.push(listener);
    Ok(())
}

fn failed_unix(log: &Log, path: &str, text: &str) -> String {
    log.write(Level::Error, &format!("cannot listen on unix:{path}: {text}"));
    "failed to create unix socket".into()
}

/// The group of unix_socket_group, a name or a number.
fn group(settings: &Settings) -> Result<Option<u32>, String> {
    let name = settings.unix_socket_group.as_str();
    if name.is_empty() {
        return Ok(None);
    }
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
        Ok(None) | Err(_) => Err(format!("could not find group '{name}'")),
    }
}
