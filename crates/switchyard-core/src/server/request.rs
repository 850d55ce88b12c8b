//! The queue of requests that a server has not answered yet, and what each answer is for.
//!
//! Rules of "Message Flow": answers come in the order of requests; after an error in the
//! extended protocol the server skips everything up to the next Sync.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::prepared::Statement;

/// One request that will be answered, or an answer that the pooler makes up in its place.
#[derive(Debug)]
pub enum Request {
    /// A simple query of the client.
    Query,
    /// A fast-path call.
    Function,
    /// End of a group.
    Sync,
    /// A client's Parse that was sent. `named` is set for tracked names.
    Parse(Option<Box<NamedParse>>),
    /// A Parse the client knows nothing of; its answer is swallowed.
    HiddenParse(Arc<Statement>),
    /// A Bind.
    Bind,
    /// A Describe.
    Describe,
    /// An Execute.
    Execute,
    /// A Close.
    Close,
    /// A Close of an evicted statement; its answer is swallowed.
    HiddenClose(Arc<Statement>),
    /// The pooler answers a Parse of this name itself: the server has the statement.
    LocalParse(Box<[u8]>),
    /// The pooler answers a Close itself.
    LocalClose,
    /// The pooler refuses a message: this ErrorResponse, and ReadyForQuery if the turn ends.
    Refused(Box<[u8]>, Turn),
    /// The client ended a COPY that it had not been asked for when this was sent.
    CopyEnd,
    /// A query of the pooler's own; all of its answer is swallowed.
    Hidden(HiddenQuery),
}

/// A client's Parse under a tracked name.
#[derive(Debug)]
pub struct NamedParse {
    /// The client's name.
    pub name: Box<[u8]>,
    /// What it stands for.
    pub statement: Arc<Statement>,
}

/// Queries that the pooler sends on its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenQuery {
    /// SET of the client's parameters.
    Parameters,
    /// server_reset_query.
    Reset,
    /// server_check_query.
    Check,
    /// connect_query.
    Connect,
    /// What a server runs in place of a message that was refused.
    Instead,
    /// The BEGIN of a client whose server was lost before anything else was sent.
    Begin,
}

/// Whether an answer ends with ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It does.
    Ended,
    /// The group goes on.
    Open,
}

impl Request {
    /// Whether the client may send anything next without being in the middle of a group.
    pub fn ends_group(&self) -> bool {
        self.ends_with_ready() || matches!(self, Request::Refused(_, Turn::Ended))
    }

    /// Whether the client must not see any of the answer.
    #[inline]
    pub fn is_hidden_query(&self) -> bool {
        matches!(self, Request::Hidden(_))
    }

    /// Whether ReadyForQuery ends the answer.
    pub fn ends_with_ready(&self) -> bool {
        matches!(self, Request::Query | Request::Function | Request::Sync | Request::Hidden(_))
    }
}

/// Requests in the order sent.
#[derive(Debug, Default)]
pub struct Outstanding {
    queue: VecDeque<Request>,
}

impl Outstanding {
    /// Adds a request.
    #[inline]
    pub fn push(&mut self, request: Request) {
        self.queue.push_back(request);
    }

    /// The request that is being answered.
    #[inline]
    pub fn front(&self) -> Option<&Request> {
        self.queue.front()
    }

    /// The request that was sent last.
    pub fn last(&self) -> Option<&Request> {
        self.queue.back()
    }

    /// Whether everything was answered.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// All requests, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Request> {
        self.queue.iter()
    }

    /// The answer of the first request is complete.
    #[inline]
    pub fn pop(&mut self) -> Option<Request> {
        self.queue.pop_front()
    }

    /// ReadyForQuery came: ends the first request that it can end. Requests before it were
    /// skipped by the server and are returned through `skipped`.
    pub fn pop_ready(&mut self, mut skipped: impl FnMut(Request)) -> Option<Request> {
        while let Some(request) = self.queue.pop_front() {
            if request.ends_with_ready() {
                if self.queue.is_empty() && self.queue.capacity() > QUEUE_KEPT {
                    self.queue = VecDeque::new();
                }
                return Some(request);
            }
            skipped(request);
        }
        None
    }

    /// Drops what the server skips after an error: everything before the next Sync.
    /// Answers whether that Sync is among the requests.
    pub fn fail_group(&mut self, mut dropped: impl FnMut(Request)) -> bool {
        loop {
            match self.queue.front() {
                Some(Request::Sync) => return true,
                Some(_) => self.queue.pop_front().map_or((), &mut dropped),
                None => return false,
            }
        }
    }

    /// The first request turned out to start a COPY from the client: the server ignores Syncs
    /// that were sent before the end of the data. Answers whether that end was sent already.
    pub fn start_copy(&mut self) -> bool {
        let end = self.queue.iter().position(|request| matches!(request, Request::CopyEnd));
        let until = end.unwrap_or(self.queue.len());
        let mut index = 0;
        self.queue.retain(|request| {
            let ignored = index < until && matches!(request, Request::Sync);
            index += 1;
            !ignored
        });
        end.is_some()
    }
}

/// Largest queue, in requests, that an idle connection keeps allocated.
const QUEUE_KEPT: usize = 16;
