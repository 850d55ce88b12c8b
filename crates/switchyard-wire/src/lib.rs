//! PostgreSQL's frontend/backend protocol, versions 3.0 to 3.2, as bytes: framing, readers and
//! builders ("Frontend/Backend Protocol" in PostgreSQL's documentation), and conversations as text.
//!
//! Not here: any notion of a connection, of what a message means for pooling, or of time.
//! Invariants: a reader never looks past the slice it was given and never panics on it.

pub mod build;
pub mod frame;
pub mod read;
pub mod startup;
pub mod tag;
pub mod transcript;
