//! From the settings of entries with a topology_query to what their clusters are told.

use std::time::Duration;

use switchyard_auth::secret::Secret;
use switchyard_config::value::{
    Bytes, DrainAction as ConfigDrain, Fencing as ConfigFencing, Value,
};
use switchyard_config::{Config, Database, HttpUrl};
use switchyard_core::switchover::options::{
    DrainAction, Fencing, Newcomers, Options, Plan, PromoteBy, Timings,
};
use switchyard_core::switchover::topology::Endpoint;

use crate::log::{Level, Log};
use crate::services::ClusterOptions;
use crate::services::probe::ProbeLogin;
use crate::snapshot::Snapshot;

/// Shortest interval and deadline of probes.
const SHORTEST: Duration = Duration::from_millis(1);
/// How long a promotion is waited for where queries may wait for ever.
const PATIENCE: Duration = Duration::from_secs(3600);

/// A value that the entry may give itself.
pub fn wish<T: Value>(definition: &Database, key: &str, global: T) -> T {
    definition.other(key).and_then(T::parse).unwrap_or(global)
}

/// Entries with a topology_query that nobody can ask become ordinary ones; the query stays among
/// what is only kept as written.
pub fn complete(config: &mut Config, log: &Log) {
    for (name, definition) in &mut config.databases {
        let nobody = definition.user.is_none() && definition.other("probe_user").is_none();
        if let Some(query) = definition.topology_query.take_if(|_| nobody) {
            definition.other.push(("topology_query".into(), query));
            log.write(Level::Error, &nobody_asks(name));
        }
    }
}

fn nobody_asks(name: &str) -> String {
    format!("topology_query of database \"{name}\" needs user= or probe_user")
}

/// Entries that are no clusters although they have a topology_query, and why.
pub fn unmanaged(config: &Config) -> impl Iterator<Item = (&str, String)> {
    let databases = config.databases.iter();
    let kept = databases.filter(|(_, definition)| definition.other("topology_query").is_some());
    kept.map(|(name, _)| (name.as_str(), nobody_asks(name)))
}

/// The clusters among the entries.
pub fn clusters(snapshot: &Snapshot) -> Vec<ClusterOptions> {
    let databases = snapshot.config.databases.iter();
    databases.filter_map(|(name, definition)| cluster(snapshot, name, definition)).collect()
}

fn cluster(snapshot: &Snapshot, name: &str, definition: &Database) -> Option<ClusterOptions> {
    let settings = &snapshot.config.settings;
    let query = definition.topology_query.clone()?;
    let socket_dir = std::slice::from_ref(&settings.unix_socket_dir);
    let hosts = if definition.hosts.is_empty() { socket_dir } else { &definition.hosts[..] };
    let endpoint = |host: &String| Endpoint { host: host.clone(), port: definition.port };
    let user = definition.other("probe_user").or(definition.user.as_deref())?.to_owned();
    let password = definition.other("probe_password").or(definition.password.as_deref());
    let secret = match password {
        Some(password) => Some(Secret::parse(password.as_bytes())),
        None => snapshot.access.users.secret(&user),
    };
    let recovery = definition.other("recovery_query").unwrap_or(&settings.recovery_query);
    let fencing = match wish(definition, "writer_fencing", settings.writer_fencing) {
        ConfigFencing::Strict => Fencing::Strict,
        ConfigFencing::Timeline => Fencing::Timeline,
        ConfigFencing::Off => Fencing::Off,
    };
    let adopt = wish(definition, "accept_new_system", settings.accept_new_system);
    let lag: Bytes = wish(definition, "reader_max_lag", settings.reader_max_lag);
    Some(ClusterOptions {
        machine: Options {
            database: name.to_owned(),
            hosts: hosts.iter().map(endpoint).collect(),
            port: definition.port,
            topology_query: query,
            fencing,
            newcomers: if adopt { Newcomers::Adopt } else { Newcomers::Refuse },
            lag_max: Some(lag.0).filter(|limit| *limit > 0),
            plan: plan(snapshot, definition),
            timings: timings(snapshot, definition),
        },
        login: ProbeLogin {
            user,
            secret,
            database: definition.other("probe_dbname").unwrap_or(&definition.dbname).into(),
            tls: snapshot.tls.servers.clone(),
            recovery_query: recovery.into(),
        },
        promote_command: promote_command(snapshot, definition),
        patroni: patroni(definition),
    })
}

/// Patroni's interfaces; what is not one was refused when the entry was read.
fn patroni(definition: &Database) -> Vec<HttpUrl> {
    definition.other("patroni_url").and_then(HttpUrl::list).unwrap_or_default()
}

fn promote_command(snapshot: &Snapshot, definition: &Database) -> Option<String> {
    let own = definition.other("promote_command").map(str::to_owned);
    let command = own.or_else(|| snapshot.config.settings.promote_command.clone());
    command.filter(|command| !command.trim().is_empty())
}

fn plan(snapshot: &Snapshot, definition: &Database) -> Plan {
    let settings = &snapshot.config.settings;
    let action = wish(definition, "drain_action", settings.drain_action);
    let by_others =
        promote_command(snapshot, definition).is_some() || !patroni(definition).is_empty();
    let promote = if by_others {
        PromoteBy::Command
    } else if wish(definition, "promote_sql", settings.promote_sql) {
        PromoteBy::Sql
    } else {
        PromoteBy::Others
    };
    let wait = definition.query_wait_timeout.unwrap_or(settings.query_wait_timeout);
    Plan {
        drain_timeout: wish(definition, "drain_timeout", settings.drain_timeout),
        drain_action: match action {
            ConfigDrain::Abort => DrainAction::Abort,
            ConfigDrain::Kill => DrainAction::Kill,
        },
        promote,
        patience: if wait.is_zero() { PATIENCE } else { wait },
    }
}

fn timings(snapshot: &Snapshot, definition: &Database) -> Timings {
    let settings = &snapshot.config.settings;
    let time = |key: &str, default: Duration| wish(definition, key, default);
    Timings {
        polling_frequency: time("polling_frequency", settings.polling_frequency).max(SHORTEST),
        probe_fast: time("probe_fast", settings.probe_fast),
        probe_timeout: time("probe_timeout", settings.probe_timeout).max(SHORTEST),
        server_failed_delay: time("server_failed_delay", settings.server_failed_delay),
        topology_refresh: time("topology_refresh", settings.topology_refresh),
        topology_removal_delay: time("topology_removal_delay", settings.topology_removal_delay),
        ..Timings::default()
    }
}
