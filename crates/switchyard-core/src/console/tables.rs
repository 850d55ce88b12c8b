//! The tables of SHOW: columns in the order that consumers read them by, and their messages.

use switchyard_wire::build::{self, Column};

use crate::console::Show;

/// A column: name and type.
pub type TableColumn = (&'static str, Type);

/// Types of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// text.
    Text,
    /// int4.
    Int4,
    /// int8.
    Int8,
    /// numeric.
    Numeric,
}

use Type::{Int4, Int8, Numeric, Text};

const CONFIG: &[TableColumn] =
    &[("key", Text), ("value", Text), ("default", Text), ("changeable", Text)];
const STATE: &[TableColumn] = &[("key", Text), ("value", Text)];
const VERSION: &[TableColumn] = &[("version", Text)];
const DATABASES: &[TableColumn] = &[
    ("name", Text),
    ("host", Text),
    ("port", Int4),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int4),
    ("min_pool_size", Int4),
    ("reserve_pool_size", Int4),
    ("server_lifetime", Int4),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
    ("max_connections", Int4),
    ("current_connections", Int4),
    ("max_client_connections", Int4),
    ("current_client_connections", Int4),
    ("paused", Int4),
    ("disabled", Int4),
];
const POOLS: &[TableColumn] = &[
    ("database", Text),
    ("user", Text),
    ("cl_active", Int4),
    ("cl_waiting", Int4),
    ("cl_active_cancel_req", Int4),
    ("cl_waiting_cancel_req", Int4),
    ("sv_active", Int4),
    ("sv_active_cancel", Int4),
    ("sv_being_canceled", Int4),
    ("sv_idle", Int4),
    ("sv_used", Int4),
    ("sv_tested", Int4),
    ("sv_login", Int4),
    ("maxwait", Int4),
    ("maxwait_us", Int4),
    ("pool_mode", Text),
    ("load_balance_hosts", Text),
];
const CONNECTIONS: &[TableColumn] = &[
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("replication", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int4),
    ("local_addr", Text),
    ("local_port", Int4),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int4),
    ("wait_us", Int4),
    ("close_needed", Int4),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int4),
    ("tls", Text),
    ("application_name", Text),
    ("prepared_statements", Int4),
    ("id", Int4),
];
const USERS: &[TableColumn] = &[
    ("name", Text),
    ("pool_size", Text),
    ("reserve_pool_size", Text),
    ("pool_mode", Text),
    ("max_user_connections", Int4),
    ("current_connections", Int4),
    ("max_user_client_connections", Int4),
    ("current_client_connections", Int4),
];
const LISTS: &[TableColumn] = &[("list", Text), ("items", Int4)];
const STATS: &[TableColumn] = &[
    ("database", Text),
    ("total_server_assignment_count", Numeric),
    ("total_xact_count", Numeric),
    ("total_query_count", Numeric),
    ("total_received", Numeric),
    ("total_sent", Numeric),
    ("total_xact_time", Numeric),
    ("total_query_time", Numeric),
    ("total_wait_time", Numeric),
    ("total_client_parse_count", Numeric),
    ("total_server_parse_count", Numeric),
    ("total_bind_count", Numeric),
    ("total_client_login_count", Numeric),
    ("avg_server_assignment_count", Numeric),
    ("avg_xact_count", Numeric),
    ("avg_query_count", Numeric),
    ("avg_recv", Numeric),
    ("avg_sent", Numeric),
    ("avg_xact_time", Numeric),
    ("avg_query_time", Numeric),
    ("avg_wait_time", Numeric),
    ("avg_client_parse_count", Numeric),
    ("avg_server_parse_count", Numeric),
    ("avg_bind_count", Numeric),
    ("avg_client_login_count", Numeric),
];
const STATS_TOTALS: &[TableColumn] = &[
    ("database", Text),
    ("server_assignment_count", Numeric),
    ("xact_count", Numeric),
    ("query_count", Numeric),
    ("bytes_received", Numeric),
    ("bytes_sent", Numeric),
    ("xact_time", Numeric),
    ("query_time", Numeric),
    ("wait_time", Numeric),
    ("client_parse_count", Numeric),
    ("server_parse_count", Numeric),
    ("bind_count", Numeric),
    ("client_login_count", Numeric),
];
const STATS_AVERAGES: &[TableColumn] = &[
    ("database", Text),
    ("server_assignment_count", Numeric),
    ("xact_count", Numeric),
    ("query_count", Numeric),
    ("bytes_received", Numeric),
    ("bytes_sent", Numeric),
    ("xact_time", Numeric),
    ("query_time", Numeric),
    ("wait_time", Numeric),
    ("avg_client_parse_count", Numeric),
    ("avg_server_parse_count", Numeric),
    ("avg_bind_count", Numeric),
    ("avg_client_login_count", Numeric),
];
const TOTALS: &[TableColumn] = &[("name", Text), ("value", Numeric)];

const CLUSTERS: &[TableColumn] = &[
    ("database", Text),
    ("state", Text),
    ("writer", Text),
    ("writer_host", Text),
    ("writer_port", Int4),
    ("writer_since", Text),
    ("system_identifier", Text),
    ("timeline", Int8),
    ("nodes", Int4),
    ("nodes_up", Int4),
    ("held_clients", Int4),
    ("held_since", Text),
    ("switchovers", Int8),
    ("last_switchover", Text),
    ("last_stall_ms", Int8),
    ("topology_age", Int4),
    ("last_error", Text),
];
const NODES: &[TableColumn] = &[
    ("database", Text),
    ("node", Text),
    ("host", Text),
    ("port", Int4),
    ("role", Text),
    ("state", Text),
    ("timeline", Int8),
    ("replay_lsn", Text),
    ("lag_bytes", Int8),
    ("probe_ms", Int4),
    ("probe_age_ms", Int8),
    ("probe_failures", Int8),
    ("last_answer", Text),
    ("last_error", Text),
    ("sv_active", Int4),
    ("sv_idle", Int4),
    ("cl_active", Int4),
    ("up_since", Text),
    ("failed_until", Text),
];
const SWITCHOVERS: &[TableColumn] = &[
    ("id", Int8),
    ("database", Text),
    ("kind", Text),
    ("trigger", Text),
    ("old_writer", Text),
    ("new_writer", Text),
    ("old_timeline", Int8),
    ("new_timeline", Int8),
    ("started", Text),
    ("detected_ms", Int8),
    ("elected_ms", Int8),
    ("released_ms", Int8),
    ("held_clients", Int4),
    ("waiting_max", Int4),
    ("errors_in_flight", Int4),
    ("disconnected", Int4),
    ("timeouts", Int4),
    ("stall_p50_ms", Int8),
    ("stall_p99_ms", Int8),
    ("stall_max_ms", Int8),
    ("result", Text),
];

/// Names in SHOW TOTALS, without their prefixes.
pub const TOTALS_NAMES: [&str; 12] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
    "client_login_count",
];

/// Columns of a table; the fake ones have one column of their own name.
pub fn columns(show: Show) -> Vec<TableColumn> {
    match show {
        Show::Help => Vec::new(),
        Show::Version => VERSION.to_vec(),
        Show::State => STATE.to_vec(),
        Show::Config => CONFIG.to_vec(),
        Show::Databases => DATABASES.to_vec(),
        Show::Pools => POOLS.to_vec(),
        Show::Clients | Show::Servers => CONNECTIONS.to_vec(),
        Show::Users => USERS.to_vec(),
        Show::Lists => LISTS.to_vec(),
        Show::Stats => STATS.to_vec(),
        Show::StatsTotals => STATS_TOTALS.to_vec(),
        Show::StatsAverages => STATS_AVERAGES.to_vec(),
        Show::Totals => TOTALS.to_vec(),
        Show::Clusters => CLUSTERS.to_vec(),
        Show::Nodes => NODES.to_vec(),
        Show::Switchovers => SWITCHOVERS.to_vec(),
        Show::Parameter(name, _) => vec![(name, Text)],
    }
}

/// A row: one text a column, `None` for NULL.
pub type Row = Vec<Option<String>>;

/// Appends a whole answer: description, rows, and the tag SHOW.
pub fn render(out: &mut Vec<u8>, show: Show, rows: &[Row]) {
    let columns = columns(show);
    build::row_description(
        out,
        columns.iter().map(|(name, kind)| {
            let (oid, len) = match kind {
                Text => (25, -1),
                Int4 => (23, 4),
                Int8 => (20, 8),
                Numeric => (1700, -1),
            };
            Column { name, oid, len }
        }),
    );
    for row in rows {
        assert_eq!(row.len(), columns.len(), "a row has a value for each column");
        build::data_row(out, row.iter().map(|value| value.as_deref().map(str::as_bytes)));
    }
    build::command_complete(out, "SHOW");
}

/// DETAIL of SHOW HELP's notice.
pub const HELP: &str = "
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW LISTS|STATE
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tSHOW CLUSTERS|NODES|SWITCHOVERS
\tSET key = arg
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tSHUTDOWN
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
";
