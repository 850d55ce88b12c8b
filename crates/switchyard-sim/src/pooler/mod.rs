//! The pooler of a world: the product's machines, driven by a shell as thin as a shell can be.
//!
//! It does what the workers of the binary do, with made-up wires in place of sockets and messages
//! that take time in place of threads. Every decision is the core's; what is done here is moving
//! bytes, keeping connections, and obeying. Where to look: `relay` for traffic, `checkout` for
//! servers changing hands, `connect` for new ones, `close` for ends, `cancel`, `timers`, `cluster`.

mod cancel;
mod checkout;
mod close;
mod cluster;
mod connect;
mod parts;
mod relay;
mod relink;
mod session;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use switchyard_core::batch::Batch;
use switchyard_core::client::session::Flow;
use switchyard_core::ids::{LaneId, ServerId, Ticket, WorkerId};
use switchyard_core::params::Tracked;
use switchyard_core::pool::parking::{Errand, Parking};
use switchyard_core::pool::shares::{Group, Member, Share, SharedLimits};
use switchyard_core::pool::{Limits, Pool};
use switchyard_core::prepared::Registry;
use switchyard_core::switchover::view::View;

use crate::env::{Env, Event};
use crate::net::{End, Owner};
pub use parts::{Client, Entry, PoolCell, Rules, Server, Settings};
use parts::{Outgoing, ServerStage, Slot, Use};

/// An order with the pool that gave it.
type Order = (usize, Errand<Box<Server>>);

/// Work put off to the end of the handler at hand.
#[derive(Debug)]
enum Todo {
    Client(u64),
    Server(u64),
    Grant(u64, Box<Server>),
    Welcome(u64),
    Doubt(u64),
}

/// What other threads ask of a worker.
#[derive(Debug)]
enum Message {
    Order(Order),
    Vacate(u64),
    View,
    Cancel(Ticket),
    CancelRoom(usize),
    Cut(LaneId),
}

/// A worker.
#[derive(Debug)]
struct Worker {
    id: WorkerId,
    inbox: VecDeque<Message>,
    clients: BTreeMap<u64, Client>,
    servers: BTreeMap<u64, Slot>,
    cancels: BTreeMap<u64, Outgoing>,
    flow: Flow,
    reply: Batch,
    orders: VecDeque<Order>,
    todo: VecDeque<Todo>,
}

/// The pooler.
#[derive(Debug)]
pub struct Pooler {
    settings: Settings,
    tracked: Tracked,
    registry: Registry,
    limits: SharedLimits,
    members: BTreeMap<Member, usize>,
    workers: Vec<Worker>,
    /// Its pools.
    pub pools: Vec<PoolCell>,
    /// The cluster, if there is one.
    pub entry: Option<Entry>,
    minted: u64,
    /// Sessions that went on with another server.
    pub moved: u64,
}

impl Pooler {
    /// A pooler with so many workers and without pools.
    pub fn new(settings: Settings, workers: usize) -> Self {
        let worker = |id: usize| Worker {
            id: WorkerId(id as u16),
            inbox: VecDeque::new(),
            clients: BTreeMap::new(),
            servers: BTreeMap::new(),
            cancels: BTreeMap::new(),
            flow: Flow::default(),
            reply: Batch::default(),
            orders: VecDeque::new(),
            todo: VecDeque::new(),
        };
        Pooler {
            settings,
            tracked: Tracked::new(&["search_path".into()]),
            registry: Registry::default(),
            limits: SharedLimits::new(),
            members: BTreeMap::new(),
            workers: (0..workers).map(worker).collect(),
            pools: Vec::new(),
            entry: None,
            minted: 0,
            moved: 0,
        }
    }

    /// Another pool; with a cluster its lanes are the cluster's nodes.
    pub fn add_pool(&mut self, user: &str, limits: Limits, rules: Rules) {
        let share = self.limits.join(&rules.database, user);
        self.members.insert(share.member(), self.pools.len());
        let machine = match self.entry {
            Some(_) => Pool::for_cluster(limits, self.workers.len()),
            None => Pool::new(limits, self.workers.len()),
        };
        self.pools.push(PoolCell {
            machine: machine.sharing(share),
            parking: Parking::default(),
            user: user.into(),
            rules,
            welcome: None,
            cancels: 0,
        });
    }

    /// Limits that pools share; 0 means none.
    pub fn set_shared_limit(&mut self, group: Group, limit: usize) {
        self.limits.lock().set_limit(group, limit);
    }

    /// What begins by itself.
    pub fn start(&mut self, env: &mut Env) {
        for worker in 0..self.workers.len() {
            env.after(TICK, Event::Tick(worker));
        }
    }

    fn mint(&mut self) -> u64 {
        self.minted += 1;
        self.minted
    }

    fn ticket(&self, w: usize, key: u64) -> Ticket {
        Ticket { worker: self.workers[w].id, client: key }
    }

    /// Takes a decision about a pool and collects what has to be done about it.
    fn decide<R>(&mut self, w: usize, pool: usize, f: impl FnOnce(&mut PoolCell) -> R) -> R {
        let cell = &mut self.pools[pool];
        let result = f(cell);
        while let Some(errand) = cell.parking.poll_errand(&mut cell.machine) {
            self.workers[w].orders.push_back((pool, errand));
        }
        result
    }

    fn send(&mut self, env: &mut Env, w: usize, message: Message) {
        self.workers[w].inbox.push_back(message);
        let pause = env.random.micros(1, 300);
        env.after(pause, Event::Inbox(w));
    }

    /// Something happened at an end that this pooler holds.
    pub fn wire(&mut self, env: &mut Env, end: End, owner: Owner) {
        match owner {
            Owner::Client(w, key) => {
                self.client_ready(env, w, key, end);
                self.settle(env, w);
            }
            Owner::Server(w, key) => {
                self.server_ready(env, w, key);
                self.settle(env, w);
            }
            Owner::Actor(_) | Owner::Session(..) => {}
        }
    }

    /// A worker looks into its inbox.
    pub fn inbox(&mut self, env: &mut Env, w: usize) {
        while let Some(message) = self.workers[w].inbox.pop_front() {
            match message {
                Message::Order((pool, errand)) => self.obey(env, w, pool, errand),
                Message::Vacate(slot) => {
                    self.workers[w].servers.remove(&slot);
                }
                Message::View => self.view_changed(env, w),
                Message::Cancel(target) => self.cancel_client(env, w, target),
                Message::CancelRoom(pool) => self.go_on_canceling(env, w, pool),
                Message::Cut(lane) => self.cut(env, w, lane),
            }
            self.settle(env, w);
        }
    }

    /// A worker looks at what is due.
    pub fn tick(&mut self, env: &mut Env, w: usize) {
        env.after(TICK, Event::Tick(w));
        self.look_at_time(env, w);
        if w == 0 {
            for pool in 0..self.pools.len() {
                let (now, clients) = (env.now, self.clients_of(pool));
                self.decide(w, pool, |cell| cell.machine.tick(now, clients));
            }
        }
        self.settle(env, w);
    }

    fn clients_of(&self, pool: usize) -> usize {
        let clients = self.workers.iter().flat_map(|worker| worker.clients.values());
        clients.filter(|client| client.pool == pool).count()
    }

    /// Does what handlers put off, until nothing is left.
    fn settle(&mut self, env: &mut Env, w: usize) {
        let mut turns = 0;
        loop {
            turns += 1;
            assert!(turns < TURNS_MAX, "worker {w} turns in circles");
            while let Some((pool, errand)) = self.workers[w].orders.pop_front() {
                self.obey(env, w, pool, errand);
            }
            match self.workers[w].todo.pop_front() {
                Some(Todo::Client(key)) => self.kick_client(env, w, key),
                Some(Todo::Server(key)) => self.read_server(env, w, key),
                Some(Todo::Grant(key, server)) => self.grant(env, w, key, server),
                Some(Todo::Welcome(key)) => self.welcome(env, w, key),
                Some(Todo::Doubt(key)) => self.look_at_doubt(env, w, key),
                None => {
                    self.settle_shares(env, w);
                    if self.workers[w].orders.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    /// Tells pools that they may open servers now.
    fn settle_shares(&mut self, env: &Env, w: usize) {
        if !self.limits.is_contended() {
            return;
        }
        loop {
            let hint = self.limits.lock().poll_hint();
            let Some(member) = hint else { return };
            if let Some(pool) = self.members.get(&member).copied() {
                let now = env.now;
                self.decide(w, pool, |cell| cell.machine.retry(now));
            }
        }
    }

    /// A pool was denied a server: for each limit that is reached, another pool parts with one.
    fn make_room(&mut self, w: usize, pool: usize) {
        let Some(member) = self.pools[pool].machine.share().map(Share::member) else { return };
        let victims = self.limits.lock().victims(member);
        for group in victims {
            let pools = group.iter().filter_map(|member| self.members.get(member).copied());
            let idle =
                pools.filter_map(|pool| Some((self.pools[pool].machine.longest_idle()?, pool)));
            if let Some((_, pool)) = idle.min_by_key(|(since, _)| *since) {
                self.decide(w, pool, |cell| cell.machine.evict());
            }
        }
    }
}

/// Operators' commands, and whatever else happens on a thread that is no worker.
impl Pooler {
    /// Takes a decision of a pool; workers act on the outcome.
    pub(crate) fn decide_away(
        &mut self,
        env: &mut Env,
        pool: usize,
        f: impl FnOnce(&mut PoolCell),
    ) {
        self.decide(0, pool, f);
        self.settle_shares(env, 0);
        let orders = std::mem::take(&mut self.workers[0].orders);
        for (pool, errand) in orders {
            let to = errand.worker(|server| server.home).map_or(0, |worker| usize::from(worker.0));
            self.send(env, to, Message::Order((pool, errand)));
        }
    }

    /// PAUSE of a pool.
    pub fn pause(&mut self, env: &mut Env, pool: usize) {
        let now = env.now;
        self.decide_away(env, pool, |cell| cell.machine.pause(now));
    }

    /// RESUME of a pool.
    pub fn resume(&mut self, env: &mut Env, pool: usize) {
        let now = env.now;
        self.decide_away(env, pool, |cell| cell.machine.resume(now));
    }

    /// RECONNECT of a pool.
    pub fn reconnect(&mut self, env: &mut Env, pool: usize) {
        let (now, reason) = (env.now, "database configuration changed");
        self.decide_away(env, pool, |cell| cell.machine.recycle(now, reason));
    }

    /// RELOAD with other limits of a pool.
    pub fn set_limits(&mut self, env: &mut Env, pool: usize, limits: Limits) {
        let now = env.now;
        self.pools[pool].rules.limits = limits.clone();
        self.decide_away(env, pool, |cell| cell.machine.set_limits(now, limits));
    }
}

/// Invariants.
impl Pooler {
    /// Panics if an invariant is broken.
    pub fn check(&self) {
        for (index, cell) in self.pools.iter().enumerate() {
            cell.parking.check(&cell.machine);
            self.check_owners(index, cell);
        }
        self.limits.lock().check();
        for worker in &self.workers {
            for slot in worker.servers.values() {
                if let Some(ServerStage::Ready(link, _)) = slot.here.as_ref().map(|s| &s.stage) {
                    link.check();
                }
            }
            self.check_links(worker);
        }
    }

    /// Every server that a pool knows has one owner, and no pool forgets one that lives on.
    fn check_owners(&self, index: usize, cell: &PoolCell) {
        let mut owned: BTreeSet<ServerId> = BTreeSet::new();
        let mut own = |id: ServerId| {
            assert!(owned.insert(id), "server {id:?} of pool {index} has two owners");
        };
        let errand = |order: &Order| match order {
            (pool, Errand::Give(server, _) | Errand::Check(server, _)) if *pool == index => {
                Some(server.id)
            }
            (pool, Errand::Open(id, ..)) if *pool == index => Some(*id),
            _ => None,
        };
        for worker in &self.workers {
            for slot in worker.servers.values().filter(|slot| slot.pool == index) {
                slot.here.iter().for_each(|server| own(server.id));
            }
            worker.orders.iter().filter_map(errand).for_each(&mut own);
            for message in &worker.inbox {
                if let Message::Order(order) = message {
                    errand(order).into_iter().for_each(&mut own);
                }
            }
            for todo in &worker.todo {
                if let Todo::Grant(_, server) = todo
                    && server.pool == index
                {
                    own(server.id);
                }
            }
        }
        let idle = cell.machine.counts(std::time::Instant::now(), None);
        let idle = idle.idle + idle.used;
        // What was aborted lives on until its worker has heard of it.
        let known = owned.iter().filter(|id| cell.machine.lane_of(**id).is_some()).count();
        assert_eq!(known + idle, cell.machine.len(), "pool {index} has lost a server");
    }

    /// Links hold both ways.
    fn check_links(&self, worker: &Worker) {
        for (key, client) in &worker.clients {
            let Some(slot) = client.server() else { continue };
            let server = worker.servers.get(&slot).and_then(|slot| slot.here.as_ref());
            let back = server.and_then(|server| server.client());
            assert_eq!(back, Some(*key), "a linked client's server is linked to it");
        }
        for (key, slot) in &worker.servers {
            let Some(client) = slot.here.as_ref().and_then(|server| server.client()) else {
                continue;
            };
            let back = worker.clients.get(&client).and_then(|client| client.server());
            assert_eq!(back, Some(*key), "a linked server's client is linked to it");
        }
    }

    /// Panics unless nobody is served and nobody waits.
    pub fn check_rest(&self, env: &Env) {
        for (index, cell) in self.pools.iter().enumerate() {
            let counts = cell.machine.counts(env.now, None);
            let text = format!("pool {index} is at rest: {counts:?}");
            assert_eq!((counts.busy, counts.testing, counts.waiting), (0, 0, 0), "{text}");
            assert_eq!(cell.cancels, 0, "pool {index} has no cancel request under way");
        }
        for worker in &self.workers {
            assert!(worker.clients.is_empty(), "every client was let go");
            assert!(worker.inbox.is_empty(), "every message was read");
            assert!(worker.cancels.is_empty(), "every cancel request has ended");
            let free = worker.servers.values().filter_map(|slot| slot.here.as_ref());
            for server in free {
                assert!(!matches!(server.stage, ServerStage::Ready(..)), "free servers are parked");
            }
        }
    }

    /// Connections to servers of a pool: those that log in or have logged in.
    pub fn connections(&self, pool: usize) -> usize {
        self.pools[pool].machine.len()
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// `query_wait_timeout`.
    pub fn query_wait_timeout(&self) -> Duration {
        self.settings.query_wait_timeout
    }

    /// The numbers of all pools, for the record.
    pub fn text(&self, env: &Env) -> String {
        let counts = self.pools.iter().map(|cell| {
            let (counts, paused) = (cell.machine.counts(env.now, None), cell.machine.is_paused());
            format!("{counts:?} of {:?}, paused {paused}", cell.rules.limits)
        });
        counts.collect::<Vec<_>>().join("; ")
    }

    /// The last published view.
    pub fn view(&self) -> Option<&View> {
        self.entry.as_ref().map(|entry| &entry.view)
    }

    /// What every client is doing, for the record.
    pub fn clients(&self) -> Vec<String> {
        let clients = self.workers.iter().flat_map(|worker| worker.clients.values());
        clients.map(|client| format!("{:?} {}", client.end.wire(), client.text())).collect()
    }
}

/// Whether a pool accepts a server for a worker.
impl Worker {
    fn is_use(&self, slot: u64, wanted: impl Fn(&Use) -> bool) -> bool {
        let server = self.servers.get(&slot).and_then(|slot| slot.here.as_ref());
        server.is_some_and(|server| match &server.stage {
            ServerStage::Ready(_, usage) => wanted(usage),
            ServerStage::Login(_) | ServerStage::Between => false,
        })
    }
}

/// Things that are put off by one handler, at most.
const TURNS_MAX: usize = 10_000;
/// Time between two looks at what is due.
const TICK: Duration = Duration::from_millis(250);
