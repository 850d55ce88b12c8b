//! The thread that keeps the Python processes: starts, replaces and ends them, and passes what
//! they print to the log. Calls never come through here.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use switchyard_core::hook::desk::{HandId, Takes};
use switchyard_core::ids::WorkerId;
use switchyard_io::poller::WAKE;
use switchyard_io::{Inbox, Poller};

use super::ask::{Told, answer};
use super::output::Output;
use super::process::{Kit, Process, Report, Sharing, Word};
use super::{Host, NewHand, Notice, Ties};
use crate::log::Level;

/// Longest loading of a module.
const LOAD_TIME: Duration = Duration::from_secs(30);
/// Time for `atexit` at an orderly end.
pub(super) const END_TIME: Duration = Duration::from_secs(1);
/// Pause before the second start after a failure; it doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_DOUBLINGS: u32 = 6;
/// Failures in a row for which calls wait for the next process.
const HOPEFUL: u32 = 3;
/// A process that lived longer, or that has finished a call, was no failure of its start.
const PROVEN: Duration = Duration::from_millis(500);
/// Idle time after which an additional process ends.
const IDLE: Duration = Duration::from_secs(60);
/// Time between two looks at what is due.
const TICK: Duration = Duration::from_millis(250);

/// What is asked of a keeper.
#[derive(Debug)]
pub(super) enum Order {
    /// All processes are busy and calls wait.
    More,
    /// A process is stuck.
    Kill(HandId),
    /// The globals of the modules.
    Globals(mpsc::Sender<Vec<u8>>),
    /// No new calls come: the processes end when every loop has no open call.
    Drain,
    /// A loop has no open call any more.
    Left(WorkerId),
    /// The pooler ends.
    End(mpsc::Sender<()>),
}

#[derive(Debug)]
enum Stage {
    Loading,
    Ready,
    /// It was told to end, or killed.
    Ending,
}

#[derive(Debug)]
struct Kept {
    process: Process,
    takes: Takes,
    stage: Stage,
    since: Instant,
    output: Output,
    /// Last call seen in its hands, and since when.
    last: (u64, Instant),
    wear: Wear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wear {
    Good,
    /// It is to be replaced when another is ready.
    Worn,
}

#[derive(Debug)]
enum Phase {
    Open,
    Draining,
    Ending,
}

/// The keeper's own state.
pub(super) struct Keeper {
    host: Arc<Host>,
    ties: Ties,
    poller: Poller,
    inbox: Inbox<Order>,
    kept: BTreeMap<u32, Kept>,
    started: u32,
    failures: u32,
    restart_at: Instant,
    first: Option<mpsc::Sender<Result<Report, String>>>,
    left: HashSet<WorkerId>,
    phase: Phase,
    wanted: usize,
    asked: Vec<mpsc::Sender<Vec<u8>>>,
    ended: Option<mpsc::Sender<()>>,
    silent: (Instant, u64),
}

/// Kinds of sources of a process, in the low bits of its token.
const OUTPUT: u64 = 0;
const CONTROL: u64 = 1;
const END: u64 = 2;
const ASKED: u64 = 3;

/// A module's word for a level.
fn level_of(word: &str) -> Level {
    match word {
        "debug" => Level::Debug,
        "warning" => Level::Warning,
        "error" => Level::Error,
        _ => Level::Log,
    }
}

impl Keeper {
    pub(super) fn new(
        host: Arc<Host>,
        ties: Ties,
        (poller, inbox): (Poller, Inbox<Order>),
        first: mpsc::Sender<Result<Report, String>>,
    ) -> Self {
        let (now, wanted) = (Instant::now(), host.options.workers);
        Keeper {
            host,
            ties,
            poller,
            inbox,
            kept: BTreeMap::new(),
            started: 0,
            failures: 0,
            restart_at: now,
            first: Some(first),
            left: HashSet::new(),
            phase: Phase::Open,
            wanted,
            asked: Vec::new(),
            ended: None,
            silent: (now - Duration::from_secs(2), 0),
        }
    }

    /// Runs until all processes have ended for good.
    pub(super) fn run(mut self) {
        let (mut ready, mut orders) = (Vec::new(), Vec::new());
        self.supply(Instant::now());
        loop {
            let busy = self.kept.values().any(|kept| kept.output.has_more());
            let timeout = if busy { Duration::ZERO } else { TICK };
            if self.poller.wait(Some(timeout), &mut ready).is_err() {
                return;
            }
            for event in ready.drain(..) {
                if event.token == WAKE {
                    self.inbox.drain(&mut orders);
                    orders.drain(..).for_each(|order| self.obey(order));
                    continue;
                }
                let id = (event.token >> 2) as u32;
                match event.token & 3 {
                    OUTPUT => self.read_output(id),
                    CONTROL => self.listen(id),
                    ASKED => self.hear(id),
                    _ => self.ended(id),
                }
            }
            let again: Vec<u32> = self.with_output();
            again.into_iter().for_each(|id| self.read_output(id));
            let now = Instant::now();
            self.tick(now);
            self.supply(now);
            let over = !matches!(self.phase, Phase::Open) && self.kept.is_empty();
            if over {
                if let Some(ended) = self.ended.take() {
                    // Who waits may have gone already.
                    let _ = ended.send(());
                }
                return;
            }
        }
    }

    fn with_output(&self) -> Vec<u32> {
        let more = self.kept.iter().filter(|(_, kept)| kept.output.has_more());
        more.map(|(id, _)| *id).collect()
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::More => {
                let max = self.host.options.workers_max;
                let loading = self.kept.values().any(|kept| matches!(kept.stage, Stage::Loading));
                if self.wanted < max && !loading && !self.is_shared() {
                    self.wanted += 1;
                }
            }
            Order::Kill(hand) => {
                if let Some(kept) = self.kept.get_mut(&hand.0) {
                    kept.process.kill();
                }
            }
            Order::Globals(to) => {
                let ready = self.kept.values_mut().find(|k| matches!(k.stage, Stage::Ready));
                if let Some(kept) = ready {
                    kept.process.order(b'G');
                }
                self.asked.push(to);
            }
            Order::Drain => {
                self.phase = Phase::Draining;
                self.end_if_left();
            }
            Order::Left(worker) => {
                self.left.insert(worker);
                self.end_if_left();
            }
            Order::End(to) => {
                self.ended = Some(to);
                self.end_all();
            }
        }
    }

    fn end_if_left(&mut self) {
        if matches!(self.phase, Phase::Draining) && self.left.len() >= self.host.loops {
            self.end_all();
        }
    }

    fn end_all(&mut self) {
        self.phase = Phase::Ending;
        self.kept.keys().copied().collect::<Vec<_>>().into_iter().for_each(|id| self.end(id));
    }

    fn end(&mut self, id: u32) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        match kept.stage {
            Stage::Loading => kept.process.kill(),
            Stage::Ready => kept.process.order(b'E'),
            Stage::Ending => return,
        }
        (kept.stage, kept.since) = (Stage::Ending, Instant::now());
    }

    fn is_shared(&self) -> bool {
        self.host.report().is_some_and(|report| report.sharing == Sharing::Shared)
    }

    /// Starts what is missing.
    fn supply(&mut self, now: Instant) {
        if now < self.restart_at || matches!(self.phase, Phase::Ending) {
            return;
        }
        let wanted = if self.is_shared() || self.first.is_some() { 1 } else { self.wanted };
        let mut alive = self
            .kept
            .values()
            .filter(|kept| !matches!(kept.stage, Stage::Ending) && kept.wear == Wear::Good);
        if alive.clone().count() >= wanted {
            return;
        }
        let reserved = self.host.options.workers_max > 1 && !self.is_shared();
        let kept_free = alive.any(|kept| kept.takes == Takes::FastOnly);
        let takes = if reserved && !kept_free { Takes::FastOnly } else { Takes::Both };
        let kit = Kit {
            options: &self.host.options,
            queues: &self.host.queues,
            loops: self.host.loops,
            inherited: self.host.inherited.as_deref(),
        };
        match Process::start(&kit, takes) {
            Ok(process) => self.watch(now, process, takes),
            Err(text) => self.failed(now, &text),
        }
    }

    fn watch(&mut self, now: Instant, process: Process, takes: Takes) {
        self.started += 1;
        let token = u64::from(self.started) << 2;
        let sources = [
            (process.output.as_raw_fd(), OUTPUT),
            (process.control.as_raw_fd(), CONTROL),
            (process.pidfd.as_raw_fd(), END),
        ];
        for (fd, kind) in sources {
            if let Err(error) = self.poller.register_fd(fd, token | kind) {
                return self.failed(now, &format!("cannot watch an interpreter: {error}"));
            }
        }
        if let Some(fd) = process.ears.fd()
            && let Err(error) = self.poller.register_fd_both(fd, token | ASKED)
        {
            return self.failed(now, &format!("cannot watch an interpreter: {error}"));
        }
        let output = Output::new(now);
        let (stage, since, last) = (Stage::Loading, now, (0, now));
        let kept = Kept { process, takes, stage, since, output, last, wear: Wear::Good };
        self.kept.insert(self.started, kept);
    }

    /// A process could not be started or did not load.
    fn failed(&mut self, now: Instant, text: &str) {
        if let Some(first) = self.first.take() {
            // Who started this host may have gone.
            let _ = first.send(Err(text.to_owned()));
            return self.end_all();
        }
        self.slow_down(now);
        self.ties.log.write(Level::Error, &format!("hook process not started: {text}"));
        self.tell_if_nobody(text);
    }

    fn slow_down(&mut self, now: Instant) {
        self.restart_at = now + PAUSE * (1 << self.failures.min(PAUSE_DOUBLINGS));
        self.failures += 1;
    }

    fn tell_if_nobody(&self, text: &str) {
        let ready = self.kept.values().any(|kept| matches!(kept.stage, Stage::Ready));
        if !ready && self.failures > HOPEFUL {
            self.broadcast(|| Notice::Nobody(text.to_owned()));
        }
    }

    fn broadcast(&self, notice: impl Fn() -> Notice) {
        for worker in 0..self.host.loops {
            (self.ties.tell)(WorkerId(worker as u16), Arc::clone(&self.host), notice());
        }
    }

    fn read_output(&mut self, id: u32) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        let output = &mut kept.process.output;
        kept.output.read(Instant::now(), |chunk| output.read(chunk), &self.ties.log);
    }

    /// A process asks or tells something.
    fn hear(&mut self, id: u32) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        kept.process.ears.send();
        for told in kept.process.ears.listen() {
            match told {
                Told::Asked(question) => {
                    let fields = answer(&question, &*self.ties.oracle);
                    kept.process.ears.answer(&fields);
                }
                Told::Log(level, text) => {
                    kept.output.say(Instant::now(), level_of(&level), &text, &self.ties.log);
                }
                Told::Grown(counters) => {
                    counters.iter().for_each(|(name, by)| self.ties.oracle.count(name, *by));
                }
            }
        }
    }

    fn listen(&mut self, id: u32) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        for word in kept.process.words() {
            match word {
                Word::Loaded(report) => self.loaded(id, report),
                Word::Failed(text) => {
                    if let Some(kept) = self.kept.get_mut(&id) {
                        kept.stage = Stage::Ending;
                    }
                    self.failed(Instant::now(), &text);
                }
                Word::Warning(text) => self.ties.log.write(Level::Warning, &text),
                Word::Large(megabytes) => self.wear(id, megabytes),
                Word::Globals(data) => {
                    // Who asked may have become tired of waiting.
                    self.asked.drain(..).for_each(|to| drop(to.send(data.clone())));
                }
            }
        }
    }

    fn loaded(&mut self, id: u32, report: Report) {
        self.host.set_report(report.clone());
        let shared = self.is_shared();
        let Some(kept) = self.kept.get_mut(&id) else { return };
        (kept.stage, kept.since) = (Stage::Ready, Instant::now());
        if shared {
            kept.takes = Takes::Both;
        }
        if !self.asked.is_empty() {
            kept.process.order(b'G');
        }
        let results = std::mem::take(&mut kept.process.results);
        for (worker, results) in results.into_iter().enumerate() {
            let hand = NewHand {
                id: HandId(id),
                takes: kept.takes,
                pid: kept.process.pid(),
                journal: Arc::clone(&kept.process.journal),
                results,
            };
            let worker = WorkerId(worker as u16);
            (self.ties.tell)(worker, Arc::clone(&self.host), Notice::Hand(Box::new(hand)));
        }
        if let Some(first) = self.first.take() {
            // Who started this host may have gone.
            let _ = first.send(Ok(report));
        }
        let worn = self.kept.iter().find(|(_, kept)| kept.wear == Wear::Worn).map(|(id, _)| *id);
        worn.into_iter().for_each(|id| self.end(id));
    }

    fn wear(&mut self, id: u32, megabytes: u64) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        kept.wear = Wear::Worn;
        let pid = kept.process.pid();
        let line = format!("hook process {pid} uses {megabytes} MB (hook_max_rss), replacing it");
        self.ties.log.write(Level::Log, &line);
    }

    /// A process has ended: who waits for it is told, and the log.
    fn ended(&mut self, id: u32) {
        self.read_output(id);
        self.listen(id);
        self.hear(id);
        let Some(mut kept) = self.kept.remove(&id) else { return };
        let now = Instant::now();
        let pid = kept.process.pid();
        let status = kept.process.wait();
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        for fd in [
            kept.process.output.as_raw_fd(),
            kept.process.control.as_raw_fd(),
            kept.process.pidfd.as_raw_fd(),
        ]
        .into_iter()
        .chain(kept.process.ears.fd())
        {
            // Closing it has the same effect.
            let _ = self.poller.deregister_fd(fd);
        }
        match kept.stage {
            Stage::Loading if now.duration_since(kept.since) > LOAD_TIME => {
                let seconds = LOAD_TIME.as_secs();
                self.failed(now, &format!("the module was not loaded within {seconds} s"));
            }
            Stage::Loading => {
                self.failed(now, &format!("the interpreter ended while loading: {how}"))
            }
            Stage::Ready => {
                let text = format!("the interpreter ended: {how}");
                self.note_end(now, pid, &how);
                let served = kept.process.journal.has_served();
                if now.duration_since(kept.since) < PROVEN && !served {
                    self.slow_down(now);
                } else {
                    self.failures = 0;
                }
                self.broadcast(|| Notice::Died(HandId(id), text.clone()));
                self.tell_if_nobody(&text);
            }
            Stage::Ending => {
                let text = format!("the interpreter ended: {how}");
                self.broadcast(|| Notice::Died(HandId(id), text.clone()));
            }
        }
    }

    /// At most one line a second tells of ends that nobody wanted.
    fn note_end(&mut self, now: Instant, pid: u32, how: &str) {
        let (last, suppressed) = &mut self.silent;
        if now.duration_since(*last) < Duration::from_secs(1) {
            *suppressed += 1;
            return;
        }
        *last = now;
        let more = match std::mem::take(suppressed) {
            0 => String::new(),
            more => format!(" ({more} more were not logged)"),
        };
        let line = format!("hook process {pid} ended: {how}{more}");
        self.ties.log.write(Level::Warning, &line);
    }

    fn tick(&mut self, now: Instant) {
        let mut kill = Vec::new();
        let mut idle = None;
        let ready = self.kept.values().filter(|kept| matches!(kept.stage, Stage::Ready)).count();
        for (id, kept) in &mut self.kept {
            let age = now.saturating_duration_since(kept.since);
            match kept.stage {
                Stage::Loading if age > LOAD_TIME => kill.push(*id),
                Stage::Ending if age > END_TIME => kill.push(*id),
                Stage::Ready if kept.takes == Takes::Both && ready > self.host.options.workers => {
                    let last = kept
                        .process
                        .journal
                        .last()
                        .map_or(0, |(id, home)| id.0 << 16 | u64::from(home));
                    if last != kept.last.0 || kept.last.0 == 0 && age < IDLE {
                        kept.last = (last, now);
                    } else if now.saturating_duration_since(kept.last.1) > IDLE {
                        idle = Some(*id);
                    }
                }
                Stage::Loading | Stage::Ending | Stage::Ready => {}
            }
        }
        for id in kill {
            if let Some(kept) = self.kept.get_mut(&id) {
                kept.process.kill();
            }
        }
        if let Some(id) = idle {
            self.wanted = self.wanted.saturating_sub(1).max(self.host.options.workers);
            self.end(id);
        }
    }
}
