//! The desk of calls against a naive world of queues and processes: every call ends once, none is
//! begun twice, none is begun after its client was told of a failure, and none is forgotten.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use switchyard_core::hook::desk::{
    CallId, Class, Desk, DeskOptions, Effect, Failure, Hand, HandId, Holds, Takes, UserId,
};

const TIMEOUT: Duration = Duration::from_millis(200);
const WINDOW: usize = 4;

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    /// A user asks.
    Ask(u64),
    /// A process takes a call.
    Take(usize),
    /// A process finishes its call.
    Finish(usize),
    /// A process dies.
    Die(usize),
    /// Milliseconds pass.
    Later(u64),
    /// The queues take no more than so many calls in this turn.
    HandOver(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4u64).prop_map(Step::Ask),
        6 => any::<usize>().prop_map(Step::Take),
        4 => any::<usize>().prop_map(Step::Finish),
        1 => any::<usize>().prop_map(Step::Die),
        4 => (1..30u64).prop_map(Step::Later),
        4 => (0..6usize).prop_map(Step::HandOver),
    ];
    prop::collection::vec(step, 1..300)
}

struct Process {
    id: HandId,
    takes: Takes,
    call: Option<(CallId, Instant)>,
    last: u64,
}

struct World {
    now: Instant,
    desk: Desk,
    queues: [VecDeque<(CallId, Vec<u8>)>; 2],
    processes: Vec<Process>,
    asked: usize,
    begun: HashSet<CallId>,
    ended: HashMap<CallId, &'static str>,
}

impl World {
    fn new() -> Self {
        let options = DeskOptions { timeout: Some(TIMEOUT), window: WINDOW };
        let process = |id: u32| Process {
            id: HandId(id),
            takes: if id == 0 { Takes::FastOnly } else { Takes::Both },
            call: None,
            last: 0,
        };
        World {
            now: Instant::now(),
            desk: Desk::new(options),
            queues: Default::default(),
            processes: (0..3).map(process).collect(),
            asked: 0,
            begun: HashSet::new(),
            ended: HashMap::new(),
        }
    }

    fn end(&mut self, id: CallId, how: &'static str) {
        assert_eq!(self.ended.insert(id, how), None, "{id:?} ended twice");
    }

    fn hand_over(&mut self, room: usize) {
        let mut given: Vec<_> = std::iter::from_fn(|| self.desk.take()).collect();
        let refused = given.split_off(room.min(given.len()));
        for (id, class, frame) in given {
            self.queues[class as usize].push_back((id, frame));
        }
        if !refused.is_empty() {
            self.desk.refused(refused.into_iter());
        }
    }

    fn take(&mut self, index: usize) {
        let index = index % self.processes.len();
        let process = &mut self.processes[index];
        if process.call.is_some() {
            return;
        }
        let both = process.takes == Takes::Both;
        let mut taken = self.queues[0].pop_front();
        if taken.is_none() && both {
            taken = self.queues[1].pop_front();
        }
        let Some((id, frame)) = taken else { return };
        assert_eq!(frame, id.0.to_le_bytes(), "a frame keeps its number");
        assert!(self.begun.insert(id), "{id:?} was begun twice");
        assert!(!self.ended.contains_key(&id), "{id:?} was begun after its end");
        process.call = Some((id, self.now));
        process.last = id.0;
    }

    fn finish(&mut self, index: usize) {
        let index = index % self.processes.len();
        let Some((id, since)) = self.processes[index].call.take() else { return };
        let known = self.desk.answered(id, self.now - since);
        match known {
            Some(client) => {
                assert_eq!(client, id.0 + 1000);
                self.end(id, "answered");
            }
            None => assert!(self.ended.contains_key(&id)),
        }
    }

    fn die(&mut self, index: usize) {
        let index = index % self.processes.len();
        let process = &mut self.processes[index];
        let (old, held) = (process.id, process.call.take().map(|(id, _)| id));
        process.id = HandId(process.id.0 + 10);
        self.desk.died(old, held);
    }

    fn look(&mut self) {
        let hands: Vec<Hand> = self
            .processes
            .iter()
            .map(|process| Hand {
                id: process.id,
                takes: process.takes,
                holds: process.call.map_or(Holds::Nothing, |(id, _)| Holds::Ours(id)),
                last: process.last,
            })
            .collect();
        self.desk.looked(self.now, &hands);
    }

    fn obey(&mut self) {
        while let Some(effect) = self.desk.poll_effect() {
            match effect {
                Effect::Fail(id, client, failure) => {
                    assert_eq!(client, id.0 + 1000);
                    if matches!(failure, Failure::Ran | Failure::Died) {
                        assert!(self.begun.contains(&id), "{id:?} failed without being begun");
                    } else {
                        assert!(!self.begun.contains(&id), "{id:?} had begun");
                    }
                    self.end(id, "failed");
                }
                Effect::Look => self.look(),
                Effect::Kill(hand) => {
                    let index = self.processes.iter().position(|process| process.id == hand);
                    self.die(index.expect("a process that lives is killed"));
                }
                Effect::More => {}
                Effect::TakeBack => {
                    let mut back: Vec<_> = self.queues[0].drain(..).collect();
                    back.extend(self.queues[1].drain(..));
                    self.desk.reclaimed(back.into_iter());
                }
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask(user) => {
                let id = self.desk.next_id();
                self.asked += 1;
                self.desk.ask(self.now, id.0 + 1000, UserId(user), id.0.to_le_bytes().to_vec());
            }
            Step::Take(index) => self.take(index),
            Step::Finish(index) => self.finish(index),
            Step::Die(index) => self.die(index),
            Step::Later(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                self.desk.handle_timeout(self.now);
            }
            Step::HandOver(room) => self.hand_over(room),
        }
        self.obey();
        self.desk.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_call_ends_once(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        // Given time, everything ends by itself.
        for _ in 0..200 {
            world.step(&Step::HandOver(WINDOW * 2));
            for index in 0..3 {
                world.step(&Step::Take(index));
                world.step(&Step::Finish(index));
            }
            world.step(&Step::Later(6));
        }
        prop_assert!(world.desk.is_empty());
        prop_assert_eq!(world.ended.len(), world.asked);
        prop_assert!(world.queues.iter().all(VecDeque::is_empty));
    }
}

#[test]
fn a_slow_user_does_not_stand_in_front_of_others() {
    let mut world = World::new();
    for _ in 0..3 {
        world.step(&Step::Ask(1));
    }
    world.step(&Step::Ask(2));
    world.step(&Step::HandOver(9));
    world.step(&Step::Take(1));
    world.step(&Step::Later(6));
    world.step(&Step::Later(6));
    assert_eq!(world.desk.class(UserId(1)), Class::Slow);
    world.step(&Step::HandOver(9));
    assert_eq!(world.queues[0].iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [4]);
    assert_eq!(world.queues[1].iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [2, 3]);
    // The process that is kept for fast calls serves the other user and nothing else.
    world.step(&Step::Take(0));
    world.step(&Step::Finish(0));
    world.step(&Step::Take(0));
    assert_eq!(world.ended.get(&CallId(4)), Some(&"answered"));
    assert!(world.processes[0].call.is_none());
}

#[test]
fn a_call_that_runs_too_long_ends_its_process() {
    let mut world = World::new();
    world.step(&Step::Ask(1));
    world.step(&Step::HandOver(9));
    world.step(&Step::Take(1));
    let before = world.processes[1].id;
    for _ in 0..40 {
        world.step(&Step::Later(6));
    }
    assert_eq!(world.ended.get(&CallId(1)), Some(&"failed"));
    assert_ne!(world.processes[1].id, before);
}

#[test]
fn a_process_that_takes_nothing_is_woken_and_then_ended() {
    let mut world = World::new();
    world.step(&Step::Ask(1));
    world.step(&Step::HandOver(9));
    world.step(&Step::Later(6));
    let before: Vec<HandId> = world.processes.iter().map(|process| process.id).collect();
    assert_eq!(world.queues[0].len(), 1);
    world.step(&Step::Later(6));
    assert!(world.queues[0].is_empty(), "it is handed over once more, which wakes another");
    world.step(&Step::HandOver(9));
    for _ in 0..40 {
        world.step(&Step::Later(6));
        world.step(&Step::HandOver(9));
    }
    assert_eq!(world.ended.get(&CallId(1)), Some(&"failed"));
    let ids = world.processes.iter().map(|process| process.id);
    assert!(ids.zip(&before).all(|(id, before)| id != *before), "all of them slept");
}

#[test]
fn nobody_to_run_a_call_is_told_at_once() {
    let mut world = World::new();
    world.step(&Step::Ask(1));
    world.step(&Step::HandOver(9));
    world.desk.nobody();
    world.obey();
    assert_eq!(world.ended.len(), 1);
    assert!(world.desk.is_empty() && world.queues[0].is_empty());
}
