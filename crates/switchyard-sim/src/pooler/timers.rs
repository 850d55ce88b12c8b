//! What is due: timeouts of clients and servers.

use std::time::Duration;

use switchyard_core::client::patience::{Due, Look, Notice, Wait, WaitLimits, Work, WorkLimits};
use switchyard_core::pool::OpenFailure;
use switchyard_wire::build::{self, Report};

use super::Pooler;
use super::parts::{Activity, Client, Server, ServerStage, Stage, Use};
use super::relay::send;
use crate::env::Env;

/// What a look at a server found.
enum ServerDue {
    Open,
    Test,
}

impl Pooler {
    pub(super) fn look_at_time(&mut self, env: &mut Env, w: usize) {
        self.expire_cancels(env, w);
        let clients = self.workers[w].clients.iter();
        let doubtful = clients.filter(|(_, client)| client.doubt.is_some());
        for key in doubtful.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.look_at_doubt(env, w, key);
        }
        let clients = self.workers[w].clients.iter();
        let due = clients.filter_map(|(key, client)| Some((*key, self.due(env, w, client)?)));
        for (key, due) in due.collect::<Vec<_>>() {
            match due {
                Due::Close(reason) => self.close_client(env, w, key, reason, Some("08P01")),
                Due::CloseBoth(reason) => {
                    let client = self.workers[w].clients.get(&key);
                    if let Some(slot) = client.and_then(|client| client.server()) {
                        self.close_both(env, w, key, slot, reason);
                    }
                }
                Due::Notice => self.queue_notice(env, w, key),
            }
        }
        let servers = self.workers[w].servers.iter();
        let due = servers
            .filter_map(|(key, slot)| Some((*key, self.server_due(env, slot.here.as_ref()?)?)));
        for (key, due) in due.collect::<Vec<_>>() {
            match due {
                ServerDue::Open => {
                    self.open_failed(env, w, key, OpenFailure::connect("connect timeout"));
                }
                ServerDue::Test => self.close_server(env, w, key, "test query failed"),
            }
        }
    }

    fn due(&self, env: &Env, w: usize, client: &Client) -> Option<Due> {
        let wait = self.settings.query_wait_timeout;
        let mut look = Look::at(env.now);
        match &client.stage {
            Stage::AwaitingWelcome(_) => {
                let (query, notice) = (None, Notice::Given);
                let waits = Wait { query, since: client.waiting_since, notice };
                let limits = WaitLimits { wait, query: Duration::ZERO, notice: Duration::ZERO };
                waits.look(&mut look, limits);
            }
            Stage::Session(_, Activity::Idle) => {}
            Stage::Session(_, Activity::Waiting) => {
                let (query, notice) = (client.query_since, client.notice);
                let waits = Wait { query, since: client.waiting_since, notice };
                let notice = self.settings.query_wait_notify;
                waits.look(&mut look, WaitLimits { wait, query: Duration::ZERO, notice });
            }
            Stage::Session(_, Activity::Linked(slot)) => {
                let server = self.workers[w].servers.get(slot)?.here.as_ref()?;
                let ServerStage::Ready(link, _) = &server.stage else { return None };
                let (query, transaction) = (client.query_since, client.xact_since);
                let work = Work { query, transaction, heard: server.heard };
                let none = Duration::ZERO;
                let limits = WorkLimits { query: QUERY_TIMEOUT, idle: none, transaction: none };
                work.look(&mut look, link, limits);
            }
        }
        look.due
    }

    fn server_due(&self, env: &Env, server: &Server) -> Option<ServerDue> {
        let limit = self.settings.connect_timeout;
        let late = |since| env.now.saturating_duration_since(since) > limit;
        match &server.stage {
            ServerStage::Login(_) | ServerStage::Between => {
                late(server.started).then_some(ServerDue::Open)
            }
            ServerStage::Ready(_, Use::Testing) => late(server.asked).then_some(ServerDue::Test),
            ServerStage::Ready(..) => None,
        }
    }

    fn queue_notice(&mut self, env: &mut Env, w: usize, key: u64) {
        let Some(client) = self.workers[w].clients.get_mut(&key) else { return };
        client.notice = Notice::Given;
        let mut bytes = Vec::new();
        let message = "No server connection available in postgres backend, client being queued";
        let report = Report { severity: "NOTICE", sqlstate: "00000", message, detail: None };
        build::notice_response(&mut bytes, report);
        if !send(env, client.end, &mut client.output, &bytes) {
            self.close_client(env, w, key, "client unexpected eof", None);
        }
    }
}

/// `query_timeout`: longer than any statement of a world, so that it ends what a silent node
/// never answers.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);
