//! The server side: outgoing logins, and what a linked server owes.

pub mod link;
pub mod login;
pub mod request;
