//! Traffic: bytes of clients to their servers and back.
//!
//! The machines say what may pass; this file reads, sends once per batch, keeps rests, and stops
//! a reader whose peer is full.

use switchyard_core::client::session::{Hooking, Rules, Stop, Tracking};
use switchyard_core::server::link::{Received, Status};
use switchyard_core::switchover::probe::SignalKind;
use switchyard_io::poller::Watch;
use switchyard_io::{Key, Ready, Recv};

use switchyard_config::PoolMode;

use crate::pools::Stats;
use crate::worker::checkout::Outcome;
use crate::worker::client::{Activity, Client, Stage};
use crate::worker::close::Farewell;
use crate::worker::hooking::{Asked, Asking};
use crate::worker::server::{Stage as ServerStage, Unread};
use crate::worker::{Slot, Source, Todo, Worker};

/// Reads of one connection in a turn, so that a busy one does not starve the others.
const READS_PER_TURN: usize = 8;
/// Room for reading behind bytes that wait for the rest of their message.
const READ_MORE: usize = 64 * 1024;
/// Requests of one client that may be unanswered.
const OUTSTANDING_MAX: usize = 8192;
/// Bytes that may wait for a client that does not read.
const CLIENT_BACKLOG: usize = 64 * 1024;

/// Clients.
impl Worker {
    pub(super) fn client_ready(&mut self, key: Key, event: Ready) {
        if event.writable {
            self.flush_client(key);
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        let waits = match &client.stage {
            Stage::Session(_, activity) => *activity == Activity::Waiting,
            Stage::Console(console) => console.is_waiting(),
            Stage::Start | Stage::Login(_) | Stage::AwaitingWelcome(_) => false,
            Stage::Cancel | Stage::Leaving => false,
        };
        if event.closed && waits {
            return self.close_client(key, "client unexpected eof", Farewell::Silent);
        }
        if event.closed {
            client.unread = Unread::End;
        }
        if event.readable && client.stream.is_shaking() {
            return self.shake_later(Source::Client(key));
        }
        if event.readable {
            self.read_client(key);
        }
    }

    fn may_read(client: &Client, servers: &switchyard_io::Table<Slot>) -> bool {
        if client.output.len() > CLIENT_BACKLOG
            || matches!(client.asking, Asking::Asked(..))
            || client.moving.is_some()
        {
            return false;
        }
        match &client.stage {
            Stage::Start | Stage::Login(_) | Stage::Cancel => true,
            Stage::Console(console) => !console.is_waiting(),
            Stage::AwaitingWelcome(_) | Stage::Leaving => false,
            Stage::Session(_, Activity::Idle) => true,
            Stage::Session(_, Activity::Waiting) => false,
            Stage::Session(_, Activity::Linked(slot)) => {
                let server = servers.get(*slot).and_then(|slot| slot.here.as_ref());
                server.is_some_and(|server| match &server.stage {
                    ServerStage::Ready(link, _) => {
                        server.output.is_empty() && link.outstanding().len() < OUTSTANDING_MAX
                    }
                    ServerStage::Connecting(_)
                    | ServerStage::Securing(_)
                    | ServerStage::Login(_)
                    | ServerStage::Between => false,
                })
            }
        }
    }

    /// Reads a client until a short read, or until it has to wait.
    pub(super) fn read_client(&mut self, key: Key) {
        for _ in 0..READS_PER_TURN {
            let Some(client) = self.clients.get_mut(key) else { return };
            let resting = self.rest.is_resting(client);
            if resting || !Self::may_read(client, &self.servers) {
                client.unread.put_off();
                return;
            }
            client.unread.reading();
            let (received, room) = if client.input.is_empty() {
                (client.stream.recv(&mut self.scratch), self.scratch.len())
            } else {
                let kept = client.input.len();
                client.input.resize(kept + READ_MORE, 0);
                let received = client.stream.recv(&mut client.input[kept..]);
                let count = if let Recv::Bytes(count) = received { count } else { 0 };
                client.input.truncate(kept + count);
                (received, READ_MORE)
            };
            let count = match received {
                Recv::Bytes(count) => count,
                Recv::Blocked => return,
                Recv::Eof | Recv::Failed(_) => return self.client_gone(key),
            };
            client.active = self.now;
            if client.input.is_empty() {
                let scratch = std::mem::take(&mut self.scratch);
                let used = self.client_bytes(key, &scratch[..count]);
                if let Some(client) = self.clients.get_mut(key) {
                    self.spare.keep(&mut client.input, &scratch[used..count]);
                }
                self.scratch = scratch;
            } else {
                self.use_input(key);
            }
            let Some(client) = self.clients.get(key) else { return };
            if client.stream.is_drained(count, room) && client.unread != Unread::End {
                return;
            }
        }
        self.todo.push_back(Todo::Client(key));
        if let Some(client) = self.clients.get_mut(key) {
            client.unread.put_off();
        }
    }

    /// Goes on with bytes that were put aside, then with the socket.
    pub(super) fn kick_client(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if self.rest.is_resting(client) {
            return;
        }
        if !client.input.is_empty() && Self::may_read(client, &self.servers) {
            self.use_input(key);
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.unread != Unread::No && Self::may_read(client, &self.servers) {
            self.read_client(key);
        }
    }

    fn use_input(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let mut input = std::mem::take(&mut client.input);
        let used = self.client_bytes(key, &input);
        if used == input.len() {
            return self.spare.recycle(input);
        }
        input.drain(..used);
        if let Some(client) = self.clients.get_mut(key) {
            client.input = input;
        }
    }

    /// Uses bytes of a client; answers how many.
    fn client_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let Some(client) = self.clients.get(key) else { return data.len() };
        match &client.stage {
            Stage::Session(..) => self.session_bytes(key, data),
            Stage::Start => self.start_bytes(key, data),
            Stage::Login(_) => self.login_bytes(key, data),
            Stage::Console(_) => self.console_bytes(key, data),
            Stage::Cancel | Stage::Leaving => data.len(),
            Stage::AwaitingWelcome(_) => 0,
        }
    }

    fn session_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let mut used = 0;
        loop {
            let (count, stop) = self.advance(key, &data[used..]);
            let sent = self.pass_to_server(key, &data[used..]);
            used += count;
            if !sent {
                return data.len();
            }
            if let Some(routes) = self.clients.get_mut(key).and_then(|c| c.routes.as_mut())
                && routes.later.is_some()
            {
                self.move_later(key);
            }
            match stop {
                Stop::More | Stop::Full => return used,
                Stop::NeedServer => match self.checkout(key) {
                    Outcome::Linked => {}
                    Outcome::Waiting => return used,
                    Outcome::Gone => return data.len(),
                },
                Stop::Ask(text) => {
                    let text = text.start - count..text.end - count;
                    if self.ask_hooks(key, &data[used..], text) == Asked::Waiting {
                        return used;
                    }
                }
                Stop::Terminate => {
                    self.close_client(key, "client close request", Farewell::Silent);
                    return data.len();
                }
                Stop::Close(refusal) => {
                    if let Some(cause) = &refusal.cause {
                        self.log_client(key, crate::log::Level::Error, cause);
                    }
                    self.close_client(key, &refusal.reason, Farewell::fatal());
                    return data.len();
                }
            }
        }
    }

    /// Runs the session over `data`; output is collected in `flow`.
    fn advance(&mut self, key: Key, data: &[u8]) -> (usize, Stop) {
        let Some(client) = self.clients.get_mut(key) else { return (0, Stop::More) };
        let Stage::Session(session, activity) = &mut client.stage else { return (0, Stop::More) };
        let Some(place) = &client.place else { return (0, Stop::More) };
        let prepared = place.pool.prepared_max();
        let rules = Rules {
            tracking: if prepared == 0 { Tracking::Off } else { Tracking::On(prepared) },
            hooking: match client.asking {
                Asking::Never => Hooking::Off,
                _ if self.hooks.current().is_none() => Hooking::Off,
                Asking::Unknown | Asking::No | Asking::Asked(..) => Hooking::On,
            },
            loyalty: place.pool.loyalty(),
            message_max: self.snapshot.config.settings.max_packet_size as usize,
            registry: &self.shared.registry,
            outstanding_max: OUTSTANDING_MAX,
        };
        let link = match activity {
            Activity::Linked(slot) => {
                let slot = self.servers.get_mut(*slot).and_then(|slot| slot.here.as_mut());
                slot.and_then(|server| server.link())
            }
            Activity::Idle | Activity::Waiting => None,
        };
        let linked = link.is_some();
        let (count, stop) = session.advance(link, data, &mut self.flow, &rules);
        if linked && count > 0 {
            let stats = &place.pool.stats[usize::from(self.id.0)];
            Stats::add(&stats.received, count as u64);
            if client.query_since.is_none() {
                client.query_since = Some(self.now);
                Stats::add(&stats.queries, 1);
            }
            if client.xact_since.is_none() {
                client.xact_since = Some(self.now);
                Stats::add(&stats.xacts, 1);
            }
        }
        (count, stop)
    }

    /// Sends what the session produced. Answers false if the client is gone.
    pub(super) fn pass_to_server(&mut self, key: Key, data: &[u8]) -> bool {
        let Some(client) = self.clients.get_mut(key) else {
            self.flow.server.clear();
            self.flow.client.clear();
            return false;
        };
        if !self.flow.client.is_empty() {
            let result = client.output.send(&mut client.stream, &self.flow.client);
            self.flow.client.clear();
            if result.is_err() {
                self.flow.server.clear();
                self.client_gone(key);
                return false;
            }
            if !client.output.is_empty() {
                self.watch_client(key, Watch::Both);
            }
        }
        if self.flow.server.is_empty() {
            return true;
        }
        let slot = self.clients.get(key).and_then(|client| client.server());
        let server = slot.and_then(|slot| self.servers.get_mut(slot));
        let Some(server) = server.and_then(|slot| slot.here.as_mut()) else {
            self.flow.server.clear();
            return true;
        };
        let result = server.output.send(&mut server.stream, self.flow.server.bytes(data));
        self.flow.server.clear();
        let full = !server.output.is_empty();
        match (result, slot) {
            (Err(_), Some(slot)) => {
                // The server may have said why before it went away.
                self.read_server(slot);
                self.server_lost(slot, "server connection closed");
                self.clients.get(key).is_some()
            }
            (Ok(()), Some(slot)) if full => {
                self.watch_server(slot, Watch::Both);
                true
            }
            _ => true,
        }
    }

    fn flush_client(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.output.is_empty() {
            return;
        }
        if client.output.flush(&mut client.stream).is_err() {
            return self.close_client(key, "unexpected eof", Farewell::Silent);
        }
        if !client.output.is_empty() {
            return;
        }
        if matches!(client.stage, Stage::Leaving) {
            return self.forget_client(key);
        }
        let server = client.server();
        self.watch_client(key, Watch::Input);
        self.todo.extend(server.map(Todo::Server));
        self.todo.push_back(Todo::Client(key));
    }
}

/// Servers.
impl Worker {
    pub(super) fn server_ready(&mut self, key: Key, event: Ready) {
        let Some(slot) = self.servers.get_mut(key) else { return };
        if slot.here.is_none() && !self.claim_parked(key) {
            return;
        }
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        if matches!(server.stage, ServerStage::Connecting(_)) {
            return self.server_connected(key, event);
        }
        if event.closed {
            server.unread = Unread::End;
        }
        if event.writable {
            self.flush_server(key);
        }
        let server = self.servers.get(key).and_then(|slot| slot.here.as_ref());
        if event.readable && server.is_some_and(|server| server.stream.is_shaking()) {
            return self.shake_later(Source::Server(key));
        }
        if event.readable {
            self.read_server(key);
        }
    }

    fn flush_server(&mut self, key: Key) {
        let Some(slot) = self.servers.get_mut(key) else { return };
        let Some(server) = slot.here.as_mut() else { return };
        if server.output.is_empty() {
            return;
        }
        if server.output.flush(&mut server.stream).is_err() {
            return self.server_lost(key, "server connection closed");
        }
        if server.output.is_empty() {
            let client = server.client();
            self.watch_server(key, Watch::Input);
            self.todo.extend(client.map(Todo::Client));
        }
    }

    /// Reads a server until a short read; then, if it is free, gives it back.
    pub(super) fn read_server(&mut self, key: Key) {
        for _ in 0..READS_PER_TURN {
            let Some(slot) = self.servers.get_mut(key) else { return };
            let Some(server) = slot.here.as_mut() else { return };
            let client = server.client().and_then(|client| self.clients.get(client));
            if self.rest.is_suspended() || client.is_some_and(|client| !client.output.is_empty()) {
                server.unread.put_off();
                return;
            }
            server.unread.reading();
            let kept = server.input.len();
            self.scratch[..kept].copy_from_slice(&server.input);
            let count = match server.stream.recv(&mut self.scratch[kept..]) {
                Recv::Bytes(count) => count,
                Recv::Blocked => return self.give_back(key),
                Recv::Eof | Recv::Failed(_) => {
                    return self.server_lost(key, "server conn crashed?");
                }
            };
            server.input.clear();
            let scratch = std::mem::take(&mut self.scratch);
            let used = self.server_bytes(key, &scratch[..kept + count]);
            if let Some(slot) = self.servers.get_mut(key)
                && let Some(server) = slot.here.as_mut()
            {
                self.spare.keep(&mut server.input, &scratch[used..kept + count]);
                if server.input.is_empty() && server.input.capacity() > 0 {
                    self.spare.recycle(std::mem::take(&mut server.input));
                }
            }
            let room = scratch.len() - kept;
            let server = self.servers.get(key).and_then(|slot| slot.here.as_ref());
            let drained = server.is_none_or(|server| {
                server.stream.is_drained(count, room) && server.unread != Unread::End
            });
            self.scratch = scratch;
            if drained {
                return self.give_back(key);
            }
        }
        self.todo.push_back(Todo::Server(key));
    }

    /// Uses bytes of a server; answers how many.
    fn server_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let Some(slot) = self.servers.get_mut(key) else { return data.len() };
        let Some(server) = slot.here.as_mut() else { return data.len() };
        let client_key = server.client();
        let link = match &mut server.stage {
            ServerStage::Ready(link, _) => link,
            ServerStage::Login(_) => return self.server_login_bytes(key, data),
            ServerStage::Securing(_) => return self.tls_answer(key, data),
            ServerStage::Connecting(_) | ServerStage::Between => return 0,
        };
        let client = client_key.and_then(|key| self.clients.get_mut(key));
        let session = client.and_then(|client| match &mut client.stage {
            Stage::Session(session, _) => Some(session.linked_client()),
            _ => None,
        });
        let tracked = &self.snapshot.tracked;
        let received = link.receive(data, &mut self.reply, tracked, session);
        let used = received.consumed;
        server.heard = self.now;
        if let Some(signal) = &received.signal {
            let kind = match &signal.sqlstate {
                b"25006" => Some(SignalKind::ReadOnly),
                _ if signal.is_shutdown() => Some(SignalKind::ShuttingDown),
                _ => None,
            };
            if let Some(kind) = kind {
                self.shared.suspect(&server.pool, server.lane, kind);
            }
        }
        let odd = received.unexpected.map(|tag| (char::from(tag), server.prefix()));
        if let Some(client) = client_key {
            self.note_progress(client, key, &received);
            self.pass_to_client(client, data);
        }
        self.reply.clear();
        if let Some((tag, prefix)) = odd {
            let line = format!("{prefix} got packet '{tag}' from server when not linked");
            self.shared.log.write(crate::log::Level::Warning, &line);
        }
        if let Some(reason) = received.failure {
            self.server_failed(key, reason);
            return data.len();
        }
        used
    }

    fn pass_to_client(&mut self, key: Key, data: &[u8]) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let bytes = self.reply.bytes(data);
        if bytes.is_empty() {
            return;
        }
        if let Some(place) = &client.place {
            let stats = &place.pool.stats[usize::from(self.id.0)];
            Stats::add(&stats.sent, bytes.len() as u64);
        }
        match client.output.send(&mut client.stream, bytes) {
            Ok(()) if client.output.is_empty() => {}
            Ok(()) => self.watch_client(key, Watch::Both),
            Err(_) => self.close_client(key, "unexpected eof", Farewell::Silent),
        }
    }

    /// Clocks and modes that depend on ReadyForQuery.
    fn note_progress(&mut self, client_key: Key, key: Key, received: &Received) {
        if received.ready == 0 {
            return;
        }
        let Some(client) = self.clients.get_mut(client_key) else { return };
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let ServerStage::Ready(link, _) = &server.stage else { return };
        if !link.is_quiet() {
            return;
        }
        let status = link.status();
        if let Stage::Session(session, _) = &mut client.stage {
            session.settled();
        }
        let Some(place) = &client.place else { return };
        let stats = &place.pool.stats[usize::from(self.id.0)];
        let since = |at: Option<std::time::Instant>| {
            at.map_or(0, |at| self.now.saturating_duration_since(at).as_micros() as u64)
        };
        Stats::add(&stats.query_time, since(client.query_since.take()));
        if status == Status::Idle {
            Stats::add(&stats.xact_time, since(client.xact_since.take()));
        } else if place.pool.mode() == PoolMode::Statement {
            let text = "transaction blocks not allowed in statement pooling mode";
            self.server_failed(key, text);
        }
    }
}
