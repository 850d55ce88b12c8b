//! Commands that take time: looked at in every turn until they are done, and undone by ^C.

use std::sync::Arc;

use switchyard_core::ids::Ticket;
use switchyard_io::Key;

use crate::entries::Entry;
use crate::worker::client::Stage;
use crate::worker::console::Wait;
use crate::worker::console::gather::Gathering;
use crate::worker::{Todo, Worker};

/// Waiting commands and their effects.
impl Worker {
    /// All workers have answered.
    pub(in crate::worker) fn gathered(&mut self, console: Ticket, gathering: &Gathering) {
        let key = Key::from_bits(console.client);
        if !self.stop_waiting(key) {
            return;
        }
        if let Some(show) = gathering.show() {
            let rows = self.finish_rows(gathering);
            self.answer(key, show, &rows);
        } else if gathering.found() {
            self.complete(key, "KILL_CLIENT");
        } else {
            self.fail(key, "client not found");
        }
        self.todo.push_back(Todo::Client(key));
    }

    fn stop_waiting(&mut self, key: Key) -> bool {
        self.consoles.retain(|waiting| *waiting != key);
        match self.clients.get_mut(key).map(|client| &mut client.stage) {
            Some(Stage::Console(console)) => console.wait.take().is_some(),
            _ => false,
        }
    }

    pub(in crate::worker) fn look_at_consoles(&mut self) {
        for key in self.consoles.clone() {
            let Some(client) = self.clients.get(key) else {
                self.consoles.retain(|waiting| *waiting != key);
                continue;
            };
            let Stage::Console(console) = &client.stage else { continue };
            let no_servers = |entries: &[Arc<Entry>]| {
                let mut pools = entries.iter().flat_map(|entry| entry.pools());
                pools.all(|pool| pool.lock().machine.is_empty())
            };
            let no_clients = |entries: &[Arc<Entry>]| {
                use std::sync::atomic::Ordering::Relaxed;
                entries.iter().all(|entry| entry.clients.load(Relaxed) == 0)
            };
            let tag = match &console.wait {
                Some(Wait::NoServers(entries, tag)) => no_servers(entries).then_some(*tag),
                Some(Wait::Nothing(entries, tag)) => {
                    (no_servers(entries) && no_clients(entries)).then_some(*tag)
                }
                Some(Wait::Workers) | None => None,
            };
            if let Some(tag) = tag {
                self.stop_waiting(key);
                self.complete(key, tag);
                self.todo.push_back(Todo::Client(key));
            }
        }
    }

    /// ^C on a console: a pending PAUSE is undone and answered.
    pub(in crate::worker) fn cancel_console(&mut self, key: Key) {
        let pausing = match self.clients.get(key).map(|client| &client.stage) {
            Some(Stage::Console(console)) => {
                matches!(console.wait, Some(Wait::NoServers(_, "PAUSE")))
            }
            _ => false,
        };
        if pausing && self.shared.lifecycle().resume().is_ok() {
            self.shared.apply_pauses();
            self.stop_waiting(key);
            self.complete(key, "PAUSE");
        }
    }
}
