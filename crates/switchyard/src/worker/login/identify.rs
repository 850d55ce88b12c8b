//! Who a client says it is and where it wants to go: counted and checked, looked up if need be.

use std::sync::Arc;

use switchyard_core::client::startup::StartupRequest;
use switchyard_core::pool::Want;
use switchyard_io::{Key, Peer};

use crate::log::Level;
use crate::shared::Full;
use crate::snapshot::{AuthMethod, Logged};
use crate::worker::Worker;
use crate::worker::client::{Counted, Identity, LoginState, Lookup, Shown, Stage};
use crate::worker::close::Farewell;
use crate::worker::console::{CONSOLE, Rights};

/// User names are shorter than this, in bytes.
const USER_MAX: usize = 128;

impl Worker {
    /// What a startup packet asked for can be read; who is it?
    pub(super) fn identify(&mut self, key: Key, request: StartupRequest) {
        let console = request.database == CONSOLE;
        let (entry, want) = match &request.database {
            _ if console => (None, Want::Writer),
            name => {
                let port = self.snapshot.config.settings.listen_port;
                let whose = self.clients.get(key).map(|client| client.prefix(port));
                self.shared.destination(name, &whose.unwrap_or_default())
            }
        };
        let user = request.user.clone();
        let identity = Identity {
            user: user.clone(),
            sent: None,
            database: request.database.clone(),
            entry: entry.clone(),
            shown: Shown::Nothing,
            counted: Counted::Nowhere,
        };
        let known = self.snapshot.access.users.get(&user).cloned();
        let state = LoginState {
            request,
            dialogue: None,
            known: known.clone(),
            lookup: Lookup::No,
            entry: entry.clone(),
            want,
            keys: None,
        };
        let Some(client) = self.clients.get_mut(key) else { return };
        client.identity = Some(Arc::new(identity));
        client.stage = Stage::Login(Box::new(state));
        let owner = match client.peer {
            Peer::Unix { uid, .. } => uid == rustix::process::geteuid().as_raw(),
            Peer::Tcp(_) => false,
        };
        if console && owner && user == CONSOLE {
            self.log_client(key, Level::Log, "pgbouncer access from unix socket");
            self.show_as(key, Shown::Both);
            self.note_attempt(key);
            return self.enter_console(key, Rights::Admin);
        }
        if user.len() >= USER_MAX {
            let database = self.identity(key).map(|who| who.database.clone()).unwrap_or_default();
            self.note_login(key, &format!("login failed: db={database} user={user}"));
            return self.close_client(key, "username too long", Farewell::fatal());
        }
        if self.snapshot.auth == AuthMethod::Any {
            return self.identify_anybody(key, console);
        }
        if !self.count_with_entry(key) {
            return;
        }
        if known.is_some() {
            return self.recognise(key);
        }
        match self.lookup_user(key) {
            Some(auth_user) => self.look_up(key, &auth_user),
            None => self.miss(key),
        }
    }

    /// Under auth_type=any a client is its entry's forced user.
    fn identify_anybody(&mut self, key: Key, console: bool) {
        let Some(identity) = self.identity(key) else { return };
        let definition = identity.entry.as_ref().map(|entry| entry.definition());
        let forced = definition.and_then(|definition| definition.user.clone());
        let user = if console { Some(CONSOLE.to_owned()) } else { forced };
        let Some(user) = user else {
            self.log_client(key, Level::Error, "auth_type=any requires forced user");
            return self.close_client(key, "bouncer config error", Farewell::fatal());
        };
        self.change_identity(key, |identity| {
            let sent = std::mem::replace(&mut identity.user, user);
            identity.sent = (sent != identity.user).then(|| sent.into());
        });
        if self.count_with_entry(key) {
            self.recognise(key);
        }
    }

    /// The user is known: it counts, and is asked.
    pub(super) fn recognise(&mut self, key: Key) {
        if !self.count_with_user(key) {
            return;
        }
        let Some(identity) = self.identity(key) else { return };
        let there = identity.entry.is_some() || identity.database == CONSOLE;
        self.show_as(key, if there { Shown::Both } else { Shown::User });
        self.examine(key);
    }

    /// The user is unknown, which must not show: it is asked all the same.
    pub(super) fn miss(&mut self, key: Key) {
        let Some(identity) = self.identity(key) else { return };
        self.log_client(key, Level::Log, &format!("no such user: {}", identity.user));
        let console = identity.database == CONSOLE;
        self.show_as(key, if console { Shown::Both } else { Shown::User });
        self.examine(key);
    }

    /// Counts a client with its entry. Answers false if there is no room for it.
    fn count_with_entry(&mut self, key: Key) -> bool {
        let Some(identity) = self.identity(key) else { return false };
        let Some(entry) = &identity.entry else { return true };
        let definition = entry.definition();
        let limit = self.snapshot.overrides(&definition, &identity.user);
        let limit = self.limit(limit.max_db_client_connections(), &identity.user);
        if entry.came(limit) == Err(Full) {
            let text = "client connections exceeded (max_db_client_connections)";
            self.close_client(key, text, Farewell::fatal());
            return false;
        }
        self.change_identity(key, |identity| identity.counted = Counted::Entry);
        true
    }

    /// Counts a client with its user. Answers false if there is no room for it.
    fn count_with_user(&mut self, key: Key) -> bool {
        let Some(identity) = self.identity(key) else { return false };
        let limit = self.snapshot.config.max_user_client_connections(&identity.user);
        let limit = self.limit(limit, &identity.user);
        if self.shared.user_came(&identity.user, limit) == Err(Full) {
            let text = "client connections exceeded (max_user_client_connections)";
            self.close_client(key, text, Farewell::fatal());
            return false;
        }
        self.change_identity(key, |identity| identity.counted = Counted::User);
        true
    }

    /// The limit that holds for a user: none for administrators.
    fn limit(&self, limit: usize, user: &str) -> Option<usize> {
        let privileged = self.snapshot.config.settings.admin_users.contains(user);
        Some(limit).filter(|limit| *limit > 0 && !privileged)
    }

    /// Who a client is.
    pub(super) fn identity(&self, key: Key) -> Option<Arc<Identity>> {
        self.clients.get(key)?.identity.clone()
    }

    pub(super) fn change_identity(&mut self, key: Key, change: impl FnOnce(&mut Identity)) {
        let client = self.clients.get_mut(key);
        if let Some(identity) = client.and_then(|client| client.identity.as_mut()) {
            change(Arc::make_mut(identity));
        }
    }

    pub(super) fn show_as(&mut self, key: Key, shown: Shown) {
        self.change_identity(key, |identity| identity.shown = shown);
    }

    pub(super) fn note_attempt(&self, key: Key) {
        let Some(client) = self.clients.get(key) else { return };
        let (Some(identity), Stage::Login(state)) = (&client.identity, &client.stage) else {
            return;
        };
        let (database, user) = (&identity.database, &identity.user);
        let word = state.request.replication.word();
        let tls = client.stream.tls_info();
        let tls = if tls.is_empty() { "no".into() } else { tls };
        let (tls, word) = (tls.as_str(), word);
        let parts =
            ["login attempt: db=", database, " user=", user, " tls=", tls, " replication=", word];
        self.note_login(key, &parts.concat());
    }

    pub(super) fn note_login(&self, key: Key, text: &str) {
        if self.snapshot.log.connections == Logged::Yes {
            self.log_client(key, Level::Log, text);
        }
    }
}
