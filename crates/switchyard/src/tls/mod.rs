//! TLS towards clients and servers, with rustls, driven by the worker loops.
//!
//! `transport` is the socket that clients and servers hold, plain or encrypted; `connection` is
//! the state of an encrypted one. Neither owns a buffer while nothing is under way.

pub mod connection;
pub mod transport;

pub use transport::{Shake, Transport};
