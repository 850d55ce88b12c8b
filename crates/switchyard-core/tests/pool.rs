//! The pool against a naive account of who holds what: no server is given twice, none is lost,
//! nobody waits while a server is free, and a lane never exceeds its size.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use switchyard_core::ids::{LaneId, ServerId, Ticket, WorkerId};
use switchyard_core::pool::{
    Checkin, Checkout, Effect, Failing, HostOrder, LaneRole, Limits, Minimum, OpenFailure,
    OpenFailureKind, Order, Pool, Reopen, Reserve, Retry, Standby, Want, roles,
};
use switchyard_core::switchover::view::{Lag, NodeId, NodeState, NodeView, Role, View};

const WORKERS: u16 = 2;
const RESERVE: usize = 1;
const PAUSE: Duration = Duration::from_secs(1);

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Ask(u16),
    Leave(usize),
    Open(usize),
    FailOpen(usize),
    FailConnect(usize),
    Return(usize),
    Break(usize),
    Claim(usize),
    Later(u64),
    Pause,
    Resume,
    Recycle,
    Promote(u32),
    LoseWriter,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..WORKERS).prop_map(Step::Ask),
        2 => any::<usize>().prop_map(Step::Leave),
        6 => any::<usize>().prop_map(Step::Open),
        1 => any::<usize>().prop_map(Step::FailOpen),
        1 => any::<usize>().prop_map(Step::FailConnect),
        8 => any::<usize>().prop_map(Step::Return),
        1 => any::<usize>().prop_map(Step::Break),
        1 => any::<usize>().prop_map(Step::Claim),
        2 => (0..5000u64).prop_map(Step::Later),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => Just(Step::Recycle),
        1 => (0..3u32).prop_map(Step::Promote),
        1 => Just(Step::LoseWriter),
    ];
    prop::collection::vec(step, 0..120)
}

/// The naive account.
struct Account {
    pool: Pool,
    now: Instant,
    tickets: u64,
    waiting: Vec<Ticket>,
    opening: Vec<ServerId>,
    held: Vec<ServerId>,
    parked: HashSet<ServerId>,
    hosts: usize,
    /// Where each permit leads, and since when.
    led: HashMap<ServerId, usize>,
    /// Until when each host is to be passed over.
    failing: HashMap<usize, Instant>,
}

impl Account {
    fn take(&mut self, id: ServerId) {
        assert!(self.parked.remove(&id), "a server is given out of the parked ones");
        assert!(!self.held.contains(&id), "a server is given once");
        self.held.push(id);
    }

    fn served(&mut self, ticket: Ticket) {
        let found = self.waiting.iter().position(|waiting| *waiting == ticket);
        self.waiting.remove(found.expect("only waiters are served"));
    }

    fn drain(&mut self) {
        while let Some(effect) = self.pool.poll_effect() {
            match effect {
                Effect::Open(id, ..) => {
                    self.opening.push(id);
                    self.lead(id);
                }
                Effect::Give(id, ticket) => {
                    self.take(id);
                    self.served(ticket);
                }
                Effect::Check(id, _) => self.take(id),
                Effect::Close(id, _) => {
                    assert!(self.parked.remove(&id), "only parked servers are closed by order");
                }
                Effect::Fail(ticket, _) => self.served(ticket),
                Effect::Abort(id, ..) => {
                    let known = self.opening.len() + self.held.len();
                    self.opening.retain(|opening| *opening != id);
                    self.held.retain(|held| *held != id);
                    assert_eq!(known, self.opening.len() + self.held.len() + 1, "one is given up");
                }
                Effect::Reserve(ticket) => assert!(self.waiting.contains(&ticket)),
                Effect::Evict => unreachable!("nothing is shared"),
                Effect::Welcome(_) => {}
            }
        }
    }

    fn lead(&mut self, id: ServerId) {
        let host = self.pool.host_of(id);
        let failing = |host: &usize| self.failing.get(host).is_some_and(|until| self.now < *until);
        let all = (0..self.hosts).all(|host| failing(&host));
        assert!(all || !failing(&host), "a failing host is passed over");
        self.led.insert(id, host);
    }

    fn fail(&mut self, at: usize, kind: OpenFailureKind) {
        let id = self.opening.remove(at % self.opening.len());
        if let Some(host) = self.led.remove(&id) {
            // It counts from the moment at which it is known.
            self.failing.insert(host, self.now + PAUSE);
        }
        let failure = OpenFailure { kind, ..OpenFailure::connect("no") };
        self.pool.open_failed(self.now, id, failure);
    }

    fn give_back(&mut self, id: ServerId) {
        match self.pool.checkin(self.now, id, WorkerId(0)) {
            Checkin::Give(ticket) => {
                self.held.push(id);
                self.served(ticket);
            }
            Checkin::Idle => assert!(self.parked.insert(id), "a server is parked once"),
            Checkin::Check => self.held.push(id),
            Checkin::Close(_) => {}
        }
    }

    fn act(&mut self, step: Step) {
        match step {
            Step::Ask(worker) => {
                self.tickets += 1;
                let ticket = Ticket { worker: WorkerId(worker), client: self.tickets };
                match self.pool.checkout(self.now, ticket, Want::Writer) {
                    Checkout::Granted(id) => self.take(id),
                    Checkout::Wait => self.waiting.push(ticket),
                    Checkout::Refused(_) => {}
                }
            }
            Step::Leave(at) if !self.waiting.is_empty() => {
                let ticket = self.waiting.remove(at % self.waiting.len());
                self.pool.leave(self.now, ticket);
            }
            Step::Open(at) if !self.opening.is_empty() => {
                let id = self.opening.remove(at % self.opening.len());
                if let Some(host) = self.led.remove(&id) {
                    self.failing.remove(&host);
                }
                self.pool.opened(self.now, id);
                self.drain();
                self.give_back(id);
            }
            Step::FailOpen(at) if !self.opening.is_empty() => {
                self.fail(at, OpenFailureKind::Login);
            }
            Step::FailConnect(at) if !self.opening.is_empty() => {
                self.fail(at, OpenFailureKind::Connect);
            }
            Step::Return(at) if !self.held.is_empty() => {
                let id = self.held.remove(at % self.held.len());
                self.give_back(id);
            }
            Step::Break(at) if !self.held.is_empty() => {
                let id = self.held.remove(at % self.held.len());
                self.pool.closed(self.now, id);
            }
            Step::Claim(at) if !self.parked.is_empty() => {
                let mut parked: Vec<ServerId> = self.parked.iter().copied().collect();
                parked.sort_unstable();
                let id = parked[at % parked.len()];
                assert!(self.pool.claim(id), "a parked server can be claimed");
                self.take(id);
            }
            Step::Later(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                self.pool.tick(self.now, 1);
            }
            Step::Pause => self.pool.pause(self.now),
            Step::Resume => self.pool.resume(self.now),
            Step::Recycle => {
                self.failing.clear();
                self.pool.recycle(self.now, "test");
            }
            Step::Promote(writer) => self.view(Some(writer)),
            Step::LoseWriter => self.view(None),
            Step::Leave(_)
            | Step::Open(_)
            | Step::FailOpen(_)
            | Step::FailConnect(_)
            | Step::Return(_)
            | Step::Claim(_)
            | Step::Break(_) => {}
        }
        self.drain();
    }

    fn view(&mut self, writer: Option<u32>) {
        let role = |id| if Some(id) == writer { LaneRole::Writer } else { LaneRole::Reader };
        let roles: Vec<_> = (0..3).map(|id| (LaneId(id), role(id))).collect();
        self.pool.set_view(self.now, &roles);
    }

    fn check(&self, size: usize) {
        self.pool.check();
        let counts = self.pool.counts(self.now, None);
        assert_eq!(counts.waiting, self.waiting.len(), "nobody is lost");
        assert_eq!(counts.idle + counts.used, self.parked.len(), "idle servers are parked");
        assert_eq!(counts.opening, self.opening.len(), "a permit is used once");
        assert_eq!(counts.busy + counts.testing, self.held.len(), "lent servers are held");
        for lane in 0..3 {
            let counts = self.pool.counts(self.now, Some(LaneId(lane)));
            let all = counts.busy + counts.idle + counts.used + counts.testing + counts.opening;
            assert!(all <= size + RESERVE, "a lane keeps to its size");
        }
    }
}

fn limits(size: usize, failing: Failing) -> Limits {
    Limits {
        size,
        reserve: Reserve { size: RESERVE, after: Duration::from_secs(2) },
        minimum: Minimum::Attended(1),
        lifetime: Duration::from_secs(20),
        idle_timeout: Duration::from_secs(10),
        check_delay: Some(Duration::from_secs(5)),
        retry: Retry::Fixed(PAUSE),
        order: Order::Lifo,
        failing,
        standby: Standby::Auto,
        reopen: Reopen::Always,
        fairness: Duration::from_millis(1),
    }
}

fn account(pool: Pool) -> Account {
    Account {
        pool,
        now: Instant::now(),
        tickets: 0,
        waiting: Vec::new(),
        opening: Vec::new(),
        held: Vec::new(),
        parked: HashSet::new(),
        hosts: 1,
        led: HashMap::new(),
        failing: HashMap::new(),
    }
}

proptest! {
    #[test]
    fn a_plain_pool_accounts_for_everybody(
        steps in steps(),
        size in 1usize..4,
        hosts in 1usize..4,
        stays in any::<bool>(),
    ) {
        let mut pool = Pool::new(limits(size, Failing::Refuse), WORKERS.into());
        pool.set_hosts(hosts, if stays { HostOrder::Stay } else { HostOrder::RoundRobin });
        let mut account = account(pool);
        account.hosts = hosts;
        for step in steps {
            if !matches!(step, Step::Promote(_) | Step::LoseWriter) {
                account.act(step);
                account.check(size);
            }
        }
    }

    #[test]
    fn a_cluster_s_pool_accounts_for_everybody(steps in steps(), size in 1usize..4) {
        let pool = Pool::for_cluster(limits(size, Failing::Wait), WORKERS.into());
        let mut account = account(pool);
        for step in steps {
            account.act(step);
            account.check(size);
        }
    }
}

/// Permits for a lane, carried out at once: the servers are logged in and idle.
fn open_all(pool: &mut Pool, now: Instant, lane: LaneId) -> usize {
    open_ids(pool, now, lane).len()
}

fn open_ids(pool: &mut Pool, now: Instant, lane: LaneId) -> Vec<ServerId> {
    let mut opened = Vec::new();
    while let Some(effect) = pool.poll_effect() {
        if let Effect::Open(id, at, worker) = effect
            && at == lane
        {
            opened.push((id, worker));
        }
    }
    for (id, worker) in &opened {
        pool.opened(now, *id);
        pool.checkin(now, *id, *worker);
    }
    opened.into_iter().map(|(id, _)| id).collect()
}

#[test]
fn standbys_get_as_many_connections_as_were_used_and_not_while_clients_go_on() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let (one, two) = (LaneId(1), LaneId(2));
    let mut pool = Pool::for_cluster(limits(10, Failing::Wait), WORKERS.into());
    pool.set_view(at(0), &[(one, LaneRole::Writer), (two, LaneRole::Reader)]);
    assert_eq!(open_all(&mut pool, at(0), two), 1, "one from the start");
    let ticket = |number: u64| Ticket { worker: WorkerId(0), client: number };
    for number in 0..5 {
        pool.checkout(at(1), ticket(number), Want::Writer);
    }
    let mut lent = Vec::new();
    while let Some(effect) = pool.poll_effect() {
        if let Effect::Open(id, _, worker) = effect {
            pool.opened(at(2), id);
            pool.checkin(at(2), id, worker);
            lent.push(id);
        }
    }
    for id in lent {
        assert_eq!(pool.checkin(at(3), id, WorkerId(0)), Checkin::Idle);
    }
    pool.tick(at(300), 5);
    assert_eq!(open_all(&mut pool, at(300), two), 4, "all were back when it was looked");

    pool.set_view(at(400), &[(one, LaneRole::Down), (two, LaneRole::Reader)]);
    pool.checkout(at(410), ticket(9), Want::Writer);
    let changed = [(one, LaneRole::Reader), (two, LaneRole::Writer)];
    pool.set_view(at(500), &changed);
    assert_eq!(open_all(&mut pool, at(500), one), 0, "who waited comes first");
    pool.tick(at(550), 5);
    assert_eq!(open_all(&mut pool, at(550), one), 0);
    pool.tick(at(850), 5);
    assert_eq!(open_all(&mut pool, at(850), one), 5);
    pool.check();
}

fn ticket(client: u64) -> Ticket {
    Ticket { worker: WorkerId(0), client }
}

/// What became of everybody: permits per lane, clients that were refused, servers that were closed.
fn outcome(pool: &mut Pool) -> (Vec<LaneId>, usize, usize) {
    let (mut opened, mut failed, mut closed) = (Vec::new(), 0, 0);
    while let Some(effect) = pool.poll_effect() {
        match effect {
            Effect::Open(_, lane, _) => opened.push(lane),
            Effect::Fail(..) => failed += 1,
            Effect::Close(..) | Effect::Abort(..) => closed += 1,
            _ => {}
        }
    }
    (opened, failed, closed)
}

#[test]
fn a_failed_writer_is_left_alone_until_its_delay_is_over() {
    let now = Instant::now();
    let (one, two) = (LaneId(1), LaneId(2));
    let view = |state: NodeState| {
        let node = |id: u32, role, state| NodeView {
            id: NodeId(id),
            name: format!("n{id}"),
            host: "h".into(),
            port: 1,
            role,
            state,
            lag: Lag::Fine,
        };
        let nodes = vec![node(1, Role::Unknown, state), node(2, Role::Writer, NodeState::Up)];
        roles(&View { writer: Some(NodeId(2)), nodes, ..View::default() })
    };
    let mut pool = Pool::for_cluster(limits(5, Failing::Wait), WORKERS.into());
    pool.set_view(now, &view(NodeState::FailedDelay));
    assert_eq!(pool.checkout(now, ticket(1), Want::Node(one)), Checkout::Wait);
    assert_eq!(pool.checkout(now, ticket(2), Want::Node(two)), Checkout::Wait);
    assert_eq!(outcome(&mut pool).0, [two]);
    pool.set_view(now, &view(NodeState::Down));
    assert_eq!(outcome(&mut pool).0, [one]);
}

#[test]
fn clients_that_are_not_held_are_told_that_there_is_no_writer() {
    let now = Instant::now();
    let (one, two) = (LaneId(1), LaneId(2));
    let writer = [(one, LaneRole::Writer), (two, LaneRole::Reader)];
    let nobody = [(one, LaneRole::Down), (two, LaneRole::Reader)];
    for (failing, refused) in [(Failing::Refuse, 1), (Failing::Wait, 0)] {
        let mut pool = Pool::for_cluster(limits(1, failing), WORKERS.into());
        pool.set_view(now, &writer);
        assert_eq!(pool.checkout(now, ticket(1), Want::Writer), Checkout::Wait);
        assert_eq!(pool.checkout(now, ticket(2), Want::ReaderOnly), Checkout::Wait);
        outcome(&mut pool);
        pool.set_view(now, &nobody);
        assert_eq!(outcome(&mut pool).1, refused, "{failing:?}");
        let late = pool.checkout(now, ticket(3), Want::Writer);
        let told = Checkout::Refused("no writer".into());
        assert_eq!(late, if refused == 1 { told } else { Checkout::Wait });
        assert_eq!(pool.checkout(now, ticket(4), Want::ReaderOnly), Checkout::Wait);
    }
}

#[test]
fn connections_kept_ready_are_as_many_as_wanted_and_opened_again_if_wanted() {
    let start = Instant::now();
    let (one, two) = (LaneId(1), LaneId(2));
    let view = [(one, LaneRole::Writer), (two, LaneRole::Reader)];
    for (standby, count) in [(Standby::Fixed(0), 0), (Standby::Fixed(3), 3), (Standby::Auto, 1)] {
        for (reopen, again) in [(Reopen::Always, count), (Reopen::OnRequest, 0)] {
            let limits = Limits {
                standby,
                reopen,
                minimum: Minimum::Attended(0),
                ..limits(10, Failing::Wait)
            };
            let what = format!("{standby:?} {reopen:?}");
            let mut pool = Pool::for_cluster(limits, WORKERS.into());
            pool.set_view(start, &view);
            let ready = open_ids(&mut pool, start, two);
            assert_eq!(ready.len(), count, "{what}");
            // All nodes are lost, and come back.
            for id in ready {
                assert!(pool.claim(id));
                pool.closed(start, id);
            }
            let later = start + Duration::from_millis(300);
            pool.tick(later, 5);
            assert_eq!(open_all(&mut pool, later, two), again, "{what}");
            // One that a client asks for brings the others.
            pool.checkout(later, ticket(1), Want::Writer);
            let later = later + Duration::from_millis(300);
            pool.tick(later, 5);
            assert_eq!(open_all(&mut pool, later, two), count - again, "{what}");
        }
    }
}

#[test]
fn another_pause_after_failed_logins_acts_at_once() {
    let second = Duration::from_secs(1);
    let paused = |pause| Limits { retry: Retry::Fixed(pause), ..limits(1, Failing::Wait) };
    let mut account = account(Pool::new(paused(100 * second), 1));
    account.act(Step::Ask(0));
    account.act(Step::FailOpen(0));
    account.act(Step::Ask(0));
    account.act(Step::Later(2000));
    assert_eq!((account.waiting.len(), account.opening.len()), (1, 0));
    account.pool.set_limits(account.now, paused(3 * second));
    account.drain();
    assert_eq!(account.opening.len(), 0, "it counts from the attempt");
    account.act(Step::Later(1000));
    assert_eq!(account.opening.len(), 1);
    account.act(Step::FailOpen(0));
    account.act(Step::Ask(0));
    account.pool.set_limits(account.now, paused(second / 2));
    account.act(Step::Later(500));
    assert_eq!(account.opening.len(), 1);
}
