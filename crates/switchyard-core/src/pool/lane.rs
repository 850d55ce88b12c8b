//! One node's servers within a pool: which are parked with whom, and how its logins go.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::ids::{LaneId, ServerId, WorkerId};
use crate::pool::Order;
use crate::pool::hosts::{HostList, HostOrder};

/// What a node is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneRole {
    /// Takes writes; the only lane of a plain entry is one.
    Writer,
    /// The writer, but something went wrong there: it gets nothing new until a probe has asked.
    Suspect,
    /// The writer, which gets nothing new because an operator holds clients.
    Held,
    /// A healthy standby.
    Reader,
    /// A standby that is too far behind to be used as a reader.
    Behind,
    /// Not to be used.
    Down,
}

impl LaneRole {
    /// Whether the node is the writer, usable or not.
    pub(super) fn writes(self) -> bool {
        match self {
            LaneRole::Writer | LaneRole::Suspect | LaneRole::Held => true,
            LaneRole::Reader | LaneRole::Behind | LaneRole::Down => false,
        }
    }

    /// Whether the node is a standby that answers.
    pub(super) fn stands_by(self) -> bool {
        matches!(self, LaneRole::Reader | LaneRole::Behind)
    }
}

/// What a client needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Want {
    /// The writer; held while there is none.
    Writer,
    /// A reader, or the writer if there is no reader.
    Reader,
    /// A reader only.
    ReaderOnly,
    /// Any healthy node.
    Any,
    /// That node, whatever its role.
    Node(LaneId),
}

/// Logins that fail.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) retry_at: Instant,
    pub(super) reason: String,
    /// Failures in a row.
    pub(super) count: u32,
}

/// How many slots of a lane are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) opening: usize,
    pub(super) idle: usize,
    pub(super) testing: usize,
    pub(super) busy: usize,
    /// Those of them that must not be used again.
    pub(super) stale: usize,
}

impl Tally {
    pub(super) fn total(self) -> usize {
        self.opening + self.idle + self.testing + self.busy
    }

    /// Servers that are logged in.
    pub(super) fn usable(self) -> usize {
        self.idle + self.testing + self.busy
    }

    /// Servers that a waiter may count on.
    pub(super) fn prospects(self) -> usize {
        self.opening + self.testing
    }
}

/// A lane.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) id: LaneId,
    pub(super) role: LaneRole,
    pub(super) failed: Option<Failed>,
    pub(super) suspect_until: Option<Instant>,
    pub(super) hosts: HostList,
    pub(super) tally: Tally,
    /// When it became the writer for which clients waited.
    pub(super) awaited: Option<Instant>,
    idle: Vec<VecDeque<ServerId>>,
    /// Most servers that were in use together since the peak was last looked at.
    most: usize,
    peak: (Option<Instant>, usize),
}

impl Lane {
    pub(super) fn new(id: LaneId, role: LaneRole, workers: usize) -> Self {
        let idle = (0..workers.max(1)).map(|_| VecDeque::new()).collect();
        Lane {
            id,
            role,
            failed: None,
            suspect_until: None,
            hosts: HostList::new(1, HostOrder::default()),
            tally: Tally::default(),
            awaited: None,
            idle,
            most: 0,
            peak: (None, 0),
        }
    }

    /// Parks an idle server with its home worker.
    pub(super) fn park(&mut self, id: ServerId, home: WorkerId) {
        let index = usize::from(home.0) % self.idle.len();
        self.idle[index].push_back(id);
    }

    /// Takes an idle server: a local one, else one of the worker that has most. In turns it is the
    /// one that was used least recently, wherever it is, but for differences that do not count;
    /// `used` tells when that was.
    pub(super) fn take(
        &mut self,
        worker: WorkerId,
        order: Order,
        used: impl Fn(ServerId) -> Option<Instant>,
    ) -> Option<ServerId> {
        let mut local = usize::from(worker.0) % self.idle.len();
        if order == Order::RoundRobin && self.idle.len() > 1 {
            let first = |parked: &VecDeque<ServerId>| parked.front().and_then(|id| used(*id));
            let own = first(&self.idle[local]);
            let others = self.idle.iter().enumerate();
            let oldest = others.filter_map(|(index, parked)| Some((first(parked)?, index))).min();
            if let Some((at, index)) = oldest
                && own.is_none_or(|own| own.saturating_duration_since(at) > TURN)
            {
                local = index;
            }
        }
        let pop = |parked: &mut VecDeque<ServerId>| match order {
            Order::Lifo => parked.pop_back(),
            Order::RoundRobin => parked.pop_front(),
        };
        if let Some(id) = pop(&mut self.idle[local]) {
            return Some(id);
        }
        pop(self.idle.iter_mut().max_by_key(|parked| parked.len())?)
    }

    /// Removes a server from its home's parked ones; answers whether it was there.
    pub(super) fn unpark(&mut self, id: ServerId, home: WorkerId) -> bool {
        let index = usize::from(home.0) % self.idle.len();
        let parked = &mut self.idle[index];
        let found = parked.iter().position(|parked| *parked == id);
        found.is_some_and(|position| parked.remove(position).is_some())
    }

    pub(super) fn idle_ids(&self) -> impl Iterator<Item = ServerId> {
        self.idle.iter().flatten().copied()
    }

    /// The server that has been parked for longest, of each worker.
    pub(super) fn oldest_idle(&self) -> impl Iterator<Item = ServerId> {
        self.idle.iter().filter_map(|parked| parked.front().copied())
    }

    /// Whether logins to it failed and must not be tried again yet.
    pub(super) fn is_barred(&self, now: Instant) -> bool {
        self.failed.as_ref().is_some_and(|failed| now < failed.retry_at)
    }

    pub(super) fn idle_len(&self) -> usize {
        self.idle.iter().map(VecDeque::len).sum()
    }

    /// One more server is in use.
    pub(super) fn lent(&mut self) {
        self.most = self.most.max(self.tally.busy);
    }

    /// Remembers how many servers were in use together, as the peak of a span; so many are needed
    /// now.
    pub(super) fn note_use(&mut self, now: Instant, needed: usize) {
        let busy = needed.max(std::mem::replace(&mut self.most, self.tally.busy));
        let (since, peak) = self.peak;
        let over = since.is_none_or(|since| now.saturating_duration_since(since) > PEAK_KEPT);
        if busy >= peak || over {
            self.peak = (Some(now), busy);
        }
    }

    /// The peak, if it lies within `span`.
    pub(super) fn peak(&self, now: Instant, span: Duration) -> Option<usize> {
        let (since, peak) = self.peak;
        since.filter(|since| now.saturating_duration_since(*since) <= span).map(|_| peak)
    }
}

/// Differences between the last uses of two servers that do not matter for whose turn it is.
const TURN: Duration = Duration::from_millis(1);

/// How long a peak stands before a lower one replaces it.
const PEAK_KEPT: Duration = Duration::from_secs(60);
