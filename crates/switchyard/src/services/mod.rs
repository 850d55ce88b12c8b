//! The services thread: everything slow that the workers must not wait for. It watches clusters:
//! one task drives a cluster's machine, one more per node asks the node's questions.
//!
//! Not here: what answers mean (`switchyard_core::switchover`) and what pools do about it.

mod dial;
pub mod probe;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use switchyard_core::switchover::cluster::{Cluster, Effect, Severity};
use switchyard_core::switchover::options::Options;
use switchyard_core::switchover::probe::{Answer, ProbeId, SignalKind, TopologyId};
use switchyard_core::switchover::snapshot::ClusterSnapshot;
use switchyard_core::switchover::topology::{Endpoint, TopologyRow};
use switchyard_core::switchover::view::{NodeId, View};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

use crate::log::{Level, Log};
use probe::{ProbeLogin, Request};

/// A cluster to be watched.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterOptions {
    /// For its machine.
    pub machine: Options,
    /// For its probes.
    pub login: ProbeLogin,
}

/// What the cluster's task is told.
#[derive(Debug)]
enum Input {
    Answer(NodeId, ProbeId, Answer),
    Topology(TopologyId, Result<Vec<TopologyRow>, String>),
    Signal(Option<NodeId>, SignalKind),
    Options(Box<ClusterOptions>),
    Stop,
}

/// Called with each published view, on the services thread. Answers how many clients waited for a
/// writer that is there again.
pub type Publish = Box<dyn Fn(&str, &View) -> Option<usize> + Send + Sync>;

struct Context {
    publish: Publish,
    log: Arc<Log>,
}

/// A cluster that is being watched.
struct Watched {
    options: ClusterOptions,
    inputs: UnboundedSender<Input>,
    machine: Arc<Mutex<Cluster>>,
}

type Start =
    (Arc<Mutex<Cluster>>, ClusterOptions, UnboundedSender<Input>, UnboundedReceiver<Input>);

/// The handle of the services thread.
pub struct Services {
    start: UnboundedSender<Start>,
    clusters: Mutex<BTreeMap<String, Watched>>,
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
    /// Starts the thread.
    pub fn start(publish: Publish, log: Arc<Log>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (start, mut starts) = unbounded_channel::<Start>();
        let context = Arc::new(Context { publish, log });
        std::thread::Builder::new().name("services".into()).spawn(move || {
            let local = LocalSet::new();
            local.block_on(&runtime, async move {
                while let Some(start) = starts.recv().await {
                    tokio::task::spawn_local(watch(start, Arc::clone(&context)));
                }
            });
        })?;
        Ok(Services { start, clusters: Mutex::default() })
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
                    let machine = Cluster::new(Instant::now(), options.machine.clone());
                    let machine = Arc::new(Mutex::new(machine));
                    let (inputs, received) = unbounded_channel();
                    let start = (Arc::clone(&machine), options.clone(), inputs.clone(), received);
                    let _ = self.start.send(start);
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

    /// Numbers of all clusters.
    pub fn snapshots(&self) -> Vec<ClusterSnapshot> {
        lock(&self.clusters).values().map(|watched| lock(&watched.machine).snapshot()).collect()
    }
}

/// Nodes that are being asked.
struct Nodes {
    login: Arc<ProbeLogin>,
    inputs: UnboundedSender<Input>,
    senders: HashMap<NodeId, UnboundedSender<Request>>,
}

impl Nodes {
    fn ask(&mut self, node: NodeId, endpoint: Endpoint, request: Request) {
        let sender = self.senders.entry(node).or_insert_with(|| {
            let (sender, requests) = unbounded_channel();
            let (login, inputs) = (Arc::clone(&self.login), self.inputs.clone());
            tokio::task::spawn_local(probe::serve(node, endpoint, login, requests, inputs));
            sender
        });
        // The task ends with its sender only.
        let _ = sender.send(request);
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
}

/// Drives one cluster.
async fn watch((machine, options, inputs, mut received): Start, context: Arc<Context>) {
    let database = options.machine.database.clone();
    let mut sql = options.machine.topology_query.clone();
    let mut nodes = Nodes { login: Arc::new(options.login), inputs, senders: HashMap::new() };
    loop {
        let (effects, timeout) = {
            let mut machine = lock(&machine);
            let effects: Vec<Effect> = std::iter::from_fn(|| machine.poll_effect()).collect();
            (effects, machine.poll_timeout())
        };
        let mut released = None;
        for effect in effects {
            match effect {
                Effect::Publish(view) => {
                    released = (context.publish)(&database, &view).or(released)
                }
                Effect::Log(severity, text) => context.log.write(level(severity), &text),
                Effect::Ask { node, endpoint, id, question, via, deadline } => {
                    let request = Request::Ask { id, question, via, deadline };
                    nodes.ask(node, endpoint, request);
                }
                Effect::RunTopology { node, id } => nodes.topology(node, id, sql.clone()),
                Effect::Forget(node) => drop(nodes.senders.remove(&node)),
            }
        }
        if let Some(clients) = released {
            lock(&machine).handle_release(Instant::now(), clients);
            continue;
        }
        let timeout = timeout.unwrap_or_else(|| Instant::now() + probe::PATIENCE);
        let input = tokio::select! {
            input = received.recv() => match input {
                Some(Input::Stop) | None => return,
                Some(input) => Some(input),
            },
            () = tokio::time::sleep_until(timeout.into()) => None,
        };
        let (mut machine, now) = (lock(&machine), Instant::now());
        match input {
            None => machine.handle_timeout(now),
            Some(Input::Answer(node, id, answer)) => machine.handle_answer(now, node, id, answer),
            Some(Input::Topology(id, rows)) => machine.handle_topology(now, id, rows),
            Some(Input::Signal(node, kind)) => machine.handle_signal(now, node, kind),
            Some(Input::Options(options)) => {
                if *nodes.login != options.login {
                    // Probes log in anew with their next question.
                    nodes.login = Arc::new(options.login);
                    nodes.senders.clear();
                }
                sql.clone_from(&options.machine.topology_query);
                machine.handle_options(now, options.machine);
            }
            Some(Input::Stop) => return,
        }
    }
}

fn level(severity: Severity) -> Level {
    match severity {
        Severity::Log => Level::Log,
        Severity::Warning => Level::Warning,
        Severity::Error => Level::Error,
    }
}
