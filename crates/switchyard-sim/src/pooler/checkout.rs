//! Servers changing hands: from the pool to a client, back, and between workers.

use switchyard_core::client::patience::Notice;
use switchyard_core::client::untracked::{FORGET, Kept};
use switchyard_core::ids::ServerId;
use switchyard_core::pool::parking::{Errand, Lent};
use switchyard_core::server::duty::{self, Bond, Duty, Next, Release, Unsent};
use switchyard_core::server::request::{HiddenQuery, Request};
use switchyard_wire::build;

use super::parts::{Activity, Server, ServerStage, Slot, Stage, Use};
use super::relay::send;
use super::{Message, Pooler, Todo};
use crate::env::Env;
use crate::net::Owner;

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

impl Pooler {
    /// The client's next message needs a server.
    pub(super) fn checkout(&mut self, env: &mut Env, w: usize, key: u64) -> Outcome {
        let (now, ticket) = (env.now, self.ticket(w, key));
        let Some(client) = self.workers[w].clients.get(&key) else { return Outcome::Gone };
        let (pool, want) = (client.pool, client.want);
        let lent = self
            .decide(w, pool, |cell| cell.parking.checkout(&mut cell.machine, now, ticket, want));
        match lent {
            Lent::Server(server) => {
                let slot = self.take_over(env, w, server);
                self.link(env, w, key, slot);
                Outcome::Linked
            }
            Lent::Refused(reason) => {
                let text = format!(
                    "server login has been failing, cached error: {reason} (server_login_retry)"
                );
                self.close_client(env, w, key, &text, Some("08P01"));
                Outcome::Gone
            }
            Lent::Wait => {
                env.note(|| format!("w{w} client {key} waits in pool {pool}"));
                if let Some(client) = self.workers[w].clients.get_mut(&key) {
                    client.set_activity(Activity::Waiting);
                    client.waiting_since = Some(now);
                    client.notice = Notice::Due;
                    client.query_since.get_or_insert(now);
                }
                Outcome::Waiting
            }
        }
    }

    /// A server that a waiting client was given.
    pub(super) fn grant(&mut self, env: &mut Env, w: usize, key: u64, server: Box<Server>) {
        let wanted = self.workers[w].clients.get(&key).is_some_and(|client| {
            matches!(client.stage, Stage::Session(_, Activity::Waiting))
                && client.pool == server.pool
        });
        let slot = self.take_over(env, w, server);
        if !wanted {
            return self.checkin(env, w, slot);
        }
        self.link(env, w, key, slot);
        self.kick_client(env, w, key);
        if !self.workers[w].flow.server.is_empty() {
            self.pass_to_server(env, w, key, &[]);
        }
    }

    /// Makes this worker the home of a server and puts it into a slot.
    fn take_over(&mut self, env: &mut Env, w: usize, mut server: Box<Server>) -> u64 {
        if server.home == self.workers[w].id {
            let key = server.slot;
            if let Some(slot) = self.workers[w].servers.get_mut(&key) {
                slot.here = Some(server);
            }
            return key;
        }
        self.send(env, usize::from(server.home.0), Message::Vacate(server.slot));
        let key = self.mint();
        env.net.hand_over(server.end, Owner::Server(w, key));
        if env.net.is_readable(server.end) {
            // A new registration reports what has not been read.
            env.after(std::time::Duration::ZERO, crate::env::Event::Wire(server.end));
        }
        server.slot = key;
        server.home = self.workers[w].id;
        let slot = Slot { pool: server.pool, id: server.id, here: Some(server) };
        self.workers[w].servers.insert(key, slot);
        key
    }

    /// Links a client and a server; SETs for its parameters go in front of what follows.
    fn link(&mut self, env: &Env, w: usize, key: u64, slot: u64) {
        let worker = &mut self.workers[w];
        let Some(client) = worker.clients.get_mut(&key) else { return };
        let Some(server) = worker.servers.get_mut(&slot).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let (node, session) = (server.node, server.session);
        env.note(|| format!("w{w} client {key} linked to node {node}/{session}"));
        client.waiting_since = None;
        client.set_activity(Activity::Linked(slot));
        server.purpose = client.want;
        server.set_use(Use::Linked(key));
        let Stage::Session(session, _) = &mut client.stage else { return };
        let ServerStage::Ready(link, _) = &mut server.stage else { return };
        link.begin(self.pools[server.pool].rules.loyalty);
        session.link(link, &self.tracked, &mut worker.flow);
    }

    /// After a server's wire was drained: gives it back if its work is done.
    pub(super) fn give_back(&mut self, env: &mut Env, w: usize, key: u64) {
        let worker = &self.workers[w];
        let Some(server) = worker.servers.get(&key).and_then(|slot| slot.here.as_ref()) else {
            return;
        };
        let ServerStage::Ready(link, usage) = &server.stage else { return };
        let (client, duty) = match *usage {
            Use::Linked(client) => {
                let bond = worker.clients.get(&client).map_or(Bond::None, |client| client.bond());
                (Some(client), Duty::Linked(bond))
            }
            Use::Testing => (None, Duty::Testing),
            Use::Idle => (None, Duty::Idle),
            Use::BeingCanceled => (None, Duty::BeingCanceled),
        };
        let unsent = Unsent::of(!server.output.is_empty());
        let tenure = self.pools[server.pool].rules.tenure;
        match (duty::next(link, unsent, duty, tenure), client) {
            (Next::Part, Some(client)) => self.unlink(env, w, key, client),
            (Next::Checkin, _) => self.checkin(env, w, key),
            (Next::Close(reason), _) => self.close_server(env, w, key, reason),
            (Next::Keep | Next::Remain, _) => unreachable!("there are no routes"),
            (Next::Release, _) => unreachable!("nothing is rolled back"),
            (Next::Stay | Next::Part, _) => {}
        }
    }

    /// Separates a client from its free server and releases that.
    fn unlink(&mut self, env: &mut Env, w: usize, slot: u64, key: u64) {
        let worker = &mut self.workers[w];
        let mut kept = Kept::Nothing;
        if let Some(client) = worker.clients.get_mut(&key) {
            if let Stage::Session(session, activity) = &mut client.stage {
                if session.is_inside_message() {
                    return;
                }
                *activity = Activity::Idle;
                kept = session.kept();
                session.part();
            }
            (client.query_since, client.xact_since) = (None, None);
            if !client.input.is_empty() || client.unread {
                worker.todo.push_back(Todo::Client(key));
            }
        }
        env.note(|| format!("w{w} client {key} parts from its server"));
        if let Some(server) = worker.servers.get_mut(&slot).and_then(|slot| slot.here.as_mut()) {
            server.kept = kept;
        }
        self.release(env, w, slot);
    }

    /// A server whose client has left before anything of it was sent.
    pub(super) fn release_untouched(&mut self, env: &mut Env, w: usize, slot: u64) {
        let place = self.workers[w].servers.get_mut(&slot);
        let Some(server) = place.and_then(|slot| slot.here.as_mut()) else { return };
        server.set_use(Use::Testing);
        server.asked = env.now;
        self.give_back(env, w, slot);
    }

    /// A free server without a client.
    pub(super) fn release(&mut self, env: &mut Env, w: usize, slot: u64) {
        self.drop_unsent_cancels(env, w, slot);
        let place = self.workers[w].servers.get_mut(&slot);
        let Some(server) = place.and_then(|slot| slot.here.as_mut()) else { return };
        let tenure = self.pools[server.pool].rules.tenure;
        match duty::release(server.cancels, server.kept, tenure, self.settings.reset) {
            Release::Wait => server.set_use(Use::BeingCanceled),
            Release::Checkin => {
                server.kept = Kept::Nothing;
                self.checkin(env, w, slot);
            }
            Release::Run(query) => {
                server.kept = Kept::Nothing;
                let sql = if query == HiddenQuery::Reset { &b"DISCARD ALL"[..] } else { FORGET };
                self.test(env, w, slot, query, sql);
            }
        }
    }

    /// Runs a query of our own on a server.
    fn test(&mut self, env: &mut Env, w: usize, slot: u64, query: HiddenQuery, sql: &[u8]) {
        let place = self.workers[w].servers.get_mut(&slot);
        let Some(server) = place.and_then(|slot| slot.here.as_mut()) else { return };
        server.set_use(Use::Testing);
        server.asked = env.now;
        if let Some(link) = server.link() {
            link.sent(Request::Hidden(query));
        }
        let mut message = Vec::new();
        build::query(&mut message, sql);
        if !send(env, server.end, &mut server.output, &message) {
            self.server_failed(env, w, slot, "reset query failed");
        }
    }

    /// Returns a free server to its pool.
    fn checkin(&mut self, env: &mut Env, w: usize, slot: u64) {
        let Some(place) = self.workers[w].servers.get_mut(&slot) else { return };
        let Some(mut server) = place.here.take() else { return };
        server.set_use(Use::Idle);
        let (pool, now, at) = (server.pool, env.now, (server.id, self.workers[w].id));
        let errand =
            self.decide(w, pool, |cell| cell.parking.checkin(&mut cell.machine, now, at, server));
        if let Some(errand) = errand {
            self.obey(env, w, pool, errand);
        }
    }

    /// Something happened on a parked server: takes it out. Answers whether it is here now.
    pub(super) fn claim_parked(&mut self, w: usize, key: u64) -> bool {
        let Some(place) = self.workers[w].servers.get_mut(&key) else { return false };
        let cell = &mut self.pools[place.pool];
        place.here = cell.parking.claim(&mut cell.machine, place.id);
        place.here.is_some()
    }

    /// Gives up a server that is being opened or checked; its pool has forgotten it.
    fn abort(&mut self, env: &mut Env, w: usize, pool: usize, id: ServerId) {
        let mut servers = self.workers[w].servers.iter();
        let found = servers.find(|(_, slot)| slot.pool == pool && slot.id == id);
        if let Some(key) = found.map(|(key, _)| *key) {
            self.drop_server(env, w, key, "aborted");
        }
    }

    /// Carries out an errand of a pool, or passes it to the worker that has to.
    pub(super) fn obey(
        &mut self,
        env: &mut Env,
        w: usize,
        pool: usize,
        errand: Errand<Box<Server>>,
    ) {
        let to = errand.worker(|server| server.home).map_or(w, |worker| usize::from(worker.0));
        if to != w {
            return self.send(env, to, Message::Order((pool, errand)));
        }
        match errand {
            Errand::Open(id, lane, _) => self.open(env, w, pool, id, lane),
            Errand::Give(server, ticket) => {
                self.workers[w].todo.push_back(Todo::Grant(ticket.client, server));
            }
            Errand::Check(server, _) => {
                let slot = self.take_over(env, w, server);
                self.test(env, w, slot, HiddenQuery::Check, b"");
            }
            Errand::Close(server, reason) => {
                let slot = self.take_over(env, w, server);
                self.drop_server(env, w, slot, reason);
            }
            Errand::Fail(ticket, failure) => {
                let key = ticket.client;
                self.close_client(env, w, key, &failure.text, Some(&failure.sqlstate));
            }
            Errand::Welcome(ticket) => {
                self.workers[w].todo.push_back(Todo::Welcome(ticket.client));
            }
            Errand::Abort(id, _, _) => self.abort(env, w, pool, id),
            Errand::Reserve(_) => {}
            Errand::Evict => self.make_room(w, pool),
        }
    }
}
