//! Limits over several pools against a naive account: no limit is ever exceeded, nobody waits while
//! a share is free or an idle server of another pool could make way, and whoever has waited for
//! longest is served first.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use switchyard_core::ids::{ServerId, Ticket, WorkerId};
use switchyard_core::pool::shares::{Group, Member, SharedLimits};
use switchyard_core::pool::{
    Checkin, Checkout, Effect, Failing, Limits, Minimum, Order, Pool, Reserve, Retry, Standby, Want,
};

const DATABASES: [&str; 2] = ["a", "b"];
const USERS: [&str; 2] = ["u", "v"];

#[derive(Clone, Debug)]
enum Step {
    Ask(usize),
    Leave(usize, usize),
    Open(usize, usize),
    Return(usize, usize),
    Break(usize, usize),
    Later(u64),
    Limit(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (pool, at) = (0..4usize, any::<usize>());
    let step = prop_oneof![
        8 => pool.clone().prop_map(Step::Ask),
        1 => (pool.clone(), at).prop_map(|(pool, at)| Step::Leave(pool, at)),
        6 => (pool.clone(), at).prop_map(|(pool, at)| Step::Open(pool, at)),
        6 => (pool.clone(), at).prop_map(|(pool, at)| Step::Return(pool, at)),
        1 => (pool, at).prop_map(|(pool, at)| Step::Break(pool, at)),
        3 => (1..200u64).prop_map(Step::Later),
        1 => (0..4usize, 0..5usize).prop_map(|(group, limit)| Step::Limit(group, limit)),
    ];
    prop::collection::vec(step, 0..120)
}

/// One pool and what its shell holds.
struct Holder {
    pool: Pool,
    waiting: Vec<(Ticket, Instant)>,
    opening: Vec<ServerId>,
    held: Vec<ServerId>,
    idle: Vec<(ServerId, Instant)>,
}

impl Holder {
    fn servers(&self) -> usize {
        self.opening.len() + self.held.len() + self.idle.len()
    }
}

struct World {
    shared: SharedLimits,
    holders: Vec<Holder>,
    limits: [usize; 4],
    now: Instant,
    tickets: u64,
}

fn group(index: usize) -> Group {
    match index {
        0 | 1 => Group::Database(DATABASES[index].into()),
        _ => Group::User(USERS[index - 2].into()),
    }
}

/// The groups of a pool: its database and its user.
fn groups(pool: usize) -> [usize; 2] {
    [pool / 2, 2 + pool % 2]
}

fn limits(size: usize) -> Limits {
    Limits {
        reopen: switchyard_core::pool::Reopen::Always,
        size,
        reserve: Reserve { size: 0, after: Duration::ZERO },
        minimum: Minimum::Attended(0),
        lifetime: Duration::from_secs(3600),
        idle_timeout: Duration::ZERO,
        check_delay: None,
        retry: Retry::Fixed(Duration::ZERO),
        order: Order::Lifo,
        failing: Failing::Wait,
        standby: Standby::Fixed(0),
        fairness: Duration::ZERO,
    }
}

impl World {
    fn new(size: usize, limits_of: [usize; 4]) -> Self {
        let shared = SharedLimits::new();
        let holder = |index: usize| {
            let share = shared.join(DATABASES[index / 2], USERS[index % 2]);
            Holder {
                pool: Pool::new(limits(size), 1).sharing(share),
                waiting: Vec::new(),
                opening: Vec::new(),
                held: Vec::new(),
                idle: Vec::new(),
            }
        };
        let holders = (0..4).map(holder).collect();
        let mut world = World { shared, holders, limits: [0; 4], now: Instant::now(), tickets: 0 };
        for (index, limit) in limits_of.into_iter().enumerate() {
            world.act(Step::Limit(index, limit));
        }
        world
    }

    fn holder_of(&self, member: Member) -> usize {
        let own = |holder: &Holder| holder.pool.share().is_some_and(|s| s.member() == member);
        self.holders.iter().position(own).expect("members are pools")
    }

    /// What the shell does with effects and hints, until there are none.
    fn settle(&mut self) {
        loop {
            let mut busy = false;
            for index in 0..self.holders.len() {
                while let Some(effect) = self.holders[index].pool.poll_effect() {
                    busy = true;
                    self.obey(index, effect);
                }
            }
            while let Some(member) = { self.shared.lock().poll_hint() } {
                busy = true;
                let index = self.holder_of(member);
                self.holders[index].pool.retry(self.now);
            }
            if !busy {
                return;
            }
        }
    }

    fn obey(&mut self, index: usize, effect: Effect) {
        let holder = &mut self.holders[index];
        match effect {
            Effect::Open(id, ..) => holder.opening.push(id),
            Effect::Give(id, ticket) => {
                holder.idle.retain(|(idle, _)| *idle != id);
                holder.held.push(id);
                holder.waiting.retain(|(waiting, _)| *waiting != ticket);
            }
            Effect::Close(id, reason) => {
                assert_eq!(reason, "evicted");
                let longest = holder.idle.iter().map(|(_, since)| *since).min();
                let at = holder.idle.iter().position(|(idle, _)| *idle == id);
                let (_, since) = holder.idle.remove(at.expect("only idle servers are evicted"));
                assert_eq!(Some(since), longest, "the one that was idle for longest goes");
            }
            Effect::Evict => {
                let member = holder.pool.share().expect("it shares").member();
                let victims = self.shared.lock().victims(member);
                for group in victims {
                    let owners = group.into_iter().map(|member| self.holder_of(member));
                    let idle =
                        owners.filter_map(|i| Some((self.holders[i].pool.longest_idle()?, i)));
                    if let Some((_, index)) = idle.min() {
                        self.holders[index].pool.evict();
                    }
                }
            }
            Effect::Check(..) | Effect::Fail(..) | Effect::Abort(..) | Effect::Reserve(_) => {
                unreachable!("nothing is checked, fails or is paused")
            }
            Effect::Welcome(_) => {}
        }
    }

    fn give_back(&mut self, index: usize, id: ServerId) {
        // The server counts until the pool has spoken.
        let rival = self.oldest_denied(index);
        let holder = &mut self.holders[index];
        holder.held.retain(|held| *held != id);
        let own = holder.waiting.first().copied();
        match holder.pool.checkin(self.now, id, WorkerId(0)) {
            Checkin::Give(ticket) => {
                assert_eq!(own.map(|(ticket, _)| ticket), Some(ticket), "first come, first served");
                let bound = Duration::from_millis(50);
                let since = own.expect("there is one").1;
                assert!(
                    rival.is_none_or(|rival| rival + bound >= since),
                    "nobody elsewhere has waited much longer for a share"
                );
                holder.waiting.remove(0);
                holder.held.push(id);
            }
            Checkin::Idle => {
                assert!(own.is_none(), "nobody waits here");
                holder.idle.push((id, self.now));
            }
            Checkin::Close(reason) => assert_eq!(reason, "evicted"),
            Checkin::Check => unreachable!("nothing is checked"),
        }
    }

    fn is_full(&self, group: usize) -> bool {
        self.limits[group] > 0 && self.used(group) >= self.limits[group]
    }

    /// Since when somebody waits for whom a server of this pool would be enough.
    fn oldest_denied(&self, index: usize) -> Option<Instant> {
        let own = groups(index);
        let helped = |other: &usize| {
            let blocking: Vec<usize> =
                groups(*other).into_iter().filter(|group| self.is_full(*group)).collect();
            !blocking.is_empty() && blocking.iter().all(|group| own.contains(group))
        };
        let others = (0..self.holders.len()).filter(|other| *other != index).filter(helped);
        others.filter_map(|other| self.hungry(other)).min()
    }

    /// Since when somebody waits in a pool without the prospect of a server.
    fn hungry(&self, index: usize) -> Option<Instant> {
        let holder = &self.holders[index];
        let missing = holder.waiting.len() > holder.opening.len();
        let room = holder.servers() < SIZE;
        holder.waiting.first().filter(|_| missing && room).map(|(_, since)| *since)
    }

    fn used(&self, group: usize) -> usize {
        let members = (0..self.holders.len()).filter(|index| groups(*index).contains(&group));
        members.map(|index| self.holders[index].servers()).sum()
    }

    fn act(&mut self, step: Step) {
        let pick = |list: &mut Vec<ServerId>, at: usize| {
            (!list.is_empty()).then(|| list.remove(at % list.len()))
        };
        match step {
            Step::Ask(index) => {
                self.tickets += 1;
                let ticket = Ticket { worker: WorkerId(0), client: self.tickets };
                let holder = &mut self.holders[index];
                match holder.pool.checkout(self.now, ticket, Want::Writer) {
                    Checkout::Granted(id) => {
                        holder.idle.retain(|(idle, _)| *idle != id);
                        holder.held.push(id);
                    }
                    Checkout::Wait => holder.waiting.push((ticket, self.now)),
                    Checkout::Refused(_) => unreachable!("clients wait"),
                }
            }
            Step::Leave(index, at) => {
                let holder = &mut self.holders[index];
                if !holder.waiting.is_empty() {
                    let (ticket, _) = holder.waiting.remove(at % holder.waiting.len());
                    holder.pool.leave(self.now, ticket);
                }
            }
            Step::Open(index, at) => {
                if let Some(id) = pick(&mut self.holders[index].opening, at) {
                    self.holders[index].pool.opened(self.now, id);
                    self.holders[index].held.push(id);
                    self.give_back(index, id);
                }
            }
            Step::Return(index, at) => {
                let held = &self.holders[index].held;
                if !held.is_empty() {
                    self.give_back(index, held[at % held.len()]);
                }
            }
            Step::Break(index, at) => {
                if let Some(id) = pick(&mut self.holders[index].held, at) {
                    self.holders[index].pool.closed(self.now, id);
                }
            }
            Step::Later(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                self.holders.iter_mut().for_each(|holder| holder.pool.tick(self.now, 1));
            }
            Step::Limit(index, limit) => {
                self.limits[index] = limit;
                self.shared.lock().set_limit(group(index), limit);
                // Idle servers make way with the next maintenance pass.
                self.holders.iter_mut().for_each(|holder| holder.pool.tick(self.now, 1));
            }
        }
        self.settle();
    }

    fn check(&self, before: &[usize], ticked: bool) {
        self.shared.lock().check();
        for holder in &self.holders {
            holder.pool.check();
            assert_eq!(holder.pool.len(), holder.servers(), "every server is known");
        }
        for (group, before) in before.iter().enumerate() {
            let (used, limit) = (self.used(group), self.limits[group]);
            // A limit that was lowered is not exceeded any further.
            assert!(limit == 0 || used <= limit.max(*before), "a limit holds");
        }
        for index in 0..self.holders.len() {
            if self.hungry(index).is_none() {
                continue;
            }
            let full: Vec<usize> =
                groups(index).into_iter().filter(|group| self.is_full(*group)).collect();
            assert!(!full.is_empty(), "nobody waits while there is a share: {index}");
            // One full limit is enough to wait, if nobody there has a server to spare.
            let spare = |group: &usize| {
                let members = (0..self.holders.len()).filter(|i| groups(*i).contains(group));
                members.clone().any(|other| other != index && !self.holders[other].idle.is_empty())
            };
            // Where two limits are set, the next maintenance pass sees to what is left.
            let set = groups(index).into_iter().filter(|group| self.limits[*group] > 0).count();
            if set == 2 && !ticked {
                continue;
            }
            let over = full.iter().any(|group| self.used(*group) > self.limits[*group]);
            assert!(over || !full.iter().all(spare), "idle servers make way: {index}");
        }
    }
}

const SIZE: usize = 3;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn limits_hold_and_who_waited_longest_is_first(
        steps in steps(),
        limits in prop::array::uniform4(0..5usize),
    ) {
        let mut world = World::new(SIZE, limits);
        for step in steps {
            let before: Vec<usize> =
                (0..4).map(|group| world.used(group)).collect();
            let ticked = matches!(step, Step::Later(_) | Step::Limit(..));
            world.act(step);
            world.check(&before, ticked);
        }
    }
}
