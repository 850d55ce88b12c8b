//! The server side: outgoing logins, questions for users, and what a linked server owes.

pub mod duty;
pub mod link;
pub mod login;
pub mod lookup;
pub mod loss;
pub mod request;
