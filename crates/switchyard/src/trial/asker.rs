//! Asks one process, one call after the other.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use switchyard_config::Config;
use switchyard_core::hook::desk::{CallId, Class};
use switchyard_core::hook::frame::{
    self, Answer, Asked, Block, Call, Outcome, Text, Trouble, Verdict,
};

use crate::hooks::{HookOptions, Host, NewHand, Notice, Ties};
use crate::log::Log;
use crate::oracle::Knowledge;

/// Longest wait for a process.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time between two looks for an answer.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// Bytes read at once, and of a result beside its text.
const CHUNK: usize = 64 * 1024;

/// The functions, ready to be asked.
pub(super) struct Asker {
    host: Arc<Host>,
    news: Receiver<Notice>,
    hand: Option<Box<NewHand>>,
    asked: u64,
}

impl Asker {
    /// Loads the modules; `None` if no function is configured.
    pub(super) fn start(config: &Config, log: &Arc<Log>) -> Result<Option<Self>, String> {
        let Some(mut options) = HookOptions::new(&config.settings) else { return Ok(None) };
        (options.workers, options.workers_max) = (1, 1);
        let (to, news) = mpsc::channel();
        let tell = move |_, _, notice| {
            // At the end nobody listens.
            let _ = to.send(notice);
        };
        let upcoming = Arc::new(Mutex::new(Some(config.clone())));
        let oracle = Box::new(Knowledge { shared: Weak::new(), upcoming });
        let ties = Ties { tell: Box::new(tell), oracle, log: Arc::clone(log) };
        let host = Host::start(options, 1, None, ties)?;
        Ok(Some(Asker { host, news, hand: None, asked: 0 }))
    }

    /// What the functions say.
    pub(super) fn ask(&mut self, user: &str, text: &[u8], asked: Asked, block: Block) -> Verdict {
        match self.try_ask(user, text, asked, block) {
            Ok(verdict) => verdict,
            Err(reason) => self.failure(asked, &reason),
        }
    }

    fn failure(&self, asked: Asked, reason: &str) -> Verdict {
        let options = &self.host.options;
        let outcome = |on: bool, other: Asked| match on && asked != other {
            true => Outcome::Failed(Trouble::new(reason)),
            false => Outcome::Off,
        };
        Verdict {
            rewrite: outcome(options.rewrites(), Asked::Route),
            route: outcome(options.routes(), Asked::Rewrite),
        }
    }

    fn try_ask(
        &mut self,
        user: &str,
        text: &[u8],
        asked: Asked,
        block: Block,
    ) -> Result<Verdict, String> {
        if text.len() > self.host.options.query_max {
            return Err("ValueError: hook_max_query_size exceeded".into());
        }
        self.wait_for_hand()?;
        self.asked += 1;
        let id = CallId(self.asked);
        let (queues, user, encoding) = (&self.host.queues, user.as_bytes(), &b"UTF8"[..]);
        let attic = queues.attic(0);
        let mut frame = Vec::new();
        let text = if Call::fits(user, encoding, text.len()) {
            Text::Here(text)
        } else {
            let offset = attic.and_then(|attic| attic.store(text).ok());
            let offset = offset.ok_or("MemoryError: no room for the query")?;
            Text::InFile { offset, len: text.len() as u32 }
        };
        Call { id, home: 0, block, asked, user, encoding, text }.write(&mut frame);
        if queues.queue(Class::Fast).send(&[&frame]) == 0 {
            return Err("the process takes no calls".into());
        }
        let verdict = self.wait_for_verdict(id);
        if let (Text::InFile { .. }, Some(attic)) = (text, self.host.queues.attic(0)) {
            attic.forget();
        }
        verdict
    }

    fn wait_for_hand(&mut self) -> Result<(), String> {
        while let Ok(notice) = self.news.try_recv() {
            self.take(notice);
        }
        let deadline = Instant::now() + PATIENCE;
        while self.hand.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.news.recv_timeout(left) {
                Ok(Notice::Nobody(reason)) => return Err(reason),
                Ok(notice) => drop(self.take(notice)),
                Err(_) => return Err("no process came".into()),
            }
        }
        Ok(())
    }

    /// Takes note of news; the reason if our process has ended.
    fn take(&mut self, notice: Notice) -> Option<String> {
        match notice {
            Notice::Hand(hand) => self.hand = Some(hand),
            Notice::Died(id, reason) if self.hand.as_ref().is_some_and(|hand| hand.id == id) => {
                self.hand = None;
                return Some(reason);
            }
            Notice::Died(..) | Notice::Nobody(_) => {}
        }
        None
    }

    fn wait_for_verdict(&mut self, id: CallId) -> Result<Verdict, String> {
        let deadline = self.host.options.timeout.map(|timeout| Instant::now() + timeout);
        let mut input = Vec::new();
        loop {
            let len_max = self.host.options.packet_max + CHUNK;
            if let Some(hand) = &mut self.hand
                && let Some(verdict) = verdict(&mut hand.results, &mut input, id, len_max)?
            {
                return Ok(verdict);
            }
            if let Ok(notice) = self.news.recv_timeout(LOOK_EVERY)
                && let Some(reason) = self.take(notice)
            {
                return Err(reason);
            }
            if let (Some(deadline), Some(hand)) = (deadline, &self.hand)
                && Instant::now() > deadline
            {
                self.host.kill(hand.id);
                self.hand = None;
                return Err("TimeoutError: hook_timeout".into());
            }
        }
    }

    /// Lets the modules run what they have registered for their end.
    pub(super) fn end(self) {
        self.host.end();
    }
}

/// The verdict about a call, if it is there.
fn verdict(
    results: &mut UnixStream,
    input: &mut Vec<u8>,
    id: CallId,
    len_max: usize,
) -> Result<Option<Verdict>, String> {
    let mut chunk = vec![0; CHUNK];
    while let Ok(count @ 1..) = results.read(&mut chunk) {
        input.extend_from_slice(&chunk[..count]);
    }
    while let Some((answer, len)) =
        frame::read(input, len_max).map_err(|_| "the process' results are garbled")?
    {
        input.drain(..len);
        match answer {
            Answer::Verdict(other, verdict, _) if other == id => return Ok(Some(verdict)),
            Answer::Verdict(..) | Answer::Shadow(..) => {}
        }
    }
    Ok(None)
}
