//! What the user's functions say about a client's message, and what follows: another text, another
//! pool, or the client's end. A message is asked about once; the verdict waits with it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use switchyard_config::value::{OnError, RouteInTransaction, RouteNone, RouteUnknown, Tag};
use switchyard_core::client::pipeline::Word;
use switchyard_core::client::session::{Approval, Denial};
use switchyard_core::params::CLIENT_ENCODING;
use switchyard_core::server::link::Status;
use switchyard_io::Key;
use switchyard_wire::build::{self, Report};

use crate::hooks::{Call, Outcome, Topic, Verdict};
use crate::log::Level;
use crate::worker::Worker;
use crate::worker::client::{Activity, Place, Stage};
use crate::worker::close::Farewell;

/// Longest text in the evidence lines, in bytes.
const EVIDENCE_MAX: usize = 200;

/// A statement that fails on any server, and whose text says why in its log.
const FAIL: &[u8] = b"select cast('cannot change server inside a transaction' as integer)";

/// Why a message is not sent.
struct Failure {
    how: OnError,
    sqlstate: &'static str,
    text: String,
    instead: Option<&'static [u8]>,
    /// Where the client goes afterwards.
    then: Option<Place>,
}

impl Failure {
    fn new(how: OnError, sqlstate: &'static str, text: &str) -> Self {
        Failure { how, sqlstate, text: text.to_owned(), instead: None, then: None }
    }
}

/// Marks a rewritten text with our process id.
fn tag(text: &mut Vec<u8>) {
    let mark = format!("rewritten_pid='{:05}'*/", std::process::id());
    let opening = if text.ends_with(b"*/") {
        text.truncate(text.len() - 2);
        ","
    } else {
        "/*"
    };
    text.extend_from_slice(opening.as_bytes());
    text.extend_from_slice(mark.as_bytes());
}

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
        let (mut approval, text) = match self.rewritten(key, verdict.rewrite, text) {
            Ok(both) => both,
            Err(failure) => (self.policy(key, &failure), Vec::new()),
        };
        let mut then = None;
        if !matches!(approval, Approval::Refused(_)) {
            let routed = match verdict.route {
                Outcome::Off => Ok(()),
                Outcome::Same => {
                    self.route_none(key, &text);
                    Ok(())
                }
                Outcome::Given(name) => self.route(key, &String::from_utf8_lossy(&name), &text),
                Outcome::Failed(reason) => {
                    self.warn(key, Topic::Route, &format!("routing_rules failed: {reason}"));
                    match self.snapshot.config.settings.route_on_error {
                        OnError::Pass => Ok(()),
                        how => Err(Failure::new(how, "58000", "query routing failed")),
                    }
                }
            };
            if let Err(failure) = routed {
                approval = self.policy(key, &failure);
                then = failure.then;
            }
        }
        let Some(client) = self.clients.get_mut(key) else { return };
        if let Stage::Session(session, activity) = &mut client.stage {
            let refused = matches!(approval, Approval::Refused(_));
            session.approve(approval);
            self.todo.push_back(super::Todo::Client(key));
            if let (true, Activity::Linked(slot)) = (refused, *activity) {
                // It may be free, and nothing may come of it that would make us look.
                self.todo.push_back(super::Todo::Server(slot));
            }
        }
        if then.is_some() {
            // The refusal has to be on its way before the client's next messages wait to move.
            self.kick_client(key);
            let Some(client) = self.clients.get_mut(key) else { return };
            if let Stage::Session(session, Activity::Linked(_)) = &client.stage
                && !session.is_denied()
            {
                client.moving = then;
            }
        }
    }

    /// What rewrite_query made of a text, and the text that goes on.
    fn rewritten(
        &mut self,
        key: Key,
        outcome: Outcome,
        text: Vec<u8>,
    ) -> Result<(Approval, Vec<u8>), Failure> {
        let settings = &self.snapshot.config.settings;
        match outcome {
            Outcome::Off | Outcome::Same => Ok((Approval::Unchanged, text)),
            Outcome::Given(mut changed) => {
                if settings.rewrite_query_tag == Tag::Pid {
                    tag(&mut changed);
                }
                self.show_evidence(key, || {
                    Some(format!("rewrite_query: {} -> {}", evidence(&text)?, evidence(&changed)?))
                });
                Ok((Approval::Text(changed.clone()), changed))
            }
            Outcome::Failed(reason) => {
                let how = if settings.rewrite_query_disconnect_on_failure {
                    OnError::Disconnect
                } else {
                    settings.rewrite_on_error
                };
                self.warn(key, Topic::Rewrite, &format!("rewrite_query failed: {reason}"));
                match how {
                    OnError::Pass => Ok((Approval::Unchanged, text)),
                    how => Err(Failure::new(how, "58000", "query rewrite failed")),
                }
            }
        }
    }

    /// Refuses a message, or ends its client.
    fn policy(&mut self, key: Key, failure: &Failure) -> Approval {
        let Failure { how, sqlstate, text, instead, .. } = failure;
        if *how == OnError::Disconnect {
            self.close_client(key, text, Farewell::coded(*sqlstate));
        } else {
            self.log_client(key, Level::Warning, &format!("pooler error: {text}"));
        }
        let mut error = Vec::new();
        let report = Report { severity: "ERROR", sqlstate, message: text, detail: None };
        build::error_response(&mut error, report);
        Approval::Refused(Denial { error, instead: *instead })
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
            // What may fail is a move inside a transaction; None does not ask for one.
            let _ = self.move_client(key, home, &name, text);
        }
    }

    fn route(&mut self, key: Key, name: &str, text: &[u8]) -> Result<(), Failure> {
        let Some(client) = self.clients.get(key) else { return Ok(()) };
        let Some(identity) = client.identity.clone() else { return Ok(()) };
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
                self.move_client(key, Place { pool, want }, name, text)
            }
            (Some(_) | None, _) => {
                let line = format!("routing_rules returned unknown database \"{name}\"");
                self.warn(key, Topic::Unknown, &line);
                match self.snapshot.config.settings.route_unknown {
                    RouteUnknown::Stay => Ok(()),
                    RouteUnknown::Error => Err(Failure::new(OnError::Error, "3D000", &line)),
                }
            }
        }
    }

    /// Sends a client's next messages to another pool: at once, or when the answers that it still
    /// waits for have come. Inside a transaction route_in_transaction decides; in a group of which
    /// a part was sent it stays.
    fn move_client(&mut self, key: Key, to: Place, name: &str, text: &[u8]) -> Result<(), Failure> {
        let Some(client) = self.clients.get_mut(key) else { return Ok(()) };
        let Some(from) = client.place.clone() else { return Ok(()) };
        if Arc::ptr_eq(&from.pool, &to.pool) && from.want == to.want {
            return Ok(());
        }
        let slot = client.server();
        let server = slot.and_then(|slot| self.servers.get_mut(slot));
        let mut link = server.and_then(|slot| slot.here.as_mut()).and_then(|s| s.link());
        let Stage::Session(session, _) = &client.stage else { return Ok(()) };
        let inside = session.in_transaction(link.as_deref());
        let open = link.as_ref().is_some_and(|link| !link.ends_with_group());
        if !inside && !open {
            match (slot, link.as_mut().is_some_and(|link| link.is_free())) {
                (None, _) => client.place = Some(to),
                (Some(slot), true) => {
                    client.moving = Some(to);
                    self.give_back(slot);
                }
                (Some(_), false) => client.moving = Some(to),
            }
            return Ok(());
        }
        // The end of a block belongs to its server, whatever the rules say.
        let ends = Word::of(text) == Word::End;
        let failed = link.as_ref().is_some_and(|link| link.status() == Status::Failed);
        let inside = inside && !ends && !failed;
        match self.snapshot.config.settings.route_in_transaction {
            RouteInTransaction::Error if inside => {
                let text = "cannot change server inside a transaction";
                let failure = Failure::new(OnError::Error, "25001", text);
                Err(Failure { instead: Some(FAIL), ..failure })
            }
            RouteInTransaction::Switch if inside && slot.is_some() => {
                let text = "transaction rolled back: routed to another server";
                let failure = Failure::new(OnError::Error, "40000", text);
                Err(Failure { instead: Some(b"ROLLBACK"), then: Some(to), ..failure })
            }
            RouteInTransaction::Stay | RouteInTransaction::Error | RouteInTransaction::Switch => {
                let here = &from.pool.entry.name;
                let line = format!(
                    "routing_rules asked for \"{name}\" inside a transaction, staying on \"{here}\""
                );
                self.warn(key, Topic::Inside, &line);
                Ok(())
            }
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
