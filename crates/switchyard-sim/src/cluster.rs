//! A world of one cluster: nodes that die, hang, lie and take over, clients that write, and the
//! question in the end whether what they were told is true.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use switchyard_core::client::replay::Keeping;
use switchyard_core::client::session::{Loyalty, Reprepare};
use switchyard_core::pool::{
    Failing, Limits, Minimum, Order, Reopen, Reserve, Retry, Standby, Want,
};
use switchyard_core::server::duty::{Reset, Tenure};
use switchyard_core::switchover::options::{
    DrainAction, Fencing, Newcomers, Options, Plan, PromoteBy, Timings,
};
use switchyard_core::switchover::planned::Command;
use switchyard_core::switchover::topology::Endpoint;
use switchyard_core::switchover::view::View;

use crate::env::{Env, Event, Trace};
use crate::hooks::Hooks;
use crate::net::Owner;
use crate::node::{Health, Node, Position};
use crate::pooler::{Entry, Pooler, Rules, Settings};
use crate::random::{Random, Seed};
use crate::watch::Watch;
use crate::writer::{Fate, Manner, Trade, Writer};

/// What can happen to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A session of this node breaks.
    KillOne(usize),
    /// The node stops.
    Stop(usize),
    /// It starts as what it was, unless another took over: then as its standby.
    Start(usize),
    /// It starts as what it was, whatever happened since.
    Return(usize),
    /// It hangs.
    Silence(usize),
    /// It goes on.
    Voice(usize),
    /// The writer is stopped for good, and this node takes over with all it has committed.
    Failover(usize),
    /// The same, but the writer becomes a standby without losing a session.
    Swap(usize),
    /// This node takes over, and nobody tells the writer.
    Split(usize),
    /// It says that it writes.
    Lie(usize),
    /// It says what is true.
    Confess(usize),
    /// An operator's command.
    Hold,
    Release,
    Switchover,
    /// The world is put in order: one writer, and standbys.
    Order,
}

/// A world.
#[derive(Debug)]
pub struct Town {
    env: Env,
    pooler: Pooler,
    watch: Watch,
    nodes: Vec<Node>,
    /// The node whose commits count: the last one that was promoted.
    leader: usize,
    writers: Vec<Writer>,
    faults: Vec<Fault>,
    wait: Duration,
    minted: u64,
    /// Writes that were committed where they count, and elsewhere.
    committed: BTreeSet<u64>,
    astray: BTreeSet<u64>,
    events: u64,
}

/// Longest time until everybody was served.
const PATIENCE: Duration = Duration::from_secs(300);
const EVENTS_MAX: u64 = 3_000_000;
/// When a world is put in order.
const IN_ORDER: Duration = Duration::from_secs(8);
/// How long a world goes on when everybody is gone.
const REST: Duration = Duration::from_secs(8);

fn options(random: &mut Random) -> Options {
    Options {
        database: "d".into(),
        hosts: vec![Endpoint { host: "n".into(), port: 1 }],
        port: 5432,
        topology_query: "q".into(),
        fencing: *random.pick(&[Fencing::Strict, Fencing::Strict, Fencing::Timeline]),
        newcomers: Newcomers::Refuse,
        lag_max: None,
        plan: Plan {
            promote: PromoteBy::Sql,
            drain_timeout: Duration::from_millis(*random.pick(&[100, 10_000])),
            drain_action: *random.pick(&[DrainAction::Abort, DrainAction::Kill]),
            patience: Duration::from_secs(20),
        },
        timings: Timings::default(),
    }
}

fn limits(random: &mut Random) -> Limits {
    Limits {
        size: random.between(1, 4),
        reserve: Reserve { size: 0, after: Duration::ZERO },
        minimum: Minimum::Always(random.below(2)),
        lifetime: Duration::from_secs(3600),
        idle_timeout: Duration::from_secs(600),
        check_delay: *random.pick(&[None, Some(Duration::from_secs(30))]),
        retry: Retry::Fixed(Duration::from_millis(10)),
        order: Order::Lifo,
        failing: Failing::Wait,
        standby: *random.pick(&[Standby::Auto, Standby::Fixed(0)]),
        reopen: *random.pick(&[Reopen::Always, Reopen::OnRequest]),
        fairness: Duration::from_millis(1),
    }
}

impl Town {
    /// The world of a seed, with pools in session or in transaction mode.
    pub fn new(seed: Seed<'_>, trace: Option<Trace>, tenure: Tenure) -> Self {
        let mut env = Env::new(seed, trace);
        env.net.latency = *env.random.pick(&[50, 500, 3000]);
        let random = &mut env.random;
        let wait = *random.pick(&[Duration::ZERO, Duration::from_secs(5)]);
        let settings = Settings {
            reset: Reset::Sessions,
            connect_timeout: Duration::from_secs(3),
            query_wait_timeout: wait,
            query_wait_notify: Duration::ZERO,
            cancel_wait_timeout: Duration::from_secs(2),
            reprepare: Reprepare::Off,
            outstanding_max: 8192,
            hooks: Hooks::Off,
        };
        let workers = random.between(1, 3);
        let mut pooler = Pooler::new(settings, workers);
        pooler.entry = Some(Entry { view: View::default(), signs: Default::default() });
        for index in 0..random.between(1, 2) {
            let stays = random.below(4) > 0;
            let limits = limits(random);
            let mut rules = Rules {
                database: "d".into(),
                tenure,
                prepared: random.between(1, 100),
                loyalty: if stays { Loyalty::Stays } else { Loyalty::Leaves },
                keeping: if random.below(4) > 0 { Keeping::On } else { Keeping::Off },
                limits: limits.clone(),
            };
            if tenure == Tenure::Session {
                (rules.prepared, rules.keeping) = (0, Keeping::Off);
                rules.loyalty = if stays { Loyalty::Returns } else { Loyalty::Leaves };
            }
            pooler.add_pool(&format!("u{index}"), limits, rules);
        }
        let count = random.between(2, 3);
        let position = |index| if index == 0 { Position::Writer } else { Position::Standby };
        let nodes = (0..count).map(|index| Node::new(index, position(index))).collect();
        let options = options(random);
        let watch = Watch::new(&env, options);
        let (faults, writers) = (Vec::new(), Vec::new());
        let (committed, astray) = (BTreeSet::new(), BTreeSet::new());
        let (leader, minted, events) = (0, 0, 0);
        let mut world = Town {
            env,
            pooler,
            watch,
            nodes,
            leader,
            writers,
            faults,
            wait,
            minted,
            committed,
            astray,
            events,
        };
        world.pooler.start(&mut world.env);
        world.watch.obey(&mut world.env, &mut world.pooler);
        world.populate();
        world.plan();
        world
    }

    fn populate(&mut self) {
        for index in 0..self.env.random.between(1, 8) {
            let random = &mut self.env.random;
            let pool = random.below(self.pooler.pools.len());
            let worker = random.below(self.pooler.workers());
            let (trade, want) = match random.below(5) {
                0 => (Trade::Reads, *random.pick(&[Want::Reader, Want::Any])),
                _ => (Trade::Writes, Want::Writer),
            };
            let end = self.env.wire(Owner::Actor(index), Owner::Actor(index));
            let session = self.pooler.pools[pool].rules.tenure == Tenure::Session;
            let trade = (trade, if session { Manner::Restful } else { Manner::Hasty });
            let writer = Writer::new(&mut self.env, index, end, trade, &mut self.minted);
            self.pooler.adopt(&mut self.env, worker, (pool, want), end.peer(), &[]);
            self.writers.push(writer);
        }
    }

    fn plan(&mut self) {
        let nodes = self.nodes.len();
        let random = &mut self.env.random;
        let mut plan: Vec<(Duration, Fault)> = Vec::new();
        for _ in 0..random.between(1, 6) {
            let (node, at) = (random.below(nodes), random.millis(1, 5000));
            let end = at + random.millis(1, 2000);
            match random.below(14) {
                0..=1 => plan.push((at, Fault::KillOne(node))),
                2 => plan.extend([(at, Fault::Stop(node)), (end, Fault::Start(node))]),
                3 => plan.extend([(at, Fault::Stop(node)), (end, Fault::Return(node))]),
                4 => plan.extend([(at, Fault::Silence(node)), (end, Fault::Voice(node))]),
                5 => plan.push((at, Fault::Failover(node))),
                // The old writer comes back as what it was, and the new one is lost.
                6 => plan.extend([
                    (at, Fault::Failover(node)),
                    (end, Fault::Return(random.below(nodes))),
                    (end + Duration::from_millis(300), Fault::Stop(node)),
                    (end + Duration::from_millis(900), Fault::Start(node)),
                ]),
                7..=8 => plan.push((at, Fault::Swap(node))),
                9 => plan.push((at, Fault::Split(node))),
                10 => plan.extend([(at, Fault::Lie(node)), (end, Fault::Confess(node))]),
                11 => plan.extend([(at, Fault::Hold), (end, Fault::Release)]),
                12 => plan.push((at, Fault::Switchover)),
                _ => {
                    let times = (0..5).map(|n| at + Duration::from_millis(200 * n));
                    plan.extend(times.enumerate().map(|(n, at)| {
                        (at, if n % 2 == 0 { Fault::Stop(node) } else { Fault::Start(node) })
                    }));
                }
            }
        }
        plan.push((IN_ORDER, Fault::Release));
        plan.push((IN_ORDER, Fault::Order));
        for (at, fault) in plan {
            self.env.after(at, Event::Fault(self.faults.len()));
            self.faults.push(fault);
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
            self.account();
            if self.env.checks(self.events) {
                self.pooler.check();
            }
            let done = self.writers.iter().all(|writer| writer.ending.is_some());
            let in_order = self.env.age() > IN_ORDER;
            if done && in_order && rest.is_none() {
                rest = Some(self.env.now + REST);
            }
            if rest.is_some_and(|rest| self.env.now > rest) {
                break;
            }
            if self.env.now > deadline || self.events > EVENTS_MAX {
                self.complain();
            }
        }
        self.check_fates();
        assert_eq!(self.watch.unanswered(), 0, "every command is answered");
        let epoch = self.pooler.view().map_or(0, |view| view.epoch);
        let (writes, astray, events) = (self.committed.len(), self.astray.len(), self.events);
        let moved = self.pooler.moved;
        format!("{events} events, {writes} writes, {astray} astray, {moved} moved, epoch {epoch}")
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
                    Some(Owner::Session(node, id)) => self.nodes[node].heard(env, id, end),
                    Some(owner) => self.pooler.wire(env, end, owner),
                    None => {}
                }
            }
            Event::Inbox(w) => self.pooler.inbox(env, w),
            Event::Tick(w) => self.pooler.tick(env, w),
            Event::Client(index) => self.go_on(index, true),
            Event::Session(node, id) => self.nodes[node].wake(env, id),
            Event::Fault(index) => self.fail(self.faults[index]),
            Event::Ask(id) => {
                self.watch.arrived(env, id, &self.nodes);
                for node in std::mem::take(&mut self.watch.promotions) {
                    self.promote(node);
                }
            }
            Event::Answer(id) => self.watch.heard(env, &mut self.pooler, id),
            Event::Sign => self.watch.signs(env, &mut self.pooler),
            Event::Watch => self.watch.wake(env, &mut self.pooler),
            Event::Replicate(node) => self.replicate(node),
            Event::Cancel(..) | Event::CancelClosed(_) | Event::Verdict(..) => {}
        }
    }

    fn go_on(&mut self, index: usize, timer: bool) {
        let writer = &mut self.writers[index];
        let since = writer.waits_since();
        writer.go_on(&mut self.env, timer);
        if let (Some(since), Some("query_wait_timeout")) = (since, writer.ending.as_deref()) {
            let waited = self.env.now - since;
            assert!(waited >= self.wait, "writer {index} was given up after {waited:?}");
        }
    }

    /// What was committed, and where.
    fn account(&mut self) {
        let leader = self.leader;
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let fresh = std::mem::take(&mut node.disk.fresh);
            if fresh.is_empty() {
                continue;
            }
            for id in fresh {
                let known = self.committed.contains(&id) || self.astray.contains(&id);
                assert!(!known, "write {id} is committed twice");
                if index == leader { &mut self.committed } else { &mut self.astray }.insert(id);
            }
            if index == leader {
                let pause = self.env.random.micros(10, 20_000);
                self.env.after(pause, Event::Replicate(index));
            }
        }
    }

    /// What the leader has committed reaches its standbys.
    fn replicate(&mut self, from: usize) {
        if from != self.leader || self.nodes[from].health != Health::Up {
            return;
        }
        let (log, timeline) = (self.nodes[from].disk.log.clone(), self.nodes[from].disk.timeline);
        for node in self.nodes.iter_mut() {
            let follows = node.disk.position == Position::Standby && node.health == Health::Up;
            if follows && node.disk.timeline == timeline {
                node.disk.log.clone_from(&log);
            }
        }
    }

    fn highest(&self) -> u32 {
        self.nodes.iter().map(|node| node.disk.timeline).max().unwrap_or(0)
    }

    /// A node becomes the writer with what it has.
    fn promote(&mut self, node: usize) {
        let timeline = self.highest() + 1;
        self.env.note(|| format!("node {node} is promoted to timeline {timeline}"));
        self.nodes[node].promote(&mut self.env, timeline);
        self.leader = node;
    }

    /// A node is a standby of the leader from here on.
    fn follow(&mut self, node: usize) {
        let (log, timeline) = {
            let leader = &self.nodes[self.leader].disk;
            (leader.log.clone(), leader.timeline)
        };
        let disk = &mut self.nodes[node].disk;
        disk.position = Position::Standby;
        disk.timeline = timeline;
        disk.log = log;
    }

    fn set_health(&mut self, node: usize, health: Health) {
        let before = self.nodes[node].health;
        self.nodes[node].set_health(&mut self.env, health);
        if health == Health::Down && before != Health::Down {
            self.watch.lost(&mut self.env, node);
        }
        if health == Health::Up {
            self.watch.speaks(&mut self.env);
        }
    }

    /// This node has all that was committed, and takes over.
    fn take_over(&mut self, node: usize) {
        let log = self.nodes[self.leader].disk.log.clone();
        self.nodes[node].disk.log = log;
        self.promote(node);
    }

    fn fail(&mut self, fault: Fault) {
        self.env.note(|| format!("{fault:?}"));
        match fault {
            Fault::KillOne(node) => self.nodes[node].kill_one(&mut self.env),
            Fault::Stop(node) => self.set_health(node, Health::Down),
            Fault::Start(node) => {
                if self.nodes[node].health == Health::Down && node != self.leader {
                    self.follow(node);
                }
                self.set_health(node, Health::Up);
            }
            Fault::Return(node) | Fault::Voice(node) => self.set_health(node, Health::Up),
            Fault::Silence(node) => {
                if self.nodes[node].health == Health::Up {
                    self.set_health(node, Health::Silent);
                }
            }
            Fault::Failover(node) => {
                if node != self.leader && self.can_take_over(node) {
                    self.set_health(self.leader, Health::Down);
                    self.take_over(node);
                }
            }
            Fault::Swap(node) => {
                let healthy = self.nodes[self.leader].health == Health::Up;
                if node != self.leader && healthy && self.can_take_over(node) {
                    let old = self.leader;
                    self.nodes[old].demote(&mut self.env);
                    self.take_over(node);
                    self.nodes[old].disk.timeline = self.nodes[node].disk.timeline;
                }
            }
            Fault::Split(node) => {
                if node != self.leader && self.can_take_over(node) {
                    self.take_over(node);
                }
            }
            Fault::Lie(node) => self.watch.liars.push(node),
            Fault::Confess(node) => self.watch.liars.retain(|liar| *liar != node),
            Fault::Hold => self.watch.command(&mut self.env, Command::Hold),
            Fault::Release => self.watch.command(&mut self.env, Command::Release),
            Fault::Switchover => self.watch.command(&mut self.env, Command::Switchover(None)),
            Fault::Order => self.put_in_order(),
        }
    }

    fn can_take_over(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        node.health == Health::Up && node.disk.position == Position::Standby
    }

    /// One writer, and standbys that follow it.
    fn put_in_order(&mut self) {
        self.watch.liars.clear();
        for node in 0..self.nodes.len() {
            if node != self.leader {
                self.set_health(node, Health::Down);
                self.follow(node);
            }
            self.set_health(node, Health::Up);
        }
    }

    fn complain(&self) -> ! {
        for writer in self.writers.iter().filter(|writer| writer.ending.is_none()) {
            self.env.note(|| writer.text());
        }
        for line in self.pooler.clients() {
            self.env.note(|| line);
        }
        self.env.note(|| self.pooler.text(&self.env));
        self.env.note(|| format!("{:?}", self.watch.cluster.snapshot()));
        panic!("somebody was never served");
    }

    /// What clients were told is true.
    fn check_fates(&self) {
        let log: BTreeSet<u64> = self.nodes[self.leader].disk.log.iter().copied().collect();
        assert_eq!(log.len(), self.nodes[self.leader].disk.log.len(), "nothing is there twice");
        let fates: BTreeMap<u64, Fate> =
            self.writers.iter().flat_map(|writer| writer.fates.clone()).collect();
        for (id, fate) in fates {
            match fate {
                Fate::Acknowledged if self.astray.contains(&id) => {}
                Fate::Acknowledged => {
                    assert!(log.contains(&id), "write {id} was acknowledged and is lost");
                }
                Fate::Refused => {
                    let there = self.committed.contains(&id) || self.astray.contains(&id);
                    assert!(!there, "write {id} was refused and is there");
                }
                Fate::Unknown => {}
            }
        }
    }
}
