//! What is due for a client, and when something may be.
//!
//! Limits of sessions need no word of what happens in them: while any is set, each session is
//! looked at at least as often as the shortest of them, and what is found then says when it is due.

use std::time::{Duration, Instant};

use switchyard_config::Overrides;
use switchyard_core::client::patience::{
    self, Due, Look, Notice, Wait, WaitLimits, Work, WorkLimits,
};
use switchyard_io::Key;

use crate::worker::Worker;
use crate::worker::client::{Activity, Client, Place, Stage};
use crate::worker::hooking::Asking;
use crate::worker::server::Stage as ServerStage;

/// How long the last bytes to a client are kept for one that does not read.
const FAREWELL: Duration = Duration::from_secs(5);

impl Worker {
    /// Looks at a client.
    pub(super) fn look(&self, client: &Client) -> Look {
        let mut look = Look::at(self.now);
        let login = self.snapshot.config.settings.client_login_timeout;
        match &client.stage {
            Stage::Start | Stage::Login(_) => {
                look.after(client.connected, login, Due::Close("client_login_timeout"));
                // Only with auth_query there is a place before there is a session.
                if let (Some(place), Some(since)) = (&client.place, client.waiting_since) {
                    self.look_at_login(&mut look, client, place, since);
                }
            }
            Stage::AwaitingWelcome(_) => {
                let reason = "client_login_timeout (server down)";
                look.after(client.connected, login, Due::Close(reason));
                if let Some(place) = &client.place {
                    let since = client.waiting_since.unwrap_or(client.connected);
                    self.look_at_login(&mut look, client, place, since);
                }
            }
            Stage::Session(_, activity) => self.look_at_session(&mut look, client, *activity),
            Stage::Leaving => {
                if let Some(since) = client.waiting_since {
                    look.after(since, FAREWELL, Due::Close("unexpected eof"));
                }
            }
            Stage::Console(_) | Stage::Cancel(_) => {}
        }
        look
    }

    fn with_overrides<R>(
        &self,
        client: &Client,
        place: &Place,
        f: impl FnOnce(Overrides<'_>) -> R,
    ) -> R {
        let user = client.identity.as_ref().map_or("", |identity| identity.user.as_str());
        f(self.snapshot.overrides(&place.pool.entry.definition(), user))
    }

    /// query_wait_timeout of a client that has waited since then; it grows by the pauses in that
    /// time if they are not to count.
    fn query_wait(&self, client: &Client, place: &Place, since: Option<Instant>) -> Duration {
        let limit = self.with_overrides(client, place, |own| own.query_wait_timeout());
        let Some(since) = since.filter(|_| !limit.is_zero()) else { return limit };
        let passed = self.now.saturating_duration_since(since);
        // Whether there was a pause matters only to those whose time would be over.
        if passed <= limit || !self.snapshot.config.settings.pause_stops_query_wait {
            return limit;
        }
        limit + place.pool.lock().machine.paused_since(since, self.now)
    }

    /// A login that waits for a server, as long as a query would.
    fn look_at_login(&self, look: &mut Look, client: &Client, place: &Place, since: Instant) {
        let limits = WaitLimits {
            wait: self.query_wait(client, place, Some(since)),
            query: self.snapshot.config.settings.query_timeout,
            notice: Duration::ZERO,
        };
        Wait { query: None, since: Some(since), notice: Notice::Given }.look(look, limits);
    }

    fn look_at_session(&self, look: &mut Look, client: &Client, activity: Activity) {
        let Some(place) = &client.place else { return };
        if let Some(limit) = self.snapshot.shortest {
            look.again(self.now + limit);
        }
        // Who waits for a function has something to do, and that has a time limit of its own.
        let asks = matches!(client.asking, Asking::Asked(..));
        let settings = &self.snapshot.config.settings;
        match activity {
            Activity::Idle if asks => {}
            Activity::Idle => self.look_at_idle(look, client, place, client.active),
            Activity::Waiting => {
                let (query, notice) = (client.query_since, client.notice);
                let wait = Wait { query, since: client.waiting_since, notice };
                let limits = WaitLimits {
                    wait: self.query_wait(client, place, query.or(client.waiting_since)),
                    query: settings.query_timeout,
                    notice: Duration::from_secs(settings.query_wait_notify.max(0) as u64),
                };
                wait.look(look, limits);
            }
            Activity::Linked(slot) => self.look_at_linked(look, client, place, slot),
        }
    }

    /// client_idle_timeout.
    fn look_at_idle(&self, look: &mut Look, client: &Client, place: &Place, since: Instant) {
        if self.snapshot.shortest.is_some() {
            let limit = self.with_overrides(client, place, |own| own.client_idle_timeout());
            patience::idle(look, since, limit);
        }
    }

    fn look_at_linked(&self, look: &mut Look, client: &Client, place: &Place, slot: Key) {
        let server = self.servers.get(slot).and_then(|slot| slot.here.as_ref());
        let Some(server) = server.filter(|_| self.snapshot.shortest.is_some()) else { return };
        let ServerStage::Ready(link, _) = &server.stage else { return };
        let asks = matches!(client.asking, Asking::Asked(..));
        if link.is_free() && !asks {
            return self.look_at_idle(look, client, place, client.active.max(server.heard));
        }
        let limits = self.with_overrides(client, place, |own| WorkLimits {
            query: own.query_timeout(),
            idle: if asks { Duration::ZERO } else { own.idle_transaction_timeout() },
            transaction: own.transaction_timeout(),
        });
        let (query, transaction) = (client.query_since, client.xact_since);
        Work { query, transaction, heard: server.heard }.look(look, link, limits);
    }
}
