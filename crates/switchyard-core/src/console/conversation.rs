//! What a console client has asked, in either protocol, and the bytes of its answers.
//!
//! A simple query is answered with its result and ReadyForQuery. The extended protocol knows
//! statements and portals of one command each, without parameters; an error makes it skip up to
//! Sync. The command itself is carried out by the shell, which asks nothing else of this client
//! until it has answered.
//!
//! Invariants: each message that asks for an answer gets one, in order; a portal lives until Sync.

use std::collections::BTreeMap;

use switchyard_wire::build::{self, Report};
use switchyard_wire::read;
use switchyard_wire::tag::{backend, frontend};

use crate::console::tables::{self, Format, Row};
use crate::console::{Command, explain, grammar};

/// Named statements or portals of a client; one more is an error.
const NAMES_MAX: usize = 256;

/// What has to be done about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the bytes say it all.
    Answered,
    /// The command is to be carried out, then answered.
    Run(Command),
    /// The message failed; [`Conversation::fail`] tells it.
    Fail(String),
    /// The client asked for what a console does not do: it fails with this text and ends.
    Unsupported(String),
    /// The client broke the protocol and ends with this text.
    Broken(&'static str),
    /// The client says good-bye.
    Goodbye,
}

/// What the client awaits.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Awaits {
    /// Nothing, or nothing that the shell has to answer.
    Nothing,
    /// The result of a simple query, and ReadyForQuery.
    Simple,
    /// The result of a portal, so many rows at most (0: all).
    Portal(Vec<u8>, usize),
    /// Sync: the extended protocol has failed.
    Sync,
}

/// A statement: one command, or nothing at all.
type Statement = Option<Command>;

/// A statement about to be executed.
#[derive(Clone, Debug)]
struct Portal {
    statement: Statement,
    formats: Vec<Format>,
    progress: Progress,
}

/// How much of a portal's result was sent.
#[derive(Clone, Debug)]
enum Progress {
    /// Nothing: it was not executed.
    Bound,
    /// These rows are left.
    Rows(std::vec::IntoIter<Row>),
    /// All.
    Done,
}

/// One client's conversation with the console.
#[derive(Clone, Debug)]
pub struct Conversation {
    statements: BTreeMap<Vec<u8>, Statement>,
    portals: BTreeMap<Vec<u8>, Portal>,
    awaits: Awaits,
}

impl Default for Conversation {
    fn default() -> Self {
        let (statements, portals) = (BTreeMap::new(), BTreeMap::new());
        Conversation { statements, portals, awaits: Awaits::Nothing }
    }
}

type Outcome = Result<(), Step>;

/// Messages.
impl Conversation {
    /// A whole message of the client. What can be answered at once is appended to `out`.
    pub fn handle_message(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Step {
        match tag {
            frontend::TERMINATE => return Step::Goodbye,
            frontend::SYNC => {
                self.portals.clear();
                self.awaits = Awaits::Nothing;
                build::ready_for_query(out, b'I');
                return Step::Answered;
            }
            frontend::QUERY | frontend::FLUSH | frontend::PARSE | frontend::BIND => {}
            frontend::DESCRIBE | frontend::EXECUTE | frontend::CLOSE => {}
            other => {
                let text = format!("unsupported packet type for admin console: {other}");
                return Step::Unsupported(text);
            }
        }
        if self.awaits == Awaits::Sync {
            return Step::Answered;
        }
        let outcome = match tag {
            frontend::QUERY => self.query(body),
            frontend::PARSE => self.parse(body, out),
            frontend::BIND => self.bind(body, out),
            frontend::DESCRIBE => self.describe(body, out),
            frontend::EXECUTE => self.execute(body, out),
            frontend::CLOSE => self.close(body, out),
            _ => Ok(()),
        };
        outcome.err().unwrap_or(Step::Answered)
    }

    fn query(&mut self, body: &[u8]) -> Outcome {
        let Some((query, _)) = read::cstr(body) else {
            return Err(Step::Broken("incomplete query"));
        };
        self.portals.clear();
        self.awaits = Awaits::Simple;
        let command = grammar::parse(&String::from_utf8_lossy(query));
        Err(command.map_or_else(Step::Fail, Step::Run))
    }

    fn parse(&mut self, body: &[u8], out: &mut Vec<u8>) -> Outcome {
        let message = read::parse(body).ok_or(Step::Broken("bad packet"))?;
        let query = String::from_utf8_lossy(message.sql);
        let empty = query.trim_end_matches(';').trim().is_empty();
        let statement = if empty { None } else { Some(self.read_command(&query)?) };
        let name = message.name.to_vec();
        let known = self.statements.contains_key(&name);
        if known && !name.is_empty() {
            let text = String::from_utf8_lossy(&name);
            return self.refuse(&format!("prepared statement \"{text}\" already exists"));
        }
        if !known && self.statements.len() >= NAMES_MAX {
            return self.refuse("too many prepared statements");
        }
        self.statements.insert(name, statement);
        build::empty(out, backend::PARSE_COMPLETE);
        Ok(())
    }

    fn read_command(&mut self, query: &str) -> Result<Command, Step> {
        self.awaits = Awaits::Sync;
        let command = grammar::parse(query).map_err(Step::Fail)?;
        self.awaits = Awaits::Nothing;
        Ok(command)
    }

    fn bind(&mut self, body: &[u8], out: &mut Vec<u8>) -> Outcome {
        let broken = || Step::Broken("bad packet");
        let (portal, name, rest) = read::bind(body).ok_or_else(broken)?;
        let (parameters, formats) = result_formats(rest).ok_or_else(broken)?;
        let Some(statement) = self.statements.get(name).cloned() else {
            return self.unknown("prepared statement", name);
        };
        if parameters > 0 {
            return self.refuse("console commands have no parameters");
        }
        let known = self.portals.contains_key(portal);
        if !known && self.portals.len() >= NAMES_MAX {
            return self.refuse("too many portals");
        }
        let Some(formats) = formats else { return self.refuse("unsupported format code") };
        let columns = columns(&statement).len();
        if formats.len() > 1 && formats.len() != columns {
            return self.refuse("bind message has wrong number of result formats");
        }
        let portal_state = Portal { statement, formats, progress: Progress::Bound };
        self.portals.insert(portal.to_vec(), portal_state);
        build::empty(out, backend::BIND_COMPLETE);
        Ok(())
    }

    fn describe(&mut self, body: &[u8], out: &mut Vec<u8>) -> Outcome {
        let (kind, name) = read::describe(body).ok_or(Step::Broken("bad packet"))?;
        let (statement, formats) = if kind == b'S' {
            let Some(statement) = self.statements.get(name) else {
                return self.unknown("prepared statement", name);
            };
            build::message(out, backend::PARAMETER_DESCRIPTION, |out| out.extend([0, 0]));
            (statement, &[][..])
        } else {
            let Some(portal) = self.portals.get(name) else { return self.unknown("portal", name) };
            (&portal.statement, &portal.formats[..])
        };
        let columns = columns(statement);
        if columns.is_empty() {
            build::empty(out, backend::NO_DATA);
        } else {
            tables::describe(out, &columns, formats);
        }
        Ok(())
    }

    fn execute(&mut self, body: &[u8], out: &mut Vec<u8>) -> Outcome {
        let broken = || Step::Broken("bad packet");
        let (name, limit) = read::cstr(body).ok_or_else(broken)?;
        let limit = i32::from_be_bytes(limit.try_into().map_err(|_| broken())?);
        let limit = usize::try_from(limit).unwrap_or(0);
        let Some(portal) = self.portals.get_mut(name) else { return self.unknown("portal", name) };
        match (&portal.progress, &portal.statement) {
            (Progress::Rows(_), _) => {
                portal.send(limit, out);
                Ok(())
            }
            (Progress::Done, Some(Command::Show(_) | Command::ExplainRoute(_))) => {
                build::command_complete(out, "SHOW");
                Ok(())
            }
            (Progress::Done, Some(_)) => {
                let text = String::from_utf8_lossy(name);
                let text = format!("portal \"{text}\" cannot be run");
                self.refuse(&text)
            }
            (_, None) => {
                build::empty(out, backend::EMPTY_QUERY);
                Ok(())
            }
            (Progress::Bound, Some(command)) => {
                let command = command.clone();
                portal.progress = Progress::Done;
                self.awaits = Awaits::Portal(name.to_vec(), limit);
                Err(Step::Run(command))
            }
        }
    }

    fn close(&mut self, body: &[u8], out: &mut Vec<u8>) -> Outcome {
        let (kind, name) = read::describe(body).ok_or(Step::Broken("bad packet"))?;
        if kind == b'S' {
            self.statements.remove(name);
        } else {
            self.portals.remove(name);
        }
        build::empty(out, backend::CLOSE_COMPLETE);
        Ok(())
    }

    fn unknown(&mut self, what: &str, name: &[u8]) -> Outcome {
        self.refuse(&format!("{what} \"{}\" does not exist", String::from_utf8_lossy(name)))
    }

    fn refuse(&mut self, text: &str) -> Outcome {
        self.awaits = Awaits::Sync;
        Err(Step::Fail(text.into()))
    }
}

/// Answers.
impl Conversation {
    /// The command was carried out.
    pub fn complete(&mut self, tag: &str, out: &mut Vec<u8>) {
        build::command_complete(out, tag);
        self.answered(out);
    }

    /// The command failed.
    pub fn fail(&mut self, sqlstate: &str, text: &str, out: &mut Vec<u8>) {
        let report = Report { severity: "ERROR", sqlstate, message: text, detail: None };
        build::error_response(out, report);
        match self.awaits {
            Awaits::Portal(..) | Awaits::Sync => self.awaits = Awaits::Sync,
            Awaits::Simple | Awaits::Nothing => self.answered(out),
        }
    }

    /// The command's answer is a table.
    pub fn answer(&mut self, columns: &[tables::TableColumn], rows: Vec<Row>, out: &mut Vec<u8>) {
        if self.takes_all() {
            self.begin_rows(columns, out);
            self.send_rows(columns, &rows, out);
            return self.end_rows(out);
        }
        if let Awaits::Portal(name, limit) = &self.awaits
            && let Some(portal) = self.portals.get_mut(name)
        {
            portal.progress = Progress::Rows(rows.into_iter());
            portal.send(*limit, out);
        }
        self.answered(out);
    }

    /// Whether a table is sent as a whole, and may be sent in parts: nobody asked for fewer rows.
    pub fn takes_all(&self) -> bool {
        !matches!(&self.awaits, Awaits::Portal(_, limit) if *limit > 0)
    }

    /// A table that is sent in parts begins.
    pub fn begin_rows(&mut self, columns: &[tables::TableColumn], out: &mut Vec<u8>) {
        if !matches!(self.awaits, Awaits::Portal(..)) {
            tables::describe(out, columns, &[]);
        }
    }

    /// Some rows of it.
    pub fn send_rows(&self, columns: &[tables::TableColumn], rows: &[Row], out: &mut Vec<u8>) {
        let portal = match &self.awaits {
            Awaits::Portal(name, _) => self.portals.get(name),
            Awaits::Nothing | Awaits::Simple | Awaits::Sync => None,
        };
        let formats = portal.map_or(&[][..], |portal| &portal.formats);
        rows.iter().for_each(|row| tables::row(out, columns, row, formats));
    }

    /// It is complete.
    pub fn end_rows(&mut self, out: &mut Vec<u8>) {
        build::command_complete(out, "SHOW");
        self.answered(out);
    }

    fn answered(&mut self, out: &mut Vec<u8>) {
        if matches!(self.awaits, Awaits::Simple | Awaits::Nothing) {
            build::ready_for_query(out, b'I');
        }
        self.awaits = Awaits::Nothing;
    }
}

impl Portal {
    fn send(&mut self, limit: usize, out: &mut Vec<u8>) {
        let Progress::Rows(rows) = &mut self.progress else { return };
        let columns = columns(&self.statement);
        let most = if limit == 0 { usize::MAX } else { limit };
        let mut sent = 0;
        for row in rows.by_ref().take(most) {
            tables::row(out, &columns, &row, &self.formats);
            sent += 1;
        }
        if sent == most {
            build::empty(out, backend::PORTAL_SUSPENDED);
        } else {
            self.progress = Progress::Done;
            build::command_complete(out, "SHOW");
        }
    }
}

fn columns(statement: &Statement) -> Vec<tables::TableColumn> {
    match statement {
        Some(Command::Show(show)) => tables::columns(*show),
        Some(Command::ExplainRoute(_)) => explain::COLUMNS.to_vec(),
        Some(_) | None => Vec::new(),
    }
}

type Formats = Option<Vec<Format>>;

/// What follows the names in a Bind: how many parameters there are, and the formats of the result;
/// no formats if one of them is unknown.
fn result_formats(rest: &[u8]) -> Option<(usize, Formats)> {
    let (formats, rest) = counted(rest)?;
    let mut rest = rest.get(formats * 2..)?;
    let (parameters, tail) = counted(rest)?;
    rest = tail;
    for _ in 0..parameters {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let len = usize::try_from(i32::from_be_bytes(*len)).unwrap_or(0);
        rest = tail.get(len..)?;
    }
    let (count, rest) = counted(rest)?;
    if rest.len() != count * 2 {
        return None;
    }
    let formats = rest.chunks_exact(2).map(|code| match code {
        [0, 0] => Some(Format::Text),
        [0, 1] => Some(Format::Binary),
        _ => None,
    });
    Some((parameters, formats.collect()))
}

fn counted(rest: &[u8]) -> Option<(usize, &[u8])> {
    let (count, rest) = rest.split_first_chunk::<2>()?;
    Some((usize::from(u16::from_be_bytes(*count)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Show;

    fn tags(bytes: &[u8]) -> String {
        let mut rest = bytes;
        let mut tags = String::new();
        while let Ok(Some((head, _, tail))) = switchyard_wire::frame::split(rest) {
            tags.push(char::from(head.tag));
            rest = tail;
        }
        assert!(rest.is_empty(), "only whole messages are sent");
        tags
    }

    /// Plays messages; the answer is the tags of what is sent, with `!` where a text went out as an
    /// error. SHOW has three rows.
    fn check(messages: &[(u8, &[u8])], expected: &str) {
        let mut conversation = Conversation::default();
        let mut said = String::new();
        for (tag, body) in messages {
            let mut out = Vec::new();
            match conversation.handle_message(*tag, body, &mut out) {
                Step::Answered => {}
                Step::Run(Command::Show(show)) => {
                    let columns = tables::columns(show);
                    let row: Row = columns.iter().map(|_| Some("7".into())).collect();
                    conversation.answer(&columns, vec![row; 3], &mut out);
                }
                Step::Run(_) => conversation.complete("DONE", &mut out),
                Step::Fail(text) => conversation.fail("08P01", &text, &mut out),
                Step::Unsupported(_) | Step::Broken(_) => said.push('!'),
                Step::Goodbye => said.push('X'),
            }
            said.push_str(&tags(&out));
        }
        assert_eq!(said, expected);
    }

    const PARSE: (u8, &[u8]) = (b'P', b"\0show lists\0\0\0");
    const BIND: (u8, &[u8]) = (b'B', b"\0\0\0\0\0\0\0\0");
    const ALL: (u8, &[u8]) = (b'E', b"\0\0\0\0\0");
    const TWO: (u8, &[u8]) = (b'E', b"\0\0\0\0\x02");
    const SYNC: (u8, &[u8]) = (b'S', b"");

    #[test]
    fn simple_queries() {
        check(&[(b'Q', b"show lists\0"), (b'Q', b"reload\0"), (b'Q', b"x\0")], "TDDDCZCZEZ");
        check(&[(b'Q', b"reload")], "!");
        check(&[(b'F', b""), (b'X', b"")], "!X");
    }

    #[test]
    fn extended_queries() {
        let describe = (b'D', &b"P\0"[..]);
        check(&[PARSE, BIND, describe, ALL, SYNC], "12TDDDCZ");
        check(&[PARSE, (b'D', b"S\0"), (b'H', b""), SYNC, BIND, ALL, SYNC], "1tTZ2DDDCZ");
        check(&[PARSE, BIND, TWO, TWO, TWO, SYNC], "12DDsDCCZ");
        check(&[(b'P', b"a\0reload\0\0\0"), (b'B', b"p\0a\0\0\0\0\0\0\0"), SYNC], "12Z");
        let run = (b'E', &b"p\0\0\0\0\0"[..]);
        let bind = (b'B', &b"p\0a\0\0\0\0\0\0\0"[..]);
        let named = (b'P', &b"a\0reload\0\0\0"[..]);
        check(&[named, bind, (b'D', b"P\0p"), SYNC], "12!Z");
        check(&[named, bind, (b'D', b"Pp\0"), run, run, SYNC], "12nCEZ");
        check(&[named, (b'C', b"Sa\0"), bind, run, SYNC], "13EZ");
        check(&[(b'P', b"\0 ;\0\0\0"), BIND, ALL, SYNC], "12IZ");
    }

    #[test]
    fn an_error_skips_up_to_sync() {
        check(&[(b'P', b"\0nope\0\0\0"), BIND, ALL, (b'Q', b"reload\0"), SYNC, PARSE], "EZ1");
        check(&[BIND, PARSE, SYNC], "EZ");
        check(&[PARSE, (b'B', b"\0\0\0\0\0\x01\0\0\0\x01x\0\0"), SYNC], "1EZ");
        check(&[PARSE, (b'B', b"\0\0\0\0\0\0\0\x01\0\x02"), SYNC], "1EZ");
        check(&[PARSE, (b'B', b"\0\0\0\0\0\0\0\x03\0\0\0\0\0\0"), SYNC], "1EZ");
        check(&[PARSE, BIND, SYNC, ALL, SYNC], "12ZEZ");
        check(&[PARSE, PARSE, (b'B', b"\0")], "11!");
    }

    #[test]
    fn names_are_bounded() {
        let mut conversation = Conversation::default();
        for number in 0..=NAMES_MAX {
            let mut body = format!("n{number}\0show lists\0").into_bytes();
            body.extend([0, 0]);
            let step = conversation.handle_message(b'P', &body, &mut Vec::new());
            let full = number == NAMES_MAX;
            assert_eq!(matches!(step, Step::Fail(_)), full, "{number}");
        }
        assert_eq!(conversation.statements.len(), NAMES_MAX);
    }

    #[test]
    fn binary_values() {
        let mut conversation = Conversation::default();
        let mut out = Vec::new();
        conversation.handle_message(b'P', b"\0show lists\0\0\0", &mut out);
        conversation.handle_message(b'B', b"\0\0\0\0\0\0\0\x01\0\x01", &mut out);
        let step = conversation.handle_message(b'E', b"\0\0\0\0\0", &mut out);
        assert_eq!(step, Step::Run(Command::Show(Show::Lists)));
        out.clear();
        let row = vec![Some("databases".into()), Some("258".into())];
        conversation.answer(&tables::columns(Show::Lists), vec![row], &mut out);
        assert!(out.starts_with(b"D\0\0\0\x1b\0\x02\0\0\0\x09databases\0\0\0\x04\0\0\x01\x02"));
    }
}
