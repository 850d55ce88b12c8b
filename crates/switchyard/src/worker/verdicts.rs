//! What follows from a verdict, of a function or of a rule: another text, another pool, a refusal,
//! or the client's end, as the settings for failures have it.

use std::sync::Arc;

use switchyard_config::value::{OnError, RouteInTransaction, RouteNone, RouteUnknown, Tag};
use switchyard_core::client::pipeline::Word;
use switchyard_core::client::session::{Approval, Denial};
use switchyard_core::hook::frame::{Outcome, Trouble};
use switchyard_core::pool::Want;
use switchyard_core::server::link::Status;
use switchyard_io::Key;
use switchyard_wire::build::{self, Report};

use crate::entries::Admission;
use crate::hooks::stats::{Hook, HookStats};
use crate::hooks::warnings::{Leave, Topic};
use crate::log::Level;
use crate::pools::Stats;
use crate::rules::Decided;
use crate::worker::Worker;
use crate::worker::booths::TIMEOUT;
use crate::worker::client::{Place, Stage};
use crate::worker::close::Farewell;
use crate::worker::console::CONSOLE;

/// State of entries that take clients.
const ENABLED: Admission = Admission::Enabled;
/// Longest text in the evidence lines, in bytes.
const EVIDENCE_MAX: usize = 200;
/// Longest part of an unknown key that is shown, in bytes.
const KEY_MAX: usize = 200;

/// Why a message is not sent.
pub(super) struct Failure {
    pub(super) how: OnError,
    pub(super) sqlstate: &'static str,
    pub(super) text: String,
    pub(super) instead: Option<&'static [u8]>,
    /// Where the client goes afterwards.
    pub(super) then: Option<Place>,
}

/// What ties a client to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// Nothing.
    No,
    /// A part of a group that was sent there.
    ByGroup,
    /// Its transaction block.
    ByBlock,
    /// The same, of which only the end is left.
    ByFailedBlock,
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

/// A text for the log: on one line, cut, and nothing about passwords.
fn evidence(text: &[u8]) -> Option<String> {
    let cut = &text[..text.len().min(EVIDENCE_MAX)];
    let line = String::from_utf8_lossy(cut).replace(['\n', '\r'], " ");
    (!String::from_utf8_lossy(text).to_ascii_uppercase().contains("PASSWORD")).then_some(line)
}

/// What is appended to a warning.
fn more(leave: Leave) -> String {
    match leave.suppressed {
        0 => String::new(),
        more => format!(" ({more} more were not logged)"),
    }
}

impl Worker {
    /// Where a message goes.
    pub(super) fn routed(
        &mut self,
        key: Key,
        outcome: Outcome,
        text: &[u8],
        micros: u64,
    ) -> Result<(), Failure> {
        if outcome != Outcome::Off {
            self.count(Hook::Route).took(micros);
        }
        match outcome {
            Outcome::Off => Ok(()),
            Outcome::None | Outcome::Same => {
                Stats::add(&self.count(Hook::Route).none, 1);
                self.route_none(key, text);
                Ok(())
            }
            Outcome::Given(name) => {
                self.route(key, "routing_rules", &String::from_utf8_lossy(&name), text)
            }
            Outcome::Failed(trouble) => self.routing_failed(key, &trouble),
        }
    }

    fn routing_failed(&mut self, key: Key, trouble: &Trouble) -> Result<(), Failure> {
        self.failed(key, Hook::Route, trouble);
        match self.snapshot.config.settings.route_on_error {
            OnError::Pass => Ok(()),
            how => Err(Failure::new(how, "58000", "query routing failed")),
        }
    }

    /// Where a message goes by a rule.
    pub(super) fn routed_by_rule(
        &mut self,
        key: Key,
        decided: Decided,
        text: &[u8],
    ) -> Result<(), Failure> {
        match decided.outcome {
            Outcome::Given(name) => {
                let who = format!("rule \"{}\"", decided.rule);
                self.route(key, &who, &String::from_utf8_lossy(&name), text)
            }
            Outcome::Failed(trouble) => self.routing_failed(key, &trouble),
            Outcome::Off | Outcome::Same | Outcome::None => Ok(()),
        }
    }

    pub(super) fn count(&self, hook: Hook) -> &HookStats {
        self.shared.hook_stats.of(usize::from(self.id.0), hook)
    }

    /// Counts and logs a failure of a function.
    fn failed(&mut self, key: Key, hook: Hook, trouble: &Trouble) {
        let counters = self.count(hook);
        Stats::add(&counters.errors, 1);
        if trouble.reason == TIMEOUT {
            Stats::add(&counters.timeouts, 1);
        }
        self.shared.hook_stats.note_error(hook, &trouble.reason);
        let (topic, name) = match hook {
            Hook::Rewrite => (Topic::Rewrite, "rewrite_query"),
            Hook::Route => (Topic::Route, "routing_rules"),
        };
        let line = format!("{name} failed: {}", trouble.reason);
        let leave = self.warn(key, topic, "", &line);
        if leave.is_some_and(|leave| leave.first) {
            for line in trouble.trace.lines() {
                self.show_evidence(key, || Some(format!("{name}: {line}")));
            }
        }
    }

    /// The shadow functions would have said something else.
    pub(super) fn note_differences(&mut self, rewrite: &str, route: &str) {
        for (hook, text) in [(Hook::Rewrite, rewrite), (Hook::Route, route)] {
            if text.is_empty() {
                continue;
            }
            Stats::add(&self.count(hook).shadow, 1);
            let Some(host) = self.hooks.current().cloned() else { return };
            let subject = format!("{hook:?}");
            if let Some(leave) = host.warnings.leave(self.now, Topic::Shadow, &subject) {
                let line = format!("hook shadow: {text}{}", more(leave));
                self.shared.log.write(Level::Log, &line.replace('\n', " "));
            }
        }
    }

    /// What rewrite_query made of a text.
    pub(super) fn rewritten(
        &mut self,
        key: Key,
        outcome: Outcome,
        text: &[u8],
        micros: u64,
    ) -> Result<Approval, Failure> {
        let counters = self.count(Hook::Rewrite);
        if outcome != Outcome::Off {
            counters.took(micros);
        }
        match outcome {
            Outcome::Off => Ok(Approval::Unchanged),
            Outcome::Same => {
                Stats::add(&counters.identical, 1);
                Ok(Approval::Unchanged)
            }
            Outcome::None => {
                Stats::add(&counters.none, 1);
                Ok(Approval::Unchanged)
            }
            Outcome::Given(changed) => {
                Stats::add(&counters.changed, 1);
                Ok(self.replaced(key, "rewrite_query", text, changed))
            }
            Outcome::Failed(trouble) => self.rewriting_failed(key, &trouble),
        }
    }

    /// What a rule made of a text.
    pub(super) fn rewritten_by_rule(
        &mut self,
        key: Key,
        decided: Decided,
        text: &[u8],
    ) -> Result<Approval, Failure> {
        match decided.outcome {
            Outcome::Given(changed) => {
                let who = format!("rule \"{}\"", decided.rule);
                Ok(self.replaced(key, &who, text, changed))
            }
            Outcome::Failed(trouble) => self.rewriting_failed(key, &trouble),
            Outcome::Off | Outcome::Same | Outcome::None => Ok(Approval::Unchanged),
        }
    }

    fn replaced(&self, key: Key, who: &str, text: &[u8], mut changed: Vec<u8>) -> Approval {
        if self.snapshot.config.settings.rewrite_query_tag == Tag::Pid {
            tag(&mut changed);
        }
        self.show_evidence(key, || {
            Some(format!("{who}: {} -> {}", evidence(text)?, evidence(&changed)?))
        });
        Approval::Text(changed)
    }

    fn rewriting_failed(&mut self, key: Key, trouble: &Trouble) -> Result<Approval, Failure> {
        self.failed(key, Hook::Rewrite, trouble);
        let settings = &self.snapshot.config.settings;
        let how = if settings.rewrite_query_disconnect_on_failure.0 {
            OnError::Disconnect
        } else {
            settings.rewrite_on_error
        };
        match how {
            OnError::Pass => Ok(Approval::Unchanged),
            how => Err(Failure::new(how, "58000", "query rewrite failed")),
        }
    }

    /// Refuses a message, or ends its client.
    pub(super) fn policy(&mut self, key: Key, failure: &Failure) -> Approval {
        let Failure { how, sqlstate, text, instead, .. } = failure;
        if *how == OnError::Disconnect {
            self.close_client(key, text, Farewell::coded(*sqlstate));
        } else {
            self.warn(key, Topic::Refused, text, &format!("pooler error: {text}"));
        }
        let mut error = Vec::new();
        let report = Report { severity: "ERROR", sqlstate, message: text, detail: None };
        build::error_response(&mut error, report);
        Approval::Refused(Box::new(Denial { error, instead: *instead }))
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
            // None does not ask for a move that is not possible.
            if self.is_bound(key) == Bound::No {
                let name = home.pool.entry.name.clone();
                // What may fail is a move inside a transaction.
                let _ = self.move_client(key, home, &name, text);
            }
        }
    }

    /// What ties a client to its server.
    fn is_bound(&mut self, key: Key) -> Bound {
        let Some(client) = self.clients.get_mut(key) else { return Bound::No };
        let server = client.server().and_then(|slot| self.servers.get_mut(slot));
        let link = server.and_then(|slot| slot.here.as_mut()).and_then(|s| s.link());
        let Stage::Session(session, _) = &client.stage else { return Bound::No };
        if session.in_transaction(link.as_deref()) {
            let failed = link.is_some_and(|link| link.status() == Status::Failed);
            return if failed { Bound::ByFailedBlock } else { Bound::ByBlock };
        }
        match link.is_some_and(|link| !link.may_be_left()) {
            true => Bound::ByGroup,
            false => Bound::No,
        }
    }

    fn route(&mut self, key: Key, who: &str, name: &str, text: &[u8]) -> Result<(), Failure> {
        let Some(client) = self.clients.get(key) else { return Ok(()) };
        let Some(identity) = client.identity.clone() else { return Ok(()) };
        let was = client.place.as_ref().map(|place| place.pool.entry.name.clone());
        let shown = &name[..name.floor_char_boundary(KEY_MAX)];
        self.show_evidence(key, || {
            let was = was.as_deref().unwrap_or_default();
            Some(format!("{who}: \"{shown}\" (was \"{was}\") for: {}", evidence(text)?))
        });
        let here = client.place.as_ref();
        let is_here = |place: &Place| {
            let entry = &place.pool.entry;
            entry.name == name && place.want == Want::Writer && entry.admission() == ENABLED
        };
        if here.is_some_and(is_here) && client.moving.is_none() {
            Stats::add(&self.count(Hook::Route).identical, 1);
            return Ok(());
        }
        let enabled = |entry: &Arc<crate::entries::Entry>| entry.admission() == ENABLED;
        let found =
            if name == CONSOLE { (None, Want::Writer) } else { self.shared.destination(name, "") };
        match found {
            (Some(entry), want) if enabled(&entry) => {
                let pool = self.shared.pool(&entry, &identity.user);
                self.move_client(key, Place { pool, want }, name, text)
            }
            (Some(_) | None, _) => {
                let line = format!("{who} returned unknown database \"{shown}\"");
                Stats::add(&self.count(Hook::Route).unknown, 1);
                self.warn(key, Topic::Unknown, shown, &line);
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
    pub(super) fn move_client(
        &mut self,
        key: Key,
        to: Place,
        name: &str,
        text: &[u8],
    ) -> Result<(), Failure> {
        let Some(client) = self.clients.get(key) else { return Ok(()) };
        let Some(from) = client.place.clone() else { return Ok(()) };
        if from.is(&to) {
            Stats::add(&self.count(Hook::Route).identical, 1);
            return Ok(());
        }
        let slot = client.server();
        let bound = self.is_bound(key);
        if bound == Bound::No {
            Stats::add(&self.count(Hook::Route).changed, 1);
            self.move_to(key, to);
            return Ok(());
        }
        // The end of a block belongs to its server, whatever the rules say.
        let inside = bound == Bound::ByBlock && Word::of(text) != Word::End;
        match self.snapshot.config.settings.route_in_transaction {
            RouteInTransaction::Error if inside => {
                let text = "cannot change server inside a transaction";
                Err(Failure::new(OnError::Error, "25001", text))
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
                Stats::add(&self.count(Hook::Route).ignored, 1);
                if let Some(client) = self.clients.get_mut(key) {
                    client.intend(&to);
                }
                self.warn(key, Topic::Inside, name, &line);
                Ok(())
            }
        }
    }

    pub(super) fn warn(
        &mut self,
        key: Key,
        topic: Topic,
        subject: &str,
        line: &str,
    ) -> Option<Leave> {
        let leave = match (self.hooks.current(), &self.rules) {
            (Some(host), _) => host.warnings.leave(self.now, topic, subject)?,
            (None, Some(rules)) => rules.warnings.leave(self.now, topic, subject)?,
            (None, None) => return None,
        };
        self.log_client(key, Level::Warning, &format!("{line}{}", more(leave)));
        Some(leave)
    }

    pub(super) fn show_evidence(&self, key: Key, line: impl FnOnce() -> Option<String>) {
        if self.shared.log.enabled(Level::Debug)
            && let Some(line) = line()
        {
            self.log_client(key, Level::Debug, &line);
        }
    }
}
