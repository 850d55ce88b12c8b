//! What all threads of the process share: settings, entries, pools, keys, counters.
//!
//! Each part has its own short lock or atomic; no lock is held while another is taken, except
//! an entry's list of pools while a pool is made.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use foldhash::fast::RandomState;
use switchyard_auth::keyring::Keyring;
use switchyard_auth::scram::{Derivation, Keys};
use switchyard_config::Config;
use switchyard_core::ids::{LaneId, Ticket, WorkerId};
use switchyard_core::lifecycle::{Lifecycle, Phase};
use switchyard_core::pool::Want;
use switchyard_core::prepared::Registry;

use crate::ending::Remains;
use crate::entries::{Entry, Made};
use crate::hooks::stats::AllStats;
use crate::hooks::{HookOptions, Host, Notice, Ties};
use crate::log::{Level, Log};
use crate::options;
use crate::oracle::{Knowledge, Upcoming};
use crate::peers::Peers;
use crate::pools::{Order, SharedPool};
use crate::reload::Renewal;
use crate::rules::NativeRules;
use crate::services::Services;
use crate::sharing::Sharing;
use crate::snapshot::{Logged, Snapshot};
use crate::statistics::Ledger;
use crate::worker::client::Seat;
use crate::worker::{Handle, Message};

/// There is no room for another client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Whether modules were loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// They were.
    Anew,
    /// Nothing of them has changed.
    AsBefore,
}

/// Whether a setting changes which functions run, or how.
fn concerns_hooks(key: &str) -> bool {
    key.starts_with("hook_") || key.ends_with("_py_module_file")
}

/// State shared by all threads.
#[derive(Debug)]
pub struct Shared {
    /// The log.
    pub log: Arc<Log>,
    /// Texts of named statements.
    pub registry: Registry,
    /// What is closed and removed at the end.
    pub remains: Remains,
    lifecycle: Mutex<Lifecycle>,
    /// Limits that pools share.
    pub sharing: Sharing,
    /// Other poolers that cancel requests are passed on to.
    pub peers: Peers,
    /// What is counted.
    pub ledger: Ledger,
    consoles: AtomicUsize,
    reloading: Mutex<()>,
    snapshot: Mutex<Arc<Snapshot>>,
    services: OnceLock<Services>,
    hooks: Mutex<Option<Arc<Host>>>,
    rules: Mutex<Option<Arc<NativeRules>>>,
    /// What the hooks did.
    pub hook_stats: AllStats,
    entries: Mutex<BTreeMap<String, Arc<Entry>>>,
    workers: OnceLock<Vec<Handle>>,
    keys: Mutex<HashMap<[u8; 8], Ticket, RandomState>>,
    /// Keys for servers that ask for SCRAM.
    keyring: Mutex<Keyring>,
    users: Mutex<HashMap<String, usize>>,
    numbers: AtomicU64,
    clients: AtomicUsize,
    load: Vec<AtomicUsize>,
}

/// Passwords of servers, as many as salts, whose keys are remembered.
const KEYRING_ROOM: usize = 256;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// State for so many workers. They are attached with [`Shared::attach`].
    pub fn new(log: Arc<Log>, snapshot: Snapshot, workers: usize) -> Self {
        Shared {
            log,
            registry: Registry::default(),
            lifecycle: Mutex::new(Lifecycle::default()),
            remains: Remains::default(),
            sharing: Sharing::default(),
            peers: Peers::default(),
            ledger: Ledger::new(workers),
            consoles: AtomicUsize::new(0),
            reloading: Mutex::new(()),
            snapshot: Mutex::new(Arc::new(snapshot)),
            services: OnceLock::new(),
            hooks: Mutex::new(None),
            rules: Mutex::new(None),
            hook_stats: AllStats::new(workers),
            entries: Mutex::new(BTreeMap::new()),
            workers: OnceLock::new(),
            keys: Mutex::new(HashMap::default()),
            keyring: Mutex::new(Keyring::new(KEYRING_ROOM)),
            users: Mutex::new(HashMap::new()),
            numbers: AtomicU64::new(0),
            clients: AtomicUsize::new(0),
            load: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// Names the workers, once, before any of them runs.
    pub fn attach(&self, handles: Vec<Handle>) {
        // A second call would be an error of the caller and changes nothing.
        let _ = self.workers.set(handles);
    }

    /// The native rules in force, if there is one.
    pub fn rules(&self) -> Option<Arc<NativeRules>> {
        lock(&self.rules).clone()
    }

    /// Puts the native rules of a configuration in force; their counters go on where the rules are
    /// the same. A configuration with broken rules has been refused before.
    pub fn set_rules(&self, config: &Config) {
        let mut rules = lock(&self.rules);
        if rules.as_ref().is_some_and(|rules| rules.are_those_of(config)) {
            return;
        }
        *rules = NativeRules::new(config).ok().filter(|rules| !rules.is_empty()).map(Arc::new);
    }

    /// The hooks in force.
    pub fn hooks(&self) -> Option<Arc<Host>> {
        lock(&self.hooks).clone()
    }

    /// Brings the hooks in line with a configuration that is about to come into force. The
    /// error is Python's; nothing has changed then.
    pub fn load_hooks(self: &Arc<Self>, config: &Config) -> Result<Loaded, String> {
        let wanted = HookOptions::new(&config.settings);
        if self.hooks().map(|host| host.options.clone()) == wanted {
            return Ok(Loaded::AsBefore);
        }
        let before = self.hooks();
        let upcoming = Upcoming::new(Mutex::new(Some(config.clone())));
        let host = match wanted {
            None => None,
            Some(options) => {
                let shared = Arc::downgrade(self);
                let tell = move |worker: WorkerId, host: Arc<Host>, notice: Notice| {
                    if let Some(shared) = shared.upgrade() {
                        shared.send(worker, Message::Hook(host, notice));
                    }
                };
                let loops = self.workers().len();
                let (shared, upcoming) = (Arc::downgrade(self), Arc::clone(&upcoming));
                let oracle = Box::new(Knowledge { shared, upcoming });
                let ties = Ties { tell: Box::new(tell), oracle, log: Arc::clone(&self.log) };
                Some(Host::start(options, loops, before.as_deref(), ties)?)
            }
        };
        let old = std::mem::replace(&mut *lock(&self.hooks), host);
        *lock(&upcoming) = None;
        if let Some(old) = old {
            old.drain();
        }
        Ok(Loaded::Anew)
    }

    /// Names the services thread, once, before any worker runs.
    pub fn serve(&self, services: Services) {
        // A second call would be an error of the caller and changes nothing.
        let _ = self.services.set(services);
    }

    /// Those who watch clusters.
    pub fn services(&self) -> Option<&Services> {
        self.services.get()
    }

    /// What operators have stopped.
    pub fn lifecycle(&self) -> MutexGuard<'_, Lifecycle> {
        lock(&self.lifecycle)
    }

    /// What the process as a whole does.
    pub fn phase(&self) -> Phase {
        self.lifecycle().phase()
    }

    /// Brings the pools in line with what operators have stopped.
    pub fn apply_pauses(&self) {
        let now = Instant::now();
        for pool in self.pools() {
            let paused = self.lifecycle().is_paused(&pool.entry.name);
            self.decide(&pool, |inner| match (paused, inner.machine.is_paused()) {
                (true, false) => inner.machine.pause(now),
                (false, true) => inner.machine.resume(now),
                (true, true) | (false, false) => {}
            });
        }
    }

    /// Clients on the console.
    pub fn consoles(&self) -> usize {
        self.consoles.load(Ordering::Relaxed)
    }

    /// A client is on the console.
    pub fn console_came(&self) {
        self.consoles.fetch_add(1, Ordering::Relaxed);
    }

    /// A client of the console is gone. Nobody is left to resume what a SUSPEND stopped: that is
    /// undone with the last one.
    pub fn console_left(&self) {
        let last = self.consoles.fetch_sub(1, Ordering::Relaxed) == 1;
        if last && self.phase() == Phase::Suspended {
            let text = "admin disappeared when suspended, doing RESUME";
            self.log.write(Level::Log, text);
            // Another end of the suspension may have come between.
            let _ = self.resume();
        }
    }

    /// Ends a PAUSE or SUSPEND.
    pub fn resume(&self) -> Result<(), &'static str> {
        let was = {
            let mut lifecycle = self.lifecycle();
            let was = lifecycle.phase();
            lifecycle.resume()?;
            was
        };
        if was == Phase::Suspended {
            self.broadcast(|| Message::WakeUp);
        }
        self.apply_pauses();
        Ok(())
    }

    /// Reads the configuration again; answers whether it was valid. One at a time.
    pub fn reload(self: &Arc<Self>) -> bool {
        let _alone = lock(&self.reloading);
        crate::reload::reload(self)
    }

    /// Sets a key from a value that is known to be one, in turn with reloads: neither undoes the
    /// other. Answers what of the TLS settings is in force; the error is that of the hooks.
    pub fn set(self: &Arc<Self>, key: &str, value: &str) -> Result<Renewal, String> {
        let _alone = lock(&self.reloading);
        let mut config = self.snapshot().config.clone();
        // A value that is none was refused before anybody waited.
        let _ = config.settings.set(key, value);
        let loaded = match concerns_hooks(key) {
            true => self.load_hooks(&config)?,
            false => Loaded::AsBefore,
        };
        let renewal = crate::reload::apply(self, config, key);
        crate::reload::check_keys(self, loaded);
        Ok(renewal)
    }

    /// Servers of an entry are not used again; what clients are welcomed with is asked for anew.
    pub fn renew(&self, entry: &Arc<Entry>, reason: &'static str) {
        let now = Instant::now();
        for pool in entry.pools() {
            self.decide(&pool, |inner| {
                inner.machine.recycle(now, reason);
            });
        }
    }

    /// All workers.
    pub fn workers(&self) -> &[Handle] {
        self.workers.get().map_or(&[], Vec::as_slice)
    }

    /// Sends to one worker.
    pub fn send(&self, worker: WorkerId, message: Message) {
        if let Some(handle) = self.workers().get(usize::from(worker.0)) {
            handle.sender.send(message);
        }
    }

    /// Sends to all workers.
    pub fn broadcast(&self, message: impl Fn() -> Message) {
        self.workers().iter().for_each(|handle| handle.sender.send(message()));
    }

    /// Settings in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&lock(&self.snapshot))
    }

    /// Puts other settings in force and tells the workers.
    pub fn replace_snapshot(&self, snapshot: Snapshot) {
        *lock(&self.snapshot) = Arc::new(snapshot);
        lock(&self.keyring).clear();
        self.broadcast(|| Message::Settings);
    }

    /// The next number for a client or server connection.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Entries and pools.
impl Shared {
    /// All entries by name.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        lock(&self.entries).values().cloned().collect()
    }

    /// Where a name that clients ask for leads: an entry, or a node or role of a cluster's.
    /// `whose` is the prefix of log lines about the connection that asks.
    pub fn destination(&self, name: &str, whose: &str) -> (Option<Arc<Entry>>, Want) {
        if self.known_entry(name).is_none()
            && let Some((database, key)) = name.split_once('@')
            && let Some(entry) = self.known_entry(database).filter(|entry| entry.is_cluster())
        {
            let want = match key {
                "writer" => Some(Want::Writer),
                "reader" => Some(Want::Reader),
                "reader!" => Some(Want::ReaderOnly),
                "any" => Some(Want::Any),
                node => entry.view().by_name(node).map(|node| Want::Node(LaneId(node.id.0))),
            };
            return match want {
                Some(want) => (Some(entry), want),
                None => (None, Want::Writer),
            };
        }
        if let Some((entry, want)) = self.labelled(name) {
            return (Some(entry), want);
        }
        (self.entry(name, whose), Want::Writer)
    }

    /// The node of a cluster whose host name begins with this label, if no entry has this name and
    /// no other cluster such a node.
    fn labelled(&self, name: &str) -> Option<(Arc<Entry>, Want)> {
        let entries = lock(&self.entries);
        if entries.contains_key(name) {
            return None;
        }
        let mut found = entries.values().filter(|entry| entry.is_cluster()).filter_map(|entry| {
            let node = entry.view().by_label(name)?.id;
            Some((Arc::clone(entry), Want::Node(LaneId(node.0))))
        });
        found.next().filter(|_| found.next().is_none())
    }

    /// Whether a name leads anywhere, without making an automatic entry for it.
    pub fn known_destination(&self, name: &str) -> bool {
        let database = name.split_once('@').map_or(name, |(database, _)| database);
        let known = self.known_entry(name).is_some() || self.known_entry(database).is_some();
        known
            || self.labelled(name).is_some()
            || (self.snapshot().config.automatic.is_some()
                && name != crate::worker::console::CONSOLE)
    }

    /// An entry that exists already.
    pub fn known_entry(&self, name: &str) -> Option<Arc<Entry>> {
        lock(&self.entries).get(name).cloned()
    }

    /// Adds an entry.
    pub fn add_entry(&self, entry: Arc<Entry>) {
        lock(&self.entries).insert(entry.name.clone(), entry);
    }

    /// Adds an entry; if another thread came first, `None`, and that one stays.
    pub(crate) fn add_unless_known(&self, entry: &Arc<Entry>) -> Option<Arc<Entry>> {
        let mut entries = lock(&self.entries);
        let known = entries.entry(entry.name.clone()).or_insert_with(|| Arc::clone(entry));
        Some(Arc::clone(known))
    }

    /// Removes an entry.
    pub fn remove_entry(&self, name: &str) -> Option<Arc<Entry>> {
        let entry = lock(&self.entries).remove(name);
        if let Some(entry) = &entry {
            self.ledger.retire(entry);
        }
        entry
    }

    /// The pool of a login user on an entry: that of the forced user, if there is one.
    pub fn pool(&self, entry: &Arc<Entry>, login_user: &str) -> Arc<SharedPool> {
        let definition = entry.definition();
        self.pool_as(entry, definition.user.as_deref().unwrap_or(login_user))
    }

    /// The pool of a server user on an entry.
    pub fn pool_as(&self, entry: &Arc<Entry>, user: &str) -> Arc<SharedPool> {
        let snapshot = self.snapshot();
        let make = || options::make_pool(&snapshot, entry, user, self.load.len(), &self.sharing);
        let (pool, made) = entry.pool(user, make);
        if made == Made::Now {
            self.sharing.add(&pool);
            if lock(&self.lifecycle).is_paused(&entry.name) {
                pool.lock().machine.pause(Instant::now());
            }
        }
        pool
    }

    /// All pools.
    pub fn pools(&self) -> Vec<Arc<SharedPool>> {
        self.entries().iter().flat_map(|entry| entry.pools()).collect()
    }

    /// Takes a decision of a pool on a thread that is no worker; workers act on the outcome.
    pub fn decide(&self, pool: &Arc<SharedPool>, f: impl FnOnce(&mut crate::pools::Inner)) {
        let mut orders = Vec::new();
        pool.decide(&mut orders, f);
        self.sharing.settle(Instant::now(), &mut orders);
        orders.into_iter().for_each(|(pool, order)| self.dispatch(pool, order));
    }

    /// Sends an order to the worker that has to act.
    pub fn dispatch(&self, pool: Arc<SharedPool>, order: Order) {
        let worker = order.worker(|server| server.home).unwrap_or(WorkerId(0));
        self.send(worker, Message::Order(pool, order));
    }
}

/// Logins at servers.
impl Shared {
    /// The answer to a server's challenge, unless a worker would have to take its time for it.
    pub fn quick_keys(&self, work: &Derivation) -> Option<Keys> {
        let known = lock(&self.keyring).get(work);
        if known.is_some() || !work.is_quick() { known } else { Some(self.derive(work)) }
    }

    /// Derives keys and remembers them.
    pub fn derive(&self, work: &Derivation) -> Keys {
        let keys = work.run();
        lock(&self.keyring).put(work.clone(), keys.clone());
        keys
    }
}

/// Clients.
impl Shared {
    /// Registers a client's cancel key.
    pub fn add_key(&self, key: [u8; 8], ticket: Ticket) {
        lock(&self.keys).insert(key, ticket);
    }

    /// Forgets a cancel key.
    pub fn remove_key(&self, key: &[u8; 8]) {
        lock(&self.keys).remove(key);
    }

    /// The client behind a cancel key.
    pub fn key_owner(&self, key: &[u8; 8]) -> Option<Ticket> {
        lock(&self.keys).get(key).copied()
    }

    /// Picks the least loaded worker for a new client and counts it there.
    pub fn place_client(&self) -> WorkerId {
        self.clients.fetch_add(1, Ordering::Relaxed);
        let load = |index: &usize| self.load[*index].load(Ordering::Relaxed);
        let index = (0..self.load.len()).min_by_key(load).unwrap_or(0);
        self.load[index].fetch_add(1, Ordering::Relaxed);
        WorkerId(index as u16)
    }

    /// A client of a worker is gone.
    pub fn client_left(&self, worker: WorkerId, seat: Seat) {
        if seat == Seat::Taken {
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
        self.load[usize::from(worker.0)].fetch_sub(1, Ordering::Relaxed);
    }

    /// Client connections of any kind.
    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Whether a client that counts is one too many. If it is, it counts no more, so that of
    /// several that come at once not all are refused.
    pub fn is_one_too_many(&self, limit: usize) -> bool {
        let less = |count: usize| (count > limit).then(|| count - 1);
        self.clients.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// Counts a client of a user, unless there are `limit` of them.
    pub fn user_came(&self, user: &str, limit: Option<usize>) -> Result<(), Full> {
        let mut users = lock(&self.users);
        let count = users.entry(user.into()).or_default();
        if limit.is_some_and(|limit| *count >= limit) {
            return Err(Full);
        }
        *count += 1;
        Ok(())
    }

    /// A client of a user is gone.
    pub fn user_left(&self, user: &str) {
        let mut users = lock(&self.users);
        if let Some(count) = users.get_mut(user) {
            *count -= 1;
            if *count == 0 {
                users.remove(user);
            }
        }
    }

    /// Clients of a user.
    pub fn user_clients(&self, user: &str) -> usize {
        lock(&self.users).get(user).copied().unwrap_or(0)
    }

    /// Writes a line about a connection if its kind is logged.
    pub fn note(&self, logged: Logged, prefix: &str, text: &str) {
        if logged == Logged::Yes {
            self.log.write(Level::Log, &format!("{prefix} {text}"));
        }
    }
}
