//! What surrounds every part of a world: the time, what is to come, the network, chance, and a
//! record of what has happened.

use std::cell::RefCell;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::net::Net;
use crate::random::{Random, Seed};

/// Something that happens later.
#[derive(Debug)]
struct Entry<E> {
    at: Instant,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    /// The earliest is the greatest: heaps give out the greatest first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// What is to come, in order.
#[derive(Debug)]
pub struct Calendar<E> {
    heap: BinaryHeap<Entry<E>>,
    number: u64,
}

impl<E> Default for Calendar<E> {
    fn default() -> Self {
        Calendar { heap: BinaryHeap::new(), number: 0 }
    }
}

impl<E> Calendar<E> {
    /// Lets something happen at a time; what was put in first happens first.
    pub fn put(&mut self, at: Instant, event: E) {
        self.number += 1;
        self.heap.push(Entry { at, number: self.number, event });
    }

    /// The next thing that happens.
    pub fn take(&mut self) -> Option<(Instant, E)> {
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }
}

/// The last lines of what has happened; they outlive the world.
#[derive(Clone, Debug, Default)]
pub struct Trace(Rc<RefCell<VecDeque<String>>>);

/// Lines that are kept.
const TRACE_MAX: usize = 4000;

impl Trace {
    /// The lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.0.borrow().iter().cloned().collect()
    }

    fn add(&self, line: String) {
        let mut lines = self.0.borrow_mut();
        if lines.len() == TRACE_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

/// What surrounds every part of a world.
#[derive(Debug)]
pub struct Env {
    /// The time.
    pub now: Instant,
    start: Instant,
    /// What is to come.
    pub calendar: Calendar<Event>,
    /// The network.
    pub net: Net,
    /// Chance.
    pub random: Random,
    trace: Option<Trace>,
}

/// Everything that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something has arrived at this end of a wire, or there is room for more.
    Wire(crate::net::End),
    /// A worker looks into its inbox.
    Inbox(usize),
    /// A worker looks at what is due.
    Tick(usize),
    /// A client goes on.
    Client(usize),
    /// A session of a node goes on.
    Session(usize, u64),
    /// The thread that watches the cluster looks into its inbox.
    Watch,
    /// Something goes wrong, or right.
    Fault(usize),
    /// A question to a node arrives there.
    Ask(u64),
    /// Its answer arrives.
    Answer(u64),
    /// What a node has committed reaches its standbys.
    Replicate(usize),
    /// Something seen by workers reaches the thread that watches the cluster.
    Sign,
    /// A cancel request of a worker arrives at a node, for the session with this number.
    Cancel(usize, u64, CancelKey),
    /// The connection that carried it is closed.
    CancelClosed(CancelKey),
    /// Hooks have judged a statement of a worker's client: the number of the question.
    Verdict(usize, u64, u64),
}

/// A cancel request on its way: its worker and its key there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelKey(pub usize, pub u64);

impl Env {
    /// Surroundings in which nothing happens yet.
    pub fn new(seed: Seed<'_>, trace: Option<Trace>) -> Self {
        let now = Instant::now();
        let (calendar, net, random) = (Calendar::default(), Net::default(), Random::new(seed));
        Env { now, start: now, calendar, net, random, trace }
    }

    /// Lets something happen after some time.
    pub fn after(&mut self, pause: Duration, event: Event) {
        self.calendar.put(self.now + pause, event);
    }

    /// How long the world has existed.
    pub fn age(&self) -> Duration {
        self.now - self.start
    }

    /// Whether everything is to be checked after this event. What is wrong mostly stays wrong, so
    /// that not every event has to pay for it; who looks at a failure wants to see it begin.
    pub fn checks(&self, event: u64) -> bool {
        self.trace.is_some() || event.is_multiple_of(8)
    }

    /// Records what happens; nothing is formatted if nobody wants to know.
    pub fn note(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.add(format!("{:>12.6} {}", self.age().as_secs_f64(), line()));
        }
    }
}

/// Bytes of messages as text for the record.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl fmt::Display for Messages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Ok(Some((head, body, tail))) = switchyard_wire::frame::split(rest) {
            let text: String = String::from_utf8_lossy(&body[..body.len().min(60)])
                .chars()
                .map(|c| if c.is_control() { '.' } else { c })
                .collect();
            write!(f, "{}[{text}] ", char::from(head.tag))?;
            rest = tail;
        }
        if !rest.is_empty() {
            write!(f, "+{} bytes", rest.len())?;
        }
        Ok(())
    }
}
