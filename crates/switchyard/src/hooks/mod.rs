//! The user's Python functions: the processes that run them and how calls get there.
//!
//! A `Host` is one generation of modules. Its loops put calls into queues (`queue`), the processes
//! take them and answer on a socket of each loop (`worker.py`), and a thread looks after the
//! processes (`keeper`). The core's `hook::desk` decides what becomes of each call.
//!
//! Not here: what a verdict means for a client (`worker/hooking`), and the loops' side of the
//! calls (`worker/calls`).

pub mod ask;
pub mod cache;
mod keeper;
pub mod options;
mod output;
pub mod peers;
mod process;
pub mod queue;
pub mod stats;
pub mod warnings;

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use switchyard_core::hook::desk::{HandId, Takes};
use switchyard_core::ids::WorkerId;
use switchyard_io::{Poller, Sender};

use crate::log::Log;
use ask::Oracle;
use keeper::{END_TIME, Keeper, Order};
pub use options::HookOptions;
pub use process::{Purity, Report, Sharing};
use queue::{Journal, Queues};
use warnings::Warnings;

/// A process that is ready, for one loop.
#[derive(Debug)]
pub struct NewHand {
    /// Which.
    pub id: HandId,
    /// What it takes.
    pub takes: Takes,
    /// Its process id.
    pub pid: u32,
    /// What it writes down.
    pub journal: Arc<Journal>,
    /// Where its results for this loop come.
    pub results: UnixStream,
}

/// News for a loop.
#[derive(Debug)]
pub enum Notice {
    /// A process is ready.
    Hand(Box<NewHand>),
    /// A process has ended; why.
    Died(HandId, String),
    /// There is no process and none can be started; why.
    Nobody(String),
}

/// How a host's news reach a loop.
pub type Tell = Box<dyn Fn(WorkerId, Arc<Host>, Notice) + Send>;

/// How a host hangs together with the rest of the process.
pub struct Ties {
    /// Its news reach the loops so.
    pub tell: Tell,
    /// Who answers what modules ask.
    pub oracle: Box<dyn Oracle>,
    /// The log.
    pub log: Arc<Log>,
}

/// Longest wait for the globals of the modules before.
const GLOBALS_TIME: Duration = Duration::from_secs(2);
/// A module that takes over globals defines a function of this name.
const RELOAD: &[u8] = b"switchyard_reload";

/// One generation of modules and its processes.
pub struct Host {
    /// What it was started with.
    pub options: HookOptions,
    /// When its modules were loaded.
    pub loaded_at: SystemTime,
    /// Where calls are put.
    pub queues: Queues,
    /// Which warnings may be written.
    pub warnings: Warnings,
    loops: usize,
    inherited: Option<Vec<u8>>,
    draining: AtomicBool,
    report: Mutex<Option<Report>>,
    orders: Sender<Order>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Host {
    /// Loads the modules in a first process; the error is Python's. `before` are the modules that
    /// these replace.
    pub fn start(
        options: HookOptions,
        loops: usize,
        before: Option<&Host>,
        ties: Ties,
    ) -> Result<Arc<Self>, String> {
        let text = |error: std::io::Error| format!("cannot make the hooks' channels: {error}");
        let sources = options.modules.iter().filter_map(|module| module.source.as_ref().ok());
        let takes_over = |source: &Vec<u8>| source.windows(RELOAD.len()).any(|w| w == RELOAD);
        let wanted = sources.into_iter().any(takes_over);
        let inherited = before.filter(|_| wanted).map(Host::globals);
        let poller = Poller::new(64).map_err(text)?;
        let inbox = poller.inbox().map_err(text)?;
        let host = Arc::new(Host {
            options,
            loaded_at: SystemTime::now(),
            queues: Queues::new(loops).map_err(text)?,
            warnings: Warnings::default(),
            loops,
            inherited,
            draining: AtomicBool::new(false),
            report: Mutex::new(None),
            orders: inbox.sender(),
        });
        let (first, loaded) = mpsc::channel();
        let keeper = Keeper::new(Arc::clone(&host), ties, (poller, inbox), first);
        std::thread::Builder::new()
            .name("hooks".into())
            .spawn(move || keeper.run())
            .map_err(text)?;
        match loaded.recv() {
            Ok(Ok(_)) => Ok(host),
            Ok(Err(error)) => Err(error),
            Err(_) => Err("the interpreter's keeper ended".into()),
        }
    }

    /// What the modules say about themselves.
    pub fn report(&self) -> Option<Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_report(&self, report: Report) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    /// All processes are busy and calls wait.
    pub fn need_more(&self) {
        self.orders.send(Order::More);
    }

    /// Ends a process that is stuck.
    pub fn kill(&self, hand: HandId) {
        self.orders.send(Order::Kill(hand));
    }

    /// No new calls come; when every loop has left, the processes end.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.orders.send(Order::Drain);
    }

    /// Whether its time is over.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Number of loops that it serves.
    pub fn loops(&self) -> usize {
        self.loops
    }

    /// A loop has no open call here any more.
    pub fn leave(&self, worker: WorkerId) {
        self.orders.send(Order::Left(worker));
    }

    /// The pooler ends: gives the processes time to run what they have registered for their end.
    pub fn end(&self) {
        let (to, ended) = mpsc::channel();
        self.orders.send(Order::End(to));
        // Those that take longer die with the pooler.
        let _ = ended.recv_timeout(END_TIME);
    }

    fn globals(&self) -> Vec<u8> {
        let (to, globals) = mpsc::channel();
        self.orders.send(Order::Globals(to));
        globals.recv_timeout(GLOBALS_TIME).unwrap_or_default()
    }
}
