//! Cancel requests: found by key, forwarded on a connection of their own by the worker that has
//! the running query, answered to the canceller by closing its connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_core::ids::Ticket;
use switchyard_core::pool::Want;
use switchyard_io::poller::Watch;
use switchyard_io::{Key, Ready, Recv, Remote, Stream};
use switchyard_wire::build;

use crate::log::Level;
use crate::pools::SharedPool;
use crate::tls::{Shake, Transport};
use crate::worker::client::{Activity, Place, Stage};
use crate::worker::close::Farewell;
use crate::worker::message::Message;
use crate::worker::server::{Stage as ServerStage, Use};
use crate::worker::{Source, Worker};

/// A connection that carries a cancel request to a server.
#[derive(Debug)]
pub(super) struct Outgoing {
    stream: Transport,
    progress: Progress,
    /// The server's host as configured.
    host: String,
    security: Security,
    /// The server's slot.
    slot: Key,
    /// The server's key.
    key: Vec<u8>,
    requester: Requester,
    /// Number shown to operators.
    number: u64,
    started: Instant,
}

/// Who asked for a cancel request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// Its connection.
    pub ticket: Ticket,
    /// Number shown to operators.
    pub number: u64,
}

/// How far a cancel request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It has no connection yet.
    Connecting,
    /// Asked for TLS.
    Asked,
    /// In its handshake.
    Shaking,
    /// It is with the server.
    Sent,
}

impl Outgoing {
    /// How far it has come.
    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// The server it is for.
    pub(super) fn slot(&self) -> Key {
        self.slot
    }

    /// Number shown to operators, and that of its client.
    pub(super) fn numbers(&self) -> (u64, u64) {
        (self.number, self.requester.number)
    }

    /// Address of this end, if it has one.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.stream.peek_socket().local_addr()
    }

    /// When it began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// What protects it, as shown to operators.
    pub(super) fn tls(&self) -> String {
        self.stream.tls_info().to_string()
    }
}

/// How a request travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Security {
    Plain,
    Tls,
}

/// Reads of a turn on a connection that has nothing to say.
const READS_MAX: usize = 16;

impl Worker {
    /// A client's first packet was a CancelRequest.
    pub(super) fn cancel_request(&mut self, key: Key, cancel_key: &[u8]) {
        if cancel_key.len() != 8 {
            return self.close_client(key, "bad cancel request", Farewell::Silent);
        }
        let Some(target) = self.shared.key_owner(cancel_key) else {
            return self.close_client(key, "failed cancel request", Farewell::Silent);
        };
        let ticket = self.ticket(key);
        let Some(client) = self.clients.get_mut(key) else { return };
        client.stage = Stage::Cancel;
        let requester = Requester { ticket, number: client.number };
        self.send(target.worker, Message::Cancel(target, requester));
    }

    /// Someone wants a query of a client of this worker to be cancelled.
    pub(super) fn cancel_client(&mut self, target: Ticket, from: Requester) {
        let requester = from.ticket;
        let done = |reason| Message::CancelDone(requester, reason);
        let key = Key::from_bits(target.client);
        let Some(client) = self.clients.get(key) else {
            return self.send(requester.worker, done("failed cancel request"));
        };
        if matches!(client.stage, Stage::Console(_)) {
            self.send(requester.worker, done("cancel request for console client"));
            return self.cancel_console(key);
        }
        let Some(Activity::Linked(slot)) = client.activity() else {
            return self.send(requester.worker, done("cancel request for idle client"));
        };
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return self.send(requester.worker, done("cancel request for idle client"));
        };
        let ServerStage::Ready(link, _) = &server.stage else { return };
        if link.is_setting_parameters() {
            let reason = "ignoring cancel request for server that is setting vars";
            return self.send(requester.worker, done(reason));
        }
        if link.outstanding().is_empty() {
            let reason = "not sending cancel request for client that is now idle";
            return self.send(requester.worker, done(reason));
        }
        let Ok(stream) = Stream::connect(&server.remote) else {
            return self.send(requester.worker, done("failed cancel request"));
        };
        server.cancels += 1;
        let key = server.key.clone();
        let (progress, started) = (Progress::Connecting, self.now);
        let stream = stream.into();
        let required = self.snapshot.tls.servers.is_required();
        let plain = !required || matches!(server.remote, Remote::Unix(_));
        let security = if plain { Security::Plain } else { Security::Tls };
        let host = server.host.clone();
        let number = self.shared.number();
        let taken = Message::CancelTaken(requester, Arc::clone(&server.pool));
        self.shared.send(requester.worker, taken);
        let requester = from;
        let outgoing =
            Outgoing { stream, progress, host, security, slot, key, requester, number, started };
        let key = self.cancels.insert(outgoing);
        let token = Source::Cancel(key).token();
        if let Some(outgoing) = self.cancels.get_mut(key) {
            // Failure shows as a request that never ends: cancel_wait_timeout ends it.
            let _ = self.poller.register(outgoing.stream.socket(), token, Watch::Both);
        }
    }

    pub(super) fn cancel_ready(&mut self, key: Key, event: Ready) {
        let Some(outgoing) = self.cancels.get_mut(key) else { return };
        if outgoing.progress == Progress::Connecting && event.writable {
            let mut bytes = Vec::new();
            outgoing.progress = match outgoing.security {
                Security::Plain => {
                    build::cancel_request(&mut bytes, &outgoing.key);
                    Progress::Sent
                }
                Security::Tls => {
                    build::ssl_request(&mut bytes);
                    Progress::Asked
                }
            };
            let connected = outgoing.stream.peek_socket().connected();
            let sent = connected.and_then(|()| outgoing.stream.socket().send(&bytes));
            if !sent.is_ok_and(|count| count == bytes.len()) {
                return self.cancel_ended(key, "failed cancel request");
            }
            self.tell_sent(key);
        }
        if event.readable {
            self.read_cancel(key);
        }
    }

    fn read_cancel(&mut self, key: Key) {
        let Some(outgoing) = self.cancels.get_mut(key) else { return };
        match outgoing.progress {
            Progress::Connecting => {}
            Progress::Shaking => self.shake_later(Source::Cancel(key)),
            Progress::Asked => {
                let mut answer = [0; 2];
                match outgoing.stream.socket().recv(&mut answer) {
                    Recv::Bytes(1) if answer[0] == b'S' => {
                        let setup = self.snapshot.tls.servers.config(&outgoing.host);
                        let greeted =
                            setup.map(|(config, name)| outgoing.stream.say_hello(config, name));
                        if !matches!(greeted, Some(Ok(()))) {
                            return self.cancel_ended(key, "failed cancel request");
                        }
                        outgoing.progress = Progress::Shaking;
                        self.shake_later(Source::Cancel(key));
                    }
                    Recv::Blocked => {}
                    Recv::Bytes(_) | Recv::Eof | Recv::Failed(_) => {
                        self.cancel_ended(key, "failed cancel request");
                    }
                }
            }
            // The server says nothing but good-bye.
            Progress::Sent => {
                for _ in 0..READS_MAX {
                    match outgoing.stream.socket().recv(&mut self.scratch) {
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
        let Some(outgoing) = self.cancels.get_mut(key) else { return };
        if outgoing.progress != Progress::Shaking {
            return;
        }
        let step = outgoing.stream.shake(&mut self.scratch);
        let mut bytes = outgoing.stream.unsent();
        let done = match step {
            Shake::Waiting => true,
            Shake::Done => {
                outgoing.progress = Progress::Sent;
                let mut request = Vec::new();
                build::cancel_request(&mut request, &outgoing.key);
                let sealed = outgoing.stream.seal(&request).ok().flatten();
                bytes.extend_from_slice(sealed.as_deref().unwrap_or_default());
                sealed.is_some()
            }
            Shake::Ended => false,
            Shake::Failed(text) => {
                let line = format!("TLS handshake error: {text}");
                self.shared.log.write(Level::Warning, &line);
                false
            }
        };
        let sent = outgoing.stream.socket().send(&bytes);
        if !done || !sent.is_ok_and(|count| count == bytes.len()) {
            self.cancel_ended(key, "failed cancel request");
        } else if outgoing.progress == Progress::Sent {
            self.tell_sent(key);
            self.read_cancel(key);
        }
    }

    fn tell_sent(&self, key: Key) {
        let Some(outgoing) = self.cancels.get(key) else { return };
        if outgoing.progress == Progress::Sent {
            let requester = outgoing.requester.ticket;
            self.send(requester.worker, Message::CancelSent(requester));
        }
    }

    /// A request of a client of this worker has found its server, and waits for a connection.
    pub(super) fn cancel_taken(&mut self, requester: Ticket, pool: Arc<SharedPool>) {
        let client = self.clients.get_mut(Key::from_bits(requester.client));
        if let Some(client) = client.filter(|client| matches!(client.stage, Stage::Cancel)) {
            client.place = Some(Place { pool, want: Want::Writer });
            client.waiting_since = Some(self.now);
        }
    }

    /// It is with its server.
    pub(super) fn cancel_sent(&mut self, requester: Ticket) {
        if let Some(client) = self.clients.get_mut(Key::from_bits(requester.client)) {
            client.waiting_since = None;
        }
    }

    /// A cancel connection has ended: the canceller is told, the server may be used again.
    fn cancel_ended(&mut self, key: Key, reason: &'static str) {
        let Some(outgoing) = self.cancels.remove(key) else { return };
        let requester = outgoing.requester.ticket;
        self.send(requester.worker, Message::CancelDone(requester, reason));
        let server = self.servers.get_mut(outgoing.slot).and_then(|slot| slot.here.as_mut());
        let Some(server) = server else { return };
        server.cancels -= 1;
        let waits = matches!(server.stage, ServerStage::Ready(_, Use::BeingCanceled));
        if waits && server.cancels == 0 {
            self.release(outgoing.slot);
        }
    }

    /// Ends cancel requests that take too long.
    pub(super) fn expire_cancels(&mut self, timeout: Duration) {
        let late = |outgoing: &Outgoing| self.now.duration_since(outgoing.started) > timeout;
        let expired: Vec<Key> = self
            .cancels
            .iter()
            .filter(|(_, outgoing)| !timeout.is_zero() && late(outgoing))
            .map(|(key, _)| key)
            .collect();
        expired.into_iter().for_each(|key| self.cancel_ended(key, "cancel_wait_timeout"));
    }
}
