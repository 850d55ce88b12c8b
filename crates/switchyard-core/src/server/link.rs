//! What a server owes and to whom: the machine that follows a server's answers.
//!
//! It looks at heads of messages, decides what the client may see, and says when the server has
//! nothing left to answer. Rows and COPY data pass as ranges. Not here: which client is linked,
//! and what happens to a server that is free (`pool`).
//! Invariants: answers reach the asker in order; swallowed answers never leak; a server is free
//! only with nothing outstanding and no half message under way.

mod parting;

use parting::unregister;

use std::sync::Arc;

use switchyard_wire::tag::backend;
use switchyard_wire::{build, frame, read};

use crate::batch::Batch;
use crate::client::lost;
use crate::client::session::Loyalty;
use crate::params::{Params, Tracked};
use crate::prepared::{ClientStatements, ServerStatements, Statement};
use crate::server::request::{HiddenQuery, Outstanding, Request, Turn};

/// Transaction status of ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `I`: no transaction block.
    Idle,
    /// `T`: inside a block.
    Block,
    /// `E`: inside a failed block.
    Failed,
}

impl Status {
    /// The byte of ReadyForQuery.
    pub fn code(self) -> u8 {
        match self {
            Status::Idle => b'I',
            Status::Block => b'T',
            Status::Failed => b'E',
        }
    }
}

/// COPY from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    /// None.
    Off,
    /// The server asked for data.
    In,
    /// The server failed early; the client has not noticed yet.
    Drain,
}

/// Whether the server listens to the extended protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// Yes.
    Running,
    /// No: it skips up to the next Sync, which was not sent yet.
    Skipping,
}

/// A message of which only a part has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Partial {
    left: usize,
    show: Show,
}

/// Whether the linked client sees a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    Yes,
    No,
}

/// A server connection that is logged in.
#[derive(Debug)]
pub struct Link {
    outstanding: Outstanding,
    status: Status,
    copy: Copy,
    group: Group,
    partial: Partial,
    params: Params,
    statements: ServerStatements,
    loyalty: Loyalty,
    words: Option<Vec<u8>>,
}

/// The client side of a link, as far as answers change it.
#[derive(Debug)]
pub struct LinkedClient<'a> {
    /// Its tracked parameters.
    pub params: &'a mut Params,
    /// Its statement names.
    pub statements: &'a mut ClientStatements,
}

/// An error or notice that says something about the server itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// SQLSTATE.
    pub sqlstate: [u8; 5],
    /// First byte of the severity: `F` for FATAL, `E` for ERROR, …
    pub severity: u8,
}

/// Outcome of one turn of server bytes.
#[derive(Debug, Default)]
pub struct Received {
    /// Bytes used up; the rest waits for more.
    pub consumed: usize,
    /// ReadyForQuery messages that ended a request of the client.
    pub ready: u32,
    /// A hidden query that was answered.
    pub hidden: Option<HiddenQuery>,
    /// The last error that concerns the server.
    pub signal: Option<Signal>,
    /// Type of a message that came without anybody being linked.
    pub unexpected: Option<u8>,
    /// The server broke the protocol; why.
    pub failure: Option<&'static str>,
}

/// Bytes of an error or notice that are waited for before it is looked at.
const REPORT_PREFIX: usize = 512;
/// Largest message that is waited for whole.
const WHOLE_MAX: usize = 32 * 1024;

impl Link {
    /// A server just logged in, with the parameters it reported.
    pub fn new(params: Params) -> Self {
        Link {
            outstanding: Outstanding::default(),
            status: Status::Idle,
            copy: Copy::Off,
            group: Group::Running,
            partial: Partial { left: 0, show: Show::No },
            params,
            statements: ServerStatements::default(),
            loyalty: Loyalty::Leaves,
            words: None,
        }
    }

    /// Follows the bytes in `input`; what the client may see goes to `out`.
    pub fn receive(
        &mut self,
        input: &[u8],
        out: &mut Batch,
        tracked: &Tracked,
        mut client: Option<LinkedClient<'_>>,
    ) -> Received {
        let mut received = Received::default();
        let mut at = self.continue_partial(input, out);
        while self.partial.left == 0 {
            if client.is_some() && !self.front_is_hidden() {
                let end = frame::skip(input, at, [backend::DATA_ROW, backend::COPY_DATA]);
                out.forward(input, at..end);
                at = end;
            }
            let head = match frame::peek(&input[at..], i32::MAX as usize) {
                Ok(Some(head)) => head,
                Ok(None) => break,
                Err(_) => {
                    received.failure = Some("bad pkt header");
                    break;
                }
            };
            let there = head.len.min(input.len() - at);
            if there < wanted(head) {
                break;
            }
            let body = &input[at + frame::HEADER..at + there];
            let show = self.message(head.tag, body, tracked, client.as_mut(), &mut received);
            if received.failure.is_some() {
                break;
            }
            if show == Show::Yes {
                out.forward(input, at..at + there);
            }
            at += there;
            self.partial = Partial { left: head.len - there, show };
            self.settle(|answer| out.inject(input, |bytes| bytes.extend_from_slice(answer)));
        }
        received.consumed = at;
        received
    }

    fn continue_partial(&mut self, input: &[u8], out: &mut Batch) -> usize {
        let take = self.partial.left.min(input.len());
        if self.partial.show == Show::Yes {
            out.forward(input, 0..take);
        }
        self.partial.left -= take;
        take
    }

    /// One message of the server: follows it and decides whether the client sees it.
    fn message(
        &mut self,
        tag: u8,
        body: &[u8],
        tracked: &Tracked,
        mut client: Option<&mut LinkedClient<'_>>,
        received: &mut Received,
    ) -> Show {
        let hidden = self.front_is_hidden();
        let mut show = if client.is_some() && !hidden { Show::Yes } else { Show::No };
        match tag {
            backend::READY_FOR_QUERY => self.ready(body, client, received),
            backend::PARAMETER_STATUS => self.parameter(body, tracked, client, received),
            backend::ERROR => {
                let signal = signal(body);
                received.signal = signal.or(received.signal);
                if show == Show::Yes && self.keeps(signal, body) {
                    self.words = Some(lost::softened(body));
                    return Show::No;
                }
                self.error(client.as_deref_mut(), received);
                note_unexpected(self, client.is_some(), tag, received);
            }
            backend::COMMAND_COMPLETE => self.command_complete(body, client),
            backend::PARSE_COMPLETE => {
                if let Some(Request::HiddenParse(_)) = self.outstanding.front() {
                    show = Show::No;
                }
                self.pop_if(|r| matches!(r, Request::Parse(_) | Request::HiddenParse(_)));
            }
            backend::CLOSE_COMPLETE => {
                if let Some(Request::HiddenClose(_)) = self.outstanding.front() {
                    show = Show::No;
                }
                self.pop_if(|r| matches!(r, Request::Close | Request::HiddenClose(_)));
            }
            backend::BIND_COMPLETE => self.pop_if(|r| matches!(r, Request::Bind)),
            backend::NO_DATA | backend::ROW_DESCRIPTION => {
                self.pop_if(|r| matches!(r, Request::Describe));
            }
            backend::EMPTY_QUERY | backend::PORTAL_SUSPENDED => {
                self.pop_if(|r| matches!(r, Request::Execute));
            }
            backend::COPY_IN | backend::COPY_BOTH => self.copy_in(),
            backend::NOTICE => {
                received.signal = signal(body).filter(Signal::is_shutdown).or(received.signal);
                note_unexpected(self, client.is_some(), tag, received);
            }
            backend::NOTIFICATION => note_unexpected(self, client.is_some(), tag, received),
            backend::DATA_ROW
            | backend::COPY_DATA
            | backend::COPY_DONE
            | backend::COPY_OUT
            | backend::PARAMETER_DESCRIPTION
            | backend::FUNCTION_CALL_RESPONSE => {}
            _ => received.failure = Some("unknown pkt"),
        }
        show
    }

    fn ready(
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
        let statements = &mut self.statements;
        let mut client = client;
        let done = self.outstanding.pop_ready(|request| {
            unregister(statements, client.as_deref_mut().map(|c| &mut *c.statements), request);
        });
        match done {
            Some(Request::Hidden(query)) => {
                received.hidden = Some(query);
                if let (HiddenQuery::Parameters, Some(client)) = (query, client) {
                    // Whatever spelling the server settled on is what the client has.
                    *client.params = self.params.clone();
                }
            }
            Some(_) => received.ready += 1,
            None => {}
        }
    }

    fn parameter(
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

    fn error(&mut self, client: Option<&mut LinkedClient<'_>>, received: &mut Received) {
        if self.copy == Copy::In {
            let simple = matches!(self.outstanding.front(), Some(Request::Query));
            self.copy = if simple { Copy::Drain } else { Copy::Off };
        }
        match self.outstanding.front() {
            Some(Request::Hidden(HiddenQuery::Parameters)) => {
                received.failure = Some("invalid server parameter");
            }
            Some(Request::Hidden(HiddenQuery::Begin)) => {
                received.failure = Some("transaction could not be begun again");
            }
            Some(Request::Query | Request::Function | Request::Sync | Request::Hidden(_)) => {}
            Some(_) => {
                let statements = &mut self.statements;
                let mut names = client.map(|client| &mut *client.statements);
                let found = self
                    .outstanding
                    .fail_group(|request| unregister(statements, names.as_deref_mut(), request));
                self.group = if found { Group::Running } else { Group::Skipping };
            }
            None => {}
        }
    }

    fn command_complete(&mut self, body: &[u8], client: Option<&mut LinkedClient<'_>>) {
        if self.copy != Copy::Drain {
            self.copy = Copy::Off;
        }
        if matches!(body.first(), Some(b'D'))
            && (body.starts_with(b"DISCARD ALL\0") || body.starts_with(b"DEALLOCATE ALL\0"))
        {
            self.statements.clear();
            if let (Some(client), false) = (client, self.front_is_hidden()) {
                client.statements.clear();
            }
        }
        self.pop_if(|request| matches!(request, Request::Execute));
    }

    fn copy_in(&mut self) {
        let ended = match self.outstanding.front() {
            Some(Request::Execute) => self.outstanding.start_copy(),
            _ => false,
        };
        self.copy = if ended { Copy::Off } else { Copy::In };
    }

    fn pop_if(&mut self, answered: impl Fn(&Request) -> bool) {
        if self.outstanding.front().is_some_and(answered) {
            self.outstanding.pop();
        }
    }

    /// Makes up the answers whose turn has come; each is given to `answer` whole.
    fn settle(&mut self, mut answer: impl FnMut(&[u8])) {
        let mut bytes = Vec::new();
        loop {
            match self.outstanding.front() {
                Some(Request::LocalParse(_)) => build::empty(&mut bytes, backend::PARSE_COMPLETE),
                Some(Request::LocalClose) => build::empty(&mut bytes, backend::CLOSE_COMPLETE),
                Some(Request::Refused(error, turn)) => {
                    bytes.extend_from_slice(error);
                    if *turn == Turn::Ended {
                        build::ready_for_query(&mut bytes, self.status.code());
                    }
                }
                Some(Request::CopyEnd) => {}
                _ => break,
            }
            self.outstanding.pop();
        }
        if !bytes.is_empty() {
            answer(&bytes);
        }
    }

    #[inline]
    fn front_is_hidden(&self) -> bool {
        self.outstanding.front().is_some_and(Request::is_hidden_query)
    }
}

/// What the client sent, as far as answers are concerned.
impl Link {
    /// A request was put on its way. Skipped ones are not expected to be answered.
    #[inline]
    pub fn sent(&mut self, request: Request) {
        if self.group == Group::Running {
            self.outstanding.push(request);
        }
    }

    /// A Sync was put on its way.
    pub fn sent_sync(&mut self) {
        if self.copy == Copy::In {
            return;
        }
        self.group = Group::Running;
        self.outstanding.push(Request::Sync);
    }

    /// A simple query was put on its way; it also ends a COPY that failed early.
    #[inline]
    pub fn sent_query(&mut self) {
        self.copy = Copy::Off;
        self.sent(Request::Query);
    }

    /// CopyDone or CopyFail was put on its way.
    pub fn sent_copy_end(&mut self) {
        let extended = self.outstanding.iter().any(|r| matches!(r, Request::Execute));
        if self.copy == Copy::Off && extended {
            self.sent(Request::CopyEnd);
        }
        self.copy = Copy::Off;
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

    /// Registers a statement that is being prepared; answers those to close in exchange.
    pub fn add_statement(
        &mut self,
        statement: &Arc<Statement>,
        limit: usize,
    ) -> Vec<Arc<Statement>> {
        self.statements.add(Arc::clone(statement), limit)
    }

    /// Whether the server has a statement; marks it as used.
    pub fn has_statement(&mut self, statement: &Statement) -> bool {
        self.statements.touch(statement)
    }
}

/// Questions.
impl Link {
    /// Nothing outstanding, nothing half forwarded, no COPY, and the server listens.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.outstanding.is_empty()
            && self.partial.left == 0
            && self.copy == Copy::Off
            && self.group == Group::Running
    }

    /// Whether what was sent ends with the end of a group: no part of one is at the server.
    pub fn ends_with_group(&self) -> bool {
        let last = self.outstanding.last();
        let ended = last.is_none_or(Request::ends_group);
        ended && self.group == Group::Running && self.copy == Copy::Off
    }

    /// Quiet and outside a transaction block: may serve anybody.
    #[inline]
    pub fn is_free(&self) -> bool {
        self.is_quiet() && self.status == Status::Idle
    }

    /// Status of the last ReadyForQuery.
    #[inline]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Whether the server skips messages up to a Sync that was not sent yet.
    pub fn is_skipping(&self) -> bool {
        self.group == Group::Skipping
    }

    /// Whether data of a COPY is expected from the client.
    pub fn is_copying(&self) -> bool {
        self.copy != Copy::Off
    }

    /// Whether the client's parameters are being set.
    pub fn is_setting_parameters(&self) -> bool {
        matches!(self.outstanding.front(), Some(Request::Hidden(HiddenQuery::Parameters)))
    }

    /// Requests not answered yet.
    pub fn outstanding(&self) -> &Outstanding {
        &self.outstanding
    }

    /// Whether a message has been passed on in part only.
    pub fn is_inside_message(&self) -> bool {
        self.partial.left > 0
    }

    /// Tracked parameters as the server has them.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Tracked parameters, for comparing and sharing.
    pub fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }

    /// Number of statements tracked on this server.
    pub fn statements(&self) -> usize {
        self.statements.len()
    }

    /// Panics if an invariant is broken.
    pub fn check(&self) {
        if self.group == Group::Skipping {
            assert!(
                !self.outstanding.iter().any(|r| matches!(r, Request::Sync)),
                "a server that skips has no Sync to come"
            );
        }
        let front = self.outstanding.front();
        assert!(
            !matches!(front, Some(Request::LocalParse(_) | Request::LocalClose)),
            "made-up answers are given as soon as it is their turn"
        );
    }
}

impl Signal {
    /// Shutdown, crash or start-up of the server: class 57P.
    pub fn is_shutdown(&self) -> bool {
        matches!(&self.sqlstate, b"57P01" | b"57P02" | b"57P03")
    }
}

/// Bytes of a message that must be there before it is looked at.
fn wanted(head: frame::Frame) -> usize {
    match head.tag {
        backend::READY_FOR_QUERY
        | backend::PARAMETER_STATUS
        | backend::COMMAND_COMPLETE
        | backend::ERROR => head.len.min(WHOLE_MAX),
        backend::NOTICE => head.len.min(REPORT_PREFIX),
        _ => frame::HEADER,
    }
}

fn signal(body: &[u8]) -> Option<Signal> {
    let severity = *read::field(body, b'S')?.first()?;
    let sqlstate = read::field(body, b'C').and_then(|code| code.try_into().ok());
    Some(Signal { sqlstate: sqlstate.unwrap_or(*b"08P01"), severity })
}

fn note_unexpected(link: &Link, linked: bool, tag: u8, received: &mut Received) {
    if !linked && link.outstanding.is_empty() {
        received.unexpected = Some(tag);
    }
}
