//! Entries of `[databases]`. Who wins over whom is said in `overrides`.

use std::time::Duration;

use crate::connstr::{self, Numbers};
use crate::settings::Settings;
use crate::url::HttpUrl;
use crate::value::{LoadBalance, PoolMode, Value as _};

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
    /// Own auth_user.
    pub auth_user: Option<String>,
    /// Own auth_query.
    pub auth_query: Option<String>,
    /// Own auth_dbname.
    pub auth_dbname: Option<String>,
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

/// Keys that entries share with `[pgbouncer]`, where their type is declared; kept as written.
const SHARED: [&str; 20] = [
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
];

/// Further keys that are known and kept as written.
const OTHER: [&str; 3] = ["probe_user", "probe_password", "probe_dbname"];

/// Passwords are shorter than this, in bytes.
const PASSWORD_MAX: usize = 65_531;

impl Database {
    /// The entry of a connection string; the error is PgBouncer's text.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        Self::read(name, text, &mut Numbers::default())
    }

    pub(crate) fn read(name: &str, text: &str, numbers: &mut Numbers) -> Result<Self, String> {
        let pairs = connstr::pairs(text).ok_or("syntax error in connection string")?;
        let mut database = Database {
            dbname: name.into(),
            hosts: Vec::new(),
            port: 5432,
            user: None,
            password: None,
            auth_user: None,
            auth_query: None,
            auth_dbname: None,
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
            match key.as_str() {
                "dbname" | "host" | "port" | "user" | "password" | "load_balance_hosts" => {
                    database.take_place(&key, value, numbers)?;
                }
                key => database.take_rest(key, value, numbers)?,
            }
        }
        Ok(database)
    }

    /// Where it leads and as whom.
    fn take_place(
        &mut self,
        key: &str,
        value: String,
        numbers: &mut Numbers,
    ) -> Result<(), String> {
        match key {
            "dbname" => self.dbname = value,
            "host" => self.hosts = value.split(',').map(|h| h.trim().to_string()).collect(),
            "port" => match u16::try_from(numbers.count(key, &value)) {
                Ok(port @ 1..) => self.port = port,
                Ok(0) | Err(_) => return Err(format!("invalid port: {value}")),
            },
            "user" => self.user = Some(value),
            "password" if value.len() >= PASSWORD_MAX => return Err("password too long".into()),
            "password" => self.password = Some(value),
            _ => {
                let order = LoadBalance::parse(&value);
                let invalid = || format!("invalid load_balance_hosts: {value}");
                self.load_balance_hosts = order.ok_or_else(invalid)?;
            }
        }
        Ok(())
    }

    fn take_rest(&mut self, key: &str, value: String, numbers: &mut Numbers) -> Result<(), String> {
        match key {
            "auth_user" => self.auth_user = Some(value),
            "auth_query" => self.auth_query = Some(value),
            "auth_dbname" => self.auth_dbname = Some(value),
            "pool_size" => self.pool_size = Some(numbers.count(key, &value)),
            "min_pool_size" => self.min_pool_size = Some(numbers.count(key, &value)),
            "reserve_pool_size" | "reserve_pool" => {
                self.reserve_pool_size = Some(numbers.count(key, &value));
            }
            "max_db_connections" => self.max_db_connections = Some(numbers.count(key, &value)),
            "max_db_client_connections" => {
                self.max_db_client_connections = Some(numbers.count(key, &value));
            }
            "query_wait_timeout" => self.query_wait_timeout = Some(numbers.seconds(key, &value)),
            "server_lifetime" => {
                let time = numbers.seconds(key, &value);
                self.server_lifetime = Some(time).filter(|time| !time.is_zero());
            }
            "pool_mode" => {
                let mode = PoolMode::parse(&value);
                self.pool_mode = Some(mode.ok_or(format!("invalid pool mode: {value}"))?);
            }
            "connect_query" => self.connect_query = Some(value),
            "client_encoding" | "datestyle" | "timezone" | "application_name" => {
                self.startup.retain(|(known, _)| known != key);
                self.startup.push((key.into(), value));
            }
            "topology_query" => self.topology_query = Some(value),
            shared if SHARED.contains(&shared) => {
                if !Settings::is_value(shared, &value) {
                    return Err(format!("invalid {shared}: {value}"));
                }
                self.keep(key, value);
            }
            // It may hold a password: the error does not repeat it.
            "patroni_url" => match HttpUrl::list(&value) {
                Some(_) => self.keep(key, value),
                None => return Err("invalid patroni_url".into()),
            },
            known if OTHER.contains(&known) => self.keep(key, value),
            _ => return Err(format!("unrecognized connection parameter: {key}")),
        }
        Ok(())
    }

    fn keep(&mut self, key: &str, value: String) {
        self.other.retain(|(known, _)| known != key);
        self.other.push((key.into(), value));
    }

    /// A key that is kept as written.
    pub fn other(&self, key: &str) -> Option<&str> {
        self.other.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Whether its servers have to be replaced when it becomes `new`.
    pub fn leads_elsewhere(&self, new: &Database) -> bool {
        (&self.dbname, &self.hosts, self.port, &self.user, &self.connect_query)
            != (&new.dbname, &new.hosts, new.port, &new.user, &new.connect_query)
            || (&self.auth_dbname, &self.auth_query, self.load_balance_hosts)
                != (&new.auth_dbname, &new.auth_query, new.load_balance_hosts)
            || self.topology_query != new.topology_query
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_pgbouncers_texts() {
        for (text, error) in [
            ("host=", "syntax error in connection string"),
            ("hist=1", "unrecognized connection parameter: hist"),
            ("port=0", "invalid port: 0"),
            ("port=65536", "invalid port: 65536"),
            ("port=x", "invalid port: x"),
            ("pool_mode=x", "invalid pool mode: x"),
            ("load_balance_hosts=x", "invalid load_balance_hosts: x"),
            ("probe_timeout=x", "invalid probe_timeout: x"),
        ] {
            assert_eq!(Database::parse("d", text), Err(error.into()));
        }
        let long = "x".repeat(PASSWORD_MAX - 1);
        assert!(Database::parse("d", &format!("password={long}")).is_ok());
        let error = Database::parse("d", &format!("password={long}x"));
        assert_eq!(error, Err("password too long".into()));
    }

    #[test]
    fn what_moves_its_servers() {
        let parse = |text: &str| Database::parse("d", text).expect("a valid entry");
        let old = parse("host=a user=u");
        for new in [
            "host=b user=u",
            "host=a,b user=u",
            "host=a user=v",
            "host=a",
            "host=a user=u port=1",
            "host=a user=u dbname=e",
            "host=a user=u connect_query=q",
            "host=a user=u auth_query=q",
            "host=a user=u auth_dbname=q",
            "host=a user=u topology_query=q",
            "host=a user=u load_balance_hosts=disable",
        ] {
            assert!(old.leads_elsewhere(&parse(new)), "{new}");
        }
        for new in ["password=p", "auth_user=x", "timezone=UTC", "pool_size=1", "pool_mode=session"]
        {
            assert!(!old.leads_elsewhere(&parse(&format!("host=a user=u {new}"))), "{new}");
        }
    }
}
