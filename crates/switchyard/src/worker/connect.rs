//! New servers: the connection and the login. Where it leads is said in `open`.

use std::sync::Arc;
use std::time::SystemTime;

use switchyard_auth::scram::{Derivation, Keys};
use switchyard_core::client::untracked::Kept;
use switchyard_core::params::Params;
use switchyard_core::pool::Want;
use switchyard_core::server::link::Link;
use switchyard_core::server::login::{ServerLoginError, ServerLoginStep, Welcome};
use switchyard_core::server::request::HiddenQuery;
use switchyard_core::switchover::probe::SignalKind;
use switchyard_io::poller::Watch;
use switchyard_io::{Key, Ready, Remote, Stream};
use switchyard_wire::build::{self, Authentication};
use switchyard_wire::frame;

use crate::log::Level;
use crate::options;
use crate::pools::Welcome as PoolWelcome;
use crate::snapshot::Logged;
use crate::worker::buffer::Pending;
use crate::worker::message::Message;
use crate::worker::open::Opening;
use crate::worker::server::{Server, Stage, Unread, Use};
use crate::worker::{Slot, Source, Todo, Worker};

impl Worker {
    /// Connects to where a permit leads.
    pub(super) fn connect(&mut self, mut opening: Opening, mut remote: Remote) {
        let login = options::server_login(&self.snapshot, &opening.pool);
        let stream = loop {
            match Stream::connect(&remote) {
                Ok(stream) => break stream,
                Err(_) if opening.rest.is_empty() => {
                    return self.give_up(&opening, "connect failed");
                }
                Err(_) => remote = Remote::Tcp(opening.rest.remove(0)),
            }
        };
        if let Err(failed) = stream.set_options(&self.snapshot.sockets) {
            self.warn_of_step(&stream, &failed);
            return self.give_up(&opening, "connect failed");
        }
        let address = match &remote {
            Remote::Tcp(address) => address.to_string(),
            Remote::Unix(_) => format!("unix:{}", opening.port),
        };
        let pool = Arc::clone(&opening.pool);
        let slot = self.servers.insert(Slot { pool, id: opening.id, here: None });
        let mut server = Box::new(Server {
            id: opening.id,
            number: opening.number,
            pool: opening.pool,
            lane: opening.lane,
            node: opening.node,
            stream: stream.into(),
            slot,
            home: self.id,
            purpose: Want::Writer,
            stage: Stage::Connecting(Box::new(login), opening.rest),
            input: Vec::new(),
            output: Pending::default(),
            unread: Unread::No,
            remote,
            address,
            host: opening.host,
            key: Vec::new(),
            pid: 0,
            started: opening.started,
            started_at: SystemTime::now(),
            asked: self.now,
            heard: self.now,
            local: None,
            cancels: 0,
            kept: Kept::Nothing,
            cause: None,
        });
        let token = Source::Server(slot).token();
        // Failure shows as a connection that never becomes writable: the timeout ends it.
        let _ = self.poller.register(server.stream.socket(), token, Watch::Both);
        if let Some(place) = self.servers.get_mut(slot) {
            place.here = Some(server);
        }
    }

    /// A connection attempt ended.
    pub(super) fn server_connected(&mut self, key: Key, event: Ready) {
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        if !event.writable && !event.closed {
            return;
        }
        if server.stream.peek_socket().connected().is_err() {
            return self.try_next_address(key);
        }
        server.local = server.stream.peek_socket().local_addr();
        if self.snapshot.log.connections == Logged::Yes {
            let from = server.local.map(|at| format!(" (from {at})")).unwrap_or_default();
            let line = format!("{} new connection to server{from}", server.prefix());
            self.shared.log.write(Level::Log, &line);
        }
        if !self.ask_for_tls(key) {
            self.begin_login(key);
        }
    }

    /// Sends the startup packet.
    pub(super) fn begin_login(&mut self, key: Key) {
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let stage = std::mem::replace(&mut server.stage, Stage::Between);
        let (Stage::Connecting(mut login, _) | Stage::Securing(mut login)) = stage else { return };
        login.bind(server.stream.tls().and_then(|tls| tls.endpoint()));
        let mut bytes = Vec::new();
        login.start(&mut bytes);
        server.stage = Stage::Login(login);
        if server.output.send(&mut server.stream, &bytes).is_err() {
            return self.server_failed(key, "connect failed");
        }
        let watch = if server.output.is_empty() { Watch::Input } else { Watch::Both };
        self.watch_server(key, watch);
    }

    /// Bytes of a server that is logging us in; answers how many were used.
    pub(super) fn server_login_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let mut used = 0;
        loop {
            let (head, body) = match frame::split(&data[used..]) {
                Ok(Some((head, body, _))) => (head, body),
                Ok(None) => return used,
                Err(_) => {
                    self.server_failed(key, "bad pkt header");
                    return data.len();
                }
            };
            let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
                return data.len();
            };
            let Stage::Login(login) = &mut server.stage else { return used };
            let mut out = Vec::new();
            let step = login.handle_message(head.tag, body, &mut out);
            used += head.len;
            if server.output.send(&mut server.stream, &out).is_err() {
                self.server_failed(key, "server connection closed");
                return data.len();
            }
            match step {
                Ok(ServerLoginStep::More) => {}
                // What comes meanwhile is out of turn, which the dialogue says.
                Ok(ServerLoginStep::Derive(work)) => match self.shared.quick_keys(&work) {
                    Some(keys) => self.derived(key, &keys),
                    None => self.derive(key, work),
                },
                Ok(ServerLoginStep::Done(welcome)) => {
                    self.server_welcomed(key, welcome);
                    return used;
                }
                Err(error) => {
                    self.login_refused(key, &error);
                    return data.len();
                }
            }
        }
    }

    /// Has keys derived where nobody waits for it.
    fn derive(&self, key: Key, work: Derivation) {
        let (shared, worker) = (Arc::clone(&self.shared), self.id);
        if let Some(services) = self.shared.services() {
            let tell = move || {
                let keys = shared.derive(&work);
                shared.send(worker, Message::Derived(key, Box::new(keys)));
            };
            services.compute(Box::new(tell));
        }
    }

    /// The keys for a login are there. It may have been given up meanwhile.
    pub(super) fn derived(&mut self, key: Key, keys: &Keys) {
        let server = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut());
        let Some(server) = server else { return };
        let Stage::Login(login) = &mut server.stage else { return };
        let mut out = Vec::new();
        let step = login.derived(keys, &mut out);
        if server.output.send(&mut server.stream, &out).is_err() {
            return self.server_failed(key, "server connection closed");
        }
        match step {
            Ok(_) => self.todo.push_back(Todo::Server(key)),
            Err(error) => self.login_refused(key, &error),
        }
    }

    fn login_refused(&mut self, key: Key, error: &ServerLoginError) {
        let Some(server) = self.servers.get(key).and_then(|slot| slot.here.as_ref()) else {
            return;
        };
        let refusal = options::refusal(error);
        if let Some((level, line)) = refusal.line {
            self.shared.log.write(level, &format!("{} {line}", server.prefix()));
        }
        if server.pool.entry.is_cluster() {
            if refusal.failure.is_starting() {
                self.shared.suspect(&server.pool, server.lane, SignalKind::ConnectFailed);
            } else if let Some(services) = self.shared.services() {
                // It may be another server than the one that is meant.
                services.names().refresh(&server.host);
            }
        }
        self.open_failed(key, refusal.failure);
    }

    /// A server is logged in: its parameters become the pool's welcome.
    fn server_welcomed(&mut self, key: Key, welcome: Welcome) {
        let now = self.now;
        let tracked = Arc::clone(&self.snapshot.tracked);
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let mut params = Params::unset(&tracked);
        let mut greeting = Vec::new();
        build::authentication(&mut greeting, Authentication::Ok);
        let standby = !server.pool.lock().machine.is_writer(server.lane);
        for (name, mut value) in welcome.parameters {
            // Clients of a cluster come for its writer, whoever is the first to log us in.
            if standby && name == b"in_hot_standby" {
                value = b"off".into();
            }
            match tracked.index(&name) {
                Some(index) => params.set(index, &value),
                None => build::parameter_status(&mut greeting, &name, &value),
            }
        }
        server.key = welcome.key;
        server.pid = welcome.pid;
        server.stage = Stage::Ready(Link::new(params.clone()), Use::Idle);
        let (id, lane, pool) = (server.id, server.lane, Arc::clone(&server.pool));
        pool.decide(&mut self.orders, |inner| {
            if inner.machine.is_writer(lane) || inner.welcome.is_none() {
                inner.welcome = Some(Arc::new(PoolWelcome { greeting, params }));
            }
            inner.machine.opened(now, id);
        });
        match pool.entry.definition().connect_query.clone() {
            Some(sql) => self.test(key, HiddenQuery::Connect, sql.as_bytes()),
            None => self.give_back(key),
        }
    }
}
