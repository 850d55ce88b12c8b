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
    /// Not to be used, but by those who want this node.
    Down,
    /// It was the writer and failed: nothing is opened there before its delay is over.
    Resting,
}

impl LaneRole {
    /// Whether the node is the writer, usable or not.
    pub(super) fn writes(self) -> bool {
        match self {
            LaneRole::Writer | LaneRole::Suspect | LaneRole::Held => true,
            LaneRole::Reader | LaneRole::Behind | LaneRole::Down | LaneRole::Resting => false,
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
    /// When the last attempt began.
    pub(super) began: Instant,
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
    /// By home worker: since when each is idle, those the last one at the end.
    idle: Vec<VecDeque<(Instant, ServerId)>>,
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

    /// Parks a server that is idle from now on with its home worker.
    pub(super) fn park(&mut self, now: Instant, id: ServerId, home: WorkerId) {
        let index = usize::from(home.0) % self.idle.len();
        self.idle[index].push_back((now, id));
    }

    /// Takes the idle server that was used last, or least recently in turns: a local one, unless
    /// another worker has one that comes before it by more than differences that do not count.
    pub(super) fn take(&mut self, worker: WorkerId, order: Order) -> Option<ServerId> {
        let local = usize::from(worker.0) % self.idle.len();
        let next = |parked: &VecDeque<(Instant, ServerId)>| {
            let first = match order {
                Order::Lifo => parked.back(),
                Order::RoundRobin => parked.front(),
            };
            first.map(|(since, _)| *since)
        };
        let heads = self.idle.iter().enumerate();
        let heads = heads.filter_map(|(index, parked)| Some((next(parked)?, index)));
        let (at, mut index) = match order {
            Order::Lifo => heads.max()?,
            Order::RoundRobin => heads.min()?,
        };
        if let Some(own) = next(&self.idle[local])
            && own.max(at) - own.min(at) <= TURN
        {
            index = local;
        }
        let taken = match order {
            Order::Lifo => self.idle[index].pop_back(),
            Order::RoundRobin => self.idle[index].pop_front(),
        };
        taken.map(|(_, id)| id)
    }

    /// Removes a server from its home's parked ones; answers whether it was there.
    pub(super) fn unpark(&mut self, id: ServerId, home: WorkerId) -> bool {
        let index = usize::from(home.0) % self.idle.len();
        let parked = &mut self.idle[index];
        let found = parked.iter().position(|(_, parked)| *parked == id);
        found.is_some_and(|position| parked.remove(position).is_some())
    }

    pub(super) fn idle_ids(&self) -> impl Iterator<Item = ServerId> {
        self.idle.iter().flatten().map(|(_, id)| *id)
    }

    /// The server that has been parked for longest, of each worker.
    pub(super) fn oldest_idle(&self) -> impl Iterator<Item = ServerId> {
        self.idle.iter().filter_map(|parked| parked.front().map(|(_, id)| *id))
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

/// Differences between the last uses of two servers that do not matter for which one comes first.
const TURN: Duration = Duration::from_millis(1);

/// How long a peak stands before a lower one replaces it.
const PEAK_KEPT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_worker_s_server_is_taken_if_it_comes_first_by_more_than_a_turn() {
        let start = Instant::now();
        let check = |order, parked: &[(u64, u16)], worker: u16, expected: u64| {
            let mut lane = Lane::new(LaneId(0), LaneRole::Writer, 2);
            for (micros, home) in parked {
                let at = start + Duration::from_micros(*micros);
                lane.park(at, ServerId(*micros), WorkerId(*home));
            }
            assert_eq!(lane.take(WorkerId(worker), order), Some(ServerId(expected)));
            assert_eq!(lane.idle_len(), parked.len() - 1);
        };
        check(Order::Lifo, &[(1, 0), (2, 0), (1002, 1)], 0, 2);
        check(Order::Lifo, &[(1, 0), (2, 0), (1003, 1)], 0, 1003);
        check(Order::Lifo, &[(1, 0), (2, 0), (1003, 1)], 1, 1003);
        check(Order::Lifo, &[(1, 0), (2, 0)], 1, 2);
        check(Order::RoundRobin, &[(1, 1), (1001, 0), (1002, 0)], 0, 1001);
        check(Order::RoundRobin, &[(1, 1), (1002, 0), (1003, 0)], 0, 1);
        check(Order::RoundRobin, &[(1, 1), (2, 1)], 0, 1);
    }
}
