//! Statements that were refused because their server is read-only: they are withheld, and sent
//! again or answered when it is known whether the node is the writer (`core/client/doubt`).

use std::sync::Arc;

use switchyard_core::client::doubt::{Doubt, Finding};
use switchyard_core::client::replay::Answers;
use switchyard_core::ids::LaneId;
use switchyard_io::Key;
use switchyard_io::poller::Watch;

use crate::entries::Entry;
use crate::worker::client::Stage;
use crate::worker::{Todo, Worker};

impl Worker {
    /// Answers are about to go to a client; what of them is withheld is taken out of `reply`.
    pub(super) fn withhold(&mut self, key: Key, lane: LaneId, data: &[u8]) -> bool {
        let now = self.now;
        let Some(client) = self.clients.get_mut(key) else { return false };
        let Stage::Session(session, _) = &mut client.stage else { return false };
        if !session.withholds() {
            return false;
        }
        let bytes = self.reply.bytes(data);
        if bytes.is_empty() {
            return false;
        }
        match session.answers(bytes) {
            Answers::Withhold => true,
            Answers::Pass(withheld) => {
                if !withheld.is_empty() {
                    // A failure shows with the bytes that follow.
                    let _ = client.output.send(&mut client.stream, &withheld);
                }
                false
            }
            Answers::Refused(refused) => {
                let Some(place) = &client.place else { return false };
                let doubt = Doubt::new(now, refused, lane, &place.pool.entry.view());
                client.doubt = Some(Box::new(doubt));
                self.todo.push_back(Todo::Doubt(key));
                self.attend(key);
                true
            }
        }
    }

    /// A cluster was published anew: some doubts may be over.
    pub(super) fn look_at_doubts(&mut self, entry: &Arc<Entry>) {
        let doubtful = self.clients.iter().filter(|(_, client)| {
            let here = client.place.as_ref().is_some_and(|p| Arc::ptr_eq(&p.pool.entry, entry));
            here && client.doubt.is_some()
        });
        let doubtful: Vec<Key> = doubtful.map(|(key, _)| key).collect();
        doubtful.into_iter().for_each(|key| self.look_at_doubt(key));
    }

    /// Ends a client's doubt if it can be.
    pub(super) fn look_at_doubt(&mut self, key: Key) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(key) else { return };
        let (Some(doubt), Some(place)) = (&client.doubt, &client.place) else { return };
        let finding = doubt.finding(now, &place.pool.entry.view());
        if finding == Finding::Open {
            return;
        }
        if let Some(slot) = client.server() {
            // It is free: nothing but the refusal was owed.
            self.give_back(slot);
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        let Some(doubt) = client.doubt.take() else { return };
        let Stage::Session(session, _) = &mut client.stage else { return };
        match finding {
            Finding::Writer => {
                let sent = client.output.send(&mut client.stream, &doubt.refused.answer);
                if sent.is_err() {
                    return self.client_gone(key);
                }
                if !client.output.is_empty() {
                    self.watch_client(key, Watch::Both);
                }
            }
            Finding::Other | Finding::Open => {
                session.forget(&doubt.refused);
                let mut input = doubt.refused.bytes;
                input.extend_from_slice(&client.input);
                client.input = input;
            }
        }
        self.todo.push_back(Todo::Client(key));
    }
}
