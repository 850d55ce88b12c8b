//! A logged-in client's stream: which of its messages go where, and what is put between them.
//!
//! `advance` runs over the bytes of one turn until they are used up or something outside has to
//! happen: a server is needed, a hook has to be asked, the client must go. It composes the link
//! (what is owed), the statement names and the parameters, and keeps no counter of its own.
//! Invariant: any chunking of a stream gives the same messages to the same servers.

mod extended;
mod hooked;
mod leaving;
mod message;
mod terms;

use switchyard_wire::tag::frontend;
use switchyard_wire::{build, frame, read};

use crate::client::lost::{Lost, Owed, Told};
use crate::client::pipeline::{BlockStatements, Predicted};
use crate::client::replay::{Answers, Fresh, Keeping, Refused, Replay};
use crate::client::routes::{RouteId, StatementRoutes};
use crate::client::traces::Traces;
use crate::client::untracked::{self, Kept};
use crate::params::{self, Params, Tracked};
use crate::prepared::ClientStatements;
use crate::server::link::{Link, LinkedClient, Tail};
use crate::server::request::{HiddenQuery, Request};

use message::{Message, is_request, question, refuse, unknown, whole};

pub use extended::taken;
pub use leaving::Leaving;
pub use terms::{
    Approval, Counted, Denial, Detour, Flow, Hooking, Loyalty, Misuse, Refusal, Reprepare, Rules,
    Simple, Stop, Tracking, Untracked,
};

/// A message of which only a part was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Partial {
    left: usize,
    to: Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    Server,
    Nowhere,
}

/// The state of a logged-in client's stream.
#[derive(Debug)]
pub struct Session {
    params: Params,
    statements: ClientStatements,
    partial: Partial,
    approval: Option<Approval>,
    /// Messages at the head of the stream that were judged when they were sent first.
    judged: usize,
    predicted: Predicted,
    blocks: BlockStatements,
    denied: Denied,
    lost: Lost,
    kept: Kept,
    routes: StatementRoutes,
    replay: Replay,
    traces: Traces,
}

/// Whether a server's client is in a group of which a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    No,
    UpToSync,
}

/// Longest names that are waited for, in bytes.
const NAMES_MAX: usize = 256 * 1024;
/// Bytes that may be put between a client's messages in one turn. One short Bind may need a long
/// Parse in front of it.
const INJECTED_MAX: usize = 256 * 1024;

type Stopped = Result<usize, Stop>;

impl Session {
    /// A client that has just been welcomed.
    pub fn new(params: Params) -> Self {
        Session {
            params,
            statements: ClientStatements::default(),
            partial: Partial { left: 0, to: Destination::Nowhere },
            approval: None,
            judged: 0,
            predicted: Predicted::AsReported,
            blocks: BlockStatements::default(),
            denied: Denied::No,
            lost: Lost::default(),
            kept: Kept::Nothing,
            routes: StatementRoutes::default(),
            replay: Replay::default(),
            traces: Traces::default(),
        }
    }

    /// Runs over `input`; answers how many bytes were used and why it stopped.
    pub fn advance(
        &mut self,
        mut link: Option<&mut Link>,
        input: &[u8],
        flow: &mut Flow,
        rules: &Rules<'_>,
    ) -> (usize, Stop) {
        let outcome = self.run(link.as_deref_mut(), input, flow, rules);
        if let Some(link) = link {
            let half = self.partial.left > 0 && self.partial.to == Destination::Server;
            link.sent_up_to(if half { Tail::Half } else { Tail::Whole });
        }
        outcome
    }

    #[inline]
    fn run(
        &mut self,
        mut link: Option<&mut Link>,
        input: &[u8],
        flow: &mut Flow,
        rules: &Rules<'_>,
    ) -> (usize, Stop) {
        let mut at = 0;
        loop {
            if self.partial.left > 0 {
                at += self.continue_partial(&input[at..], at, input, flow);
                if self.partial.left > 0 {
                    return (at, Stop::More);
                }
            }
            let head = match frame::peek(&input[at..], rules.message_max) {
                Ok(Some(head)) => head,
                Ok(None) => return (at, Stop::More),
                Err(bad) => {
                    return (at, refuse(format!("bad packet header: '{}'", bad.hex()), None));
                }
            };
            let m = Message { head, at, input };
            let fresh = match link.as_deref() {
                Some(link) if rules.keeping == Keeping::On => Some(link.is_fresh()),
                _ => None,
            };
            let changed = fresh.and_then(|_| self.changed(&m));
            let step = match link.as_deref_mut() {
                Some(link) => self.linked(link, m, flow, rules),
                None if self.lost.is_playing() => self.play(m, flow),
                None => self.unlinked(m, flow, rules),
            };
            match step {
                Ok(used) => {
                    if let Some(fresh) = fresh {
                        let fresh = if fresh { Fresh::Yes } else { Fresh::No };
                        match &changed {
                            Some((head, sent)) => self.replay.message(fresh, *head, sent),
                            None => self.replay.message(fresh, m.head, &input[at..at + used]),
                        }
                    }
                    at += used;
                }
                Err(stop) => return (at, stop),
            }
        }
    }

    fn continue_partial(&mut self, rest: &[u8], at: usize, input: &[u8], flow: &mut Flow) -> usize {
        let take = self.partial.left.min(rest.len());
        if self.partial.to == Destination::Server {
            flow.server.forward(input, at..at + take);
            self.replay.more(&input[at..at + take]);
        }
        self.partial.left -= take;
        take
    }

    /// A message of a client whose server was lost.
    fn play(&mut self, m: Message<'_>, flow: &mut Flow) -> Stopped {
        if m.head.tag == frontend::TERMINATE {
            return Err(Stop::Terminate);
        }
        let body = match whole(&m) {
            Ok(body) => body,
            Err(_) if m.there() > NAMES_MAX => &[],
            Err(stop) => return Err(stop),
        };
        self.lost.play(m.head.tag, body, &mut self.statements, &mut flow.client);
        Ok(self.pass(m, Destination::Nowhere, flow))
    }

    /// A message of a client without a server.
    fn unlinked(&mut self, m: Message<'_>, flow: &mut Flow, rules: &Rules<'_>) -> Stopped {
        match m.head.tag {
            frontend::TERMINATE => Err(Stop::Terminate),
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => {
                Ok(self.pass(m, Destination::Nowhere, flow))
            }
            frontend::CLOSE if rules.tracking != Tracking::Off => {
                let body = whole(&m)?;
                match read::describe(body) {
                    Some((b'S', name)) if !name.is_empty() => {
                        self.statements.remove(name);
                        self.routes.remove(name);
                        self.blocks.remove(name);
                        build::empty(
                            &mut flow.client,
                            switchyard_wire::tag::backend::CLOSE_COMPLETE,
                        );
                        Ok(m.head.len)
                    }
                    Some(_) => Err(Stop::NeedServer),
                    None => Err(refuse("broken Close packet", None)),
                }
            }
            frontend::QUERY if rules.simple == Simple::Refused => Err(no_query()),
            frontend::QUERY | frontend::PARSE if self.must_ask(rules) => Err(question(&m)?),
            frontend::QUERY | frontend::PARSE if self.is_denied() => {
                whole(&m)?;
                if let Some(denial) = self.denial() {
                    flow.client.extend_from_slice(&denial.error);
                }
                if m.head.tag == frontend::QUERY {
                    let status = if self.lost.is_inside() { b'T' } else { b'I' };
                    build::ready_for_query(&mut flow.client, status);
                } else {
                    self.lost.skip();
                }
                Ok(self.pass(m, Destination::Nowhere, flow))
            }
            tag if is_request(tag) => match self.elsewhere(&m)? {
                Some(route) => Err(Stop::Move(route)),
                None => Err(Stop::NeedServer),
            },
            tag => Err(unknown(tag)),
        }
    }

    /// A message of a client with a server.
    fn linked(
        &mut self,
        link: &mut Link,
        m: Message<'_>,
        flow: &mut Flow,
        rules: &Rules<'_>,
    ) -> Stopped {
        let unanswered = link.outstanding().len();
        if unanswered >= rules.outstanding_max || flow.server.injected() > INJECTED_MAX {
            return Err(Stop::Full);
        }
        if m.head.tag != frontend::QUERY {
            self.lost.more();
        }
        if self.denied == Denied::UpToSync {
            if m.head.tag != frontend::SYNC {
                return Ok(self.pass(m, Destination::Nowhere, flow));
            }
            self.denied = Denied::No;
        }
        match m.head.tag {
            frontend::COPY_DATA => return Ok(self.pass(m, Destination::Server, flow)),
            frontend::COPY_DONE | frontend::COPY_FAIL => {
                link.sent_copy_end();
                return Ok(self.pass(m, Destination::Server, flow));
            }
            _ => link.ends_drain(),
        }
        match m.head.tag {
            frontend::QUERY if rules.simple == Simple::Refused => return Err(no_query()),
            frontend::QUERY | frontend::PARSE if self.must_ask(rules) => {
                // Were it judged now, its verdict would be about the group that is sent again.
                let waits = self.replay.is_whole() && !link.is_quiet();
                return Err(if waits { Stop::Full } else { question(&m)? });
            }
            frontend::QUERY | frontend::PARSE if self.is_denied() => {
                return self.deny(link, m, flow);
            }
            frontend::BIND | frontend::DESCRIBE | frontend::CLOSE => {
                if let Some(stopped) = self.follow(link, &m, flow, rules)? {
                    return stopped;
                }
            }
            _ => {}
        }
        if link.loyalty() == Loyalty::Returns {
            self.look_for_traces(&m, rules)?;
        }
        match m.head.tag {
            frontend::QUERY => return self.query(link, m, flow, rules),
            frontend::TERMINATE => return Err(Stop::Terminate),
            frontend::FLUSH => {}
            frontend::SYNC => link.sent_sync(),
            frontend::EXECUTE => link.sent(Request::Execute),
            frontend::FUNCTION_CALL => link.sent_call(),
            frontend::PARSE => return self.parse(link, m, flow, rules),
            frontend::BIND => return self.bind(link, m, flow, rules),
            frontend::DESCRIBE | frontend::CLOSE => {
                return self.describe_or_close(link, m, flow, rules);
            }
            tag => return Err(unknown(tag)),
        }
        Ok(self.pass(m, Destination::Server, flow))
    }

    /// Passes a message on, as far as it is there.
    #[inline]
    fn pass(&mut self, m: Message<'_>, to: Destination, flow: &mut Flow) -> usize {
        let there = m.there();
        if to == Destination::Server {
            flow.server.forward(m.input, m.at..m.at + there);
        }
        self.partial = Partial { left: m.head.len - there, to };
        there
    }

    #[inline]
    fn query(
        &mut self,
        link: &mut Link,
        m: Message<'_>,
        flow: &mut Flow,
        rules: &Rules<'_>,
    ) -> Stopped {
        if rules.untracked.looks() {
            let body = whole(&m)?;
            self.look_for_set(&body[..body.len().saturating_sub(1)], flow, rules);
        }
        let approval = self.approval.take();
        if rules.loyalty == Loyalty::Stays {
            match (whole(&m), &approval) {
                (Ok(_), Some(Approval::Text(text))) => self.remember(link, text),
                (Ok(text), _) => self.remember(link, &text[..text.len().saturating_sub(1)]),
                (Err(_), _) => self.lost.unknown(),
            }
        }
        if let Some(approval) = &approval {
            let text = whole(&m)?;
            let sent = match approval {
                Approval::Text(text) => text,
                Approval::Unchanged | Approval::Refused(_) => text,
            };
            self.predicted = self.predicted.after(sent);
            if let Approval::Text(text) = approval {
                flow.server.inject(m.input, |out| build::query(out, text));
                link.sent_query();
                return Ok(m.head.len);
            }
        }
        link.sent_query();
        Ok(self.pass(m, Destination::Server, flow))
    }

    /// Notes that a text sets a parameter that is not tracked.
    #[inline]
    fn look_for_set(&mut self, sql: &[u8], flow: &mut Flow, rules: &Rules<'_>) {
        if rules.untracked.looks() && self.kept == Kept::Nothing {
            flow.assigned = untracked::assigned(sql, rules.tracked);
            if flow.assigned.is_some() {
                self.kept = Kept::after(rules.untracked);
            }
        }
    }

    /// Notes a query in case its server is lost.
    fn remember(&mut self, link: &Link, sql: &[u8]) {
        self.lost.query(sql, link.status(), link.outstanding().len());
        self.predicted = self.predicted.after(sql);
    }
}

/// Links, approvals and questions.
impl Session {
    /// A server was given to the client: puts the SET for its parameters in front. Answers the
    /// statement, for the log.
    pub fn link(&mut self, link: &mut Link, tracked: &Tracked, flow: &mut Flow) -> Option<Vec<u8>> {
        let away = self.routes.current() != RouteId::default();
        let sql = if away {
            self.set_each(link, tracked, flow)
        } else {
            params::difference(tracked, &mut self.params, link.params_mut())
        };
        if let Some(sql) = sql.as_ref().filter(|_| !away) {
            flow.server.inject(&[], |out| build::query(out, sql));
            link.sent(Request::Hidden(HiddenQuery::Parameters));
        }
        if let Some(begin) = self.lost.again() {
            flow.server.inject(&[], |out| build::query(out, &begin));
            link.sent(Request::Hidden(HiddenQuery::Begin));
        }
        sql
    }

    /// Whether answers are to be shown to [`Session::answers`] before they go to the client.
    #[inline]
    pub fn withholds(&self) -> bool {
        self.replay.is_group()
    }

    /// A server's answers are about to go to the client.
    pub fn answers(&mut self, bytes: &[u8]) -> Answers {
        self.replay.answers(bytes)
    }

    /// A statement that was refused is sent again: its names are unknown until then.
    pub fn forget(&mut self, refused: &Refused) {
        for name in &refused.names {
            self.statements.remove(name);
        }
        self.replay = Replay::Again;
        self.judged = refused.judged();
    }

    /// What has to happen to the server for untracked parameters that this client has set.
    #[inline]
    pub fn kept(&self) -> Kept {
        self.kept
    }

    /// The client has given its server back.
    pub fn part(&mut self) {
        self.kept = Kept::Nothing;
    }

    /// Everything sent was answered: the server's word counts again.
    pub fn settled(&mut self) {
        self.lost.settled();
        self.replay.settled();
        self.predicted = Predicted::AsReported;
    }

    /// Whether the next message is inside a transaction block.
    pub fn in_transaction(&self, link: Option<&Link>) -> bool {
        let status = link.map_or(crate::server::link::Status::Idle, Link::status);
        self.lost.is_inside() || self.predicted.in_transaction(status)
    }

    /// Whether a message was passed on in part only.
    #[inline]
    pub fn is_inside_message(&self) -> bool {
        self.partial.left > 0
    }

    /// The parts that a server's answers change.
    #[inline]
    pub fn linked_client(&mut self) -> LinkedClient<'_> {
        LinkedClient { params: &mut self.params, statements: &mut self.statements }
    }

    /// Tracked parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Number of statement names.
    pub fn statements(&self) -> usize {
        self.statements.len()
    }

    /// The server is gone and the client stays: writes to `out` what it is told now. The rest of a
    /// half-sent message goes nowhere.
    pub fn lose(&mut self, mut owed: Owed, out: &mut Vec<u8>) {
        self.partial.to = Destination::Nowhere;
        let unseen = std::mem::take(&mut self.replay);
        if unseen.is_group() {
            // What has come of the answer was withheld.
            owed.told = Told::Nothing;
        }
        for name in unseen.names() {
            self.statements.remove(name);
        }
        let predicted = std::mem::take(&mut self.predicted);
        self.lost.lose(owed, predicted, out);
    }
}

fn no_query() -> Stop {
    refuse("PQexec disallowed", Some("client used \"Query\" packet type".into()))
}
