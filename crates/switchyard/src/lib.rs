//! The pooler: workers and their connections, settings, the console, the log.
//!
//! Every decision that depends on the protocol is taken in `switchyard-core`; here are the
//! threads, sockets and clocks.

pub mod access;
pub mod arguments;
pub mod automatic;
pub mod check;
pub mod cluster_settings;
pub mod clusters;
pub mod ending;
pub mod entries;
pub mod hooks;
pub mod listen;
pub mod log;
pub mod meters;
pub mod options;
mod oracle;
pub mod peers;
pub mod pools;
pub mod process;
pub mod reload;
pub mod rules;
pub mod services;
pub mod shared;
pub mod sharing;
pub mod signals;
pub mod snapshot;
pub mod statistics;
pub mod tls;
pub mod trial;
pub mod upkeep;
pub mod worker;
