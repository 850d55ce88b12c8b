//! Traffic: bytes of clients to their servers and back.

use switchyard_core::server::link::{Received, Status};
use switchyard_core::switchover::probe::SignalKind;

use super::parts::{Activity, Client, ServerStage, Slot, Stage, Use};
use super::{Pooler, Todo};
use crate::env::{Env, Messages};
use crate::net::{End, Recv};

/// What came of bytes for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// They are on their way.
    On,
    /// Another server has to be asked.
    Back,
    /// The client is gone.
    Lost,
}

/// Reads of one connection in a turn.
const READS_PER_TURN: usize = 8;
/// Bytes read at once.
const SCRATCH: usize = 64 * 1024;
/// Bytes that may wait for a client that does not read.
const CLIENT_BACKLOG: usize = 64 * 1024;
/// Why a server is lost that takes no bytes any more.
const UNWRITABLE: &str = "server connection closed";

/// Sends bytes behind those that wait; answers false if the wire is broken.
pub(super) fn send(env: &mut Env, end: End, output: &mut Vec<u8>, bytes: &[u8]) -> bool {
    output.extend_from_slice(bytes);
    if output.is_empty() {
        return true;
    }
    match env.send(end, output) {
        Ok(count) => {
            output.drain(..count);
            true
        }
        Err(_) => false,
    }
}

/// Clients.
impl Pooler {
    pub(super) fn client_ready(&mut self, env: &mut Env, w: usize, key: u64, end: End) {
        self.flush_client(env, w, key);
        let Some(client) = self.workers[w].clients.get_mut(&key) else { return };
        if env.net.is_closed(end) && client.is_waiting() {
            return self.close_client(env, w, key, "client unexpected eof", None);
        }
        if env.net.is_readable(end) {
            self.read_client(env, w, key);
        }
    }

    fn may_read(&self, w: usize, client: &Client) -> bool {
        let held = client.doubt.is_some() || client.asking.is_some();
        if client.output.len() > CLIENT_BACKLOG || held {
            return false;
        }
        match &client.stage {
            Stage::AwaitingWelcome(_) | Stage::Session(_, Activity::Waiting) => false,
            Stage::Session(_, Activity::Idle) => true,
            Stage::Session(_, Activity::Linked(slot)) => {
                let server = self.workers[w].servers.get(slot).and_then(|slot| slot.here.as_ref());
                server.is_some_and(|server| match &server.stage {
                    ServerStage::Ready(link, _) => {
                        let max = self.settings.outstanding_max;
                        server.output.is_empty() && link.outstanding().len() < max
                    }
                    ServerStage::Login(_) | ServerStage::Between => false,
                })
            }
        }
    }

    pub(super) fn may_go_on(&self, w: usize, key: u64) -> bool {
        self.workers[w].clients.get(&key).is_some_and(|client| self.may_read(w, client))
    }

    fn read_client(&mut self, env: &mut Env, w: usize, key: u64) {
        for _ in 0..READS_PER_TURN {
            let may = self.may_go_on(w, key);
            let Some(client) = self.workers[w].clients.get_mut(&key) else { return };
            client.unread = !may;
            if !may {
                return;
            }
            match env.recv(client.end, SCRATCH) {
                Recv::Bytes(bytes) => client.input.extend_from_slice(&bytes),
                Recv::Blocked => return,
                Recv::Eof | Recv::Failed => {
                    return self.close_client(env, w, key, "client unexpected eof", None);
                }
            }
            client.active = env.now;
            self.use_input(env, w, key);
        }
        if let Some(client) = self.workers[w].clients.get_mut(&key) {
            client.unread = true;
            self.workers[w].todo.push_back(Todo::Client(key));
        }
    }

    /// Goes on with bytes that were put aside, then with the wire.
    pub(super) fn kick_client(&mut self, env: &mut Env, w: usize, key: u64) {
        let Some(client) = self.workers[w].clients.get(&key) else { return };
        if !client.input.is_empty() && self.may_read(w, client) {
            self.use_input(env, w, key);
        }
        let Some(client) = self.workers[w].clients.get(&key) else { return };
        if client.unread && self.may_read(w, client) {
            self.read_client(env, w, key);
        }
    }

    fn use_input(&mut self, env: &mut Env, w: usize, key: u64) {
        let Some(client) = self.workers[w].clients.get_mut(&key) else { return };
        if matches!(client.stage, Stage::AwaitingWelcome(_)) {
            return;
        }
        let mut input = std::mem::take(&mut client.input);
        let used = self.session_bytes(env, w, key, &input);
        input.drain(..used);
        if let Some(client) = self.workers[w].clients.get_mut(&key) {
            client.input = input;
        }
    }

    /// Sends what the session has made of `data`, which are the bytes that it has used.
    pub(super) fn pass_to_server(
        &mut self,
        env: &mut Env,
        w: usize,
        key: u64,
        data: &[u8],
    ) -> Passed {
        let worker = &mut self.workers[w];
        let Some(client) = worker.clients.get_mut(&key) else {
            worker.flow.server.clear();
            worker.flow.client.clear();
            return Passed::Lost;
        };
        if !worker.flow.client.is_empty() {
            let told = std::mem::take(&mut worker.flow.client);
            if !send(env, client.end, &mut client.output, &told) {
                worker.flow.server.clear();
                self.close_client(env, w, key, "client unexpected eof", None);
                return Passed::Lost;
            }
        }
        if worker.flow.server.is_empty() {
            return Passed::On;
        }
        let slot = client.server();
        let bytes = worker.flow.server.bytes(data).to_vec();
        worker.flow.server.clear();
        let server = slot.and_then(|slot| worker.servers.get_mut(&slot));
        let Some(server) = server.and_then(|slot| slot.here.as_mut()) else { return Passed::On };
        let (node, session, lane, purpose) =
            (server.node, server.session, server.lane, server.purpose);
        env.note(|| format!("w{w} client {key} to node {node}/{session}: {}", Messages(&bytes)));
        if send(env, server.end, &mut server.output, &bytes) {
            self.note_use(w, lane, purpose);
            return Passed::On;
        }
        if let Some(slot) = slot {
            if self.take_back(env, w, key, slot, data) {
                return Passed::Back;
            }
            self.unwritable(env, w, slot);
        }
        let stays = self.workers[w].clients.contains_key(&key);
        if stays { Passed::On } else { Passed::Lost }
    }

    fn flush_client(&mut self, env: &mut Env, w: usize, key: u64) {
        let Some(client) = self.workers[w].clients.get_mut(&key) else { return };
        if client.output.is_empty() {
            return;
        }
        if !send(env, client.end, &mut client.output, &[]) {
            return self.close_client(env, w, key, "unexpected eof", None);
        }
        if !client.output.is_empty() {
            return;
        }
        let server = client.server();
        self.workers[w].todo.extend(server.map(Todo::Server));
        self.workers[w].todo.push_back(Todo::Client(key));
    }
}

/// Servers.
impl Pooler {
    fn here(&mut self, w: usize, key: u64) -> Option<&mut Box<super::Server>> {
        self.workers[w].servers.get_mut(&key).and_then(|slot: &mut Slot| slot.here.as_mut())
    }

    pub(super) fn server_ready(&mut self, env: &mut Env, w: usize, key: u64) {
        let Some(slot) = self.workers[w].servers.get(&key) else { return };
        if slot.here.is_none() && !self.claim_parked(w, key) {
            return;
        }
        self.flush_server(env, w, key);
        let Some(server) = self.here(w, key) else { return };
        let end = server.end;
        if env.net.is_readable(end) {
            self.read_server(env, w, key);
        } else if self.workers[w].is_use(key, |usage| *usage == Use::Idle) {
            self.give_back(env, w, key);
        }
    }

    fn flush_server(&mut self, env: &mut Env, w: usize, key: u64) {
        let Some(server) = self.here(w, key) else { return };
        if server.output.is_empty() {
            return;
        }
        if !send(env, server.end, &mut server.output, &[]) {
            return self.unwritable(env, w, key);
        }
        if server.output.is_empty() {
            let client = server.client();
            self.workers[w].todo.extend(client.map(Todo::Client));
        }
    }

    /// A server takes no bytes any more. It may have said why before it went away.
    fn unwritable(&mut self, env: &mut Env, w: usize, key: u64) {
        self.read_out(env, w, key, UNWRITABLE);
        self.server_lost(env, w, key, UNWRITABLE);
    }

    /// Reads a server until nothing is there; then, if it is free, gives it back.
    pub(super) fn read_server(&mut self, env: &mut Env, w: usize, key: u64) {
        self.read_out(env, w, key, "server conn crashed?");
    }

    /// The same; the server is lost for this reason if its end comes first.
    fn read_out(&mut self, env: &mut Env, w: usize, key: u64, reason: &str) {
        for _ in 0..READS_PER_TURN {
            let worker = &mut self.workers[w];
            let Some(server) = worker.servers.get_mut(&key).and_then(|slot| slot.here.as_mut())
            else {
                return;
            };
            let client = server.client().and_then(|client| worker.clients.get(&client));
            if client.is_some_and(|client| !client.output.is_empty()) {
                return;
            }
            match env.recv(server.end, SCRATCH) {
                Recv::Bytes(bytes) => server.input.extend_from_slice(&bytes),
                Recv::Blocked => return self.give_back(env, w, key),
                Recv::Eof | Recv::Failed => {
                    return self.server_lost(env, w, key, reason);
                }
            }
            let mut input = std::mem::take(&mut server.input);
            let used = self.server_bytes(env, w, key, &input);
            input.drain(..used);
            if let Some(server) = self.here(w, key) {
                server.input = input;
            }
        }
        self.workers[w].todo.push_back(Todo::Server(key));
    }

    /// Uses bytes of a server; answers how many.
    fn server_bytes(&mut self, env: &mut Env, w: usize, key: u64, data: &[u8]) -> usize {
        let worker = &mut self.workers[w];
        let Some(server) = worker.servers.get_mut(&key).and_then(|slot| slot.here.as_mut()) else {
            return data.len();
        };
        let client_key = server.client();
        let (lane, pool) = (server.lane, server.pool);
        let link = match &mut server.stage {
            ServerStage::Ready(link, _) => link,
            ServerStage::Login(_) => return self.server_login_bytes(env, w, key, data),
            ServerStage::Between => return 0,
        };
        let client = client_key.and_then(|key| worker.clients.get_mut(&key));
        let session = client.and_then(|client| match &mut client.stage {
            Stage::Session(session, _) => Some(session.linked_client()),
            Stage::AwaitingWelcome(_) => None,
        });
        let received = link.receive(data, &mut worker.reply, &self.tracked, session);
        server.heard = env.now;
        let signal = received.signal.as_ref().and_then(|signal| match &signal.sqlstate {
            b"25006" => Some(SignalKind::ReadOnly),
            _ if signal.is_shutdown() => Some(SignalKind::ShuttingDown),
            _ => None,
        });
        if let Some(kind) = signal {
            self.suspect(env, w, pool, lane, kind);
        }
        if let Some(client) = client_key {
            let withheld = self.withhold(env, w, client, lane, data);
            self.note_progress(env, w, client, key, &received);
            if !self.workers[w].servers.contains_key(&key) {
                self.workers[w].reply.clear();
                return data.len();
            }
            if !withheld {
                self.pass_to_client(env, w, client, data);
            }
        }
        self.workers[w].reply.clear();
        if matches!(received.unexpected, Some(b'E' | b'N')) {
            let idle = self.workers[w].is_use(key, |usage| *usage == Use::Idle);
            let closed = self.here(w, key).is_some_and(|s| env.net.is_closed(s.end));
            if idle && !closed {
                let leaving = received.signal.is_some_and(|signal| signal.is_final());
                let reason = if leaving { "server conn crashed?" } else { "idle server got dirty" };
                self.close_server(env, w, key, reason);
            }
            return data.len();
        }
        if let Some(reason) = received.failure {
            self.server_broke(env, w, key, reason);
            return data.len();
        }
        received.consumed
    }

    fn pass_to_client(&mut self, env: &mut Env, w: usize, key: u64, data: &[u8]) {
        let worker = &mut self.workers[w];
        let Some(client) = worker.clients.get_mut(&key) else { return };
        let bytes = worker.reply.bytes(data);
        if bytes.is_empty() {
            return;
        }
        env.note(|| format!("w{w} client {key} is told {}", Messages(bytes)));
        if !send(env, client.end, &mut client.output, bytes) {
            return self.close_client(env, w, key, "unexpected eof", None);
        }
        // It may have had to wait for answers.
        if client.output.is_empty() && (!client.input.is_empty() || client.unread) {
            worker.todo.push_back(Todo::Client(key));
        }
    }

    /// Clocks and modes that depend on ReadyForQuery.
    fn note_progress(
        &mut self,
        env: &mut Env,
        w: usize,
        client_key: u64,
        key: u64,
        received: &Received,
    ) {
        if received.ready == 0 {
            return;
        }
        let worker = &mut self.workers[w];
        let Some(client) = worker.clients.get_mut(&client_key) else { return };
        let Some(server) = worker.servers.get(&key).and_then(|slot| slot.here.as_ref()) else {
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
        client.query_since = None;
        if status == Status::Idle {
            client.xact_since = None;
        }
        let tenure = self.pools[client.pool].rules.tenure;
        if let Some(text) = switchyard_core::server::duty::forbids(tenure, status) {
            self.close_both(env, w, client_key, key, text);
        }
    }
}
