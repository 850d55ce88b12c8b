//! Clients, servers, pools and settings as the made-up shell holds them.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use switchyard_core::client::doubt::Doubt;
use switchyard_core::client::patience::Notice;
use switchyard_core::client::replay::Keeping;
use switchyard_core::client::session::{Loyalty, Reprepare, Session};
use switchyard_core::client::untracked::Kept;
use switchyard_core::ids::{LaneId, ServerId, WorkerId};
use switchyard_core::params::Params;
use switchyard_core::pool::parking::Parking;
use switchyard_core::pool::{Limits, Pool, Want};
use switchyard_core::server::duty::{Bond, Reset, Tenure};
use switchyard_core::server::link::Link;
use switchyard_core::server::login::ServerLogin;
use switchyard_core::switchover::probe::SignalKind;
use switchyard_core::switchover::view::{NodeId, View};

use crate::hooks::Hooks;
use crate::net::End;

/// What a client is doing.
#[derive(Debug)]
pub enum Stage {
    /// Logged in, waiting for the parameters of a first server.
    AwaitingWelcome(Params),
    /// In a session.
    Session(Box<Session>, Activity),
}

/// What a client in a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// No server, nothing to do.
    Idle,
    /// In a pool's queue.
    Waiting,
    /// Linked to the server in this slot.
    Linked(u64),
}

/// A client connection.
#[derive(Debug)]
pub struct Client {
    /// The wire.
    pub end: End,
    /// Its pool.
    pub pool: usize,
    /// Which node.
    pub want: Want,
    /// Progress.
    pub stage: Stage,
    /// Bytes not used yet.
    pub input: Vec<u8>,
    /// Bytes that did not fit into the wire.
    pub output: Vec<u8>,
    /// Whether reading was put off.
    pub unread: bool,
    /// A statement that was refused, while its node is asked.
    pub doubt: Option<Box<Doubt>>,
    /// What is with the hooks: the number of the question, and its text's place in the input.
    pub asking: Option<(u64, Range<usize>)>,
    /// When the query under way began.
    pub query_since: Option<Instant>,
    /// When the transaction under way began.
    pub xact_since: Option<Instant>,
    /// Since when it waits for a server.
    pub waiting_since: Option<Instant>,
    /// Its last message.
    pub active: Instant,
    /// What the queue notice has to say.
    pub notice: Notice,
}

impl Client {
    /// The server it is linked to.
    pub fn server(&self) -> Option<u64> {
        match &self.stage {
            Stage::Session(_, Activity::Linked(server)) => Some(*server),
            Stage::Session(..) | Stage::AwaitingWelcome(_) => None,
        }
    }

    /// What ties it to its server.
    pub fn bond(&self) -> Bond {
        match &self.stage {
            Stage::Session(session, _) if session.kept() == Kept::Pinned => Bond::Pinned,
            Stage::Session(..) | Stage::AwaitingWelcome(_) => Bond::None,
        }
    }

    /// Whether it waits in its pool's queue.
    pub fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Session(_, Activity::Waiting) | Stage::AwaitingWelcome(_))
    }

    /// Whether a message of its was passed on in part only.
    pub fn is_inside_message(&self) -> bool {
        matches!(&self.stage, Stage::Session(session, _) if session.is_inside_message())
    }

    /// Changes what it is doing in its session.
    pub fn set_activity(&mut self, to: Activity) {
        if let Stage::Session(_, activity) = &mut self.stage {
            *activity = to;
        }
    }

    /// What it is doing, for the record.
    pub fn text(&self) -> String {
        let stage = match &self.stage {
            Stage::AwaitingWelcome(_) => "awaits its welcome".to_owned(),
            Stage::Session(_, activity) => format!("{activity:?}"),
        };
        let (input, output) = (self.input.len(), self.output.len());
        format!(
            "{stage} in pool {}, input {input}, output {output}, unread {}, doubt {}",
            self.pool,
            self.unread,
            self.doubt.is_some()
        )
    }
}

/// What a server connection is doing.
#[derive(Debug)]
pub enum ServerStage {
    /// Login dialogue.
    Login(Box<ServerLogin>),
    /// Logged in.
    Ready(Box<Link>, Use),
    /// On its way from one stage to the next.
    Between,
}

/// What a logged-in server is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Parked, or on its way between owners.
    Idle,
    /// Linked to this client of the same worker.
    Linked(u64),
    /// Running a hidden query of ours.
    Testing,
    /// Released, but a cancel request that was sent for it has not ended.
    BeingCanceled,
}

/// A server connection.
#[derive(Debug)]
pub struct Server {
    /// Identity in its pool.
    pub id: ServerId,
    /// Its pool.
    pub pool: usize,
    /// The node it leads to.
    pub lane: LaneId,
    /// The node's number in the world.
    pub node: usize,
    /// Its session there.
    pub session: u64,
    /// The wire.
    pub end: End,
    /// Slot in its home worker's table.
    pub slot: u64,
    /// Home worker.
    pub home: WorkerId,
    /// What the client it is linked to came for.
    pub purpose: Want,
    /// Progress.
    pub stage: ServerStage,
    /// Bytes of a message that is not complete.
    pub input: Vec<u8>,
    /// Bytes that did not fit into the wire.
    pub output: Vec<u8>,
    /// Key for cancel requests.
    pub key: Vec<u8>,
    /// When the attempt began.
    pub started: Instant,
    /// When the last query of ours was sent.
    pub asked: Instant,
    /// Last message of the server.
    pub heard: Instant,
    /// Cancel requests that were sent to it and have not ended.
    pub cancels: u32,
    /// What its last client has left in it.
    pub kept: Kept,
}

impl Server {
    /// The client it is linked to.
    pub fn client(&self) -> Option<u64> {
        match &self.stage {
            ServerStage::Ready(_, Use::Linked(client)) => Some(*client),
            ServerStage::Ready(..) | ServerStage::Login(_) | ServerStage::Between => None,
        }
    }

    /// The machine that follows its answers, once it is logged in.
    pub fn link(&mut self) -> Option<&mut Link> {
        match &mut self.stage {
            ServerStage::Ready(link, _) => Some(link),
            ServerStage::Login(_) | ServerStage::Between => None,
        }
    }

    /// Changes what a logged-in server is used for.
    pub fn set_use(&mut self, to: Use) {
        if let ServerStage::Ready(_, current) = &mut self.stage {
            *current = to;
        }
    }
}

/// A place in a worker's table of servers.
#[derive(Debug)]
pub(super) struct Slot {
    /// The pool.
    pub pool: usize,
    /// Identity in the pool.
    pub id: ServerId,
    /// The connection, unless it is parked.
    pub here: Option<Box<Server>>,
}

/// How far a cancel request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The pool has enough such connections.
    Waiting,
    /// It is with the server.
    Sent(Instant),
}

/// A cancel request for a server.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// How far it has come.
    pub progress: Progress,
    /// The server's slot.
    pub slot: u64,
    /// The server's pool.
    pub pool: usize,
    /// The client whose query it is for.
    pub client: u64,
    /// When it began.
    pub started: Instant,
}

/// How a pool serves its clients.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The entry's name.
    pub database: String,
    /// When a server goes back.
    pub tenure: Tenure,
    /// Statements kept per server; 0 means that names pass unchanged.
    pub prepared: usize,
    /// What becomes of a client whose server is lost.
    pub loyalty: Loyalty,
    /// Whether first statements are kept for another server.
    pub keeping: Keeping,
    /// Sizes and times, as they were set last.
    pub limits: Limits,
}

/// A pool.
#[derive(Debug)]
pub struct PoolCell {
    /// Who gets what.
    pub machine: Pool,
    /// Idle connections.
    pub parking: Parking<Box<Server>>,
    /// User at the server.
    pub user: String,
    /// How it serves.
    pub rules: Rules,
    /// Parameters of a first server, for welcomes.
    pub welcome: Option<Params>,
    /// Connections that carry cancel requests.
    pub cancels: usize,
}

/// A cluster.
#[derive(Debug)]
pub struct Entry {
    /// What pools know.
    pub view: View,
    /// What workers have seen and nobody has looked at.
    pub signs: VecDeque<(NodeId, SignalKind)>,
}

/// Settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `server_reset_query` and `server_reset_query_always`.
    pub reset: Reset,
    /// `server_connect_timeout`.
    pub connect_timeout: Duration,
    /// `query_wait_timeout`.
    pub query_wait_timeout: Duration,
    /// `query_wait_notify`.
    pub query_wait_notify: Duration,
    /// `cancel_wait_timeout`.
    pub cancel_wait_timeout: Duration,
    /// `prepared_statement_reprepare`.
    pub reprepare: Reprepare,
    /// Requests of one client that may be unanswered.
    pub outstanding_max: usize,
    /// Whether statements are shown to hooks.
    pub hooks: Hooks,
}
