//! The extended protocol in a client's stream: statement names are mapped to what the linked server
//! has, and what it lacks is prepared first.
//!
//! Not here: what becomes of a name when the server skips a message (`server/request`). A Bind is
//! looked at up to its names only; its values stream through.

use std::sync::Arc;

use switchyard_wire::build::{self, Report};
use switchyard_wire::tag::frontend;
use switchyard_wire::{frame, read};

use super::message::{Message, refuse, whole};
use super::terms::{
    Approval, Flow, Hooking, Loyalty, Misuse, Refusal, Reprepare, Rules, Stop, Tracking,
};
use super::{Destination, NAMES_MAX, Partial, Session, Stopped};
use crate::prepared::{Change, Closing, Presence, Statement, Was};
use crate::server::link::{Link, TAKEN};
use crate::server::request::{Group, Misused, NamedParse, Request};

/// A message that PostgreSQL refuses in any state, with an error that is followed by skipping up to
/// the next Sync and aborts the transaction: Describe of a kind that does not exist.
const FAILS: &[u8] = b"D\0\0\0\x06?\0";

/// What was wrong about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// It is defined already.
    Taken,
    /// It is not defined.
    Unknown,
}

impl Session {
    pub(super) fn parse(
        &mut self,
        link: &mut Link,
        m: Message<'_>,
        flow: &mut Flow,
        rules: &Rules<'_>,
    ) -> Stopped {
        if rules.loyalty == Loyalty::Stays {
            match whole(&m).ok().and_then(read::parse) {
                Some(parse) => self.lost.statement(parse.sql),
                None => self.lost.unknown(),
            }
        }
        if m.input.len() - m.at <= frame::HEADER {
            return Err(Stop::More);
        }
        if rules.hooking == Hooking::On || !self.routes.is_plain() {
            self.note_parse(&m, rules.tracking);
        }
        let unnamed = m.input.get(m.at + frame::HEADER) == Some(&0);
        let untracked = unnamed || rules.tracking == Tracking::Off;
        let unchanged = matches!(self.approval, None | Some(Approval::Unchanged));
        if link.is_skipping() || (untracked && unchanged && !rules.untracked.looks()) {
            if self.approval.take().is_some()
                && !link.is_skipping()
                && let Some(parse) = whole(&m).ok().and_then(read::parse)
            {
                self.blocks.define(parse.name, parse.sql);
            }
            link.sent(Request::Parse(None));
            return Ok(self.pass(m, Destination::Server, flow));
        }
        let body = whole(&m)?;
        let Some(parse) = read::parse(body) else {
            return Err(refuse("broken Parse packet", None));
        };
        // Whether the name is free is known when that group is answered.
        if !untracked
            && self.statements.statement(parse.name).is_some()
            && link.outstanding().definition(parse.name) == Some(Group::Earlier)
        {
            return Err(Stop::Full);
        }
        let approval = self.approval.take();
        let sql = match &approval {
            Some(Approval::Text(text)) => text,
            Some(Approval::Unchanged | Approval::Refused(_)) | None => parse.sql,
        };
        if approval.is_some() {
            self.blocks.define(parse.name, sql);
        }
        self.look_for_set(sql, flow, rules);
        if untracked && unchanged {
            link.sent(Request::Parse(None));
            return Ok(self.pass(m, Destination::Server, flow));
        }
        let parse = read::Parse { sql, ..parse };
        if untracked {
            flow.server
                .inject(m.input, |out| build::parse(out, parse.name, parse.sql, parse.types));
            link.sent(Request::Parse(None));
            return Ok(m.head.len);
        }
        self.named_parse(link, parse, m, flow, rules)
    }

    fn named_parse(
        &mut self,
        link: &mut Link,
        parse: read::Parse<'_>,
        m: Message<'_>,
        flow: &mut Flow,
        rules: &Rules<'_>,
    ) -> Stopped {
        flow.counted.client_parses += 1;
        if self.statements.statement(parse.name).is_some() {
            return self.misused(link, parse.name, Wrong::Taken, m, flow, rules);
        }
        let statement = rules.registry.intern(parse.sql, parse.types);
        self.statements.define(parse.name, Arc::clone(&statement));
        let named =
            Box::new(NamedParse { name: parse.name.into(), statement: Arc::clone(&statement) });
        let presence = link.has_statement(&statement);
        let local = match presence {
            Presence::Usable => !link.is_failed(),
            Presence::Outdated => rules.reprepare == Reprepare::Off && !link.is_failed(),
            Presence::Absent | Presence::Likely | Presence::Doubtful => false,
        };
        if local {
            link.answer_locally(Request::LocalParse(named), &mut flow.client);
            return Ok(m.head.len);
        }
        let mut sending = Sending { link, statement: &statement, input: m.input, flow };
        sending.parse(presence, rules, |parse| Request::Parse(Some(Box::new((*named, parse)))));
        Ok(m.head.len)
    }

    pub(super) fn bind(
        &mut self,
        link: &mut Link,
        m: Message<'_>,
        flow: &mut Flow,
        rules: &Rules<'_>,
    ) -> Stopped {
        if rules.tracking == Tracking::Off {
            self.lost.unknown();
            if let Some((_, name, _)) = read::bind(m.body_there()) {
                self.foresee(link, name);
            }
            link.sent(Request::Bind(None));
            return Ok(self.pass(m, Destination::Server, flow));
        }
        let there = m.there();
        let body = &m.input[m.at + frame::HEADER..m.at + there];
        let Some((portal, name, rest)) = read::bind(body) else {
            let hopeless = there == m.head.len || there > NAMES_MAX;
            return Err(if hopeless { refuse("broken Bind packet", None) } else { Stop::More });
        };
        self.foresee(link, name);
        if name.is_empty() || link.is_skipping() {
            link.sent(Request::Bind(None));
            return Ok(self.pass(m, Destination::Server, flow));
        }
        let Some(statement) = self.statements.statement(name).cloned() else {
            return self.misused(link, name, Wrong::Unknown, m, flow, rules);
        };
        flow.counted.binds += 1;
        prepare(link, &statement, m.input, flow, rules);
        self.lost.statement(statement.sql());
        self.look_for_set(statement.sql(), flow, rules);
        link.sent(Request::Bind(Some(statement.id())));
        let len = m.head.len - 1 - name.len() + statement.name().len();
        flow.server.inject(m.input, |out| {
            out.push(frontend::BIND);
            out.extend_from_slice(&(len as u32).to_be_bytes());
            build::cstr(out, portal);
            build::cstr(out, statement.name());
        });
        flow.server.forward(m.input, m.at + there - rest.len()..m.at + there);
        self.partial = Partial { left: m.head.len - there, to: Destination::Server };
        Ok(there)
    }

    /// A Bind of this statement is on its way, unless the server skips it.
    fn foresee(&mut self, link: &Link, name: &[u8]) {
        if !link.is_skipping() {
            self.predicted = self.predicted.after_word(self.blocks.word(name));
        }
    }

    pub(super) fn describe_or_close(
        &mut self,
        link: &mut Link,
        m: Message<'_>,
        flow: &mut Flow,
        rules: &Rules<'_>,
    ) -> Stopped {
        let closing = m.head.tag == frontend::CLOSE;
        let request = if closing { Request::Close } else { Request::Describe(None) };
        let body = whole(&m)?;
        let broken = if closing { "broken Close packet" } else { "broken Describe packet" };
        let Some((kind, name)) = read::describe(body) else { return Err(refuse(broken, None)) };
        let tracked = rules.tracking != Tracking::Off && kind == b'S' && !name.is_empty();
        if !tracked || link.is_skipping() {
            link.sent(request);
            return Ok(self.pass(m, Destination::Server, flow));
        }
        if closing {
            self.routes.remove(name);
            self.blocks.remove(name);
            let was = self.statements.remove(name);
            let was = was.map(|statement| Box::new(NamedParse { name: name.into(), statement }));
            link.answer_locally(Request::LocalClose(was), &mut flow.client);
            return Ok(m.head.len);
        }
        let Some(statement) = self.statements.statement(name).cloned() else {
            return self.misused(link, name, Wrong::Unknown, m, flow, rules);
        };
        prepare(link, &statement, m.input, flow, rules);
        link.sent(Request::Describe(Some(statement.id())));
        flow.server.inject(m.input, |out| {
            build::message(out, frontend::DESCRIBE, |out| {
                out.push(b'S');
                build::cstr(out, statement.name());
            });
        });
        Ok(m.head.len)
    }

    /// A name was used that may not be used. Either the client is closed, or the server is made to
    /// fail in its place, so that the rest of the group and the transaction end as they would.
    fn misused(
        &mut self,
        link: &mut Link,
        name: &[u8],
        wrong: Wrong,
        m: Message<'_>,
        flow: &mut Flow,
        rules: &Rules<'_>,
    ) -> Stopped {
        // A name that waits for its answer may turn out to be free, and then this is skipped.
        let waits = || link.outstanding().definition(name).is_some();
        let misused = match rules.misuse {
            Misuse::Closes if wrong == Wrong::Taken && waits() => Misused::Ends(name.into()),
            Misuse::Closes if wrong == Wrong::Taken => return Err(Stop::Close(taken(name))),
            Misuse::Closes => {
                let name = String::from_utf8_lossy(name);
                let cause = format!("prepared statement '{name}' not found");
                return Err(refuse("prepared statement did not exist", Some(cause)));
            }
            Misuse::Fails => Misused::Told(error_of(name, wrong)),
        };
        flow.server.inject(m.input, |out| out.extend_from_slice(FAILS));
        link.sent(Request::Misuse(misused));
        Ok(self.pass(m, Destination::Nowhere, flow))
    }
}

/// The end of a client that has defined a name twice.
pub fn taken(name: &[u8]) -> Refusal {
    let name = String::from_utf8_lossy(name);
    Refusal {
        reason: TAKEN.into(),
        cause: Some(format!("prepared statement '{name}' was already prepared")),
    }
}

/// PostgreSQL's error for a misused name.
fn error_of(name: &[u8], wrong: Wrong) -> Box<[u8]> {
    let name = String::from_utf8_lossy(name);
    let (sqlstate, fact) = match wrong {
        Wrong::Taken => ("42P05", "already exists"),
        Wrong::Unknown => ("26000", "does not exist"),
    };
    let message = &format!("prepared statement \"{name}\" {fact}");
    let mut error = Vec::new();
    let report = Report { severity: "ERROR", sqlstate, message, detail: None };
    build::error_response(&mut error, report);
    error.into()
}

/// Prepares a statement on a server that lacks it.
fn prepare(
    link: &mut Link,
    statement: &Arc<Statement>,
    input: &[u8],
    flow: &mut Flow,
    rules: &Rules<'_>,
) {
    let presence = link.has_statement(statement);
    match presence {
        Presence::Usable | Presence::Likely => return,
        Presence::Outdated if rules.reprepare == Reprepare::Off => return,
        Presence::Outdated | Presence::Doubtful | Presence::Absent => {}
    }
    let mut sending = Sending { link, statement, input, flow };
    sending.parse(presence, rules, |parse| Request::HiddenParse(Arc::clone(statement), parse));
}

/// Whether a statement has to be closed before it can be prepared, and what is known about it.
fn was(presence: Presence) -> Option<Was> {
    match presence {
        Presence::Absent => None,
        Presence::Usable | Presence::Outdated => Some(Was::Present),
        Presence::Likely | Presence::Doubtful => Some(Was::Unknown),
    }
}

/// A statement on its way to a server.
struct Sending<'a> {
    link: &'a mut Link,
    statement: &'a Arc<Statement>,
    input: &'a [u8],
    flow: &'a mut Flow,
}

impl Sending<'_> {
    /// Closes the statement if it may be there: in a failed block the server has to refuse the
    /// Parse as it would any other. Those that have to go for it are closed behind.
    fn parse(
        &mut self,
        presence: Presence,
        rules: &Rules<'_>,
        request: impl FnOnce(Change) -> Request,
    ) {
        let Tracking::On(limit) = rules.tracking else { return };
        let closing = was(presence).map(|was| self.link.close_statement(self.statement, was));
        let added = self.link.add_statement(self.statement, limit);
        if let Some(closing) = closing {
            self.close(closing);
        }
        let statement = self.statement;
        self.flow.counted.server_parses += 1;
        self.flow.server.inject(self.input, |out| {
            build::parse(out, statement.name(), statement.sql(), statement.types());
        });
        self.link.sent(request(added.parse));
        added.evicted.into_iter().for_each(|evicted| self.close(evicted));
    }

    fn close(&mut self, closing: Closing) {
        let name = closing.statement.name();
        self.flow.server.inject(self.input, |out| build::close(out, b'S', name));
        self.link.sent(Request::HiddenClose(Box::new(closing)));
    }
}
