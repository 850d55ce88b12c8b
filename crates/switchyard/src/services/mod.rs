//! The services thread: everything slow that the workers must not wait for. It looks names up and
//! watches clusters: one task drives a cluster's machine, one more per node asks its questions.
//!
//! Not here: what answers mean (`switchyard_core::switchover`) and what pools do about it.

mod alarm;
mod dial;
pub mod names;
mod patroni;
pub mod probe;
mod promote;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use switchyard_config::HttpUrl;
use switchyard_core::ids::{Ticket, WorkerId};
use switchyard_core::names::Terms;

use switchyard_core::switchover::cluster::{Cluster, Effect, Severity};
use switchyard_core::switchover::options::Options;
use switchyard_core::switchover::planned::{Command, CommandId, PromotionId};
use switchyard_core::switchover::probe::{Answer, ProbeId, SignalKind, TopologyId};
use switchyard_core::switchover::snapshot::{Change, ClusterSnapshot};
use switchyard_core::switchover::topology::{Endpoint, TopologyRow};
use switchyard_core::switchover::view::{NodeId, View};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::log::{Level, Log};
use alarm::Alarm;
use dial::Way;
use names::NameService;
use probe::{ProbeLogin, Request};

/// A cluster to be watched.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterOptions {
    /// For its machine.
    pub machine: Options,
    /// For its probes.
    pub login: ProbeLogin,
    /// The program that promotes, if one does.
    pub promote_command: Option<String>,
    /// Patroni's REST interfaces, if Patroni looks after the nodes.
    pub patroni: Vec<HttpUrl>,
}

/// What the cluster's task is told.
#[derive(Debug)]
enum Input {
    Answer(NodeId, ProbeId, Answer),
    Topology(TopologyId, Result<Vec<TopologyRow>, String>),
    Signal(Option<NodeId>, SignalKind),
    Command(CommandId, Command),
    Running(u64, usize),
    Promoted(PromotionId, Result<(), String>),
    Verified(PromotionId, Result<(), String>),
    Options(Box<ClusterOptions>),
    Stop,
}

/// What the services ask of the rest of the process. Called on the services thread.
pub trait House: Send + Sync {
    /// A view was published. Answers how many clients waited for the end of a hold.
    fn publish(&self, database: &str, view: &View) -> Option<usize>;
    /// Count the transactions on the writer; answered by [`Services::running`], perhaps at once.
    fn count(&self, database: &str, round: u64) -> Option<usize>;
    /// Close the servers of a node that are linked to clients.
    fn cut(&self, database: &str, node: NodeId);
    /// The answer to an operator.
    fn answer(&self, console: Ticket, result: Result<(), String>);
    /// A record is complete.
    fn record(&self, database: &str, change: &Change);
    /// System and timeline that have to outlast the process.
    fn remember(&self, database: &str, system: Option<u64>, timeline: Option<u32>);
    /// What an earlier process has remembered.
    fn recall(&self, database: &str) -> (Option<u64>, Option<u32>);
    /// How long addresses of names hold.
    fn name_terms(&self) -> Terms;
    /// The addresses for a connection that a worker opens; none if the lookup has failed.
    fn resolved(&self, worker: WorkerId, number: u64, addresses: Vec<SocketAddr>);
    /// A name does not stand for these addresses any more.
    fn addresses_lost(&self, host: &str, lost: &[SocketAddr]);
}

struct Context {
    house: Arc<dyn House>,
    log: Arc<Log>,
    names: Arc<NameService>,
    asked: Mutex<HashMap<CommandId, (String, Ticket)>>,
}

/// A cluster that is being watched.
struct Watched {
    options: ClusterOptions,
    inputs: UnboundedSender<Input>,
    machine: Arc<Mutex<Cluster>>,
}

type Start =
    (Arc<Mutex<Cluster>>, ClusterOptions, UnboundedSender<Input>, UnboundedReceiver<Input>);

/// What the thread is asked to begin.
enum Task {
    /// Watch a cluster.
    Watch(Box<Start>),
    /// Look a name up.
    LookUp(String),
    /// Do what takes a while.
    Compute(Box<dyn FnOnce() + Send>),
}

/// The handle of the services thread.
pub struct Services {
    tasks: UnboundedSender<Task>,
    clusters: Mutex<BTreeMap<String, Watched>>,
    context: Arc<Context>,
    commands: AtomicU64,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Services")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Services {
    /// Starts the thread. `resolv_conf` names the file with the name servers; empty means that the
    /// system is asked.
    pub fn start(house: Arc<dyn House>, log: Arc<Log>, resolv_conf: &str) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot start a thread: {error}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let (tasks, mut received) = unbounded_channel::<Task>();
        let names = Arc::new(NameService::new(resolv_conf, tasks.clone())?);
        let context = Arc::new(Context { house, log, names, asked: Mutex::default() });
        let shared = Arc::clone(&context);
        let thread = std::thread::Builder::new().name("services".into());
        let spawned = thread.spawn(move || {
            runtime.block_on(async move {
                while let Some(task) = received.recv().await {
                    match task {
                        Task::Watch(start) => {
                            tokio::spawn(watch(*start, Arc::clone(&context)));
                        }
                        Task::Compute(work) => drop(tokio::task::spawn_blocking(work)),
                        Task::LookUp(host) => {
                            tokio::spawn(look_up(host, Arc::clone(&context)));
                        }
                    }
                }
            });
        });
        spawned.map_err(failed)?;
        let (clusters, commands) = (Mutex::default(), AtomicU64::new(0));
        Ok(Services { tasks, clusters, context: shared, commands })
    }

    /// Does work that takes a while on a thread of its own.
    pub fn compute(&self, work: Box<dyn FnOnce() + Send>) {
        // The services thread lives as long as the process.
        let _ = self.tasks.send(Task::Compute(work));
    }

    /// Names of hosts.
    pub fn names(&self) -> &NameService {
        &self.context.names
    }

    /// The clusters to watch from now on; those known already keep their state.
    pub fn set_clusters(&self, wanted: Vec<ClusterOptions>) {
        let mut clusters = lock(&self.clusters);
        clusters.retain(|name, watched| {
            let keep = wanted.iter().any(|options| options.machine.database == *name);
            if !keep {
                // The task may have ended.
                let _ = watched.inputs.send(Input::Stop);
            }
            keep
        });
        for options in wanted {
            let name = options.machine.database.clone();
            match clusters.get_mut(&name) {
                Some(watched) if watched.options == options => {}
                Some(watched) => {
                    watched.options = options.clone();
                    let _ = watched.inputs.send(Input::Options(Box::new(options)));
                }
                None => {
                    let (system, timeline) = self.context.house.recall(&name);
                    let (now, own) = (Instant::now(), options.machine.clone());
                    let machine = Cluster::remembering(now, own, system, timeline);
                    let machine = Arc::new(Mutex::new(machine));
                    let (inputs, received) = unbounded_channel();
                    let start = (Arc::clone(&machine), options.clone(), inputs.clone(), received);
                    let _ = self.tasks.send(Task::Watch(Box::new(start)));
                    clusters.insert(name, Watched { options, inputs, machine });
                }
            }
        }
    }

    /// Something went wrong with a node; `None` means all of them.
    pub fn signal(&self, database: &str, node: Option<NodeId>, kind: SignalKind) {
        if let Some(watched) = lock(&self.clusters).get(database) {
            let _ = watched.inputs.send(Input::Signal(node, kind));
        }
    }

    /// An operator's command; the answer goes to the console. False if there is no such cluster.
    pub fn command(&self, database: &str, command: Command, console: Ticket) -> bool {
        let clusters = lock(&self.clusters);
        let Some(watched) = clusters.get(database) else { return false };
        let id = CommandId(self.commands.fetch_add(1, Ordering::Relaxed));
        lock(&self.context.asked).insert(id, (database.to_owned(), console));
        watched.inputs.send(Input::Command(id, command)).is_ok()
    }

    /// So many transactions run on the writer of a cluster.
    pub fn running(&self, database: &str, round: u64, running: usize) {
        if let Some(watched) = lock(&self.clusters).get(database) {
            let _ = watched.inputs.send(Input::Running(round, running));
        }
    }

    /// Numbers of all clusters.
    pub fn snapshots(&self) -> Vec<ClusterSnapshot> {
        lock(&self.clusters).values().map(|watched| lock(&watched.machine).snapshot()).collect()
    }
}

/// Nodes that are being asked.
struct Nodes {
    login: Arc<ProbeLogin>,
    names: Arc<NameService>,
    inputs: UnboundedSender<Input>,
    senders: HashMap<NodeId, UnboundedSender<Request>>,
}

impl Nodes {
    fn ask(&mut self, node: NodeId, endpoint: Endpoint, request: Request) {
        let (login, names) = (&self.login, &self.names);
        let sender = self.senders.entry(node).or_insert_with(|| {
            let (sender, requests) = unbounded_channel();
            let (login, names) = (Arc::clone(login), Arc::clone(names));
            let way = Way { endpoint, login, names };
            let inputs = self.inputs.clone();
            tokio::spawn(probe::serve(node, way, requests, inputs));
            sender
        });
        // The task ends with its sender only.
        let _ = sender.send(request);
    }

    fn way(&self, endpoint: Endpoint) -> Way {
        let (login, names) = (Arc::clone(&self.login), Arc::clone(&self.names));
        Way { endpoint, login, names }
    }

    fn topology(&mut self, node: NodeId, id: TopologyId, sql: String) {
        match self.senders.get(&node) {
            Some(sender) => {
                let _ = sender.send(Request::Topology { id, sql });
            }
            None => {
                let error = Err("the node is not connected".into());
                let _ = self.inputs.send(Input::Topology(id, error));
            }
        }
    }

    fn verify(&mut self, node: NodeId, id: PromotionId) {
        match self.senders.get(&node) {
            Some(sender) => {
                let _ = sender.send(Request::Verify(id));
            }
            None => {
                let error = Err("the new writer is gone".into());
                let _ = self.inputs.send(Input::Verified(id, error));
            }
        }
    }
}

/// One cluster's task.
struct Watch {
    database: String,
    machine: Arc<Mutex<Cluster>>,
    options: ClusterOptions,
    nodes: Nodes,
    context: Arc<Context>,
    /// The task that looks for hints.
    hints: Option<JoinHandle<()>>,
}

/// Looks one name up.
async fn look_up(host: String, context: Arc<Context>) {
    let names = Arc::clone(&context.names);
    names.look_up(host, Arc::clone(&context.house), &context.log).await;
}

/// Drives one cluster.
async fn watch((machine, options, inputs, mut received): Start, context: Arc<Context>) {
    let login = Arc::new(options.login.clone());
    let names = Arc::clone(&context.names);
    let nodes = Nodes { login, names, inputs, senders: HashMap::new() };
    let database = options.machine.database.clone();
    let mut watch = Watch { database, machine, options, nodes, context, hints: None };
    watch.look_for_hints();
    let alarm = Alarm::new();
    loop {
        let (effects, timeout) = {
            let mut machine = lock(&watch.machine);
            let effects: Vec<Effect> = std::iter::from_fn(|| machine.poll_effect()).collect();
            (effects, machine.poll_timeout())
        };
        let mut released = None;
        for effect in effects {
            released = watch.act(effect).or(released);
        }
        if let Some(clients) = released {
            lock(&watch.machine).handle_release(Instant::now(), clients);
            continue;
        }
        let timeout = timeout.unwrap_or_else(|| Instant::now() + probe::PATIENCE);
        let input = tokio::select! {
            input = received.recv() => match input {
                Some(Input::Stop) | None => return watch.forget(),
                Some(input) => Some(input),
            },
            () = alarm.until(timeout) => None,
        };
        watch.feed(input);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hints.iter().for_each(JoinHandle::abort);
    }
}

impl Watch {
    /// Begins to look for hints anew, if there are places to look at.
    fn look_for_hints(&mut self) {
        self.hints.take().iter().for_each(JoinHandle::abort);
        let urls = self.options.patroni.clone();
        if !urls.is_empty() {
            let (machine, inputs) = (Arc::clone(&self.machine), self.nodes.inputs.clone());
            let watching = patroni::watch(urls, machine, inputs);
            self.hints = Some(tokio::spawn(watching));
        }
    }

    /// Carries out an order; answers how many clients waited, if that ended a hold.
    fn act(&mut self, effect: Effect) -> Option<usize> {
        let database = &self.database;
        match effect {
            Effect::Publish(view) => return self.context.house.publish(database, &view),
            Effect::Log(severity, text) => self.context.log.write(level(severity), &text),
            Effect::Ask { node, endpoint, id, question, via, deadline } => {
                let request = Request::Ask { id, question, via, deadline };
                self.nodes.ask(node, endpoint, request);
            }
            Effect::RunTopology { node, id } => {
                let sql = self.options.machine.topology_query.clone();
                self.nodes.topology(node, id, sql);
            }
            Effect::Forget(node) => drop(self.nodes.senders.remove(&node)),
            Effect::Count(round) => {
                if let Some(running) = self.context.house.count(database, round) {
                    let _ = self.nodes.inputs.send(Input::Running(round, running));
                }
            }
            Effect::Kill(node) => self.context.house.cut(database, node),
            Effect::Promote { id, name, endpoint, old, deadline, .. } => {
                let way = self.nodes.way(endpoint);
                let order = promote::Order {
                    command: self.options.promote_command.clone(),
                    patroni: self.options.patroni.clone(),
                    name,
                    old,
                    deadline,
                };
                let inputs = self.nodes.inputs.clone();
                tokio::spawn(async move {
                    let result = promote::run(order, &way).await;
                    let _ = inputs.send(Input::Promoted(id, result));
                });
            }
            Effect::Verify { id, node } => self.nodes.verify(node, id),
            Effect::Answer(id, result) => {
                let console = lock(&self.context.asked).remove(&id);
                if let Some((_, console)) = console {
                    self.context.house.answer(console, result);
                }
            }
            Effect::Recorded(change) => {
                let (context, database) = (Arc::clone(&self.context), self.database.clone());
                tokio::spawn(async move {
                    // The last clients that waited are still on their way.
                    tokio::time::sleep(SETTLED).await;
                    context.house.record(&database, &change);
                });
            }
            Effect::Remember(system, timeline) => {
                self.context.house.remember(database, system, timeline);
            }
        }
        None
    }

    fn feed(&mut self, input: Option<Input>) {
        let (mut machine, now) = (lock(&self.machine), Instant::now());
        match input {
            None => machine.handle_timeout(now),
            Some(Input::Answer(node, id, answer)) => machine.handle_answer(now, node, id, answer),
            Some(Input::Topology(id, rows)) => machine.handle_topology(now, id, rows),
            Some(Input::Signal(node, kind)) => {
                let view = node.and_then(|node| machine.view().node(node));
                if let Some(view) = view.filter(|_| kind != SignalKind::Moved) {
                    // Whatever is wrong there, it may be the wrong place.
                    self.nodes.names.refresh_if(&view.host, Duration::ZERO);
                }
                machine.handle_signal(now, node, kind);
            }
            Some(Input::Command(id, command)) => machine.handle_command(now, id, command),
            Some(Input::Running(round, count)) => machine.handle_running(now, round, count),
            Some(Input::Promoted(id, result)) => machine.handle_promoted(now, id, result),
            Some(Input::Verified(id, result)) => machine.handle_verified(now, id, result),
            Some(Input::Options(options)) => {
                if *self.nodes.login != options.login {
                    // Probes log in anew with their next question.
                    self.nodes.login = Arc::new(options.login.clone());
                    self.nodes.senders.clear();
                }
                machine.handle_options(now, options.machine.clone());
                drop(machine);
                let anew = self.options.patroni != options.patroni;
                self.options = *options;
                if anew {
                    self.look_for_hints();
                }
            }
            Some(Input::Stop) => {}
        }
    }

    /// The cluster is watched no more: nobody waits for it in vain.
    fn forget(&self) {
        let mut asked = lock(&self.context.asked);
        let gone = asked.extract_if(|_, (database, _)| *database == self.database);
        for (_, (_, console)) in gone.collect::<Vec<_>>() {
            self.context.house.answer(console, Err("database removed".into()));
        }
    }
}

/// Time after a release in which clients that waited get their servers.
const SETTLED: Duration = Duration::from_secs(1);

fn level(severity: Severity) -> Level {
    match severity {
        Severity::Log => Level::Log,
        Severity::Warning => Level::Warning,
        Severity::Error => Level::Error,
    }
}
