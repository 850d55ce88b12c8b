//! New servers: where to, the connection, the login.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::SystemTime;

use switchyard_core::client::untracked::Kept;
use switchyard_core::ids::{LaneId, ServerId};
use switchyard_core::params::Params;
use switchyard_core::pool::{OpenFailure, Want};
use switchyard_core::server::link::Link;
use switchyard_core::server::login::{ServerLoginError, ServerLoginStep, Welcome};
use switchyard_core::server::request::HiddenQuery;
use switchyard_core::switchover::probe::SignalKind;
use switchyard_core::switchover::view::NodeId;
use switchyard_io::poller::Watch;
use switchyard_io::{Key, Ready, Remote, Stream};
use switchyard_wire::frame;

use crate::log::Level;
use crate::options;
use crate::pools::{SharedPool, Welcome as PoolWelcome};
use crate::snapshot::Logged;
use crate::worker::buffer::Pending;
use crate::worker::message::Message;
use crate::worker::server::{Server, Stage, Unread, Use};
use crate::worker::{Slot, Source, Worker};

/// A permit to open a server, on its way to a connection.
#[derive(Debug)]
pub struct Opening {
    /// The pool.
    pub pool: Arc<SharedPool>,
    /// The permit.
    pub id: ServerId,
    /// The node.
    pub lane: LaneId,
    /// Its name, empty for plain entries.
    pub node: String,
    /// Host as configured.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Worker {
    /// Opens a server for a permit.
    pub(super) fn open(&mut self, pool: &Arc<SharedPool>, id: ServerId, lane: LaneId) {
        let opening = self.target(pool, id, lane);
        if opening.host.starts_with('/') || opening.host.starts_with('@') {
            let path = format!("{}/.s.PGSQL.{}", opening.host, opening.port);
            return self.connect(opening, Remote::Unix(path));
        }
        if let Ok(address) = opening.host.parse::<IpAddr>() {
            let remote = Remote::Tcp(SocketAddr::new(address, opening.port));
            return self.connect(opening, remote);
        }
        let (host, port) = (opening.host.clone(), opening.port);
        let (shared, worker) = (Arc::clone(&self.shared), self.id);
        let done = move |found: std::io::Result<Vec<SocketAddr>>| {
            shared.send(worker, Message::Resolved(Box::new(opening), found))
        };
        // A lookup may take seconds: it has a thread of its own for as long as it lasts.
        std::thread::spawn(move || {
            done((host.as_str(), port).to_socket_addrs().map(Iterator::collect));
        });
    }

    /// Where a permit leads.
    fn target(&self, pool: &Arc<SharedPool>, id: ServerId, lane: LaneId) -> Opening {
        let entry = &pool.entry;
        let definition = entry.definition();
        let pool = Arc::clone(pool);
        if definition.topology_query.is_some()
            && let Some(node) = entry.view().node(NodeId(lane.0))
        {
            let (node, host, port) = (node.name.clone(), node.host.clone(), node.port);
            return Opening { pool, id, lane, node, host, port };
        }
        let port = definition.port;
        let host = match &definition.hosts[..] {
            [] => self.snapshot.config.settings.unix_socket_dir.clone(),
            [host] => host.clone(),
            hosts => hosts[entry.turn() % hosts.len()].clone(),
        };
        Opening { pool, id, lane, node: String::new(), host, port }
    }

    /// Answer of a name lookup.
    pub(super) fn resolved(&mut self, opening: Opening, found: std::io::Result<Vec<SocketAddr>>) {
        match found.as_deref() {
            Ok([_, ..]) => {
                let addresses = found.unwrap_or_default();
                let index = opening.pool.entry.turn() % addresses.len();
                self.connect(opening, Remote::Tcp(addresses[index]));
            }
            Ok([]) | Err(_) => {
                let line = format!("DNS lookup failed: {}: result=0", opening.host);
                self.shared.log.write(Level::Warning, &line);
                self.give_up(&opening, "server DNS lookup failed");
            }
        }
    }

    /// A permit came to nothing before there was a connection.
    fn give_up(&mut self, opening: &Opening, reason: &str) {
        let (id, now) = (opening.id, self.now);
        let failure = OpenFailure::connect(reason);
        self.shared.suspect(&opening.pool, opening.lane, SignalKind::ConnectFailed);
        let (entry, user) = (&opening.pool.entry.name, &opening.pool.user);
        let at = format!("{entry}/{user}@{}:{}", opening.host, opening.port);
        let line = format!("S-0x0: {at} closing because: {reason} (age=0s)");
        self.shared.note(self.snapshot.log.disconnections, "", line.trim_start());
        opening.pool.decide(&mut self.orders, |inner| inner.machine.open_failed(now, id, failure));
    }

    fn connect(&mut self, opening: Opening, remote: Remote) {
        let login = options::server_login(&self.snapshot, &opening.pool);
        let Ok(stream) = Stream::connect(&remote) else {
            return self.give_up(&opening, "connect failed");
        };
        if let Err(failed) = stream.set_options(&self.snapshot.sockets) {
            self.warn_of_step(&stream, &failed);
            return self.give_up(&opening, "connect failed");
        }
        let address = match &remote {
            Remote::Tcp(address) => address.to_string(),
            Remote::Unix(_) => format!("unix:{}", opening.port),
        };
        let pool = Arc::clone(&opening.pool);
        let slot = self.servers.insert(Slot { pool, id: opening.id, here: None });
        let mut server = Box::new(Server {
            id: opening.id,
            number: self.shared.number(),
            pool: opening.pool,
            lane: opening.lane,
            node: opening.node,
            stream: stream.into(),
            slot,
            home: self.id,
            purpose: Want::Writer,
            stage: Stage::Connecting(Box::new(login)),
            input: Vec::new(),
            output: Pending::default(),
            unread: Unread::No,
            remote,
            address,
            host: opening.host,
            key: Vec::new(),
            pid: 0,
            started: self.now,
            started_at: SystemTime::now(),
            asked: self.now,
            heard: self.now,
            local: None,
            cancels: 0,
            kept: Kept::Nothing,
        });
        let token = Source::Server(slot).token();
        // Failure shows as a connection that never becomes writable: the timeout ends it.
        let _ = self.poller.register(server.stream.socket(), token, Watch::Both);
        if let Some(place) = self.servers.get_mut(slot) {
            place.here = Some(server);
        }
    }

    /// A connection attempt ended.
    pub(super) fn server_connected(&mut self, key: Key, event: Ready) {
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        if !event.writable && !event.closed {
            return;
        }
        if server.stream.peek_socket().connected().is_err() {
            return self.server_failed(key, "connect failed");
        }
        server.local = server.stream.peek_socket().local_addr();
        if self.snapshot.log.connections == Logged::Yes {
            let from = server.local.map(|at| format!(" (from {at})")).unwrap_or_default();
            let line = format!("{} new connection to server{from}", server.prefix());
            self.shared.log.write(Level::Log, &line);
        }
        if !self.ask_for_tls(key) {
            self.begin_login(key);
        }
    }

    /// Sends the startup packet.
    pub(super) fn begin_login(&mut self, key: Key) {
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let stage = std::mem::replace(&mut server.stage, Stage::Between);
        let (Stage::Connecting(mut login) | Stage::Securing(mut login)) = stage else { return };
        login.bind(server.stream.tls().and_then(|tls| tls.endpoint()));
        let mut bytes = Vec::new();
        login.start(&mut bytes);
        server.stage = Stage::Login(login);
        if server.output.send(&mut server.stream, &bytes).is_err() {
            return self.server_failed(key, "connect failed");
        }
        let watch = if server.output.is_empty() { Watch::Input } else { Watch::Both };
        self.watch_server(key, watch);
    }

    /// Bytes of a server that is logging us in; answers how many were used.
    pub(super) fn server_login_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let mut used = 0;
        loop {
            let (head, body) = match frame::split(&data[used..]) {
                Ok(Some((head, body, _))) => (head, body),
                Ok(None) => return used,
                Err(_) => {
                    self.server_failed(key, "bad pkt header");
                    return data.len();
                }
            };
            let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
                return data.len();
            };
            let Stage::Login(login) = &mut server.stage else { return used };
            let mut out = Vec::new();
            let step = login.handle_message(head.tag, body, &mut out);
            used += head.len;
            if server.output.send(&mut server.stream, &out).is_err() {
                self.server_failed(key, "server connection closed");
                return data.len();
            }
            match step {
                Ok(ServerLoginStep::More) => {}
                Ok(ServerLoginStep::Done(welcome)) => {
                    self.server_welcomed(key, welcome);
                    return used;
                }
                Err(error) => {
                    self.login_refused(key, &error);
                    return data.len();
                }
            }
        }
    }

    fn login_refused(&mut self, key: Key, error: &ServerLoginError) {
        let Some(server) = self.servers.get(key).and_then(|slot| slot.here.as_ref()) else {
            return;
        };
        let refusal = options::refusal(error);
        if let Some((level, line)) = refusal.line {
            self.shared.log.write(level, &format!("{} {line}", server.prefix()));
        }
        self.open_failed(key, refusal.failure);
    }

    /// A server is logged in: its parameters become the pool's welcome.
    fn server_welcomed(&mut self, key: Key, welcome: Welcome) {
        let now = self.now;
        let tracked = Arc::clone(&self.snapshot.tracked);
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let mut params = Params::unset(&tracked);
        let mut untracked = Vec::new();
        let standby = !server.pool.lock().machine.is_writer(server.lane);
        for (name, mut value) in welcome.parameters {
            // Clients of a cluster come for its writer, whoever is the first to log us in.
            if standby && name == b"in_hot_standby" {
                value = b"off".into();
            }
            match tracked.index(&name) {
                Some(index) => params.set(index, &value),
                None => untracked.push((name, value)),
            }
        }
        server.key = welcome.key;
        server.pid = welcome.pid;
        server.stage = Stage::Ready(Link::new(params.clone()), Use::Idle);
        let (id, lane, pool) = (server.id, server.lane, Arc::clone(&server.pool));
        pool.decide(&mut self.orders, |inner| {
            if inner.machine.is_writer(lane) || inner.welcome.is_none() {
                inner.welcome = Some(Arc::new(PoolWelcome { untracked, params }));
            }
            inner.machine.opened(now, id);
        });
        match pool.entry.definition().connect_query.clone() {
            Some(sql) => self.test(key, HiddenQuery::Connect, sql.as_bytes()),
            None => self.give_back(key),
        }
    }
}
