//! What KILL, KILL_CLIENT and shutdowns close on this worker.

use std::sync::Arc;
use std::time::Instant;

use switchyard_io::Key;

use crate::entries::Entry;
use crate::worker::Worker;
use crate::worker::client::Activity;
use crate::worker::close::Farewell;
use crate::worker::console::gather::Gathering;

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
            self.close_client(key, reason, Farewell::fatal());
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

    /// Closes the client with this number, if it is here.
    pub(in crate::worker) fn kill_client(&mut self, number: u64, gathering: &Arc<Gathering>) {
        let found = self.clients.iter().find(|(_, client)| client.number == number);
        if let Some(key) = found.map(|(key, _)| key) {
            if let Some(slot) = self.clients.get(key).and_then(|client| client.server()) {
                self.close_server(slot, "admin forced disconnect");
            }
            self.close_client(key, "admin forced disconnect", Farewell::fatal());
            gathering.add(vec![Vec::new()]);
        }
        self.report(gathering);
    }

    /// SHUTDOWN WAIT_FOR_SERVERS: whoever waits for a server is told to go.
    pub(in crate::worker) fn refuse_waiting(&mut self) {
        let waiting: Vec<Key> = self
            .clients
            .iter()
            .filter(|(_, client)| client.activity() == Some(Activity::Waiting))
            .map(|(key, _)| key)
            .collect();
        for key in waiting {
            self.close_client(key, "server shutting down", Farewell::fatal());
        }
    }
}
