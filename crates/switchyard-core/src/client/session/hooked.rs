//! The part of a session that hooks decide: questions, refusals, and the way of messages to the
//! pool of their statement.

use switchyard_wire::tag::frontend;
use switchyard_wire::{build, frame, read};

use super::message::{Message, question, whole};
use super::{
    Approval, Denial, Denied, Destination, Detour, Flow, Hooking, NAMES_MAX, Rules, Session, Stop,
    Stopped, Tracking,
};
use crate::client::pipeline::Word;
use crate::client::routes::RouteId;
use crate::params::{self, Tracked};
use crate::server::link::{Link, Status};
use crate::server::request::{HiddenQuery, Request, Turn};

/// A statement that fails on any server, and whose text says why in its log.
const FAIL: &[u8] = b"select cast('statement refused by the pooler' as integer)";
/// What a Bind is told whose statement lives on another server than the transaction.
const OTHER_SERVER: &str = "cannot change server inside a transaction";

impl Session {
    /// Whether the hooks have to judge the message at the head of the stream. One that is sent
    /// again was judged before.
    pub(super) fn must_ask(&mut self, rules: &Rules<'_>) -> bool {
        if self.approval.is_some() {
            return false;
        }
        if self.judged > 0 {
            self.judged -= 1;
            self.approval = Some(Approval::Unchanged);
            return false;
        }
        rules.hooking == Hooking::On
    }

    /// The message at the head of the stream as it goes to the server, if that is not as it came.
    pub(super) fn changed(&self, m: &Message<'_>) -> Option<(frame::Frame, Vec<u8>)> {
        let Some(Approval::Text(text)) = &self.approval else { return None };
        let mut out = Vec::new();
        if m.head.tag == frontend::QUERY {
            build::query(&mut out, text);
        } else {
            let parse = read::parse(whole(m).ok()?)?;
            build::parse(&mut out, parse.name, text, parse.types);
        }
        let head = frame::peek(&out, i32::MAX as usize).ok()??;
        Some((head, out))
    }

    /// The hooks have judged the message at the head of the stream.
    pub fn approve(&mut self, approval: Approval) {
        self.approval = Some(approval);
    }

    /// The text of the message at the head of the stream, if hooks have let it pass.
    pub fn passed_text<'a>(&'a self, input: &'a [u8]) -> Option<&'a [u8]> {
        let head = frame::peek(input, i32::MAX as usize).ok().flatten();
        match self.approval.as_ref()? {
            Approval::Text(text) => Some(text),
            Approval::Unchanged => match question(&Message { head: head?, at: 0, input }) {
                Ok(Stop::Ask(range)) => input.get(range),
                Ok(_) | Err(_) => None,
            },
            Approval::Refused(_) => None,
        }
    }

    /// Whether the message at the head of the stream was refused and not yet answered.
    pub fn is_denied(&self) -> bool {
        matches!(self.approval, Some(Approval::Refused(_)))
    }

    pub(super) fn denial(&mut self) -> Option<Denial> {
        match self.approval.take()? {
            Approval::Refused(denial) => Some(*denial),
            Approval::Unchanged | Approval::Text(_) => None,
        }
    }

    /// A message that the hooks have refused.
    pub(super) fn deny(&mut self, link: &mut Link, m: Message<'_>, flow: &mut Flow) -> Stopped {
        whole(&m)?;
        let Some(denial) = self.denial() else { return Ok(0) };
        self.refuse_message(link, m, denial, flow)
    }

    /// The error of a refused message has its place in the order of answers. What the client has
    /// in progress on its server fails there as if the message itself had failed: nothing of its
    /// group or block can be committed without it.
    fn refuse_message(
        &mut self,
        link: &mut Link,
        m: Message<'_>,
        Denial { error, instead }: Denial,
        flow: &mut Flow,
    ) -> Stopped {
        let begun = self.in_transaction(Some(link)) || !link.ends_with_group();
        if let Some(sql) = instead.or(begun.then_some(FAIL)) {
            flow.server.inject(m.input, |out| build::query(out, sql));
            link.sent(Request::Hidden(HiddenQuery::Instead));
        }
        let turn = if m.head.tag == frontend::QUERY { Turn::Ended } else { Turn::Open };
        if turn == Turn::Open {
            self.denied = Denied::UpToSync;
        }
        link.refuse(error, turn, &mut flow.client);
        Ok(self.pass(m, Destination::Nowhere, flow))
    }

    /// Sets the client's parameters one by one: a server of another database may refuse some, which
    /// must not undo the others, and is not asked for these again.
    pub(super) fn set_each(
        &mut self,
        link: &mut Link,
        tracked: &Tracked,
        flow: &mut Flow,
    ) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        for (index, sql) in params::differences(tracked, &self.params, link.params()) {
            if !link.refuses(index) {
                flow.server.inject(&[], |out| build::query(out, &sql));
                link.sent(Request::Hidden(HiddenQuery::Parameter(index)));
                all.extend_from_slice(&sql);
            }
        }
        (!all.is_empty()).then_some(all)
    }

    /// Where messages go.
    pub fn route(&self) -> RouteId {
        self.routes.current()
    }

    /// Messages go there from now on.
    pub fn turn(&mut self, to: RouteId) {
        self.routes.turn(to);
    }

    /// What a route led to is gone, and the statements that were prepared there with it.
    pub fn forget_route(&mut self, route: RouteId) {
        for name in self.routes.forget(route) {
            self.statements.remove(&name);
        }
    }

    /// Where the statement of the message at the head of the stream belongs, if that is not where
    /// the message goes.
    pub fn intend(&mut self, route: Option<RouteId>) {
        self.routes.intend(route);
    }

    /// A Parse is on its way to where messages go.
    pub(super) fn note_parse(&mut self, m: &Message<'_>, tracking: Tracking) {
        let name = m.input.get(m.at + frame::HEADER..).and_then(read::cstr);
        if let Some((name, _)) = name {
            match tracking {
                Tracking::On(_) => self.routes.define_anywhere(name),
                Tracking::Off => self.routes.define(name),
            }
        }
    }

    /// The route of the statement that a message names, if it is not the current one.
    pub(super) fn elsewhere(&self, m: &Message<'_>) -> Result<Option<RouteId>, Stop> {
        // Statements keep their route when functions are turned off.
        if self.routes.is_plain() {
            return Ok(None);
        }
        let there = m.there();
        let body = &m.input[(m.at + frame::HEADER).min(m.at + there)..m.at + there];
        let name = match m.head.tag {
            frontend::BIND => read::bind(body).map(|(_, name, _)| name),
            frontend::DESCRIBE | frontend::CLOSE => match read::describe(whole(m)?) {
                Some((b'S', name)) => Some(name),
                Some(_) | None => return Ok(None),
            },
            _ => return Ok(None),
        };
        match name {
            Some(name) => Ok(self.routes.elsewhere(name)),
            None if there == m.head.len || there > NAMES_MAX => Ok(None),
            None => Err(Stop::More),
        }
    }

    /// Whether a message binds a tracked COMMIT or ROLLBACK.
    fn ends_block(&self, m: &Message<'_>) -> bool {
        let body = m.input.get(m.at + frame::HEADER..m.at + m.there()).unwrap_or_default();
        let name = read::bind(body).map(|(_, name, _)| name);
        let bound = name.filter(|_| m.head.tag == frontend::BIND);
        let statement = bound.and_then(|name| self.statements.statement(name));
        statement.is_some_and(|statement| Word::of(statement.sql()) == Word::End)
    }

    /// A message that names a statement goes where that lives: the client moves, unless it is in
    /// the middle of something on the server it has. `None` means that the message goes on here.
    pub(super) fn follow(
        &mut self,
        link: &mut Link,
        m: &Message<'_>,
        flow: &mut Flow,
        rules: &Rules<'_>,
    ) -> Result<Option<Stopped>, Stop> {
        let closing = m.head.tag == frontend::CLOSE;
        if link.is_skipping() || (closing && rules.tracking != Tracking::Off) {
            return Ok(None);
        }
        let Some(route) = self.elsewhere(m)? else { return Ok(None) };
        let inside = self.in_transaction(Some(link));
        if !inside && link.may_be_left() {
            return Err(Stop::Move(route));
        }
        if inside && self.ends_block(m) {
            // The end of a block belongs to its server, wherever it was prepared.
            return Ok(None);
        }
        flow.stayed = Some(route);
        let failed = link.status() == Status::Failed;
        let named = matches!(rules.tracking, Tracking::On(_));
        if !inside || failed || (named && rules.detour == Detour::Stays) {
            return Ok(None);
        }
        flow.stayed = None;
        let mut error = Vec::new();
        let report = build::Report {
            severity: "ERROR",
            sqlstate: "25001",
            message: OTHER_SERVER,
            detail: None,
        };
        build::error_response(&mut error, report);
        let denial = Denial { error, instead: None };
        whole(m)?;
        Ok(Some(self.refuse_message(link, *m, denial, flow)))
    }
}
