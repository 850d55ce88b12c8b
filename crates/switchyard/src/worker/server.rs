//! A server connection as a worker holds it, and the moves between connection, pool and client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use switchyard_config::PoolMode;
use switchyard_core::client::untracked::Kept;
use switchyard_core::ids::{LaneId, ServerId, WorkerId};
use switchyard_core::pool::Want;
use switchyard_core::server::link::{Link, Told};
use switchyard_core::server::login::ServerLogin;
use switchyard_core::server::lookup::Lookup;
use switchyard_core::server::loss::Cause;
use switchyard_io::{Key, Remote};

use crate::pools::SharedPool;
use crate::tls::Transport;
use crate::worker::buffer::Pending;

/// What a server connection is doing.
#[derive(Debug)]
pub enum Stage {
    /// TCP connection under way; further addresses of the host.
    Connecting(Box<ServerLogin>, Vec<SocketAddr>),
    /// Asked for TLS, or in its handshake.
    Securing(Box<ServerLogin>),
    /// On its way from one stage to the next.
    Between,
    /// Login dialogue.
    Login(Box<ServerLogin>),
    /// Logged in.
    Ready(Link, Use),
    /// Asked by auth_query for a client's user.
    Asked(Box<Asked>),
}

/// A logged-in server with the question of auth_query.
#[derive(Debug)]
pub struct Asked {
    /// What it goes on as.
    pub link: Link,
    /// The client whose user is looked up.
    pub client: Key,
    /// What was answered so far.
    pub lookup: Lookup,
    /// Bytes of a message that is not complete.
    pub input: Vec<u8>,
}

/// What a logged-in server is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Parked, or on its way between owners.
    Idle,
    /// Linked to this client of the same worker.
    Linked(Key),
    /// Kept by this client, whose messages go elsewhere at the moment.
    Kept(Key),
    /// Running a hidden query of ours.
    Testing,
    /// Rolling back what its last client has left behind.
    RollingBack,
    /// Released, but a cancel request that was sent for it has not ended.
    BeingCanceled,
}

/// A server connection.
#[derive(Debug)]
pub struct Server {
    /// Identity in its pool.
    pub id: ServerId,
    /// Number shown to operators.
    pub number: u64,
    /// Its pool.
    pub pool: Arc<SharedPool>,
    /// The node it leads to.
    pub lane: LaneId,
    /// Name of that node, empty for plain entries.
    pub node: String,
    /// The socket.
    pub stream: Transport,
    /// Slot in its home worker's table.
    pub slot: Key,
    /// Home worker.
    pub home: WorkerId,
    /// What the client it is linked to came for.
    pub purpose: Want,
    /// Progress.
    pub stage: Stage,
    /// Bytes of a message that is not complete.
    pub input: Vec<u8>,
    /// Bytes that did not fit into the socket.
    pub output: Pending,
    /// Whether the socket may hold more bytes than were read.
    pub unread: Unread,
    /// Where it is connected to.
    pub remote: Remote,
    /// `HOST:PORT` as in log lines.
    pub address: String,
    /// The host as configured, which its certificate has to name.
    pub host: String,
    /// Key for cancel requests.
    pub key: Vec<u8>,
    /// Process id at the server.
    pub pid: u32,
    /// When the attempt began.
    pub started: Instant,
    /// The same as a time of day.
    pub started_at: SystemTime,
    /// When the last query of ours was sent.
    pub asked: Instant,
    /// Last message of the server.
    pub heard: Instant,
    /// Own address.
    pub local: Option<SocketAddr>,
    /// Cancel requests that were sent to it and have not ended.
    pub cancels: u32,
    /// What its last client has left in it.
    pub kept: Kept,
    /// What is known of its end, once that is near.
    pub cause: Option<Box<Cause>>,
}

/// Whether a socket may hold unread bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// The last read was short: nothing is left.
    No,
    /// Reading was put off.
    Maybe,
    /// The peer hung up, which is reported once: a short read is not the end, only the end is.
    End,
}

impl Unread {
    /// What a read begins with: only the peer's end outlasts it.
    pub(super) fn reading(&mut self) {
        if *self == Unread::Maybe {
            *self = Unread::No;
        }
    }

    /// Reading is put off.
    pub(super) fn put_off(&mut self) {
        if *self == Unread::No {
            *self = Unread::Maybe;
        }
    }
}

impl Server {
    /// The client it is linked to.
    #[inline]
    pub fn client(&self) -> Option<Key> {
        match &self.stage {
            Stage::Ready(_, Use::Linked(client)) => Some(*client),
            Stage::Asked(asked) => Some(asked.client),
            Stage::Ready(..)
            | Stage::Connecting(..)
            | Stage::Securing(_)
            | Stage::Login(_)
            | Stage::Between => None,
        }
    }

    /// The machine that follows its answers, once it is logged in.
    #[inline]
    pub fn link(&mut self) -> Option<&mut Link> {
        match &mut self.stage {
            Stage::Ready(link, _) => Some(link),
            Stage::Connecting(..)
            | Stage::Securing(_)
            | Stage::Login(_)
            | Stage::Between
            | Stage::Asked(_) => None,
        }
    }

    /// Whether the next transaction of its session has to wait, because an operator holds clients.
    #[inline]
    pub fn is_kept_from_writer(&self) -> bool {
        self.pool.is_held() && self.pool.mode() == PoolMode::Session && self.purpose == Want::Writer
    }

    /// Its connection has failed: the system's word for it, unless the server has said why.
    pub fn fell(&mut self, error: &std::io::Error) {
        let text = switchyard_config::reason(error);
        self.cause.get_or_insert_with(|| Box::new(Cause::System(text)));
    }

    /// Remembers the last words of a server among what was told.
    pub fn heed(&mut self, told: &[Told]) {
        for told in told {
            if let Told::LastWords(sqlstate, text) = told {
                self.cause = Some(Box::new(Cause::Said(*sqlstate, text.clone())));
            }
        }
    }

    /// Changes what a logged-in server is used for.
    pub fn set_use(&mut self, to: Use) {
        if let Stage::Ready(_, current) = &mut self.stage {
            *current = to;
        }
    }

    /// Prefix of its log lines.
    pub fn prefix(&self) -> String {
        self.prefix_of(self.number)
    }

    /// Prefix for another connection to the same place.
    pub fn prefix_of(&self, number: u64) -> String {
        let (database, user) = (&self.pool.entry.name, &self.pool.user);
        let at = if self.node.is_empty() { String::new() } else { format!("@{}", self.node) };
        format!("S-{:#x}: {database}{at}/{user}@{}", pointer(number), self.address)
    }
}

/// A number that looks like an address, as in log lines and SHOW.
pub fn pointer(number: u64) -> u64 {
    0x10_0000_0000 + number * 0x40
}
