//! The rules of elections, one by one: what is remembered, what the nodes say, who is chosen.

#![cfg(test)]

use super::election::{Ballot, Memory, Oddity, Place, Refusal, Says, Verdict, challenger, elect};
use super::options::Fencing::{self, Off, Strict, Timeline};
use super::probe::Server;
use super::view::NodeId;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

/// A node of system 7, listed, at position 100.
fn ballot(node: NodeId, says: Says, timeline: Option<u32>) -> Ballot {
    let (system, position, place) = (Some(7), Some(100), Place::Listed);
    Ballot { node, place, says, system, timeline, position, server: None }
}

fn writer(node: NodeId, timeline: u32) -> Ballot {
    ballot(node, Says::Writer(1), Some(timeline))
}

fn reader(node: NodeId, timeline: u32) -> Ballot {
    ballot(node, Says::Reader, Some(timeline))
}

fn gone(node: NodeId) -> Ballot {
    ballot(node, Says::Nothing, Some(1))
}

/// A was the writer of system 7 on timeline 1, up to position 100.
fn memory() -> Memory {
    let (system, timeline, writer, written) = (Some(7), Some(1), Some(A), Some(1));
    Memory { system, timeline, writer, server: None, written, position: Some(100) }
}

/// Whoever is elected without anything odd, and what was refused.
fn check(fencing: Fencing, ballots: &[Ballot], wanted: Verdict, refused: &[(NodeId, Refusal)]) {
    let (verdict, refusals) = elect(fencing, &memory(), ballots);
    assert_eq!((verdict, &refusals[..]), (wanted, refused), "{fencing:?} {ballots:?}");
}

fn chosen(node: NodeId) -> Verdict {
    Verdict::Elect(node, Oddity::None)
}

#[test]
fn another_system_is_never_a_candidate() {
    let foreign = Ballot { system: Some(8), ..writer(B, 9) };
    let refused = [(B, Refusal::Foreign(8, 7))];
    for fencing in [Strict, Timeline] {
        check(fencing, &[gone(A), foreign.clone()], Verdict::Nobody, &refused);
        check(fencing, &[gone(A), foreign.clone(), writer(C, 2)], chosen(C), &refused);
    }
    check(Off, &[gone(A), foreign.clone()], chosen(B), &[]);
    // A system that is not told is no other one.
    let silent = Ballot { system: None, ..writer(B, 2) };
    check(Strict, &[gone(A), silent], chosen(B), &[]);
}

#[test]
fn a_lower_timeline_is_fenced() {
    let highest = Memory { timeline: Some(3), ..memory() };
    let (verdict, refusals) = elect(Strict, &highest, &[writer(A, 1), writer(B, 4)]);
    assert_eq!((verdict, refusals), (chosen(B), vec![(A, Refusal::Stale(1, 4))]));
    let (verdict, refusals) = elect(Timeline, &highest, &[writer(A, 2)]);
    assert_eq!((verdict, refusals), (Verdict::Nobody, vec![(A, Refusal::Stale(2, 3))]));
    // Also than a standby's.
    let refused = [(B, Refusal::Stale(2, 3))];
    check(Strict, &[gone(A), writer(B, 2), reader(C, 3)], Verdict::Nobody, &refused);
}

#[test]
fn who_follows_the_lost_writer_has_a_higher_timeline() {
    check(Strict, &[gone(A), writer(B, 2), reader(C, 1)], chosen(B), &[]);
    let refused = [(B, Refusal::SameTimeline(1))];
    check(Strict, &[gone(A), writer(B, 1)], Verdict::Nobody, &refused);
    check(Timeline, &[gone(A), writer(B, 1)], chosen(B), &[]);
    // Services that swap roles on one timeline: the old writer says so itself.
    let swapped = Verdict::Elect(B, Oddity::SwappedOnOneTimeline);
    check(Strict, &[reader(A, 1), writer(B, 1)], swapped, &[]);
    check(Timeline, &[reader(A, 1), writer(B, 1)], chosen(B), &[]);
}

#[test]
fn several_candidates_are_told_apart_by_their_timelines_only() {
    let refused = [(B, Refusal::Stale(2, 3))];
    check(Strict, &[gone(A), writer(B, 2), writer(C, 3)], chosen(C), &refused);
    for fencing in [Strict, Timeline] {
        check(fencing, &[gone(A), writer(B, 2), writer(C, 2)], Verdict::Split(B, C), &[]);
    }
    let unknown = ballot(C, Says::Writer(3), None);
    check(Strict, &[gone(A), writer(B, 2), unknown], Verdict::Split(B, C), &[]);
    check(Off, &[gone(A), writer(B, 2), writer(C, 3)], chosen(B), &[]);
}

#[test]
fn the_old_writer_stays_the_writer_if_nobody_has_a_better_claim() {
    check(Strict, &[writer(A, 1), reader(B, 1)], chosen(A), &[]);
    let refused = [(A, Refusal::Stale(1, 2))];
    check(Strict, &[writer(A, 1), writer(B, 2)], chosen(B), &refused);
}

#[test]
fn without_timelines_a_candidate_says_so_twice_and_the_old_writer_does_not() {
    let says = |times| ballot(B, Says::Writer(times), None);
    for old in [gone(A), reader(A, 1)] {
        check(Strict, &[old.clone(), says(1)], Verdict::Confirm(B), &[]);
        check(Strict, &[old, says(2)], chosen(B), &[]);
    }
    let old = ballot(A, Says::Writer(5), None);
    check(Strict, &[old, says(2)], Verdict::Split(A, B), &[]);
}

#[test]
fn a_writer_at_another_address_goes_on_where_the_lost_one_ended() {
    let missing = Ballot { place: Place::Missing, ..gone(A) };
    let taken = Verdict::Elect(B, Oddity::TakenUp);
    let at = |position| Ballot { position, ..writer(B, 1) };
    let refused = [(B, Refusal::SameTimeline(1))];
    check(Strict, &[missing.clone(), at(Some(100))], taken, &[]);
    check(Strict, &[at(Some(100))], taken, &[]);
    for position in [Some(99), None] {
        check(Strict, &[missing.clone(), at(position)], Verdict::Nobody, &refused);
    }
    let ahead = Ballot { position: Some(101), ..reader(C, 1) };
    check(Strict, &[missing.clone(), at(Some(100)), ahead.clone()], Verdict::Nobody, &refused);
    check(Strict, &[missing, at(Some(101)), ahead], taken, &[]);
    // The same server under another name is no other writer, wherever it is.
    let server = Some(Server { system: 7, started: 1 });
    let known = Memory { server, ..memory() };
    let renamed = Ballot { server, position: None, ..writer(B, 1) };
    assert_eq!(elect(Strict, &known, &[gone(A), renamed]).0, chosen(B));
}

#[test]
fn a_writer_that_answers_yields_to_a_higher_timeline_alone() {
    let against = |fencing, other| challenger(fencing, &memory(), &[writer(A, 1), other]);
    for fencing in [Strict, Timeline] {
        assert_eq!(against(fencing, writer(B, 2)), chosen(B));
        assert_eq!(against(fencing, writer(B, 1)), Verdict::Split(A, B));
        assert_eq!(against(fencing, reader(B, 2)), Verdict::Nobody);
        let foreign = Ballot { system: Some(8), ..writer(B, 9) };
        assert_eq!(against(fencing, foreign), Verdict::Nobody);
    }
    assert_eq!(against(Off, writer(B, 2)), Verdict::Nobody);
}
