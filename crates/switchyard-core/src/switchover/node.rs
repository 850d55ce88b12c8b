//! One node: its probe, what it last said, and how long it has been failing.
//!
//! Not here: what its answers mean for the cluster. Invariants: at most one question is
//! unanswered, and it has a deadline; a success ends the run of failures.

use std::time::{Duration, Instant};

use super::election::{Ballot, Memory, Place, Says};
use super::options::Timings;
use super::probe::{
    Answer, Cheap, Facts, Failure, FailureKind, ProbeId, Question, Status, Via, retry_pause,
};
use super::topology::{Endpoint, Listed};
use super::view::{NodeId, NodeState, Role};

/// How a node came to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Listing {
    /// The topology lists it.
    Listed,
    /// The topology listed it until then.
    Missing(Instant),
    /// One of the entry's own hosts, while there is no topology.
    Bootstrap,
}

/// The probe connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// None; the next question opens one.
    Closed,
    /// Logged in, and the last question was answered.
    Open,
    /// One question missed its deadline; a second one decides.
    Doubtful,
}

/// The question to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// The last question is settled; the next is due then.
    Waiting { last: ProbeId, next: Instant },
    /// Asked and unanswered.
    Asked { id: ProbeId, at: Instant, deadline: Instant },
}

/// What the node counts as. Survives one failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It does not answer, or not clearly.
    Down,
    /// It answered `reader`.
    Reader,
    /// It answered `writer` to this many full questions in a row.
    Writer(u32),
}

/// The failures of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// In all.
    pub(super) total: u64,
    /// Since the last success.
    pub(super) run: u32,
    /// Start of the run.
    since: Option<Instant>,
    /// The last one.
    pub(super) text: Option<String>,
}

/// Measurements for SHOW NODES.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meters {
    pub(super) round_trip: Option<Duration>,
    pub(super) answered_at: Option<Instant>,
    pub(super) up_since: Option<Instant>,
    /// When the last question was asked that it answered.
    pub(super) heard: Option<Instant>,
    /// The same of full questions.
    pub(super) heard_full: Option<Instant>,
    /// Bytes behind the writer's position of the moment before.
    pub(super) lag: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) endpoint: Endpoint,
    pub(super) listing: Listing,
    link: Link,
    pub(super) probe: Probe,
    pub(super) standing: Standing,
    pub(super) facts: Option<Facts>,
    full_due: Instant,
    pub(super) failures: Failures,
    pub(super) meters: Meters,
    pub(super) failed_until: Option<Instant>,
}

/// A question to be asked.
pub(super) struct Asking {
    pub(super) question: Question,
    pub(super) via: Via,
    pub(super) deadline: Instant,
}

impl Node {
    pub(super) fn new(now: Instant, id: NodeId, listed: Listed, listing: Listing) -> Self {
        Node {
            id,
            name: listed.name,
            endpoint: listed.endpoint,
            listing,
            link: Link::Closed,
            probe: Probe::Waiting { last: ProbeId(0), next: now },
            standing: Standing::Down,
            facts: None,
            full_due: now,
            failures: Failures::default(),
            meters: Meters::default(),
            failed_until: None,
        }
    }

    /// Whether `id` is the question whose fate can still change this node.
    pub(super) fn awaits(&self, id: ProbeId) -> bool {
        match self.probe {
            Probe::Waiting { last, .. } => last == id,
            Probe::Asked { id: asked, .. } => asked == id,
        }
    }

    /// Whether its last question was answered, and it has told of itself.
    pub(super) fn answers(&self) -> bool {
        self.failures.run == 0 && self.facts.is_some()
    }

    /// Whether it is watched as one of the entry's own hosts only.
    pub(super) fn is_bootstrap(&self) -> bool {
        self.listing == Listing::Bootstrap
    }

    /// Asks at once instead of at the next interval.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Probe::Waiting { next, .. } = &mut self.probe {
            *next = now.min(*next);
        }
    }

    /// Whether its next question is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        matches!(self.probe, Probe::Waiting { next, .. } if next <= now)
    }

    /// Is asked now if it answers and would be within so much time.
    pub(super) fn join(&mut self, now: Instant, within: Duration) {
        if self.answers()
            && let Probe::Waiting { next, .. } = &mut self.probe
            && *next <= now + within
        {
            *next = now.min(*next);
        }
    }

    /// Makes the next question a full one.
    pub(super) fn want_full(&mut self, now: Instant) {
        self.full_due = self.full_due.min(now);
        self.hurry(now);
    }

    /// Makes the question that is due next a full one.
    pub(super) fn want_full_next(&mut self) {
        if let Probe::Waiting { next, .. } = self.probe {
            self.full_due = self.full_due.min(next);
        }
    }

    /// Starts the question `id` if one is due.
    pub(super) fn ask(&mut self, now: Instant, id: ProbeId, timings: &Timings) -> Option<Asking> {
        match self.probe {
            Probe::Waiting { next, .. } if next <= now => {}
            Probe::Waiting { .. } | Probe::Asked { .. } => return None,
        }
        let (via, patience) = match self.link {
            Link::Closed => (Via::Fresh, timings.probe_connect_timeout.max(timings.probe_timeout)),
            Link::Open | Link::Doubtful => (Via::Open, timings.probe_timeout),
        };
        let cheap = self.facts.as_ref().map_or(Cheap::TooLittle, |facts| facts.cheap);
        let question = match (via, cheap) {
            (Via::Open, Cheap::Enough) if now < self.full_due => Question::Cheap,
            (Via::Open | Via::Fresh, Cheap::Enough | Cheap::TooLittle) => Question::Full,
        };
        let deadline = now + patience;
        self.probe = Probe::Asked { id, at: now, deadline };
        Some(Asking { question, via, deadline })
    }

    /// Takes an answer to the question that is awaited. `pace` is the interval now in force.
    pub(super) fn answer(&mut self, now: Instant, answer: Answer, pace: Pace) {
        let asked_at = match (&self.probe, &answer) {
            (Probe::Asked { at, .. }, _) => *at,
            (Probe::Waiting { .. }, Answer::Failed(_)) => now,
            (Probe::Waiting { .. }, Answer::Same | Answer::Promoted | Answer::Full(_)) => return,
        };
        match answer {
            Answer::Failed(failure) => return self.fail(now, failure, pace),
            Answer::Same => {}
            Answer::Promoted => self.full_due = now,
            Answer::Full(facts) => {
                self.full_due = now + pace.full;
                self.meters.heard_full = Some(asked_at);
                self.stand(now, facts.status);
                self.facts = Some(facts);
            }
        }
        self.link = Link::Open;
        self.failures = Failures { total: self.failures.total, ..Failures::default() };
        self.meters.round_trip = Some(now.saturating_duration_since(asked_at));
        self.meters.answered_at = Some(now);
        self.meters.heard = Some(asked_at);
        let due = if self.full_due <= now { now } else { now.max(asked_at + pace.interval) };
        self.settle(due);
    }

    /// Ends a question whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant, pace: Pace) {
        if matches!(self.probe, Probe::Asked { deadline, .. } if deadline + GRACE <= now) {
            let text = "no answer in time".to_owned();
            self.fail(now, Failure { kind: FailureKind::Timeout, text }, pace);
        }
    }

    /// Forgets the role after the node was lost as writer.
    pub(super) fn unseat(&mut self, until: Instant) {
        self.failed_until = Some(until);
        if self.failures.run > 0 {
            self.standing = Standing::Down;
        }
    }

    pub(super) fn ballot(&self) -> Ballot {
        let says = match self.standing {
            _ if self.failures.run > 0 => Says::Nothing,
            Standing::Down => Says::Nothing,
            Standing::Reader => Says::Reader,
            Standing::Writer(times) => Says::Writer(times),
        };
        let facts = self.facts.as_ref();
        let place = match self.listing {
            Listing::Listed | Listing::Bootstrap => Place::Listed,
            Listing::Missing(_) => Place::Missing,
        };
        Ballot {
            node: self.id,
            says,
            place,
            system: facts.and_then(|facts| facts.system),
            timeline: facts.and_then(|facts| facts.timeline),
            position: facts.and_then(|facts| facts.lsn),
            server: facts.and_then(Facts::server),
        }
    }

    /// Role and state of a node that is not the writer.
    pub(super) fn public(&self, now: Instant, memory: &Memory) -> (Role, NodeState) {
        let foreign = memory.foreign(self.facts.as_ref().and_then(|facts| facts.system));
        match self.standing {
            Standing::Reader if foreign => (Role::Unknown, NodeState::Fenced),
            Standing::Reader => (Role::Reader, NodeState::Up),
            Standing::Writer(_) => (Role::Unknown, NodeState::Fenced),
            Standing::Down if self.failed_until.is_some_and(|until| now < until) => {
                (Role::Unknown, NodeState::FailedDelay)
            }
            Standing::Down => (Role::Unknown, NodeState::Down),
        }
    }

    pub(super) fn due(&self) -> Instant {
        match self.probe {
            Probe::Waiting { next, .. } => next,
            Probe::Asked { deadline, .. } => deadline + GRACE,
        }
    }

    /// The number of the question last settled or asked.
    pub(super) fn last_question(&self) -> ProbeId {
        match self.probe {
            Probe::Waiting { last, .. } => last,
            Probe::Asked { id, .. } => id,
        }
    }

    fn stand(&mut self, now: Instant, status: Status) {
        let standing = match (status, self.standing) {
            (Status::Writer, Standing::Writer(times)) if self.failures.run == 0 => {
                Standing::Writer(times.saturating_add(1))
            }
            (Status::Writer, _) => Standing::Writer(1),
            (Status::Reader, _) => Standing::Reader,
            (Status::Unclear, _) => Standing::Down,
        };
        match standing {
            Standing::Down => self.meters.up_since = None,
            Standing::Reader | Standing::Writer(_) => {
                self.meters.up_since.get_or_insert(now);
            }
        }
        if standing == Standing::Reader {
            self.failed_until = None;
        }
        self.standing = standing;
    }

    fn fail(&mut self, now: Instant, failure: Failure, pace: Pace) {
        let first = *self.failures.since.get_or_insert(now);
        self.failures.run = self.failures.run.saturating_add(1);
        self.failures.total += 1;
        self.failures.text = Some(failure.text);
        if self.failures.run >= FAILURES_UNTIL_DOWN {
            self.standing = Standing::Down;
            self.meters.up_since = None;
        }
        // A second question follows a first failure at once: it decides whether the node is lost.
        let pause = match (self.link, failure.kind) {
            (Link::Open | Link::Doubtful, _) => Duration::ZERO,
            (Link::Closed, kind) => retry_pause(kind, now - first, pace.at_rest).max(pace.retry),
        };
        self.link = match (self.link, failure.kind) {
            (Link::Open, FailureKind::Timeout) => Link::Doubtful,
            (Link::Open | Link::Doubtful | Link::Closed, _) => Link::Closed,
        };
        self.full_due = now;
        self.settle(now + pause);
    }

    fn settle(&mut self, next: Instant) {
        self.probe = Probe::Waiting { last: self.last_question(), next };
    }

    /// How far behind the writer's position `head` it is.
    pub(super) fn measure(&mut self, head: Option<u64>) {
        let position = self.facts.as_ref().and_then(|facts| facts.lsn);
        let reader = self.standing == Standing::Reader;
        self.meters.lag = head.zip(position).map(|(head, at)| head.saturating_sub(at));
        self.meters.lag = self.meters.lag.filter(|_| reader);
    }

    pub(super) fn check(&self) {
        if let Probe::Asked { at, deadline, .. } = self.probe {
            assert!(deadline >= at, "a question has a deadline");
        }
        assert_eq!(self.failures.run == 0, self.failures.since.is_none(), "runs have a start");
        let down = self.failures.run >= FAILURES_UNTIL_DOWN;
        assert!(!down || self.standing == Standing::Down, "two failures make a node down");
    }
}

/// Intervals in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between two questions to a node that answers.
    pub(super) interval: Duration,
    /// `polling_frequency`.
    pub(super) at_rest: Duration,
    /// Between two attempts to reach a node that fails, at least.
    pub(super) retry: Duration,
    /// Between two full questions.
    pub(super) full: Duration,
}

/// Failures in a row after which a node counts as down.
pub(super) const FAILURES_UNTIL_DOWN: u32 = 2;
/// The shell knows best why there is no answer: it is waited for that much longer.
const GRACE: Duration = Duration::from_millis(5);
