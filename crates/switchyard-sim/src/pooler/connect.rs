//! New clients and new servers.

use switchyard_core::client::patience::Notice;
use switchyard_core::client::session::Session;
use switchyard_core::client::untracked::Kept;
use switchyard_core::ids::{LaneId, ServerId};
use switchyard_core::params::Params;
use switchyard_core::pool::{OpenFailure, Want};
use switchyard_core::server::link::Link;
use switchyard_core::server::login::{Credentials, ServerLogin, ServerLoginStep, Welcome};
use switchyard_wire::build::{self, Authentication};
use switchyard_wire::frame;

use super::parts::{Activity, Client, Server, ServerStage, Slot, Stage, Use};
use super::relay::send;
use super::{Pooler, Todo};
use crate::env::Env;
use crate::net::{End, Owner};
use switchyard_core::ids::Ticket;

impl Pooler {
    /// A client that has logged in with these parameters; answers who it is.
    pub fn adopt(
        &mut self,
        env: &mut Env,
        w: usize,
        (pool, want): (usize, Want),
        end: End,
        wanted: &[(String, String)],
    ) -> Ticket {
        let mut params = Params::unset(&self.tracked);
        for (name, value) in wanted {
            if let Some(index) = self.tracked.index(name.as_bytes()) {
                params.set(index, value.as_bytes());
            }
        }
        let key = self.mint();
        env.net.hand_over(end, Owner::Client(w, key));
        let client = Client {
            end,
            pool,
            want,
            stage: Stage::AwaitingWelcome(params),
            input: Vec::new(),
            output: Vec::new(),
            unread: true,
            doubt: None,
            asking: None,
            query_since: None,
            xact_since: None,
            waiting_since: Some(env.now),
            active: env.now,
            notice: Notice::Given,
        };
        self.workers[w].clients.insert(key, client);
        let (now, ticket) = (env.now, self.ticket(w, key));
        if self.decide(w, pool, |cell| cell.machine.await_welcome(now, ticket)) {
            self.workers[w].todo.push_back(Todo::Welcome(key));
        }
        self.settle(env, w);
        ticket
    }

    /// Sends the welcome and begins the session.
    pub(super) fn welcome(&mut self, env: &mut Env, w: usize, key: u64) {
        let Some(client) = self.workers[w].clients.get_mut(&key) else { return };
        let Stage::AwaitingWelcome(params) = &client.stage else { return };
        let Some(welcome) = &self.pools[client.pool].welcome else { return };
        let mut params = params.clone();
        params.fill(welcome);
        params.respell(&self.tracked, welcome);
        let mut bytes = Vec::new();
        build::authentication(&mut bytes, Authentication::Ok);
        for (index, name) in self.tracked.names().enumerate() {
            if let Some(value) = params.value(index) {
                build::parameter_status(&mut bytes, name.as_bytes(), value);
            }
        }
        build::backend_key_data(&mut bytes, &[0; 8]);
        build::ready_for_query(&mut bytes, b'I');
        client.stage = Stage::Session(Box::new(Session::new(params)), Activity::Idle);
        client.waiting_since = None;
        env.note(|| format!("w{w} client {key} is welcome"));
        if !send(env, client.end, &mut client.output, &bytes) {
            return self.close_client(env, w, key, "client unexpected eof", None);
        }
        self.workers[w].todo.push_back(Todo::Client(key));
    }

    /// Opens a server for a permit.
    pub(super) fn open(
        &mut self,
        env: &mut Env,
        w: usize,
        pool: usize,
        id: ServerId,
        lane: LaneId,
    ) {
        if self.pools[pool].machine.lane_of(id).is_none() {
            // It was given up before it was begun; its abort is on the way.
            env.note(|| format!("w{w} opens in vain for pool {pool}"));
        }
        let node = self.node_of(lane);
        let (slot, session) = (self.mint(), self.mint());
        let end = env.wire(Owner::Server(w, slot), Owner::Session(node, session));
        env.note(|| format!("w{w} opens node {node}/{session} for pool {pool}"));
        let user = self.pools[pool].user.clone();
        let credentials = Credentials { user, secret: None, keys: None, nonce: "nonce".into() };
        let login = ServerLogin::new(vec![("database".into(), "d".into())], credentials);
        let mut server = Box::new(Server {
            id,
            pool,
            lane,
            node,
            session,
            end,
            slot,
            home: self.workers[w].id,
            purpose: Want::Writer,
            stage: ServerStage::Between,
            input: Vec::new(),
            output: Vec::new(),
            key: Vec::new(),
            started: env.now,
            asked: env.now,
            heard: env.now,
            cancels: 0,
            kept: Kept::Nothing,
        });
        let mut bytes = Vec::new();
        login.start(&mut bytes);
        server.stage = ServerStage::Login(Box::new(login));
        send(env, end, &mut server.output, &bytes);
        self.workers[w].servers.insert(slot, Slot { pool, id, here: Some(server) });
    }

    /// Bytes of a server that is logging us in; answers how many were used.
    pub(super) fn server_login_bytes(
        &mut self,
        env: &mut Env,
        w: usize,
        key: u64,
        data: &[u8],
    ) -> usize {
        let mut used = 0;
        while let Ok(Some((head, body, _))) = frame::split(&data[used..]) {
            let place = self.workers[w].servers.get_mut(&key);
            let Some(server) = place.and_then(|slot| slot.here.as_mut()) else {
                return data.len();
            };
            let ServerStage::Login(login) = &mut server.stage else { return used };
            let mut out = Vec::new();
            let step = login.handle_message(head.tag, body, &mut out);
            used += head.len;
            send(env, server.end, &mut server.output, &out);
            match step {
                Ok(ServerLoginStep::More) => {}
                Ok(ServerLoginStep::Derive(_)) => unreachable!("nobody asks for a password"),
                Ok(ServerLoginStep::Done(welcome)) => {
                    self.server_welcomed(env, w, key, welcome);
                    return used;
                }
                Err(error) => {
                    self.open_failed(env, w, key, OpenFailure::of(&error));
                    return data.len();
                }
            }
        }
        used
    }

    /// A server is logged in: its parameters become the pool's welcome.
    fn server_welcomed(&mut self, env: &mut Env, w: usize, key: u64, welcome: Welcome) {
        let place = self.workers[w].servers.get_mut(&key);
        let Some(server) = place.and_then(|slot| slot.here.as_mut()) else { return };
        let mut params = Params::unset(&self.tracked);
        for (name, value) in &welcome.parameters {
            if let Some(index) = self.tracked.index(name) {
                params.set(index, value);
            }
        }
        server.key = welcome.key;
        server.stage = ServerStage::Ready(Box::new(Link::new(params.clone())), Use::Idle);
        let (id, lane, pool, now) = (server.id, server.lane, server.pool, env.now);
        self.decide(w, pool, |cell| {
            if cell.machine.is_writer(lane) || cell.welcome.is_none() {
                cell.welcome = Some(params);
            }
            cell.machine.opened(now, id);
        });
        self.give_back(env, w, key);
    }
}
