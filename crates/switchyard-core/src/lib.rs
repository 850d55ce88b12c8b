//! Every decision the pooler takes, as plain machines without sockets, clock, threads or
//! randomness. Time and bytes come in as arguments; verdicts and effects come out.

pub mod batch;
pub mod client;
pub mod console;
pub mod hook;
pub mod ids;
pub mod lifecycle;
pub mod names;
pub mod params;
pub mod pool;
pub mod prepared;
pub mod rules;
pub mod server;
pub mod switchover;
pub mod wheel;
