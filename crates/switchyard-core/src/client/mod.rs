//! The client side: first packets, login, and the session.

pub mod login;
pub mod pipeline;
pub mod session;
pub mod startup;
