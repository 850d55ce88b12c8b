//! What a session is told, and why it stops.

use std::ops::Range;

use crate::batch::Batch;
use crate::client::replay::Keeping;
use crate::client::routes::RouteId;
use crate::params::Tracked;
use crate::prepared::Registry;

/// Whether named statements are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Names pass unchanged.
    Off,
    /// Names are mapped; so many statements per server.
    On(usize),
}

/// Whether queries are shown to hooks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooking {
    /// No.
    Off,
    /// Each Query and Parse needs an approval.
    On,
}

/// What becomes of a client whose server is lost in the middle of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loyalty {
    /// It is closed.
    Leaves,
    /// It is told and stays.
    Stays,
    /// It is closed, but for an idle session that has left no traces: that goes on elsewhere.
    Returns,
}

/// What happens when a client defines a statement name twice, or uses one that it did not define.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// The client is closed.
    Closes,
    /// The message fails with the error that a server gives.
    Fails,
}

/// Whether statements whose result has changed its types are prepared anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reprepare {
    /// No: they fail until their server is closed.
    Off,
    /// At their next use.
    On,
}

/// Whether clients may use the simple protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simple {
    /// They may.
    Allowed,
    /// They are closed.
    Refused,
}

/// What happens when a client sets a parameter that is not tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untracked {
    /// Nothing: the next client finds it so.
    Ignore,
    /// It is told.
    Warn,
    /// The server stays with the client.
    Pin,
    /// The server takes it back before its next client.
    Reset,
}

impl Untracked {
    /// Whether texts are looked at.
    #[inline]
    pub fn looks(self) -> bool {
        self != Untracked::Ignore
    }
}

/// What becomes of a statement of another pool inside a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detour {
    /// It is prepared and run on the transaction's server.
    Stays,
    /// It fails, and the transaction with it.
    Fails,
}

/// What the session has to know of settings.
#[derive(Clone, Debug)]
pub struct Rules<'a> {
    /// Named statements.
    pub tracking: Tracking,
    /// Hooks.
    pub hooking: Hooking,
    /// Statements of other pools inside a transaction.
    pub detour: Detour,
    /// Lost servers.
    pub loyalty: Loyalty,
    /// Wrong names.
    pub misuse: Misuse,
    /// Changed results.
    pub reprepare: Reprepare,
    /// The simple protocol.
    pub simple: Simple,
    /// Parameters that are not tracked.
    pub untracked: Untracked,
    /// Those that are.
    pub tracked: &'a Tracked,
    /// Statements that a read-only server refuses.
    pub keeping: Keeping,
    /// `max_packet_size` in bytes.
    pub message_max: usize,
    /// Texts of statements.
    pub registry: &'a Registry,
    /// Requests that may be unanswered before the client has to wait.
    pub outstanding_max: usize,
}

/// Where the bytes of a turn go.
#[derive(Debug, Default)]
pub struct Flow {
    /// To the linked server.
    pub server: Batch,
    /// To the client.
    pub client: Vec<u8>,
    /// What there is to count.
    pub counted: Counted,
    /// An untracked parameter that was set, the first one of a transaction.
    pub assigned: Option<String>,
    /// A message that belongs to this route was sent where the client was.
    pub stayed: Option<RouteId>,
}

impl Flow {
    /// Whether there is nothing to send.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.server.is_empty() && self.client.is_empty()
    }
}

/// Events of a turn that statistics count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Named Parse messages of the client.
    pub client_parses: u32,
    /// Parse messages sent to the server for tracked statements.
    pub server_parses: u32,
    /// Bind messages that name a tracked statement.
    pub binds: u32,
}

/// Why `advance` came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Everything usable was used; more bytes are needed.
    More,
    /// The next message needs a server.
    NeedServer,
    /// Too many requests are unanswered.
    Full,
    /// The hooks have to judge the next message, whose query text is here.
    Ask(Range<usize>),
    /// The next message belongs there.
    Move(RouteId),
    /// The client said good-bye.
    Terminate,
    /// The client must be closed.
    Close(Refusal),
}

/// Why a client must be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Reason in the log and text of the FATAL.
    pub reason: String,
    /// ERROR line that comes first.
    pub cause: Option<String>,
}

/// The hooks' decision about the message at the head of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Approval {
    /// As the client sent it.
    Unchanged,
    /// With this text instead.
    Text(Vec<u8>),
    /// Not at all.
    Refused(Box<Denial>),
}

/// What happens instead of a message that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The ErrorResponse for the client.
    pub error: Vec<u8>,
    /// SQL that the server runs in place of the message; its answer is swallowed.
    pub instead: Option<&'static [u8]>,
}
