//! What becomes of a logged-in server: whether it stays with its client, what has to be run before
//! somebody else may have it, and whether it survives a client that leaves in the middle.
//!
//! Plain functions over what the link knows; not here: who gets it next (`pool`). Invariant: a
//! server goes on to somebody else only when it is free, or untouched by whoever had it.

use crate::client::untracked::Kept;
use crate::server::link::{Link, Status};
use crate::server::request::HiddenQuery;

/// How long a client keeps its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// Until it leaves.
    Session,
    /// Until its transaction ends.
    Transaction,
    /// The same, and blocks are not allowed.
    Statement,
}

/// What ties a linked client to its server, or away from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bond {
    /// Nothing.
    None,
    /// It has set what the server must not forget.
    Pinned,
    /// Its messages go elsewhere once everything is answered.
    Moving,
}

/// What a logged-in server is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Nothing: it is on its way between owners.
    Idle,
    /// A client is linked to it.
    Linked(Bond),
    /// A client keeps it whose messages go elsewhere.
    Kept,
    /// It runs a query of the pooler's own.
    Testing,
    /// It rolls back what a client has left behind.
    RollingBack,
    /// It waits for the end of cancel requests.
    BeingCanceled,
}

/// Whether all bytes for a peer are with its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// They are.
    Nothing,
    /// Some are not.
    Some,
}

impl Unsent {
    /// Whether there are such bytes.
    pub fn of(any: bool) -> Self {
        if any { Unsent::Some } else { Unsent::Nothing }
    }
}

/// What happens to a server when all that it has said was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It stays where it is.
    Stay,
    /// Its client keeps it while its messages go elsewhere.
    Keep,
    /// It stays although its client's messages were to go elsewhere: what was sent before has
    /// opened a transaction block, which its words did not tell.
    Remain,
    /// It is separated from its client and released.
    Part,
    /// It is released, with all that its mode asks for.
    Release,
    /// It goes back to its pool.
    Checkin,
    /// It is closed, for this reason.
    Close(&'static str),
}

/// What happens to a server when all that it has said was looked at.
#[inline]
pub fn next(link: &Link, unsent: Unsent, duty: Duty, tenure: Tenure) -> Next {
    let free = link.is_free() && unsent == Unsent::Nothing;
    match (duty, tenure) {
        (Duty::Linked(Bond::Moving), Tenure::Session) if free => Next::Keep,
        (Duty::Linked(Bond::Moving), _) if free => Next::Part,
        (Duty::Linked(Bond::Moving), _) if link.is_quiet() && unsent == Unsent::Nothing => {
            Next::Remain
        }
        (Duty::Linked(Bond::None), Tenure::Transaction | Tenure::Statement) if free => Next::Part,
        (Duty::Idle | Duty::Testing, _) if free => Next::Checkin,
        (Duty::RollingBack, _) if free => Next::Release,
        (Duty::Testing | Duty::RollingBack, _) if link.is_quiet() => {
            Next::Close("reset query failed")
        }
        (
            Duty::Idle
            | Duty::Linked(_)
            | Duty::Kept
            | Duty::Testing
            | Duty::RollingBack
            | Duty::BeingCanceled,
            Tenure::Session | Tenure::Transaction | Tenure::Statement,
        ) => Next::Stay,
    }
}

/// When `server_reset_query` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// There is none.
    Never,
    /// After sessions.
    Sessions,
    /// After every use.
    Always,
}

/// What a server has to go through before it goes back to its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Cancel requests that were sent for it may still interrupt it.
    Wait,
    /// This query.
    Run(HiddenQuery),
    /// Nothing.
    Checkin,
}

/// What a free server without a client has to go through. `cancels` were sent for it and have not
/// ended; `kept` is what its client has left in it.
#[inline]
pub fn release(cancels: u32, kept: Kept, tenure: Tenure, reset: Reset) -> Release {
    if cancels > 0 {
        return Release::Wait;
    }
    let session = tenure == Tenure::Session || kept == Kept::Pinned;
    match (reset, kept) {
        (Reset::Always, _) => Release::Run(HiddenQuery::Reset),
        (Reset::Sessions, _) if session => Release::Run(HiddenQuery::Reset),
        (_, Kept::Pinned | Kept::ToForget) => Release::Run(HiddenQuery::Forget),
        (_, Kept::Nothing | Kept::Told) => Release::Checkin,
    }
}

/// What becomes of a server whose client has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphan {
    /// It is free.
    Release,
    /// Nothing of the client has reached it: it is free once it has answered what the pooler asked.
    Untouched,
    /// Its transaction is rolled back first.
    RollBack,
    /// It is closed, for this reason.
    Close(&'static str),
}

/// What is done about a transaction whose client has left (`server_rollback_on_disconnect`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// The server is closed.
    Close,
    /// It is rolled back, if the server has nothing else to do.
    RollBack,
}

/// What becomes of a server whose client has left; `unsent` counts the rest of a half message.
pub fn orphaned(link: &Link, unsent: Unsent, leftover: Leftover) -> Orphan {
    if unsent == Unsent::Some {
        return Orphan::Close("client disconnect before everything was sent to the server");
    }
    if link.is_free() {
        return Orphan::Release;
    }
    if link.is_untouched() {
        return Orphan::Untouched;
    }
    if leftover == Leftover::RollBack && link.is_waiting_in_block() {
        return Orphan::RollBack;
    }
    Orphan::Close(match link.owed_between_groups() {
        0 => "client disconnect while server was not ready",
        1 => "client disconnected with query in progress",
        _ => "client disconnected with queries in progress",
    })
}

/// Why a client and its server are closed after an answer, if they are: statement pooling has no
/// blocks.
#[inline]
pub fn forbids(tenure: Tenure, status: Status) -> Option<&'static str> {
    let block = tenure == Tenure::Statement && status != Status::Idle;
    block.then_some("transaction blocks not allowed in statement pooling mode")
}
