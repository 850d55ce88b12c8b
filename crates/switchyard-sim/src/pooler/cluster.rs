//! What the pooler does with a published cluster: lanes for pools, the fence, doubts, signs of
//! trouble.

use switchyard_core::client::doubt::{Doubt, Finding};
use switchyard_core::client::replay::Answers;
use switchyard_core::ids::LaneId;
use switchyard_core::pool::{self, OpenFailure, Want};
use switchyard_core::switchover::probe::SignalKind;
use switchyard_core::switchover::view::{NodeId, View};

use super::parts::{Server, ServerStage, Stage};
use super::relay::send;
use super::{Message, Pooler, Todo};
use crate::env::{Env, Event};

impl Pooler {
    /// The number of the node behind a lane.
    pub(super) fn node_of(&self, lane: LaneId) -> usize {
        let node = self.entry.as_ref().and_then(|entry| entry.view.node(NodeId(lane.0)));
        // The nodes of a world are told apart by their ports.
        node.map_or(0, |node| usize::from(node.port) - 1)
    }

    /// The cluster was published anew. Answers how many clients waited, if that ended a hold.
    pub fn publish(&mut self, env: &mut Env, view: View) -> Option<usize> {
        let entry = self.entry.as_mut()?;
        let released = entry.view.is_holding() && !view.is_holding();
        let (now, roles) = (env.now, pool::roles(&view));
        entry.view = view;
        let mut waiting = 0;
        for pool in 0..self.pools.len() {
            self.decide_away(env, pool, |cell| {
                waiting += cell.machine.counts(now, None).waiting;
                cell.machine.set_view(now, &roles);
            });
        }
        for w in 0..self.workers.len() {
            self.send(env, w, Message::View);
        }
        released.then_some(waiting)
    }

    /// Transactions on a node that are counted before a switchover.
    pub fn running(&self, node: NodeId) -> usize {
        let lane = LaneId(node.0);
        let now = std::time::Instant::now();
        let busy = self.pools.iter().map(|cell| cell.machine.counts(now, Some(lane)).busy);
        busy.sum()
    }

    /// Servers of a node that are linked to clients are closed.
    pub fn kill(&mut self, env: &mut Env, node: NodeId) {
        for w in 0..self.workers.len() {
            self.send(env, w, Message::Cut(LaneId(node.0)));
        }
    }

    pub(super) fn view_changed(&mut self, env: &mut Env, w: usize) {
        let Some(entry) = &self.entry else { return };
        let view = entry.view.clone();
        let lost =
            self.linked_servers(w, |server| !pool::serves(&view, server.lane, server.purpose));
        for key in lost {
            self.server_lost(env, w, key, "server conn crashed?");
        }
        let vain = |server: &Server| {
            !matches!(server.stage, ServerStage::Ready(..)) && pool::is_vain(&view, server.lane)
        };
        let servers = self.workers[w].servers.iter();
        let vain = servers.filter(|(_, slot)| slot.here.as_ref().is_some_and(|s| vain(s)));
        for key in vain.map(|(key, _)| *key).collect::<Vec<_>>() {
            let failure = OpenFailure::connect("database configuration changed");
            self.open_failed(env, w, key, failure);
        }
        let clients = self.workers[w].clients.iter();
        let doubtful = clients.filter(|(_, client)| client.doubt.is_some());
        for key in doubtful.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.look_at_doubt(env, w, key);
        }
    }

    pub(super) fn cut(&mut self, env: &mut Env, w: usize, lane: LaneId) {
        for key in self.linked_servers(w, |server| server.lane == lane) {
            self.server_lost(env, w, key, "server conn crashed?");
        }
    }

    fn linked_servers(&self, w: usize, wanted: impl Fn(&Server) -> bool) -> Vec<u64> {
        let servers = self.workers[w].servers.iter().filter_map(|(key, slot)| {
            let server = slot.here.as_ref().filter(|server| wanted(server))?;
            server.client().map(|_| *key)
        });
        servers.collect()
    }

    /// Something went wrong with a node that a pool uses.
    pub(super) fn suspect(
        &mut self,
        env: &mut Env,
        w: usize,
        pool: usize,
        lane: LaneId,
        kind: SignalKind,
    ) {
        let Some(entry) = &mut self.entry else { return };
        entry.signs.push_back((NodeId(lane.0), kind));
        env.note(|| format!("w{w} sees on node {lane:?} in pool {pool}: {kind:?}"));
        let pause = env.random.micros(1, 300);
        env.after(pause, Event::Sign);
        // A session that is read-only by its own will gives the same sign as a standby.
        if kind != SignalKind::ReadOnly {
            let now = env.now;
            for pool in 0..self.pools.len() {
                self.decide_away(env, pool, |cell| cell.machine.suspect(now, lane));
            }
        }
    }

    /// Answers are about to go to a client; answers whether they are withheld.
    pub(super) fn withhold(
        &mut self,
        env: &mut Env,
        w: usize,
        key: u64,
        lane: LaneId,
        data: &[u8],
    ) -> bool {
        let worker = &mut self.workers[w];
        let Some(client) = worker.clients.get_mut(&key) else { return false };
        let Stage::Session(session, _) = &mut client.stage else { return false };
        if !session.withholds() {
            return false;
        }
        let bytes = worker.reply.bytes(data);
        if bytes.is_empty() {
            return false;
        }
        match session.answers(bytes) {
            Answers::Withhold => true,
            Answers::Pass(withheld) => {
                send(env, client.end, &mut client.output, &withheld);
                false
            }
            Answers::Refused(refused) => {
                let Some(entry) = &self.entry else { return false };
                env.note(|| format!("w{w} client {key} is in doubt about node {lane:?}"));
                client.doubt = Some(Box::new(Doubt::new(env.now, refused, lane, &entry.view)));
                worker.todo.push_back(Todo::Doubt(key));
                true
            }
        }
    }

    /// Ends a client's doubt if it can be.
    pub(super) fn look_at_doubt(&mut self, env: &mut Env, w: usize, key: u64) {
        let Some(entry) = &self.entry else { return };
        let Some(client) = self.workers[w].clients.get(&key) else { return };
        let Some(doubt) = &client.doubt else { return };
        let finding = doubt.finding(env.now, &entry.view);
        if finding == Finding::Open {
            return;
        }
        if let Some(slot) = client.server() {
            // It is free: nothing but the refusal was owed.
            self.give_back(env, w, slot);
        }
        let Some(client) = self.workers[w].clients.get_mut(&key) else { return };
        let Some(doubt) = client.doubt.take() else { return };
        let Stage::Session(session, _) = &mut client.stage else { return };
        env.note(|| format!("w{w} client {key}: doubt ends with {finding:?}"));
        match finding {
            Finding::Writer => {
                if !send(env, client.end, &mut client.output, &doubt.refused.answer) {
                    return self.close_client(env, w, key, "client unexpected eof", None);
                }
            }
            Finding::Other | Finding::Open => {
                session.forget(&doubt.refused);
                let mut input = doubt.refused.bytes;
                input.extend_from_slice(&client.input);
                client.input = input;
            }
        }
        self.workers[w].todo.push_back(Todo::Client(key));
    }

    /// Bytes of a client went to a lane: only the published writer may get what is meant for it,
    /// or another one as long as the worker has not heard of all changes.
    pub(super) fn note_use(&self, w: usize, lane: LaneId, purpose: Want) {
        let Some(entry) = &self.entry else { return };
        if purpose != Want::Writer {
            return;
        }
        let writes = entry.view.writer.is_some_and(|node| node.0 == lane.0);
        let unheard = self.workers[w].inbox.iter().any(|m| matches!(m, Message::View));
        assert!(writes || unheard, "a client's message goes to {lane:?}, which is not the writer");
    }
}
