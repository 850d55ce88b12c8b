//! TLS of connections: who is asked for it, what the answer means, handshakes.
//!
//! A handshake's step may take longer than thousands of queries of other clients. It is therefore
//! never taken where the bytes arrive: those who have one to take queue up, and a turn ends with
//! one step.

use std::sync::Arc;

use switchyard_io::poller::Watch;
use switchyard_io::{Key, Peer, Remote};
use switchyard_wire::build;

use crate::log::Level;
use crate::snapshot::Logged;
use crate::tls::Shake;
use crate::tls::setup::Offer;
use crate::worker::close::Farewell;
use crate::worker::server::Stage as ServerStage;
use crate::worker::{Source, Todo, Worker};

/// First byte of a TLS greeting.
pub(super) const HELLO: u8 = 0x16;

impl Worker {
    /// Puts a connection into the queue of those with a step of a handshake to take.
    pub(super) fn shake_later(&mut self, source: Source) {
        if !self.shaking.contains(&source) {
            self.shaking.push_back(source);
        }
    }

    /// Takes one step of one handshake.
    pub(super) fn shake_one(&mut self) {
        match self.shaking.pop_front() {
            Some(Source::Client(key)) => self.shake_client(key),
            Some(Source::Server(key)) => self.shake_server(key),
            Some(Source::Cancel(key)) => self.shake_cancel(key),
            Some(Source::Listener(_) | Source::Hook(_)) | None => {}
        }
    }
}

/// Clients.
impl Worker {
    fn offer(&self, key: Key) -> Option<Arc<Offer>> {
        let client = self.clients.get(key)?;
        match client.peer {
            Peer::Tcp(_) => self.snapshot.tls.clients.offer.clone(),
            Peer::Unix { .. } => None,
        }
    }

    /// Whether a client may not go on without TLS.
    pub(super) fn lacks_tls(&self, key: Key) -> bool {
        let required = self.snapshot.tls.clients.is_required();
        required
            && self.clients.get(key).is_some_and(|client| match client.peer {
                Peer::Tcp(_) => client.stream.tls().is_none(),
                Peer::Unix { .. } => false,
            })
    }

    /// A client asks for TLS.
    pub(super) fn ssl_request(&mut self, key: Key) {
        if self.clients.get(key).is_some_and(|client| client.stream.tls().is_some()) {
            return self.close_client(key, "SSL req inside SSL", Farewell::Silent);
        }
        let Some(offer) = self.offer(key) else { return self.say(key, b"N") };
        self.say(key, b"S");
        self.answer_hello(key, &offer, &[]);
    }

    /// A client begins with a TLS greeting, as those of PostgreSQL 17 may. Answers whether it is
    /// taken as one.
    pub(super) fn greeting(&mut self, key: Key, data: &[u8]) -> bool {
        let secured = self.clients.get(key).is_none_or(|client| client.stream.tls().is_some());
        if secured || data.first() != Some(&HELLO) {
            return false;
        }
        let Some(offer) = self.offer(key) else { return false };
        self.answer_hello(key, &offer, data);
        self.shake_later(Source::Client(key));
        true
    }

    fn answer_hello(&mut self, key: Key, offer: &Offer, early: &[u8]) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if let Err(error) = client.stream.answer_hello(offer, early) {
            self.log_client(key, Level::Warning, &format!("TLS handshake error: {error}"));
            self.close_client(key, "client unexpected eof", Farewell::Silent);
        }
    }

    fn shake_client(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key).filter(|c| c.stream.is_shaking()) else {
            return;
        };
        let step = client.stream.shake(&mut self.scratch);
        // With TLS 1.3 only tickets are left to be sent at the end: they go with what comes next.
        let sent = match &step {
            Shake::Done if client.stream.tls().is_some_and(|tls| tls.is_new()) => Ok(()),
            _ => client.output.send_unsent(&mut client.stream),
        };
        let full = !client.output.is_empty();
        match step {
            Shake::Waiting | Shake::Done if sent.is_err() => self.client_gone(key),
            Shake::Waiting if full => self.watch_client(key, Watch::Both),
            Shake::Waiting => {}
            Shake::Done => {
                client.unread.put_off();
                if full {
                    self.watch_client(key, Watch::Both);
                }
                self.todo.push_back(Todo::Client(key));
            }
            Shake::Ended => self.client_gone(key),
            Shake::Failed(text) => {
                self.log_client(key, Level::Warning, &format!("TLS handshake error: {text}"));
                self.client_gone(key);
            }
        }
    }
}

/// Servers.
impl Worker {
    /// Asks a server that was connected to for TLS, if it is to be asked. Answers whether it was.
    pub(super) fn ask_for_tls(&mut self, key: Key) -> bool {
        let wanted = self.snapshot.tls.servers.is_wanted();
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return false;
        };
        if !wanted || matches!(server.remote, Remote::Unix(_)) {
            return false;
        }
        let stage = std::mem::replace(&mut server.stage, ServerStage::Between);
        let ServerStage::Connecting(login, _) = stage else {
            server.stage = stage;
            return false;
        };
        server.stage = ServerStage::Securing(login);
        let mut bytes = Vec::new();
        build::ssl_request(&mut bytes);
        if server.output.send(&mut server.stream, &bytes).is_err() {
            self.server_failed(key, "connect failed");
            return true;
        }
        let watch = if server.output.is_empty() { Watch::Input } else { Watch::Both };
        self.watch_server(key, watch);
        true
    }

    /// A server's answer to the question for TLS; answers how many bytes were used.
    pub(super) fn tls_answer(&mut self, key: Key, data: &[u8]) -> usize {
        let setup = &self.snapshot.tls.servers;
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return data.len();
        };
        let refusal = match data {
            [] => return 0,
            [b'S' | b'N', _, ..] => "received unencrypted data after SSL response",
            [b'S'] => {
                let setup = setup.config(&server.host);
                let greeted = setup.map(|(config, name)| server.stream.say_hello(config, name));
                if matches!(greeted, Some(Ok(()))) {
                    self.shake_later(Source::Server(key));
                    return 1;
                }
                "connect failed"
            }
            [b'N'] if setup.is_required() => "server refused SSL",
            [b'N'] => {
                self.begin_login(key);
                return 1;
            }
            _ => "bad sslreq answer",
        };
        self.server_failed(key, refusal);
        data.len()
    }

    fn shake_server(&mut self, key: Key) {
        let server = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut());
        let Some(server) = server.filter(|server| server.stream.is_shaking()) else { return };
        let step = server.stream.shake(&mut self.scratch);
        let sent = server.output.send_unsent(&mut server.stream);
        let full = !server.output.is_empty();
        match step {
            Shake::Waiting | Shake::Done if sent.is_err() => {
                self.server_failed(key, "connect failed");
            }
            Shake::Waiting if full => self.watch_server(key, Watch::Both),
            Shake::Waiting => {}
            Shake::Done => {
                server.unread.put_off();
                self.note_tls(key);
                self.begin_login(key);
                self.todo.push_back(Todo::Server(key));
            }
            Shake::Ended => self.server_failed(key, "connect failed"),
            Shake::Failed(text) => {
                let line = format!("{} TLS handshake error: {text}", server.prefix());
                self.shared.log.write(Level::Warning, &line);
                self.server_failed(key, "connect failed");
            }
        }
    }

    fn note_tls(&self, key: Key) {
        let server = self.servers.get(key).and_then(|slot| slot.here.as_ref());
        let tls = server.and_then(|server| Some((server, server.stream.tls()?)));
        if let (Logged::Yes, Some((server, tls))) = (self.snapshot.log.connections, tls) {
            let line = format!("{} SSL established: {}", server.prefix(), tls.info());
            self.shared.log.write(Level::Log, &line);
        }
    }
}
