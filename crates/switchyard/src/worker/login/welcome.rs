//! The end of a login: its pool, the wait for a first server's parameters, and the welcome.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use switchyard_core::client::session::Session;
use switchyard_core::client::startup::Version;
use switchyard_core::params::Params;
use switchyard_io::Key;
use switchyard_wire::build::{self, Report};

use crate::entries::Admission;
use crate::pools::{Stats, Welcome};
use crate::snapshot::AuthMethod;
use crate::worker::cancel_key::{self, Length};
use crate::worker::client::{Activity, Place, Stage};
use crate::worker::close::Farewell;
use crate::worker::console::{CONSOLE, ConsoleClient, Rights};
use crate::worker::{Todo, Worker};

impl Worker {
    /// The client is who it says.
    pub(super) fn authenticated(&mut self, key: Key) {
        let Some(identity) = self.identity(key) else { return };
        let Some(state) = self.login_state(key) else { return };
        let (database, user) = (identity.database.clone(), identity.user.clone());
        if database == CONSOLE {
            // Under auth_type=any the user is the console's own, and the name given decides.
            let any = self.snapshot.auth == AuthMethod::Any;
            let name = self.login_state(key).map(|state| state.request.user.clone());
            let name = name.filter(|_| any).unwrap_or(user);
            let admin = self.snapshot.config.settings.admin_users.contains(&name);
            return self.enter_console(key, if admin { Rights::Admin } else { Rights::Stats });
        }
        let keys = state.keys.take();
        let Some(entry) = state.entry.clone() else {
            self.note_login(key, &format!("login failed: db={database} user={user}"));
            let text = format!("no such database: {database}");
            return self.close_client(key, &text, Farewell::fatal());
        };
        if entry.admission() == Admission::Disabled {
            let text = format!("database \"{database}\" is disabled");
            return self.close_client(key, &text, Farewell::fatal());
        }
        if self.shared.lifecycle().is_ending() {
            return self.close_client(key, "pooler is shutting down", Farewell::fatal());
        }
        let pool = self.shared.pool(&entry, &user);
        let Some(client) = self.clients.get_mut(key) else { return };
        let Stage::Login(state) = std::mem::replace(&mut client.stage, Stage::Start) else {
            return;
        };
        let place = Place { pool: Arc::clone(&pool), want: state.want };
        client.stage = Stage::AwaitingWelcome(state);
        client.place = Some(place.clone());
        pool.clients.fetch_add(1, Ordering::Relaxed);
        client.home = Some(place);
        client.waiting_since = Some(self.now);
        let (now, ticket) = (self.now, self.ticket(key));
        let known = pool.decide(&mut self.orders, |inner| {
            if keys.is_some() {
                inner.keys = keys;
            }
            inner.machine.await_welcome(now, ticket)
        });
        Stats::add(&pool.stats[usize::from(self.id.0)].logins, 1);
        if known {
            self.welcome(key);
        } else {
            self.attend(key);
        }
    }

    /// Sends the welcome and begins the session.
    pub(in crate::worker) fn welcome(&mut self, key: Key) {
        let ticket = self.ticket(key);
        let Some(client) = self.clients.get_mut(key) else { return };
        let Some(place) = &client.place else { return };
        let Some(welcome) = place.pool.lock().welcome.clone() else { return };
        let Stage::AwaitingWelcome(state) = std::mem::replace(&mut client.stage, Stage::Start)
        else {
            return;
        };
        let mut params = state.request.params;
        params.fill(&welcome.params);
        params.respell(&self.snapshot.tracked, &welcome.params);
        let length = match state.request.version {
            Version::V3_0 => Length::Short,
            Version::V3_2 => Length::Long,
        };
        let own = self.snapshot.peer_id();
        let Some(minted) = cancel_key::mint(length, own, &mut self.random) else {
            return self.close_client(key, "bouncer config error", Farewell::fatal());
        };
        client.key = minted;
        self.shared.add_key(minted, ticket);
        let told = cancel_key::told(minted, &self.snapshot.mock_key);
        let notice = &self.snapshot.config.settings.login_notify_message;
        let bytes = welcome_bytes(&welcome, &params, &self.snapshot.tracked, &told, notice);
        client.stage = Stage::Session(Box::new(Session::new(params)), Activity::Idle);
        client.waiting_since = None;
        self.look_later(key);
        self.say(key, &bytes);
        self.todo.push_back(Todo::Client(key));
    }

    pub(super) fn enter_console(&mut self, key: Key, rights: Rights) {
        let ticket = self.ticket(key);
        let Some(client) = self.clients.get_mut(key) else { return };
        let own = self.snapshot.peer_id();
        let Some(minted) = cancel_key::mint(Length::Short, own, &mut self.random) else {
            return self.close_client(key, "bouncer config error", Farewell::fatal());
        };
        client.key = minted;
        self.shared.add_key(minted, ticket);
        let Stage::Login(state) = std::mem::replace(&mut client.stage, Stage::Start) else {
            return;
        };
        let console = ConsoleClient::new(rights, state.request.params);
        let notice = &self.snapshot.config.settings.login_notify_message;
        let bytes = console.welcome(&self.snapshot.tracked, client.key, notice);
        client.stage = Stage::Console(Box::new(console));
        self.shared.console_came();
        Stats::add(&self.shared.ledger.console(self.id).logins, 1);
        self.say(key, &bytes);
        self.todo.push_back(Todo::Client(key));
    }
}

fn welcome_bytes(
    welcome: &Welcome,
    params: &Params,
    tracked: &switchyard_core::params::Tracked,
    key: &[u8],
    notice: &str,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    bytes.extend_from_slice(&welcome.greeting);
    for (index, name) in tracked.names().enumerate() {
        if let Some(value) = params.value(index) {
            build::parameter_status(&mut bytes, name.as_bytes(), value);
        }
    }
    build::backend_key_data(&mut bytes, key);
    if !notice.is_empty() {
        let report =
            Report { severity: "NOTICE", sqlstate: "00000", message: notice, detail: None };
        build::notice_response(&mut bytes, report);
    }
    build::ready_for_query(&mut bytes, b'I');
    bytes
}
