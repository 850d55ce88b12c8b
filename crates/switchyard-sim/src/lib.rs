//! The core of Switchyard with many made-up clients and servers, from a seed, in virtual time.
//!
//! A world is a pooler whose decisions are all the product's own (`pooler`), nodes that speak
//! PostgreSQL's protocol (`postgres`, `node`), clients that know what they should hear (`actor`,
//! `writer`), and a network that delivers late and in pieces (`net`). The same seed gives the same
//! world, so that a failure can be looked at again. Two kinds: `crowd`, plain pools under load and
//! faults, with or without hooks that rewrite and refuse; `cluster`, nodes that change their roles,
//! with pools in transaction or session mode.

// A world that is wrong ends with a panic, which `run` turns into words.
#![allow(clippy::panic)]

pub mod actor;
pub mod cluster;
pub mod crowd;
pub mod env;
pub mod hooks;
pub mod net;
pub mod node;
pub mod pooler;
pub mod postgres;
pub mod random;
pub mod script;
pub mod watch;
pub mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};

use switchyard_core::server::duty::Tenure;

pub use env::Trace;
use hooks::Hooks;
pub use random::Seed;

/// A kind of world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Plain pools.
    Crowd,
    /// Plain pools with hooks.
    Hooks,
    /// A cluster.
    Cluster,
    /// A cluster whose pools are in session mode.
    Sessions,
}

/// Runs the world of a seed; answers what there is to say about it, or why it is wrong.
pub fn run(kind: Kind, seed: Seed<'_>, trace: Option<&Trace>) -> Result<String, String> {
    let trace = trace.cloned();
    let world = move || match kind {
        Kind::Crowd => crowd::Crowd::new(seed, trace, Hooks::Off).run(),
        Kind::Hooks => crowd::Crowd::new(seed, trace, Hooks::On).run(),
        Kind::Cluster => cluster::Town::new(seed, trace, Tenure::Transaction).run(),
        Kind::Sessions => cluster::Town::new(seed, trace, Tenure::Session).run(),
    };
    catch_unwind(AssertUnwindSafe(world)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without words".into())
    })
}
