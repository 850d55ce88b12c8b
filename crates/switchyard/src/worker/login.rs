//! From a connection's first bytes to its welcome.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use switchyard_core::client::login::{Login, Material, Method, Step};
use switchyard_core::client::session::Session;
use switchyard_core::client::startup::{self, Replication, StartupRequest, StartupRules};
use switchyard_core::lifecycle::Phase;
use switchyard_core::params::Params;
use switchyard_core::pool::Want;
use switchyard_io::{Key, Peer};
use switchyard_wire::build::{self, Authentication, Report};
use switchyard_wire::frame;
use switchyard_wire::startup::{First, VERSION_3_0, first};
use switchyard_wire::tag::frontend;

use crate::entries::Admission;
use crate::log::Level;
use crate::options;
use crate::pools::{Stats, Welcome};
use crate::snapshot::{AuthMethod, Logged};
use crate::worker::admin::{CONSOLE, ConsoleClient, Rights};
use crate::worker::client::{Activity, Identity, LoginState, Place, Stage};
use crate::worker::close::Farewell;
use crate::worker::{Todo, Worker};

/// User names are shorter than this, in bytes.
const USER_MAX: usize = 128;

/// How a client gets in.
enum Entrance {
    /// After a dialogue.
    Dialogue(Method),
    /// At once.
    Open,
    /// Not: text of the FATAL.
    Closed(&'static str),
}

impl Worker {
    /// Bytes before the startup packet is known; answers how many were used.
    pub(super) fn start_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let fatal = |worker: &mut Worker, text: &str| {
            worker.close_client(key, text, Farewell::fatal());
            data.len()
        };
        match first(data) {
            First::More => 0,
            First::Ssl(len) if data.len() > len => {
                fatal(self, "received unencrypted data after SSL request")
            }
            First::Gss(len) if data.len() > len => {
                fatal(self, "received unencrypted data after GSSAPI encryption request")
            }
            First::Ssl(len) | First::Gss(len) => {
                self.say(key, b"N");
                len
            }
            First::Cancel(cancel_key) => {
                self.cancel_request(key, cancel_key);
                data.len()
            }
            First::Startup(version, body, len) => {
                self.startup(key, version, body);
                if len < data.len() {
                    self.todo.push_back(Todo::Client(key));
                }
                len
            }
            First::Password => fatal(self, "client password pkt before startup packet"),
            First::Bad(head) => {
                let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
                fatal(self, &format!("bad packet header: '{hex}'"))
            }
        }
    }

    /// Sends to a client that is logging in or on the console.
    pub(super) fn say(&mut self, key: Key, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.output.send(&mut client.stream, bytes).is_err() {
            return self.client_gone(key);
        }
        if !client.output.is_empty() {
            self.watch_client(key, switchyard_io::poller::Watch::Both);
        }
    }

    fn startup(&mut self, key: Key, version: u32, body: &[u8]) {
        let snapshot = Arc::clone(&self.snapshot);
        let settings = &snapshot.config.settings;
        let Some(client) = self.clients.get(key) else { return };
        let suffix = settings.application_name_add_host.then(|| match client.peer {
            Peer::Tcp(address) => format!(" - {address}"),
            Peer::Unix { pid, .. } => format!(" - unix({pid}):{}", settings.listen_port),
        });
        let rules = StartupRules {
            tracked: &snapshot.tracked,
            ignore: &settings.ignore_startup_parameters.list,
            suffix: suffix.as_deref(),
        };
        let request = match startup::read(version, body, rules) {
            Ok(request) => request,
            Err(error) => {
                if let Some(warning) = &error.warning {
                    self.log_client(key, Level::Warning, warning);
                }
                return self.close_client(key, &error.fatal, Farewell::fatal());
            }
        };
        let console = request.database == CONSOLE;
        let limit = usize::try_from(settings.max_client_conn).unwrap_or(0);
        if !console && self.shared.clients() > limit {
            let text = "no more connections allowed (max_client_conn)";
            return self.close_client(key, text, Farewell::fatal());
        }
        if let Some(options) = &request.negotiate {
            let mut bytes = Vec::new();
            build::negotiate_protocol(&mut bytes, VERSION_3_0, options);
            self.say(key, &bytes);
        }
        self.identify(key, request);
    }

    /// Who it is and where to; then the question.
    fn identify(&mut self, key: Key, request: StartupRequest) {
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
        let db_limit = entry.as_ref().map_or(0, |e| e.definition().client_limit(settings));
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
        self.note_login(
            key,
            &format!("login attempt: db={database} user={user} tls=no replication={word}"),
        );
    }

    fn note_login(&self, key: Key, text: &str) {
        if self.snapshot.log.connections == Logged::Yes {
            self.log_client(key, Level::Log, text);
        }
    }

    fn entrance(&mut self, key: Key, console: bool, user: &str) -> Entrance {
        let known = self.snapshot.users.contains_key(user);
        match self.snapshot.auth {
            AuthMethod::Any => {
                let entry = match self.clients.get(key).map(|client| &client.stage) {
                    Some(Stage::Login(state)) => state.entry.clone(),
                    _ => None,
                };
                let forced = entry.is_some_and(|entry| entry.definition().user.is_some());
                if console || forced {
                    return Entrance::Open;
                }
                self.log_client(key, Level::Error, "auth_type=any requires forced user");
                Entrance::Closed("bouncer config error")
            }
            AuthMethod::Trust if known => Entrance::Open,
            AuthMethod::Trust => Entrance::Closed("\"trust\" authentication failed"),
            AuthMethod::Plain => Entrance::Dialogue(Method::Plain),
            AuthMethod::Md5 => {
                let mut salt = [0; 4];
                match getrandom::fill(&mut salt) {
                    Ok(()) => Entrance::Dialogue(Method::Md5(salt)),
                    Err(_) => Entrance::Closed("bouncer config error"),
                }
            }
            AuthMethod::Scram => Entrance::Dialogue(Method::Scram),
            AuthMethod::Unsupported => Entrance::Closed("no authentication method is found"),
        }
    }

    fn ask(&mut self, key: Key, console: bool, user: &str) {
        let secret = self.snapshot.users.get(user).cloned();
        let method = match self.entrance(key, console, user) {
            Entrance::Open => return self.authenticated(key),
            Entrance::Closed(text) => return self.close_client(key, text, Farewell::fatal()),
            Entrance::Dialogue(method) => method,
        };
        if secret.is_none() {
            self.log_client(key, Level::Log, &format!("no such user: {user}"));
        }
        let settings = &self.snapshot.config.settings;
        let iterations = u32::try_from(settings.scram_iterations).unwrap_or(4096).max(1);
        // Stable for a user name as long as the process lives, so that nobody can tell by asking
        // twice which users exist.
        let seed = [&self.snapshot.mock_key[..], user.as_bytes()].concat();
        let digest = switchyard_auth::md5::secret(&seed, b"");
        let salt = digest.iter().skip(3).take(16).copied().collect();
        let material = Material { nonce: options::nonce(), salt, iterations };
        let login = Login::new(method, user, secret, material);
        let mut bytes = Vec::new();
        login.ask(&mut bytes);
        if let Some(client) = self.clients.get_mut(key)
            && let Stage::Login(state) = &mut client.stage
        {
            state.dialogue = Some(login);
        }
        self.say(key, &bytes);
    }

    /// Bytes of a login dialogue; answers how many were used.
    pub(super) fn login_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let Some(client) = self.clients.get_mut(key) else { return data.len() };
        let Stage::Login(state) = &mut client.stage else { return 0 };
        let (head, body) = match frame::split(data) {
            Ok(Some((head, body, _))) => (head, body),
            Ok(None) if data.first().is_some_and(|tag| *tag == 0) => {
                self.close_client(key, "client re-sent startup pkt", Farewell::fatal());
                return data.len();
            }
            Ok(None) => return 0,
            Err(bad) => {
                let text = format!("bad packet header: '{}'", bad.hex());
                self.close_client(key, &text, Farewell::fatal());
                return data.len();
            }
        };
        if head.tag == frontend::TERMINATE {
            self.close_client(key, "client close request", Farewell::Silent);
            return data.len();
        }
        let Some(dialogue) = &mut state.dialogue else { return 0 };
        let mut out = Vec::new();
        let step = dialogue.handle_message(head.tag, body, &mut out);
        if !out.is_empty() {
            self.say(key, &out);
        }
        match step {
            Step::More => {}
            Step::Accepted(keys) => {
                if let Some(client) = self.clients.get_mut(key)
                    && let Stage::Login(state) = &mut client.stage
                {
                    state.dialogue = None;
                    state.keys = keys;
                }
                self.authenticated(key);
            }
            Step::Refused(cause, text) => {
                if let Some(cause) = cause {
                    self.log_client(key, Level::Error, &cause);
                }
                self.close_client(key, text, Farewell::fatal());
            }
        }
        if head.len < data.len() {
            self.todo.push_back(Todo::Client(key));
        }
        head.len
    }

    /// The client is who it says.
    fn authenticated(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Stage::Login(state) = &mut client.stage else { return };
        let (database, user) = (state.request.database.clone(), state.request.user.clone());
        if database == CONSOLE {
            let admin = self.snapshot.config.settings.admin_users.contains(&user);
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
        if self.shared.phase() != Phase::Active && self.shared.phase() != Phase::Paused {
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
        }
    }

    /// Sends the welcome and begins the session.
    pub(super) fn welcome(&mut self, key: Key) {
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
        if getrandom::fill(&mut client.key).is_err() {
            return self.close_client(key, "bouncer config error", Farewell::fatal());
        }
        client.key[0] &= 0x7f;
        self.shared.add_key(client.key, ticket);
        let notice = &self.snapshot.config.settings.login_notify_message;
        let bytes = welcome_bytes(&welcome, &params, &self.snapshot.tracked, client.key, notice);
        client.stage = Stage::Session(Box::new(Session::new(params)), Activity::Idle);
        client.waiting_since = None;
        self.say(key, &bytes);
        self.todo.push_back(Todo::Client(key));
    }
}

fn welcome_bytes(
    welcome: &Welcome,
    params: &Params,
    tracked: &switchyard_core::params::Tracked,
    key: [u8; 8],
    notice: &str,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    build::authentication(&mut bytes, Authentication::Ok);
    for (name, value) in &welcome.untracked {
        build::parameter_status(&mut bytes, name, value);
    }
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

impl Worker {
    fn enter_console(&mut self, key: Key, rights: Rights) {
        let ticket = self.ticket(key);
        let Some(client) = self.clients.get_mut(key) else { return };
        if getrandom::fill(&mut client.key).is_err() {
            return self.close_client(key, "bouncer config error", Farewell::fatal());
        }
        client.key[0] &= 0x7f;
        self.shared.add_key(client.key, ticket);
        let bytes = ConsoleClient::welcome(client.key);
        client.stage = Stage::Console(Box::new(ConsoleClient::new(rights)));
        self.say(key, &bytes);
    }
}
