//! The time limits of a client in its session: in a queue, with a server, and without either.
//!
//! Zero means no limit. Not here: whose limits apply, and who looks at them how often.

use std::time::{Duration, Instant};

use crate::server::link::{Link, Status};

/// What is due for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Its time is over.
    Close(&'static str),
    /// Its time and that of its server are over.
    CloseBoth(&'static str),
    /// It has to be told that it waits.
    Notice,
}

/// The notice of `query_wait_notify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Not given in this wait.
    Due,
    /// Given.
    Given,
}

/// A client in a queue.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// When its query began, if that was before.
    pub query: Option<Instant>,
    /// Since when it waits.
    pub since: Option<Instant>,
    /// Whether it was told.
    pub notice: Notice,
}

/// Limits of a client in a queue.
#[derive(Clone, Copy, Debug)]
pub struct WaitLimits {
    /// `query_wait_timeout`.
    pub wait: Duration,
    /// `query_timeout`.
    pub query: Duration,
    /// `query_wait_notify`.
    pub notice: Duration,
}

/// A client with a server.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// When its query began.
    pub query: Option<Instant>,
    /// When its transaction began.
    pub transaction: Option<Instant>,
    /// When the server last said something.
    pub heard: Instant,
}

/// Limits of a client with a server.
#[derive(Clone, Copy, Debug)]
pub struct WorkLimits {
    /// `query_timeout`.
    pub query: Duration,
    /// `idle_transaction_timeout`.
    pub idle: Duration,
    /// `transaction_timeout`.
    pub transaction: Duration,
}

fn over(now: Instant, since: Option<Instant>, limit: Duration) -> bool {
    let passed = since.map(|since| now.saturating_duration_since(since));
    !limit.is_zero() && passed.is_some_and(|passed| passed > limit)
}

impl Wait {
    /// What is due for a client in a queue.
    pub fn due(self, now: Instant, limits: WaitLimits) -> Option<Due> {
        let since = self.query.or(self.since);
        if over(now, since, limits.wait) {
            return Some(Due::Close("query_wait_timeout"));
        }
        if over(now, since, limits.query) {
            return Some(Due::Close("query_timeout"));
        }
        let untold = self.notice == Notice::Due && over(now, self.since, limits.notice);
        untold.then_some(Due::Notice)
    }
}

impl Work {
    /// What is due for a client with a server.
    pub fn due(self, now: Instant, link: &Link, limits: WorkLimits) -> Option<Due> {
        let running = !link.is_quiet();
        if running && over(now, self.query, limits.query) {
            return Some(Due::CloseBoth("query timeout"));
        }
        let inside = link.status() != Status::Idle;
        if inside && !running && over(now, Some(self.heard), limits.idle) {
            return Some(Due::CloseBoth("idle transaction timeout"));
        }
        let late = over(now, self.transaction, limits.transaction);
        ((inside || running) && late).then_some(Due::CloseBoth("transaction timeout"))
    }
}

/// What is due for a client without a server that has nothing to do: `client_idle_timeout`.
pub fn idle(now: Instant, active: Instant, limit: Duration) -> Option<Due> {
    over(now, Some(active), limit).then_some(Due::Close("client_idle_timeout"))
}
