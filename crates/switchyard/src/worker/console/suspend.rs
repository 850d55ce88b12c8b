//! SUSPEND: a worker accepts and reads nothing but the console, sends what it owes, and says so.
//! Whoever does not take what is owed within suspend_timeout is closed.

use std::sync::Arc;
use std::time::Instant;

use switchyard_io::Key;

use crate::worker::client::{Client, Stage};
use crate::worker::close::Farewell;
use crate::worker::console::gather::Gathering;
use crate::worker::server::{Stage as ServerStage, Unread, Use};
use crate::worker::{Todo, Worker};

/// Whether a worker reads.
#[derive(Clone, Debug, Default)]
pub enum Rest {
    /// It does.
    #[default]
    Awake,
    /// It does not, and sends what it owes.
    Flushing(Arc<Gathering>, Option<Instant>),
    /// It owes nothing.
    Asleep,
}

impl Rest {
    /// Whether servers and listeners are left alone.
    #[inline]
    pub(in crate::worker) fn is_suspended(&self) -> bool {
        !matches!(self, Rest::Awake)
    }

    /// Whether a client is left alone: all but consoles are.
    #[inline]
    pub(in crate::worker) fn is_resting(&self, client: &Client) -> bool {
        self.is_suspended() && !matches!(client.stage, Stage::Console(_))
    }
}

impl Worker {
    pub(super) fn suspend(&mut self, gathering: &Arc<Gathering>) {
        let testing = self.servers.iter().filter(|(_, slot)| {
            let stage = slot.here.as_ref().map(|server| &server.stage);
            matches!(stage, Some(ServerStage::Ready(_, Use::Testing | Use::RollingBack)))
        });
        for key in testing.map(|(key, _)| key).collect::<Vec<_>>() {
            self.close_server(key, "close unsafe fds on suspend");
        }
        let limit = self.snapshot.config.settings.suspend_timeout;
        let deadline = (!limit.is_zero()).then(|| self.now + limit);
        self.rest = Rest::Flushing(Arc::clone(gathering), deadline);
        self.look_at_suspension();
    }

    /// Whether everything was sent by now.
    pub(in crate::worker) fn look_at_suspension(&mut self) {
        let Rest::Flushing(gathering, deadline) = &self.rest else { return };
        let (gathering, deadline) = (Arc::clone(gathering), *deadline);
        let late = deadline.is_some_and(|deadline| self.now >= deadline);
        let clients: Vec<Key> = self
            .clients
            .iter()
            .filter(|(_, client)| self.rest.is_resting(client) && !client.output.is_empty())
            .map(|(key, _)| key)
            .collect();
        let servers: Vec<Key> = self
            .servers
            .iter()
            .filter(|(_, slot)| slot.here.as_ref().is_some_and(|s| !s.output.is_empty()))
            .map(|(key, _)| key)
            .collect();
        let owes = !clients.is_empty() || !servers.is_empty();
        if owes && !late {
            return;
        }
        self.rest = Rest::Asleep;
        for key in servers {
            self.server_failed(key, "suspend_timeout");
        }
        for key in clients {
            self.close_client(key, "suspend_timeout", Farewell::Silent);
            // What it did not take is given up.
            self.forget_client(key);
        }
        self.report(&gathering);
    }

    /// RESUME: what came meanwhile is looked at.
    pub(in crate::worker) fn wake_up(&mut self) {
        if let Rest::Flushing(gathering, _) = std::mem::take(&mut self.rest) {
            self.report(&gathering);
        }
        let clients = self.clients.iter().map(|(key, _)| Todo::Client(key));
        self.todo.extend(clients);
        let unread = |unread: Unread| unread != Unread::No;
        let servers = self
            .servers
            .iter()
            .filter(|(_, slot)| slot.here.as_ref().is_some_and(|server| unread(server.unread)));
        self.todo.extend(servers.map(|(key, _)| Todo::Server(key)));
        self.todo.extend((0..self.listeners.len()).map(Todo::Accept));
    }
}
