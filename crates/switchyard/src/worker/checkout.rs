//! Servers changing hands: from the pool to a client, back, and between workers.

use std::sync::Arc;

use switchyard_core::client::patience::Notice;
use switchyard_core::client::untracked::{FORGET, Kept};
use switchyard_core::ids::{ServerId, Ticket};
use switchyard_core::lifecycle::Phase;
use switchyard_core::pool::Want;
use switchyard_core::pool::parking::Lent;
use switchyard_core::server::duty::{self, Bond, Duty, Next, Release, Reset, Unsent};
use switchyard_core::server::link::Status;
use switchyard_core::server::loss::Cause;
use switchyard_core::server::request::{HiddenQuery, Request};
use switchyard_io::Key;
use switchyard_io::poller::Watch;
use switchyard_wire::build;

use crate::log::Level;
use crate::pools::{Order, SharedPool, Stats};
use crate::worker::client::{Activity, Lookup, Stage};
use crate::worker::close::Farewell;
use crate::worker::message::Message;
use crate::worker::server::{Server, Stage as ServerStage, Unread, Use};
use crate::worker::{Slot, Source, Todo, Worker};

/// What came of a client's wish for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has one.
    Linked,
    /// It is in the queue.
    Waiting,
    /// It was closed.
    Gone,
}

impl Worker {
    /// The identity of a client of this worker in queues.
    pub(super) fn ticket(&self, key: Key) -> Ticket {
        Ticket { worker: self.id, client: key.to_bits() }
    }

    /// The client's next message needs a server.
    pub(super) fn checkout(&mut self, key: Key) -> Outcome {
        let (now, ticket) = (self.now, self.ticket(key));
        if let Some(slot) = self.kept_server(key) {
            self.link(key, slot);
            return Outcome::Linked;
        }
        let Some(client) = self.clients.get(key) else { return Outcome::Gone };
        if client.place.as_ref().is_some_and(|place| place.pool.is_reviewed()) {
            self.rehome(key);
        }
        let Some(client) = self.clients.get(key) else { return Outcome::Gone };
        let Some(place) = &client.place else { return Outcome::Gone };
        let (pool, want) = (Arc::clone(&place.pool), place.want);
        match pool.decide(&mut self.orders, |inner| inner.checkout(now, ticket, want)) {
            Lent::Server(server) => {
                let slot = self.take_over(server);
                self.link(key, slot);
                Outcome::Linked
            }
            Lent::Refused(reason) => {
                let text = format!(
                    "server login has been failing, cached error: {reason} (server_login_retry)"
                );
                self.close_client(key, &text, Farewell::fatal());
                Outcome::Gone
            }
            Lent::Wait if self.phase == Phase::WaitForServers => {
                pool.decide(&mut self.orders, |inner| inner.machine.leave(now, ticket));
                self.refuse_wait(key);
                Outcome::Gone
            }
            Lent::Wait => {
                if let Some(client) = self.clients.get_mut(key) {
                    client.set_activity(Activity::Waiting);
                    client.waiting_since = Some(now);
                    client.notice = Notice::Due;
                    client.query_since.get_or_insert(now);
                }
                self.attend(key);
                Outcome::Waiting
            }
        }
    }

    /// A server that a waiting client was given.
    pub(super) fn grant(&mut self, key: Key, server: Box<Server>) {
        let asks = self.clients.get(key).is_some_and(|client| match &client.stage {
            Stage::Login(state) => state.lookup == Lookup::Waiting,
            _ => false,
        });
        let wanted = self.clients.get(key).is_some_and(|client| {
            (asks || client.activity() == Some(Activity::Waiting))
                && client.place.as_ref().is_some_and(|p| Arc::ptr_eq(&p.pool, &server.pool))
        });
        let slot = self.take_over(server);
        if !wanted {
            return self.checkin(slot);
        }
        if asks {
            return self.put_lookup(key, slot);
        }
        self.link(key, slot);
        self.kick_client(key);
        if !self.flow.server.is_empty() {
            self.pass_to_server(key, &[]);
        }
    }

    /// Makes this worker the home of a server and puts it into a slot.
    pub(super) fn take_over(&mut self, mut server: Box<Server>) -> Key {
        if server.home == self.id {
            let key = server.slot;
            if let Some(slot) = self.servers.get_mut(key) {
                slot.here = Some(server);
            }
            return key;
        }
        if let Some(home) = self.shared.workers().get(usize::from(server.home.0)) {
            // Failure means that the socket is dead, which its next use will tell.
            let _ = home.registry.deregister(server.stream.socket());
            home.sender.send(Message::Vacate(server.slot));
        }
        let slot = Slot { pool: Arc::clone(&server.pool), id: server.id, here: None };
        let key = self.servers.insert(slot);
        let token = Source::Server(key).token();
        let _ = self.poller.register(server.stream.socket(), token, Watch::Input);
        server.slot = key;
        server.home = self.id;
        if let Some(slot) = self.servers.get_mut(key) {
            slot.here = Some(server);
        }
        key
    }

    /// Links a client and a server; SETs for its parameters go in front of what follows.
    fn link(&mut self, key: Key, slot: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let stats = &server.pool.stats[usize::from(self.id.0)];
        Stats::add(&stats.assignments, 1);
        if let Some(since) = client.waiting_since.take() {
            let waited = self.now.saturating_duration_since(since).as_micros();
            Stats::add(&stats.wait_time, waited as u64);
            server.pool.entry.meters.served(self.now, since);
        }
        client.set_activity(Activity::Linked(slot));
        server.purpose = client.place.as_ref().map_or(Want::Writer, |place| place.want);
        server.set_use(Use::Linked(key));
        let Stage::Session(session, _) = &mut client.stage else { return };
        let ServerStage::Ready(link, _) = &mut server.stage else { return };
        link.begin(server.pool.loyalty());
        let set = session.link(link, &self.snapshot.tracked, &mut self.flow);
        if let Some(sql) = set.filter(|_| self.shared.log.enabled(Level::Debug)) {
            let text = String::from_utf8_lossy(&sql);
            let line = format!("{} varcache_apply: {text}", server.prefix());
            self.shared.log.write(Level::Debug, &line);
        }
    }

    /// After a server's socket was drained: gives it back if its work is done.
    pub(super) fn give_back(&mut self, key: Key) {
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let ServerStage::Ready(link, usage) = &server.stage else { return };
        let (client, duty) = match *usage {
            Use::Linked(client) => {
                let bond = self.clients.get(client).map_or(Bond::None, |client| client.bond());
                (Some(client), Duty::Linked(bond))
            }
            Use::Testing => (None, Duty::Testing),
            Use::RollingBack => (None, Duty::RollingBack),
            Use::Idle => (None, Duty::Idle),
            Use::BeingCanceled => (None, Duty::BeingCanceled),
            Use::Kept(_) => (None, Duty::Kept),
        };
        let unsent = Unsent::of(!server.output.is_empty());
        match (duty::next(link, unsent, duty, server.pool.tenure()), client) {
            (Next::Keep, Some(client)) => self.keep(key, client),
            (Next::Remain, Some(client)) => self.remain(client),
            (Next::Part, Some(client)) => self.unlink(key, client),
            (Next::Release, _) => self.release(key),
            (Next::Checkin, _) => self.checkin(key),
            (Next::Close(reason), _) => self.close_server(key, reason),
            (Next::Stay | Next::Keep | Next::Remain | Next::Part, _) => {}
        }
    }

    /// Separates a client from its free server and releases that.
    pub(super) fn unlink(&mut self, slot: Key, key: Key) {
        if self.detach(slot, key) {
            self.release(slot);
        }
    }

    /// A server is gone. A client whose work on it was done is not concerned, though it was not
    /// separated from it before the end had come as well.
    pub(super) fn detach_if_done(&mut self, slot: Key) {
        let server = self.servers.get(slot).and_then(|slot| slot.here.as_ref());
        let Some(server) = server else { return };
        let ServerStage::Ready(link, Use::Linked(client)) = &server.stage else { return };
        let (client, tenure) = (*client, server.pool.tenure());
        let bond = self.clients.get(client).map_or(Bond::None, |client| client.bond());
        let unsent = Unsent::of(!server.output.is_empty());
        let done = duty::next(link, unsent, Duty::Linked(bond), tenure) == Next::Part;
        // Who was told that the server ends would take that for the answer to what it asks next.
        let told = matches!(server.cause.as_deref(), Some(Cause::Said(..)));
        if done
            && !told
            && self.detach(slot, client)
            && let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut())
        {
            server.set_use(Use::Idle);
        }
    }

    /// Separates a client from a server that it needs no more; answers whether that could be done.
    fn detach(&mut self, slot: Key, key: Key) -> bool {
        let mut kept = Kept::Nothing;
        if let Some(client) = self.clients.get_mut(key) {
            if let Stage::Session(session, activity) = &mut client.stage {
                if session.is_inside_message() {
                    return false;
                }
                *activity = Activity::Idle;
                kept = session.kept();
                session.part();
            }
            if let Some(place) = client.moving.take() {
                client.turn(place);
            }
            if !client.input.is_empty() || client.unread != Unread::No {
                self.todo.push_back(Todo::Client(key));
            }
        }
        self.end_query(key, Status::Idle);
        if let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) {
            server.kept = kept;
        }
        true
    }

    /// A server whose client has left before anything of it was sent: it may be used again as soon
    /// as it has answered what we asked on our own account.
    pub(super) fn release_untouched(&mut self, slot: Key) {
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        server.set_use(Use::Testing);
        server.asked = self.now;
        self.give_back(slot);
    }

    /// A free server without a client: reset if its mode asks for it, then back to the pool.
    pub(super) fn release(&mut self, slot: Key) {
        self.drop_unsent_cancels(slot);
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let settings = &self.snapshot.config.settings;
        let reset = match settings.server_reset_query_always {
            _ if settings.server_reset_query.is_empty() => Reset::Never,
            true => Reset::Always,
            false => Reset::Sessions,
        };
        match duty::release(server.cancels, server.kept, server.pool.tenure(), reset) {
            Release::Wait => server.set_use(Use::BeingCanceled),
            Release::Checkin => {
                server.kept = Kept::Nothing;
                self.checkin(slot);
            }
            Release::Run(query) => {
                server.kept = Kept::Nothing;
                let sql = settings.server_reset_query.clone();
                let sql = if query == HiddenQuery::Reset { sql.as_bytes() } else { FORGET };
                self.test(slot, query, sql);
            }
        }
    }

    /// Rolls back what a client has left behind on a server that has nothing else to do.
    pub(super) fn roll_back(&mut self, slot: Key) {
        self.test(slot, HiddenQuery::Rollback, b"ROLLBACK");
        if let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) {
            server.set_use(Use::RollingBack);
        }
    }

    /// Runs a query of our own on a server; `give_back` follows when it is answered.
    pub(super) fn test(&mut self, slot: Key, query: HiddenQuery, sql: &[u8]) {
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        server.set_use(Use::Testing);
        server.asked = self.now;
        if let Some(link) = server.link() {
            link.sent(Request::Hidden(query));
        }
        let mut message = Vec::new();
        build::query(&mut message, sql);
        if server.output.send(&mut server.stream, &message).is_err() {
            let reason = match query {
                HiddenQuery::Check => "test query failed",
                HiddenQuery::Reset
                | HiddenQuery::Parameters
                | HiddenQuery::Parameter(_)
                | HiddenQuery::Connect
                | HiddenQuery::Begin
                | HiddenQuery::Forget
                | HiddenQuery::Rollback
                | HiddenQuery::Instead => "reset query failed",
            };
            self.server_failed(slot, reason);
        }
    }

    /// Returns a free server to its pool.
    fn checkin(&mut self, slot: Key) {
        let Some(place) = self.servers.get_mut(slot) else { return };
        let Some(mut server) = place.here.take() else { return };
        server.set_use(Use::Idle);
        let (now, id, worker) = (self.now, server.id, self.id);
        let pool = Arc::clone(&server.pool);
        let place = (id, worker);
        let moved = pool.decide(&mut self.orders, |inner| inner.checkin(now, place, server));
        if let Some(order) = moved {
            self.obey(pool, order);
        }
    }

    /// Something happened on a parked server: takes it out. Answers whether it is here now.
    pub(super) fn claim_parked(&mut self, slot: Key) -> bool {
        let Some(place) = self.servers.get_mut(slot) else { return false };
        let id = place.id;
        let mut inner = place.pool.lock();
        let server = inner.claim(id);
        drop(inner);
        place.here = server;
        place.here.is_some()
    }

    /// Gives up a server that is being opened or checked; its pool has forgotten it.
    fn abort(&mut self, pool: &Arc<SharedPool>, id: ServerId, reason: &'static str) {
        let ours = |slot: &Slot| slot.id == id && Arc::ptr_eq(&slot.pool, pool);
        let found = self.servers.iter().find(|(_, slot)| ours(slot)).map(|(key, _)| key);
        if let Some(key) = found {
            return self.drop_server(key, reason);
        }
        self.abort_naming(pool, id, reason);
    }

    /// Carries out an order of a pool, or passes it to the worker that has to.
    pub(super) fn obey(&mut self, pool: Arc<SharedPool>, order: Order) {
        match order {
            Order::Open(id, lane, worker) if worker == self.id => self.open(&pool, id, lane),
            Order::Give(server, ticket) if ticket.worker == self.id => {
                self.todo.push_back(Todo::Grant(Key::from_bits(ticket.client), server));
            }
            Order::Check(server, worker) if worker == self.id => {
                let slot = self.take_over(server);
                let sql = self.snapshot.config.settings.server_check_query.clone();
                let sql = if sql == "<empty>" { String::new() } else { sql };
                self.test(slot, HiddenQuery::Check, sql.as_bytes());
            }
            Order::Close(server, reason) if server.home == self.id => {
                let slot = self.take_over(server);
                self.drop_server(slot, reason);
            }
            Order::Fail(ticket, failure) if ticket.worker == self.id => {
                let key = Key::from_bits(ticket.client);
                let farewell = Farewell::coded(failure.sqlstate);
                self.close_client(key, &failure.text, farewell);
            }
            Order::Welcome(ticket) if ticket.worker == self.id => {
                self.todo.push_back(Todo::Welcome(Key::from_bits(ticket.client)));
            }
            Order::Abort(id, worker, reason) if worker == self.id => self.abort(&pool, id, reason),
            Order::Reserve(ticket) if ticket.worker == self.id => {
                let key = Key::from_bits(ticket.client);
                self.log_client(key, Level::Warning, "taking connection from reserve_pool");
            }
            Order::Evict => {
                let shared = Arc::clone(&self.shared);
                shared.sharing.make_room(&pool, &mut self.orders);
            }
            other => self.shared.dispatch(pool, other),
        }
    }
}
