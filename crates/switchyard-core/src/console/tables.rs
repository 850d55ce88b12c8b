//! The tables of SHOW: columns in the order that consumers read them by, and their messages.

use std::borrow::Cow;

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
    /// bytea, of which only NULL is sent.
    Bytea,
}

use Type::{Bytea, Int4, Int8, Numeric, Text};

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
/// What SHOW SOCKETS has behind the columns of SHOW CLIENTS.
const BUFFERS: [TableColumn; 7] = [
    ("recv_pos", Int4),
    ("pkt_pos", Int4),
    ("pkt_remain", Int4),
    ("send_pos", Int4),
    ("send_remain", Int4),
    ("pkt_avail", Int4),
    ("send_avail", Int4),
];
const FDS: &[TableColumn] = &[
    ("fd", Int4),
    ("task", Text),
    ("user", Text),
    ("database", Text),
    ("addr", Text),
    ("port", Int4),
    ("cancel", Int8),
    ("link", Int4),
    ("client_encoding", Text),
    ("std_strings", Text),
    ("datestyle", Text),
    ("timezone", Text),
    ("password", Text),
    ("scram_client_key", Bytea),
    ("scram_server_key", Bytea),
];
const PEERS: &[TableColumn] =
    &[("peer_id", Int4), ("host", Text), ("port", Int4), ("pool_size", Int4)];
const PEER_POOLS: &[TableColumn] = &[
    ("peer_id", Int4),
    ("cl_active_cancel_req", Int4),
    ("cl_waiting_cancel_req", Int4),
    ("sv_active_cancel", Int4),
    ("sv_login", Int4),
];
const MEM: &[TableColumn] =
    &[("name", Text), ("size", Int4), ("used", Int4), ("free", Int4), ("memtotal", Int4)];
const DNS_HOSTS: &[TableColumn] = &[("hostname", Text), ("ttl", Int8), ("addrs", Text)];
const DNS_ZONES: &[TableColumn] = &[("zonename", Text), ("serial", Int8), ("count", Int4)];
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
const HOOKS: &[TableColumn] = &[
    ("hook", Text),
    ("file", Text),
    ("state", Text),
    ("loaded_at", Text),
    ("arity", Int4),
    ("workers", Int4),
    ("calls", Int8),
    ("changed", Int8),
    ("identical", Int8),
    ("none", Int8),
    ("unknown_key", Int8),
    ("errors", Int8),
    ("timeouts", Int8),
    ("ignored_in_transaction", Int8),
    ("avg_us", Int8),
    ("max_us", Int8),
    ("last_error", Text),
    ("shadow_differences", Int8),
];
/// Behind the columns that SHOW CLIENTS shares with SHOW SERVERS.
const LOGIN: &[TableColumn] = &[("login_database", Text)];
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
        Show::Clients => [CONNECTIONS, LOGIN].concat(),
        Show::Servers => CONNECTIONS.to_vec(),
        Show::Users => USERS.to_vec(),
        Show::Sockets | Show::ActiveSockets => [CONNECTIONS, &BUFFERS].concat(),
        Show::Fds => FDS.to_vec(),
        Show::Lists => LISTS.to_vec(),
        Show::Peers => PEERS.to_vec(),
        Show::PeerPools => PEER_POOLS.to_vec(),
        Show::Mem => MEM.to_vec(),
        Show::DnsHosts => DNS_HOSTS.to_vec(),
        Show::DnsZones => DNS_ZONES.to_vec(),
        Show::Stats => STATS.to_vec(),
        Show::StatsTotals => STATS_TOTALS.to_vec(),
        Show::StatsAverages => STATS_AVERAGES.to_vec(),
        Show::Totals => TOTALS.to_vec(),
        Show::Clusters => CLUSTERS.to_vec(),
        Show::Nodes => NODES.to_vec(),
        Show::Switchovers => SWITCHOVERS.to_vec(),
        Show::Hooks => HOOKS.to_vec(),
        Show::Parameter(name, _) => vec![(name, Text)],
    }
}

/// A row: one text a column, `None` for NULL.
pub type Row = Vec<Option<String>>;

/// How values travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As text.
    Text,
    /// As their type's binary form.
    Binary,
}

/// Appends a RowDescription. `formats` are those of Bind: none for text, one for all, or one each.
pub fn describe(out: &mut Vec<u8>, columns: &[TableColumn], formats: &[Format]) {
    build::row_description(
        out,
        columns.iter().enumerate().map(|(index, (name, kind))| {
            let (oid, len) = match kind {
                Text => (25, -1),
                Int4 => (23, 4),
                Int8 => (20, 8),
                Numeric => (1700, -1),
                Bytea => (17, -1),
            };
            let format = u16::from(format_of(formats, index) == Format::Binary);
            Column { name, oid, len, format }
        }),
    );
}

/// Appends a DataRow.
pub fn row(out: &mut Vec<u8>, columns: &[TableColumn], row: &Row, formats: &[Format]) {
    assert_eq!(row.len(), columns.len(), "a row has a value for each column");
    let value = |index: usize| {
        let text = row[index].as_deref()?;
        Some(match format_of(formats, index) {
            Format::Text => Cow::Borrowed(text.as_bytes()),
            Format::Binary => binary(columns[index].1, text),
        })
    };
    let values: Vec<Option<Cow<'_, [u8]>>> = (0..row.len()).map(value).collect();
    build::data_row(out, values.iter().map(|value| value.as_deref()));
}

fn format_of(formats: &[Format], index: usize) -> Format {
    let own = if formats.len() == 1 { formats.first() } else { formats.get(index) };
    own.copied().unwrap_or(Format::Text)
}

/// A value's binary form. Numbers that do not fit are cut to the nearest that does.
fn binary(kind: Type, text: &str) -> Cow<'_, [u8]> {
    let number = || text.trim().parse::<i128>().unwrap_or(0);
    let (low, high) = match kind {
        Text | Bytea => return Cow::Borrowed(text.as_bytes()),
        Numeric => return Cow::Owned(numeric(text)),
        Int4 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        Int8 => (i64::MIN, i64::MAX),
    };
    let cut = number().clamp(low.into(), high.into()) as i64;
    let bytes = cut.to_be_bytes();
    Cow::Owned(if kind == Int4 { bytes[4..].to_vec() } else { bytes.to_vec() })
}

/// A whole number as PostgreSQL sends `numeric`: count of digits to the base 10000, weight of the
/// first, sign, decimals, digits.
fn numeric(text: &str) -> Vec<u8> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (0x4000u16, rest),
        None => (0, text),
    };
    let digits: Vec<u16> = text
        .trim_start_matches('0')
        .as_bytes()
        .rchunks(4)
        .rev()
        .map(|group| group.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit & 15)))
        .collect();
    let count = digits.len() as u16;
    let mut bytes = Vec::with_capacity(8 + digits.len() * 2);
    for word in [count, count.saturating_sub(1), sign, 0].into_iter().chain(digits) {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// DETAIL of SHOW HELP's notice.
pub const HELP: &str = "
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW PEERS|PEER_POOLS
\tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE
\tSHOW DNS_HOSTS|DNS_ZONES
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tSET key = arg
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tSUSPEND
\tSHUTDOWN
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
\tWAIT_CLOSE [<db>]
\tSHOW CLUSTERS|NODES|SWITCHOVERS|HOOKS
\tPROBE <db>
\tHOLD <db>
\tRELEASE <db>
\tSWITCHOVER <db> [<node>]
\tSWITCHOVER_ABORT <db>
\tEXPLAIN ROUTE '<user>', '<db>', '<sql>'
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_binary() {
        assert_eq!(&*binary(Int4, "-2"), [255, 255, 255, 254]);
        assert_eq!(&*binary(Int4, "5000000000"), i32::MAX.to_be_bytes());
        assert_eq!(&*binary(Int8, "5000000000"), 5_000_000_000i64.to_be_bytes());
        assert_eq!(&*binary(Text, "a"), b"a");
        let words = |words: &[u16]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<_>>();
        assert_eq!(numeric("0"), words(&[0, 0, 0, 0]));
        assert_eq!(numeric("12345678901"), words(&[3, 2, 0, 0, 123, 4567, 8901]));
        assert_eq!(numeric("-10000"), words(&[2, 1, 0x4000, 0, 1, 0]));
    }
}
