//! The calls of one loop: which wait, which were handed over, and what becomes of each.
//!
//! Calls that were handed over lie in a queue that all processes take from, and that the loop may
//! take back from; so a call has begun exactly if a process holds it. The desk is told what each
//! process holds only when calls have become old. It marks users whose calls are slow, so that
//! these go to a queue of their own, ends processes whose call exceeds its time, and fails calls
//! that wait too long.
//!
//! Invariants: each call ends once, by an answer or a failure; at most `window` calls of a class
//! are handed over; what has ended is never handed over again.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

/// A call of one loop. Numbers start at 1 and are used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// A user, as a number that stands for its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserId(pub u64);

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandId(pub u32);

/// Which queue a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Of a user whose calls have been fast.
    Fast,
    /// Of one whose calls have been slow.
    Slow,
}

/// What a process takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Calls of both classes.
    Both,
    /// Fast ones only: it is kept for them.
    FastOnly,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Nothing.
    Nothing,
    /// A call of this loop.
    Ours(CallId),
    /// A call of another loop, or something else that is over for its client.
    Other(u64),
}

/// A process as it was found at a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hand {
    /// Which.
    pub id: HandId,
    /// What it takes.
    pub takes: Takes,
    /// What it holds.
    pub holds: Holds,
    /// The call that it has begun last, whose ever it was.
    pub last: u64,
}

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was not begun in time.
    Waited,
    /// It was not finished in time.
    Ran,
    /// Its process ended.
    Died,
    /// No process can be started.
    Nobody,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell the client with this number about the failure of its call.
    Fail(CallId, u64, Failure),
    /// Look what each process holds and call [`Desk::looked`].
    Look,
    /// End this process.
    Kill(HandId),
    /// Start another process, if there may be more.
    More,
    /// Take back what was handed over and not begun, and call [`Desk::reclaimed`].
    TakeBack,
}

/// Limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeskOptions {
    /// Longest wait for a process, and longest call.
    pub timeout: Option<Duration>,
    /// Calls of a class that may be handed over and unanswered.
    pub window: usize,
}

/// A call that has not ended.
#[derive(Clone, Copy, Debug)]
struct Open {
    client: u64,
    user: UserId,
    asked: Instant,
    class: Class,
    stand: Stand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    Waiting,
    HandedOver,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    hand: Hand,
    since: Instant,
}

impl Watched {
    /// Whether it has begun nothing for so long, although it may take calls of this class.
    fn is_asleep(&self, class: Class, now: Instant, long: Duration) -> bool {
        let takes = class == Class::Fast || self.hand.takes == Takes::Both;
        let idle = self.hand.holds == Holds::Nothing;
        takes && idle && now.saturating_duration_since(self.since) >= long
    }
}

/// Whether the queues take more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Room {
    #[default]
    Free,
    Full,
}

/// A call to hand over: its number, its queue and its frame.
pub type Handover = (CallId, Class, Vec<u8>);

/// The calls of one loop.
#[derive(Debug)]
pub struct Desk {
    options: DeskOptions,
    open: VecDeque<Option<Open>>,
    first: u64,
    count: usize,
    waiting: [VecDeque<(CallId, Vec<u8>)>; 2],
    handed: [usize; 2],
    paces: HashMap<UserId, Duration, RandomState>,
    watched: Vec<Watched>,
    room: Room,
    effects: VecDeque<Effect>,
    looked: Option<Instant>,
    asked_for_more: Option<Instant>,
    woken: Option<Instant>,
}

/// Age of a call at which the processes are looked at, and time between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// A call that took longer makes its user a slow one.
const SLOW: Duration = Duration::from_millis(5);
/// A slow user's moving average below which it is fast again.
const FAST: Duration = Duration::from_millis(1);
/// Wait of a call, with all processes busy, after which there should be more of them.
const CROWDED: Duration = Duration::from_millis(10);
/// Users remembered as slow.
const SLOW_USERS_MAX: usize = 10_000;

impl Desk {
    /// No calls.
    pub fn new(options: DeskOptions) -> Self {
        Desk {
            options,
            open: VecDeque::new(),
            first: 1,
            count: 0,
            waiting: Default::default(),
            handed: [0; 2],
            paces: HashMap::default(),
            watched: Vec::new(),
            room: Room::Free,
            effects: VecDeque::new(),
            looked: None,
            asked_for_more: None,
            woken: None,
        }
    }

    /// The number of the next call.
    pub fn next_id(&self) -> CallId {
        CallId(self.first + self.open.len() as u64)
    }

    /// A client's call, whose frame carries [`Desk::next_id`].
    pub fn ask(&mut self, now: Instant, client: u64, user: UserId, frame: Vec<u8>) {
        let (id, class) = (self.next_id(), self.class(user));
        let open = Open { client, user, asked: now, class, stand: Stand::Waiting };
        self.open.push_back(Some(open));
        self.count += 1;
        self.waiting[class as usize].push_back((id, frame));
    }

    /// A call to hand over next, if one waits and may be.
    pub fn take(&mut self) -> Option<Handover> {
        if self.room == Room::Full {
            return None;
        }
        for class in [Class::Fast, Class::Slow] {
            while self.handed[class as usize] < self.options.window {
                let Some((id, frame)) = self.waiting[class as usize].pop_front() else { break };
                if let Some(open) = self.slot(id) {
                    open.stand = Stand::HandedOver;
                    self.handed[class as usize] += 1;
                    return Some((id, class, frame));
                }
            }
        }
        None
    }

    /// The queue did not take these calls, in the order of [`Desk::next`].
    pub fn refused(&mut self, calls: impl DoubleEndedIterator<Item = Handover>) {
        self.room = Room::Full;
        for (id, class, frame) in calls.rev() {
            self.stand_back(id);
            self.waiting[class as usize].push_front((id, frame));
        }
    }

    /// These calls were taken back, in the order in which they lay in their queues. They are
    /// handed over anew, by what is known of their users.
    pub fn reclaimed(&mut self, calls: impl DoubleEndedIterator<Item = (CallId, Vec<u8>)>) {
        for (id, frame) in calls.rev() {
            self.stand_back(id);
            let Some(user) = self.slot(id).map(|open| open.user) else { continue };
            let class = self.class(user);
            if let Some(open) = self.slot(id) {
                open.class = class;
            }
            self.waiting[class as usize].push_front((id, frame));
        }
    }

    /// A call was answered; how long it ran. Answers its client, unless it has ended before.
    pub fn answered(&mut self, id: CallId, took: Duration) -> Option<u64> {
        self.room = Room::Free;
        let open = self.close(id)?;
        if took > SLOW || !self.paces.is_empty() {
            self.note_pace(open.user, took);
        }
        Some(open.client)
    }

    /// What the processes hold.
    pub fn looked(&mut self, now: Instant, hands: &[Hand]) {
        self.looked = Some(now);
        let before = std::mem::take(&mut self.watched);
        for hand in hands {
            let known = before.iter().find(|watched| watched.hand == *hand);
            let since = known.map_or(now, |watched| watched.since);
            self.watched.push(Watched { hand: *hand, since });
        }
        self.judge_running(now);
        self.judge_waiting(now, hands);
    }

    /// A process has ended, and its results have been taken; what it held.
    pub fn died(&mut self, hand: HandId, held: Option<CallId>) {
        self.watched.retain(|watched| watched.hand.id != hand);
        if let Some(id) = held {
            self.fail(id, Failure::Died);
        }
    }

    /// There is no process and none can be started: fails what has not begun.
    pub fn nobody(&mut self) {
        let ids: Vec<CallId> = self.open_calls().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.fail(id, Failure::Nobody));
        self.effects.push_back(Effect::TakeBack);
    }

    /// Orders for the shell, oldest first.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to call [`Desk::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let oldest = self.open.front()?.as_ref()?.asked;
        Some(self.looked.map_or(oldest, |looked| looked.max(oldest)) + LOOK)
    }

    /// It is later now.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.room = Room::Free;
            self.effects.push_back(Effect::Look);
            self.looked = Some(now);
        }
    }

    /// Whether no call is open.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the calls of a user go to the slow queue.
    pub fn class(&self, user: UserId) -> Class {
        let slow = !self.paces.is_empty() && self.paces.contains_key(&user);
        if slow { Class::Slow } else { Class::Fast }
    }

    /// Panics if an invariant is broken.
    pub fn check(&self) {
        let open = self.open.iter().flatten();
        assert_eq!(open.clone().count(), self.count, "open calls are counted");
        for class in [Class::Fast, Class::Slow] {
            let handed = open.clone().filter(|o| o.class == class);
            let handed = handed.filter(|o| o.stand == Stand::HandedOver).count();
            assert_eq!(handed, self.handed[class as usize], "handed over calls are counted");
            assert!(handed <= self.options.window, "no more than the window is handed over");
        }
        assert!(!matches!(self.open.front(), Some(None)), "ended calls are forgotten");
    }

    fn slot(&mut self, id: CallId) -> Option<&mut Open> {
        let index = usize::try_from(id.0.checked_sub(self.first)?).ok()?;
        self.open.get_mut(index)?.as_mut()
    }

    fn open_calls(&self) -> impl Iterator<Item = (CallId, &Open)> {
        let first = self.first;
        let numbered = self.open.iter().enumerate();
        numbered.filter_map(move |(at, open)| Some((CallId(first + at as u64), open.as_ref()?)))
    }

    fn stand_back(&mut self, id: CallId) {
        if let Some(open) = self.slot(id)
            && open.stand == Stand::HandedOver
        {
            open.stand = Stand::Waiting;
            let class = open.class;
            self.handed[class as usize] -= 1;
        }
    }

    fn close(&mut self, id: CallId) -> Option<Open> {
        let index = usize::try_from(id.0.checked_sub(self.first)?).ok()?;
        let open = self.open.get_mut(index)?.take()?;
        self.count -= 1;
        if open.stand == Stand::HandedOver {
            self.handed[open.class as usize] -= 1;
        }
        while let Some(None) = self.open.front() {
            self.open.pop_front();
            self.first += 1;
        }
        Some(open)
    }

    fn fail(&mut self, id: CallId, failure: Failure) {
        if let Some(open) = self.close(id) {
            self.effects.push_back(Effect::Fail(id, open.client, failure));
        }
    }

    fn note_pace(&mut self, user: UserId, took: Duration) {
        if let Some(average) = self.paces.get_mut(&user) {
            *average = (*average * 3 + took) / 4;
            if *average < FAST {
                self.paces.remove(&user);
            }
        } else if took > SLOW {
            self.mark_slow(user, took);
        }
    }

    /// A user's calls have turned out to be slow: those that have not begun change their queue.
    fn mark_slow(&mut self, user: UserId, took: Duration) {
        if self.paces.contains_key(&user) || self.paces.len() >= SLOW_USERS_MAX {
            return;
        }
        self.paces.insert(user, took);
        let mut moved = VecDeque::new();
        let mut kept = VecDeque::new();
        for (id, frame) in std::mem::take(&mut self.waiting[Class::Fast as usize]) {
            match self.slot(id) {
                Some(open) if open.user == user => {
                    open.class = Class::Slow;
                    moved.push_back((id, frame));
                }
                Some(_) => kept.push_back((id, frame)),
                None => {}
            }
        }
        self.waiting[Class::Fast as usize] = kept;
        self.waiting[Class::Slow as usize].append(&mut moved);
        let lies = self.open_calls().any(|(_, open)| {
            open.user == user && open.class == Class::Fast && open.stand == Stand::HandedOver
        });
        if lies {
            self.effects.push_back(Effect::TakeBack);
        }
    }

    fn judge_running(&mut self, now: Instant) {
        for Watched { hand: Hand { id: hand, holds, .. }, since } in self.watched.clone() {
            let ran = now.saturating_duration_since(since);
            if holds == Holds::Nothing || ran < SLOW {
                continue;
            }
            if let Holds::Ours(id) = holds
                && let Some(user) = self.slot(id).map(|open| open.user)
            {
                self.mark_slow(user, ran);
            }
            if self.options.timeout.is_some_and(|timeout| ran > timeout) {
                if let Holds::Ours(id) = holds {
                    self.fail(id, Failure::Ran);
                }
                self.watched.retain(|watched| watched.hand.id != hand);
                self.effects.push_back(Effect::Kill(hand));
            }
        }
    }

    fn judge_waiting(&mut self, now: Instant, hands: &[Hand]) {
        let held: Vec<CallId> = self.watched.iter().filter_map(|w| w.hand.holds.ours()).collect();
        let (mut late, mut crowded) = (Vec::new(), [false; 2]);
        let (mut lying, mut unheard) = ([false; 2], [false; 2]);
        for (id, open) in self.open_calls().filter(|(id, _)| !held.contains(id)) {
            let age = now.saturating_duration_since(open.asked);
            let lies = open.stand == Stand::HandedOver;
            crowded[open.class as usize] |= age > CROWDED;
            unheard[open.class as usize] |= lies && age > CROWDED;
            if self.options.timeout.is_some_and(|timeout| age > timeout) {
                late.push(id);
                lying[open.class as usize] |= lies;
            }
        }
        let idle = |class: Class| {
            let takes = |h: &Hand| class == Class::Fast || h.takes == Takes::Both;
            hands.iter().any(|hand| hand.holds == Holds::Nothing && takes(hand))
        };
        let more = [Class::Fast, Class::Slow].into_iter().any(|c| crowded[c as usize] && !idle(c));
        let recently = |at: Instant| now.saturating_duration_since(at) < CROWDED;
        if more && !self.asked_for_more.is_some_and(recently) {
            self.asked_for_more = Some(now);
            self.effects.push_back(Effect::More);
        }
        late.into_iter().for_each(|id| self.fail(id, Failure::Waited));
        let wakes = !self.woken.is_some_and(recently) && self.sleeper(now, LOOK, unheard).is_some();
        if wakes || lying != [false; 2] {
            self.woken = Some(now);
            self.effects.push_back(Effect::TakeBack);
        }
        // Who has begun nothing while calls lay in front of it for all their time never will.
        let long = self.options.timeout.unwrap_or_default() / 2;
        while let Some(hand) = self.sleeper(now, long, lying) {
            self.watched.retain(|watched| watched.hand.id != hand);
            self.effects.push_back(Effect::Kill(hand));
        }
    }

    /// A process that has begun nothing for so long, although calls of one of these classes lie in
    /// front of it. The kernel may have woken one that cannot run, while others sleep.
    fn sleeper(&self, now: Instant, long: Duration, classes: [bool; 2]) -> Option<HandId> {
        let asleep = |watched: &&Watched| {
            let classes = [Class::Fast, Class::Slow].into_iter().filter(|c| classes[*c as usize]);
            classes.into_iter().any(|class| watched.is_asleep(class, now, long))
        };
        self.watched.iter().find(asleep).map(|watched| watched.hand.id)
    }
}

impl Holds {
    fn ours(self) -> Option<CallId> {
        match self {
            Holds::Ours(id) => Some(id),
            Holds::Nothing | Holds::Other(_) => None,
        }
    }
}
