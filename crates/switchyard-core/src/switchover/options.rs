//! Settings of one cluster, as the machine wants them.

use std::time::Duration;

use super::topology::Endpoint;

/// How strictly a candidate must prove that it follows the last writer (`writer_fencing`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// Same system, and a higher timeline than a lost writer that was another node.
    Strict,
    /// Same system, and no lower timeline than the highest seen.
    Timeline,
    /// The first node that answers `writer`.
    Off,
}

/// Intervals and deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// `polling_frequency`: probe interval at rest.
    pub polling_frequency: Duration,
    /// `probe_fast`: probe interval from the first sign of trouble until there is a writer.
    pub probe_fast: Duration,
    /// `probe_timeout` on an open connection.
    pub probe_timeout: Duration,
    /// Deadline of a probe that has to connect and log in.
    pub probe_connect_timeout: Duration,
    /// `server_failed_delay`.
    pub server_failed_delay: Duration,
    /// `topology_refresh`; zero means only after elections and on demand.
    pub topology_refresh: Duration,
    /// `topology_removal_delay`.
    pub topology_removal_delay: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Timings {
            polling_frequency: Duration::from_millis(100),
            probe_fast: Duration::from_millis(1),
            probe_timeout: Duration::from_millis(150),
            probe_connect_timeout: Duration::from_secs(1),
            server_failed_delay: Duration::from_secs(30),
            topology_refresh: Duration::from_secs(30),
            topology_removal_delay: Duration::from_secs(60),
        }
    }
}

/// What becomes of a candidate of another system (`accept_new_system`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newcomers {
    /// It is never a candidate.
    Refuse,
    /// It is one if the topology query, run there, lists it.
    Adopt,
}

/// Who promotes in a planned switchover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromoteBy {
    /// A program of the operator's (`promote_command`), or Patroni (`patroni_url`).
    Command,
    /// `pg_promote` on the target (`promote_sql`).
    Sql,
    /// Somebody else, who is waited for.
    Others,
}

/// What happens when transactions outlast `drain_timeout` (`drain_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainAction {
    /// The switchover is given up.
    Abort,
    /// Their servers are closed.
    Kill,
}

/// Planned switchovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// `drain_timeout`.
    pub drain_timeout: Duration,
    /// `drain_action`.
    pub drain_action: DrainAction,
    /// Who promotes.
    pub promote: PromoteBy,
    /// How long a promotion may take.
    pub patience: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            drain_timeout: Duration::from_secs(10),
            drain_action: DrainAction::Abort,
            promote: PromoteBy::Others,
            patience: Duration::from_secs(120),
        }
    }
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of the entry.
    pub database: String,
    /// The entry's own hosts with their ports, used to find the nodes.
    pub hosts: Vec<Endpoint>,
    /// Port of nodes whose row names none.
    pub port: u16,
    /// The query that lists the nodes.
    pub topology_query: String,
    /// `writer_fencing`.
    pub fencing: Fencing,
    /// `accept_new_system`.
    pub newcomers: Newcomers,
    /// Bytes by which a reader may be behind to be used (`reader_max_lag`).
    pub lag_max: Option<u64>,
    /// Planned switchovers.
    pub plan: Plan,
    /// Intervals and deadlines.
    pub timings: Timings,
}
