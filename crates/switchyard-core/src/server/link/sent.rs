//! What a client sends to its server, as far as answers are concerned.

use std::sync::Arc;

use super::{Certainty, Copy, Group, Link, Tail, Talk};
use crate::prepared::{Added, Closing, Place, Presence, Statement, Was};
use crate::server::request::{Request, Turn};

impl Link {
    /// So much of the client's last message was put on its way.
    #[inline]
    pub fn sent_up_to(&mut self, tail: Tail) {
        self.halves.sent = tail;
    }

    /// Whether the server can be told anything, a good-bye for example: it takes what comes next
    /// for the rest of a half message.
    pub fn listens(&self) -> bool {
        self.halves.sent == Tail::Whole
    }

    /// A request was put on its way. Skipped ones are not expected to be answered.
    #[inline]
    pub fn sent(&mut self, request: Request) {
        if self.group == Group::Skipping {
            return;
        }
        if request.is_grouped() {
            self.group = Group::Open;
        }
        let asks = !request.is_local() && !request.is_hidden_query();
        if asks && self.talk != Talk::Failed {
            self.talk = Talk::Asked;
        }
        self.outstanding.push(request);
    }

    /// A Sync was put on its way. During a COPY the server ignores it.
    pub fn sent_sync(&mut self) {
        if self.copy == Copy::In {
            if self.certainty == Certainty::Sure {
                self.certainty = Certainty::SyncsIgnored;
            }
            return;
        }
        self.group = Group::Ended;
        self.sent(Request::Sync);
        self.statements.end_group();
    }

    /// A simple query was put on its way; it also ends a group.
    #[inline]
    pub fn sent_query(&mut self) {
        self.copy = Copy::Off;
        self.sent(Request::Query);
        self.end_group();
    }

    /// A fast-path call was put on its way.
    pub fn sent_call(&mut self) {
        self.sent(Request::Function);
        self.end_group();
    }

    /// A query or call ends with ReadyForQuery, unless it is skipped.
    fn end_group(&mut self) {
        if self.group == Group::Open {
            self.group = Group::Ended;
            self.statements.end_group();
        }
    }

    /// CopyDone or CopyFail was put on its way.
    pub fn sent_copy_end(&mut self) {
        let asked = |r: &Request| matches!(r, Request::Execute | Request::Query);
        if self.copy == Copy::Off && self.outstanding.iter().any(asked) {
            self.sent(Request::CopyEnd);
        }
        self.copy = Copy::Off;
    }

    /// The client sent something else than data: it knows of a COPY that failed early.
    #[inline]
    pub fn ends_drain(&mut self) {
        if self.copy == Copy::Drain {
            self.copy = Copy::Off;
        }
    }

    /// A request that the pooler answers itself, in its place in the order of answers. What can
    /// be answered at once is appended to `out`.
    pub fn answer_locally(&mut self, request: Request, out: &mut Vec<u8>) {
        self.sent(request);
        self.settle(|answer| out.extend_from_slice(answer));
    }

    /// A message is refused with this ErrorResponse.
    pub fn refuse(&mut self, error: Vec<u8>, turn: Turn, out: &mut Vec<u8>) {
        self.answer_locally(Request::Refused(error.into(), turn), out);
    }

    /// Registers a statement whose Parse is sent next.
    pub fn add_statement(&mut self, statement: &Arc<Statement>, limit: usize) -> Added {
        let first = self.group == Group::Ended;
        let place = if first { Place::First } else { Place::Later };
        self.statements.add(Arc::clone(statement), place, limit)
    }

    /// A statement is closed so that it can be prepared next.
    pub fn close_statement(&mut self, statement: &Arc<Statement>, was: Was) -> Closing {
        self.statements.close(statement, was)
    }

    /// Whether the server has a statement; marks it as used.
    #[inline]
    pub fn has_statement(&mut self, statement: &Statement) -> Presence {
        self.statements.touch(statement)
    }

    /// The client has left without a trace: see [`Link::is_untouched`].
    pub fn forget_client(&mut self) {
        self.group = Group::Ended;
        self.outstanding.drop_local();
    }
}
