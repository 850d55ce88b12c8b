//! The rules by which a writer is chosen. One pure function over what the nodes last said.
//!
//! Not here: when to choose, and what follows. A promotion raises the timeline, so the timeline
//! tells a promoted standby from an old writer that came back.

use super::options::Fencing;
use super::probe::{Facts, Server};
use super::view::NodeId;

/// What is remembered of a cluster across elections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// System identifier.
    pub system: Option<u64>,
    /// Highest timeline seen.
    pub timeline: Option<u32>,
    /// Last elected writer.
    pub writer: Option<NodeId>,
    /// The server that it was, as it last told.
    pub server: Option<Server>,
    /// The timeline on which it wrote, as it last told.
    pub written: Option<u32>,
    /// How far it had written, as it last told.
    pub position: Option<u64>,
}

impl Memory {
    /// Takes in what the writer says of itself.
    pub(super) fn learn_writer(&mut self, facts: &Facts) {
        self.server = facts.server().or(self.server);
        self.written = facts.timeline.or(self.written);
        self.position = self.position.max(facts.lsn);
    }

    /// Takes in what a node of this system says; other systems teach nothing.
    pub fn learn(&mut self, facts: &Facts) {
        if self.system.is_some() && self.system == facts.system {
            self.timeline = self.timeline.max(facts.timeline);
        }
    }

    /// Whether `system` is known to be another one.
    pub fn foreign(&self, system: Option<u64>) -> bool {
        differ(self.system, system)
    }
}

/// What a node says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// It accepts writes, and said so this often in a row.
    Writer(u32),
    /// It is a standby.
    Reader,
    /// Nothing usable.
    Nothing,
}

/// Whether the topology lists a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It does.
    Listed,
    /// It did.
    Missing,
}

/// One node's part in an election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ballot {
    /// The node.
    pub node: NodeId,
    /// Whether it is listed.
    pub place: Place,
    /// What it says now.
    pub says: Says,
    /// System identifier it last told.
    pub system: Option<u64>,
    /// Timeline it last told.
    pub timeline: Option<u32>,
    /// Position it last told.
    pub position: Option<u64>,
    /// The server that it last was.
    pub server: Option<Server>,
}

/// Why a node that answers `writer` is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another system than expected: (found, expected).
    Foreign(u64, u64),
    /// A lower timeline than seen elsewhere: (found, expected).
    Stale(u32, u32),
    /// The same timeline as a lost writer that was another node.
    SameTimeline(u32),
}

/// What makes an election worth a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// Nothing.
    None,
    /// The roles were swapped without a higher timeline.
    SwappedOnOneTimeline,
    /// The last writer is listed no more, and this node goes on where it ended.
    TakenUp,
}

/// Outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No candidate.
    Nobody,
    /// This one.
    Elect(NodeId, Oddity),
    /// This one if it says so once more.
    Confirm(NodeId),
    /// Two with the same claim.
    Split(NodeId, NodeId),
}

/// Judges all ballots while there is no writer.
pub fn elect(
    fencing: Fencing,
    memory: &Memory,
    ballots: &[Ballot],
) -> (Verdict, Vec<(NodeId, Refusal)>) {
    let mut candidates = writers(ballots);
    if fencing == Fencing::Off {
        let first = candidates.next().map(|ballot| Verdict::Elect(ballot.node, Oddity::None));
        return (first.unwrap_or(Verdict::Nobody), Vec::new());
    }
    let (mut accepted, mut refusals) = (Vec::new(), Vec::new());
    for ballot in candidates {
        match refusal(memory, ballots, ballot) {
            Some(refusal) => refusals.push((ballot.node, refusal)),
            None => accepted.push(ballot),
        }
    }
    let verdict = match accepted.as_slice() {
        [] => Verdict::Nobody,
        [one] => match sole(fencing, memory, ballots, one) {
            Ok(verdict) => verdict,
            Err(refusal) => {
                refusals.push((one.node, refusal));
                Verdict::Nobody
            }
        },
        // Lower timelines were refused above: what is left has one timeline, or an unknown one.
        [first, second, ..] => Verdict::Split(first.node, second.node),
    };
    (verdict, refusals)
}

/// A node with a better claim than the sitting writer, which still answers.
pub fn challenger(fencing: Fencing, memory: &Memory, ballots: &[Ballot]) -> Verdict {
    let sitting = ballots.iter().find(|ballot| Some(ballot.node) == memory.writer);
    let Some(known) = sitting.and_then(|ballot| ballot.timeline) else { return Verdict::Nobody };
    if fencing == Fencing::Off {
        return Verdict::Nobody;
    }
    let others = || writers(ballots).filter(|ballot| Some(ballot.node) != memory.writer);
    let fit = |ballot: &&Ballot| refusal(memory, ballots, ballot).is_none();
    let mut higher = others().filter(fit).filter(|ballot| ballot.timeline > Some(known));
    match (higher.next(), higher.next()) {
        (Some(one), None) => Verdict::Elect(one.node, Oddity::None),
        (Some(first), Some(second)) => Verdict::Split(first.node, second.node),
        (None, _) => match (memory.writer, others().find(fit)) {
            (Some(writer), Some(rival)) => Verdict::Split(writer, rival.node),
            (None, _) | (_, None) => Verdict::Nobody,
        },
    }
}

/// Whether the sitting writer has become another server that must not write: its name leads there.
pub fn replaced(fencing: Fencing, memory: &Memory, ballots: &[Ballot]) -> Option<Refusal> {
    let sitting = ballots.iter().find(|ballot| Some(ballot.node) == memory.writer)?;
    let other = memory.server.is_some() && sitting.server != memory.server;
    let writes = matches!(sitting.says, Says::Writer(_));
    if fencing == Fencing::Off || !other || !writes {
        return None;
    }
    refusal(memory, ballots, sitting)
}

/// Rules 1 and 2: another system, or a timeline that was left behind.
pub fn refusal(memory: &Memory, ballots: &[Ballot], ballot: &Ballot) -> Option<Refusal> {
    if let (Some(found), Some(expected)) = (ballot.system, memory.system)
        && found != expected
    {
        return Some(Refusal::Foreign(found, expected));
    }
    let peers = ballots.iter().filter(|peer| !differ(peer.system, ballot.system));
    let peers = peers.filter(|peer| !memory.foreign(peer.system));
    let highest = peers.filter_map(|peer| peer.timeline).max().max(memory.timeline);
    match (ballot.timeline, highest) {
        (Some(found), Some(expected)) if found < expected => Some(Refusal::Stale(found, expected)),
        _ => None,
    }
}

/// Rules 3, 5 and 7: the only candidate left.
fn sole(
    fencing: Fencing,
    memory: &Memory,
    ballots: &[Ballot],
    one: &Ballot,
) -> Result<Verdict, Refusal> {
    let elected = Ok(Verdict::Elect(one.node, Oddity::None));
    let Some(last) = memory.writer.filter(|last| *last != one.node) else { return elected };
    // The last writer under another name is no other writer.
    let itself = one.server.is_some() && one.server == memory.server;
    if fencing != Fencing::Strict || itself {
        return elected;
    }
    let old = ballots.iter().find(|ballot| ballot.node == last);
    let old = old.map_or(Says::Nothing, |ballot| ballot.says);
    match (one.timeline, memory.timeline) {
        (Some(found), Some(lost)) if found > lost => elected,
        // Learned from the candidate itself: compare with what the lost writer told.
        (Some(found), Some(_)) => match (memory.written, old) {
            (Some(written), _) if found > written => elected,
            (_, Says::Reader) => Ok(Verdict::Elect(one.node, Oddity::SwappedOnOneTimeline)),
            (_, Says::Nothing) if takes_up(memory, ballots, one, last) => {
                Ok(Verdict::Elect(one.node, Oddity::TakenUp))
            }
            (_, Says::Writer(_) | Says::Nothing) => Err(Refusal::SameTimeline(found)),
        },
        (None, _) | (_, None) => match (one.says, old) {
            (_, Says::Writer(_)) => Ok(Verdict::Nobody),
            (Says::Writer(2..), Says::Reader | Says::Nothing) => elected,
            (_, Says::Reader | Says::Nothing) => Ok(Verdict::Confirm(one.node)),
        },
    }
}

/// Whether a candidate on the last writer's timeline may be that writer at another address: the old
/// one is listed no more, and nobody has seen a position beyond the candidate's. A copy from before
/// the loss is behind what the writer itself or one of its standbys has told.
fn takes_up(memory: &Memory, ballots: &[Ballot], one: &Ballot, last: NodeId) -> bool {
    let listed = |ballot: &Ballot| ballot.node == last && ballot.place == Place::Listed;
    if memory.position.is_none() || ballots.iter().any(listed) {
        return false;
    }
    let peers = ballots.iter().filter(|peer| !differ(peer.system, one.system));
    let told = peers.map(|peer| peer.position).chain([memory.position]);
    told.max().flatten() <= one.position
}

fn writers(ballots: &[Ballot]) -> impl Iterator<Item = &Ballot> {
    ballots.iter().filter(|ballot| matches!(ballot.says, Says::Writer(_)))
}

pub(super) fn differ(a: Option<u64>, b: Option<u64>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a != b)
}
