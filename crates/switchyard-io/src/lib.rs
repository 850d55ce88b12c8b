//! The readiness driver: polls, sockets, timers' sleep and wake-ups between workers.
//!
//! Not here: protocol, pools, or any decision. The interface is completion-shaped (bytes
//! received, bytes accepted), so that another driver can take its place.

pub mod inbox;
pub mod listener;
pub mod poller;
pub mod stream;
pub mod sys;
pub mod table;

pub use inbox::{Inbox, Sender};
pub use listener::{Accepted, Listener, Peer, Queue};
pub use poller::{Poller, Ready};
pub use stream::{FailedStep, Loopback, Recv, Remote, SocketOptions, Stream};
pub use table::{Key, Table};
