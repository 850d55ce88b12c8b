//! A loop's side of the hooks: calls out to the processes, results in.
//!
//! Each generation of modules has a booth with a desk, which follows the calls; an old one stays
//! until its last call has ended. Not here: what a verdict means (`hooking`).

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use switchyard_core::hook::desk::{
    CallId, Class, Desk, DeskOptions, Effect, Failure, Hand, HandId, Handover, Takes, UserId,
};
use switchyard_core::hook::frame::{
    self, Answer, Asked, Block, Call, Outcome, Text, Trouble, Verdict,
};
use switchyard_io::{Key, Ready, Table};

use crate::hooks::cache::{self, Cache};
use crate::hooks::queue::Journal;
use crate::hooks::{HookOptions, Host, NewHand, Notice, Purity};
use crate::worker::{Source, Worker};

/// Calls of a class that lie in the queue or run, for one loop.
const WINDOW: usize = 64;
/// Largest datagram.
const FRAME_MAX: usize = 64 * 1024;
/// Bytes of a result beside its text.
const RESULT_EXTRA: usize = 64 * 1024;
/// Frames' buffers that wait for their next use, and the largest one kept.
const SPARE_COUNT: usize = 256;
const SPARE_SIZE: usize = 4096;

/// A process, as this loop knows it.
#[derive(Debug)]
pub(super) struct HandSlot {
    host: Arc<Host>,
    id: HandId,
    takes: Takes,
    pid: u32,
    journal: Arc<Journal>,
    results: UnixStream,
    input: Vec<u8>,
}

/// One generation of modules.
#[derive(Debug)]
struct Booth {
    host: Arc<Host>,
    desk: Desk,
    /// Calls whose text lies in the loop's file.
    stored: HashSet<CallId>,
    /// Why there is no process.
    nobody: Option<String>,
    /// What the last process that ended said.
    end: String,
    cache: Cache,
    /// Calls whose results are remembered, with their keys.
    remembering: HashMap<CallId, Box<[u8]>>,
}

/// All that a loop knows of hooks.
#[derive(Debug, Default)]
pub(super) struct Booths {
    current: Option<Arc<Host>>,
    booths: Vec<Booth>,
    hands: Table<HandSlot>,
    hasher: RandomState,
    /// Calls asked since the last hand-over.
    asked: usize,
    spare: Vec<Vec<u8>>,
    key: Vec<u8>,
}

/// A question about a client's message.
#[derive(Debug)]
pub(super) struct Question<'a> {
    /// Login name.
    pub(super) user: &'a str,
    /// client_encoding.
    pub(super) encoding: &'a [u8],
    /// Whether a block is open.
    pub(super) block: Block,
    /// Which functions are asked.
    pub(super) asked: Asked,
    /// Text of the message.
    pub(super) text: &'a [u8],
}

/// What comes of a question.
#[derive(Debug)]
pub(super) enum Reply {
    /// The verdict comes later, with this number.
    Later(CallId),
    /// The verdict.
    Now(Verdict),
}

/// A client's verdict, with the number of its call and the microseconds it took.
type Judged = (Key, CallId, Verdict, u32);

/// Both functions' failure.
fn failure(options: &HookOptions, reason: &str) -> Verdict {
    let outcome = |on: bool| {
        if on { Outcome::Failed(Trouble::new(reason)) } else { Outcome::Off }
    };
    Verdict { rewrite: outcome(options.rewrites()), route: outcome(options.routes()) }
}

impl Booths {
    /// The hooks in force.
    #[inline]
    pub(super) fn current(&self) -> Option<&Arc<Host>> {
        self.current.as_ref()
    }

    /// Process ids of all interpreters.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.hands.iter().map(|(_, hand)| hand.pid).collect()
    }

    /// When to look at the calls again.
    pub(super) fn timeout(&self) -> Option<Instant> {
        self.booths.iter().filter_map(|booth| booth.desk.poll_timeout()).min()
    }

    /// Asks the hooks in force; `None` if there are none.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        client: Key,
        home: u16,
        question: &Question<'_>,
    ) -> Option<Reply> {
        let host = self.current.clone()?;
        let booth = self.booths.iter_mut().find(|booth| Arc::ptr_eq(&booth.host, &host))?;
        if question.text.len() > host.options.query_max {
            let reason = "ValueError: hook_max_query_size exceeded";
            return Some(Reply::Now(failure(&host.options, reason)));
        }
        if let Some(reason) = &booth.nobody {
            return Some(Reply::Now(failure(&host.options, reason)));
        }
        let caching = booth.cache.is_on() && question.text.len() <= cache::TEXT_MAX;
        if caching {
            self.key.clear();
            let block = u8::from(question.block == Block::Inside) | question.asked.flags();
            self.key.extend_from_slice(&[block, question.encoding.len() as u8]);
            self.key.extend_from_slice(question.encoding);
            self.key.extend_from_slice(&(question.user.len() as u32).to_le_bytes());
            self.key.extend_from_slice(question.user.as_bytes());
            self.key.extend_from_slice(question.text);
            if let Some(verdict) = booth.cache.find(&self.key) {
                return Some(Reply::Now(verdict));
            }
        }
        let id = booth.desk.next_id();
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.clear();
        let (user, encoding) = (question.user.as_bytes(), question.encoding);
        let text = if Call::fits(user, encoding, question.text.len()) {
            Text::Here(question.text)
        } else {
            let attic = host.queues.attic(home);
            match attic.map(|attic| attic.store(question.text)) {
                Some(Ok(offset)) => {
                    booth.stored.insert(id);
                    Text::InFile { offset, len: question.text.len() as u32 }
                }
                Some(Err(_)) | None => {
                    let reason = "MemoryError: no room for the query";
                    return Some(Reply::Now(failure(&host.options, reason)));
                }
            }
        };
        let Question { block, asked, .. } = *question;
        Call { id, home, block, asked, user, encoding, text }.write(&mut frame);
        if caching {
            booth.remembering.insert(id, self.key.as_slice().into());
        }
        let user = UserId(self.hasher.hash_one(question.user));
        self.asked += 1;
        booth.desk.ask(now, client.to_bits(), user, frame);
        Some(Reply::Later(id))
    }

    /// Whether calls came up since the last look.
    pub(super) fn was_asked(&mut self) -> bool {
        std::mem::take(&mut self.asked) > 0
    }

    fn recycle(&mut self, frames: impl Iterator<Item = Handover>) {
        for (_, _, frame) in frames {
            if self.spare.len() < SPARE_COUNT && frame.capacity() <= SPARE_SIZE {
                self.spare.push(frame);
            }
        }
    }

    /// Hands over what may be.
    fn hand_over(&mut self, index: usize) {
        let Some(booth) = self.booths.get_mut(index) else { return };
        let mut batch: Vec<Handover> = std::iter::from_fn(|| booth.desk.take()).collect();
        // The desk gives fast ones first.
        let slow = batch.partition_point(|(_, class, _)| *class == Class::Fast);
        for class in [Class::Slow, Class::Fast] {
            let mut part = batch.split_off(if class == Class::Slow { slow } else { 0 });
            if part.is_empty() {
                continue;
            }
            let frames: Vec<&[u8]> = part.iter().map(|(_, _, frame)| frame.as_slice()).collect();
            let Some(booth) = self.booths.get_mut(index) else { return };
            let sent = booth.host.queues.queue(class).send(&frames);
            let refused = part.split_off(sent);
            if !refused.is_empty() {
                booth.desk.refused(refused.into_iter());
            }
            self.recycle(part.into_iter());
        }
    }

    /// Takes back this loop's calls that nobody has begun; those of other loops go back.
    fn take_back(&mut self, index: usize, home: u16) {
        let Some(booth) = self.booths.get_mut(index) else { return };
        let mut scratch = vec![0; FRAME_MAX];
        let mut own = Vec::new();
        for class in [Class::Fast, Class::Slow] {
            let queue = booth.host.queues.queue(class);
            let mut others: Vec<Vec<u8>> = Vec::new();
            while let Some(len) = queue.take_back(&mut scratch) {
                let frame = scratch[..len].to_vec();
                match Call::owner(&frame) {
                    Some((id, owner)) if owner == home => own.push((id, frame)),
                    Some(_) | None => others.push(frame),
                }
            }
            let others: Vec<&[u8]> = others.iter().map(Vec::as_slice).collect();
            // They fitted before.
            queue.send(&others);
        }
        booth.desk.reclaimed(own.into_iter());
    }

    fn look(&mut self, index: usize, now: Instant, home: u16) {
        let Some(booth) = self.booths.get_mut(index) else { return };
        let of_host = self.hands.iter().filter(|(_, hand)| Arc::ptr_eq(&hand.host, &booth.host));
        let hands: Vec<Hand> = of_host
            .map(|(_, hand)| Hand {
                id: hand.id,
                takes: hand.takes,
                holds: hand.journal.holds(home),
            })
            .collect();
        booth.desk.looked(now, &hands);
    }

    /// Acts on what a desk orders; failures are appended to `judged`.
    fn obey(&mut self, index: usize, now: Instant, home: u16, judged: &mut Vec<Judged>) {
        loop {
            let Some(booth) = self.booths.get_mut(index) else { return };
            let Some(effect) = booth.desk.poll_effect() else { return };
            match effect {
                Effect::Look => self.look(index, now, home),
                Effect::TakeBack => self.take_back(index, home),
                Effect::Kill(hand) => booth.host.kill(hand),
                Effect::More => booth.host.need_more(),
                Effect::Fail(id, client, why) => {
                    let reason = match why {
                        Failure::Waited | Failure::Ran => TIMEOUT.to_owned(),
                        Failure::Died => format!("RuntimeError: {}", booth.end),
                        Failure::Nobody => booth.nobody.clone().unwrap_or_default(),
                    };
                    booth.ended(id, home);
                    let verdict = failure(&booth.host.options, &reason);
                    judged.push((Key::from_bits(client), id, verdict, 0));
                }
            }
        }
    }

    fn booth(&mut self, host: &Arc<Host>) -> usize {
        let known = self.booths.iter().position(|booth| Arc::ptr_eq(&booth.host, host));
        known.unwrap_or_else(|| {
            self.booths.push(Booth::new(host));
            self.booths.len() - 1
        })
    }

    /// Frames of a process: results to `judged`, differences of shadows to `differences`.
    fn results(
        &mut self,
        host: &Arc<Host>,
        home: u16,
        bytes: &[u8],
        news: &mut News,
    ) -> Result<usize, frame::Garbled> {
        let index = self.booth(host);
        let Some(booth) = self.booths.get_mut(index) else { return Ok(bytes.len()) };
        let len_max = host.options.packet_max.saturating_add(RESULT_EXTRA);
        let mut at = 0;
        while let Some((answer, len)) = frame::read(&bytes[at..], len_max)? {
            at += len;
            match answer {
                Answer::Verdict(id, verdict, micros) => {
                    let took = Duration::from_micros(micros.into());
                    let client = booth.desk.answered(id, took);
                    let key = booth.ended(id, home);
                    if let Some(client) = client {
                        if let Some(key) = key.filter(|_| verdict.is_lasting()) {
                            booth.cache.keep(key, verdict.clone());
                        }
                        news.judged.push((Key::from_bits(client), id, verdict, micros));
                    }
                }
                Answer::Shadow(rewrite, route) => news.differences.push([rewrite, route]),
            }
        }
        Ok(at)
    }
}

/// What came from a process.
#[derive(Debug, Default)]
pub(super) struct News {
    judged: Vec<Judged>,
    differences: Vec<[String; 2]>,
}

/// The failure of a call that took too long.
pub(super) const TIMEOUT: &str = "TimeoutError: hook_timeout";

/// Whether a verdict may be remembered.
trait Lasting {
    fn is_lasting(&self) -> bool;
}

impl Lasting for Verdict {
    fn is_lasting(&self) -> bool {
        let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
        !failed(&self.rewrite) && !failed(&self.route)
    }
}

impl Booth {
    fn new(host: &Arc<Host>) -> Self {
        let options = &host.options;
        let desk = Desk::new(DeskOptions { timeout: options.timeout, window: WINDOW });
        Booth {
            host: Arc::clone(host),
            desk,
            stored: HashSet::new(),
            nobody: None,
            end: String::new(),
            cache: Cache::default(),
            remembering: HashMap::new(),
        }
    }

    /// A call is over: what was kept for it goes. Answers its key in the cache.
    fn ended(&mut self, id: CallId, home: u16) -> Option<Box<[u8]>> {
        if !self.stored.is_empty()
            && self.stored.remove(&id)
            && let Some(attic) = self.host.queues.attic(home)
        {
            attic.forget();
        }
        if self.remembering.is_empty() { None } else { self.remembering.remove(&id) }
    }
}

impl Worker {
    /// The hooks in force may have changed.
    pub(super) fn take_hooks(&mut self) {
        let wanted = self.shared.hooks();
        let same = match (&self.hooks.current, &wanted) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if same {
            return;
        }
        if let Some(host) = &wanted {
            let index = self.hooks.booth(host);
            let loops = self.shared.workers().len().max(1);
            if let Some(booth) = self.hooks.booths.get_mut(index)
                && host.report().is_some_and(|report| report.purity == Purity::Pure)
            {
                booth.cache = Cache::new(host.options.cache_max.div_ceil(loops));
            }
        }
        self.hooks.current = wanted;
        self.leave_booths();
    }

    /// The state of a cluster has changed: what functions said may not hold any more.
    pub(super) fn forget_verdicts(&mut self) {
        for booth in &mut self.hooks.booths {
            booth.cache.clear();
            booth.remembering.clear();
        }
    }

    /// News of a host.
    pub(super) fn hook_notice(&mut self, host: &Arc<Host>, notice: Notice) {
        match notice {
            Notice::Hand(hand) => self.new_hand(host, *hand),
            Notice::Died(id, text) => self.lost_hand(host, id, text),
            Notice::Nobody(text) => {
                let index = self.hooks.booth(host);
                if let Some(booth) = self.hooks.booths.get_mut(index) {
                    booth.nobody = Some(format!("RuntimeError: {text}"));
                    booth.desk.nobody();
                }
                self.obey_desk(index);
            }
        }
        if self.id.0 == 0 {
            let current = self.hooks.current.as_ref();
            let ours = |hand: &HandSlot| current.is_some_and(|c| Arc::ptr_eq(c, &hand.host));
            let count = self.hooks.hands.iter().filter(|(_, hand)| ours(hand)).count();
            self.shared.hook_stats.set_workers(count);
        }
        self.leave_booths();
    }

    fn new_hand(&mut self, host: &Arc<Host>, hand: NewHand) {
        let index = self.hooks.booth(host);
        if let Some(booth) = self.hooks.booths.get_mut(index) {
            booth.nobody = None;
        }
        let NewHand { id, takes, pid, journal, results } = hand;
        let fd = results.as_raw_fd();
        let (host, input) = (Arc::clone(host), Vec::new());
        let slot = HandSlot { host, id, takes, pid, journal, results, input };
        let key = self.hooks.hands.insert(slot);
        if self.poller.register_fd(fd, Source::Hook(key).token()).is_err()
            && let Some(hand) = self.hooks.hands.remove(key)
        {
            // Its calls could not be answered here.
            hand.host.kill(hand.id);
        }
    }

    /// A process has ended: its last results first, then what it held.
    fn lost_hand(&mut self, host: &Arc<Host>, id: HandId, text: String) {
        let found = self
            .hooks
            .hands
            .iter()
            .find(|(_, hand)| hand.id == id && Arc::ptr_eq(&hand.host, host));
        let Some(key) = found.map(|(key, _)| key) else { return };
        self.read_hand(key);
        let Some(hand) = self.hooks.hands.remove(key) else { return };
        // Closing it has the same effect.
        let _ = self.poller.deregister_fd(hand.results.as_raw_fd());
        let home = self.id.0;
        let mut news = News::default();
        let results = hand.journal.results(home);
        // What it wrote last may be half a result.
        let _ = self.hooks.results(host, home, &results, &mut news);
        let held = hand.journal.last().filter(|(_, owner)| *owner == home).map(|(id, _)| id);
        let index = self.hooks.booth(host);
        if let Some(booth) = self.hooks.booths.get_mut(index) {
            booth.end = text;
            booth.desk.died(id, held);
        }
        self.deliver(news);
        self.obey_desk(index);
    }

    /// A process has answered.
    pub(super) fn hand_ready(&mut self, key: Key, event: Ready) {
        self.read_hand(key);
        if event.closed
            && let Some(hand) = self.hooks.hands.get(key)
        {
            // Whatever it is doing, its results cannot come any more.
            hand.host.kill(hand.id);
        }
    }

    fn read_hand(&mut self, key: Key) {
        let mut news = News::default();
        while let Some(hand) = self.hooks.hands.get_mut(key) {
            let kept = hand.input.len();
            if kept >= self.scratch.len() {
                // A long result grows in its own buffer.
                let room = frame::wanted(&hand.input).unwrap_or(kept).max(kept + FRAME_MAX);
                hand.input.resize(room, 0);
                let count = hand.results.read(&mut hand.input[kept..]).unwrap_or(0);
                hand.input.truncate(kept + count);
                let bytes = std::mem::take(&mut hand.input);
                if count == 0 {
                    hand.input = bytes;
                    break;
                }
                self.take_results(key, &bytes, &mut news);
                continue;
            }
            self.scratch[..kept].copy_from_slice(&hand.input);
            let count = hand.results.read(&mut self.scratch[kept..]).unwrap_or(0);
            if count == 0 {
                break;
            }
            hand.input.clear();
            let (room, scratch) = (self.scratch.len() - kept, std::mem::take(&mut self.scratch));
            self.take_results(key, &scratch[..kept + count], &mut news);
            self.scratch = scratch;
            if count < room {
                break;
            }
        }
        self.deliver(news);
    }

    /// Uses bytes of a process; what is left waits for more.
    fn take_results(&mut self, key: Key, bytes: &[u8], news: &mut News) {
        let Some(hand) = self.hooks.hands.get(key) else { return };
        let (host, id) = (Arc::clone(&hand.host), hand.id);
        let used = self.hooks.results(&host, self.id.0, bytes, news);
        let Some(hand) = self.hooks.hands.get_mut(key) else { return };
        match used {
            Ok(used) => hand.input.extend_from_slice(&bytes[used..]),
            Err(frame::Garbled) => host.kill(id),
        }
        if hand.input.is_empty() && hand.input.capacity() > FRAME_MAX {
            hand.input = Vec::new();
        }
    }

    fn deliver(&mut self, news: News) {
        for [rewrite, route] in news.differences {
            self.note_differences(&rewrite, &route);
        }
        for (key, id, verdict, micros) in news.judged {
            self.judged(key, id, verdict, micros);
        }
        if self.hooks.booths.len() > 1 {
            self.leave_booths();
        }
    }

    fn obey_desk(&mut self, index: usize) {
        let mut judged = Vec::new();
        self.hooks.obey(index, self.now, self.id.0, &mut judged);
        self.deliver(News { judged, differences: Vec::new() });
    }

    /// Hands over what came up in this turn, and looks at calls that have become old.
    pub(super) fn serve_desks(&mut self) {
        self.hooks.asked = 0;
        for index in 0..self.hooks.booths.len() {
            let Some(booth) = self.hooks.booths.get_mut(index) else { return };
            if booth.desk.is_empty() {
                continue;
            }
            booth.desk.handle_timeout(self.now);
            self.obey_desk(index);
            self.hooks.hand_over(index);
        }
    }

    /// Old generations without calls are left.
    fn leave_booths(&mut self) {
        let current = self.hooks.current.clone();
        let is_current =
            |host: &Arc<Host>| current.as_ref().is_some_and(|current| Arc::ptr_eq(current, host));
        let gone: Vec<Arc<Host>> = self
            .hooks
            .booths
            .extract_if(.., |booth| {
                booth.desk.is_empty() && !is_current(&booth.host) && booth.host.is_draining()
            })
            .map(|booth| booth.host)
            .collect();
        gone.into_iter().for_each(|host| host.leave(self.id));
    }
}
