//! Questions to the user's rules and functions about a client's message, and their answers. A
//! message is asked about once; the verdict waits with it. What follows from one is in `verdicts`.

use std::ops::Range;

use switchyard_core::client::session::Approval;
use switchyard_core::hook::desk::CallId;
use switchyard_core::hook::frame::{Block, Outcome, Verdict};
use switchyard_core::params::CLIENT_ENCODING;
use switchyard_core::rules::{Place as Standing, Subject};
use switchyard_io::{Key, Peer};

use crate::hooks::peers;
use crate::rules::Native;
use crate::worker::Worker;
use crate::worker::booths::{Question, Reply};
use crate::worker::client::{Activity, Place, Stage};

/// Whether a client's message is with the hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asking {
    /// It was never asked whether its messages are shown to hooks.
    Unknown,
    /// No message is.
    No,
    /// Call with this number; where the text is in the client's input; what rules said before, if
    /// they said something.
    Asked(CallId, Range<usize>, Option<Box<Native>>),
    /// It comes from a function itself, and nothing of it is shown.
    Never,
}

/// What has become of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It is answered already.
    Judged,
    /// The client waits for the verdict.
    Waiting,
}

impl Worker {
    /// Asks the hooks about the message at the head of a client's stream.
    pub(super) fn ask_hooks(&mut self, key: Key, data: &[u8], range: Range<usize>) -> Asked {
        if self.is_exempt(key) {
            self.let_pass(key);
            return Asked::Judged;
        }
        let Some(client) = self.clients.get_mut(key) else { return Asked::Waiting };
        let Some(text) = data.get(range.clone()) else { return Asked::Waiting };
        let server = client.server().and_then(|slot| self.servers.get_mut(slot));
        let link = server.and_then(|slot| slot.here.as_mut()).and_then(|server| server.link());
        let Stage::Session(session, _) = &client.stage else { return Asked::Waiting };
        let inside = session.in_transaction(link.as_deref());
        let block = if inside { Block::Inside } else { Block::Outside };
        let encoding = session.params().value(CLIENT_ENCODING).unwrap_or(b"UTF8");
        let user = client.identity.as_ref().map_or("", |identity| identity.sent());
        let native = match &self.rules {
            Some(rules) => {
                let database =
                    client.identity.as_ref().map_or("", |identity| identity.database.as_str());
                let place = if inside { Standing::Inside } else { Standing::Outside };
                rules.judge(&Subject { user: user.as_bytes(), database, query: text, place })
            }
            None => Native::default(),
        };
        let reply = native.asked().and_then(|asked| {
            let text = native.text().unwrap_or(text);
            let question = Question { user, encoding, block, asked, text };
            self.hooks.ask(self.now, key, self.id.0, &question)
        });
        let verdict = match reply {
            Some(Reply::Later(id)) => {
                let said = (!native.is_silent()).then(|| Box::new(native));
                client.asking = Asking::Asked(id, range, said);
                return Asked::Waiting;
            }
            Some(Reply::Now(verdict)) => verdict,
            // There are no functions, and no rule fits.
            None if native.is_silent() => {
                self.let_pass(key);
                return Asked::Judged;
            }
            // Rules have said it all.
            None => Verdict { rewrite: Outcome::Off, route: Outcome::Off },
        };
        self.decide(key, native, verdict, text, 0);
        let moving = self.clients.get(key).is_none_or(|client| client.moving.is_some());
        if moving { Asked::Waiting } else { Asked::Judged }
    }

    /// Whether a client is a function's own connection; looked up once.
    fn is_exempt(&mut self, key: Key) -> bool {
        let Some(client) = self.clients.get(key) else { return false };
        match client.asking {
            Asking::Never => return true,
            Asking::No | Asking::Asked(..) => return false,
            Asking::Unknown => {}
        }
        let pids = self.hooks.pids();
        let own = match client.peer {
            Peer::Unix { pid, .. } => pids.contains(&pid),
            Peer::Tcp(peer) => client.stream.peek_socket().local_addr().is_some_and(|here| {
                let usual = 4 + self.shared.workers().len();
                peers::owned_by(&pids, usual, peer, here)
            }),
        };
        if let Some(client) = self.clients.get_mut(key) {
            client.asking = if own { Asking::Never } else { Asking::No };
        }
        own
    }

    /// Nobody has anything to say about the message at the head of a client's stream.
    fn let_pass(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if let Stage::Session(session, _) = &mut client.stage {
            session.intend(None);
            session.approve(Approval::Unchanged);
        }
    }

    /// The hooks have judged a client's message.
    pub(super) fn judged(&mut self, key: Key, id: CallId, verdict: Verdict, micros: u32) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let (range, native) = match &mut client.asking {
            Asking::Asked(asked, range, native) if *asked == id => (range.clone(), native.take()),
            Asking::Asked(..) => return,
            Asking::Unknown | Asking::No | Asking::Never => {
                return self.explained(key, id, &verdict);
            }
        };
        client.asking = Asking::No;
        client.active = self.now;
        let native = native.map_or_else(Native::default, |native| *native);
        let input = std::mem::take(&mut client.input);
        self.decide(key, native, verdict, input.get(range).unwrap_or_default(), micros);
        let Some(client) = self.clients.get_mut(key) else { return };
        client.input = input;
        self.todo.push_back(super::Todo::Client(key));
    }

    /// Acts on a verdict about the message at the head of a client's stream, with this text.
    fn decide(&mut self, key: Key, native: Native, verdict: Verdict, text: &[u8], micros: u32) {
        let share = u64::from(micros)
            / (u64::from(verdict.rewrite != Outcome::Off)
                + u64::from(verdict.route != Outcome::Off))
            .max(1);
        let rewritten = match native.rewrite {
            Some(decided) => self.rewritten_by_rule(key, decided, text),
            None => self.rewritten(key, verdict.rewrite, text, share),
        };
        let mut approval = rewritten.unwrap_or_else(|failure| self.policy(key, &failure));
        if let Some(Stage::Session(session, _)) = self.clients.get_mut(key).map(|c| &mut c.stage) {
            session.intend(None);
        }
        let final_text = match &approval {
            Approval::Text(changed) => Some(changed.as_slice()),
            Approval::Unchanged => Some(text),
            Approval::Refused(_) => None,
        };
        let routed = final_text.map(|text| match native.route {
            Some(decided) => self.routed_by_rule(key, decided, text),
            None => self.routed(key, verdict.route, text, share),
        });
        let mut then = None;
        if let Some(Err(failure)) = routed {
            approval = self.policy(key, &failure);
            then = failure.then;
        }
        self.approve(key, approval, then);
    }

    /// The message at the head of a client's stream goes on so; `then` is where the client goes
    /// when a refusal was sent.
    pub(super) fn approve(&mut self, key: Key, approval: Approval, then: Option<Place>) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if let Stage::Session(session, activity) = &mut client.stage {
            let refused = matches!(approval, Approval::Refused(_));
            session.approve(approval);
            if let (true, Activity::Linked(slot)) = (refused, *activity) {
                // It may be free, and nothing may come of it that would make us look.
                self.todo.push_back(super::Todo::Server(slot));
            }
        }
        // The refusal has to be on its way before the client's next messages wait to move.
        if let Some(place) = then {
            client.routes.get_or_insert_default().later = Some(place);
        }
    }

    /// A client that was refused a message moves once its refusal is on its way.
    pub(super) fn move_later(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Stage::Session(session, activity) = &client.stage else { return };
        let linked = matches!(activity, Activity::Linked(_));
        if !session.is_denied()
            && let Some(routes) = &mut client.routes
        {
            let place = routes.later.take();
            if linked {
                client.moving = place;
            }
        }
    }
}
