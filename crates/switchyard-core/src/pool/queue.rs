//! Clients that wait for a server: first come, first served within a worker, and across workers
//! to within a bound.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::ids::{Ticket, WorkerId};
use crate::pool::Want;

#[derive(Clone, Copy, Debug)]
struct Waiter {
    ticket: Ticket,
    want: Want,
    since: Instant,
}

/// One queue for each worker.
#[derive(Debug)]
pub(super) struct Queues {
    by_worker: Vec<VecDeque<Waiter>>,
    len: usize,
}

impl Queues {
    pub(super) fn new(workers: usize) -> Self {
        let by_worker = (0..workers.max(1)).map(|_| VecDeque::new()).collect();
        Queues { by_worker, len: 0 }
    }

    pub(super) fn workers(&self) -> usize {
        self.by_worker.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, ticket: Ticket, want: Want, since: Instant) {
        let index = usize::from(ticket.worker.0) % self.by_worker.len();
        self.by_worker[index].push_back(Waiter { ticket, want, since });
        self.len += 1;
    }

    pub(super) fn remove(&mut self, ticket: Ticket) {
        let index = usize::from(ticket.worker.0) % self.by_worker.len();
        let queue = &mut self.by_worker[index];
        if let Some(position) = queue.iter().position(|waiter| waiter.ticket == ticket) {
            queue.remove(position);
            self.len -= 1;
        }
    }

    /// The waiter that is next for a server parked with `worker`.
    pub(super) fn next(
        &self,
        worker: WorkerId,
        fairness: Duration,
        accepts: impl Fn(Want) -> bool,
    ) -> Option<Ticket> {
        let local = usize::from(worker.0) % self.by_worker.len();
        let head = |queue: &VecDeque<Waiter>| queue.iter().find(|w| accepts(w.want)).copied();
        let mut best = head(&self.by_worker[local]);
        for (index, queue) in self.by_worker.iter().enumerate() {
            let Some(other) = head(queue).filter(|_| index != local) else { continue };
            let bound = if index == local { Duration::ZERO } else { fairness };
            if best.is_none_or(|best| other.since + bound < best.since) {
                best = Some(other);
            }
        }
        best.map(|waiter| waiter.ticket)
    }

    /// Takes everybody whose want `accepts` takes, oldest first.
    pub(super) fn take_all(&mut self, accepts: impl Fn(Want) -> bool) -> Vec<Ticket> {
        let mut taken: Vec<Waiter> = Vec::new();
        for queue in &mut self.by_worker {
            queue.retain(|waiter| {
                let take = accepts(waiter.want);
                if take {
                    taken.push(*waiter);
                }
                !take
            });
        }
        self.len -= taken.len();
        taken.sort_by_key(|waiter| waiter.since);
        taken.into_iter().map(|waiter| waiter.ticket).collect()
    }

    /// Everybody, oldest first.
    pub(super) fn in_order(&self) -> Vec<(Ticket, Want)> {
        let mut all: Vec<Waiter> = self.by_worker.iter().flatten().copied().collect();
        all.sort_by_key(|waiter| waiter.since);
        all.into_iter().map(|waiter| (waiter.ticket, waiter.want)).collect()
    }

    /// The workers of those whose want `accepts` takes, oldest waiter first.
    pub(super) fn workers_waiting(&self, accepts: impl Fn(Want) -> bool) -> Vec<WorkerId> {
        if let [queue] = &self.by_worker[..] {
            return queue.iter().filter(|w| accepts(w.want)).map(|w| w.ticket.worker).collect();
        }
        let accepted = |(_, want): &(Ticket, Want)| accepts(*want);
        self.in_order().into_iter().filter(accepted).map(|(ticket, _)| ticket.worker).collect()
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        self.by_worker.iter().filter_map(|queue| queue.front()).map(|waiter| waiter.since).min()
    }

    pub(super) fn wants(&self) -> impl Iterator<Item = Want> {
        self.by_worker.iter().flatten().map(|waiter| waiter.want)
    }
}
