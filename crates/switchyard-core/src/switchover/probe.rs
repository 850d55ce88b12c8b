//! Questions to nodes and their answers.

use std::time::Duration;

/// Identity of one question; later questions have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId(pub u64);

/// Identity of one run of the topology query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopologyId(pub u64);

/// What a node is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// An empty `Sync`: is the node there, and does it report a promotion by itself.
    Cheap,
    /// Everything in [`Facts`].
    Full,
}

/// The connection to ask on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The open one; earlier questions may still be unanswered there.
    Open,
    /// A connection opened for this question; an open one is dropped first.
    Fresh,
}

/// What a node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It accepts writes.
    Writer,
    /// It is a standby.
    Reader,
    /// Its recovery_query gave neither yes nor no.
    Unclear,
}

impl Status {
    /// Reads the value of recovery_query: is the node in recovery.
    pub fn of(value: Option<&str>) -> Self {
        match value.map(|text| text.trim().to_ascii_lowercase()).as_deref() {
            Some("f" | "false" | "0" | "off" | "no") => Status::Writer,
            Some("t" | "true" | "1" | "on" | "yes") => Status::Reader,
            Some(_) | None => Status::Unclear,
        }
    }
}

/// Whether the cheap question tells enough about a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cheap {
    /// It reports `in_hot_standby` by itself (PostgreSQL 14 and newer).
    Enough,
    /// Older, not reported, or judged by a query of the user's own.
    #[default]
    TooLittle,
}

/// The answer to a full question. What the role may not see is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Result of recovery_query.
    pub status: Status,
    /// System identifier of the data directory.
    pub system: Option<u64>,
    /// Timeline.
    pub timeline: Option<u32>,
    /// Write position of a writer, replay position of a reader.
    pub lsn: Option<u64>,
    /// Start of the postmaster, microseconds since 1970.
    pub started: Option<i64>,
    /// Whether the cheap question may be used from here on.
    pub cheap: Cheap,
    /// Whether a standby follows somebody.
    pub stream: Stream,
    /// Whether the transaction in which it was asked could write.
    pub proof: Proof,
}

/// A running server, however it is reached: it has an address of its own on each way, so that
/// only the moment of its start, in microseconds, tells it from others of its system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// System identifier.
    pub system: u64,
    /// Start of its postmaster.
    pub started: i64,
}

/// Whether a transaction on a node can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The node does not tell.
    Unknown,
    /// It can.
    Writes,
    /// It cannot, unless it asks for it.
    ReadOnly,
}

/// Whether a standby receives the writer's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The node does not tell, or it is no standby.
    Unknown,
    /// It does.
    Flowing,
    /// It does not.
    Broken,
}

impl Facts {
    /// What a record keeps of it.
    pub(super) fn text(&self) -> String {
        let role = match self.status {
            Status::Writer => "writer",
            Status::Reader => "reader",
            Status::Unclear => "unknown",
        };
        let number = |value: Option<u64>| value.map_or("unknown".into(), |value| value.to_string());
        let (timeline, lsn) = (number(self.timeline.map(u64::from)), number(self.lsn));
        format!("{role}, timeline {timeline}, position {lsn}")
    }

    /// The running server that answers, if it tells enough of itself.
    pub(super) fn server(&self) -> Option<Server> {
        Some(Server { system: self.system?, started: self.started? })
    }
}

/// What kept a node from answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Nothing came before the deadline.
    Timeout,
    /// The connection was closed or reset, or the node said that it shuts down.
    Closed,
    /// Nobody listens, or the node says that it starts up (57P03).
    Refused,
    /// The host cannot be reached or its name not be found.
    Unreachable,
    /// The node refused the login or broke the protocol.
    Denied,
}

/// A probe that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its kind.
    pub kind: FailureKind,
    /// Text for the log and for SHOW.
    pub text: String,
}

/// What came back. A failure under the identity of the last answered question says that its
/// connection was lost since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To the cheap question: as before.
    Same,
    /// To the cheap question: the node has left recovery.
    Promoted,
    /// To the full question.
    Full(Facts),
    /// No answer.
    Failed(Failure),
}

/// Signs of trouble seen elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignalKind {
    /// A server connection was closed or reset.
    Disconnected,
    /// A server said 57P01, 57P02 or 57P03.
    ShuttingDown,
    /// A server said 25006.
    ReadOnly,
    /// A connection could not be opened.
    ConnectFailed,
    /// The topology names another writer, or lists the writer no more.
    Topology,
    /// The name of a node does not stand for an address any more that it stood for.
    Moved,
    /// An operator wants everything asked again (PROBE, RECONNECT).
    Operator,
}

impl SignalKind {
    /// Text for the log.
    pub fn text(self) -> &'static str {
        match self {
            SignalKind::Disconnected => "server connections closed",
            SignalKind::ShuttingDown => "server is shutting down",
            SignalKind::ReadOnly => "server is read-only",
            SignalKind::ConnectFailed => "connect failed",
            SignalKind::Topology => "the topology has changed",
            SignalKind::Moved => "the address has changed",
            SignalKind::Operator => "operator",
        }
    }

    /// Whether one missed probe beside it is enough to give a writer up.
    pub(super) fn weighs(self) -> bool {
        match self {
            SignalKind::Disconnected | SignalKind::ShuttingDown | SignalKind::ConnectFailed => true,
            SignalKind::ReadOnly
            | SignalKind::Topology
            | SignalKind::Moved
            | SignalKind::Operator => false,
        }
    }
}

/// Pause before a node is asked again that has failed for `failing`.
pub(super) fn retry_pause(kind: FailureKind, failing: Duration, at_rest: Duration) -> Duration {
    let soon = match kind {
        FailureKind::Closed | FailureKind::Refused => RETRY_SOON,
        FailureKind::Timeout | FailureKind::Unreachable | FailureKind::Denied => at_rest,
    };
    if failing < RETRY_SOON_FOR {
        soon.min(at_rest)
    } else if failing < RETRY_SLOW_AFTER {
        at_rest
    } else {
        at_rest.max(RETRY_SLOW)
    }
}

const RETRY_SOON: Duration = Duration::from_millis(10);
const RETRY_SOON_FOR: Duration = Duration::from_secs(10);
const RETRY_SLOW_AFTER: Duration = Duration::from_secs(60);
const RETRY_SLOW: Duration = Duration::from_secs(1);
