//! The time limits of a client in its session: in a queue, with a server, and without either.
//!
//! A look at a client says what is due, and when something will be. Zero means no limit. Not here:
//! whose limits apply, and who looks at them how often.

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

/// A look at a client.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    now: Instant,
    /// What is due; the first of several.
    pub due: Option<Due>,
    /// When something may be due.
    pub next: Option<Instant>,
}

impl Look {
    /// A look that has found nothing yet.
    pub fn at(now: Instant) -> Self {
        Look { now, due: None, next: None }
    }

    /// Something is due when a time since then is over.
    pub fn after(&mut self, since: Instant, limit: Duration, due: Due) {
        if limit.is_zero() || self.due.is_some() {
            return;
        }
        let at = since + limit;
        if self.now > at {
            self.due = Some(due);
        } else {
            self.again(at);
        }
    }

    /// Something may be due then.
    pub fn again(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    fn after_any(&mut self, since: Option<Instant>, limit: Duration, due: Due) {
        if let Some(since) = since {
            self.after(since, limit, due);
        }
    }
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

impl Wait {
    /// Looks at a client in a queue.
    pub fn look(self, look: &mut Look, limits: WaitLimits) {
        let since = self.query.or(self.since);
        look.after_any(since, limits.wait, Due::Close("query_wait_timeout"));
        look.after_any(since, limits.query, Due::Close("query_timeout"));
        if self.notice == Notice::Due {
            look.after_any(self.since, limits.notice, Due::Notice);
        }
    }
}

impl Work {
    /// Looks at a client with a server.
    pub fn look(self, look: &mut Look, link: &Link, limits: WorkLimits) {
        let running = !link.is_quiet();
        let inside = link.status() != Status::Idle;
        if running {
            look.after_any(self.query, limits.query, Due::CloseBoth("query timeout"));
        }
        if inside && !running {
            look.after(self.heard, limits.idle, Due::CloseBoth("idle transaction timeout"));
        }
        if inside || running {
            let due = Due::CloseBoth("transaction timeout");
            look.after_any(self.transaction, limits.transaction, due);
        }
    }
}

/// Looks at a client that has had nothing to do since then: `client_idle_timeout`.
pub fn idle(look: &mut Look, since: Instant, limit: Duration) {
    look.after(since, limit, Due::Close("client_idle_timeout"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_limit_that_is_over_counts_and_the_nearest_is_told() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let check = |millis, notice| {
            let mut look = Look::at(at(millis));
            let wait = Wait { query: Some(start), since: Some(at(1000)), notice };
            let second = Duration::from_secs(1);
            wait.look(
                &mut look,
                WaitLimits { wait: second * 4, query: second * 3, notice: second },
            );
            (look.due, look.next)
        };
        assert_eq!(check(1500, Notice::Due), (None, Some(at(2000))));
        assert_eq!(check(2000, Notice::Due), (None, Some(at(2000))), "not before it is over");
        assert_eq!(check(2001, Notice::Due).0, Some(Due::Notice));
        assert_eq!(check(2001, Notice::Given), (None, Some(at(3000))));
        assert_eq!(check(3001, Notice::Due).0, Some(Due::Close("query_timeout")));
        assert_eq!(check(4001, Notice::Due).0, Some(Due::Close("query_wait_timeout")));
        let mut look = Look::at(at(9000));
        idle(&mut look, start, Duration::ZERO);
        assert_eq!((look.due, look.next), (None, None), "zero is no limit");
    }
}
