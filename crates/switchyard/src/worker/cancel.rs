//! Cancel requests: found by key, forwarded on a connection of their own by the worker that has
//! the running query, answered to the canceller by closing its connection.
//!
//! ```text
//! Waiting ──permit──► Connecting [──► Asked ──► Shaking] ──► Sent ──server closes──► done
//! ```
//! Until it is sent, a request is dropped as soon as the query has ended. Once it is sent, the
//! server is given to nobody else before the connection has ended: the signal may still be on its
//! way. Requests for clients of other poolers travel in the same way (`cancel_peer`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_core::ids::Ticket;
use switchyard_core::pool::Want;
use switchyard_io::poller::Watch;
use switchyard_io::{Key, Ready, Recv, Remote, Stream};
use switchyard_wire::build;

use crate::log::Level;
use crate::pools::SharedPool;
use crate::snapshot::Logged;
use crate::tls::Shake;
use crate::worker::cancel_key::{self, Received};
use crate::worker::cancel_request::{
    Aim, Connection, Outgoing, Permit, Progress, Requester, Room, Security,
};
use crate::worker::client::{Activity, Place, Stage};
use crate::worker::close::Farewell;
use crate::worker::message::Message;
use crate::worker::server::{Server, Stage as ServerStage, Use};
use crate::worker::{Source, Worker};

/// Reason for requests that did not reach their server.
pub(super) const FAILED: &str = "failed cancel request";
const NOW_IDLE: &str = "not sending cancel request for client that is now idle";

/// Reads of a turn on a connection that has nothing to say.
const READS_MAX: usize = 16;

impl Worker {
    /// A client's first packet was a CancelRequest.
    pub(super) fn cancel_request(&mut self, key: Key, cancel_key: &[u8]) {
        let ticket = self.ticket(key);
        let Some(client) = self.clients.get_mut(key) else { return };
        client.stage = Stage::Cancel(None);
        let requester = Requester { ticket, number: client.number };
        let own = self.snapshot.peer_id();
        let target = match cancel_key::read(cancel_key, &self.snapshot.mock_key, own) {
            Received::Key(short) => self.shared.key_owner(&short),
            Received::Foreign => None,
            Received::Malformed => {
                return self.close_client(key, "bad cancel request", Farewell::Silent);
            }
            Received::Peer(id, key) => return self.forward_cancel(requester, id.into(), key),
            Received::Exhausted => {
                let reason = "failed to forward cancel request because its TTL was exhausted";
                return self.close_client(key, reason, Farewell::Silent);
            }
        };
        let Some(target) = target else {
            return self.close_client(key, "failed cancel request", Farewell::Silent);
        };
        self.send(target.worker, Message::Cancel(target, requester));
    }

    /// Someone wants a query of a client of this worker to be cancelled.
    pub(super) fn cancel_client(&mut self, target: Ticket, from: Requester) {
        let requester = from.ticket;
        let done = |reason| Message::CancelDone(requester, reason);
        let client_key = Key::from_bits(target.client);
        let Some(client) = self.clients.get(client_key) else {
            return self.send(requester.worker, done("failed cancel request"));
        };
        if matches!(client.stage, Stage::Console(_)) {
            self.send(requester.worker, done("cancel request for console client"));
            return self.cancel_console(client_key);
        }
        let Some(Activity::Linked(slot)) = client.activity() else {
            return self.send(requester.worker, done("cancel request for idle client"));
        };
        let server = self.servers.get(slot).and_then(|slot| slot.here.as_ref());
        let setting = server.is_some_and(|server| match &server.stage {
            ServerStage::Ready(link, _) => link.is_setting_parameters(),
            _ => false,
        });
        if setting {
            let reason = "ignoring cancel request for server that is setting vars";
            return self.send(requester.worker, done(reason));
        }
        if let Some(server) = server {
            let taken = Message::CancelTaken(requester, Arc::clone(&server.pool));
            self.send(requester.worker, taken);
        }
        self.request_cancel(Aim::Query { client: client_key, slot }, Some(from));
    }

    /// Begins a request; answers it.
    pub(super) fn request_cancel(&mut self, aim: Aim, requester: Option<Requester>) -> Key {
        let (connection, progress, started) = (None, Progress::Waiting, self.now);
        let number = self.shared.number();
        let reserved = None;
        let outgoing = Outgoing { connection, progress, aim, reserved, requester, number, started };
        let key = self.cancels.insert(outgoing);
        self.open_cancel(key);
        key
    }

    /// What runs on a server is to end, because the server is about to be closed: closing alone
    /// would let it go on. Without room for one more connection it does.
    pub(super) fn cancel_running(&mut self, client: Key, slot: Key) {
        if !self.runs_query(client, slot) {
            return;
        }
        let key = self.request_cancel(Aim::Query { client, slot }, None);
        if self.cancels.get(key).is_some_and(|one| one.progress == Progress::Waiting) {
            self.cancels.remove(key);
        }
    }

    /// Whether the query that a request is for still runs.
    fn still_runs(&self, outgoing: &Outgoing) -> bool {
        if outgoing.connection.is_some() && outgoing.requester.is_none() {
            return true;
        }
        match outgoing.aim {
            Aim::Query { client, slot } => self.runs_query(client, slot),
            // Only the peer knows.
            Aim::Peer(..) => true,
        }
    }

    fn runs_query(&self, client: Key, slot: Key) -> bool {
        let linked = self.clients.get(client).and_then(|client| client.server());
        let server = self.servers.get(slot).and_then(|slot| slot.here.as_ref());
        linked == Some(slot)
            && server.is_some_and(|server| match &server.stage {
                ServerStage::Ready(link, _) => !link.outstanding().is_empty(),
                _ => false,
            })
    }

    /// Opens a connection for a request if there may be one more.
    pub(super) fn open_cancel(&mut self, key: Key) {
        let Some(outgoing) = self.cancels.get(key) else { return };
        if !self.still_runs(outgoing) {
            return self.cancel_ended(key, NOW_IDLE);
        }
        let slot = match &outgoing.aim {
            Aim::Query { slot, .. } => *slot,
            Aim::Peer(pool, _) => return self.open_peer(key, &Arc::clone(pool)),
        };
        let server = self.servers.get(slot).and_then(|slot| slot.here.as_ref());
        let Some(server) = server else { return self.cancel_ended(key, NOW_IDLE) };
        let Some(permit) = server.pool.cancel_permit() else { return };
        let required = self.snapshot.tls.servers.is_required();
        let plain = !required || matches!(server.remote, Remote::Unix(_));
        let Ok(stream) = self.cancel_stream(&server.remote) else {
            return self.cancel_ended(key, FAILED);
        };
        let connection = Connection {
            stream: stream.into(),
            security: if plain { Security::Plain } else { Security::Tls },
            host: server.host.clone(),
            key: server.key.clone(),
            prefix: server.prefix_of(outgoing.number),
            opened: self.now,
            remote: server.remote.clone(),
            permit: Permit::Pool(permit),
        };
        self.carry_cancel(key, connection);
    }

    /// A connection that is being made.
    pub(super) fn cancel_stream(&self, remote: &Remote) -> std::io::Result<Stream> {
        let stream = Stream::connect(remote)?;
        stream.set_options(&self.snapshot.sockets).map_err(|failed| failed.error)?;
        Ok(stream)
    }

    /// A request travels on this connection.
    pub(super) fn carry_cancel(&mut self, key: Key, connection: Connection) {
        let token = Source::Cancel(key).token();
        if let Some(outgoing) = self.cancels.get_mut(key) {
            outgoing.progress = Progress::Connecting;
            let connection = outgoing.connection.insert(connection);
            // Failure shows as a request that never ends: cancel_wait_timeout ends it.
            let _ = self.poller.register(connection.stream.socket(), token, Watch::Both);
        }
    }

    pub(super) fn cancel_ready(&mut self, key: Key, event: Ready) {
        let Some(outgoing) = self.cancels.get(key) else { return };
        if outgoing.progress == Progress::Connecting && event.writable {
            if !self.still_runs(outgoing) {
                return self.cancel_ended(key, NOW_IDLE);
            }
            self.cancel_connected(key);
        }
        if event.readable {
            self.read_cancel(key);
        }
    }

    fn cancel_connected(&mut self, key: Key) {
        let Some(outgoing) = self.cancels.get_mut(key) else { return };
        let Some(connection) = outgoing.connection.as_mut() else { return };
        let socket = connection.stream.peek_socket();
        if socket.connected().is_err() {
            return self.cancel_ended(key, FAILED);
        }
        if self.snapshot.log.connections == Logged::Yes {
            let from = socket.local_addr().map(|at| format!(" (from {at})")).unwrap_or_default();
            let line = format!("{} new connection to server{from}", connection.prefix);
            self.shared.log.write(Level::Log, &line);
        }
        let mut bytes = Vec::new();
        outgoing.progress = match connection.security {
            Security::Plain => {
                build::cancel_request(&mut bytes, &connection.key);
                Progress::Sent
            }
            Security::Tls => {
                build::ssl_request(&mut bytes);
                Progress::Asked
            }
        };
        let sent = connection.stream.socket().send(&bytes);
        let progress = outgoing.progress;
        self.note_sent(key, progress);
        if !sent.is_ok_and(|count| count == bytes.len()) {
            self.cancel_ended(key, FAILED);
        }
    }

    /// From here on the server may be interrupted at any time.
    fn note_sent(&mut self, key: Key, progress: Progress) {
        let Some(outgoing) = self.cancels.get(key) else { return };
        if progress != Progress::Sent {
            return;
        }
        let (number, requester) = (outgoing.number, outgoing.requester);
        if let Aim::Query { slot, .. } = outgoing.aim {
            let server = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut());
            let Some(server) = server else { return };
            server.cancels += 1;
        }
        if let Some(Requester { ticket, .. }) = requester {
            self.send(ticket.worker, Message::CancelSent(ticket, number));
        }
    }

    /// A request of a client of this worker has found its server, and waits for a connection.
    pub(super) fn cancel_taken(&mut self, requester: Ticket, pool: Arc<SharedPool>) {
        let client = self.clients.get_mut(Key::from_bits(requester.client));
        if let Some(client) = client.filter(|client| matches!(client.stage, Stage::Cancel(_))) {
            client.place = Some(Place { pool, want: Want::Writer });
            client.waiting_since = Some(self.now);
        }
    }

    /// It is with its server.
    pub(super) fn cancel_sent(&mut self, requester: Ticket, number: u64) {
        if let Some(client) = self.clients.get_mut(Key::from_bits(requester.client))
            && let Stage::Cancel(carrier) = &mut client.stage
        {
            *carrier = Some(number);
            client.waiting_since = None;
        }
    }

    fn read_cancel(&mut self, key: Key) {
        let Some(outgoing) = self.cancels.get_mut(key) else { return };
        let Some(connection) = outgoing.connection.as_mut() else { return };
        match outgoing.progress {
            Progress::Waiting | Progress::Naming | Progress::Connecting => {}
            Progress::Shaking => self.shake_later(Source::Cancel(key)),
            Progress::Asked => {
                let mut answer = [0; 2];
                match connection.stream.socket().recv(&mut answer) {
                    Recv::Bytes(1) if answer[0] == b'S' => {
                        let setup = self.snapshot.tls.servers.config(&connection.host);
                        let greeted =
                            setup.map(|(config, name)| connection.stream.say_hello(config, name));
                        if !matches!(greeted, Some(Ok(()))) {
                            return self.cancel_ended(key, FAILED);
                        }
                        outgoing.progress = Progress::Shaking;
                        self.shake_later(Source::Cancel(key));
                    }
                    Recv::Blocked => {}
                    Recv::Bytes(_) | Recv::Eof | Recv::Failed(_) => {
                        self.cancel_ended(key, FAILED);
                    }
                }
            }
            // The server says nothing but good-bye.
            Progress::Sent => {
                for _ in 0..READS_MAX {
                    match connection.stream.socket().recv(&mut self.scratch) {
                        Recv::Bytes(_) => {}
                        Recv::Blocked => return,
                        Recv::Eof | Recv::Failed(_) => break,
                    }
                }
                self.cancel_ended(key, "successfully sent cancel request");
            }
        }
    }

    /// Takes a step of the handshake of a cancel connection; the request follows the last one.
    pub(super) fn shake_cancel(&mut self, key: Key) {
        let Some(outgoing) = self.cancels.get(key) else { return };
        if outgoing.progress != Progress::Shaking {
            return;
        }
        if !self.still_runs(outgoing) {
            return self.cancel_ended(key, NOW_IDLE);
        }
        let Some(outgoing) = self.cancels.get_mut(key) else { return };
        let Some(connection) = outgoing.connection.as_mut() else { return };
        let step = connection.stream.shake(&mut self.scratch);
        let mut bytes = connection.stream.unsent();
        let done = match step {
            Shake::Waiting => true,
            Shake::Done => {
                outgoing.progress = Progress::Sent;
                let mut request = Vec::new();
                build::cancel_request(&mut request, &connection.key);
                let sealed = connection.stream.seal(&request).ok().flatten();
                bytes.extend_from_slice(sealed.as_deref().unwrap_or_default());
                sealed.is_some()
            }
            Shake::Ended => false,
            Shake::Failed(text) => {
                let line = format!("{} TLS handshake error: {text}", connection.prefix);
                self.shared.log.write(Level::Warning, &line);
                false
            }
        };
        let sent = connection.stream.socket().send(&bytes);
        let progress = outgoing.progress;
        self.note_sent(key, progress);
        if !done || !sent.is_ok_and(|count| count == bytes.len()) {
            self.cancel_ended(key, FAILED);
        } else if progress == Progress::Sent {
            self.read_cancel(key);
        }
    }
}

/// Ends of requests.
impl Worker {
    /// A request has ended: the canceller is told, the server may be used again, and another
    /// request may have the connection's place.
    pub(super) fn cancel_ended(&mut self, key: Key, reason: &'static str) {
        let Some(outgoing) = self.cancels.remove(key) else { return };
        let Outgoing { connection, progress, aim, requester, .. } = outgoing;
        if let Some(connection) = connection {
            if self.snapshot.log.disconnections == Logged::Yes {
                let age = self.now.saturating_duration_since(connection.opened).as_secs();
                let line = format!("{} closing because: {reason} (age={age}s)", connection.prefix);
                self.shared.log.write(Level::Log, &line);
            }
            let room = connection.permit.room();
            drop(connection);
            self.shared.broadcast(|| Message::CancelRoom(room.clone()));
        }
        if let Some(Requester { ticket, .. }) = requester {
            self.send(ticket.worker, Message::CancelDone(ticket, reason));
        }
        let Aim::Query { slot, .. } = aim else { return };
        let server = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut());
        let Some(server) = server.filter(|_| progress == Progress::Sent) else { return };
        server.cancels -= 1;
        let waits = matches!(server.stage, ServerStage::Ready(_, Use::BeingCanceled));
        if waits && server.cancels == 0 {
            self.release(slot);
        }
    }

    /// Requests for which there was no connection may have one, the oldest first.
    pub(super) fn go_on_canceling(&mut self, room: &Room) {
        let mut waiting: Vec<(Instant, Key)> = self
            .cancels
            .iter()
            .filter(|(_, outgoing)| outgoing.progress == Progress::Waiting)
            .filter(|(_, outgoing)| match (&outgoing.aim, room) {
                (Aim::Query { slot, .. }, Room::Pool(pool)) => {
                    let slot = self.servers.get(*slot);
                    slot.is_none_or(|slot| Arc::ptr_eq(&slot.pool, pool))
                }
                (Aim::Peer(own, _), Room::Peer(pool)) => Arc::ptr_eq(own, pool),
                (Aim::Query { .. }, Room::Peer(_)) | (Aim::Peer(..), Room::Pool(_)) => false,
            })
            .map(|(key, outgoing)| (outgoing.started, key))
            .collect();
        waiting.sort_unstable_by_key(|(started, _)| *started);
        waiting.into_iter().for_each(|(_, key)| self.open_cancel(key));
    }

    /// A server is released: what was not sent to it is too late.
    pub(super) fn drop_unsent_cancels(&mut self, slot: Key) {
        if self.cancels.is_empty() {
            return;
        }
        let unsent = |outgoing: &Outgoing| {
            outgoing.slot() == Some(slot)
                && outgoing.progress != Progress::Sent
                && outgoing.requester.is_some()
        };
        let late = self.cancels.iter().filter(|(_, outgoing)| unsent(outgoing));
        let late: Vec<Key> = late.map(|(key, _)| key).collect();
        late.into_iter().for_each(|key| self.cancel_ended(key, NOW_IDLE));
    }

    /// A canceller has left, as some drivers do as soon as they have asked. What is on its way is
    /// forwarded all the same; what waits would come late, and perhaps hit a later query.
    pub(super) fn canceller_gone(&mut self, requester: Ticket) {
        let gone = |outgoing: &Outgoing| {
            outgoing.requester.is_some_and(|by| by.ticket == requester)
                && outgoing.progress == Progress::Waiting
        };
        let gone: Vec<Key> =
            self.cancels.iter().filter(|(_, o)| gone(o)).map(|(key, _)| key).collect();
        let reason = "client gave up on cancel request, so we also give up forwarding to server";
        gone.into_iter().for_each(|key| self.cancel_ended(key, reason));
    }

    /// Ends cancel requests that take too long: those that were not sent after
    /// cancel_wait_timeout, the others when a server does not close in the time of a connection.
    pub(super) fn expire_cancels(&mut self, timeout: Duration) {
        let patience = self.snapshot.config.settings.server_connect_timeout;
        let over = |since: Instant, limit: Duration| {
            !limit.is_zero() && self.now.saturating_duration_since(since) > limit
        };
        let (mut expired, mut waiting) = (Vec::new(), Vec::new());
        for (key, outgoing) in self.cancels.iter() {
            let opened = outgoing.connection.as_ref().map(|connection| connection.opened);
            match outgoing.progress {
                Progress::Sent if opened.is_some_and(|opened| over(opened, patience)) => {
                    expired.push((key, "connect timeout", outgoing.slot()));
                }
                Progress::Sent => {}
                _ if over(outgoing.started, timeout) => {
                    expired.push((key, "cancel_wait_timeout", None));
                }
                Progress::Waiting => waiting.push(key),
                _ => {}
            }
        }
        // There is more room when servers have closed, which nobody tells.
        waiting.into_iter().for_each(|key| self.open_cancel(key));
        for (key, reason, slot) in expired {
            // The signal may come at any time, so nobody may have this server again.
            let waits =
                |server: &Server| matches!(server.stage, ServerStage::Ready(_, Use::BeingCanceled));
            if let Some(slot) = slot {
                let server = self.servers.get(slot).and_then(|slot| slot.here.as_ref());
                if server.is_some_and(|server| waits(server)) {
                    self.close_server(slot, "connect timeout");
                }
            }
            self.cancel_ended(key, reason);
        }
    }
}
