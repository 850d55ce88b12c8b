//! What a server's answers change: the queue of what it owes, its status, its parameters and
//! statements, and those of the client that is linked to it.

use switchyard_wire::read;

use super::{
    Certainty, Copy, Group, Link, LinkedClient, Received, Show, Signal, Status, Talk, Told,
};
use crate::params::Tracked;
use crate::server::request::{self, CopyData, HiddenQuery, Misused, Request, Turn};

/// Reason of the end of a client that has defined a name twice.
pub const TAKEN: &str = "prepared statement name is already in use";

/// Where PostgreSQL finds that a statement's result would have other types than before; the name of
/// the routine does not depend on the language of the text.
const OUTDATED: (&[u8; 5], &[u8]) = (b"0A000", b"RevalidateCachedQuery");

impl Link {
    pub(super) fn ready(
        &mut self,
        body: &[u8],
        client: Option<&mut LinkedClient<'_>>,
        received: &mut Received,
    ) {
        self.status = match body.first() {
            Some(b'I') => Status::Idle,
            Some(b'T') => Status::Block,
            Some(b'E') => Status::Failed,
            _ => {
                received.failure = Some("unknown pkt");
                return;
            }
        };
        if self.group == Group::Skipping {
            // It has read a Sync that it was expected to ignore during a COPY.
            self.group = Group::Ended;
        }
        let mut skipped = Vec::new();
        let done = self.outstanding.pop_ready(&mut skipped);
        let mut client = client;
        if !skipped.is_empty() {
            self.take_back(skipped, client.as_deref_mut());
        }
        match done {
            Some(Request::Hidden(query)) => {
                received.hidden = Some(query);
                if let (HiddenQuery::Parameters, Some(client)) = (query, client) {
                    // Whatever spelling the server settled on is what the client has.
                    let changes = client.params.adopt(&self.params);
                    let told = changes.into_iter().map(|(at, old)| Told::Canonical(at, old));
                    received.told.extend(told);
                }
            }
            Some(_) => {
                self.talk = Talk::Answered;
                received.ready += 1;
            }
            None => {}
        }
    }

    pub(super) fn parameter(
        &mut self,
        body: &[u8],
        tracked: &Tracked,
        client: Option<&mut LinkedClient<'_>>,
        received: &mut Received,
    ) {
        let Some((name, value)) = read::parameter_status(body) else {
            received.failure = Some("broken ParameterStatus packet");
            return;
        };
        let Some(index) = tracked.index(name) else { return };
        self.params.set(index, value);
        if let (Some(client), false) = (client, self.front_is_hidden()) {
            client.params.set(index, value);
        }
    }

    /// A message that was put in place of another one has failed: the client is told the error of
    /// that one, which is answered as soon as the server's own is hidden.
    pub(super) fn misuse_fails(&self, signal: Option<Signal>) -> bool {
        let front = self.outstanding.front();
        matches!(front, Some(Request::Misuse(_)))
            && signal.is_some_and(|signal| signal.severity == b'E')
    }

    pub(super) fn error(
        &mut self,
        body: &[u8],
        client: Option<&mut LinkedClient<'_>>,
        received: &mut Received,
    ) {
        if self.certainty == Certainty::SyncsIgnored {
            self.certainty = Certainty::Doubtful;
        }
        if self.copy == Copy::In {
            let simple = matches!(self.outstanding.front(), Some(Request::Query));
            self.copy = if simple { Copy::Drain } else { Copy::Off };
        }
        if !self.front_is_hidden() && self.talk != Talk::None {
            self.talk = Talk::Failed;
        }
        if let Some(Request::Misuse(Misused::Ends(name))) = self.outstanding.front()
            && self.misuse_fails(super::signal(body))
        {
            received.told.push(Told::Taken(name.clone()));
            received.failure = Some(TAKEN);
        }
        match self.outstanding.front() {
            Some(Request::Hidden(query)) => {
                received.failure = match query {
                    HiddenQuery::Parameters => Some("invalid server parameter"),
                    HiddenQuery::Begin => Some("transaction could not be begun again"),
                    HiddenQuery::Reset
                    | HiddenQuery::Check
                    | HiddenQuery::Connect
                    | HiddenQuery::Instead
                    | HiddenQuery::Rollback
                    | HiddenQuery::Forget => None,
                    HiddenQuery::Parameter(index) => {
                        self.refused.push(*index);
                        None
                    }
                };
                let text = |kind| {
                    let field = read::field(body, kind).unwrap_or_default();
                    String::from_utf8_lossy(field).into_owned()
                };
                received.told.push(Told::Failed(*query, text(b'S'), text(b'M')));
            }
            Some(Request::Query | Request::Function | Request::Sync) => {}
            Some(_) => self.fail_group(body, client),
            None => {}
        }
    }

    fn fail_group(&mut self, body: &[u8], client: Option<&mut LinkedClient<'_>>) {
        let mut misused = None;
        match self.outstanding.front() {
            Some(Request::Bind(Some(id)) | Request::Describe(Some(id))) if is_outdated(body) => {
                self.statements.outdate(*id);
            }
            Some(Request::Misuse(Misused::Told(error)))
                if self.misuse_fails(super::signal(body)) =>
            {
                misused = Some(error.clone());
            }
            _ => {}
        }
        let mut dropped = Vec::new();
        let found = self.outstanding.fail_group(&mut dropped);
        self.take_back(dropped, client);
        if !found {
            self.group = Group::Skipping;
        }
        if let Some(error) = misused {
            self.outstanding.put_first(Request::Refused(error, Turn::Open));
        }
    }

    fn take_back(&mut self, skipped: Vec<Request>, client: Option<&mut LinkedClient<'_>>) {
        let mut names = client.map(|client| &mut *client.statements);
        request::undo(skipped, &mut self.statements, &mut names);
        request::redo(&self.outstanding, &mut self.statements, &mut names);
    }

    pub(super) fn parse_complete(&mut self) -> Show {
        let (show, statement) = match self.outstanding.front() {
            Some(Request::HiddenParse(statement, parse)) => {
                (Show::No, Some((statement.id(), *parse)))
            }
            Some(Request::Parse(named)) => {
                let named = named.as_deref();
                (Show::Yes, named.map(|(named, parse)| (named.statement.id(), *parse)))
            }
            _ => return Show::Yes,
        };
        if let Some((id, parse)) = statement {
            self.statements.confirm(id, parse);
        }
        self.outstanding.pop();
        show
    }

    pub(super) fn close_complete(&mut self) -> Show {
        match self.outstanding.front() {
            Some(Request::HiddenClose(closing)) => {
                self.statements.closed(&closing.statement, closing.change);
                self.outstanding.pop();
                Show::No
            }
            _ => {
                self.pop_if(|request| matches!(request, Request::Close));
                Show::Yes
            }
        }
    }

    pub(super) fn command_complete(&mut self, body: &[u8], client: Option<&mut LinkedClient<'_>>) {
        if self.copy != Copy::Drain {
            self.copy = Copy::Off;
        }
        if self.certainty == Certainty::SyncsIgnored {
            self.certainty = Certainty::Sure;
        }
        if matches!(body.first(), Some(b'D'))
            && (body.starts_with(b"DISCARD ALL\0") || body.starts_with(b"DEALLOCATE ALL\0"))
        {
            let seen = !self.front_is_hidden();
            let mut names = client.filter(|_| seen).map(|client| &mut *client.statements);
            self.statements.clear();
            if let Some(names) = &mut names {
                names.clear();
            }
            request::redo(&self.outstanding, &mut self.statements, &mut names);
        }
        self.pop_if(|request| matches!(request, Request::Execute));
    }

    pub(super) fn copy_in(&mut self) {
        let started = self.outstanding.start_copy();
        self.copy = match started.data {
            CopyData::Sent => Copy::Off,
            CopyData::Coming => Copy::In,
        };
        let ends = self.outstanding.last().is_none_or(Request::ends_group);
        if started.ignored > 0 && !ends {
            self.group = Group::Open;
        }
        if started.ignored > 0 && self.certainty == Certainty::Sure {
            self.certainty = Certainty::SyncsIgnored;
        }
    }
}

fn is_outdated(body: &[u8]) -> bool {
    read::field(body, b'C') == Some(OUTDATED.0) && read::field(body, b'R') == Some(OUTDATED.1)
}
