//! What the user's functions say about a client's message, and what follows: another text, another
//! pool, or the client's end. A message is asked about once; the verdict waits with it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use switchyard_config::value::{OnError, RouteNone};
use switchyard_core::client::session::Approval;
use switchyard_core::params::CLIENT_ENCODING;
use switchyard_io::Key;

use crate::hooks::{Call, Outcome, Topic, Verdict};
use crate::log::Level;
use crate::worker::Worker;
use crate::worker::client::{Place, Stage};
use crate::worker::close::Farewell;

/// Longest text in the evidence lines, in bytes.
const EVIDENCE_MAX: usize = 200;

/// Whether a client's message is with the hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asking {
    /// No.
    No,
    /// Call with this number; the text as the client sent it.
    Asked(u64, Vec<u8>),
}

/// A text for the log: on one line, cut, and nothing about passwords.
fn evidence(text: &[u8]) -> Option<String> {
    let cut = &text[..text.len().min(EVIDENCE_MAX)];
    let line = String::from_utf8_lossy(cut).replace(['\n', '\r'], " ");
    (!String::from_utf8_lossy(text).to_ascii_uppercase().contains("PASSWORD")).then_some(line)
}

impl Worker {
    /// Asks the hooks about the message at the head of a client's stream.
    pub(super) fn ask_hooks(&mut self, key: Key, data: &[u8], text: Range<usize>) {
        let (ticket, id) = (self.ticket(key), self.calls + 1);
        self.calls = id;
        let Some(client) = self.clients.get_mut(key) else { return };
        let Some(text) = data.get(text).map(<[u8]>::to_vec) else { return };
        let server = client.server().and_then(|slot| self.servers.get_mut(slot));
        let link = server.and_then(|slot| slot.here.as_mut()).and_then(|server| server.link());
        let Stage::Session(session, _) = &client.stage else { return };
        let in_transaction = session.in_transaction(link.as_deref());
        let encoding = session.params().value(CLIENT_ENCODING).unwrap_or(b"UTF8").to_vec();
        client.asking = Asking::Asked(id, text.clone());
        let user = client.identity.as_ref().map(|identity| identity.user.clone());
        let (user, asked) = (user.unwrap_or_default(), Instant::now());
        let call = Call { ticket, id, user, text, encoding, in_transaction, asked };
        self.asked.push(call);
    }

    /// Hands over what came up in this turn.
    pub(super) fn hand_over(&mut self) {
        match &self.hooks {
            Some(host) => host.ask(&mut self.asked),
            // They were switched off in between: nothing is said against these messages.
            None => {
                for call in std::mem::take(&mut self.asked) {
                    let (rewrite, route) = (Outcome::Off, Outcome::Off);
                    let key = Key::from_bits(call.ticket.client);
                    self.judged(key, call.id, Verdict { rewrite, route });
                }
            }
        }
    }

    /// The hooks have judged a client's message.
    pub(super) fn judged(&mut self, key: Key, id: u64, verdict: Verdict) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Asking::Asked(asked, text) = &client.asking else { return };
        if *asked != id {
            return;
        }
        let text = text.clone();
        client.asking = Asking::No;
        let settings = &self.snapshot.config.settings;
        let (on_rewrite, on_route) = (settings.rewrite_on_error, settings.route_on_error);
        let strict = settings.rewrite_query_disconnect_on_failure || on_rewrite != OnError::Pass;
        let approval = match verdict.rewrite {
            Outcome::Off | Outcome::Same => Approval::Unchanged,
            Outcome::Given(changed) => {
                self.show_evidence(key, || {
                    Some(format!("rewrite_query: {} -> {}", evidence(&text)?, evidence(&changed)?))
                });
                Approval::Text(changed)
            }
            Outcome::Failed(reason) => {
                self.warn(key, Topic::Rewrite, &format!("rewrite_query failed: {reason}"));
                if strict {
                    return self.close_client(
                        key,
                        "query rewrite failed",
                        Farewell::coded("58000"),
                    );
                }
                Approval::Unchanged
            }
        };
        let text = match &approval {
            Approval::Unchanged => text,
            Approval::Text(changed) => changed.clone(),
        };
        match verdict.route {
            Outcome::Off => {}
            Outcome::Same => self.route_none(key, &text),
            Outcome::Given(name) => self.route(key, &String::from_utf8_lossy(&name), &text),
            Outcome::Failed(reason) => {
                self.warn(key, Topic::Route, &format!("routing_rules failed: {reason}"));
                if on_route != OnError::Pass {
                    return self.close_client(
                        key,
                        "query routing failed",
                        Farewell::coded("58000"),
                    );
                }
            }
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        if let Stage::Session(session, _) = &mut client.stage {
            session.approve(approval);
        }
        self.todo.push_back(super::Todo::Client(key));
    }

    fn route_none(&mut self, key: Key, text: &[u8]) {
        let Some(client) = self.clients.get(key) else { return };
        let here = client.place.as_ref().map(|place| place.pool.entry.name.clone());
        self.show_evidence(key, || {
            let here = here.as_deref().unwrap_or_default();
            Some(format!("routing_rules: None, staying on \"{here}\" for: {}", evidence(text)?))
        });
        if self.snapshot.config.settings.route_none == RouteNone::Default
            && let Some(home) = self.clients.get(key).and_then(|client| client.home.clone())
        {
            let name = home.pool.entry.name.clone();
            self.move_client(key, home, &name);
        }
    }

    fn route(&mut self, key: Key, name: &str, text: &[u8]) {
        let Some(client) = self.clients.get(key) else { return };
        let Some(identity) = client.identity.clone() else { return };
        let was = client.place.as_ref().map(|place| place.pool.entry.name.clone());
        self.show_evidence(key, || {
            let was = was.as_deref().unwrap_or_default();
            Some(format!("routing_rules: \"{name}\" (was \"{was}\") for: {}", evidence(text)?))
        });
        let enabled = |entry: &Arc<crate::entries::Entry>| {
            entry.admission() == crate::entries::Admission::Enabled
        };
        match self.shared.destination(name) {
            (Some(entry), want) if enabled(&entry) => {
                let pool = self.shared.pool(&entry, &identity.user);
                self.move_client(key, Place { pool, want }, name);
            }
            (Some(_) | None, _) => {
                let line = format!("routing_rules returned unknown database \"{name}\"");
                self.warn(key, Topic::Unknown, &line);
            }
        }
    }

    /// Sends a client's next messages to another pool: at once, or when the answers that it still
    /// waits for have come. Inside a transaction, or a group of which a part was sent, it stays.
    fn move_client(&mut self, key: Key, to: Place, name: &str) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Some(from) = client.place.clone() else { return };
        if Arc::ptr_eq(&from.pool, &to.pool) && from.want == to.want {
            return;
        }
        let Some(slot) = client.server() else {
            client.place = Some(to);
            return;
        };
        let Stage::Session(session, _) = &client.stage else { return };
        let server = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut());
        let Some(link) = server.and_then(|server| server.link()) else { return };
        if session.in_transaction(Some(link)) || !link.ends_with_group() {
            let here = &from.pool.entry.name;
            return self.warn(
                key,
                Topic::Inside,
                &format!(
                    "routing_rules asked for \"{name}\" inside a transaction, staying on \"{here}\""
                ),
            );
        }
        let free = link.is_free();
        client.moving = Some(to);
        if free {
            self.give_back(slot);
        }
    }

    fn warn(&mut self, key: Key, topic: Topic, line: &str) {
        let may = self.hooks.as_ref().and_then(|hooks| hooks.may_warn(self.now, topic));
        match may {
            None => {}
            Some(0) => self.log_client(key, Level::Warning, line),
            Some(more) => {
                let line = format!("{line} ({more} more were not logged)");
                self.log_client(key, Level::Warning, &line);
            }
        }
    }

    fn show_evidence(&self, key: Key, line: impl FnOnce() -> Option<String>) {
        if self.shared.log.enabled(Level::Debug)
            && let Some(line) = line()
        {
            self.log_client(key, Level::Debug, &line);
        }
    }
}
