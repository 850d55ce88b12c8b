//! From a connection's first bytes to its welcome.
//!
//! `first` reads what comes before a startup packet and the packet itself; `identify` counts the
//! client and checks what is checked before it is asked for anything; `lookup` asks a server for
//! its user; `method` chooses the proof; `dialogue` asks for it; `welcome` lets it in. Invariant:
//! every login ends in one welcome or one FATAL.

mod dialogue;
mod first;
mod identify;
mod lookup;
mod method;
mod welcome;

use switchyard_io::Key;

use crate::worker::Worker;

impl Worker {
    /// Sends to a client that is logging in or on the console.
    pub(in crate::worker) fn say(&mut self, key: Key, bytes: &[u8]) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.output.send(&mut client.stream, bytes).is_err() {
            return self.client_gone(key);
        }
        if !client.output.is_empty() {
            self.watch_client(key, switchyard_io::poller::Watch::Both);
        }
    }
}
