//! From the configuration to the small option structs of the machines, and from their errors to
//! texts.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use switchyard_auth::secret::Secret;
use switchyard_auth::userlist;
use switchyard_config::{AuthType, Config, Database};
use switchyard_core::params::Tracked;
use switchyard_core::pool::{Failing, Limits, OpenFailure, OpenFailureKind, Order, Pool, Standby};
use switchyard_core::server::login::{Credentials, ServerLogin, ServerLoginError};
use switchyard_io::SocketOptions;

use crate::entries::Entry;
use crate::log::{Level, Log};
use crate::pools::SharedPool;
use crate::snapshot::{AuthMethod, LogRules, Snapshot};

/// How much longer a waiter of another worker must have waited to come first.
const FAIRNESS: Duration = Duration::from_millis(1);

/// A snapshot of a configuration, with the users of its auth_file.
pub fn snapshot(config: Config, log: &Log, mock_key: [u8; 16]) -> Snapshot {
    let settings = &config.settings;
    let auth = match settings.auth_type {
        AuthType::Any => AuthMethod::Any,
        AuthType::Trust => AuthMethod::Trust,
        AuthType::Plain => AuthMethod::Plain,
        AuthType::Md5 => AuthMethod::Md5,
        AuthType::Scram => AuthMethod::Scram,
        AuthType::Cert | AuthType::Hba | AuthType::Ldap | AuthType::Pam => AuthMethod::Unsupported,
    };
    let natural = |number: i64| u32::try_from(number).unwrap_or(0);
    let sockets = SocketOptions {
        keepalive: settings.tcp_keepalive,
        keepidle: natural(settings.tcp_keepidle),
        keepintvl: natural(settings.tcp_keepintvl),
        keepcnt: natural(settings.tcp_keepcnt),
        user_timeout: natural(settings.tcp_user_timeout),
        buffer: natural(settings.tcp_socket_buffer) as usize,
    };
    let rules = LogRules {
        connections: settings.log_connections.into(),
        disconnections: settings.log_disconnections.into(),
        pooler_errors: settings.log_pooler_errors.into(),
    };
    Snapshot {
        users: Arc::new(users(&config, log)),
        tracked: Arc::new(Tracked::new(&settings.track_extra_parameters.list)),
        auth,
        log: rules,
        sockets,
        mock_key,
        config,
    }
}

fn users(config: &Config, log: &Log) -> HashMap<String, Secret> {
    let Some(path) = config.settings.auth_file.as_deref().filter(|path| !path.is_empty()) else {
        return HashMap::new();
    };
    match std::fs::read(Path::new(path)) {
        Ok(text) => {
            let list = userlist::parse(&text);
            if let Some(error) = list.error {
                log.write(Level::Error, error);
            }
            list.users
        }
        Err(error) => {
            log.write(Level::Error, &format!("could not open auth_file {path}: {error}"));
            HashMap::new()
        }
    }
}

/// Sizes and times of a pool.
pub fn limits(snapshot: &Snapshot, definition: &Database, user: &str) -> Limits {
    let settings = &snapshot.config.settings;
    let check = !settings.server_check_query.is_empty();
    Limits {
        size: definition.pool_size(snapshot.user(user), settings),
        lifetime: definition.server_lifetime(settings),
        idle_timeout: settings.server_idle_timeout,
        check_delay: check.then_some(settings.server_check_delay),
        login_retry: settings.server_login_retry,
        order: if settings.server_round_robin { Order::RoundRobin } else { Order::Lifo },
        failing: Failing::Refuse,
        standby: Standby::Fixed(0),
        fairness: FAIRNESS,
    }
}

/// A pool for a user on an entry.
pub fn make_pool(
    snapshot: &Snapshot,
    entry: &Arc<Entry>,
    user: &str,
    workers: usize,
) -> SharedPool {
    let definition = entry.definition();
    let machine = Pool::new(limits(snapshot, &definition, user), workers);
    let pool = SharedPool::new(Arc::clone(entry), user.into(), machine, workers);
    set_rules(snapshot, &definition, &pool);
    pool
}

/// Tells a pool what sessions look at in passing.
pub fn set_rules(snapshot: &Snapshot, definition: &Database, pool: &SharedPool) {
    let prepared = snapshot.config.settings.max_prepared_statements;
    let mode = snapshot.pool_mode(definition, &pool.user);
    pool.set_rules(mode, usize::try_from(prepared).unwrap_or(0));
}

/// Printable characters of fresh randomness.
pub fn nonce() -> String {
    let mut bytes = [0; 18];
    // Without randomness there is no login: the nonce is refused as too short.
    if getrandom::fill(&mut bytes).is_err() {
        return String::new();
    }
    bytes.iter().map(|byte| char::from(b'a' + byte % 26)).collect()
}

/// The login of a pool's next server.
pub fn server_login(snapshot: &Snapshot, pool: &SharedPool) -> ServerLogin {
    let definition = pool.entry.definition();
    let mut parameters = vec![("database".to_string(), definition.dbname.clone())];
    parameters.extend(definition.startup.iter().cloned());
    let own = definition.password.as_ref().filter(|_| definition.user.is_some());
    let secret = match own {
        Some(password) => Some(Secret::parse(password.as_bytes())),
        None => snapshot.users.get(&pool.user).cloned(),
    };
    let keys = pool.lock().keys.clone().filter(|_| definition.user.is_none());
    let credentials = Credentials { user: pool.user.clone(), secret, keys, nonce: nonce() };
    ServerLogin::new(parameters, credentials)
}

/// What a failed server login means.
#[derive(Debug)]
pub struct Refusal {
    /// Line in the log.
    pub line: Option<(Level, String)>,
    /// What the pool is told; its text is also the reason of the close.
    pub failure: OpenFailure,
}

/// SQLSTATE of a server that is starting up or shutting down.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// Judges a failed login.
pub fn refusal(error: &ServerLoginError) -> Refusal {
    let failure = |text: &str, sqlstate: &str, kind| OpenFailure {
        text: text.into(),
        sqlstate: sqlstate.into(),
        kind,
    };
    match error {
        ServerLoginError::Refused { severity, sqlstate, message } => {
            let waits = sqlstate == CANNOT_CONNECT_NOW;
            let kind = if waits { OpenFailureKind::Connect } else { OpenFailureKind::Login };
            let line = format!("server login failed: {severity} {message}");
            Refusal {
                line: Some((Level::Warning, line)),
                failure: failure(message, sqlstate, kind),
            }
        }
        ServerLoginError::CannotAnswer(line, told) => {
            let line = Some((Level::Error, line.clone()));
            let failure = match told {
                Some(told) => failure(told, "08P01", OpenFailureKind::Login),
                None => failure("failed to answer authreq", "08P01", OpenFailureKind::Connect),
            };
            Refusal { line, failure }
        }
        ServerLoginError::Broken(reason) => {
            Refusal { line: None, failure: failure(reason, "08P01", OpenFailureKind::Connect) }
        }
    }
}
