//! Sessions whose server is lost: those that have left nothing there, or had not sent anything yet,
//! go on with another one.

use std::sync::Arc;

use switchyard_core::client::session::{Leaving, Loyalty};
use switchyard_core::server::duty::Unsent;
use switchyard_core::switchover::probe::SignalKind;
use switchyard_io::Key;

use crate::meters::Blow;
use crate::worker::client::{Activity, Stage};
use crate::worker::close::Farewell;
use crate::worker::{Todo, Worker};

/// What a session is told that cannot go on.
const TERMINATED: &str = "terminating connection due to switchover of the server";

impl Worker {
    /// The server of a session is lost; false if it is not one that may go on, or has something
    /// under way and the server said nothing about it.
    pub(super) fn move_session(&mut self, slot: Key, reason: &str) -> bool {
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return false;
        };
        let Some(key) = server.client() else { return false };
        let (pool, id, lane) = (Arc::clone(&server.pool), server.id, server.lane);
        let unsent = Unsent::of(!server.output.is_empty());
        // A session that began under another setting was not watched.
        let Some(link) = server.link().filter(|link| link.loyalty() == Loyalty::Returns) else {
            return false;
        };
        let Some(client) = self.clients.get_mut(key) else { return false };
        let Stage::Session(session, _) = &mut client.stage else { return false };
        let leaving = session.leaving(link, unsent);
        let words = link.last_words();
        if leaving == Leaving::Busy && words.is_none() {
            return false;
        }
        if leaving == Leaving::Free {
            session.move_on();
        }
        let now = self.now;
        self.shared.suspect(&pool, lane, SignalKind::Disconnected);
        self.drop_server(slot, reason);
        match leaving {
            Leaving::Free => self.set_out(key),
            Leaving::Left(what) => {
                pool.entry.meters.befell(now, Blow::Disconnect);
                let detail = format!("The session has used {what}.");
                self.close_client(key, TERMINATED, Farewell::Detailed("57P01", detail));
            }
            Leaving::Busy => {
                pool.entry.meters.befell(now, Blow::Disconnect);
                if let (Some(words), Some(client)) = (words, self.clients.get_mut(key)) {
                    // Whoever is gone already needs no words.
                    let _ = client.output.send(&mut client.stream, &words);
                }
                self.close_client(key, reason, Farewell::Silent);
            }
        }
        pool.decide(&mut self.orders, |inner| inner.machine.closed(now, id));
        true
    }

    /// The bytes of a client could not be sent to the server that it has just got. If they are a
    /// query or a group behind its parameters, another server is asked.
    pub(super) fn take_back(&mut self, key: Key, slot: Key, sent: &[u8]) -> bool {
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return false;
        };
        let (pool, id, lane) = (Arc::clone(&server.pool), server.id, server.lane);
        // Some records of TLS may have been sent, and hooks are asked once.
        if server.stream.tls().is_some() || self.hooks.current().is_some() || self.rules.is_some() {
            return false;
        }
        let Some(client) = self.clients.get_mut(key) else { return false };
        let (Stage::Session(session, _), Some(link)) = (&mut client.stage, server.link()) else {
            return false;
        };
        if !session.takes_back(link, sent) {
            return false;
        }
        client.set_activity(Activity::Idle);
        let now = self.now;
        self.shared.suspect(&pool, lane, SignalKind::Disconnected);
        self.drop_server(slot, "var change failed");
        pool.decide(&mut self.orders, |inner| inner.machine.closed(now, id));
        true
    }

    /// A session without a server: its next message asks for one.
    fn set_out(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.set_activity(Activity::Idle);
        (client.query_since, client.xact_since) = (None, None);
        if let Some(place) = client.moving.take() {
            client.turn(place);
        }
        self.todo.push_back(Todo::Client(key));
    }
}
