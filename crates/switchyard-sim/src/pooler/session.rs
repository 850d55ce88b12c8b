//! A client's bytes in its session, and what hooks say about them.

use std::ops::Range;

use switchyard_core::client::replay::Keeping;
use switchyard_core::client::session::{
    Approval, Counted, Detour, Hooking, Misuse, Rules as SessionRules, Simple, Stop, Tracking,
    Untracked,
};
use switchyard_core::pool::Want;

use super::checkout::Outcome;
use super::parts::{Activity, ServerStage, Stage};
use super::relay::Passed;
use super::{Pooler, Todo};
use crate::env::{Env, Event};
use crate::hooks::{self, Hooks};

impl Pooler {
    pub(super) fn session_bytes(
        &mut self,
        env: &mut Env,
        w: usize,
        key: u64,
        data: &[u8],
    ) -> usize {
        let mut used = 0;
        loop {
            let (count, stop) = self.advance(env, w, key, &data[used..]);
            match self.pass_to_server(env, w, key, &data[used..used + count]) {
                Passed::On => used += count,
                Passed::Lost => return data.len(),
                Passed::Back => match self.checkout(env, w, key) {
                    Outcome::Linked => continue,
                    Outcome::Waiting => return used,
                    Outcome::Gone => return data.len(),
                },
            }
            match stop {
                Stop::More => {
                    self.look_at_free(env, w, key);
                    return used;
                }
                Stop::Full if count > 0 && self.may_go_on(w, key) => {}
                Stop::Full => return used,
                Stop::NeedServer => match self.start_query(env, w, key) {
                    Outcome::Linked => {}
                    Outcome::Waiting => return used,
                    Outcome::Gone => return data.len(),
                },
                Stop::Ask(text) => {
                    let text = text.start - count..text.end - count;
                    if env.random.one_in(3) {
                        self.approve(w, key, &data[used..][text]);
                    } else {
                        self.ask_later(env, w, key, text);
                        return used;
                    }
                }
                Stop::Move(_) => unreachable!("hooks lead nowhere else"),
                Stop::Terminate => {
                    self.close_client(env, w, key, "client close request", None);
                    return data.len();
                }
                Stop::Close(refusal) => {
                    self.close_client(env, w, key, &refusal.reason, Some("08P01"));
                    return data.len();
                }
            }
        }
    }

    /// Hooks take their time with the message at the head of a client's stream.
    fn ask_later(&mut self, env: &mut Env, w: usize, key: u64, text: Range<usize>) {
        let id = self.mint();
        if let Some(client) = self.workers[w].clients.get_mut(&key) {
            client.asking = Some((id, text));
        }
        let pause = env.random.micros(10, 20_000);
        env.after(pause, Event::Verdict(w, key, id));
    }

    /// They have judged it, unless its client has gone.
    pub fn judged(&mut self, env: &mut Env, w: usize, key: u64, id: u64) {
        let Some(client) = self.workers[w].clients.get_mut(&key) else { return };
        let Some((_, text)) = client.asking.take_if(|(asked, _)| *asked == id) else { return };
        let input = std::mem::take(&mut client.input);
        self.approve(w, key, &input[text]);
        if let Some(client) = self.workers[w].clients.get_mut(&key) {
            client.input = input;
        }
        self.workers[w].todo.push_back(Todo::Client(key));
        self.settle(env, w);
    }

    fn approve(&mut self, w: usize, key: u64, text: &[u8]) {
        let worker = &mut self.workers[w];
        let Some(client) = worker.clients.get_mut(&key) else { return };
        let Stage::Session(session, activity) = &mut client.stage else { return };
        let approval = hooks::judge(text);
        let refused = matches!(approval, Approval::Refused(_));
        session.approve(approval);
        if let (true, Activity::Linked(slot)) = (refused, *activity) {
            // It may be free, and nothing may come of it that would make us look.
            worker.todo.push_back(Todo::Server(slot));
        }
    }

    /// The bytes of a client could not be sent to the server that it has just got: another one is
    /// asked if nothing of them counts.
    pub(super) fn take_back(
        &mut self,
        env: &mut Env,
        w: usize,
        key: u64,
        slot: u64,
        sent: &[u8],
    ) -> bool {
        let worker = &mut self.workers[w];
        let client = worker.clients.get_mut(&key);
        let server = worker.servers.get_mut(&slot).and_then(|slot| slot.here.as_mut());
        let (Some(client), Some(link)) = (client, server.and_then(|server| server.link())) else {
            return false;
        };
        // Hooks are asked once.
        let Stage::Session(session, activity) = &mut client.stage else { return false };
        if self.settings.hooks == Hooks::On || !session.takes_back(link, sent) {
            return false;
        }
        *activity = Activity::Idle;
        self.close_server(env, w, slot, "var change failed");
        true
    }

    /// The next message needs a server: from here on the query's time runs.
    fn start_query(&mut self, env: &mut Env, w: usize, key: u64) -> Outcome {
        if let Some(client) = self.workers[w].clients.get_mut(&key) {
            client.query_since.get_or_insert(env.now);
            client.xact_since.get_or_insert(env.now);
        }
        self.checkout(env, w, key)
    }

    /// What the client has sent may leave its server without anything to answer.
    fn look_at_free(&mut self, env: &mut Env, w: usize, key: u64) {
        let worker = &mut self.workers[w];
        let Some(slot) = worker.clients.get(&key).and_then(|client| client.server()) else {
            return;
        };
        let server = worker.servers.get_mut(&slot).and_then(|slot| slot.here.as_mut());
        if server.and_then(|server| server.link()).is_some_and(|link| link.is_free()) {
            self.give_back(env, w, slot);
        }
    }

    /// Runs the session over `data`.
    fn advance(&mut self, env: &Env, w: usize, key: u64, data: &[u8]) -> (usize, Stop) {
        let worker = &mut self.workers[w];
        let Some(client) = worker.clients.get_mut(&key) else { return (0, Stop::More) };
        let Stage::Session(session, activity) = &mut client.stage else { return (0, Stop::More) };
        let pool = &self.pools[client.pool].rules;
        let rules = SessionRules {
            tracking: match pool.prepared {
                0 => Tracking::Off,
                limit => Tracking::On(limit),
            },
            hooking: match self.settings.hooks {
                Hooks::Off => Hooking::Off,
                Hooks::On => Hooking::On,
            },
            detour: Detour::Fails,
            loyalty: pool.loyalty,
            keeping: if client.want == Want::Writer { pool.keeping } else { Keeping::Off },
            misuse: Misuse::Fails,
            reprepare: self.settings.reprepare,
            simple: Simple::Allowed,
            untracked: Untracked::Ignore,
            tracked: &self.tracked,
            message_max: 1 << 24,
            registry: &self.registry,
            outstanding_max: self.settings.outstanding_max,
        };
        let link = match activity {
            Activity::Linked(slot) => {
                let server = worker.servers.get_mut(slot).and_then(|slot| slot.here.as_mut());
                server.and_then(|server| match &mut server.stage {
                    ServerStage::Ready(link, _) => Some(&mut **link),
                    ServerStage::Login(_) | ServerStage::Between => None,
                })
            }
            Activity::Idle | Activity::Waiting => None,
        };
        let linked = link.is_some();
        let (count, stop) = session.advance(link, data, &mut worker.flow, &rules);
        worker.flow.counted = Counted::default();
        if linked && count > 0 {
            client.query_since.get_or_insert(env.now);
            client.xact_since.get_or_insert(env.now);
        }
        (count, stop)
    }
}
