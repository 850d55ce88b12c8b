//! Cancel requests: found by key, forwarded on a connection of their own.

use switchyard_core::ids::Ticket;

use super::parts::{Outgoing, Progress, ServerStage, Stage, Use};
use super::{Message, Pooler};
use crate::env::{CancelKey, Env, Event};

impl Pooler {
    /// Somebody wants the query of this client to be cancelled.
    pub fn cancel(&mut self, env: &mut Env, target: Ticket) {
        self.send(env, usize::from(target.worker.0), Message::Cancel(target));
    }

    pub(super) fn cancel_client(&mut self, env: &mut Env, w: usize, target: Ticket) {
        let worker = &self.workers[w];
        let Some(client) = worker.clients.get(&target.client) else { return };
        let Some(slot) = client.server() else { return };
        let server = worker.servers.get(&slot).and_then(|slot| slot.here.as_ref());
        let Some(server) = server else { return };
        let ServerStage::Ready(link, _) = &server.stage else { return };
        if link.is_setting_parameters() || !matches!(client.stage, Stage::Session(..)) {
            return;
        }
        let (progress, pool, client) = (Progress::Waiting, server.pool, target.client);
        let outgoing = Outgoing { progress, slot, pool, client, started: env.now };
        let key = self.mint();
        self.workers[w].cancels.insert(key, outgoing);
        self.open_cancel(env, w, key);
    }

    /// Whether the query that a request is for still runs.
    fn still_runs(&self, w: usize, outgoing: &Outgoing) -> bool {
        let worker = &self.workers[w];
        let linked = worker.clients.get(&outgoing.client).and_then(|client| client.server());
        let server = worker.servers.get(&outgoing.slot).and_then(|slot| slot.here.as_ref());
        linked == Some(outgoing.slot)
            && server.is_some_and(|server| match &server.stage {
                ServerStage::Ready(link, _) => !link.outstanding().is_empty(),
                ServerStage::Login(_) | ServerStage::Between => false,
            })
    }

    /// Sends a request if there may be one more connection.
    fn open_cancel(&mut self, env: &mut Env, w: usize, key: u64) {
        let Some(outgoing) = self.workers[w].cancels.get(&key) else { return };
        let (slot, pool) = (outgoing.slot, outgoing.pool);
        if !self.still_runs(w, outgoing) {
            return self.cancel_ended(env, w, key);
        }
        let cell = &mut self.pools[pool];
        if !cell.machine.has_room_for_cancel(cell.cancels) {
            return;
        }
        cell.cancels += 1;
        let place = self.workers[w].servers.get_mut(&slot);
        let Some(server) = place.and_then(|slot| slot.here.as_mut()) else { return };
        server.cancels += 1;
        let bytes = server.key.first_chunk::<8>().copied().unwrap_or_default();
        let (node, session) = (server.node, u64::from_be_bytes(bytes));
        if let Some(outgoing) = self.workers[w].cancels.get_mut(&key) {
            outgoing.progress = Progress::Sent(env.now);
        }
        env.note(|| format!("w{w} sends a cancel request to node {node}/{session}"));
        let pause = env.random.micros(20, 3000);
        env.after(pause, Event::Cancel(node, session, CancelKey(w, key)));
    }

    /// The connection that carried a request is closed.
    pub fn cancel_closed(&mut self, env: &mut Env, CancelKey(w, key): CancelKey) {
        self.cancel_ended(env, w, key);
        self.settle(env, w);
    }

    /// A request has ended: the server may be used again.
    fn cancel_ended(&mut self, env: &mut Env, w: usize, key: u64) {
        let Some(outgoing) = self.workers[w].cancels.remove(&key) else { return };
        let Outgoing { progress, slot, pool, .. } = outgoing;
        let Progress::Sent(_) = progress else { return };
        self.pools[pool].cancels -= 1;
        for other in 0..self.workers.len() {
            self.send(env, other, Message::CancelRoom(pool));
        }
        let place = self.workers[w].servers.get_mut(&slot);
        let Some(server) = place.and_then(|slot| slot.here.as_mut()) else { return };
        server.cancels -= 1;
        let done = server.cancels == 0;
        if done && self.workers[w].is_use(slot, |usage| *usage == Use::BeingCanceled) {
            self.release(env, w, slot);
        }
    }

    /// Requests for which there was no connection may have one, the oldest first.
    pub(super) fn go_on_canceling(&mut self, env: &mut Env, w: usize, pool: usize) {
        let waiting = self.workers[w].cancels.iter().filter(|(_, outgoing)| {
            outgoing.progress == Progress::Waiting && outgoing.pool == pool
        });
        for key in waiting.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.open_cancel(env, w, key);
        }
    }

    /// A server is released: what was not sent to it is too late.
    pub(super) fn drop_unsent_cancels(&mut self, env: &mut Env, w: usize, slot: u64) {
        let late = self.workers[w].cancels.iter().filter(|(_, outgoing)| {
            outgoing.slot == slot && outgoing.progress == Progress::Waiting
        });
        for key in late.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.cancel_ended(env, w, key);
        }
    }

    /// Ends cancel requests that take too long.
    pub(super) fn expire_cancels(&mut self, env: &mut Env, w: usize) {
        let late = |since, limit| env.now.saturating_duration_since(since) > limit;
        let (patience, unsent) = (self.settings.connect_timeout, self.settings.cancel_wait_timeout);
        let (mut over, mut waiting) = (Vec::new(), Vec::new());
        for (key, outgoing) in &self.workers[w].cancels {
            match outgoing.progress {
                Progress::Sent(at) if late(at, patience) => over.push((*key, Some(outgoing.slot))),
                Progress::Sent(_) => {}
                Progress::Waiting if late(outgoing.started, unsent) => over.push((*key, None)),
                Progress::Waiting => waiting.push(*key),
            }
        }
        waiting.into_iter().for_each(|key| self.open_cancel(env, w, key));
        for (key, slot) in over {
            // The signal may come at any time, so nobody may have this server again.
            if let Some(slot) = slot
                && self.workers[w].is_use(slot, |usage| *usage == Use::BeingCanceled)
            {
                self.close_server(env, w, slot, "connect timeout");
            }
            self.cancel_ended(env, w, key);
        }
    }
}
