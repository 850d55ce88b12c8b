//! What KILL, KILL_CLIENT, RECONNECT and shutdowns close on this worker.

use std::sync::Arc;
use std::time::Instant;

use switchyard_io::Key;

use crate::entries::Entry;
use crate::worker::Worker;
use crate::worker::client::Stage;
use crate::worker::close::Farewell;

impl Worker {
    /// Closes the clients and servers of an entry.
    pub(in crate::worker) fn kill(&mut self, entry: &Arc<Entry>, reason: &'static str) {
        let ours = |found: Option<&Arc<Entry>>| found.is_some_and(|e| Arc::ptr_eq(e, entry));
        let clients: Vec<Key> = self
            .clients
            .iter()
            .filter(|(_, client)| {
                let logged_in = client.identity.as_ref().and_then(|i| i.entry.as_ref());
                ours(logged_in) || ours(client.place.as_ref().map(|place| &place.pool.entry))
            })
            .map(|(key, _)| key)
            .collect();
        for key in clients {
            let slot = self.clients.get(key).and_then(|client| client.server());
            if let Some(slot) = slot {
                self.close_server(slot, reason);
            }
            let cancels =
                self.clients.get(key).is_some_and(|c| matches!(c.stage, Stage::Cancel(_)));
            let farewell = if cancels { Farewell::Silent } else { Farewell::fatal() };
            self.close_client(key, reason, farewell);
        }
        let servers: Vec<Key> = self
            .servers
            .iter()
            .filter(|(_, slot)| slot.here.is_some() && ours(Some(&slot.pool.entry)))
            .map(|(key, _)| key)
            .collect();
        servers.into_iter().for_each(|slot| self.close_server(slot, reason));
        let now: Instant = self.now;
        for pool in entry.pools() {
            pool.decide(&mut self.orders, |inner| inner.machine.recycle(now, reason));
        }
    }

    /// Closes the client with this number, if it is here; answers whether it was.
    pub(super) fn kill_client(&mut self, number: u64) -> bool {
        let named =
            |stage: &Stage| !matches!(stage, Stage::Start | Stage::Login(_) | Stage::Leaving);
        let found = self.clients.iter().find(|(_, client)| client.number == number);
        let Some((key, _)) = found.filter(|(_, client)| named(&client.stage)) else { return false };
        if let Some(slot) = self.clients.get(key).and_then(|client| client.server()) {
            self.close_server(slot, "admin forced disconnect");
        }
        self.close_client(key, "admin forced disconnect", Farewell::fatal());
        true
    }
}
