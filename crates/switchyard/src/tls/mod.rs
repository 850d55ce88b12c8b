//! TLS towards clients and servers, with rustls, driven by the worker loops.
//!
//! `transport` is the socket that clients and servers hold, plain or encrypted; `connection` is
//! the state of an encrypted one. Neither owns a buffer while nothing is under way. `setup` makes
//! rustls' configurations from settings and files, with the words of OpenSSL (`suites`). Peers'
//! certificates are judged by `peers`, `verify` and `host`; `certificate` says what stands in one.

pub mod certificate;
pub mod connection;
mod host;
mod peers;
pub mod setup;
mod suites;
pub mod transport;
pub mod verify;

pub use setup::Setup;
pub use transport::{Shake, Transport};
