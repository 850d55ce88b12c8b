//! A world of plain pools: many clients, one node, faults; every answer is compared, and in the end
//! everybody was served and nothing is left over.

use std::time::Duration;

use switchyard_core::client::replay::Keeping;
use switchyard_core::client::session::{Loyalty, Reprepare};
use switchyard_core::pool::shares::Group;
use switchyard_core::pool::{
    Failing, Limits, Minimum, Order, Reopen, Reserve, Retry, Standby, Want,
};
use switchyard_core::server::duty::{Reset, Tenure};

use crate::actor::{Actor, Ending, Wish};
use crate::env::{Env, Event, Trace};
use crate::hooks::Hooks;
use crate::net::Owner;
use crate::node::{Doorman, Health, Node, Position};
use crate::pooler::{Pooler, Rules, Settings};
use crate::random::{Random, Seed};
use crate::script::{self, Habits};

/// What can go wrong, and how that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillOne,
    Restart,
    Start,
    Silence,
    Voice,
    Refuse(&'static str),
    Welcome,
    Pause(usize),
    Resume(usize),
    Reconnect(usize),
    Limits(usize),
}

/// Whether anything goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// Nothing: nobody may be sent away.
    Calm,
    /// Servers die, refuse and fall silent.
    Stormy,
}

/// The world.
#[derive(Debug)]
pub struct Crowd {
    env: Env,
    pooler: Pooler,
    node: Node,
    actors: Vec<Actor>,
    lives: Vec<usize>,
    faults: Vec<Fault>,
    weather: Weather,
    hooks: Hooks,
    wait: Duration,
    events: u64,
    /// Lives that ended by themselves, and others.
    ended: (usize, usize),
}

/// Longest time from the last fault until everybody was served.
const PATIENCE: Duration = Duration::from_secs(600);
/// Events after which a world does nothing but turn in circles.
const EVENTS_MAX: u64 = 3_000_000;

fn limits(random: &mut Random) -> Limits {
    let check = [None, Some(Duration::ZERO), Some(Duration::from_millis(100))];
    Limits {
        size: random.between(1, 4),
        reserve: Reserve {
            size: random.below(2),
            after: Duration::from_millis(random.below(3) as u64 * 300),
        },
        minimum: Minimum::Attended(random.below(3)),
        lifetime: *random.pick(&[Duration::from_secs(3600), Duration::from_millis(500)]),
        idle_timeout: *random.pick(&[Duration::ZERO, Duration::from_millis(300)]),
        check_delay: *random.pick(&check),
        retry: Retry::Fixed(*random.pick(&[Duration::from_millis(10), Duration::from_secs(1)])),
        order: *random.pick(&[Order::Lifo, Order::RoundRobin]),
        failing: *random.pick(&[Failing::Refuse, Failing::Wait]),
        standby: Standby::Fixed(0),
        reopen: Reopen::Always,
        fairness: Duration::from_millis(1),
    }
}

fn pooler(env: &mut Env, hooks: Hooks) -> Pooler {
    let random = &mut env.random;
    let settings = Settings {
        reset: *random.pick(&[Reset::Sessions, Reset::Sessions, Reset::Always]),
        connect_timeout: Duration::from_secs(3),
        query_wait_timeout: *random.pick(&[Duration::ZERO, Duration::from_secs(5)]),
        query_wait_notify: *random.pick(&[Duration::ZERO, Duration::from_millis(500)]),
        cancel_wait_timeout: Duration::from_secs(2),
        reprepare: *random.pick(&[Reprepare::Off, Reprepare::On]),
        outstanding_max: *random.pick(&[60, 8192]),
        hooks,
    };
    let mut pooler = Pooler::new(settings, random.between(1, 3));
    for index in 0..random.between(1, 3) {
        let tenures =
            [Tenure::Transaction, Tenure::Transaction, Tenure::Session, Tenure::Statement];
        let tenure = *random.pick(&tenures);
        let prepared = if tenure == Tenure::Session { 0 } else { random.between(1, 4) };
        let (loyalty, keeping) = (Loyalty::Leaves, Keeping::Off);
        let database = format!("d{}", index % 2);
        let limits = limits(random);
        let rules = Rules { database, tenure, prepared, loyalty, keeping, limits: limits.clone() };
        pooler.add_pool(&format!("u{index}"), limits, rules);
    }
    if random.one_in(3) {
        let limit = random.between(1, 4);
        pooler.set_shared_limit(Group::Database("d0".into()), limit);
    }
    pooler
}

impl Crowd {
    /// The world of a seed.
    pub fn new(seed: Seed<'_>, trace: Option<Trace>, hooks: Hooks) -> Self {
        let mut env = Env::new(seed, trace);
        env.net.latency = *env.random.pick(&[50, 500, 5000]);
        let wait;
        let pooler = {
            let pooler = pooler(&mut env, hooks);
            wait = pooler.query_wait_timeout();
            pooler
        };
        let actors = env.random.between(1, 12);
        let lives = (0..actors).map(|_| env.random.between(1, 3)).collect();
        let weather = *env.random.pick(&[Weather::Calm, Weather::Stormy]);
        let node = Node::new(0, Position::Writer);
        let mut world = Crowd {
            env,
            pooler,
            node,
            actors: Vec::new(),
            lives,
            faults: Vec::new(),
            weather,
            hooks,
            wait,
            events: 0,
            ended: (0, 0),
        };
        world.pooler.start(&mut world.env);
        (0..actors).for_each(|index| {
            let actor = world.born(index);
            world.actors.push(actor);
        });
        world.plan();
        world
    }

    /// A client begins a life.
    fn born(&mut self, index: usize) -> Actor {
        let random = &mut self.env.random;
        let pool = random.below(self.pooler.pools.len());
        let worker = random.below(self.pooler.workers());
        let habits = Habits {
            blocks: self.pooler.pools[pool].rules.tenure != Tenure::Statement,
            number: index,
            cancels: true,
            hooks: self.hooks,
        };
        let steps = random.between(1, 25);
        let life = script::life(random, habits, steps);
        let mut wanted = Vec::new();
        if random.one_in(2) {
            wanted.push(("application_name".to_owned(), format!("app{index}")));
        }
        if random.one_in(4) {
            wanted.push(("TimeZone".to_owned(), "cet".to_owned()));
        }
        let end = self.env.wire(Owner::Actor(index), Owner::Actor(index));
        let mut actor = Actor::new(&self.env, (index, pool), end, &wanted, (life, self.hooks));
        let place = (pool, Want::Writer);
        let ticket = self.pooler.adopt(&mut self.env, worker, place, end.peer(), &wanted);
        actor.ticket = Some(ticket);
        actor
    }

    /// What goes wrong, and when.
    fn plan(&mut self) {
        let random = &mut self.env.random;
        let pools = self.pooler.pools.len();
        let mut plan: Vec<(Duration, Fault)> = Vec::new();
        for _ in 0..random.below(4) {
            let (pool, at) = (random.below(pools), random.millis(1, 3000));
            match random.below(3) {
                0 => {
                    plan.push((at, Fault::Pause(pool)));
                    plan.push((at + random.millis(1, 1000), Fault::Resume(pool)));
                }
                1 => plan.push((at, Fault::Reconnect(pool))),
                _ => plan.push((at, Fault::Limits(pool))),
            }
        }
        if self.weather == Weather::Stormy {
            for _ in 0..random.between(1, 8) {
                let at = random.millis(1, 4000);
                let end = at + random.millis(1, 3000);
                match random.below(8) {
                    0..=3 => plan.push((at, Fault::KillOne)),
                    4 => plan.extend([(at, Fault::Restart), (end, Fault::Start)]),
                    5 => plan.extend([(at, Fault::Silence), (end, Fault::Voice)]),
                    _ => {
                        let code = *random.pick(&["28P01", "57P03", "53300"]);
                        plan.extend([(at, Fault::Refuse(code)), (end, Fault::Welcome)]);
                    }
                }
            }
        }
        for (at, fault) in plan {
            self.env.after(at, Event::Fault(self.faults.len()));
            self.faults.push(fault);
        }
    }

    fn fail(&mut self, fault: Fault) {
        self.env.note(|| format!("{fault:?}"));
        let env = &mut self.env;
        match fault {
            Fault::KillOne => self.node.kill_one(env),
            Fault::Restart => self.node.set_health(env, Health::Down),
            Fault::Silence if self.node.health == Health::Up => {
                self.node.set_health(env, Health::Silent);
            }
            Fault::Silence => {}
            Fault::Start | Fault::Voice => self.node.set_health(env, Health::Up),
            Fault::Refuse(code) => self.node.doorman = Doorman::Refuses(code),
            Fault::Welcome => self.node.doorman = Doorman::Welcomes,
            Fault::Pause(pool) => self.pooler.pause(env, pool),
            Fault::Resume(pool) => self.pooler.resume(env, pool),
            Fault::Reconnect(pool) => self.pooler.reconnect(env, pool),
            Fault::Limits(pool) => {
                let limits = limits(&mut env.random);
                self.pooler.set_limits(env, pool, limits);
            }
        }
    }

    /// Lets the world go on until everybody was served; answers what there is to say about it.
    pub fn run(mut self) -> String {
        let deadline = self.env.now + PATIENCE;
        let mut rest = None;
        while let Some((at, event)) = self.env.calendar.take() {
            self.env.now = self.env.now.max(at);
            self.events += 1;
            self.happen(event);
            if self.env.checks(self.events) {
                self.pooler.check();
            }
            let done = self.lives.iter().all(|lives| *lives == 0);
            if done && rest.is_none() {
                rest = Some(self.env.now + REST);
            }
            if rest.is_some_and(|rest| self.env.now > rest) {
                break;
            }
            if self.env.now > deadline || self.events > EVENTS_MAX {
                self.complain();
            }
        }
        self.check_rest();
        let ((left, sent), events) = (self.ended, self.events);
        format!("{:?}, {events} events, {left} clients left, {sent} sent away", self.weather)
    }

    fn happen(&mut self, event: Event) {
        let env = &mut self.env;
        match event {
            Event::Wire(end) => {
                if !env.arrive(end) {
                    return;
                }
                match env.net.owner(end) {
                    Some(Owner::Actor(index)) => self.go_on(index, false),
                    Some(Owner::Session(_, id)) => self.node.heard(env, id, end),
                    Some(owner) => self.pooler.wire(env, end, owner),
                    None => {}
                }
            }
            Event::Inbox(w) => self.pooler.inbox(env, w),
            Event::Tick(w) => self.pooler.tick(env, w),
            Event::Client(index) => self.go_on(index, true),
            Event::Session(_, id) => self.node.wake(env, id),
            Event::Fault(index) => self.fail(self.faults[index]),
            Event::Cancel(_, id, key) => {
                if self.node.health == Health::Up {
                    self.node.cancel(env, id);
                }
                if self.node.health != Health::Silent {
                    let pause = env.random.micros(10, 3000);
                    env.after(pause, Event::CancelClosed(key));
                }
            }
            Event::CancelClosed(key) => self.pooler.cancel_closed(env, key),
            Event::Verdict(w, key, id) => self.pooler.judged(env, w, key, id),
            Event::Watch | Event::Ask(_) | Event::Answer(_) | Event::Replicate(_) | Event::Sign => {
            }
        }
    }

    fn go_on(&mut self, index: usize, timer: bool) {
        let Some(actor) = self.actors.get_mut(index) else { return };
        if let Some(ending) = actor.ending.clone() {
            if timer && self.lives[index] > 0 {
                self.count(index, &ending);
                self.lives[index] -= 1;
                if self.lives[index] > 0 {
                    self.actors[index] = self.born(index);
                }
            }
            return;
        }
        let since = actor.waits_since();
        let wish = actor.go_on(&mut self.env, timer);
        if let (Wish::Cancel, Some(ticket)) = (wish, actor.ticket) {
            self.pooler.cancel(&mut self.env, ticket);
        }
        let actor = &self.actors[index];
        if let Some(ending) = &actor.ending {
            if let (Ending::Told(text), Some(since)) = (ending, since)
                && text == "query_wait_timeout"
            {
                let waited = self.env.now - since;
                assert!(waited >= self.wait, "actor {index} was given up after {waited:?}");
            }
            let pause = self.env.random.micros(10, 100_000);
            self.env.after(pause, Event::Client(index));
        }
    }

    fn count(&mut self, index: usize, ending: &Ending) {
        let timed_out = *ending == Ending::Told("query_wait_timeout".into());
        match ending {
            Ending::Left => self.ended.0 += 1,
            Ending::Told(_) | Ending::Closed => {
                self.ended.1 += 1;
                let calm = self.weather == Weather::Calm && !timed_out;
                assert!(!calm, "actor {index} was sent away for nothing: {ending:?}");
            }
        }
    }

    fn complain(&self) -> ! {
        for actor in self.actors.iter().filter(|actor| actor.ending.is_none()) {
            self.env.note(|| actor.text());
        }
        for line in self.pooler.clients() {
            self.env.note(|| line);
        }
        self.env.note(|| self.pooler.text(&self.env));
        panic!("somebody was never served");
    }

    fn check_rest(&self) {
        self.pooler.check_rest(&self.env);
        assert_eq!(self.node.unclean(), 0, "every session is as if it were fresh");
        for (index, cell) in self.pooler.pools.iter().enumerate() {
            let (there, known) =
                (self.node.sessions_of(&cell.user), self.pooler.connections(index));
            assert_eq!(there, known, "connections of pool {index} at the node and here");
        }
    }
}

/// How long a world goes on when everybody is gone.
const REST: Duration = Duration::from_secs(8);
