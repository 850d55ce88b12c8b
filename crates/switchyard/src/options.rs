//! From the configuration to the small option structs of the machines, and from their errors to
//! texts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use switchyard_auth::secret::Secret;
use switchyard_config::value::{LoadBalance, LostTransaction, SessionRelink, Value as _};
use switchyard_config::{AuthType, Config, Database, PoolMode};
use switchyard_core::client::replay::Keeping;
use switchyard_core::client::session::Loyalty;
use switchyard_core::params::Tracked;
use switchyard_core::pool::{
    Failing, HostOrder, Limits, Minimum, OpenFailure, Order, Pool, Reopen, Reserve, Retry, Standby,
    roles,
};
use switchyard_core::server::login::{Credentials, ServerLogin, ServerLoginError};
use switchyard_io::{Loopback, SocketOptions};

use crate::access::Access;
use crate::cluster_settings::wish;
use crate::entries::Entry;
use crate::log::Level;
use crate::pools::SharedPool;
use crate::sharing::Sharing;
use crate::snapshot::{AuthMethod, LogRules, Snapshot};
use crate::tls::Setup;

/// Pause after a failed login to a node of a cluster.
const CLUSTER_RETRY: Duration = Duration::from_millis(10);
/// First and longest pause after failed logins, with server_login_backoff.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(15);
/// How much longer a waiter of another worker must have waited to come first.
const FAIRNESS: Duration = Duration::from_millis(1);

/// A snapshot of a configuration, with what it says about logins.
pub fn snapshot(config: Config, access: Access, tls: Arc<Setup>, mock_key: [u8; 16]) -> Snapshot {
    let settings = &config.settings;
    let auth = match settings.auth_type {
        AuthType::Any => AuthMethod::Any,
        AuthType::Trust => AuthMethod::Trust,
        AuthType::Plain => AuthMethod::Plain,
        AuthType::Md5 => AuthMethod::Md5,
        AuthType::Scram => AuthMethod::Scram,
        AuthType::Cert => AuthMethod::Cert,
        AuthType::Hba => AuthMethod::Hba,
        AuthType::Ldap | AuthType::Pam => AuthMethod::Unsupported,
    };
    let natural = |number: i64| u32::try_from(number).unwrap_or(0);
    let sockets = SocketOptions {
        keepalive: settings.tcp_keepalive,
        keepidle: natural(settings.tcp_keepidle),
        keepintvl: natural(settings.tcp_keepintvl),
        keepcnt: natural(settings.tcp_keepcnt),
        user_timeout: natural(settings.tcp_user_timeout),
        buffer: natural(settings.tcp_socket_buffer) as usize,
        loopback: Loopback::suited(),
    };
    let rules = LogRules {
        connections: settings.log_connections.into(),
        disconnections: settings.log_disconnections.into(),
        pooler_errors: settings.log_pooler_errors.into(),
    };
    Snapshot {
        access,
        shortest: config.shortest_session_timeout(),
        tracked: Arc::new(Tracked::new(&settings.track_extra_parameters.list)),
        auth,
        log: rules,
        sockets,
        tls,
        mock_key,
        config,
    }
}

/// Sizes and times of a pool.
pub fn limits(snapshot: &Snapshot, definition: &Database, user: &str) -> Limits {
    let settings = &snapshot.config.settings;
    let overrides = snapshot.overrides(definition, user);
    let check = !settings.server_check_query.is_empty();
    let cluster = definition.topology_query.is_some();
    Limits {
        size: overrides.pool_size(),
        reserve: Reserve {
            size: overrides.reserve_pool_size(),
            after: settings.reserve_pool_timeout,
        },
        minimum: minimum(snapshot, definition, user),
        lifetime: overrides.server_lifetime(),
        idle_timeout: settings.server_idle_timeout,
        check_delay: check.then_some(settings.server_check_delay),
        retry: match (cluster, settings.server_login_backoff) {
            // A client of a cluster waits for its node, so that a retry has to come soon.
            (true, _) => Retry::Fixed(settings.server_login_retry.min(CLUSTER_RETRY)),
            (false, true) => Retry::Growing(FIRST_RETRY, LONGEST_RETRY),
            (false, false) => Retry::Fixed(settings.server_login_retry),
        },
        order: if settings.server_round_robin { Order::RoundRobin } else { Order::Lifo },
        failing: if (cluster && wish(definition, "switchover_hold", settings.switchover_hold))
            || settings.server_login_backoff
        {
            Failing::Wait
        } else {
            Failing::Refuse
        },
        standby: if cluster { standby(snapshot, definition) } else { Standby::Fixed(0) },
        reopen: match wish(
            definition,
            "recreate_disconnected_pools",
            settings.recreate_disconnected_pools,
        ) {
            true => Reopen::Always,
            false => Reopen::OnRequest,
        },
        fairness: FAIRNESS,
    }
}

fn minimum(snapshot: &Snapshot, definition: &Database, user: &str) -> Minimum {
    let overrides = snapshot.overrides(definition, user);
    let wanted = overrides.min_pool_size();
    let count = match overrides.pool_size() {
        0 => wanted,
        size => wanted.min(size),
    };
    match definition.user {
        Some(_) => Minimum::Always(count),
        None => Minimum::Attended(count),
    }
}

fn standby(snapshot: &Snapshot, definition: &Database) -> Standby {
    let global = &snapshot.config.settings.standby_connections;
    match definition.other("standby_connections").unwrap_or(global).parse() {
        Ok(count) => Standby::Fixed(count),
        Err(_) => Standby::Auto,
    }
}

/// A pool for a user on an entry.
pub fn make_pool(
    snapshot: &Snapshot,
    entry: &Arc<Entry>,
    user: &str,
    workers: usize,
    sharing: &Sharing,
) -> SharedPool {
    let definition = entry.definition();
    let limits = limits(snapshot, &definition, user);
    let share = sharing.join(&entry.name, user);
    set_shared_limits(snapshot, entry, user, sharing);
    let machine = match &definition.topology_query {
        Some(_) => {
            let mut pool = Pool::for_cluster(limits, workers).sharing(share);
            pool.set_view(Instant::now(), &roles(&entry.view()));
            pool
        }
        None => {
            let mut pool = Pool::new(limits, workers).sharing(share);
            set_hosts(&definition, &mut pool);
            pool
        }
    };
    let pool = SharedPool::new(Arc::clone(entry), user.into(), machine, workers);
    set_rules(snapshot, &definition, &pool);
    pool
}

/// Tells a pool which hosts it leads to.
pub fn set_hosts(definition: &Database, pool: &mut Pool) {
    let order = match definition.load_balance_hosts {
        LoadBalance::RoundRobin => HostOrder::RoundRobin,
        LoadBalance::Disable => HostOrder::Stay,
    };
    // A cluster's lanes are its nodes.
    let count = if definition.topology_query.is_some() { 1 } else { definition.hosts.len() };
    pool.set_hosts(count, order);
}

/// Sets the limits that a pool shares with others.
pub fn set_shared_limits(snapshot: &Snapshot, entry: &Entry, user: &str, sharing: &Sharing) {
    let definition = entry.definition();
    let overrides = snapshot.overrides(&definition, user);
    let (of_database, of_user) = (overrides.max_db_connections(), overrides.max_user_connections());
    sharing.set_limits((&entry.name, of_database), (user, of_user));
}

/// Tells a pool what sessions look at in passing.
pub fn set_rules(snapshot: &Snapshot, definition: &Database, pool: &SharedPool) {
    let prepared = snapshot.config.settings.max_prepared_statements;
    let mode = snapshot.pool_mode(definition, &pool.user);
    pool.set_rules(mode, usize::try_from(prepared).unwrap_or(0));
    let own = definition.other("lost_transaction").and_then(LostTransaction::parse);
    let lost = own.or(snapshot.config.settings.lost_transaction);
    let stays = definition.topology_query.is_some()
        && mode != PoolMode::Session
        && lost != Some(LostTransaction::Disconnect);
    let replay =
        wish(definition, "replay_read_only_error", snapshot.config.settings.replay_read_only_error);
    let keeps = definition.topology_query.is_some() && mode != PoolMode::Session && replay;
    pool.set_keeping(if keeps { Keeping::On } else { Keeping::Off });
    let own = definition.other("session_relink").and_then(SessionRelink::parse);
    let relink = own.unwrap_or(snapshot.config.settings.session_relink) == SessionRelink::Clean;
    let returns = definition.topology_query.is_some() && mode == PoolMode::Session && relink;
    pool.set_loyalty(match (stays, returns) {
        (true, _) => Loyalty::Stays,
        (false, true) => Loyalty::Returns,
        (false, false) => Loyalty::Leaves,
    });
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
    // The pool of auth_user is beside that of the forced user.
    let forced = definition.user.as_ref() == Some(&pool.user);
    let secret = match definition.password.as_ref().filter(|_| forced) {
        Some(password) => Some(Secret::parse(password.as_bytes())),
        None => snapshot.access.users.secret(&pool.user).or_else(|| pool.entry.found(&pool.user)),
    };
    let keys = pool.lock().keys.clone().filter(|_| !forced);
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

/// Judges a failed login.
pub fn refusal(error: &ServerLoginError) -> Refusal {
    let line = match error {
        ServerLoginError::Refused { severity, message, .. } => {
            Some((Level::Warning, format!("server login failed: {severity} {message}")))
        }
        ServerLoginError::CannotAnswer(line, _) => Some((Level::Error, line.clone())),
        ServerLoginError::Broken(_) => None,
    };
    Refusal { line, failure: OpenFailure::of(error) }
}
