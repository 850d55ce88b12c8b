//! A loop's booths: for each generation of modules a desk, which follows the calls, and what lies
//! between it and the processes: frames out, results in, verdicts that are remembered.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
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
use switchyard_io::{Key, Table};

use crate::hooks::cache::{self, Cache};
use crate::hooks::queue::Journal;
use crate::hooks::{HookOptions, Host};

/// Calls of a class that lie in the queue or run, for one loop.
const WINDOW: usize = 64;
/// Largest datagram.
pub(super) const FRAME_MAX: usize = 64 * 1024;
/// Bytes of a result beside its text.
const RESULT_EXTRA: usize = 64 * 1024;
/// Frames' buffers that wait for their next use, and the largest one kept.
const SPARE_COUNT: usize = 256;
const SPARE_SIZE: usize = 4096;

/// A process, as this loop knows it.
#[derive(Debug)]
pub(super) struct HandSlot {
    pub(super) host: Arc<Host>,
    pub(super) id: HandId,
    pub(super) takes: Takes,
    pub(super) pid: u32,
    pub(super) journal: Arc<Journal>,
    pub(super) results: UnixStream,
    pub(super) input: Vec<u8>,
}

/// One generation of modules.
#[derive(Debug)]
pub(super) struct Booth {
    pub(super) host: Arc<Host>,
    pub(super) desk: Desk,
    /// Calls whose text lies in the loop's file.
    stored: HashSet<CallId>,
    /// Why there is no process.
    pub(super) nobody: Option<String>,
    /// What the last process that ended said.
    pub(super) end: String,
    pub(super) cache: Cache,
    /// Calls whose results are remembered, with their keys.
    pub(super) remembering: HashMap<CallId, Box<[u8]>>,
}

/// All that a loop knows of hooks.
#[derive(Debug, Default)]
pub(super) struct Booths {
    pub(super) current: Option<Arc<Host>>,
    pub(super) booths: Vec<Booth>,
    pub(super) hands: Table<HandSlot>,
    hasher: RandomState,
    /// Calls asked since the last hand-over.
    pub(super) asked: usize,
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
pub(super) type Judged = (Key, CallId, Verdict, u32);

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
    pub(super) fn hand_over(&mut self, index: usize) {
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
                last: hand.journal.last().map_or(0, |(id, owner)| id.0 << 16 | u64::from(owner)),
            })
            .collect();
        booth.desk.looked(now, &hands);
    }

    /// Acts on what a desk orders; failures are appended to `judged`.
    pub(super) fn obey(&mut self, index: usize, now: Instant, home: u16, judged: &mut Vec<Judged>) {
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

    pub(super) fn booth(&mut self, host: &Arc<Host>) -> usize {
        let known = self.booths.iter().position(|booth| Arc::ptr_eq(&booth.host, host));
        known.unwrap_or_else(|| {
            self.booths.push(Booth::new(host));
            self.booths.len() - 1
        })
    }

    /// Frames of a process: results to `judged`, differences of shadows to `differences`.
    pub(super) fn results(
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
    pub(super) judged: Vec<Judged>,
    pub(super) differences: Vec<[String; 2]>,
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
