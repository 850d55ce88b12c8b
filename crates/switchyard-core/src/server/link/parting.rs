//! The end of a server connection: what it owes to the client that is linked to it.

use switchyard_wire::frame;

use super::{Group, Link, LinkedClient, Show, Signal, WHOLE_MAX};
use crate::client::lost::{self, Owed};
use crate::client::session::Loyalty;
use crate::prepared::{ClientStatements, ServerStatements};
use crate::server::request::{NamedParse, Request, Turn};

impl Link {
    /// Whether the linked client stays when this server is lost.
    pub fn set_loyalty(&mut self, loyalty: Loyalty) {
        self.loyalty = loyalty;
        self.words = None;
    }

    /// Whether a FATAL is kept for the moment when the connection ends.
    pub(super) fn keeps(&self, signal: Option<Signal>, body: &[u8]) -> bool {
        self.loyalty == Loyalty::Stays
            && signal.is_some_and(|signal| signal.severity == b'F')
            && body.len() + frame::HEADER < WHOLE_MAX
    }

    /// The connection has ended: what the client has to be told, or `None` if it has seen a part
    /// of a message and cannot be told anything.
    pub fn lose(&mut self, client: LinkedClient<'_>) -> Option<Owed> {
        if self.partial.left > 0 && self.partial.show == Show::Yes {
            return None;
        }
        let (mut answers, mut group) = (0, lost::Group::Ended);
        if self.group == Group::Skipping {
            group = lost::Group::Open;
        }
        let mut rest = Vec::new();
        while let Some(request) = self.outstanding.pop_ready(|skipped| rest.push(skipped)) {
            answers += usize::from(!request.is_hidden_query());
            for skipped in rest.drain(..) {
                answers += usize::from(matches!(skipped, Request::Refused(_, Turn::Ended)));
                unregister(&mut self.statements, Some(client.statements), skipped);
            }
        }
        if !rest.last().is_none_or(Request::ends_group) {
            group = lost::Group::Open;
        }
        for skipped in rest {
            answers += usize::from(matches!(skipped, Request::Refused(_, Turn::Ended)));
            unregister(&mut self.statements, Some(client.statements), skipped);
        }
        Some(Owed { words: self.words.take(), status: self.status, answers, group })
    }
}

/// A request that the server skipped: what it would have registered does not exist.
pub(super) fn unregister(
    statements: &mut ServerStatements,
    client: Option<&mut ClientStatements>,
    request: Request,
) {
    match request {
        Request::Parse(Some(parse)) => {
            let NamedParse { name, statement } = *parse;
            statements.remove(&statement);
            if let Some(client) = client {
                client.remove(&name);
            }
        }
        Request::HiddenParse(statement) => statements.remove(&statement),
        Request::LocalParse(name) => {
            if let Some(client) = client {
                client.remove(&name);
            }
        }
        Request::HiddenClose(statement) => {
            statements.add(statement, usize::MAX);
        }
        Request::Refused(..)
        | Request::Query
        | Request::Function
        | Request::Sync
        | Request::Parse(None)
        | Request::Bind
        | Request::Describe
        | Request::Execute
        | Request::Close
        | Request::LocalClose
        | Request::CopyEnd
        | Request::Hidden(_) => {}
    }
}
