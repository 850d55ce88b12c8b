//! What is due: timeouts of clients and servers, and the pools' own maintenance.
//!
//! Four times a second a worker looks at its servers and at those clients that wait, and at others
//! when something may be due for them (`due`): a client without a time limit is never looked at.
//! The first worker looks after the pools and the statistics as well.

use std::time::Instant;

use switchyard_config::PoolMode;
use switchyard_core::client::patience::{Due, Notice};
use switchyard_core::pool::OpenFailure;
use switchyard_io::Key;
use switchyard_wire::build::{self, Report};

use crate::meters::Blow;
use crate::worker::Worker;
use crate::worker::client::{Attention, Client};
use crate::worker::close::Farewell;
use crate::worker::server::{Server, Stage as ServerStage, Use};

/// What a look at a server found.
enum ServerDue {
    /// Connecting and logging in takes too long.
    Open,
    /// A query of ours takes too long.
    Test,
    /// It must not be used again and its session has no transaction open.
    FastClose,
}

impl Worker {
    /// Looks at everything that can be due.
    pub(super) fn tick(&mut self) {
        if self.rest.is_suspended() {
            return;
        }
        self.resume_listening();
        self.expire_cancels(self.snapshot.config.settings.cancel_wait_timeout);
        self.tick_clients();
        self.tick_servers();
        if self.id.0 == 0 {
            let now = self.now;
            self.shared.keep_pools(now, &mut self.orders);
            self.shared.forget_automatic(now);
            self.shared.tick(now);
        }
    }

    fn tick_clients(&mut self) {
        for (tick, key) in self.wheel.turn(self.now) {
            let client = self.clients.get_mut(key).filter(|client| client.look == Some(tick));
            if let Some(client) = client {
                client.look = None;
                self.look_at(key);
            }
        }
        for key in std::mem::take(&mut self.attended) {
            self.look_at_doubt(key);
            self.look_at(key);
            let Some(client) = self.clients.get_mut(key) else { continue };
            if client.is_attended() {
                self.attended.push(key);
            } else {
                client.attention = Attention::Rare;
                self.look_later(key);
            }
        }
    }

    /// From now on a client is looked at in every tick, until it waits no more.
    pub(super) fn attend(&mut self, key: Key) {
        if let Some(client) = self.clients.get_mut(key)
            && client.attention == Attention::Rare
        {
            client.attention = Attention::EveryTick;
            self.attended.push(key);
        }
    }

    /// Makes sure that a client is looked at when something may be due.
    pub(super) fn look_later(&mut self, key: Key) {
        let Some(client) = self.clients.get(key) else { return };
        let look = self.look(client);
        let Some(at) = look.due.map_or(look.next, |_| Some(self.now)) else { return };
        if client.look.is_some_and(|planned| planned <= self.wheel.tick(at)) {
            return;
        }
        let tick = self.wheel.put(at, key);
        if let Some(client) = self.clients.get_mut(key) {
            client.look = Some(tick);
        }
    }

    /// Other settings are in force.
    pub(super) fn look_at_all_later(&mut self) {
        self.clients.keys().into_iter().for_each(|key| self.look_later(key));
    }

    /// Does what is due for a client.
    fn look_at(&mut self, key: Key) {
        let Some(client) = self.clients.get(key) else { return };
        match self.look(client).due {
            Some(Due::Close(reason)) => {
                if reason == "query_wait_timeout" {
                    self.note_timeout(key);
                }
                self.close_client(key, reason, Farewell::fatal());
            }
            Some(Due::CloseBoth(reason)) => {
                if let Some(slot) = client.server() {
                    self.cancel_running(key, slot);
                    self.close_both(key, slot, reason);
                }
            }
            Some(Due::Notice) => self.queue_notice(key),
            None => {}
        }
        let rare = |client: &Client| client.attention == Attention::Rare;
        if self.clients.get(key).is_some_and(|client| rare(client)) {
            self.look_later(key);
        }
    }

    fn note_timeout(&self, key: Key) {
        let place = self.clients.get(key).and_then(|client| client.place.as_ref());
        if let Some(place) = place.filter(|place| place.pool.entry.view().is_holding()) {
            place.pool.entry.meters.befell(self.now, Blow::Timeout);
        }
    }

    /// Ends a client together with its server, the server first.
    pub(super) fn close_both(&mut self, key: Key, slot: Key, reason: &str) {
        let farewell = self.unless_torn(slot, Farewell::fatal());
        self.close_server(slot, reason);
        self.close_client(key, reason, farewell);
    }

    fn queue_notice(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.notice = Notice::Given;
        let mut bytes = Vec::new();
        let message = "No server connection available in postgres backend, client being queued";
        let report = Report { severity: "NOTICE", sqlstate: "00000", message, detail: None };
        build::notice_response(&mut bytes, report);
        if client.output.send(&mut client.stream, &bytes).is_err() {
            self.client_gone(key);
        }
    }

    fn tick_servers(&mut self) {
        self.tick_naming();
        let due: Vec<(Key, ServerDue)> = self
            .servers
            .iter()
            .filter_map(|(key, slot)| Some((key, self.server_due(slot.here.as_ref()?)?)))
            .collect();
        for (key, due) in due {
            match due {
                ServerDue::Open => self.connect_timeout(key),
                ServerDue::Test => self.close_server(key, "test query failed"),
                ServerDue::FastClose => self.fast_close(key),
            }
        }
    }

    fn server_due(&self, server: &Server) -> Option<ServerDue> {
        let settings = &self.snapshot.config.settings;
        let limit = settings.server_connect_timeout;
        let late =
            |since: Instant| !limit.is_zero() && self.now.saturating_duration_since(since) > limit;
        match &server.stage {
            ServerStage::Connecting(..)
            | ServerStage::Securing(_)
            | ServerStage::Login(_)
            | ServerStage::Between => late(server.started).then_some(ServerDue::Open),
            ServerStage::Ready(_, Use::Testing | Use::RollingBack) => {
                late(server.asked).then_some(ServerDue::Test)
            }
            ServerStage::Ready(link, Use::Linked(_)) => {
                let fast = settings.server_fast_close
                    && server.pool.mode() == PoolMode::Session
                    && link.is_free();
                let stale = || server.pool.lock().machine.is_stale(server.id);
                (fast && stale()).then_some(ServerDue::FastClose)
            }
            ServerStage::Ready(..) | ServerStage::Asked(_) => None,
        }
    }

    fn connect_timeout(&mut self, key: Key) {
        self.open_failed(key, OpenFailure::connect("connect timeout"));
    }

    fn fast_close(&mut self, slot: Key) {
        let server = self.servers.get(slot).and_then(|slot| slot.here.as_ref());
        if let Some(client) = server.and_then(|server| server.client()) {
            self.close_both(client, slot, "database configuration changed");
        }
    }
}
