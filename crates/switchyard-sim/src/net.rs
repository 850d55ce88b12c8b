//! Wires between two ends: bytes arrive in order, late, and in any pieces; a wire takes only so
//! much; it ends well or breaks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crate::env::{Env, Event};

/// One end of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    wire: u64,
    side: u8,
}

impl End {
    /// The other one.
    pub fn peer(self) -> End {
        End { side: 1 - self.side, ..self }
    }

    /// Number of the wire.
    pub fn wire(self) -> u64 {
        self.wire
    }
}

/// Who holds an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A client's own.
    Actor(usize),
    /// A node's session.
    Session(usize, u64),
    /// A worker's client.
    Client(usize, u64),
    /// A worker's server.
    Server(usize, u64),
}

/// What is under way to an end.
#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    End,
    Broken,
}

/// What a read brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Recv {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing for now.
    Blocked,
    /// The end of the stream.
    Eof,
    /// The wire is broken.
    Failed,
}

/// The wire does not take anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

#[derive(Debug)]
struct Half {
    owner: Owner,
    arrived: Vec<u8>,
    ended: bool,
    broken: bool,
    /// The owner has let it go.
    closed: bool,
    coming: VecDeque<(Instant, Piece)>,
    last: Instant,
    capacity: usize,
    /// The other end wants to know when there is room here.
    waited_for: bool,
}

/// All wires.
#[derive(Debug, Default)]
pub struct Net {
    wires: BTreeMap<u64, [Half; 2]>,
    minted: u64,
    /// Longest way of a piece, in microseconds.
    pub latency: u64,
}

impl Net {
    fn half(&mut self, end: End) -> Option<&mut Half> {
        Some(&mut self.wires.get_mut(&end.wire)?[usize::from(end.side)])
    }

    /// Who holds an end, unless it was let go.
    pub fn owner(&self, end: End) -> Option<Owner> {
        let half = &self.wires.get(&end.wire)?[usize::from(end.side)];
        (!half.closed).then_some(half.owner)
    }

    /// Another one holds it from here on.
    pub fn hand_over(&mut self, end: End, owner: Owner) {
        if let Some(half) = self.half(end) {
            half.owner = owner;
        }
    }

    /// Whether there is something to read: bytes or an end.
    pub fn is_readable(&self, end: End) -> bool {
        self.wires.get(&end.wire).is_some_and(|wire| {
            let half = &wire[usize::from(end.side)];
            !half.arrived.is_empty() || half.ended || half.broken
        })
    }

    /// Whether the other end has hung up, as far as is known here.
    pub fn is_closed(&self, end: End) -> bool {
        self.wires.get(&end.wire).is_none_or(|wire| {
            let half = &wire[usize::from(end.side)];
            half.ended || half.broken
        })
    }
}

impl Env {
    /// A new wire; the first end is the one that was asked for.
    pub fn wire(&mut self, first: Owner, second: Owner) -> End {
        self.net.minted += 1;
        let mut half = |owner| {
            let capacity = *self.random.pick(&[64, 700, 8192, 100_000]);
            Half {
                owner,
                arrived: Vec::new(),
                ended: false,
                broken: false,
                closed: false,
                coming: VecDeque::new(),
                last: self.now,
                capacity,
                waited_for: false,
            }
        };
        let halves = [half(first), half(second)];
        let wire = self.net.minted;
        self.net.wires.insert(wire, halves);
        End { wire, side: 0 }
    }

    fn post(&mut self, to: End, piece: Piece) {
        let pause = self.random.micros(5, self.net.latency.max(6));
        let now = self.now;
        let Some(half) = self.net.half(to) else { return };
        let at = half.last.max(now + pause);
        half.last = at;
        half.coming.push_back((at, piece));
        self.calendar.put(at, Event::Wire(to));
    }

    /// Sends bytes; answers how many the wire took.
    pub fn send(&mut self, from: End, bytes: &[u8]) -> Result<usize, Broken> {
        let Some(own) = self.net.half(from) else { return Err(Broken) };
        if own.broken || own.closed {
            return Err(Broken);
        }
        let to = from.peer();
        let Some(half) = self.net.half(to) else { return Err(Broken) };
        if half.closed {
            // It will be told in a moment; until then what is sent is lost.
            return Ok(bytes.len());
        }
        let under_way = half.coming.iter().map(|(_, piece)| match piece {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::End | Piece::Broken => 0,
        });
        let used = half.arrived.len() + under_way.sum::<usize>();
        let count = bytes.len().min(half.capacity.saturating_sub(used));
        half.waited_for |= count < bytes.len();
        if count > 0 {
            self.post(to, Piece::Bytes(bytes[..count].to_vec()));
        }
        Ok(count)
    }

    /// Something may have arrived at an end; answers whether its owner has to look.
    pub fn arrive(&mut self, end: End) -> bool {
        let now = self.now;
        let Some(half) = self.net.half(end) else { return false };
        while half.coming.front().is_some_and(|(at, _)| *at <= now) {
            match half.coming.pop_front() {
                Some((_, Piece::Bytes(bytes))) => half.arrived.extend_from_slice(&bytes),
                Some((_, Piece::End)) => half.ended = true,
                Some((_, Piece::Broken)) => {
                    half.arrived.clear();
                    half.broken = true;
                }
                None => {}
            }
        }
        !half.closed
    }

    /// Reads what has arrived, or a part of it.
    pub fn recv(&mut self, end: End, max: usize) -> Recv {
        let Some(half) = self.net.half(end) else { return Recv::Failed };
        if half.broken {
            return Recv::Failed;
        }
        if half.arrived.is_empty() {
            return if half.ended { Recv::Eof } else { Recv::Blocked };
        }
        let there = half.arrived.len().min(max.max(1));
        let waited = std::mem::take(&mut half.waited_for);
        let count = match self.random.below(4) {
            0 => self.random.between(1, there),
            _ => there,
        };
        let Some(half) = self.net.half(end) else { return Recv::Failed };
        let bytes: Vec<u8> = half.arrived.drain(..count).collect();
        if waited {
            let pause = self.random.micros(1, 50);
            self.after(pause, Event::Wire(end.peer()));
        }
        Recv::Bytes(bytes)
    }

    /// Lets an end go: what was sent still arrives.
    pub fn close(&mut self, end: End) {
        self.let_go(end, Piece::End);
    }

    /// Breaks a wire: what is under way is lost.
    pub fn reset(&mut self, end: End) {
        if let Some(half) = self.net.half(end.peer()) {
            half.coming.clear();
        }
        self.let_go(end, Piece::Broken);
    }

    fn let_go(&mut self, end: End, piece: Piece) {
        let Some(half) = self.net.half(end) else { return };
        if std::mem::replace(&mut half.closed, true) {
            return;
        }
        let unread = !half.arrived.is_empty();
        half.arrived.clear();
        // Bytes that nobody has read make the end a reset, as sockets have it.
        let piece = if unread && self.random.one_in(2) { Piece::Broken } else { piece };
        let peer = end.peer();
        if self.net.half(peer).is_some_and(|half| half.closed) {
            self.net.wires.remove(&end.wire);
        } else {
            self.post(peer, piece);
        }
    }

    /// How many ends are held by owners for which `which` answers true.
    pub fn ends(&self, which: impl Fn(Owner) -> bool) -> usize {
        let halves = self.net.wires.values().flatten();
        halves.filter(|half| !half.closed && which(half.owner)).count()
    }
}
