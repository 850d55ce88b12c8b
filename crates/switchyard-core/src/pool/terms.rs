//! What a pool is told and what it answers: limits, outcomes, orders to the shell, numbers.

use std::time::Duration;

use crate::ids::{LaneId, ServerId, Ticket, WorkerId};
use crate::server::login::ServerLoginError;

/// Sizes and times that a pool keeps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Servers per lane; 0 means no limit.
    pub size: usize,
    /// Servers beyond that for clients that have waited long.
    pub reserve: Reserve,
    /// Servers that are kept ready.
    pub minimum: Minimum,
    /// Age at which an unused server is closed; zero means after one use.
    pub lifetime: Duration,
    /// Idle time after which a server is closed; zero means never.
    pub idle_timeout: Duration,
    /// Idle time after which a server is checked before use; `None` means never.
    pub check_delay: Option<Duration>,
    /// Pause after a failed login.
    pub retry: Retry,
    /// Which idle server is used next.
    pub order: Order,
    /// What clients are told while logins fail.
    pub failing: Failing,
    /// Logged-in connections kept ready on each standby of a cluster.
    pub standby: Standby,
    /// Whether connections are opened again after all were lost.
    pub reopen: Reopen,
    /// How much longer a waiter of another worker must have waited to come first.
    pub fairness: Duration,
}

/// Servers beyond a pool's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// So many.
    pub size: usize,
    /// Once the first client has waited this long; zero means never.
    pub after: Duration,
}

/// Servers kept ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Minimum {
    /// So many while the pool has clients.
    Attended(usize),
    /// So many even without clients.
    Always(usize),
}

impl Minimum {
    /// How many.
    pub fn count(self) -> usize {
        match self {
            Minimum::Attended(count) | Minimum::Always(count) => count,
        }
    }
}

/// Pause after a failed login, counted from the start of the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Always the same.
    Fixed(Duration),
    /// Twice as long with each failure in a row, from the first value to the second.
    Growing(Duration, Duration),
}

/// Attempts that fail at once would otherwise follow each other for ever in one turn.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

impl Retry {
    /// The pause after so many failures in a row.
    pub(super) fn pause(self, failures: u32) -> Duration {
        match self {
            Retry::Fixed(pause) => pause.max(LEAST_PAUSE),
            Retry::Growing(first, longest) => {
                let doublings = failures.saturating_sub(1).min(20);
                first.saturating_mul(1 << doublings).min(longest.max(first))
            }
        }
    }
}

/// Order in which idle servers are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The one released last.
    Lifo,
    /// The one idle longest (`server_round_robin`).
    RoundRobin,
}

/// What happens to a client that needs a server after a failed login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// It gets the remembered error.
    Refuse,
    /// It waits; clusters do so.
    Wait,
}

/// What happens after all connections to a cluster were lost (`recreate_disconnected_pools`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reopen {
    /// They are opened again.
    Always,
    /// They are when a client needs one.
    OnRequest,
}

/// Connections kept ready on standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standby {
    /// At least one, and as many as the writer's peak of the last minute.
    Auto,
    /// So many.
    Fixed(usize),
}

/// Answer to a checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkout {
    /// Use this server at once.
    Granted(ServerId),
    /// The client is in the queue.
    Wait,
    /// Logins have been failing; the reason.
    Refused(String),
}

/// Answer to a checkin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkin {
    /// Hand it to this waiter.
    Give(Ticket),
    /// It is idle; park it.
    Idle,
    /// Check it; answered by `checkin` or `closed`.
    Check,
    /// Close it, for this reason. The slot is gone.
    Close(&'static str),
}

/// Orders to the shell that come out of other inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Open a connection; the slot is the permit, answered by `opened` or `open_failed`.
    Open(ServerId, LaneId, WorkerId),
    /// Take this idle server out and hand it to a waiter.
    Give(ServerId, Ticket),
    /// Take this idle server out and check it; answered by `checkin` or `closed`.
    Check(ServerId, WorkerId),
    /// Take this idle server out and close it. The slot is gone.
    Close(ServerId, &'static str),
    /// The waiter's login or query fails.
    Fail(Ticket, OpenFailure),
    /// Give up what this worker does to open or check a server. The slot is gone.
    Abort(ServerId, WorkerId, &'static str),
    /// A server beyond the pool's size is opened for this waiter: the log tells.
    Reserve(Ticket),
    /// A limit shared with other pools is reached: one of them has to part with an idle server.
    Evict,
    /// The server's parameters are known: the client waiting for its welcome may go on.
    Welcome(Ticket),
}

/// Why a server could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFailure {
    /// Text for clients.
    pub text: String,
    /// Why the server connection is closed, and the remembered error.
    pub reason: String,
    /// SQLSTATE for clients.
    pub sqlstate: String,
    /// What kind of failure.
    pub kind: OpenFailureKind,
}

/// SQLSTATE of a server that is starting up or shutting down.
const CANNOT_CONNECT_NOW: &str = "57P03";
/// SQLSTATE of everything that has none of its own.
const PROTOCOL_VIOLATION: &str = "08P01";
/// Why a server is closed whose question in the password dialogue has no answer.
const UNANSWERED: &str = "failed to answer authreq";

impl OpenFailure {
    /// No connection, for this reason.
    pub fn connect(text: &str) -> Self {
        OpenFailure {
            text: text.into(),
            reason: text.into(),
            sqlstate: PROTOCOL_VIOLATION.into(),
            kind: OpenFailureKind::Connect,
        }
    }

    /// Whether the server starts up or shuts down.
    pub fn is_starting(&self) -> bool {
        self.sqlstate == CANNOT_CONNECT_NOW
    }

    /// A login that came to nothing.
    pub fn of(error: &ServerLoginError) -> Self {
        match error {
            ServerLoginError::Refused { sqlstate, message, .. } => {
                let waits = sqlstate == CANNOT_CONNECT_NOW;
                let kind = if waits { OpenFailureKind::Connect } else { OpenFailureKind::Login };
                OpenFailure { sqlstate: sqlstate.clone(), kind, ..OpenFailure::connect(message) }
            }
            ServerLoginError::CannotAnswer(_, Some(told)) => OpenFailure {
                text: (*told).into(),
                kind: OpenFailureKind::Login,
                ..OpenFailure::connect(UNANSWERED)
            },
            ServerLoginError::CannotAnswer(_, None) => OpenFailure::connect(UNANSWERED),
            ServerLoginError::Broken(reason) => OpenFailure::connect(reason),
        }
    }
}

/// Kinds of failure with different consequences for waiting clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFailureKind {
    /// The server refused the login: waiting clients are told.
    Login,
    /// No connection, or the server is starting up: they wait on.
    Connect,
}

/// How many servers and clients are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Linked to a client, or being reset.
    pub busy: usize,
    /// Idle.
    pub idle: usize,
    /// Idle for longer than the check delay.
    pub used: usize,
    /// Running a check.
    pub testing: usize,
    /// Connecting or logging in.
    pub opening: usize,
    /// Clients in the queue.
    pub waiting: usize,
}
