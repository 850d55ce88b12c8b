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
    /// Intervals and deadlines.
    pub timings: Timings,
}
