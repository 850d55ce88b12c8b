//! What is due: timeouts of clients and servers, and the pools' own maintenance.
//!
//! A worker looks four times a second at its own connections; the first worker looks after the
//! pools and the statistics as well.

use std::time::{Duration, Instant};

use switchyard_config::PoolMode;
use switchyard_core::client::patience::{self, Due, Notice, Wait, WaitLimits, Work, WorkLimits};
use switchyard_core::pool::OpenFailure;
use switchyard_io::Key;
use switchyard_wire::build::{self, Report};

use crate::meters::Blow;
use crate::worker::Worker;
use crate::worker::client::{Activity, Client, Place, Stage};
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
        let doubtful = self.clients.iter().filter(|(_, client)| client.doubt.is_some());
        for key in doubtful.map(|(key, _)| key).collect::<Vec<_>>() {
            self.look_at_doubt(key);
        }
        let due: Vec<(Key, Due)> = self
            .clients
            .iter()
            .filter_map(|(key, client)| Some((key, self.due(client)?)))
            .collect();
        for (key, due) in due {
            match due {
                Due::Close(reason) => {
                    if reason == "query_wait_timeout" {
                        self.note_timeout(key);
                    }
                    self.close_client(key, reason, Farewell::fatal());
                }
                Due::CloseBoth(reason) => {
                    if let Some(slot) = self.clients.get(key).and_then(|client| client.server()) {
                        self.close_both(key, slot, reason);
                    }
                }
                Due::Notice => self.queue_notice(key),
            }
        }
    }

    fn note_timeout(&self, key: Key) {
        let place = self.clients.get(key).and_then(|client| client.place.as_ref());
        if let Some(place) = place.filter(|place| place.pool.entry.view().is_holding()) {
            place.pool.entry.meters.befell(self.now, Blow::Timeout);
        }
    }

    fn due(&self, client: &Client) -> Option<Due> {
        let settings = &self.snapshot.config.settings;
        let over = |since: Instant, limit: Duration| {
            !limit.is_zero() && self.now.saturating_duration_since(since) > limit
        };
        match &client.stage {
            Stage::Start | Stage::Login(_) => {
                if over(client.connected, settings.client_login_timeout) {
                    return Some(Due::Close("client_login_timeout"));
                }
                // Only with auth_query there is a place before there is a session.
                let wait = self.query_wait(client, client.place.as_ref()?);
                over(client.waiting_since?, wait).then_some(Due::Close("query_wait_timeout"))
            }
            Stage::AwaitingWelcome(_) => {
                let place = client.place.as_ref()?;
                let wait = self.query_wait(client, place);
                if over(client.connected, settings.client_login_timeout) {
                    return Some(Due::Close("client_login_timeout (server down)"));
                }
                let since = client.waiting_since.unwrap_or(client.connected);
                over(since, wait).then_some(Due::Close("query_wait_timeout"))
            }
            Stage::Session(_, activity) => self.due_in_session(client, *activity),
            Stage::Console(_) | Stage::Cancel | Stage::Leaving => None,
        }
    }

    fn due_in_session(&self, client: &Client, activity: Activity) -> Option<Due> {
        let place = client.place.as_ref()?;
        let settings = &self.snapshot.config.settings;
        let user = client.identity.as_ref().and_then(|identity| self.snapshot.user(&identity.user));
        match activity {
            Activity::Idle => {
                let limit = user.and_then(|user| user.client_idle_timeout);
                let limit = limit.unwrap_or(settings.client_idle_timeout);
                patience::idle(self.now, client.active, limit)
            }
            Activity::Waiting => {
                let (query, notice) = (client.query_since, client.notice);
                let wait = Wait { query, since: client.waiting_since, notice };
                let notice = Duration::from_secs(settings.query_wait_notify.max(0) as u64);
                let query = settings.query_timeout;
                let limits = WaitLimits { wait: self.query_wait(client, place), query, notice };
                wait.due(self.now, limits)
            }
            Activity::Linked(slot) => self.due_linked(client, place, slot),
        }
    }

    fn due_linked(&self, client: &Client, place: &Place, slot: Key) -> Option<Due> {
        let server = self.servers.get(slot)?.here.as_ref()?;
        let ServerStage::Ready(link, _) = &server.stage else { return None };
        let settings = &self.snapshot.config.settings;
        let user = self.snapshot.user(&place.pool.user);
        let limit = |own: Option<Duration>, global: Duration| own.unwrap_or(global);
        let idle = user.and_then(|user| user.idle_transaction_timeout);
        let transaction = user.and_then(|user| user.transaction_timeout);
        let limits = WorkLimits {
            query: limit(user.and_then(|user| user.query_timeout), settings.query_timeout),
            idle: limit(idle, settings.idle_transaction_timeout),
            transaction: limit(transaction, settings.transaction_timeout),
        };
        let (query, transaction) = (client.query_since, client.xact_since);
        let work = Work { query, transaction, heard: server.heard };
        work.due(self.now, link, limits)
    }

    fn query_wait(&self, client: &Client, place: &Place) -> Duration {
        let user = client.identity.as_ref().map_or("", |identity| identity.user.as_str());
        let definition = place.pool.entry.definition();
        self.snapshot.query_wait_timeout(&definition, user).unwrap_or_default()
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
            ServerStage::Ready(_, Use::Testing) => late(server.asked).then_some(ServerDue::Test),
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
