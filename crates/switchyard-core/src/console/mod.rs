//! The admin console: its commands, and the tables that it shows. What the numbers are comes from
//! the shell. Texts, columns and their order are PgBouncer's.

pub mod conversation;
pub mod explain;
mod grammar;
pub mod tables;

pub use grammar::{Command, Show, Shutdown, parse};
