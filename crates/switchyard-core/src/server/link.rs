//! What a server owes and to whom: the machine that follows a server's answers.
//!
//! It looks at heads of messages, decides what the client may see, and says when the server has
//! nothing left to answer. Rows and COPY data pass as ranges. Not here: which client is linked,
//! and what happens to a server that is free (`pool`).
//! Invariants: answers reach the asker in order; swallowed answers never leak; a server is free
//! only with nothing outstanding and no half message under way.

mod answers;
mod parting;
mod sent;

pub use answers::TAKEN;

use switchyard_wire::tag::backend;
use switchyard_wire::{build, frame, read};

use crate::batch::Batch;

use crate::client::session::Loyalty;
use crate::params::{Params, Tracked};
use crate::prepared::{ClientStatements, ServerStatements};
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

/// Where the server is in a group of the extended protocol.
///
/// ```text
/// Ended ──Parse, Bind, …──► Open ──error──► Skipping
///   ▲                        │                 │
///   └──────Sync, Query───────┴──────Sync───────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// Everything that was sent ends with ReadyForQuery.
    Ended,
    /// A group was begun: unnamed statements and portals wait for what follows.
    Open,
    /// The server skips up to the next Sync, which was not sent yet.
    Skipping,
}

/// Whether it is known how many ReadyForQuery messages are to come.
///
/// A server ignores a Sync that it reads during a COPY, but not one that it reads after the COPY
/// has failed. From outside nobody can tell which of the two has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Certainty {
    /// It is.
    Sure,
    /// Syncs were sent during the COPY that goes on.
    SyncsIgnored,
    /// Such a COPY has failed: the server belongs to this client until it leaves.
    Doubtful,
}

/// Who spoke last since the client was linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Talk {
    /// Nobody: the server knows nothing of the client.
    None,
    /// The client.
    Asked,
    /// The server, with an error; its ReadyForQuery is to come.
    Failed,
    /// The server, with ReadyForQuery.
    Answered,
}

/// A message of which only a part has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Partial {
    left: usize,
    show: Show,
}

/// Whether the last message of the client was passed on to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// It was.
    Whole,
    /// A part of it is missing: whatever is sent next is taken for that part.
    Half,
}

/// Messages of which only a part has passed, each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Halves {
    come: Partial,
    sent: Tail,
}

/// Whether the linked client sees a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    Yes,
    No,
}

impl Show {
    /// Shown only if both say so.
    fn and(self, other: Show) -> Show {
        if self == Show::Yes { other } else { Show::No }
    }
}

/// A server connection that is logged in.
#[derive(Debug)]
pub struct Link {
    outstanding: Outstanding,
    status: Status,
    copy: Copy,
    group: Group,
    talk: Talk,
    certainty: Certainty,
    halves: Halves,
    params: Params,
    statements: ServerStatements,
    loyalty: Loyalty,
    words: Option<Vec<u8>>,
    /// Positions of tracked parameters that the server does not take.
    refused: Vec<usize>,
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
    /// Why this cannot go on: the server broke the protocol, or the client is told to go.
    pub failure: Option<&'static str>,
    /// What the client does not see but the log tells.
    pub told: Vec<Told>,
}

/// Something for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A query of the pooler's own failed: severity and text.
    Failed(HiddenQuery, String, String),
    /// The server said why it ends: SQLSTATE and text.
    LastWords([u8; 5], String),
    /// A parameter of the client was given the server's spelling: position, and the old value.
    Canonical(usize, Box<[u8]>),
    /// The client has defined this name twice, which is its end.
    Taken(Box<[u8]>),
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
            group: Group::Ended,
            talk: Talk::None,
            certainty: Certainty::Sure,
            halves: Halves { come: Partial { left: 0, show: Show::No }, sent: Tail::Whole },
            params,
            statements: ServerStatements::default(),
            loyalty: Loyalty::Leaves,
            words: None,
            refused: Vec::new(),
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
        self.settle(|answer| out.inject(input, |bytes| bytes.extend_from_slice(answer)));
        while self.halves.come.left == 0 {
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
            self.halves.come = Partial { left: head.len - there, show };
            self.settle(|answer| out.inject(input, |bytes| bytes.extend_from_slice(answer)));
        }
        received.consumed = at;
        received
    }

    fn continue_partial(&mut self, input: &[u8], out: &mut Batch) -> usize {
        let take = self.halves.come.left.min(input.len());
        if self.halves.come.show == Show::Yes {
            out.forward(input, 0..take);
        }
        self.halves.come.left -= take;
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
                received.told.extend(last_words(body, signal));
                if show == Show::Yes && self.keeps(signal, body) {
                    self.keep(body);
                    return Show::No;
                }
                if self.misuse_fails(signal) {
                    show = Show::No;
                }
                self.error(body, client.as_deref_mut(), received);
                note_unexpected(self, client.is_some(), tag, received);
            }
            backend::COMMAND_COMPLETE => self.command_complete(body, client),
            backend::PARSE_COMPLETE => show = show.and(self.parse_complete()),
            backend::CLOSE_COMPLETE => show = show.and(self.close_complete()),
            backend::BIND_COMPLETE => self.pop_if(|r| matches!(r, Request::Bind(_))),
            backend::NO_DATA | backend::ROW_DESCRIPTION => {
                self.pop_if(|r| matches!(r, Request::Describe(_)));
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

    fn pop_if(&mut self, answered: impl Fn(&Request) -> bool) {
        if self.outstanding.front().is_some_and(answered) {
            self.outstanding.pop();
        }
    }

    /// Makes up the answers whose turn has come; they are given to `answer` whole. Nothing may be
    /// put into the middle of a message.
    #[inline]
    fn settle(&mut self, answer: impl FnOnce(&[u8])) {
        if self.halves.come.left == 0 && self.outstanding.front().is_some_and(Request::is_made_up) {
            self.make_up(answer);
        }
    }

    fn make_up(&mut self, answer: impl FnOnce(&[u8])) {
        let mut bytes = Vec::new();
        loop {
            match self.outstanding.front() {
                Some(Request::LocalParse(_)) => build::empty(&mut bytes, backend::PARSE_COMPLETE),
                Some(Request::LocalClose(_)) => {
                    build::empty(&mut bytes, backend::CLOSE_COMPLETE);
                }
                Some(Request::Refused(error, turn)) => {
                    bytes.extend_from_slice(error);
                    if *turn == Turn::Open && self.talk != Talk::None {
                        self.talk = Talk::Failed;
                    }
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

/// Questions.
impl Link {
    /// Nothing outstanding, nothing half forwarded, no COPY, and the server listens.
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.outstanding.is_empty()
            && self.halves.come.left == 0
            && self.copy == Copy::Off
            && self.group == Group::Ended
    }

    /// Whether what was sent ends with the end of a group: no part of one is at the server.
    pub fn ends_with_group(&self) -> bool {
        let last = self.outstanding.last_beside_data();
        let ended = last.is_none_or(Request::ends_group);
        ended && self.group == Group::Ended && self.copy == Copy::Off
    }

    /// Whether the client may go elsewhere once all this is answered: no part of a group is here,
    /// and how many answers are to come is known.
    pub fn may_be_left(&self) -> bool {
        self.ends_with_group() && self.certainty != Certainty::Doubtful
    }

    /// Quiet and outside a transaction block: may serve anybody.
    #[inline]
    pub fn is_free(&self) -> bool {
        self.is_quiet() && self.status == Status::Idle && self.certainty == Certainty::Sure
    }

    /// Quiet, but inside a transaction block.
    pub fn is_waiting_in_block(&self) -> bool {
        self.is_quiet() && self.status != Status::Idle && self.certainty == Certainty::Sure
    }

    /// Nothing of the client's reached the server: it may serve anybody once it has answered what
    /// the pooler asked on its own account.
    pub fn is_untouched(&self) -> bool {
        self.talk == Talk::None
            && self.status == Status::Idle
            && self.halves.come.left == 0
            && self.copy == Copy::Off
            && self.certainty == Certainty::Sure
            && self.outstanding.iter().all(|r| r.is_hidden_query() || r.is_local())
    }

    /// Number of queries still owed if ReadyForQuery was the last word: the client has sent several
    /// groups at once. One that it has not ended yet counts as well.
    pub fn owed_between_groups(&self) -> usize {
        if self.talk != Talk::Answered || self.status != Status::Idle || self.outstanding.is_empty()
        {
            return 0;
        }
        self.outstanding.iter().filter(|request| request.ends_with_ready()).count().max(1)
    }

    /// Whether the client's next message begins a transaction: nothing is owed but the pooler's own
    /// settings.
    #[inline]
    pub fn is_fresh(&self) -> bool {
        let hidden =
            |request: &Request| matches!(request, Request::Hidden(HiddenQuery::Parameters));
        self.status == Status::Idle
            && self.halves.come.left == 0
            && self.copy == Copy::Off
            && self.group == Group::Ended
            && self.certainty == Certainty::Sure
            && self.outstanding.iter().all(hidden)
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

    /// Whether the next messages fail whatever they are, because the block has failed.
    pub fn is_failed(&self) -> bool {
        self.status == Status::Failed
    }

    /// Whether data of a COPY is expected from the client.
    pub fn is_copying(&self) -> bool {
        self.copy != Copy::Off
    }

    /// Whether the client's parameters are being set.
    pub fn is_setting_parameters(&self) -> bool {
        matches!(
            self.outstanding.front(),
            Some(Request::Hidden(HiddenQuery::Parameters | HiddenQuery::Parameter(_)))
        )
    }

    /// Requests not answered yet.
    pub fn outstanding(&self) -> &Outstanding {
        &self.outstanding
    }

    /// Whether a message has been passed on in part only.
    pub fn is_inside_message(&self) -> bool {
        self.halves.come.left > 0
    }

    /// Whether the client has seen a part of a message only: anything else that it is told would be
    /// taken for the rest.
    pub fn shows_part(&self) -> bool {
        self.halves.come.left > 0 && self.halves.come.show == Show::Yes
    }

    /// Whether the server is known not to take a tracked parameter of a client.
    pub fn refuses(&self, index: usize) -> bool {
        self.refused.contains(&index)
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

    /// Number of statements that it may have besides.
    pub fn unsure_statements(&self) -> usize {
        self.statements.closing()
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
            self.halves.come.left > 0 || !front.is_some_and(Request::is_made_up),
            "made-up answers are given as soon as it is their turn"
        );
    }
}

impl Signal {
    /// Shutdown, crash or start-up of the server: class 57P.
    pub fn is_shutdown(&self) -> bool {
        matches!(&self.sqlstate, b"57P01" | b"57P02" | b"57P03")
    }

    /// Whether the server ends the connection behind it.
    pub fn is_final(&self) -> bool {
        matches!(self.severity, b'F' | b'P')
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

/// What a server says for the last time.
fn last_words(body: &[u8], signal: Option<Signal>) -> Option<Told> {
    let signal = signal.filter(Signal::is_final)?;
    let text = read::field(body, b'M').unwrap_or_default();
    Some(Told::LastWords(signal.sqlstate, String::from_utf8_lossy(text).into_owned()))
}

fn note_unexpected(link: &Link, linked: bool, tag: u8, received: &mut Received) {
    if !linked && link.outstanding.is_empty() {
        received.unexpected = Some(tag);
    }
}
