//! A client that stays although its server was lost in the middle of its work.
//!
//! ```text
//! nothing of it ──lost──► told at once ──outside a block, group ended──► nothing
//!                              └──► playing: the failed block, or the rest of a group
//! ```
//!
//! The pooler tells one error and then plays the failed transaction until the client ends it, so
//! that no statement of a lost block runs by itself on the next server. Not here: whether a client
//! may stay, and its next server. Invariant: nothing that may have taken effect is sent again.

use switchyard_wire::build::{self, Report};
use switchyard_wire::read;
use switchyard_wire::tag::{backend, frontend};

use crate::client::pipeline::{Predicted, Word};
use crate::prepared::ClientStatements;
use crate::server::link::Status;

/// What a lost server owed to its client.
#[derive(Debug)]
pub struct Owed {
    /// The server's last word: an ErrorResponse, made an ERROR of.
    pub words: Option<Vec<u8>>,
    /// Status of its last ReadyForQuery.
    pub status: Status,
    /// Number of ReadyForQuery messages that the client waits for.
    pub answers: usize,
    /// Whether a group was begun whose Sync was not sent.
    pub group: Group,
    /// What the client has seen of the answer that is under way.
    pub told: Told,
}

/// What a client has seen of an answer that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// No error.
    Nothing,
    /// Its error: nothing but ReadyForQuery may follow.
    Error,
}

/// Whether a group of the extended protocol is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// It is, or may be.
    Open,
    /// Everything sent ended with ReadyForQuery.
    Ended,
}

/// Whether something unanswered may have ended the block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Doubt {
    #[default]
    None,
    MayHaveEnded,
}

/// What a statement does to the played block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Ends,
    Fails,
}

/// The part that is being played.
#[derive(Debug)]
struct Play {
    words: Option<Vec<u8>>,
    status: Status,
    /// `Open` while the rest of a group is skipped.
    skipping: Group,
    unnamed: Effect,
}

/// What a session remembers for the loss of its server.
#[derive(Debug, Default)]
pub struct Lost {
    begun: Option<Box<[u8]>>,
    again: Option<Box<[u8]>>,
    doubt: Doubt,
    play: Option<Box<Play>>,
}

const TEXT: &str = "server connection lost during switchover";
const ABORTED: &str =
    "current transaction is aborted, commands ignored until end of transaction block";
const ROLLED_BACK: (&str, &str) = ("08006", "The transaction was rolled back.");
const UNKNOWN: (&str, &str) = ("08007", "The outcome of the last command is unknown.");

/// Before the loss.
impl Lost {
    /// A query of the client goes to a server with this status and so many unanswered requests.
    pub(super) fn query(&mut self, sql: &[u8], status: Status, unanswered: usize) {
        let alone = unanswered == 0 && status == Status::Idle && is_single(sql);
        self.begun = (alone && Word::of(sql) == Word::Begin).then(|| sql.into());
        self.statement(sql);
    }

    /// A statement of the client was sent, or prepared in order to be.
    pub(super) fn statement(&mut self, sql: &[u8]) {
        if Word::of(sql) == Word::End || !is_single(sql) || is_prepare(sql) {
            self.doubt = Doubt::MayHaveEnded;
        }
    }

    /// Something of unknown text was sent.
    pub(super) fn unknown(&mut self) {
        self.more();
        self.doubt = Doubt::MayHaveEnded;
    }

    /// More than a lone BEGIN was sent.
    #[inline]
    pub(super) fn more(&mut self) {
        if self.begun.is_some() {
            self.begun = None;
        }
    }

    /// Everything was answered.
    pub(super) fn settled(&mut self) {
        self.doubt = Doubt::None;
    }

    /// The BEGIN that has to be sent again in front of the next message.
    pub(super) fn again(&mut self) -> Option<Box<[u8]>> {
        let sql = self.again.take()?;
        self.begun = Some(sql.clone());
        Some(sql)
    }
}

/// The loss.
impl Lost {
    /// The server is gone: writes to `out` what the client is told now.
    pub(super) fn lose(&mut self, owed: Owed, predicted: Predicted, out: &mut Vec<u8>) {
        if let Some(begin) = self.begun.take()
            && owed.group == Group::Ended
            && owed.answers <= 1
            && owed.status != Status::Failed
            && owed.told == Told::Nothing
        {
            if owed.answers == 1 {
                let start = begin.trim_ascii_start().first().is_some_and(|c| b"sS".contains(c));
                build::command_complete(out, if start { "START TRANSACTION" } else { "BEGIN" });
                build::ready_for_query(out, b'T');
            }
            self.again = Some(begin);
            return;
        }
        let inside = owed.status != Status::Idle || predicted == Predicted::Opened;
        let doubtful = self.doubt != Doubt::None || predicted == Predicted::Closed;
        let idle = owed.answers == 0 && owed.group == Group::Ended;
        let certain = inside && (idle || !doubtful);
        let (sqlstate, detail) = if certain { ROLLED_BACK } else { UNKNOWN };
        self.doubt = Doubt::None;
        let words = owed.words.unwrap_or_else(|| {
            let mut words = Vec::new();
            error(&mut words, sqlstate, TEXT, Some(detail));
            words
        });
        let status = if inside { Status::Failed } else { Status::Idle };
        let mut play =
            Play { words: Some(words), status, skipping: Group::Ended, unnamed: Effect::Fails };
        if owed.status == Status::Failed {
            // It knows already that its transaction has failed.
            play.words = None;
        }
        let mut told = owed.told;
        for _ in 0..owed.answers {
            if std::mem::replace(&mut told, Told::Nothing) == Told::Nothing {
                play.fail(out);
            }
            play.ready(out);
        }
        if owed.group == Group::Open {
            if told == Told::Nothing {
                play.fail(out);
            }
            play.skipping = Group::Open;
        }
        if inside || owed.group == Group::Open {
            self.play = Some(Box::new(play));
        }
    }
}

/// Afterwards.
impl Lost {
    /// Whether the client's messages are answered here.
    #[inline]
    pub(super) fn is_playing(&self) -> bool {
        self.play.is_some()
    }

    /// Whether a block is open as far as the client knows.
    pub(super) fn is_inside(&self) -> bool {
        self.again.is_some() || self.play.as_ref().is_some_and(|play| play.status != Status::Idle)
    }

    /// A message was refused that had no server: the rest of its group is skipped.
    pub(super) fn skip(&mut self) {
        let (status, unnamed) = (Status::Idle, Effect::Fails);
        let play = Play { words: None, status, skipping: Group::Open, unnamed };
        self.play = Some(Box::new(play));
    }

    /// Answers a message of the client.
    pub(super) fn play(
        &mut self,
        tag: u8,
        body: &[u8],
        statements: &mut ClientStatements,
        out: &mut Vec<u8>,
    ) {
        let Some(play) = &mut self.play else { return };
        play.message(tag, body, statements, out);
        if play.status == Status::Idle && play.skipping == Group::Ended && ends_group(tag) {
            self.play = None;
        }
    }
}

impl Play {
    fn message(
        &mut self,
        tag: u8,
        body: &[u8],
        statements: &mut ClientStatements,
        out: &mut Vec<u8>,
    ) {
        match tag {
            frontend::SYNC => {
                self.skipping = Group::Ended;
                self.ready(out);
            }
            _ if self.skipping == Group::Open => {}
            frontend::QUERY => {
                let sql = read::cstr(body).map_or(&b""[..], |(sql, _)| sql);
                if self.words.is_none() && effect(sql) == Effect::Ends {
                    build::command_complete(out, "ROLLBACK");
                    self.status = Status::Idle;
                } else {
                    self.fail(out);
                }
                self.ready(out);
            }
            frontend::FUNCTION_CALL => {
                self.fail(out);
                self.ready(out);
            }
            frontend::PARSE | frontend::BIND | frontend::DESCRIBE | frontend::EXECUTE
                if self.words.is_some() || !self.answer(tag, body, statements, out) =>
            {
                self.fail(out);
                self.skipping = Group::Open;
            }
            frontend::CLOSE => {
                if let Some((b'S', name)) = read::describe(body) {
                    statements.remove(name);
                }
                build::empty(out, backend::CLOSE_COMPLETE);
            }
            _ => {}
        }
    }

    /// Answers a message that belongs to the statement that ends the block; false if it does not.
    fn answer(
        &mut self,
        tag: u8,
        body: &[u8],
        statements: &ClientStatements,
        out: &mut Vec<u8>,
    ) -> bool {
        if self.status == Status::Idle {
            return false;
        }
        let known = |name: &[u8], unnamed: Effect| match statements.statement(name) {
            _ if name.is_empty() => unnamed,
            Some(statement) => effect(statement.sql()),
            None => Effect::Fails,
        };
        match tag {
            frontend::PARSE => {
                let parse = read::parse(body).filter(|parse| parse.name.is_empty());
                self.unnamed = parse.map_or(Effect::Fails, |parse| effect(parse.sql));
                if self.unnamed == Effect::Ends {
                    build::empty(out, backend::PARSE_COMPLETE);
                }
                self.unnamed == Effect::Ends
            }
            frontend::BIND => {
                let name = read::bind(body).map(|(_, name, _)| name);
                let ends = name.is_some_and(|name| known(name, self.unnamed) == Effect::Ends);
                if ends {
                    self.unnamed = Effect::Ends;
                    build::empty(out, backend::BIND_COMPLETE);
                }
                ends
            }
            frontend::DESCRIBE => {
                let ends = match read::describe(body) {
                    Some((b'S', name)) => known(name, self.unnamed) == Effect::Ends,
                    _ => self.unnamed == Effect::Ends,
                };
                if ends {
                    if body.first() == Some(&b'S') {
                        let none = |out: &mut Vec<u8>| out.extend_from_slice(&[0, 0]);
                        build::message(out, backend::PARAMETER_DESCRIPTION, none);
                    }
                    build::empty(out, backend::NO_DATA);
                }
                ends
            }
            _ if self.unnamed == Effect::Ends => {
                build::command_complete(out, "ROLLBACK");
                self.status = Status::Idle;
                true
            }
            _ => false,
        }
    }

    fn fail(&mut self, out: &mut Vec<u8>) {
        match self.words.take() {
            Some(words) => out.extend_from_slice(&words),
            None if self.status == Status::Idle => error(out, UNKNOWN.0, TEXT, Some(UNKNOWN.1)),
            None => {
                error(out, "25P02", ABORTED, None);
            }
        }
    }

    fn ready(&self, out: &mut Vec<u8>) {
        build::ready_for_query(out, if self.status == Status::Idle { b'I' } else { b'E' });
    }
}

/// An ERROR with the fields of a FATAL.
pub(crate) fn softened(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    build::message(&mut out, backend::ERROR, |out| {
        for (kind, value) in read::fields(body) {
            out.push(kind);
            build::cstr(out, if matches!(kind, b'S' | b'V') { b"ERROR" } else { value });
        }
        out.push(0);
    });
    out
}

fn error(out: &mut Vec<u8>, sqlstate: &str, message: &str, detail: Option<&str>) {
    build::error_response(out, Report { severity: "ERROR", sqlstate, message, detail });
}

fn ends_group(tag: u8) -> bool {
    matches!(tag, frontend::SYNC | frontend::QUERY | frontend::FUNCTION_CALL)
}

fn effect(sql: &[u8]) -> Effect {
    let ends = Word::of(sql) == Word::End && is_single(sql);
    if ends { Effect::Ends } else { Effect::Fails }
}

/// No semicolon but a last one. A semicolon within quotes makes it look like several, which errs
/// on the safe side.
fn is_single(sql: &[u8]) -> bool {
    memchr::memchr(b';', sql)
        .is_none_or(|at| sql[at..].iter().all(|byte| b"; \t\r\n".contains(byte)))
}

fn is_prepare(sql: &[u8]) -> bool {
    sql.trim_ascii_start().get(..7).is_some_and(|word| word.eq_ignore_ascii_case(b"prepare"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepared::Registry;

    fn owed(status: Status, answers: usize, group: Group) -> Owed {
        Owed { words: None, status, answers, group, told: Told::Nothing }
    }

    /// Types of the messages, with the SQLSTATE of errors and the status of ReadyForQuery.
    fn shape(mut bytes: &[u8]) -> String {
        let mut shape = Vec::new();
        while let Some((tag, rest)) = bytes.split_first() {
            let len = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let body = &rest[4..len];
            shape.push(match tag {
                b'E' => String::from_utf8_lossy(read::field(body, b'C').unwrap()).into_owned(),
                b'Z' => format!("Z{}", char::from(body[0])),
                tag => char::from(*tag).to_string(),
            });
            bytes = &rest[len..];
        }
        shape.join(" ")
    }

    fn lose(lost: &mut Lost, owed: Owed, predicted: Predicted) -> String {
        let mut out = Vec::new();
        lost.lose(owed, predicted, &mut out);
        shape(&out)
    }

    fn play(lost: &mut Lost, messages: &[(u8, &[u8])]) -> String {
        let (mut out, mut statements) = (Vec::new(), ClientStatements::default());
        let registry = Registry::default();
        statements.define(b"done", registry.intern(b"commit", &[0, 0]));
        for (tag, body) in messages {
            lost.play(*tag, body, &mut statements, &mut out);
        }
        shape(&out)
    }

    #[test]
    fn a_query_outside_a_block_fails_once() {
        let mut lost = Lost::default();
        lost.query(b"insert", Status::Idle, 0);
        let told = lose(&mut lost, owed(Status::Idle, 1, Group::Ended), Predicted::AsReported);
        assert_eq!(told, "08007 ZI");
        assert!(!lost.is_playing());
    }

    #[test]
    fn a_statement_of_unknown_text_ends_a_lone_begin() {
        let mut lost = Lost::default();
        lost.query(b"begin", Status::Idle, 0);
        lost.unknown();
        let told = lose(&mut lost, owed(Status::Block, 0, Group::Ended), Predicted::AsReported);
        assert_eq!(told, "");
        assert_eq!(lost.again(), None);
        assert_eq!(play(&mut lost, &[(b'Q', b"select 1\0")]), "08006 ZE");
    }

    #[test]
    fn an_error_that_was_told_is_not_told_again() {
        let failing =
            |status, answers, group| Owed { told: Told::Error, ..owed(status, answers, group) };
        let mut lost = Lost::default();
        let told = lose(&mut lost, failing(Status::Idle, 1, Group::Ended), Predicted::AsReported);
        assert_eq!(told, "ZI");
        let told = lose(&mut lost, failing(Status::Idle, 2, Group::Ended), Predicted::AsReported);
        assert_eq!(told, "ZI 08007 ZI");
        let told = lose(&mut lost, failing(Status::Block, 1, Group::Ended), Predicted::AsReported);
        assert_eq!(told, "ZE");
        assert_eq!(play(&mut lost, &[(b'Q', b"select 1\0")]), "08006 ZE");
        let mut lost = Lost::default();
        let told = lose(&mut lost, failing(Status::Idle, 0, Group::Open), Predicted::AsReported);
        assert_eq!(told, "");
        assert_eq!(play(&mut lost, &[(b'E', b"\0\0\0\0\0"), (b'S', b"")]), "ZI");
    }

    #[test]
    fn an_idle_block_is_told_with_the_next_message() {
        let mut lost = Lost::default();
        let told = lose(&mut lost, owed(Status::Block, 0, Group::Ended), Predicted::AsReported);
        assert_eq!(told, "");
        assert_eq!(play(&mut lost, &[(b'Q', b"select 1\0")]), "08006 ZE");
        assert_eq!(play(&mut lost, &[(b'Q', b"select 1\0")]), "25P02 ZE");
        assert_eq!(play(&mut lost, &[(b'Q', b"commit; delete from t\0")]), "25P02 ZE");
        assert_eq!(play(&mut lost, &[(b'Q', b"COMMIT;\0")]), "C ZI");
        assert!(!lost.is_playing());
    }

    #[test]
    fn a_commit_under_way_has_an_unknown_outcome() {
        for sql in [&b"commit"[..], b"update t set x = 1; commit", b"prepare transaction 'x'"] {
            let mut lost = Lost::default();
            lost.query(sql, Status::Block, 0);
            let owed = owed(Status::Block, 1, Group::Ended);
            assert_eq!(lose(&mut lost, owed, Predicted::AsReported), "08007 ZE");
        }
        let mut lost = Lost::default();
        lost.query(b"update t set x = 1;", Status::Block, 0);
        let owed = owed(Status::Block, 1, Group::Ended);
        assert_eq!(lose(&mut lost, owed, Predicted::AsReported), "08006 ZE");
    }

    #[test]
    fn a_lone_begin_is_sent_again() {
        let mut lost = Lost::default();
        lost.query(b"begin", Status::Idle, 0);
        let answered = owed(Status::Block, 0, Group::Ended);
        assert_eq!(lose(&mut lost, answered, Predicted::AsReported), "");
        assert!(lost.is_inside() && !lost.is_playing());
        assert_eq!(lost.again().as_deref(), Some(&b"begin"[..]));
        let unanswered = owed(Status::Idle, 1, Group::Ended);
        assert_eq!(lose(&mut lost, unanswered, Predicted::Opened), "C ZT");
    }

    #[test]
    fn the_rest_of_a_group_is_skipped() {
        let mut lost = Lost::default();
        lost.statement(b"insert");
        let told = lose(&mut lost, owed(Status::Block, 1, Group::Open), Predicted::AsReported);
        assert_eq!(told, "08006 ZE 25P02");
        let rest = [(b'B', &b"\0\0"[..]), (b'E', b"\0\0\0\0\0"), (b'S', b"")];
        assert_eq!(play(&mut lost, &rest), "ZE");
        let end = [
            (b'P', &b"\0rollback\0\0\0"[..]),
            (b'B', b"\0\0\0\0\0\0\0\0"),
            (b'D', b"P\0"),
            (b'E', b"\0\0\0\0\0"),
            (b'S', b""),
        ];
        assert_eq!(play(&mut lost, &end), "1 2 n C ZI");
        assert!(!lost.is_playing());
    }

    #[test]
    fn a_prepared_commit_ends_the_block() {
        let mut lost = Lost::default();
        let told = lose(&mut lost, owed(Status::Failed, 0, Group::Ended), Predicted::AsReported);
        assert_eq!(told, "");
        let end = [
            (b'B', &b"\0done\0\0\0\0\0\0\0"[..]),
            (b'E', b"\0\0\0\0\0"),
            (b'P', b"\0delete from t\0\0\0"),
            (b'S', b""),
        ];
        assert_eq!(play(&mut lost, &end), "2 C 08007 ZI");
    }
}
