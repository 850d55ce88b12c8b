//! Some hundred worlds are well, and so are those that were not.

#![allow(clippy::panic)]

use switchyard_sim::{Kind, Seed, Trace, run};

/// What there is to say about worlds, all of which have to be well.
fn check(kind: Kind, seeds: impl Iterator<Item = u64>) -> Vec<String> {
    let world = |seed| {
        run(kind, Seed::Number(seed), None).unwrap_or_else(|text| {
            let trace = Trace::default();
            let _ = run(kind, Seed::Number(seed), Some(&trace));
            let lines = trace.lines();
            let last = lines[lines.len().saturating_sub(100)..].join("\n");
            panic!("{last}\n{kind:?} {seed}: {text}")
        })
    };
    seeds.map(world).collect()
}

#[test]
fn crowds_are_served() {
    check(Kind::Crowd, 1..=100);
}

#[test]
fn hooks_change_nothing_but_what_they_say() {
    check(Kind::Hooks, 1..=100);
}

#[test]
fn clusters_keep_what_they_acknowledge() {
    check(Kind::Cluster, 1..=100);
}

#[test]
fn sessions_go_on_with_the_next_writer() {
    let worlds = check(Kind::Sessions, 1..=40);
    let moved = worlds.iter().filter(|text| !text.contains(" 0 moved,")).count();
    assert!(moved > 10, "these worlds are for sessions that move: {moved}");
}

/// Worlds in which something was wrong once.
#[test]
fn clusters_that_found_something() {
    let seeds = [
        // A server was lost between an error and its ReadyForQuery: its client was told a second
        // error in one answer.
        1343,
        // A server that was closed in the middle of a client's message took the good-bye for the
        // rest of it.
        911,
        // A query that came in two reads was not remembered, so that a lost block was taken for a
        // lone BEGIN and its acknowledged writes for never sent.
        5,
    ];
    check(Kind::Cluster, seeds.into_iter());
}

/// Worlds in which something was wrong once.
#[test]
fn crowds_that_found_something() {
    let seeds = [
        // A client that had seen a part of a row was told a FATAL as the rest of it.
        150,
    ];
    check(Kind::Crowd, seeds.into_iter());
}
