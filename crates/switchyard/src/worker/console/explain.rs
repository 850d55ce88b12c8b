//! EXPLAIN ROUTE: rules and functions are asked as for a client's message, and nothing else
//! happens.

use switchyard_core::console::explain::{COLUMNS, ExplainRoute};
use switchyard_core::console::tables::Row;
use switchyard_core::hook::desk::CallId;
use switchyard_core::hook::frame::{Block, Outcome, Verdict};
use switchyard_core::rules::{Place, Subject};
use switchyard_io::Key;

use crate::rules::{Decided, Native};
use crate::worker::booths::{Question, Reply};
use crate::worker::console::tables::text;
use crate::worker::console::{Done, Wait};
use crate::worker::{Todo, Worker};

/// A question that the functions have to answer.
#[derive(Clone, Debug)]
pub(super) struct Explaining {
    call: CallId,
    question: ExplainRoute,
    native: Native,
}

/// Nothing asked, nothing said.
const SILENT: Verdict = Verdict { rewrite: Outcome::Off, route: Outcome::Off };

impl Worker {
    pub(super) fn explain(&mut self, key: Key, question: ExplainRoute) -> Done {
        let (user, query) = (question.user.as_bytes(), question.query.as_bytes());
        let native = match &self.rules {
            Some(rules) => {
                let (database, place) = (question.database.as_str(), Place::Outside);
                rules.consider(&Subject { user, database, query, place })
            }
            None => Native::default(),
        };
        let reply = native.asked().and_then(|asked| {
            let (user, text) = (question.user.as_str(), native.text().unwrap_or(query));
            let (encoding, block) = (&b"UTF8"[..], Block::Outside);
            let ask = Question { user, encoding, block, asked, text };
            self.hooks.ask(self.now, key, self.id.0, &ask)
        });
        match reply {
            Some(Reply::Later(call)) => {
                self.wait(key, Wait::Explain(Box::new(Explaining { call, question, native })))
            }
            Some(Reply::Now(verdict)) => {
                self.tell_route(key, &question, &native, &verdict);
                Ok(None)
            }
            None => {
                self.tell_route(key, &question, &native, &SILENT);
                Ok(None)
            }
        }
    }

    /// The functions have said what they would do.
    pub(in crate::worker) fn explained(&mut self, key: Key, call: CallId, verdict: &Verdict) {
        let Some(console) = self.console(key) else { return };
        let Some(Wait::Explain(explaining)) = &console.wait else { return };
        if explaining.call != call {
            return;
        }
        let Explaining { question, native, .. } = (**explaining).clone();
        self.stop_waiting(key);
        self.tell_route(key, &question, &native, verdict);
        self.todo.push_back(Todo::Client(key));
    }

    fn tell_route(&mut self, key: Key, asked: &ExplainRoute, native: &Native, verdict: &Verdict) {
        let row = self.explanation(asked, native, verdict);
        let mut out = Vec::new();
        if let Some(console) = self.console(key) {
            console.conversation.answer(COLUMNS, vec![row], &mut out);
        }
        self.say(key, &out);
    }

    fn explanation(&self, asked: &ExplainRoute, native: &Native, verdict: &Verdict) -> Row {
        let mut notes = Vec::new();
        let changed = said("rewrite_query", native.rewrite.as_ref(), &verdict.rewrite, &mut notes);
        let rewritten = changed.unwrap_or_else(|| asked.query.clone());
        let dbkey = said("routing_rules", native.route.as_ref(), &verdict.route, &mut notes);
        let wanted = dbkey.as_deref().unwrap_or(&asked.database);
        let plain = wanted.split_once('@').map_or(wanted, |(database, _)| database);
        let entry = self.shared.known_entry(wanted).or_else(|| self.shared.known_entry(plain));
        let hosts = entry.as_ref().map(|entry| entry.definition().hosts.join(","));
        if entry.is_none() && !self.shared.known_destination(wanted) {
            notes.push(format!("unknown database \"{wanted}\""));
        }
        let database = entry.map_or_else(|| wanted.to_owned(), |entry| entry.name.clone());
        let host = hosts.filter(|hosts| !hosts.is_empty());
        vec![text(rewritten), dbkey, text(database), host, text(notes.join("; "))]
    }
}

/// What a rule or else a function said; who, and why it failed, go to the notes.
fn said(
    function: &str,
    rule: Option<&Decided>,
    outcome: &Outcome,
    notes: &mut Vec<String>,
) -> Option<String> {
    let (who, outcome) = match rule {
        Some(decided) => (format!("rule \"{}\"", decided.rule), &decided.outcome),
        None => (function.to_owned(), outcome),
    };
    match outcome {
        Outcome::Off => None,
        Outcome::Same | Outcome::None => {
            notes.push(format!("{who}: unchanged"));
            None
        }
        Outcome::Given(bytes) => {
            notes.push(who);
            Some(String::from_utf8_lossy(bytes).into_owned())
        }
        Outcome::Failed(trouble) => {
            notes.push(format!("{who} failed: {}", trouble.reason));
            None
        }
    }
}
