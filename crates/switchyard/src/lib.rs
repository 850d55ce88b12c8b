//! The shell of the pooler: it performs every action and takes no decision that depends on
//! protocol content. Decisions live in `switchyard-core`.

pub mod hooks;
pub mod log;
pub mod services;
