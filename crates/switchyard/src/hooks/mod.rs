//! The user's Python functions: which process runs which call, and what becomes of it.
//!
//! Each process has a thread that hands it up to [`BATCH_MAX`] calls at once and passes the
//! results to the workers. Users whose calls have been slow are served one by one, and never by
//! the first process, so that the others do not wait for them. Every call gets exactly one
//! verdict: a call that was running when its process died or took too long has failed, those
//! behind it run elsewhere.
//!
//! Not here: what a verdict means for a client (`worker/hooking`).

mod process;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use switchyard_config::settings::Settings;
use switchyard_core::ids::Ticket;

use crate::log::{Level, Log};
use process::Process;

/// Calls handed over at once.
const BATCH_MAX: usize = 8;
/// A call that took longer makes its user a slow one until a faster call.
const SLOW: Duration = Duration::from_millis(5);
/// Waiting calls older than this make another process start.
const CROWDED: Duration = Duration::from_millis(10);
/// Idle time after which an additional process ends.
const IDLE: Duration = Duration::from_secs(60);
/// Pause before a process is started again that could not be, times the failures in a row.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
/// At most one warning a hook in this time.
const WARNING_EVERY: Duration = Duration::from_secs(1);
/// Setting's word for a hook that is off.
const OFF: &str = "not_enabled";

/// Which modules run how.
#[derive(Clone, Debug, PartialEq)]
pub struct HookOptions {
    /// File of rewrite_query; empty if off.
    pub rewrite_file: String,
    /// File of routing_rules; empty if off.
    pub route_file: String,
    /// The interpreter.
    pub python: String,
    /// `hook_timeout`; `None` means no deadline.
    pub timeout: Option<Duration>,
    /// `hook_workers`.
    pub workers: usize,
    /// `hook_workers_max`.
    pub workers_max: usize,
    /// `hook_max_query_size` in bytes.
    pub query_max: usize,
    /// The files of one moment, so that a process that starts later runs the same code.
    modules: [Module; 2],
}

/// A module's file.
#[derive(Clone, Debug, PartialEq)]
struct Module {
    stamp: Option<SystemTime>,
    source: Result<Vec<u8>, String>,
}

impl HookOptions {
    /// From settings; `None` if no hook is on.
    pub fn new(settings: &Settings) -> Option<Self> {
        let file = |text: &str| {
            let on = !text.is_empty() && text != OFF;
            if on { text.to_owned() } else { String::new() }
        };
        let rewrite_file = file(&settings.rewrite_query_py_module_file);
        let route_file = file(&settings.routing_rules_py_module_file);
        if rewrite_file.is_empty() && route_file.is_empty() {
            return None;
        }
        let home = std::env::var("HOME").unwrap_or_default();
        let module = |file: &String| {
            let path = match file.strip_prefix("~/") {
                Some(rest) => PathBuf::from(&home).join(rest),
                None => PathBuf::from(file),
            };
            let stamp = std::fs::metadata(&path).and_then(|data| data.modified()).ok();
            let read = |path| std::fs::read(path).map_err(|error| format!("{file}: {error}"));
            let source = if file.is_empty() { Ok(Vec::new()) } else { read(path) };
            Module { stamp, source }
        };
        let environment = settings.hook_python.clone().or(std::env::var("VIRTUAL_ENV").ok());
        let python = match environment {
            Some(path) if PathBuf::from(&path).is_dir() => format!("{path}/bin/python3"),
            Some(path) => path,
            None => "python3".into(),
        };
        let count = |number: i64| usize::try_from(number).unwrap_or(1).max(1);
        let timeout = settings.hook_timeout;
        Some(HookOptions {
            modules: [&rewrite_file, &route_file].map(module),
            rewrite_file,
            route_file,
            python,
            timeout: (!timeout.is_zero()).then_some(timeout),
            workers: count(settings.hook_workers),
            workers_max: count(settings.hook_workers_max).max(count(settings.hook_workers)),
            query_max: settings.hook_max_query_size.0 as usize,
        })
    }
}

/// A question to the functions.
#[derive(Clone, Debug)]
pub struct Call {
    /// The client.
    pub ticket: Ticket,
    /// Which of its calls.
    pub id: u64,
    /// Login name.
    pub user: String,
    /// Text of the message, as the client sent it.
    pub text: Vec<u8>,
    /// Its client_encoding.
    pub encoding: Vec<u8>,
    /// Whether a transaction block is open.
    pub in_transaction: bool,
    /// When it was asked.
    pub asked: Instant,
}

/// What a function said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is off.
    Off,
    /// None, or the same text.
    Same,
    /// A text or key.
    Given(Vec<u8>),
    /// It failed; why.
    Failed(String),
}

impl Outcome {
    fn of(code: u8, bytes: &[u8]) -> Option<Self> {
        Some(match code {
            0 => Outcome::Off,
            1 => Outcome::Same,
            2 => Outcome::Given(bytes.into()),
            3 => Outcome::Failed(String::from_utf8_lossy(bytes).into_owned()),
            _ => return None,
        })
    }
}

/// Both functions' words about one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of rewrite_query.
    pub rewrite: Outcome,
    /// Of routing_rules.
    pub route: Outcome,
}

/// What warnings are about; each has a rate of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// rewrite_query failed.
    Rewrite,
    /// routing_rules failed.
    Route,
    /// A key that is no entry.
    Unknown,
    /// A key that came inside a transaction.
    Inside,
}

/// A verdict with the client and the number of its call.
pub type Judged = (Ticket, u64, Verdict);
/// Where verdicts go: all that came at once, so that a worker is woken once.
pub type Sink = Box<dyn Fn(Vec<Judged>) + Send + Sync>;

/// Calls that wait, and who could take them.
#[derive(Debug, Default)]
struct Queue {
    fast: VecDeque<Call>,
    slow: VecDeque<Call>,
    slow_users: HashSet<String>,
    threads: usize,
    idle: usize,
    /// Idle ones that were woken.
    waking: usize,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// What waits is still served; then the processes end.
    Draining,
}

/// The processes of one generation of modules.
pub struct Host {
    /// What it was started with.
    pub options: HookOptions,
    queue: Mutex<Queue>,
    ready: Condvar,
    log: Arc<Log>,
    sink: Sink,
    warned: Mutex<HashMap<Topic, (Option<Instant>, u64)>>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Host {
    /// Loads the modules in a first process and starts the others; the error is Python's.
    pub fn start(options: HookOptions, sink: Sink, log: Arc<Log>) -> Result<Arc<Self>, String> {
        let first = Process::start(&options, &log)?;
        let host = Arc::new(Host {
            options,
            queue: Mutex::default(),
            ready: Condvar::new(),
            log,
            sink,
            warned: Mutex::default(),
        });
        host.spawn(&mut host.lock(), Some(first));
        for _ in 1..host.options.workers {
            host.spawn(&mut host.lock(), None);
        }
        Ok(host)
    }

    /// Asks all that came up in a turn of a worker; a verdict for each follows.
    pub fn ask(self: &Arc<Self>, calls: &mut Vec<Call>) {
        let fits = |call: &Call| call.text.len() <= self.options.query_max;
        calls.iter().filter(|call| !fits(call)).for_each(|call| {
            self.fail(call, "ValueError: hook_max_query_size exceeded");
        });
        let mut queue = self.lock();
        let now = Instant::now();
        let crowded = |queue: &VecDeque<Call>| {
            queue.front().is_some_and(|oldest| now.duration_since(oldest.asked) > CROWDED)
        };
        let more = queue.idle == 0 && (crowded(&queue.fast) || crowded(&queue.slow));
        if more && queue.threads < self.options.workers_max {
            self.spawn(&mut queue, None);
        }
        for call in calls.drain(..).filter(fits) {
            if queue.slow_users.contains(&call.user) {
                queue.slow.push_back(call);
            } else {
                queue.fast.push_back(call);
            }
        }
        if !queue.slow.is_empty() {
            // The first process does not take these: everybody has to look.
            queue.waking = queue.idle;
            self.ready.notify_all();
        }
        // Those that were woken and have not looked yet take the rest of what is there.
        let wanted = queue.fast.len().div_ceil(BATCH_MAX).min(queue.idle);
        for _ in queue.waking..wanted {
            queue.waking += 1;
            self.ready.notify_one();
        }
    }

    /// No more calls come; what waits is served, then the processes end.
    pub fn drain(&self) {
        self.lock().phase = Phase::Draining;
        self.ready.notify_all();
    }

    /// Whether a warning may be written now, and how many were left out since the last one.
    pub fn may_warn(&self, now: Instant, topic: Topic) -> Option<u64> {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, suppressed) = warned.entry(topic).or_default();
        if last.is_some_and(|at| now.saturating_duration_since(at) < WARNING_EVERY) {
            *suppressed += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(suppressed))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(self: &Arc<Self>, queue: &mut Queue, process: Option<Process>) {
        let (host, index) = (Arc::clone(self), queue.threads);
        let name = format!("hook-{index}");
        let started =
            std::thread::Builder::new().name(name).spawn(move || host.run(index, process));
        match started {
            Ok(_) => queue.threads += 1,
            Err(error) => {
                self.log.write(Level::Error, &format!("cannot start a thread: {error}"));
            }
        }
    }

    fn run(&self, index: usize, mut process: Option<Process>) {
        let mut failures = 0;
        loop {
            // Whoever takes calls is ready for them. A failure is told to the next ones.
            if process.is_none() && failures == 0 {
                process = Process::start(&self.options, &self.log).ok();
            }
            let Some(batch) = self.next(index) else { return };
            let now = Instant::now();
            let (late, mut batch): (VecDeque<Call>, VecDeque<Call>) = batch
                .into_iter()
                .partition(|call| self.options.timeout.is_some_and(|t| now - call.asked > t));
            late.iter().for_each(|call| self.fail(call, "TimeoutError: hook_timeout"));
            let mut running =
                match process.take().map_or_else(|| Process::start(&self.options, &self.log), Ok) {
                    Ok(running) => running,
                    Err(text) => {
                        failures += 1;
                        batch.iter().for_each(|call| self.fail(call, &text));
                        std::thread::sleep(RESTART_PAUSE * failures.min(50));
                        continue;
                    }
                };
            failures = 0;
            if self.serve(&mut running, &mut batch) == Health::Good {
                process = Some(running);
            } else {
                let mut queue = self.lock();
                while let Some(call) = batch.pop_back() {
                    queue.fast.push_front(call);
                }
                self.ready.notify_all();
            }
        }
    }

    /// Runs a batch; what is left in it afterwards was not begun.
    fn serve(&self, process: &mut Process, batch: &mut VecDeque<Call>) -> Health {
        let mut began = Instant::now();
        let mut judged = Vec::new();
        if process.send(batch.iter()).is_err() {
            return self.lost(batch, "RuntimeError: the interpreter ended");
        }
        while !batch.is_empty() {
            let deadline = self.options.timeout.map(|timeout| began + timeout);
            let verdict = match process.receive(deadline) {
                Ok(verdict) => verdict,
                Err(error) => {
                    (self.sink)(judged);
                    let late = error.kind() == io::ErrorKind::TimedOut;
                    let ended = "RuntimeError: the interpreter ended";
                    return self
                        .lost(batch, if late { "TimeoutError: hook_timeout" } else { ended });
                }
            };
            let took = began.elapsed();
            began += took;
            let Some(call) = batch.pop_front() else { return Health::Bad };
            self.note_pace(&call.user, took);
            judged.push((call.ticket, call.id, verdict));
            if !process.has_more() || batch.is_empty() {
                (self.sink)(std::mem::take(&mut judged));
            }
        }
        Health::Good
    }

    fn lost(&self, batch: &mut VecDeque<Call>, reason: &str) -> Health {
        if let Some(call) = batch.pop_front() {
            self.note_pace(&call.user, SLOW * 2);
            self.fail(&call, reason);
        }
        Health::Bad
    }

    fn note_pace(&self, user: &str, took: Duration) {
        let mut queue = self.lock();
        if took > SLOW {
            if queue.slow_users.len() < SLOW_USERS_MAX {
                queue.slow_users.insert(user.to_owned());
            }
        } else if !queue.slow_users.is_empty() {
            queue.slow_users.remove(user);
        }
    }

    /// Waits for calls: several fast ones, or a slow one. `None` ends the thread.
    fn next(&self, index: usize) -> Option<VecDeque<Call>> {
        let mut queue = self.lock();
        let reserved = index == 0 && self.options.workers_max > 1;
        let since = Instant::now();
        loop {
            if !queue.fast.is_empty() {
                let count = queue.fast.len().min(BATCH_MAX);
                return Some(queue.fast.drain(..count).collect());
            }
            if !reserved && let Some(call) = queue.slow.pop_front() {
                return Some(VecDeque::from([call]));
            }
            let over = index >= self.options.workers && since.elapsed() > IDLE;
            if over || (queue.phase == Phase::Draining && queue.slow.is_empty()) {
                queue.threads -= 1;
                return None;
            }
            queue.idle += 1;
            let waited = self.ready.wait_timeout(queue, IDLE);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            queue.idle -= 1;
            queue.waking = queue.waking.saturating_sub(1).min(queue.idle);
        }
    }

    fn fail(&self, call: &Call, reason: &str) {
        let outcome = |file: &str| {
            if file.is_empty() { Outcome::Off } else { Outcome::Failed(reason.to_owned()) }
        };
        let rewrite = outcome(&self.options.rewrite_file);
        let route = outcome(&self.options.route_file);
        (self.sink)(vec![(call.ticket, call.id, Verdict { rewrite, route })]);
    }
}

/// Whether a process can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Good,
    Bad,
}

/// Users remembered as slow.
const SLOW_USERS_MAX: usize = 10_000;
