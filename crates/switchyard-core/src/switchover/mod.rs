//! The election of a cluster's writer: which node accepts writes, and when clients must wait.
//!
//! [`cluster::Cluster`] is the machine. It orders probes and topology queries, judges their
//! answers and publishes a [`view::View`]. It knows neither pools nor clients: pools react to
//! what is published. Sockets, names and clocks belong to the shell.
//!
//! Reading order: `view` (what is published), `probe` (questions and answers), `node`,
//! `election` (the rules), `cluster` (the machine), `judge` (its decisions), `planned` (operators'
//! switchovers), `discovery` (its list of nodes), `record` (what is kept of each hold).

pub mod cluster;
mod discovery;
pub mod election;
mod judge;
mod node;
pub mod options;
pub mod planned;
pub mod probe;
mod publish;
mod record;
pub mod snapshot;
pub mod topology;
pub mod view;

mod homes;
mod moves;
mod rules;
mod worlds;
