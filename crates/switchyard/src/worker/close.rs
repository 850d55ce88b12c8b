//! Ends of connections, in the order in which the log has to tell them: the line that explains an
//! end is written before anybody can see it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use switchyard_core::client::session::Loyalty;
use switchyard_core::client::untracked::Kept;
use switchyard_core::pool::OpenFailure;
use switchyard_core::server::duty::{self, Leftover, Orphan, Unsent};
use switchyard_core::server::loss::Cause;
use switchyard_core::switchover::probe::SignalKind;
use switchyard_io::poller::Watch;
use switchyard_io::{Key, Recv};
use switchyard_wire::build::{self, Report};
use switchyard_wire::tag::frontend;

use crate::log::Level;
use crate::meters::Blow;
use crate::snapshot::Logged;
use crate::worker::client::{Activity, Lookup, Stage};
use crate::worker::message::Message;
use crate::worker::server::{Server, Stage as ServerStage, Use};
use crate::worker::{Todo, Worker};

/// The last word to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// None.
    Silent,
    /// A FATAL with the reason as its text and this SQLSTATE.
    Fatal(Cow<'static, str>),
    /// The same with the cause as its detail.
    Explained(Cause),
    /// The same with this SQLSTATE and detail.
    Detailed(&'static str, String),
}

impl Farewell {
    /// The FATAL of a protocol violation, which PgBouncer uses for nearly everything.
    pub(super) fn fatal() -> Self {
        Farewell::Fatal(Cow::Borrowed("08P01"))
    }

    /// A FATAL with a code of its own.
    pub(super) fn coded(sqlstate: impl Into<Cow<'static, str>>) -> Self {
        Farewell::Fatal(sqlstate.into())
    }
}

/// Reason of a client's end that it brought about without a word.
const UNEXPECTED_EOF: &str = "client unexpected eof";

/// Reads of unread input before a socket is closed: closing with input unread resets the
/// connection, and the peer may lose the error that it was just sent.
const DRAIN_READS: usize = 16;

/// Clients.
impl Worker {
    /// Writes a line about a client.
    pub(super) fn log_client(&self, key: Key, level: Level, text: &str) {
        if !self.shared.log.enabled(level) {
            return;
        }
        if let Some(client) = self.clients.get(key) {
            let prefix = client.prefix(self.snapshot.config.settings.listen_port);
            self.shared.log.write_about(&prefix, level, text);
        }
    }

    /// A client's connection ended by itself.
    pub(super) fn client_gone(&mut self, key: Key) {
        if self.clients.get(key).is_some_and(|client| matches!(client.stage, Stage::Cancel(_))) {
            let requester = self.ticket(key);
            self.shared.broadcast(|| Message::CancelGone(requester));
        }
        self.close_client(key, UNEXPECTED_EOF, Farewell::Silent);
    }

    /// Ends a client.
    pub(super) fn close_client(&mut self, key: Key, reason: &str, farewell: Farewell) {
        let Some(client) = self.clients.get(key) else { return };
        if matches!(client.stage, Stage::Leaving) {
            self.forget_client(key);
            return;
        }
        // Port scanners and health checks connect and leave without a word.
        let wordless = matches!(client.stage, Stage::Start)
            && client.input.is_empty()
            && client.stream.tls().is_none()
            && reason == UNEXPECTED_EOF;
        if !wordless && self.snapshot.log.disconnections == Logged::Yes {
            let age = self.now.saturating_duration_since(client.connected).as_secs();
            let age = itoa::Buffer::new().format(age).to_owned();
            let text = ["closing because: ", reason, " (age=", &age, "s)"].concat();
            self.log_client(key, Level::Log, &text);
        }
        self.leave_queues(key);
        let mut farewell = farewell;
        if let Some(slot) = self.clients.get(key).and_then(|client| client.server()) {
            farewell = self.unless_torn(slot, farewell);
            self.abandon(slot, key);
        }
        self.let_all_go(key);
        match &farewell {
            Farewell::Silent => {}
            Farewell::Fatal(sqlstate) => self.say_fatal(key, sqlstate, reason, None),
            Farewell::Detailed(sqlstate, detail) => {
                self.say_fatal(key, sqlstate, reason, Some(detail));
            }
            Farewell::Explained(cause) => {
                self.say_fatal(key, cause.sqlstate(), reason, Some(&cause.detail()));
            }
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        if let Stage::Console(_) = std::mem::replace(&mut client.stage, Stage::Leaving) {
            self.shared.console_left();
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.output.is_empty() {
            self.forget_client(key);
        } else {
            client.waiting_since = Some(self.now);
            self.watch_client(key, Watch::Both);
            self.look_later(key);
        }
    }

    /// The last word to the client of a server: none if it has seen a part of a message only.
    pub(super) fn unless_torn(&self, slot: Key, farewell: Farewell) -> Farewell {
        let server = self.servers.get(slot).and_then(|slot| slot.here.as_ref());
        let torn = server.is_some_and(|server| match &server.stage {
            ServerStage::Ready(link, _) => link.shows_part(),
            _ => false,
        });
        if torn { Farewell::Silent } else { farewell }
    }

    fn leave_queues(&mut self, key: Key) {
        let ticket = self.ticket(key);
        let Some(client) = self.clients.get(key) else { return };
        let queued = match &client.stage {
            Stage::Session(_, activity) => *activity == Activity::Waiting,
            Stage::AwaitingWelcome(_) => true,
            Stage::Login(state) => state.lookup == Lookup::Waiting,
            Stage::Start | Stage::Console(_) | Stage::Cancel(_) | Stage::Leaving => false,
        };
        if let (true, Some(place)) = (queued, &client.place) {
            let pool = Arc::clone(&place.pool);
            let now = self.now;
            pool.decide(&mut self.orders, |inner| inner.machine.leave(now, ticket));
        }
    }

    fn say_fatal(&mut self, key: Key, sqlstate: &str, text: &str, detail: Option<&str>) {
        if self.snapshot.log.pooler_errors == Logged::Yes {
            self.log_client(key, Level::Warning, &format!("pooler error: {text}"));
        }
        let report = Report { severity: "FATAL", sqlstate, message: text, detail };
        let mut bytes = Vec::new();
        build::error_response(&mut bytes, report);
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.output.send(&mut client.stream, &bytes).is_err() {
            return;
        }
        let mut nothing = [0; 4096];
        for _ in 0..DRAIN_READS {
            let Recv::Bytes(_) = client.stream.socket().recv(&mut nothing) else { return };
        }
    }

    /// Forgets a client whose last byte was sent.
    pub(super) fn forget_client(&mut self, key: Key) {
        let Some(mut client) = self.clients.remove(key) else { return };
        client.output.say_goodbye(&mut client.stream);
        self.shared.remove_key(&client.key);
        self.shared.client_left(self.id, client.seat);
        if let Some(home) = &client.home {
            home.pool.clients.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(identity) = &client.identity {
            identity.left(&self.shared);
        }
    }

    /// A client leaves the server it was linked to.
    fn abandon(&mut self, slot: Key, client: Key) {
        let (inside, kept) = match self.clients.get(client).map(|client| &client.stage) {
            Some(Stage::Session(session, _)) => (session.is_inside_message(), session.kept()),
            _ => (false, Kept::Nothing),
        };
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        if matches!(server.stage, ServerStage::Asked(_)) {
            return self.close_server(slot, "client disconnect while server was not ready");
        }
        let ServerStage::Ready(link, _) = &mut server.stage else { return };
        let unsent = Unsent::of(inside || !server.output.is_empty());
        let leftover = match self.snapshot.config.settings.server_rollback_on_disconnect {
            true => Leftover::RollBack,
            false => Leftover::Close,
        };
        match duty::orphaned(link, unsent, leftover) {
            Orphan::Release => {
                server.kept = kept;
                server.set_use(Use::Idle);
                self.release(slot);
            }
            Orphan::RollBack => {
                server.kept = kept;
                self.roll_back(slot);
            }
            Orphan::Untouched => {
                link.forget_client();
                self.release_untouched(slot);
            }
            Orphan::Close(reason) => self.close_server(slot, reason),
        }
    }
}

/// Servers.
impl Worker {
    fn log_server_end(&self, server: &Server, reason: &str) {
        if self.snapshot.log.disconnections == Logged::Yes {
            let age = self.now.saturating_duration_since(server.started).as_secs();
            let line = format!("{} closing because: {reason} (age={age}s)", server.prefix());
            self.shared.log.write(Level::Log, &line);
        }
    }

    /// Closes a server that its pool has forgotten already.
    pub(super) fn drop_server(&mut self, slot: Key, reason: &str) {
        let Some(mut server) = self.servers.remove(slot).and_then(|slot| slot.here) else { return };
        self.log_server_end(&server, reason);
        let deaf = match &server.stage {
            // It would not know what a good-bye is.
            ServerStage::Connecting(..) | ServerStage::Securing(_) => true,
            ServerStage::Ready(link, _) => !link.listens(),
            ServerStage::Between | ServerStage::Login(_) | ServerStage::Asked(_) => false,
        };
        if deaf {
            // Only an alert that is due is sent.
            return server.output.say_goodbye(&mut server.stream);
        }
        let mut bytes = Vec::new();
        build::empty(&mut bytes, frontend::TERMINATE);
        // The server may be gone; then nobody needs the good-bye.
        let _ = server.output.send(&mut server.stream, &bytes);
        server.output.say_goodbye(&mut server.stream);
    }

    /// Closes a server that nobody is linked to.
    pub(super) fn close_server(&mut self, slot: Key, reason: &str) {
        let Some(place) = self.servers.get(slot) else { return };
        let (pool, id, now) = (Arc::clone(&place.pool), place.id, self.now);
        self.drop_server(slot, reason);
        pool.decide(&mut self.orders, |inner| inner.machine.closed(now, id));
    }

    /// A server connection failed.
    pub(super) fn server_failed(&mut self, slot: Key, reason: &str) {
        let Some(place) = self.servers.get(slot) else { return };
        let Some(server) = place.here.as_ref() else { return };
        self.shared.suspect(&place.pool, server.lane, SignalKind::Disconnected);
        self.server_broke(slot, reason);
    }

    /// What the client of a lost server is told, beside the reason.
    fn condolence(&mut self, slot: Key) -> Farewell {
        let server = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut());
        match server {
            Some(server) if self.snapshot.config.settings.server_error_detail => {
                Farewell::Explained(server.cause.take().map_or(Cause::Silent, |cause| *cause))
            }
            Some(_) | None => Farewell::fatal(),
        }
    }

    /// A server cannot be used any more, which says nothing about its node.
    pub(super) fn server_broke(&mut self, slot: Key, reason: &str) {
        self.server_ended(slot, reason, Farewell::fatal());
    }

    fn server_ended(&mut self, slot: Key, reason: &str, farewell: Farewell) {
        let Some(place) = self.servers.get(slot) else { return };
        let Some(server) = place.here.as_ref() else { return };
        let client = server.client();
        if matches!(
            server.stage,
            ServerStage::Connecting(..) | ServerStage::Securing(_) | ServerStage::Login(_)
        ) {
            return self.open_failed(slot, OpenFailure::connect(reason));
        }
        let (pool, id, now) = (Arc::clone(&place.pool), place.id, self.now);
        let farewell = self.unless_torn(slot, farewell);
        self.drop_server(slot, reason);
        if let Some(client) = client {
            if pool.entry.is_cluster() {
                pool.entry.meters.befell(now, Blow::Disconnect);
            }
            self.close_client(client, reason, farewell);
        }
        pool.decide(&mut self.orders, |inner| inner.machine.closed(now, id));
    }

    /// A server connection has ended. A client in the middle of its work is told, and stays if it
    /// may.
    pub(super) fn server_lost(&mut self, slot: Key, reason: &str) {
        if self.move_session(slot, reason) {
            return;
        }
        self.detach_if_done(slot);
        let parted = self.part(slot);
        let Some(place) = self.servers.get(slot) else { return };
        let (pool, id, now) = (Arc::clone(&place.pool), place.id, self.now);
        let Some(server) = &place.here else { return };
        self.shared.suspect(&pool, server.lane, SignalKind::Disconnected);
        let Some((key, told)) = parted else {
            let farewell = self.condolence(slot);
            return self.server_ended(slot, reason, farewell);
        };
        self.drop_server(slot, reason);
        pool.entry.meters.befell(now, Blow::Error);
        pool.decide(&mut self.orders, |inner| inner.machine.closed(now, id));
        if self.snapshot.log.pooler_errors == Logged::Yes {
            let line = "pooler error: server connection lost during switchover";
            self.log_client(key, Level::Warning, line);
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        client.set_activity(Activity::Idle);
        (client.query_since, client.xact_since) = (None, None);
        if let Some(place) = client.moving.take() {
            client.turn(place);
        }
        match client.output.send(&mut client.stream, &told) {
            Ok(()) if client.output.is_empty() => self.todo.push_back(Todo::Client(key)),
            Ok(()) => self.watch_client(key, Watch::Both),
            Err(_) => self.client_gone(key),
        }
    }

    /// Separates a client that may stay from its lost server; answers it and what it is told.
    fn part(&mut self, slot: Key) -> Option<(Key, Vec<u8>)> {
        let server = self.servers.get_mut(slot)?.here.as_mut()?;
        let key = server.client()?;
        if server.pool.loyalty() != Loyalty::Stays {
            return None;
        }
        let client = self.clients.get_mut(key)?;
        let Stage::Session(session, _) = &mut client.stage else { return None };
        let owed = server.link()?.lose(session.linked_client())?;
        let mut told = Vec::new();
        session.lose(owed, &mut told);
        Some((key, told))
    }

    /// An attempt to open a server failed: the pool decides what that means for those who wait.
    pub(super) fn open_failed(&mut self, slot: Key, failure: OpenFailure) {
        let Some(place) = self.servers.get(slot) else { return };
        let (pool, id, now) = (Arc::clone(&place.pool), place.id, self.now);
        let reason = failure.reason.clone();
        pool.decide(&mut self.orders, |inner| inner.machine.open_failed(now, id, failure));
        // Waiting clients are told before the server's own line.
        let orders = std::mem::take(&mut self.orders);
        orders.into_iter().for_each(|(pool, order)| self.obey(pool, order));
        self.drop_server(slot, &reason);
    }
}
