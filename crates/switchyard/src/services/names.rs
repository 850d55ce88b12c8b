//! Looking up names of hosts, off the workers. One lookup of a name serves all who wait for it.
//!
//! The system's resolver is asked, which knows what `/etc/nsswitch.conf` says; with `resolv_conf`
//! the name servers of that file are, and `/etc/hosts`. How long answers hold is said in
//! `switchyard_core::names`.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolveHosts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{TokioResolver, system_conf};
use switchyard_config::reason;
use switchyard_core::ids::WorkerId;
use switchyard_core::names::{NameRow, Names, Patience, Reply};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, oneshot};

use super::{House, Task, lock};
use crate::log::{Level, Log};

/// Longest lookup.
const LONGEST: Duration = Duration::from_secs(30);
/// How old an answer may be that a probe goes by: its node may have moved with its name.
const PROBE_AGE: Duration = Duration::from_secs(1);
/// Number of a failed lookup in the log: the name has no address, or nobody answered.
const NOT_FOUND: u8 = 4;
const NO_ANSWER: u8 = 12;

/// Who waits for an answer.
#[derive(Debug)]
enum Asker {
    /// A worker that opens the server of this number.
    Opening(WorkerId, u64),
    /// A task of the services thread.
    Task(oneshot::Sender<Vec<SocketAddr>>),
    /// Nobody: it is enough that the answer is known.
    Nobody,
}

/// Whom to ask.
enum Resolver {
    System,
    Own(Box<TokioResolver>),
}

/// The names that are known.
pub struct NameService {
    names: Mutex<Names<SocketAddr, Asker>>,
    resolver: Resolver,
    tasks: UnboundedSender<Task>,
    /// Told whenever a name has lost an address.
    moves: Notify,
}

impl NameService {
    /// A service that asks the system, or the servers of a file if one is named.
    pub(super) fn new(resolv_conf: &str, tasks: UnboundedSender<Task>) -> Result<Self, String> {
        let resolver = match resolv_conf {
            "" => Resolver::System,
            path => Resolver::Own(Box::new(resolver(path)?)),
        };
        let (names, moves) = (Mutex::default(), Notify::new());
        Ok(NameService { names, resolver, tasks, moves })
    }

    /// A worker needs the addresses of a name. `None` means that they come later, as a message.
    pub fn find(&self, host: &str, worker: WorkerId, number: u64) -> Option<Vec<SocketAddr>> {
        match self.ask(host, Asker::Opening(worker, number), Patience::Remembered) {
            Reply::Known(addresses) => Some(addresses),
            Reply::Failed => Some(Vec::new()),
            Reply::Look | Reply::Wait => None,
        }
    }

    /// All names, for operators.
    pub fn rows(&self) -> Vec<NameRow<SocketAddr>> {
        lock(&self.names).rows(Instant::now())
    }

    /// How many names are known, and how many are being looked up.
    pub fn counts(&self) -> (usize, usize) {
        let names = lock(&self.names);
        (names.len(), names.lookups())
    }

    /// The addresses of a name, for a probe.
    pub(super) async fn addresses(&self, host: &str) -> Vec<SocketAddr> {
        let (sender, receiver) = oneshot::channel();
        match self.ask(host, Asker::Task(sender), Patience::Fresh(PROBE_AGE)) {
            Reply::Known(addresses) => addresses,
            Reply::Failed => Vec::new(),
            Reply::Look | Reply::Wait => receiver.await.unwrap_or_default(),
        }
    }

    /// Has a name looked up: it may lead to another place than the one that is meant.
    pub fn refresh(&self, host: &str) {
        self.refresh_if(host, PROBE_AGE);
    }

    /// Has a name looked up if its last answer is older than this.
    pub(super) fn refresh_if(&self, host: &str, age: Duration) {
        let is_name = !host.starts_with(['/', '@']) && host.parse::<IpAddr>().is_err();
        if is_name {
            self.ask(host, Asker::Nobody, Patience::Fresh(age));
        }
    }

    /// Waits until a name does not stand for an address any more. To be used on the services
    /// thread only, where lookups end.
    pub(super) async fn until_moved(&self, host: &str, from: IpAddr) {
        loop {
            let moved = self.moves.notified();
            if !lock(&self.names).stands_for(host, |known| known.ip() == from) {
                return;
            }
            moved.await;
        }
    }

    fn ask(&self, host: &str, asker: Asker, patience: Patience) -> Reply<SocketAddr> {
        let reply = lock(&self.names).ask(Instant::now(), host, asker, patience);
        if reply == Reply::Look {
            // The services thread lives as long as the process.
            let _ = self.tasks.send(Task::LookUp(host.into()));
        }
        reply
    }

    /// Looks a name up and tells all who wait.
    pub(super) async fn look_up(self: Arc<Self>, host: String, house: Arc<dyn House>, log: &Log) {
        let found = match tokio::time::timeout(LONGEST, self.resolve(&host)).await {
            Ok(found) => found,
            Err(_) => Err(NO_ANSWER),
        };
        let found = found.unwrap_or_else(|number| {
            let line = format!("DNS lookup failed: {host}: result={number}");
            log.write(Level::Warning, &line);
            Vec::new()
        });
        let terms = house.name_terms();
        let news = lock(&self.names).answered(Instant::now(), &host, &found, terms);
        if !news.lost.is_empty() {
            house.addresses_lost(&host, &news.lost);
            self.moves.notify_waiters();
        }
        for (asker, addresses) in news.told {
            match asker {
                Asker::Opening(worker, number) => house.resolved(worker, number, addresses),
                // The probe may have been given up.
                Asker::Task(sender) => drop(sender.send(addresses)),
                Asker::Nobody => {}
            }
        }
    }

    async fn resolve(&self, host: &str) -> Result<Vec<SocketAddr>, u8> {
        let found: Vec<SocketAddr> = match &self.resolver {
            Resolver::System => {
                let found = tokio::net::lookup_host((host, 0)).await;
                found.map_err(|_| NOT_FOUND)?.collect()
            }
            Resolver::Own(resolver) => {
                let found = resolver.lookup_ip(host).await.map_err(|error| match error {
                    NetError::Timeout | NetError::NoConnections => NO_ANSWER,
                    _ => NOT_FOUND,
                })?;
                found.iter().map(|address| SocketAddr::new(address, 0)).collect()
            }
        };
        if found.is_empty() { Err(NOT_FOUND) } else { Ok(found) }
    }
}

/// A resolver by a file in the syntax of resolv.conf. A name server may have a port: `ADDR:PORT`,
/// `[ADDR]:PORT`.
fn resolver(path: &str) -> Result<TokioResolver, String> {
    let wrong = |error: String| format!("cannot use resolv_conf {path}: {error}");
    let text = std::fs::read_to_string(path).map_err(|error| wrong(reason(&error)))?;
    let (plain, ports) = without_ports(&text);
    let (mut config, mut options) =
        system_conf::parse_resolv_conf(plain).map_err(|error| wrong(error.to_string()))?;
    for (server, port) in config.name_servers.iter_mut().zip(ports) {
        set_port(server, port);
    }
    // How long answers hold is decided elsewhere.
    options.cache_size = 0;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Always;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(|error| wrong(error.to_string()))
}

/// Whether a file may be given as `resolv_conf`.
pub fn check(path: &str) -> Result<(), String> {
    if path.is_empty() { Ok(()) } else { resolver(path).map(drop) }
}

/// The file without ports of name servers, and those ports in the same order.
fn without_ports(text: &str) -> (String, Vec<Option<u16>>) {
    let mut ports = Vec::new();
    let mut plain = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver") {
            let address = words.next().and_then(|word| word.parse::<SocketAddr>().ok());
            ports.push(address.map(|address| address.port()));
            if let Some(address) = address {
                plain.push_str(&format!("nameserver {}\n", address.ip()));
                continue;
            }
        }
        plain.push_str(line);
        plain.push('\n');
    }
    (plain, ports)
}

fn set_port(server: &mut NameServerConfig, port: Option<u16>) {
    for connection in &mut server.connections {
        connection.port = port.unwrap_or(connection.port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_may_have_ports() {
        let (plain, ports) = without_ports(
            "# x\nnameserver 10.0.0.1\nnameserver 10.0.0.2:5353\nnameserver [::1]:54\nsearch a.b\n",
        );
        let expected =
            "# x\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver ::1\nsearch a.b\n";
        assert_eq!(plain, expected);
        assert_eq!(ports, [None, Some(5353), Some(54)]);
        assert!(check("").is_ok());
        let missing = check("/nowhere").map_err(|text| text.contains("cannot use resolv_conf"));
        assert_eq!(missing, Err(true));
    }
}
