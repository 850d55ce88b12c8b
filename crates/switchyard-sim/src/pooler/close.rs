//! Ends of connections.

use switchyard_core::client::session::Loyalty;
use switchyard_core::client::untracked::Kept;
use switchyard_core::pool::OpenFailure;
use switchyard_core::server::duty::{self, Leftover, Orphan, Unsent};
use switchyard_core::switchover::probe::SignalKind;
use switchyard_wire::build::{self, Report};

use super::parts::{Activity, ServerStage, Stage, Use};
use super::relay::send;
use super::{Pooler, Todo};
use crate::env::Env;

/// Clients.
impl Pooler {
    /// Ends a client, with a FATAL of this SQLSTATE if there is one to be sent.
    pub(super) fn close_client(
        &mut self,
        env: &mut Env,
        w: usize,
        key: u64,
        reason: &str,
        sqlstate: Option<&str>,
    ) {
        let Some(client) = self.workers[w].clients.get(&key) else { return };
        let (pool, waiting, server) = (client.pool, client.is_waiting(), client.server());
        env.note(|| format!("w{w} client {key} is closed: {reason}"));
        if waiting {
            let (now, ticket) = (env.now, self.ticket(w, key));
            self.decide(w, pool, |cell| cell.machine.leave(now, ticket));
        }
        let mut sqlstate = sqlstate;
        if let Some(slot) = server {
            sqlstate = sqlstate.filter(|_| !self.is_torn(w, slot));
            self.abandon(env, w, slot, key);
        }
        let Some(mut client) = self.workers[w].clients.remove(&key) else { return };
        if let Some(sqlstate) = sqlstate {
            let mut bytes = Vec::new();
            let report = Report { severity: "FATAL", sqlstate, message: reason, detail: None };
            build::error_response(&mut bytes, report);
            send(env, client.end, &mut client.output, &bytes);
        }
        env.close(client.end);
    }

    /// Whether the client of a server has seen a part of a message only.
    fn is_torn(&self, w: usize, slot: u64) -> bool {
        let server = self.workers[w].servers.get(&slot).and_then(|slot| slot.here.as_ref());
        server.is_some_and(|server| match &server.stage {
            ServerStage::Ready(link, _) => link.shows_part(),
            ServerStage::Login(_) | ServerStage::Between => false,
        })
    }

    /// A client leaves the server it was linked to.
    fn abandon(&mut self, env: &mut Env, w: usize, slot: u64, key: u64) {
        let worker = &mut self.workers[w];
        let (inside, kept) = match worker.clients.get(&key).map(|client| &client.stage) {
            Some(Stage::Session(session, _)) => (session.is_inside_message(), session.kept()),
            Some(Stage::AwaitingWelcome(_)) | None => (false, Kept::Nothing),
        };
        if let Some(client) = worker.clients.get_mut(&key) {
            client.set_activity(Activity::Idle);
        }
        let Some(server) = worker.servers.get_mut(&slot).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let ServerStage::Ready(link, _) = &mut server.stage else { return };
        let unsent = Unsent::of(inside || !server.output.is_empty());
        match duty::orphaned(link, unsent, Leftover::Close) {
            Orphan::Release => {
                server.kept = kept;
                server.set_use(Use::Idle);
                self.release(env, w, slot);
            }
            Orphan::Untouched => {
                link.forget_client();
                self.release_untouched(env, w, slot);
            }
            Orphan::RollBack => unreachable!("what is left behind is closed"),
            Orphan::Close(reason) => self.close_server(env, w, slot, reason),
        }
    }
}

/// Servers.
impl Pooler {
    /// Closes a server that its pool has forgotten already.
    pub(super) fn drop_server(&mut self, env: &mut Env, w: usize, slot: u64, reason: &str) {
        let place = self.workers[w].servers.remove(&slot);
        let Some(mut server) = place.and_then(|slot| slot.here) else { return };
        let (node, session) = (server.node, server.session);
        env.note(|| format!("w{w} server {node}/{session} is closed: {reason}"));
        if matches!(&server.stage, ServerStage::Ready(link, _) if link.listens()) {
            let mut bytes = Vec::new();
            build::empty(&mut bytes, switchyard_wire::tag::frontend::TERMINATE);
            send(env, server.end, &mut server.output, &bytes);
        }
        env.close(server.end);
    }

    /// Closes a server that nobody is linked to.
    pub(super) fn close_server(&mut self, env: &mut Env, w: usize, slot: u64, reason: &str) {
        let Some(place) = self.workers[w].servers.get(&slot) else { return };
        let (pool, id, now) = (place.pool, place.id, env.now);
        self.drop_server(env, w, slot, reason);
        self.decide(w, pool, |cell| cell.machine.closed(now, id));
    }

    /// Ends a client together with its server, the server first.
    pub(super) fn close_both(
        &mut self,
        env: &mut Env,
        w: usize,
        key: u64,
        slot: u64,
        reason: &str,
    ) {
        if let Some(client) = self.workers[w].clients.get_mut(&key) {
            client.set_activity(Activity::Idle);
        }
        let sqlstate = Some("08P01").filter(|_| !self.is_torn(w, slot));
        self.close_server(env, w, slot, reason);
        self.close_client(env, w, key, reason, sqlstate);
    }

    /// A server connection failed.
    pub(super) fn server_failed(&mut self, env: &mut Env, w: usize, slot: u64, reason: &str) {
        let Some(place) = self.workers[w].servers.get(&slot) else { return };
        let Some(lane) = place.here.as_ref().map(|server| server.lane) else { return };
        self.suspect(env, w, place.pool, lane, SignalKind::Disconnected);
        self.server_broke(env, w, slot, reason);
    }

    /// A server cannot be used any more, which says nothing about its node.
    pub(super) fn server_broke(&mut self, env: &mut Env, w: usize, slot: u64, reason: &str) {
        let Some(place) = self.workers[w].servers.get(&slot) else { return };
        let Some(server) = place.here.as_ref() else { return };
        let client = server.client();
        if matches!(server.stage, ServerStage::Login(_)) {
            return self.open_failed(env, w, slot, OpenFailure::connect(reason));
        }
        let (pool, id, now) = (place.pool, place.id, env.now);
        let sqlstate = Some("08P01").filter(|_| !self.is_torn(w, slot));
        self.drop_server(env, w, slot, reason);
        if let Some(key) = client {
            if let Some(client) = self.workers[w].clients.get_mut(&key) {
                client.set_activity(Activity::Idle);
            }
            self.close_client(env, w, key, reason, sqlstate);
        }
        self.decide(w, pool, |cell| cell.machine.closed(now, id));
    }

    /// A server connection has ended. A client in the middle of its work is told, and stays if it
    /// may.
    pub(super) fn server_lost(&mut self, env: &mut Env, w: usize, slot: u64, reason: &str) {
        if self.move_session(env, w, slot, reason) {
            return;
        }
        let Some((key, told)) = self.part(w, slot) else {
            return self.server_failed(env, w, slot, reason);
        };
        let Some(place) = self.workers[w].servers.get(&slot) else { return };
        let (pool, id, now) = (place.pool, place.id, env.now);
        if let Some(lane) = place.here.as_ref().map(|server| server.lane) {
            self.suspect(env, w, pool, lane, SignalKind::Disconnected);
        }
        self.drop_server(env, w, slot, reason);
        self.decide(w, pool, |cell| cell.machine.closed(now, id));
        let Some(client) = self.workers[w].clients.get_mut(&key) else { return };
        client.set_activity(Activity::Idle);
        (client.query_since, client.xact_since) = (None, None);
        env.note(|| format!("w{w} client {key} stays and is told {}", crate::env::Messages(&told)));
        if !send(env, client.end, &mut client.output, &told) {
            return self.close_client(env, w, key, "client unexpected eof", None);
        }
        if client.output.is_empty() {
            self.workers[w].todo.push_back(Todo::Client(key));
        }
    }

    /// Separates a client that may stay from its lost server.
    fn part(&mut self, w: usize, slot: u64) -> Option<(u64, Vec<u8>)> {
        let worker = &mut self.workers[w];
        let server = worker.servers.get_mut(&slot)?.here.as_mut()?;
        let key = server.client()?;
        if self.pools[server.pool].rules.loyalty != Loyalty::Stays {
            return None;
        }
        let client = worker.clients.get_mut(&key)?;
        let Stage::Session(session, _) = &mut client.stage else { return None };
        let owed = server.link()?.lose(session.linked_client())?;
        let mut told = Vec::new();
        session.lose(owed, &mut told);
        Some((key, told))
    }

    /// An attempt to open a server failed.
    pub(super) fn open_failed(&mut self, env: &mut Env, w: usize, slot: u64, failure: OpenFailure) {
        let Some(place) = self.workers[w].servers.get(&slot) else { return };
        let (pool, id, now) = (place.pool, place.id, env.now);
        let reason = failure.reason.clone();
        self.drop_server(env, w, slot, &reason);
        self.decide(w, pool, |cell| cell.machine.open_failed(now, id, failure));
    }
}
