//! Where a permit to open a server leads: the host, and the wait for its addresses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use switchyard_core::ids::{LaneId, ServerId};
use switchyard_core::pool::{self, OpenFailure};
use switchyard_core::switchover::probe::SignalKind;
use switchyard_core::switchover::view::{NodeId, View};
use switchyard_io::{Key, Remote};

use crate::entries::Entry;
use crate::log::Level;
use crate::pools::SharedPool;
use crate::shared::Shared;
use crate::worker::Worker;
use crate::worker::server::{Server, Stage, pointer};

/// A permit to open a server, on its way to a connection.
#[derive(Debug)]
pub(super) struct Opening {
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
    /// Number of the connection.
    pub number: u64,
    /// When the attempt began.
    pub started: Instant,
    /// Addresses of the host that may be tried after this one.
    pub rest: Vec<SocketAddr>,
}

impl Opening {
    fn prefix(&self) -> String {
        let (database, user) = (&self.pool.entry.name, &self.pool.user);
        let at = if self.node.is_empty() { String::new() } else { format!("@{}", self.node) };
        let host = if is_directory(&self.host) { "unix" } else { self.host.as_str() };
        format!("S-{:#x}: {database}{at}/{user}@{host}:{}", pointer(self.number), self.port)
    }
}

/// Whether a host stands for a directory with a unix socket.
pub(super) fn is_directory(host: &str) -> bool {
    host.starts_with('/') || host.starts_with('@')
}

impl Worker {
    /// Opens a server for a permit.
    pub(super) fn open(&mut self, pool: &Arc<SharedPool>, id: ServerId, lane: LaneId) {
        let opening = self.target(pool, id, lane);
        if is_directory(&opening.host) {
            let path = format!("{}/.s.PGSQL.{}", opening.host, opening.port);
            return self.connect(opening, Remote::Unix(path));
        }
        if opening.host.is_empty() {
            let line = format!("unix socket dir not configured: {}", opening.pool.entry.name);
            self.shared.log.write(Level::Error, &line);
            return self.give_up(&opening, "cannot connect");
        }
        if let Ok(address) = opening.host.parse::<IpAddr>() {
            let remote = Remote::Tcp(SocketAddr::new(address, opening.port));
            return self.connect(opening, remote);
        }
        let (number, host) = (opening.number, opening.host.clone());
        // The answer may come from another thread before the question has returned.
        self.naming.insert(number, opening);
        let names = self.shared.services().map(|services| services.names());
        let found = names.map_or(Some(Vec::new()), |names| names.find(&host, self.id, number));
        if let Some(addresses) = found {
            self.resolved(number, addresses);
        }
    }

    /// Where a permit leads.
    fn target(&self, pool: &Arc<SharedPool>, id: ServerId, lane: LaneId) -> Opening {
        let entry = &pool.entry;
        let definition = entry.definition();
        let (number, started) = (self.shared.number(), self.now);
        let opening = |node, host, port| {
            let (pool, rest) = (Arc::clone(pool), Vec::new());
            Opening { pool, id, lane, node, host, port, number, started, rest }
        };
        if definition.topology_query.is_some()
            && let Some(node) = entry.view().node(NodeId(lane.0))
        {
            return opening(node.name.clone(), node.host.clone(), node.port);
        }
        let host = match &definition.hosts[..] {
            [] => self.snapshot.config.settings.unix_socket_dir.clone(),
            [host] => host.clone(),
            hosts => hosts[pool.lock().machine.host_of(id) % hosts.len()].clone(),
        };
        opening(String::new(), host, definition.port)
    }

    /// Answer of a name lookup; without addresses it has failed.
    pub(super) fn resolved(&mut self, number: u64, mut addresses: Vec<SocketAddr>) {
        // It may have been given up meanwhile.
        let Some(mut opening) = self.naming.remove(&number) else {
            return self.peer_resolved(number, &addresses);
        };
        if addresses.is_empty() {
            return self.give_up(&opening, "server DNS lookup failed");
        }
        addresses.iter_mut().for_each(|address| address.set_port(opening.port));
        let first = addresses.remove(0);
        opening.rest = addresses;
        self.connect(opening, Remote::Tcp(first));
    }

    /// A connection attempt was refused: the name may have another address.
    pub(super) fn try_next_address(&mut self, key: Key) {
        let server = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut());
        let Some(server) = server else { return };
        let rest = match &mut server.stage {
            Stage::Connecting(_, rest) if !rest.is_empty() => std::mem::take(rest),
            Stage::Connecting(..)
            | Stage::Securing(_)
            | Stage::Between
            | Stage::Login(_)
            | Stage::Ready(..)
            | Stage::Asked(_) => return self.server_failed(key, "connect failed"),
        };
        let mut opening = Opening {
            pool: Arc::clone(&server.pool),
            id: server.id,
            lane: server.lane,
            node: server.node.clone(),
            host: server.host.clone(),
            port: rest[0].port(),
            number: self.shared.number(),
            started: server.started,
            rest,
        };
        let next = opening.rest.remove(0);
        self.drop_server(key, "connect failed");
        self.connect(opening, Remote::Tcp(next));
    }

    /// A permit came to nothing before there was a connection.
    pub(super) fn give_up(&mut self, opening: &Opening, reason: &str) {
        let (id, now) = (opening.id, self.now);
        let failure = OpenFailure::connect(reason);
        self.shared.suspect(&opening.pool, opening.lane, SignalKind::ConnectFailed);
        self.note_given_up(opening, reason);
        opening.pool.decide(&mut self.orders, |inner| inner.machine.open_failed(now, id, failure));
    }

    fn note_given_up(&self, opening: &Opening, reason: &str) {
        let age = self.now.saturating_duration_since(opening.started).as_secs();
        let line = format!("closing because: {reason} (age={age}s)");
        self.shared.note(self.snapshot.log.disconnections, &opening.prefix(), &line);
    }

    /// The pool has withdrawn a permit that waits for a name.
    pub(super) fn abort_naming(&mut self, pool: &Arc<SharedPool>, id: ServerId, reason: &str) {
        let ours = |opening: &Opening| opening.id == id && Arc::ptr_eq(&opening.pool, pool);
        let found = self.naming.extract_if(|_, opening| ours(opening)).map(|(_, opening)| opening);
        for opening in found.collect::<Vec<_>>() {
            self.note_given_up(&opening, reason);
        }
    }

    /// Gives up what waits for the address of a node that answers nothing.
    pub(super) fn stop_vain_naming(&mut self, entry: &Arc<Entry>, view: &View) {
        let vain = |opening: &Opening| {
            Arc::ptr_eq(&opening.pool.entry, entry) && pool::is_vain(view, opening.lane)
        };
        let vain = self.naming.extract_if(|_, opening| vain(opening)).map(|(_, opening)| opening);
        for opening in vain.collect::<Vec<_>>() {
            self.give_up(&opening, REASON);
        }
    }

    /// Gives up what has waited for a name for too long.
    pub(super) fn tick_naming(&mut self) {
        let (limit, now) = (self.snapshot.config.settings.server_connect_timeout, self.now);
        if limit.is_zero() || self.naming.is_empty() {
            return;
        }
        let late = |opening: &Opening| now.saturating_duration_since(opening.started) > limit;
        let late = self.naming.extract_if(|_, opening| late(opening)).map(|(_, opening)| opening);
        for opening in late.collect::<Vec<_>>() {
            self.give_up(&opening, "connect timeout");
        }
    }

    /// A name stands for other addresses than before: servers that were connected to through it
    /// at those are not used again.
    pub(super) fn addresses_lost(&mut self, host: &str, lost: &[SocketAddr]) {
        let own = self.servers.iter().filter_map(|(_, slot)| slot.here.as_ref());
        let own = own.filter(|server| server.is_at(host, lost));
        let own: Vec<_> = own.map(|server| (Arc::clone(&server.pool), server.id)).collect();
        let now = self.now;
        for (pool, id) in own {
            pool.decide(&mut self.orders, |inner| inner.machine.recycle_some(now, &[id], REASON));
        }
        // Others may have been parked since the name was looked up.
        self.shared.recycle_parked(host, lost);
    }
}

impl Server {
    fn is_at(&self, host: &str, lost: &[SocketAddr]) -> bool {
        match &self.remote {
            Remote::Tcp(at) => self.host == host && lost.iter().any(|lost| lost.ip() == at.ip()),
            Remote::Unix(_) => false,
        }
    }
}

impl Shared {
    /// Idle servers that were connected to through a name at addresses that it has lost are not
    /// used again.
    pub fn recycle_parked(&self, host: &str, lost: &[SocketAddr]) {
        let now = Instant::now();
        for pool in self.pools() {
            self.decide(&pool, |inner| {
                let parked = inner.parking.servers().filter(|server| server.is_at(host, lost));
                let ids: Vec<_> = parked.map(|server| server.id).collect();
                if !ids.is_empty() {
                    inner.machine.recycle_some(now, &ids, REASON);
                }
            });
        }
    }
}

/// Why a server is closed whose address is not used any more.
const REASON: &str = "database configuration changed";
