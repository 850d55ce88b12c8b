//! Who a client says it is and where it wants to go: counted, checked, then asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use switchyard_core::client::startup::{Replication, StartupRequest};
use switchyard_core::pool::Want;
use switchyard_io::{Key, Peer};

use crate::log::Level;
use crate::snapshot::{AuthMethod, Logged};
use crate::worker::Worker;
use crate::worker::client::{Identity, LoginState, Stage};
use crate::worker::close::Farewell;
use crate::worker::console::{CONSOLE, Rights};

/// User names are shorter than this, in bytes.
const USER_MAX: usize = 128;

impl Worker {
    /// Who it is and where to; then the question.
    pub(super) fn identify(&mut self, key: Key, request: StartupRequest) {
        let snapshot = Arc::clone(&self.snapshot);
        let settings = &snapshot.config.settings;
        let console = request.database == CONSOLE;
        let (entry, want) = match &request.database {
            _ if console => (None, Want::Writer),
            name => self.shared.destination(name),
        };
        let (user, database) = (request.user.clone(), request.database.clone());
        let known = snapshot.users.contains_key(&user) || snapshot.user(&user).is_some();
        let user_count = self.shared.user_came(&user);
        let db_count = entry.as_ref().map(|entry| entry.clients.fetch_add(1, Ordering::Relaxed));
        let identity =
            Identity { user: user.clone(), database: database.clone(), entry: entry.clone() };
        let Some(client) = self.clients.get_mut(key) else { return };
        client.identity = Some(Arc::new(identity));
        let peer = client.peer;
        let fatal = |worker: &mut Worker, text: &str| {
            worker.close_client(key, text, Farewell::fatal());
        };
        if user.len() >= USER_MAX {
            self.note_login(key, &format!("login failed: db={database} user={user}"));
            return fatal(self, "username too long");
        }
        let privileged = settings.admin_users.contains(&user);
        let db_limit = entry.as_ref().map_or(0, |entry| {
            snapshot.overrides(&entry.definition(), &user).max_db_client_connections()
        });
        if db_limit > 0 && !privileged && db_count.is_some_and(|count| count >= db_limit) {
            return fatal(self, "client connections exceeded (max_db_client_connections)");
        }
        let own = snapshot.user(&user).and_then(|user| user.max_user_client_connections);
        let limit = own.unwrap_or(settings.max_user_client_connections).max(0) as usize;
        if known && limit > 0 && !privileged && user_count > limit {
            return fatal(self, "client connections exceeded (max_user_client_connections)");
        }
        let replication = request.replication;
        let state = LoginState { request, dialogue: None, entry, want, keys: None };
        if let Some(client) = self.clients.get_mut(key) {
            client.stage = Stage::Login(Box::new(state));
        }
        let own_uid = rustix::process::geteuid().as_raw();
        let owner = matches!(peer, Peer::Unix { uid, .. } if uid == own_uid);
        if console && owner && user == CONSOLE {
            self.log_client(key, Level::Log, "pgbouncer access from unix socket");
            self.note_attempt(key, &database, &user, replication);
            return self.enter_console(key, Rights::Admin);
        }
        self.note_attempt(key, &database, &user, replication);
        if replication != Replication::None {
            return fatal(self, "replication connections are not served");
        }
        let any = snapshot.auth == AuthMethod::Any;
        if console && !any && !privileged && !settings.stats_users.contains(&user) {
            return fatal(self, "not allowed");
        }
        self.ask(key, console, &user);
    }

    fn note_attempt(&self, key: Key, database: &str, user: &str, replication: Replication) {
        let word = replication.word();
        let tls = self.clients.get(key).map(|client| client.stream.tls_info());
        let tls = tls.filter(|tls| !tls.is_empty()).unwrap_or_else(|| "no".into());
        self.note_login(
            key,
            &format!("login attempt: db={database} user={user} tls={tls} replication={word}"),
        );
    }

    pub(super) fn note_login(&self, key: Key, text: &str) {
        if self.snapshot.log.connections == Logged::Yes {
            self.log_client(key, Level::Log, text);
        }
    }
}
