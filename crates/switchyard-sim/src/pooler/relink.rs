//! Sessions whose server is lost: those that have left nothing there go on with another one.

use switchyard_core::client::session::{Leaving, Loyalty};
use switchyard_core::server::duty::Unsent;
use switchyard_core::switchover::probe::SignalKind;

use super::parts::{Activity, Stage};
use super::relay::send;
use super::{Pooler, Todo};
use crate::env::Env;

/// What a session is told that cannot go on.
const TERMINATED: &str = "terminating connection due to switchover of the server";

impl Pooler {
    /// The server of a session is lost; false if it is not one that may go on, or has something
    /// under way and the server said nothing about it.
    pub(super) fn move_session(
        &mut self,
        env: &mut Env,
        w: usize,
        slot: u64,
        reason: &str,
    ) -> bool {
        let worker = &mut self.workers[w];
        let Some(place) = worker.servers.get_mut(&slot) else { return false };
        let (pool, id) = (place.pool, place.id);
        let Some(server) = place.here.as_mut() else { return false };
        let Some(key) = server.client() else { return false };
        let (lane, unsent) = (server.lane, Unsent::of(!server.output.is_empty()));
        let link = server.link().filter(|link| link.loyalty() == Loyalty::Returns);
        let Some(link) = link else { return false };
        let Some(client) = worker.clients.get_mut(&key) else { return false };
        let Stage::Session(session, _) = &mut client.stage else { return false };
        let leaving = session.leaving(link, unsent);
        let words = link.last_words();
        if leaving == Leaving::Busy && words.is_none() {
            return false;
        }
        if leaving == Leaving::Free {
            session.move_on();
        }
        client.set_activity(Activity::Idle);
        self.suspect(env, w, pool, lane, SignalKind::Disconnected);
        self.drop_server(env, w, slot, reason);
        env.note(|| format!("w{w} client {key} loses its server: {leaving:?}"));
        match leaving {
            Leaving::Free => {
                let Some(client) = self.workers[w].clients.get_mut(&key) else { return true };
                (client.query_since, client.xact_since) = (None, None);
                self.workers[w].todo.push_back(Todo::Client(key));
                self.moved += 1;
            }
            Leaving::Left(_) => self.close_client(env, w, key, TERMINATED, Some("57P01")),
            Leaving::Busy => {
                if let (Some(words), Some(client)) = (words, self.workers[w].clients.get_mut(&key))
                {
                    send(env, client.end, &mut client.output, &words);
                }
                self.close_client(env, w, key, reason, None);
            }
        }
        let now = env.now;
        self.decide(w, pool, |cell| cell.machine.closed(now, id));
        true
    }
}
