//! Clients that wait for a server: first come, first served within a worker, and across workers
//! to within a bound.
//!
//! There is a line for each worker and want, so that whoever is next for a server is the head of
//! a line. A waiter who leaves is only forgotten; its place in the line is dropped when it comes
//! to the head, or when most of the line is gone. No operation on the way of a transaction
//! depends on the number of waiters.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use crate::ids::{Ticket, WorkerId};
use crate::pool::Want;

/// Somebody in a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) ticket: Ticket,
    pub(super) want: Want,
    pub(super) since: Instant,
    /// Order of arrival over all lines.
    number: u64,
}

#[derive(Debug)]
struct Line {
    worker: WorkerId,
    want: Want,
    waiters: VecDeque<Waiter>,
    /// Those of them who still wait.
    alive: usize,
}

/// Where somebody waits.
#[derive(Clone, Copy, Debug)]
struct Place {
    line: usize,
    number: u64,
}

/// Lines shorter than this are not worth being tidied.
const SHORT: usize = 32;

/// All lines.
#[derive(Debug)]
pub(super) struct Queues {
    workers: usize,
    lines: Vec<Line>,
    places: HashMap<Ticket, Place, RandomState>,
    arrivals: u64,
}

impl Queues {
    pub(super) fn new(workers: usize) -> Self {
        Queues {
            workers: workers.max(1),
            lines: Vec::new(),
            places: HashMap::default(),
            arrivals: 0,
        }
    }

    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn push(&mut self, ticket: Ticket, want: Want, since: Instant) {
        let known = self.lines.iter().position(|l| l.worker == ticket.worker && l.want == want);
        let line = known.unwrap_or_else(|| {
            let (worker, waiters) = (ticket.worker, VecDeque::new());
            self.lines.push(Line { worker, want, waiters, alive: 0 });
            self.lines.len() - 1
        });
        self.arrivals += 1;
        let number = self.arrivals;
        if let Some(before) = self.places.insert(ticket, Place { line, number }) {
            self.gone(before.line);
        }
        let line = &mut self.lines[line];
        line.waiters.push_back(Waiter { ticket, want, since, number });
        line.alive += 1;
    }

    /// Somebody waits no more; answers whether it did.
    pub(super) fn remove(&mut self, ticket: Ticket) -> bool {
        let place = self.places.remove(&ticket);
        if let Some(place) = place {
            self.gone(place.line);
        }
        place.is_some()
    }

    /// One of a line has gone: drops places that nobody holds.
    fn gone(&mut self, line: usize) {
        let line = &mut self.lines[line];
        let places = &self.places;
        let waits =
            |w: &Waiter| places.get(&w.ticket).is_some_and(|place| place.number == w.number);
        line.alive -= 1;
        if line.alive == 0 {
            line.waiters.clear();
        } else if line.waiters.len() > SHORT && line.waiters.len() > line.alive * 2 {
            line.waiters.retain(waits);
        }
        while line.waiters.front().is_some_and(|head| !waits(head)) {
            line.waiters.pop_front();
        }
    }

    fn heads(&self, accepts: impl Fn(Want) -> bool) -> impl Iterator<Item = Waiter> {
        let lines = self.lines.iter().filter(move |line| accepts(line.want));
        lines.filter_map(|line| line.waiters.front().copied())
    }

    /// Who is next for a server that is free at `worker`.
    pub(super) fn next(
        &self,
        worker: WorkerId,
        fairness: Duration,
        accepts: impl Fn(Want) -> bool,
    ) -> Option<Waiter> {
        let (mut local, mut other) = (None::<Waiter>, None::<Waiter>);
        for head in self.heads(accepts) {
            let best = if head.ticket.worker == worker { &mut local } else { &mut other };
            if best.is_none_or(|best| head.number < best.number) {
                *best = Some(head);
            }
        }
        match (local, other) {
            (Some(local), Some(other)) if other.since + fairness < local.since => Some(other),
            (Some(local), _) => Some(local),
            (None, other) => other,
        }
    }

    /// Who came first of those whose want `accepts` takes.
    pub(super) fn first(&self, accepts: impl Fn(Want) -> bool) -> Option<Waiter> {
        self.heads(accepts).min_by_key(|head| head.number)
    }

    /// How many there are whose want `accepts` takes.
    pub(super) fn count(&self, accepts: impl Fn(Want) -> bool) -> usize {
        self.lines.iter().filter(|line| accepts(line.want)).map(|line| line.alive).sum()
    }

    /// The workers of the last `count` of those whose want `accepts` takes, the last one first.
    pub(super) fn last_workers(
        &self,
        count: usize,
        accepts: impl Fn(Want) -> bool,
    ) -> Vec<WorkerId> {
        let lines = self.lines.iter().filter(|line| accepts(line.want));
        let last = lines.flat_map(|line| line.waiters.iter().rev().take(count));
        let mut last: Vec<(u64, WorkerId)> = last.map(|w| (w.number, w.ticket.worker)).collect();
        last.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        last.into_iter().take(count).map(|(_, worker)| worker).collect()
    }

    /// Takes everybody whose want `accepts` takes, oldest first.
    pub(super) fn take_all(&mut self, accepts: impl Fn(Want) -> bool) -> Vec<Ticket> {
        let mut taken: Vec<Waiter> = Vec::new();
        for line in self.lines.iter_mut().filter(|line| accepts(line.want)) {
            let places = &mut self.places;
            taken.extend(line.waiters.drain(..).filter(|waiter| {
                let waits = places.get(&waiter.ticket).is_some_and(|p| p.number == waiter.number);
                if waits {
                    places.remove(&waiter.ticket);
                }
                waits
            }));
            line.alive = 0;
        }
        taken.sort_unstable_by_key(|waiter| waiter.number);
        taken.into_iter().map(|waiter| waiter.ticket).collect()
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        self.first(|_| true).map(|waiter| waiter.since)
    }

    /// Panics if an invariant is broken.
    pub(super) fn check(&self) {
        let waits = |w: &Waiter| self.places.get(&w.ticket).is_some_and(|p| p.number == w.number);
        for line in &self.lines {
            let alive = line.waiters.iter().filter(|waiter| waits(waiter)).count();
            assert_eq!(alive, line.alive, "those who wait are counted");
            assert!(line.waiters.front().is_none_or(waits), "the head of a line waits");
        }
        let alive: usize = self.lines.iter().map(|line| line.alive).sum();
        assert_eq!(alive, self.places.len(), "everybody waits in one line");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(worker: u16, client: u64) -> Ticket {
        Ticket { worker: WorkerId(worker), client }
    }

    #[test]
    fn the_local_head_comes_first_unless_another_waited_longer_by_the_bound() {
        let (start, bound) = (Instant::now(), Duration::from_millis(1));
        let at = |micros| start + Duration::from_micros(micros);
        let mut queues = Queues::new(2);
        queues.push(ticket(1, 1), Want::Writer, at(0));
        queues.push(ticket(0, 2), Want::Writer, at(900));
        queues.push(ticket(0, 3), Want::Writer, at(1500));
        let next = |queues: &Queues, worker| {
            queues.next(WorkerId(worker), bound, |_| true).map(|waiter| waiter.ticket.client)
        };
        assert_eq!(next(&queues, 0), Some(2), "0.9 ms are within the bound");
        assert!(queues.remove(ticket(0, 2)));
        assert_eq!(next(&queues, 0), Some(1), "1.5 ms are not");
        assert!(queues.remove(ticket(1, 1)));
        assert_eq!(next(&queues, 1), Some(3));
        queues.check();
    }

    #[test]
    fn thousands_who_leave_in_any_order_are_cheap_and_leave_nothing_behind() {
        let (now, mut queues) = (Instant::now(), Queues::new(1));
        let crowd = 100_000;
        for client in 0..crowd {
            queues.push(ticket(0, client), Want::Writer, now);
        }
        // 7 is prime to the number of clients: everybody leaves once, far from the head.
        for step in 1..crowd {
            assert!(queues.remove(ticket(0, step * 7 % crowd)));
        }
        assert!(!queues.remove(ticket(0, 7)), "it has left");
        queues.check();
        assert_eq!(queues.first(|_| true).map(|waiter| waiter.ticket.client), Some(0));
        assert!(queues.lines[0].waiters.len() <= SHORT, "places are not kept");
    }

    #[test]
    fn who_comes_again_waits_from_then_on() {
        let (now, mut queues) = (Instant::now(), Queues::new(1));
        queues.push(ticket(0, 1), Want::Writer, now);
        queues.push(ticket(0, 2), Want::Writer, now);
        queues.push(ticket(0, 1), Want::Reader, now);
        queues.check();
        assert_eq!(queues.len(), 2);
        assert_eq!(queues.first(|want| want == Want::Writer).map(|w| w.ticket.client), Some(2));
        assert_eq!(queues.take_all(|_| true), [ticket(0, 2), ticket(0, 1)]);
        assert!(queues.is_empty());
    }
}
