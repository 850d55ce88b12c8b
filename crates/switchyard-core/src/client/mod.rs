//! The client side: first packets, login, and the session.

pub mod doubt;
pub mod login;
pub mod lost;
pub mod patience;
pub mod pipeline;
pub mod replay;
pub mod routes;
pub mod session;
pub mod startup;
pub mod tokens;
pub mod traces;
pub mod untracked;
