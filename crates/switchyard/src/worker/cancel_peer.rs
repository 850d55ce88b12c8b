//! Cancel requests for clients of other poolers, which are passed on to those.
//!
//! A request travels like one for a server of this process, without TLS: it says nothing that the
//! network has not seen. The peer answers by closing the connection, when its server has been told.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use switchyard_io::{Key, Remote};

use crate::log::Level;
use crate::peers::PeerPool;
use crate::shared::Shared;
use crate::worker::Worker;
use crate::worker::cancel::FAILED;
use crate::worker::cancel_request::{Aim, Connection, Permit, Progress, Requester, Security};
use crate::worker::close::Farewell;
use crate::worker::message::Message;
use crate::worker::open::is_directory;
use crate::worker::server::pointer;

impl Worker {
    /// A cancel request for a client of the peer with this id, who is told this key.
    pub(super) fn forward_cancel(&mut self, requester: Requester, id: u32, cancel_key: Vec<u8>) {
        let key = Key::from_bits(requester.ticket.client);
        if !self.snapshot.config.peers.contains_key(&id) {
            let reason = "could not find peer to forward request to";
            return self.close_client(key, reason, Farewell::Silent);
        }
        if let Some(client) = self.clients.get_mut(key) {
            client.waiting_since = Some(self.now);
        }
        let pool = self.shared.peers.pool(id);
        self.request_cancel(Aim::Peer(pool, cancel_key), Some(requester));
    }

    /// Opens a connection to a peer if there may be one more.
    pub(super) fn open_peer(&mut self, key: Key, pool: &Arc<PeerPool>) {
        let Some(outgoing) = self.cancels.get_mut(key) else { return };
        let config = &self.snapshot.config;
        let Some(peer) = config.peers.get(&pool.id) else {
            return self.cancel_ended(key, REMOVED);
        };
        let size = peer.pool_size.unwrap_or(config.settings.default_pool_size);
        let Some(permit) = pool.permit(usize::try_from(size).unwrap_or(0)) else { return };
        let (host, port) = (peer.host.clone(), peer.port);
        let permit = Permit::Peer(permit);
        if is_directory(&host) {
            let path = format!("{host}/.s.PGSQL.{port}");
            return self.connect_peer(key, permit, Remote::Unix(path));
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            let remote = Remote::Tcp(SocketAddr::new(address, port));
            return self.connect_peer(key, permit, remote);
        }
        outgoing.progress = Progress::Naming;
        outgoing.reserved = Some(permit);
        let number = outgoing.number;
        let names = self.shared.services().map(|services| services.names());
        let found = names.map_or(Some(Vec::new()), |names| names.find(&host, self.id, number));
        if let Some(addresses) = found {
            self.peer_resolved(number, &addresses);
        }
    }

    /// Answer of a name lookup for a request to a peer; without addresses it has failed.
    pub(super) fn peer_resolved(&mut self, number: u64, addresses: &[SocketAddr]) {
        let found = self.cancels.iter().find(|(_, outgoing)| outgoing.number == number);
        let Some((key, peer)) = found.map(|(key, outgoing)| (key, outgoing.peer())) else { return };
        let permit = self.cancels.get_mut(key).and_then(|outgoing| outgoing.reserved.take());
        let Some(permit) = permit else { return };
        let peer = peer.and_then(|id| self.snapshot.config.peers.get(&id));
        let Some(peer) = peer else { return self.cancel_ended(key, REMOVED) };
        let Some(first) = addresses.first() else {
            return self.cancel_ended(key, "server DNS lookup failed");
        };
        let remote = Remote::Tcp(SocketAddr::new(first.ip(), peer.port));
        self.connect_peer(key, permit, remote);
    }

    fn connect_peer(&mut self, key: Key, permit: Permit, remote: Remote) {
        let Ok(stream) = self.cancel_stream(&remote) else {
            return self.cancel_ended(key, FAILED);
        };
        let Some(outgoing) = self.cancels.get(key) else { return };
        let Aim::Peer(pool, cancel_key) = &outgoing.aim else { return };
        let peer = self.snapshot.config.peers.get(&pool.id);
        let (host, port) = peer.map_or((String::new(), 0), |peer| (peer.host.clone(), peer.port));
        let shown = if is_directory(&host) { "unix" } else { &host };
        let number = pointer(outgoing.number);
        let connection = Connection {
            stream: stream.into(),
            security: Security::Plain,
            key: cancel_key.clone(),
            prefix: format!("S-{number:#x}: peer-{}@{shown}:{port}", pool.id),
            host,
            opened: self.now,
            remote,
            permit,
        };
        self.carry_cancel(key, connection);
    }

    /// This is no peer any more: what is on its way there is given up.
    pub(super) fn peer_gone(&mut self, pool: &Arc<PeerPool>) {
        let ours = |aim: &Aim| matches!(aim, Aim::Peer(own, _) if Arc::ptr_eq(own, pool));
        let gone = self.cancels.iter().filter(|(_, outgoing)| ours(&outgoing.aim));
        let gone: Vec<Key> = gone.map(|(key, _)| key).collect();
        gone.into_iter().for_each(|key| self.cancel_ended(key, REMOVED));
    }
}

impl Shared {
    /// Forgets peers that the settings do not name any more.
    pub fn drop_peers(&self) {
        let snapshot = self.snapshot();
        for pool in self.peers.forget(|id| snapshot.config.peers.contains_key(&id)) {
            let line = format!("dropping peer {} as it does not exist anymore", pool.id);
            self.log.write(Level::Warning, &line);
            self.broadcast(|| Message::PeerGone(Arc::clone(&pool)));
        }
    }
}

const REMOVED: &str = "peer removed";
