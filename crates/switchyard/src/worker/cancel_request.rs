//! What a cancel request on its way consists of: whom it is for, who asked for it, and the
//! connection that carries it. What is done with it is in `cancel` and `cancel_peer`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use switchyard_core::ids::Ticket;
use switchyard_io::{Key, Remote};

use crate::peers::{PeerPermit, PeerPool};
use crate::pools::{CancelPermit, SharedPool};
use crate::tls::Transport;

/// A cancel request for a server.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// `None` while it waits for a permit or an address.
    pub(super) connection: Option<Connection>,
    pub(super) progress: Progress,
    pub(super) aim: Aim,
    /// The permit of one that waits for an address.
    pub(super) reserved: Option<Permit>,
    /// `None` if it is our own wish.
    pub(super) requester: Option<Requester>,
    /// Number shown to operators.
    pub(super) number: u64,
    pub(super) started: Instant,
}

/// What a request is for.
#[derive(Clone, Debug)]
pub(super) enum Aim {
    /// The query of a client on the server in a slot.
    Query { client: Key, slot: Key },
    /// A client of another pooler, with the key that this one is told.
    Peer(Arc<PeerPool>, Vec<u8>),
}

/// Where there is room for another connection that carries a request.
#[derive(Clone, Debug)]
pub enum Room {
    /// To the servers of a pool.
    Pool(Arc<SharedPool>),
    /// To a peer.
    Peer(Arc<PeerPool>),
}

/// The right to a connection.
#[derive(Debug)]
pub(super) enum Permit {
    Pool(CancelPermit),
    Peer(PeerPermit),
}

impl Permit {
    /// Where there is room once it is given back.
    pub(super) fn room(&self) -> Room {
        match self {
            Permit::Pool(permit) => Room::Pool(Arc::clone(permit.pool())),
            Permit::Peer(permit) => Room::Peer(Arc::clone(permit.pool())),
        }
    }
}

/// Who asked for a cancel request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// Its connection.
    pub ticket: Ticket,
    /// Number shown to operators.
    pub number: u64,
}

/// A connection that carries a cancel request.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Transport,
    pub(super) security: Security,
    /// The server's host as configured.
    pub(super) host: String,
    /// The server's key.
    pub(super) key: Vec<u8>,
    /// Start of its log lines.
    pub(super) prefix: String,
    pub(super) opened: Instant,
    pub(super) remote: Remote,
    pub(super) permit: Permit,
}

/// How far a cancel request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The pool has enough such connections.
    Waiting,
    /// The name of the peer's host is looked up.
    Naming,
    /// Its connection is being opened.
    Connecting,
    /// Asked for TLS.
    Asked,
    /// In its handshake.
    Shaking,
    /// It is with the server.
    Sent,
}

impl Outgoing {
    /// How far it has come.
    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// The slot of the server it is for, unless it is for a peer.
    pub(super) fn slot(&self) -> Option<Key> {
        match self.aim {
            Aim::Query { slot, .. } => Some(slot),
            Aim::Peer(..) => None,
        }
    }

    /// The peer it is for.
    pub(super) fn peer(&self) -> Option<u32> {
        match &self.aim {
            Aim::Query { .. } => None,
            Aim::Peer(pool, _) => Some(pool.id),
        }
    }

    /// Number shown to operators.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Number of the client that it is linked to.
    pub(super) fn linked(&self) -> Option<u64> {
        let sent = self.requester.filter(|_| self.progress == Progress::Sent);
        sent.map(|requester| requester.number)
    }

    /// Address of this end, if it has one.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.connection.as_ref()?.stream.peek_socket().local_addr()
    }

    /// Where its connection leads, if it has one.
    pub(super) fn remote(&self) -> Option<&Remote> {
        self.connection.as_ref().map(|connection| &connection.remote)
    }

    /// When it began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// What protects it, as shown to operators.
    pub(super) fn tls(&self) -> String {
        let connection = self.connection.as_ref();
        connection.map(|connection| connection.stream.tls_info().to_string()).unwrap_or_default()
    }
}

/// How a request travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    Plain,
    Tls,
}
