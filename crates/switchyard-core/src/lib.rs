//! Every decision the pooler takes, as plain machines without sockets, clock, threads or
//! randomness. Time and bytes come in as arguments; verdicts and effects come out.

pub mod console;
pub mod hook;
pub mod switchover;
