//! Clients whose pool is not theirs any more, because the forced user of their entry came, went or
//! changed, and clients that may not wait because the process is ending.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use switchyard_core::lifecycle::Phase;
use switchyard_io::Key;

use crate::entries::Entry;
use crate::worker::client::{Activity, Client, Stage};
use crate::worker::close::Farewell;
use crate::worker::{Todo, Worker};

impl Worker {
    /// Moves a client to the pool of its entry's user, if that is another one.
    pub(super) fn rehome(&mut self, key: Key) {
        let Some(client) = self.clients.get(key) else { return };
        let (Some(place), Some(identity)) = (&client.place, &client.identity) else { return };
        let (old, user) = (Arc::clone(&place.pool), identity.user.clone());
        let new = self.shared.pool(&old.entry, &user);
        if Arc::ptr_eq(&old, &new) {
            return;
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.home.as_ref().is_some_and(|home| Arc::ptr_eq(&home.pool, &old)) {
            old.clients.fetch_sub(1, Ordering::Relaxed);
            new.clients.fetch_add(1, Ordering::Relaxed);
        }
        for place in [&mut client.place, &mut client.home].into_iter().flatten() {
            if Arc::ptr_eq(&place.pool, &old) {
                place.pool = Arc::clone(&new);
            }
        }
    }

    /// The forced user of an entry is another one: whoever waits for a server goes where it should
    /// wait. Everybody else follows with the next query.
    pub(super) fn rehome_waiting(&mut self, entry: &Arc<Entry>) {
        let here = |client: &Client| {
            client.place.as_ref().is_some_and(|place| Arc::ptr_eq(&place.pool.entry, entry))
        };
        for key in self.waiting_clients(here) {
            let (now, ticket) = (self.now, self.ticket(key));
            let Some(client) = self.clients.get(key) else { continue };
            let Some(pool) = client.place.as_ref().map(|place| Arc::clone(&place.pool)) else {
                continue;
            };
            let logging_in = matches!(client.stage, Stage::AwaitingWelcome(_));
            let since = client.waiting_since;
            pool.decide(&mut self.orders, |inner| inner.machine.leave(now, ticket));
            self.rehome(key);
            if logging_in {
                self.await_welcome(key);
            } else {
                self.checkout_again(key);
            }
            if let Some(client) = self.clients.get_mut(key) {
                client.waiting_since = client.waiting_since.and(since);
            }
        }
    }

    fn await_welcome(&mut self, key: Key) {
        let (now, ticket) = (self.now, self.ticket(key));
        let place = self.clients.get(key).and_then(|client| client.place.clone());
        let Some(place) = place else { return };
        if place.pool.decide(&mut self.orders, |inner| inner.machine.await_welcome(now, ticket)) {
            self.todo.push_back(Todo::Welcome(key));
        }
    }

    /// Asks the pool again for a client that is waiting.
    fn checkout_again(&mut self, key: Key) {
        if self.checkout(key) == super::checkout::Outcome::Linked {
            self.todo.push_back(Todo::Client(key));
        }
    }

    /// Clients that wait for a server, at login or later.
    fn waiting_clients(&self, which: impl Fn(&Client) -> bool) -> Vec<Key> {
        let waits = |client: &Client| match &client.stage {
            Stage::AwaitingWelcome(_) => true,
            _ => client.activity() == Some(Activity::Waiting),
        };
        let all = self.clients.iter().filter(|(_, client)| waits(client) && which(client));
        all.map(|(key, _)| key).collect()
    }

    /// SHUTDOWN WAIT_FOR_SERVERS: whoever waits for a server is told to go, as is whoever would
    /// wait later.
    pub(super) fn refuse_waiting(&mut self) {
        self.phase = Phase::WaitForServers;
        for key in self.waiting_clients(|_| true) {
            self.refuse_wait(key);
        }
    }

    pub(super) fn refuse_wait(&mut self, key: Key) {
        self.close_client(key, "server shutting down", Farewell::fatal());
    }
}
