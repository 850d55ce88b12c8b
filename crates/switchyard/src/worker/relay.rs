//! Traffic: bytes of clients to their servers and back.
//!
//! The machines say what may pass; this file reads, sends once per batch, keeps rests, and stops
//! a reader whose peer is full.

use switchyard_core::switchover::probe::SignalKind;
use switchyard_io::poller::Watch;
use switchyard_io::{Key, Ready, Recv};

use crate::pools::Stats;
use crate::worker::client::{Activity, Client, Stage};
use crate::worker::close::Farewell;
use crate::worker::hooking::Asking;
use crate::worker::server::{Server, Stage as ServerStage, Unread, Use};
use crate::worker::{SCRATCH, Slot, Source, Todo, Worker};

/// Reads of one connection in a turn, so that a busy one does not starve the others.
const READS_PER_TURN: usize = 8;
/// Room for reading behind bytes that wait for the rest of their message.
const READ_MORE: usize = 64 * 1024;
/// Requests of one client that may be unanswered.
pub(super) const OUTSTANDING_MAX: usize = 8192;
/// Bytes that may wait for a client that does not read.
const CLIENT_BACKLOG: usize = 64 * 1024;
/// Why a server is lost that takes no bytes any more.
const UNWRITABLE: &str = "server connection closed";

/// What has become of a client's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// They are on their way.
    On,
    /// The client is gone.
    Lost,
    /// The server has got nothing of them, and the client may ask another one.
    Back,
}

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
            Stage::Login(state) => state.dialogue.is_none(),
            Stage::AwaitingWelcome(_) => true,
            Stage::Start | Stage::Cancel(_) | Stage::Leaving => false,
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

    pub(super) fn may_read(client: &Client, servers: &switchyard_io::Table<Slot>) -> bool {
        if client.output.len() > CLIENT_BACKLOG
            || matches!(client.asking, Asking::Asked(..))
            || client.moving.is_some()
            || client.doubt.is_some()
        {
            return false;
        }
        match &client.stage {
            Stage::Start | Stage::Cancel(_) => true,
            Stage::Login(state) => state.dialogue.is_some(),
            Stage::Console(console) => !console.is_waiting(),
            Stage::AwaitingWelcome(_) | Stage::Leaving => false,
            Stage::Session(_, Activity::Idle) => true,
            Stage::Session(_, Activity::Waiting) => false,
            Stage::Session(_, Activity::Linked(slot)) => {
                let server = servers.get(*slot).and_then(|slot| slot.here.as_ref());
                server.is_some_and(|server| match &server.stage {
                    ServerStage::Ready(link, _)
                        if server.is_kept_from_writer() && link.is_free() =>
                    {
                        client.is_inside_message()
                    }
                    ServerStage::Ready(link, _) => {
                        server.output.is_empty() && link.outstanding().len() < OUTSTANDING_MAX
                    }
                    ServerStage::Connecting(..)
                    | ServerStage::Securing(_)
                    | ServerStage::Login(_)
                    | ServerStage::Between
                    | ServerStage::Asked(_) => false,
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
            Stage::Cancel(_) | Stage::Leaving => data.len(),
            Stage::AwaitingWelcome(_) => 0,
        }
    }

    /// Sends what the session produced of `data`.
    pub(super) fn pass_to_server(&mut self, key: Key, data: &[u8]) -> Passed {
        let Some(client) = self.clients.get_mut(key) else {
            self.flow.server.clear();
            self.flow.client.clear();
            return Passed::Lost;
        };
        if !self.flow.client.is_empty() {
            let result = client.output.send(&mut client.stream, &self.flow.client);
            self.flow.client.clear();
            if result.is_err() {
                self.flow.server.clear();
                self.client_gone(key);
                return Passed::Lost;
            }
            if !client.output.is_empty() {
                self.watch_client(key, Watch::Both);
            }
        }
        if self.flow.server.is_empty() {
            return Passed::On;
        }
        let slot = self.clients.get(key).and_then(|client| client.server());
        let server = slot.and_then(|slot| self.servers.get_mut(slot));
        let Some(server) = server.and_then(|slot| slot.here.as_mut()) else {
            self.flow.server.clear();
            return Passed::On;
        };
        let result = server.output.send(&mut server.stream, self.flow.server.bytes(data));
        self.flow.server.clear();
        let full = !server.output.is_empty();
        match (result, slot) {
            (Err(_), Some(slot)) if self.take_back(key, slot, data) => Passed::Back,
            (Err(_), Some(slot)) => {
                self.unwritable(slot);
                if self.clients.get(key).is_some() { Passed::On } else { Passed::Lost }
            }
            (Ok(()), Some(slot)) if full => {
                self.watch_server(slot, Watch::Both);
                Passed::On
            }
            _ => Passed::On,
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
        let claimed = slot.here.is_none();
        if claimed && !self.claim_parked(key) {
            return;
        }
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        if matches!(server.stage, ServerStage::Connecting(..)) {
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
        } else if claimed {
            self.give_back(key);
        }
    }

    fn flush_server(&mut self, key: Key) {
        let Some(slot) = self.servers.get_mut(key) else { return };
        let Some(server) = slot.here.as_mut() else { return };
        if server.output.is_empty() {
            return;
        }
        if server.output.flush(&mut server.stream).is_err() {
            return self.unwritable(key);
        }
        if server.output.is_empty() {
            let client = server.client();
            self.watch_server(key, Watch::Input);
            self.todo.extend(client.map(Todo::Client));
        }
    }

    /// A server takes no bytes any more. It may have said why before it went away.
    fn unwritable(&mut self, key: Key) {
        // Whoever reads the client may have the scratch area in use.
        if self.scratch.is_empty() {
            self.scratch = vec![0; SCRATCH];
        }
        self.read_out(key, UNWRITABLE);
        self.server_lost(key, UNWRITABLE);
    }

    /// Reads a server until a short read; then, if it is free, gives it back.
    pub(super) fn read_server(&mut self, key: Key) {
        self.read_out(key, "server conn crashed?");
    }

    /// The same; the server is lost for this reason if its end comes first.
    fn read_out(&mut self, key: Key, reason: &str) {
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
                Recv::Failed(error) => {
                    server.fell(&error);
                    return self.server_lost(key, reason);
                }
                Recv::Eof => return self.server_lost(key, reason),
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
            ServerStage::Asked(_) => return self.lookup_bytes(key, data),
            ServerStage::Connecting(..) | ServerStage::Between => return 0,
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
        let lane = server.lane;
        let kept = matches!(server.stage, ServerStage::Ready(_, Use::Kept(_)));
        let odd = received.unexpected.filter(|_| !kept).map(|tag| (tag, server.prefix()));
        if !received.told.is_empty() {
            server.heed(&received.told);
            self.tell(key, client_key, &received);
        }
        if let Some(client) = client_key {
            let withheld = self.withhold(client, lane, data);
            self.note_progress(client, key, &received);
            if self.servers.get(key).is_none() {
                self.reply.clear();
                return data.len();
            }
            if !withheld {
                self.pass_to_client(client, data);
            }
        }
        self.reply.clear();
        if let Some((tag, prefix)) = odd {
            let tag = char::from(tag);
            let line = format!("{prefix} got packet '{tag}' from server when not linked");
            self.shared.log.write(crate::log::Level::Warning, &line);
            if matches!(tag, 'E' | 'N') {
                self.soil(key, received.signal.is_some_and(|signal| signal.is_final()));
                return data.len();
            }
        }
        if received.failure.is_some() {
            self.cannot_go_on(key, client_key, &received);
            return data.len();
        }
        used
    }

    /// An idle server has complained: nobody may get it again. If it has hung up as well, or says
    /// that it is about to, that is what the log tells.
    fn soil(&mut self, key: Key, leaving: bool) {
        let server = self.servers.get(key).and_then(|slot| slot.here.as_ref());
        let idle = |server: &Server| {
            matches!(server.stage, ServerStage::Ready(_, Use::Idle)) && server.unread != Unread::End
        };
        if server.is_some_and(|server| idle(server)) {
            let reason = if leaving { "server conn crashed?" } else { "idle server got dirty" };
            self.close_server(key, reason);
        }
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
            // It may have had to wait for answers.
            Ok(()) if client.output.is_empty() => {
                if !client.input.is_empty() || client.unread != Unread::No {
                    self.todo.push_back(Todo::Client(key));
                }
            }
            Ok(()) => self.watch_client(key, Watch::Both),
            Err(_) => self.close_client(key, "unexpected eof", Farewell::Silent),
        }
    }
}
