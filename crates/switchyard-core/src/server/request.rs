//! The queue of requests that a server has not answered yet, and what each answer is for.
//!
//! Rules of "Message Flow": answers come in the order of requests; after an error in the
//! extended protocol the server skips everything up to the next Sync.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::prepared::{
    Change, ClientStatements, Closing, ServerStatements, Statement, StatementId, Was,
};

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
    Parse(Option<Box<(NamedParse, Change)>>),
    /// A Parse the client knows nothing of; its answer is swallowed.
    HiddenParse(Arc<Statement>, Change),
    /// A Bind of this statement, if it is a tracked one.
    Bind(Option<StatementId>),
    /// A Describe of this statement, if it is a tracked one.
    Describe(Option<StatementId>),
    /// An Execute.
    Execute,
    /// A Close.
    Close,
    /// A Close of a statement that the server has or may have; its answer is swallowed.
    HiddenClose(Box<Closing>),
    /// The pooler answers a Parse of this name itself: the server has the statement.
    LocalParse(Box<NamedParse>),
    /// The pooler answers a Close itself; the name that it has taken away, if there was one.
    LocalClose(Option<Box<NamedParse>>),
    /// A message that fails on any server, in place of one that misused a name.
    Misuse(Misused),
    /// The pooler refuses a message: this ErrorResponse, and ReadyForQuery if the turn ends.
    Refused(Box<[u8]>, Turn),
    /// The client ended a COPY that it had not been asked for when this was sent.
    CopyEnd,
    /// A query of the pooler's own; all of its answer is swallowed.
    Hidden(HiddenQuery),
}

/// What a client gets that has misused a name, unless the server skips its message.
#[derive(Debug)]
pub enum Misused {
    /// This ErrorResponse instead of the server's.
    Told(Box<[u8]>),
    /// Its end, because this name was taken.
    Ends(Box<[u8]>),
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
    /// SET of one of them on a server of another database, which may refuse it.
    Parameter(usize),
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
    /// ROLLBACK for a client that has left in a transaction.
    Rollback,
    /// What takes back the untracked parameters that a client has set.
    Forget,
}

/// Where a request stands that has not been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// In the group of messages that the next one belongs to.
    This,
    /// In one before it: an error there skips nothing of what comes next.
    Earlier,
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
    /// Whether this defines a client's name once it is answered.
    pub fn defines(&self, name: &[u8]) -> bool {
        match self {
            Request::Parse(Some(parse)) => *parse.0.name == *name,
            Request::LocalParse(parse) => *parse.name == *name,
            _ => false,
        }
    }

    /// Whether this belongs to a group that has to be ended by a Sync.
    #[inline]
    pub fn is_grouped(&self) -> bool {
        matches!(
            self,
            Request::Parse(_)
                | Request::HiddenParse(..)
                | Request::Bind(_)
                | Request::Describe(_)
                | Request::Execute
                | Request::Close
                | Request::HiddenClose(_)
                | Request::LocalParse(_)
                | Request::LocalClose(_)
                | Request::Misuse(_)
        )
    }

    /// Whether a message of the client has brought this about.
    pub fn is_asked_for(&self) -> bool {
        !matches!(self, Request::HiddenParse(..) | Request::HiddenClose(_) | Request::Hidden(_))
    }

    /// Whether this can be asked of another server, as if it had never been asked.
    pub fn is_repeatable(&self) -> bool {
        match self {
            Request::Query
            | Request::Function
            | Request::Sync
            | Request::Parse(_)
            | Request::HiddenParse(..)
            | Request::Bind(_)
            | Request::Describe(_)
            | Request::Execute
            | Request::Close
            | Request::HiddenClose(_)
            | Request::LocalParse(_)
            | Request::LocalClose(_) => true,
            Request::Misuse(_) | Request::Refused(..) | Request::CopyEnd | Request::Hidden(_) => {
                false
            }
        }
    }

    /// Whether the pooler answers this without the server.
    #[inline]
    pub fn is_local(&self) -> bool {
        matches!(self, Request::LocalParse(_) | Request::LocalClose(_) | Request::Refused(..))
    }

    /// Whether the server says nothing to this.
    #[inline]
    pub fn is_made_up(&self) -> bool {
        self.is_local() || matches!(self, Request::CopyEnd)
    }

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

    /// The request that was sent last, beside the end of a COPY's data: that belongs to its
    /// statement.
    pub fn last_beside_data(&self) -> Option<&Request> {
        self.queue.iter().rev().find(|request| !matches!(request, Request::CopyEnd))
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

    /// Whether a name's definition waits for its answer, and may still turn out wrong.
    pub fn definition(&self, name: &[u8]) -> Option<Group> {
        let at = self.iter().position(|request| request.defines(name))?;
        let ended = self.iter().skip(at).any(Request::ends_with_ready);
        Some(if ended { Group::Earlier } else { Group::This })
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
    /// skipped by the server and are added to `skipped`.
    pub fn pop_ready(&mut self, skipped: &mut Vec<Request>) -> Option<Request> {
        while let Some(request) = self.queue.pop_front() {
            if request.ends_with_ready() {
                if self.queue.is_empty() && self.queue.capacity() > QUEUE_KEPT {
                    self.queue = VecDeque::new();
                }
                return Some(request);
            }
            skipped.push(request);
        }
        None
    }

    /// Drops what the server skips after an error: everything before the next Sync.
    /// Answers whether that Sync is among the requests.
    pub fn fail_group(&mut self, dropped: &mut Vec<Request>) -> bool {
        loop {
            match self.queue.front() {
                Some(Request::Sync) => return true,
                Some(_) => dropped.extend(self.queue.pop_front()),
                None => return false,
            }
        }
    }

    /// Drops answers of the pooler's own to a client that is gone.
    pub fn drop_local(&mut self) {
        self.queue.retain(|request| !request.is_local());
    }

    /// Puts an answer of the pooler's own in front of everything else.
    pub fn put_first(&mut self, request: Request) {
        self.queue.push_front(request);
    }

    /// The first request turned out to start a COPY from the client: the server ignores Syncs
    /// that were sent before the end of the data.
    pub fn start_copy(&mut self) -> StartedCopy {
        let end = self.queue.iter().position(|request| matches!(request, Request::CopyEnd));
        let until = end.map_or(self.queue.len(), |end| end + 1);
        let (mut index, mut ignored) = (0, 0);
        self.queue.retain(|request| {
            let inside = index < until;
            index += 1;
            match request {
                Request::Sync if inside => {
                    ignored += 1;
                    false
                }
                Request::CopyEnd if inside => false,
                _ => true,
            }
        });
        let data = if end.is_some() { CopyData::Sent } else { CopyData::Coming };
        StartedCopy { data, ignored }
    }
}

/// What had been sent already when a COPY from the client started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartedCopy {
    /// Its data.
    pub data: CopyData,
    /// Number of Syncs before it.
    pub ignored: usize,
}

/// The data of a COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyData {
    /// Its end was not sent yet.
    Coming,
    /// All of it was sent.
    Sent,
}

/// Takes back what requests have changed that the server skipped, the last one first.
pub fn undo(
    skipped: Vec<Request>,
    statements: &mut ServerStatements,
    names: &mut Option<&mut ClientStatements>,
) {
    for request in skipped.into_iter().rev() {
        match request {
            Request::Parse(Some(parse)) => {
                statements.remove(&parse.0.statement);
                if let Some(names) = names {
                    names.remove(&parse.0.name);
                }
            }
            Request::HiddenParse(statement, _) => statements.remove(&statement),
            Request::LocalParse(parse) => {
                if let Some(names) = names {
                    names.remove(&parse.name);
                }
            }
            Request::LocalClose(Some(parse)) => {
                if let Some(names) = names {
                    names.define(&parse.name, parse.statement);
                }
            }
            Request::HiddenClose(closing) => match closing.was {
                Was::Present => statements.put_back(closing.statement),
                Was::Unknown => statements.doubt(closing.statement),
            },
            Request::Refused(..)
            | Request::Misuse(_)
            | Request::Query
            | Request::Function
            | Request::Sync
            | Request::Parse(None)
            | Request::Bind(_)
            | Request::Describe(_)
            | Request::Execute
            | Request::Close
            | Request::LocalClose(None)
            | Request::CopyEnd
            | Request::Hidden(_) => {}
        }
    }
}

/// Statements were taken back or forgotten: what was sent later and is not answered yet stands.
pub fn redo(
    outstanding: &Outstanding,
    statements: &mut ServerStatements,
    names: &mut Option<&mut ClientStatements>,
) {
    for request in outstanding.iter() {
        match request {
            Request::Parse(Some(parse)) => {
                let (named, parse) = &**parse;
                statements.awaits(Arc::clone(&named.statement), *parse);
                if let Some(names) = names {
                    names.define(&named.name, Arc::clone(&named.statement));
                }
            }
            Request::HiddenParse(statement, parse) => {
                statements.awaits(Arc::clone(statement), *parse);
            }
            Request::LocalParse(parse) => {
                if let Some(names) = names {
                    names.define(&parse.name, Arc::clone(&parse.statement));
                }
            }
            Request::LocalClose(Some(parse)) => {
                if let Some(names) = names {
                    names.remove(&parse.name);
                }
            }
            Request::HiddenClose(closing) => {
                statements.closes(Arc::clone(&closing.statement), closing.change);
            }
            Request::Refused(..)
            | Request::Misuse(_)
            | Request::Query
            | Request::Function
            | Request::Sync
            | Request::Parse(None)
            | Request::Bind(_)
            | Request::Describe(_)
            | Request::Execute
            | Request::Close
            | Request::LocalClose(None)
            | Request::CopyEnd
            | Request::Hidden(_) => {}
        }
    }
}

/// Largest queue, in requests, that an idle connection keeps allocated.
const QUEUE_KEPT: usize = 16;
