//! A client's bytes in its session.

use switchyard_core::client::replay::Keeping;
use switchyard_core::client::session::{
    Counted, Detour, Hooking, Misuse, Rules as SessionRules, Simple, Stop, Tracking, Untracked,
};
use switchyard_core::pool::Want;

use super::Pooler;
use super::checkout::Outcome;
use super::parts::{Activity, ServerStage, Stage};
use crate::env::Env;

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
            let sent = self.pass_to_server(env, w, key, &data[used..]);
            used += count;
            if !sent {
                return data.len();
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
                Stop::Ask(_) | Stop::Move(_) => unreachable!("there are no hooks"),
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
            hooking: Hooking::Off,
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
