//! The user's functions as the pooler sees them: what is asked, and what becomes of each call.
//!
//! `frame` is the language of the processes that run them, `desk` follows the calls of one loop.
//! Not here: queues, processes and files (the binary's `hooks`), and what a verdict means for a
//! client (its `worker/hooking`).

pub mod desk;
pub mod frame;
