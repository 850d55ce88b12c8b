//! The table of `[pgbouncer]`: one row a key, from which parsing, defaults, SHOW CONFIG, SET and
//! reload come.

use std::time::Duration;

pub use crate::value::Written;
use crate::value::{
    AuthType, Bytes, DrainAction, Fencing, Io, LostTransaction, Names, OnError, PoolMode,
    RouteInTransaction, RouteNone, RouteUnknown, SessionRelink, SslMode, Tag, Truth, UntrackedSet,
    Value,
};

/// One row of SHOW CONFIG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRow {
    /// Name.
    pub key: &'static str,
    /// Value in force; `None` if unset.
    pub value: Option<String>,
    /// Default as written in the manual; `None` if there is none.
    pub default: Option<&'static str>,
    /// Whether it can be changed while the process runs.
    pub changeable: bool,
}

/// When a change acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Run,
    Start,
}

/// Whether a key does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Active,
    Inert,
}

/// What became of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is in force.
    Applied,
    /// The key cannot be changed at run time.
    Ignored,
}

/// Why a key could not be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetError {
    /// There is no such key.
    Unknown,
    /// The value is not one.
    Invalid,
}

macro_rules! settings {
    ($($name:ident: $kind:ty, $default:expr, $shown:expr, $when:ident, $state:ident;)*) => {
        /// Values of all keys.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Settings {
            $(
                #[doc = concat!("`", stringify!($name), "`.")]
                pub $name: $kind,
            )*
        }

        impl Default for Settings {
            fn default() -> Self {
                Settings { $($name: initial::<$kind>($default),)* }
            }
        }

        impl Settings {
            /// Rows of SHOW CONFIG, in its order.
            pub fn rows(&self) -> Vec<ConfigRow> {
                vec![$(ConfigRow {
                    key: stringify!($name),
                    value: self.$name.show(),
                    default: $shown,
                    changeable: When::$when == When::Run,
                },)*]
            }

            /// Sets a key from text, whatever it is.
            pub fn assign(&mut self, key: &str, text: &str) -> Result<(), SetError> {
                match key {
                    $(stringify!($name) => {
                        self.$name = Value::parse(text).ok_or(SetError::Invalid)?;
                        Ok(())
                    })*
                    _ => Err(SetError::Unknown),
                }
            }

            /// Keeps from `old` what cannot be changed while the process runs.
            pub fn keep_fixed(&mut self, old: &Settings) {
                $(if When::$when == When::Start {
                    self.$name = old.$name.clone();
                })*
            }

            /// Whether a key is accepted but has no effect.
            pub fn is_inert(key: &str) -> bool {
                match key {
                    $(stringify!($name) => State::$state == State::Inert,)*
                    _ => false,
                }
            }

            /// Whether a text is a value of a key.
            pub fn is_value(key: &str, text: &str) -> bool {
                match key {
                    $(stringify!($name) => <$kind as Value>::parse(text).is_some(),)*
                    _ => false,
                }
            }

            /// In which form a value is written; `None` if it is none.
            pub fn written(key: &str, text: &str) -> Option<Written> {
                if !Settings::is_value(key, text) {
                    return None;
                }
                match key {
                    $(stringify!($name) => Some(<$kind as Value>::written(text)),)*
                    _ => None,
                }
            }

            fn is_fixed(key: &str) -> Option<bool> {
                match key {
                    $(stringify!($name) => Some(When::$when == When::Start),)*
                    _ => None,
                }
            }
        }
    };
}

/// The value of a default's text; the tests parse every default.
fn initial<T: Value + Initial>(text: Option<&str>) -> T {
    text.and_then(T::parse).unwrap_or_else(T::nothing)
}

/// A value for keys without a default.
trait Initial {
    fn nothing() -> Self;
}

macro_rules! nothing {
    ($($kind:ty => $value:expr),* $(,)?) => {
        $(impl Initial for $kind {
            fn nothing() -> Self {
                $value
            }
        })*
    };
}

nothing! {
    bool => false, i64 => 0, Duration => Duration::ZERO, String => String::new(),
    Truth => Truth(false),
    Option<String> => None, Option<i64> => None, Bytes => Bytes(0), Names => Names::default(),
    AuthType => AuthType::Md5, PoolMode => PoolMode::Session, SslMode => SslMode::Disable,
    Option<LostTransaction> => None, Io => Io::Auto, Fencing => Fencing::Strict,
    DrainAction => DrainAction::Abort, SessionRelink => SessionRelink::Clean,
    OnError => OnError::Pass, RouteUnknown => RouteUnknown::Stay,
    RouteNone => RouteNone::Current, RouteInTransaction => RouteInTransaction::Stay,
    Tag => Tag::Off, UntrackedSet => UntrackedSet::Ignore,
}

impl Value for Option<LostTransaction> {
    fn parse(text: &str) -> Option<Self> {
        LostTransaction::parse(text).map(Some)
    }

    fn show(&self) -> Option<String> {
        self.as_ref().and_then(Value::show)
    }
}

impl Settings {
    /// SET of a running process.
    pub fn set(&mut self, key: &str, text: &str) -> Result<Taken, SetError> {
        match Settings::is_fixed(key) {
            None => Err(SetError::Unknown),
            Some(true) => Ok(Taken::Ignored),
            Some(false) => self.assign(key, text).map(|()| Taken::Applied),
        }
    }
}

settings! {
    accept_new_system: bool, Some("0"), Some("0"), Run, Active;
    admin_users: Names, Some(""), Some(""), Run, Active;
    application_name_add_host: bool, Some("0"), Some("0"), Run, Active;
    auth_dbname: Option<String>, None, None, Run, Active;
    auth_error_codes: bool, Some("0"), Some("0"), Run, Active;
    auth_file: Option<String>, None, None, Run, Active;
    auth_hba_file: String, Some(""), Some(""), Run, Active;
    auth_hba_strict: bool, Some("0"), Some("0"), Run, Active;
    auth_ident_file: Option<String>, None, None, Run, Active;
    auth_ldap_options: Option<String>, None, None, Run, Inert;
    auth_query: String,
        Some(AUTH_QUERY),
        Some(AUTH_QUERY),
        Run, Active;
    auth_type: AuthType, Some("md5"), Some("md5"), Run, Active;
    auth_user: Option<String>, None, None, Run, Active;
    autodb_idle_timeout: Duration, Some("3600"), Some("3600"), Run, Active;
    cancel_wait_timeout: Duration, Some("10"), Some("10"), Run, Active;
    client_idle_timeout: Duration, Some("0"), Some("0"), Run, Active;
    client_login_timeout: Duration, Some("60"), Some("60"), Run, Active;
    client_tls13_ciphers: Option<String>, None, None, Run, Active;
    client_tls_ca_file: String, Some(""), Some(""), Run, Active;
    client_tls_cert_file: String, Some(""), Some(""), Run, Active;
    client_tls_ciphers: String, Some("default"), Some("default"), Run, Active;
    client_tls_dheparams: String, Some("auto"), Some("auto"), Run, Active;
    client_tls_ecdhcurve: String, Some("auto"), Some("auto"), Run, Active;
    client_tls_key_file: String, Some(""), Some(""), Run, Active;
    client_tls_protocols: String, Some("secure"), Some("secure"), Run, Active;
    client_tls_sslmode: SslMode, Some("disable"), Some("disable"), Run, Active;
    conffile: Option<String>, None, None, Run, Active;
    default_pool_size: i64, Some("20"), Some("20"), Run, Active;
    disable_pqexec: bool, Some("0"), Some("0"), Start, Active;
    dns_max_ttl: Duration, Some("15"), Some("15"), Run, Active;
    dns_nxdomain_ttl: Duration, Some("15"), Some("15"), Run, Active;
    dns_zone_check_period: Duration, Some("0"), Some("0"), Run, Inert;
    drain_action: DrainAction, Some("abort"), Some("abort"), Run, Active;
    drain_timeout: Duration, Some("10"), Some("10"), Run, Active;
    hook_cache_size: i64, Some("10000"), Some("10000"), Run, Active;
    hook_max_query_size: Bytes, Some("16MB"), Some("16MB"), Run, Active;
    hook_max_rss: Bytes, Some("512MB"), Some("512MB"), Run, Active;
    hook_python: Option<String>, None, None, Run, Active;
    hook_shadow_rewrite_query_py_module_file: String,
        Some("not_enabled"),
        Some("not_enabled"),
        Run, Active;
    hook_shadow_routing_rules_py_module_file: String,
        Some("not_enabled"),
        Some("not_enabled"),
        Run, Active;
    hook_timeout: Duration, Some("1"), Some("1"), Run, Active;
    hook_workers: i64, Some("2"), Some("2"), Run, Active;
    hook_workers_max: i64, Some("8"), Some("8"), Run, Active;
    idle_transaction_timeout: Duration, Some("0"), Some("0"), Run, Active;
    ignore_startup_parameters: Names, Some(""), Some(""), Run, Active;
    io: Io, Some("auto"), Some("auto"), Start, Active;
    job_name: String, Some("pgbouncer"), Some("pgbouncer"), Start, Active;
    listen_addr: Names, Some(""), Some(""), Start, Active;
    listen_backlog: i64, Some("128"), Some("128"), Start, Active;
    listen_port: i64, Some("6432"), Some("6432"), Start, Active;
    log_connections: bool, Some("1"), Some("1"), Run, Active;
    log_disconnections: bool, Some("1"), Some("1"), Run, Active;
    log_pooler_errors: bool, Some("1"), Some("1"), Run, Active;
    log_stats: bool, Some("1"), Some("1"), Run, Active;
    logfile: String, Some(""), Some(""), Run, Active;
    login_notify_message: String, Some(""), Some(""), Run, Active;
    lost_transaction: Option<LostTransaction>, None, None, Run, Active;
    max_client_conn: i64, Some("100"), Some("100"), Run, Active;
    max_db_client_connections: i64, Some("0"), Some("0"), Run, Active;
    max_db_connections: i64, Some("0"), Some("0"), Run, Active;
    max_packet_size: i64, Some("2147483647"), Some("2147483647"), Run, Active;
    max_prepared_statements: i64, Some("200"), Some("200"), Run, Active;
    max_user_client_connections: i64, Some("0"), Some("0"), Run, Active;
    max_user_connections: i64, Some("0"), Some("0"), Run, Active;
    min_pool_size: i64, Some("0"), Some("0"), Run, Active;
    pause_stops_query_wait: bool, Some("0"), Some("0"), Run, Active;
    peer_id: i64, Some("0"), Some("0"), Run, Active;
    pidfile: String, Some(""), Some(""), Start, Active;
    pkt_buf: i64, Some("4096"), Some("4096"), Start, Active;
    polling_frequency: Duration, Some(".1"), Some(".1"), Run, Active;
    pool_mode: PoolMode, Some("session"), Some("session"), Run, Active;
    pool_idle_timeout: Duration, Some("0"), Some("0"), Run, Active;
    prepared_statement_errors: bool, Some("0"), Some("0"), Run, Active;
    prepared_statement_reprepare: bool, Some("0"), Some("0"), Run, Active;
    probe_fast: Duration, Some(".001"), Some(".001"), Run, Active;
    probe_timeout: Duration, Some(".15"), Some(".15"), Run, Active;
    promote_command: Option<String>, None, None, Run, Active;
    promote_sql: bool, Some("0"), Some("0"), Run, Active;
    query_timeout: Duration, Some("0"), Some("0"), Run, Active;
    query_wait_notify: i64, Some("5"), Some("5"), Run, Active;
    query_wait_timeout: Duration, Some("120"), Some("120"), Run, Active;
    reader_max_lag: Bytes, Some("0"), Some("0"), Run, Active;
    recovery_query: String,
        Some("select pg_is_in_recovery()"),
        Some("select pg_is_in_recovery()"),
        Run, Active;
    recreate_disconnected_pools: bool, Some("1"), Some("1"), Run, Active;
    replay_read_only_error: bool, Some("1"), Some("1"), Run, Active;
    reserve_pool_size: i64, Some("0"), Some("0"), Run, Active;
    reserve_pool_timeout: Duration, Some("5"), Some("5"), Run, Active;
    resolv_conf: String, Some(""), Some(""), Start, Active;
    rewrite_on_error: OnError, Some("pass"), Some("pass"), Run, Active;
    rewrite_query_disconnect_on_failure: Truth, Some("false"), Some("false"), Run, Active;
    rewrite_query_py_module_file: String, Some("not_enabled"), Some("not_enabled"), Run, Active;
    rewrite_query_tag: Tag, Some("off"), Some("off"), Run, Active;
    route_in_transaction: RouteInTransaction, Some("stay"), Some("stay"), Run, Active;
    route_none: RouteNone, Some("current"), Some("current"), Run, Active;
    route_on_error: OnError, Some("pass"), Some("pass"), Run, Active;
    route_unknown: RouteUnknown, Some("stay"), Some("stay"), Run, Active;
    routing_rules_py_module_file: String, Some("not_enabled"), Some("not_enabled"), Run, Active;
    sbuf_loopcnt: i64, Some("5"), Some("5"), Run, Active;
    scram_iterations: i64, Some("4096"), Some("4096"), Run, Active;
    server_check_delay: Duration, Some("30"), Some("30"), Run, Active;
    server_check_query: String, Some("<empty>"), Some("<empty>"), Run, Active;
    server_connect_timeout: Duration, Some("15"), Some("15"), Run, Active;
    server_error_detail: bool, Some("0"), Some("0"), Run, Active;
    server_failed_delay: Duration, Some("30"), Some("30"), Run, Active;
    server_fast_close: bool, Some("0"), Some("0"), Run, Active;
    server_idle_timeout: Duration, Some("600"), Some("600"), Run, Active;
    server_lifetime: Duration, Some("3600"), Some("3600"), Run, Active;
    server_login_backoff: bool, Some("0"), Some("0"), Run, Active;
    server_login_retry: Duration, Some("15"), Some("15"), Run, Active;
    server_reset_query: String, Some("DISCARD ALL"), Some("DISCARD ALL"), Run, Active;
    server_reset_query_always: bool, Some("0"), Some("0"), Run, Active;
    server_rollback_on_disconnect: bool, Some("0"), Some("0"), Run, Active;
    server_round_robin: bool, Some("0"), Some("0"), Run, Active;
    server_tls13_ciphers: Option<String>, None, None, Run, Active;
    server_tls_ca_file: String, Some(""), Some(""), Run, Active;
    server_tls_cert_file: String, Some(""), Some(""), Run, Active;
    server_tls_ciphers: String, Some("default"), Some("default"), Run, Active;
    server_tls_key_file: String, Some(""), Some(""), Run, Active;
    server_tls_protocols: String, Some("secure"), Some("secure"), Run, Active;
    server_tls_sslmode: SslMode, Some("prefer"), Some("prefer"), Run, Active;
    service_name: String, Some("pgbouncer"), Some("pgbouncer"), Start, Active;
    session_relink: SessionRelink, Some("clean"), Some("clean"), Run, Active;
    session_route_links: i64, Some("4"), Some("4"), Run, Active;
    so_reuseport: bool, Some("0"), Some("0"), Start, Active;
    standby_connections: String, Some("auto"), Some("auto"), Run, Active;
    stats_period: i64, Some("60"), Some("60"), Run, Active;
    stats_users: Names, Some(""), Some(""), Run, Active;
    suspend_timeout: Duration, Some("10"), Some("10"), Run, Active;
    switchover_hold: bool, Some("1"), Some("1"), Run, Active;
    switchover_record_dir: Option<String>, None, None, Run, Active;
    switchover_state_file: Option<String>, None, None, Run, Active;
    syslog: bool, Some("0"), Some("0"), Run, Inert;
    syslog_facility: String, Some("daemon"), Some("daemon"), Run, Inert;
    syslog_ident: String, Some("pgbouncer"), Some("pgbouncer"), Run, Inert;
    tcp_defer_accept: bool, Some("1"), Some("1"), Run, Active;
    tcp_keepalive: bool, Some("1"), Some("1"), Run, Active;
    tcp_keepcnt: i64, Some("0"), Some("0"), Run, Active;
    tcp_keepidle: i64, Some("0"), Some("0"), Run, Active;
    tcp_keepintvl: i64, Some("0"), Some("0"), Run, Active;
    tcp_socket_buffer: i64, Some("0"), Some("0"), Run, Active;
    tcp_user_timeout: i64, Some("0"), Some("0"), Run, Active;
    tls_reload_contents: bool, Some("0"), Some("0"), Run, Active;
    topology_refresh: Duration, Some("30"), Some("30"), Run, Active;
    topology_removal_delay: Duration, Some("60"), Some("60"), Run, Active;
    track_extra_parameters: Names, Some("IntervalStyle"), Some("IntervalStyle"), Start, Active;
    transaction_timeout: Duration, Some("0"), Some("0"), Run, Active;
    unix_socket_dir: String, Some("/tmp"), Some("/tmp"), Start, Active;
    unix_socket_group: String, Some(""), Some(""), Start, Active;
    unix_socket_mode: i64, Some("0777"), Some("0777"), Start, Active;
    untracked_set: UntrackedSet, Some("ignore"), Some("ignore"), Run, Active;
    user: Option<String>, None, None, Start, Active;
    verbose: Option<i64>, None, None, Run, Active;
    workers: i64, Some("0"), Some("0"), Start, Active;
    writer_fencing: Fencing, Some("strict"), Some("strict"), Run, Active;
}

/// Default of auth_query.
const AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE \
    rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_values_and_survive_being_set() {
        let mut settings = Settings::default();
        for row in settings.rows() {
            if let Some(default) = row.default {
                assert_eq!(settings.assign(row.key, default), Ok(()), "{}", row.key);
            }
        }
        assert_eq!(settings, Settings::default());
        let keys: Vec<_> = settings.rows().iter().map(|row| row.key).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        // PgBouncer shows these two the other way round.
        let at = sorted.iter().position(|key| *key == "pool_idle_timeout").unwrap_or_default();
        sorted.swap(at, at + 1);
        assert_eq!(keys, sorted);
        assert_eq!(settings.set("listen_port", "1"), Ok(Taken::Ignored));
        assert_eq!(settings.set("max_client_conn", "x"), Err(SetError::Invalid));
        assert_eq!(settings.set("nonsense", "1"), Err(SetError::Unknown));
    }

    #[test]
    fn times_are_long_and_none_is_too_long() {
        let mut settings = Settings::default();
        let century = Duration::from_secs(100 * 365 * 86_400);
        let more = "9".repeat(400);
        for (text, time) in [("86400", Duration::from_secs(86_400)), (&more, century)] {
            assert_eq!(settings.set("server_lifetime", text), Ok(Taken::Applied));
            assert_eq!(settings.server_lifetime, time);
        }
        for text in ["", ".", "-1", "1e3", "nan", "inf", "1.2.3", "1 fortnight"] {
            assert_eq!(settings.set("server_lifetime", text), Err(SetError::Invalid), "{text}");
        }
    }
}
