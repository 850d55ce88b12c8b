//! Calls of the user's functions: processes that come and go, their results, and the hand-over at
//! the end of a turn.
//!
//! Each generation of modules has a booth (`booths`); an old one stays until its last call has
//! ended. Not here: what a verdict means (`hooking`).

use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use switchyard_core::hook::desk::HandId;
use switchyard_core::hook::frame;
use switchyard_io::{Key, Ready};

use crate::hooks::cache::Cache;
use crate::hooks::{Host, NewHand, Notice, Purity};
use crate::worker::booths::{FRAME_MAX, HandSlot, News};
use crate::worker::{Source, Worker};

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
        // Its processes may have come before.
        self.count_hands();
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
        self.count_hands();
        self.leave_booths();
    }

    /// The first loop tells how many processes there are.
    fn count_hands(&self) {
        if self.id.0 == 0 {
            let current = self.hooks.current.as_ref();
            let ours = |hand: &HandSlot| current.is_some_and(|c| Arc::ptr_eq(c, &hand.host));
            let count = self.hooks.hands.iter().filter(|(_, hand)| ours(hand)).count();
            self.shared.hook_stats.set_workers(count);
        }
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
