//! Entries of `[databases]` and `[users]`: connection strings, overrides, and who wins.

use std::time::Duration;

use crate::settings::Settings;
use crate::value::{LoadBalance, PoolMode, Value};

/// An entry of `[databases]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Database name at the server.
    pub dbname: String,
    /// Hosts in order; empty means the unix socket in unix_socket_dir.
    pub hosts: Vec<String>,
    /// Port.
    pub port: u16,
    /// Forced user.
    pub user: Option<String>,
    /// Password of the forced user.
    pub password: Option<String>,
    /// Size of its pools.
    pub pool_size: Option<i64>,
    /// Minimal size of its pools.
    pub min_pool_size: Option<i64>,
    /// Size of its reserve pools.
    pub reserve_pool_size: Option<i64>,
    /// Limit of servers.
    pub max_db_connections: Option<i64>,
    /// Limit of clients.
    pub max_db_client_connections: Option<i64>,
    /// Own query_wait_timeout.
    pub query_wait_timeout: Option<Duration>,
    /// Own server_lifetime.
    pub server_lifetime: Option<Duration>,
    /// Own pool_mode.
    pub pool_mode: Option<PoolMode>,
    /// Order of hosts.
    pub load_balance_hosts: LoadBalance,
    /// Query run on each new server.
    pub connect_query: Option<String>,
    /// Startup parameters for servers.
    pub startup: Vec<(String, String)>,
    /// Query for the nodes of a cluster.
    pub topology_query: Option<String>,
    /// Everything else that is known, as written.
    pub other: Vec<(String, String)>,
}

/// An entry of `[users]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Own pool_mode.
    pub pool_mode: Option<PoolMode>,
    /// Size of its pools.
    pub pool_size: Option<i64>,
    /// Size of its reserve pools.
    pub reserve_pool_size: Option<i64>,
    /// Limit of servers.
    pub max_user_connections: Option<i64>,
    /// Limit of clients.
    pub max_user_client_connections: Option<i64>,
    /// Own query_timeout.
    pub query_timeout: Option<Duration>,
    /// Own query_wait_timeout.
    pub query_wait_timeout: Option<Duration>,
    /// Own idle_transaction_timeout.
    pub idle_transaction_timeout: Option<Duration>,
    /// Own transaction_timeout.
    pub transaction_timeout: Option<Duration>,
    /// Own client_idle_timeout.
    pub client_idle_timeout: Option<Duration>,
}

/// Keys of `[databases]` that are known and kept as written.
const OTHER: [&str; 27] = [
    "auth_user",
    "auth_query",
    "auth_dbname",
    "recovery_query",
    "polling_frequency",
    "probe_fast",
    "probe_timeout",
    "server_failed_delay",
    "recreate_disconnected_pools",
    "topology_refresh",
    "topology_removal_delay",
    "switchover_hold",
    "writer_fencing",
    "accept_new_system",
    "drain_timeout",
    "drain_action",
    "promote_command",
    "promote_sql",
    "session_relink",
    "lost_transaction",
    "replay_read_only_error",
    "standby_connections",
    "reader_max_lag",
    "probe_user",
    "probe_password",
    "probe_dbname",
    "patroni_url",
];

/// Splits `key=value key='va''lue'`; `None` on a syntax error.
pub(crate) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, tail) = rest.split_once('=')?;
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        let tail = tail.trim_start();
        let (value, tail) = match tail.strip_prefix('\'') {
            Some(quoted) => quoted_value(quoted)?,
            None => {
                let end = tail.find(char::is_whitespace).unwrap_or(tail.len());
                (tail[..end].to_string(), &tail[end..])
            }
        };
        if value.is_empty() {
            return None;
        }
        pairs.push((key.to_string(), value));
        rest = tail.trim_start();
    }
    Some(pairs)
}

/// A value up to its closing quote; `''` and `\'` stand for a quote.
fn quoted_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if text[at + 1..].starts_with('\'') => {
                value.push('\'');
                chars.next();
            }
            '\'' if text[at + 1..].starts_with('\'') => {
                value.push('\'');
                chars.next();
            }
            '\'' => return Some((value, &text[at + 1..])),
            other => value.push(other),
        }
    }
    None
}

fn number(value: &str) -> Option<i64> {
    i64::parse(value)
}

impl Database {
    /// The entry of a connection string; the error is PgBouncer's text.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let pairs = pairs(text).ok_or("syntax error in connection string")?;
        let mut database = Database {
            dbname: name.into(),
            hosts: Vec::new(),
            port: 5432,
            user: None,
            password: None,
            pool_size: None,
            min_pool_size: None,
            reserve_pool_size: None,
            max_db_connections: None,
            max_db_client_connections: None,
            query_wait_timeout: None,
            server_lifetime: None,
            pool_mode: None,
            load_balance_hosts: LoadBalance::RoundRobin,
            connect_query: None,
            startup: Vec::new(),
            topology_query: None,
            other: Vec::new(),
        };
        for (key, value) in pairs {
            database.take(&key, value)?;
        }
        Ok(database)
    }

    fn take(&mut self, key: &str, value: String) -> Result<(), String> {
        let invalid = |what: &str| format!("invalid {what}: {value}");
        let count = |value: &str| number(value).ok_or_else(|| invalid(key));
        let seconds = |value: &str| Duration::parse(value).ok_or_else(|| invalid(key));
        match key {
            "dbname" => self.dbname = value,
            "host" => self.hosts = value.split(',').map(|h| h.trim().to_string()).collect(),
            "port" => {
                let port = value.parse().ok().filter(|port| *port > 0);
                self.port = port.ok_or_else(|| invalid("port"))?;
            }
            "user" => self.user = Some(value),
            "password" => self.password = Some(value),
            "pool_size" => self.pool_size = Some(count(&value)?),
            "min_pool_size" => self.min_pool_size = Some(count(&value)?),
            "reserve_pool_size" | "reserve_pool" => self.reserve_pool_size = Some(count(&value)?),
            "max_db_connections" => self.max_db_connections = Some(count(&value)?),
            "max_db_client_connections" => self.max_db_client_connections = Some(count(&value)?),
            "query_wait_timeout" => self.query_wait_timeout = Some(seconds(&value)?),
            "server_lifetime" => {
                self.server_lifetime = Some(seconds(&value)?).filter(|value| !value.is_zero());
            }
            "pool_mode" => {
                let mode = PoolMode::parse(&value).ok_or_else(|| invalid("pool mode"))?;
                self.pool_mode = Some(mode);
            }
            "load_balance_hosts" => {
                let order = LoadBalance::parse(&value);
                self.load_balance_hosts = order.ok_or_else(|| invalid("load_balance_hosts"))?;
            }
            "connect_query" => self.connect_query = Some(value),
            "client_encoding" | "datestyle" | "timezone" | "application_name" => {
                self.startup.push((key.into(), value));
            }
            "topology_query" => self.topology_query = Some(value),
            known if OTHER.contains(&known) => self.other.push((key.into(), value)),
            _ => return Err(format!("unrecognized connection parameter: {key}")),
        }
        Ok(())
    }

    /// A key that is kept as written.
    pub fn other(&self, key: &str) -> Option<&str> {
        self.other.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Pool mode: user, entry, global.
    pub fn pool_mode(&self, user: Option<&User>, settings: &Settings) -> PoolMode {
        user.and_then(|user| user.pool_mode).or(self.pool_mode).unwrap_or(settings.pool_mode)
    }

    /// Pool size: user, entry, global.
    pub fn pool_size(&self, user: Option<&User>, settings: &Settings) -> usize {
        let own = user.and_then(|user| user.pool_size).or(self.pool_size);
        usize::try_from(own.unwrap_or(settings.default_pool_size)).unwrap_or(0)
    }

    /// query_wait_timeout: user, entry, global; zero means for ever.
    pub fn query_wait_timeout(&self, user: Option<&User>, settings: &Settings) -> Duration {
        let own = user.and_then(|user| user.query_wait_timeout).or(self.query_wait_timeout);
        own.unwrap_or(settings.query_wait_timeout)
    }

    /// server_lifetime: entry, global.
    pub fn server_lifetime(&self, settings: &Settings) -> Duration {
        self.server_lifetime.unwrap_or(settings.server_lifetime)
    }

    /// max_db_client_connections: entry, global; 0 means no limit.
    pub fn client_limit(&self, settings: &Settings) -> usize {
        let own = self.max_db_client_connections.filter(|limit| *limit > 0);
        usize::try_from(own.unwrap_or(settings.max_db_client_connections)).unwrap_or(0)
    }

    /// Whether its servers have to be replaced when it becomes `new`.
    pub fn leads_elsewhere(&self, new: &Database) -> bool {
        (&self.dbname, &self.hosts, self.port, &self.user, &self.connect_query)
            != (&new.dbname, &new.hosts, new.port, &new.user, &new.connect_query)
            || self.load_balance_hosts != new.load_balance_hosts
            || self.topology_query != new.topology_query
    }
}

impl User {
    /// The entry of a settings string; the error is PgBouncer's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut user = User::default();
        for (key, value) in pairs(text).ok_or("syntax error in user settings")? {
            let invalid = || format!("invalid {key}: {value}");
            let count = || number(&value).ok_or_else(invalid);
            let set = |limit: i64| Some(limit).filter(|limit| *limit > 0);
            let seconds = || Duration::parse(&value).ok_or_else(invalid);
            let some = |time: Duration| Some(time).filter(|time| !time.is_zero());
            match key.as_str() {
                "pool_mode" => {
                    let mode = PoolMode::parse(&value);
                    user.pool_mode = Some(mode.ok_or(format!("invalid pool mode: {value}"))?);
                }
                "pool_size" => user.pool_size = Some(count()?),
                "reserve_pool_size" => user.reserve_pool_size = Some(count()?),
                "max_user_connections" => user.max_user_connections = set(count()?),
                "max_user_client_connections" => {
                    user.max_user_client_connections = set(count()?);
                }
                "query_timeout" => user.query_timeout = some(seconds()?),
                "query_wait_timeout" => user.query_wait_timeout = Some(seconds()?),
                "idle_transaction_timeout" => user.idle_transaction_timeout = some(seconds()?),
                "transaction_timeout" => user.transaction_timeout = some(seconds()?),
                "client_idle_timeout" => user.client_idle_timeout = some(seconds()?),
                _ => return Err(format!("unrecognized user parameter: {key}")),
            }
        }
        Ok(user)
    }
}
