//! A model of PostgreSQL's side of the protocol ("Message Flow"): statements, portals, transaction
//! blocks, parameters, skipping after errors, COPY, cancels. Bytes in, bytes out.
//!
//! It runs as a node's session behind the pooler, and as the reference that a client compares its
//! answers with. Statements are words of its own: `rows`, `echo X`, `sleep MS X`, `insert N`,
//! `show NAME`, `set NAME='VALUE'`, `begin`, `commit`, `rollback`, `fail`, `bad`, `copy`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use switchyard_core::client::session::Approval;
use switchyard_wire::build::{self, Report};
use switchyard_wire::tag::{backend, frontend};
use switchyard_wire::{frame, read};

use crate::hooks::{self, Hooks};

/// Where writes go.
pub trait Store {
    /// Whether it takes any.
    fn is_writable(&self) -> bool;
    /// A transaction with these writes is committed.
    fn commit(&mut self, writes: &[u64]);
}

/// A store that forgets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Store for Nowhere {
    fn is_writable(&self) -> bool {
        true
    }

    fn commit(&mut self, _: &[u64]) {}
}

/// COPY from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    Off,
    Simple,
    Extended,
}

/// What happens to messages up to the next Sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Heard,
    Skipped,
}

/// How long sleeps take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// No time.
    Instant,
    /// As long as they say.
    Real,
}

/// A statement that takes time.
#[derive(Clone, Debug)]
struct Sleep {
    time: Duration,
    text: Vec<u8>,
    extended: Extended,
}

/// Which protocol a statement came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extended {
    Yes,
    No,
}

/// Parameters and their values.
pub type Parameters = BTreeMap<String, String>;

/// Bytes after which answers are sent although their group goes on.
const BUFFER: usize = 8192;

/// What a session reports by itself, with the values of a fresh one.
pub const DEFAULTS: [(&str, &str); 7] = [
    ("DateStyle", "ISO, MDY"),
    ("client_encoding", "UTF8"),
    ("TimeZone", "UTC"),
    ("standard_conforming_strings", "on"),
    ("application_name", ""),
    ("search_path", "public"),
    ("server_version", "17.0"),
];

/// A session.
#[derive(Debug)]
pub struct Session {
    input: Vec<u8>,
    /// What it has answered and nobody has taken yet.
    pub output: Vec<u8>,
    /// How much of it would be on its way: the rest waits for the end of a group.
    flushed: usize,
    statements: HashMap<Vec<u8>, Vec<u8>>,
    portals: HashMap<Vec<u8>, Vec<u8>>,
    status: u8,
    group: Group,
    copy: Copy,
    pace: Pace,
    hooks: Hooks,
    sleep: Option<Sleep>,
    defaults: Parameters,
    parameters: Parameters,
    before: Option<Parameters>,
    reported: Parameters,
    writes: Vec<u64>,
}

fn ends(sql: &[u8]) -> bool {
    matches!(sql, b"commit" | b"rollback")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Session {
    /// A session whose client wants these parameters at its start.
    pub fn new(pace: Pace, wanted: &[(String, String)]) -> Self {
        let defaults = DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut defaults = Parameters::from(defaults);
        for (name, value) in wanted {
            defaults.insert(name.clone(), canonical(name, value));
        }
        Session {
            input: Vec::new(),
            output: Vec::new(),
            flushed: 0,
            statements: HashMap::new(),
            portals: HashMap::new(),
            status: b'I',
            group: Group::Heard,
            copy: Copy::Off,
            pace,
            hooks: Hooks::Off,
            sleep: None,
            parameters: defaults.clone(),
            before: None,
            reported: defaults.clone(),
            defaults,
            writes: Vec::new(),
        }
    }

    /// The same with hooks in front of it.
    pub fn behind(self, hooks: Hooks) -> Self {
        Session { hooks, ..self }
    }

    /// What hooks make of a statement; `None` if they refuse it.
    fn judged<'a>(&self, sql: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        match self.hooks {
            Hooks::Off => Some(Cow::Borrowed(sql)),
            Hooks::On => match hooks::judge(sql) {
                Approval::Unchanged => Some(Cow::Borrowed(sql)),
                Approval::Text(text) => Some(Cow::Owned(text)),
                Approval::Refused(_) => None,
            },
        }
    }

    fn refuse(&mut self, extended: Extended) {
        let (sqlstate, message) = hooks::REFUSAL;
        self.fail_with(sqlstate, message, extended);
    }

    /// All parameters as they are.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Nothing is under way: no block, no half message, nothing skipped or copied.
    pub fn is_clean(&self) -> bool {
        self.status == b'I'
            && self.group == Group::Heard
            && self.copy == Copy::Off
            && self.sleep.is_none()
            && self.input.is_empty()
            && self.writes.is_empty()
    }

    /// How long the statement takes that has just begun.
    pub fn sleeps(&self) -> Option<Duration> {
        self.sleep.as_ref().map(|sleep| sleep.time)
    }

    /// What has left the session's buffer.
    pub fn take_output(&mut self) -> Vec<u8> {
        let full = self.output.len() / BUFFER * BUFFER;
        let count = self.flushed.max(full);
        self.flushed = 0;
        self.output.drain(..count).collect()
    }

    /// A parameter is reported that nobody has set.
    pub fn report(&mut self, name: &str, value: &str) {
        build::parameter_status(&mut self.output, name.as_bytes(), value.as_bytes());
        self.flushed = self.output.len();
    }

    /// Bytes of a client.
    pub fn receive(&mut self, bytes: &[u8], store: &mut dyn Store) {
        self.input.extend_from_slice(bytes);
        self.go_on(store);
    }

    /// Bytes of a client whose last statement is cancelled.
    pub fn receive_cancelled(&mut self, bytes: &[u8], store: &mut dyn Store) {
        let pace = std::mem::replace(&mut self.pace, Pace::Real);
        self.receive(bytes, store);
        self.cancel(store);
        self.pace = pace;
    }

    fn go_on(&mut self, store: &mut dyn Store) {
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while self.sleep.is_none()
            && let Ok(Some((head, body, tail))) = frame::split(rest)
        {
            self.message(head.tag, body, store);
            rest = tail;
        }
        self.input = rest.to_vec();
    }

    /// The time of a statement is over.
    pub fn wake(&mut self, store: &mut dyn Store) {
        let Some(sleep) = self.sleep.take() else { return };
        self.row(&sleep.text, sleep.extended);
        build::command_complete(&mut self.output, "SELECT 1");
        if sleep.extended == Extended::No {
            self.ready();
        }
        self.go_on(store);
    }

    /// A cancel request: ends a statement that takes time. Answers whether there was one.
    pub fn cancel(&mut self, store: &mut dyn Store) -> bool {
        let Some(sleep) = self.sleep.take() else { return false };
        self.fail("57014", sleep.extended);
        self.go_on(store);
        true
    }

    fn message(&mut self, tag: u8, body: &[u8], store: &mut dyn Store) {
        match (self.copy, tag) {
            (Copy::Off, frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL) => return,
            (Copy::Off, _) => {}
            (_, frontend::COPY_DATA | frontend::SYNC | frontend::FLUSH) => return,
            (copy, frontend::COPY_DONE) => {
                self.copy = Copy::Off;
                build::command_complete(&mut self.output, "COPY 1");
                if copy == Copy::Simple {
                    self.ready();
                }
                return;
            }
            (copy, tag) => {
                self.copy = Copy::Off;
                let extended = if copy == Copy::Extended { Extended::Yes } else { Extended::No };
                let why = read::cstr(body).filter(|_| tag == frontend::COPY_FAIL);
                let why = why.map_or_else(String::new, |(why, _)| text(why));
                let message = format!("COPY from stdin failed: {why}");
                return self.fail_with("57014", &message, extended);
            }
        }
        match tag {
            frontend::SYNC => {
                self.group = Group::Heard;
                self.ready();
            }
            frontend::TERMINATE => {}
            frontend::FLUSH => self.flushed = self.output.len(),
            _ if self.group == Group::Skipped => {}
            frontend::QUERY => {
                let Some(sql) = self.judged(&body[..body.len() - 1]) else {
                    return self.refuse(Extended::No);
                };
                self.query(&dialect(&sql), store);
            }
            frontend::FUNCTION_CALL => {
                build::message(&mut self.output, backend::FUNCTION_CALL_RESPONSE, |out| {
                    out.extend_from_slice(&u32::MAX.to_be_bytes());
                });
                self.ready();
            }
            frontend::PARSE => self.parse(body),
            frontend::BIND => self.bind(body),
            frontend::DESCRIBE => self.describe(body),
            frontend::EXECUTE => {
                let (portal, _) = read::cstr(body).expect("a portal");
                match self.portals.get(portal).cloned() {
                    None => self.fail("34000", Extended::Yes),
                    Some(sql) => self.execute(&sql, Extended::Yes, store),
                }
            }
            frontend::CLOSE => {
                let (kind, name) = read::describe(body).expect("a Close");
                let names = if kind == b'S' { &mut self.statements } else { &mut self.portals };
                names.remove(name);
                build::empty(&mut self.output, backend::CLOSE_COMPLETE);
            }
            other => unreachable!("message {}", char::from(other)),
        }
    }

    fn ready(&mut self) {
        if self.status == b'I' {
            self.portals.clear();
        }
        for (name, value) in &self.parameters {
            if self.reported.get(name) != Some(value) {
                let (name, value) = (name.as_bytes(), value.as_bytes());
                build::parameter_status(&mut self.output, name, value);
            }
        }
        self.reported = self.parameters.clone();
        build::ready_for_query(&mut self.output, self.status);
        self.flushed = self.output.len();
    }

    fn fail(&mut self, sqlstate: &str, extended: Extended) {
        self.fail_with(sqlstate, message_of(sqlstate), extended);
    }

    fn fail_with(&mut self, sqlstate: &str, message: &str, extended: Extended) {
        let report = Report { severity: "ERROR", sqlstate, message, detail: None };
        build::error_response(&mut self.output, report);
        self.flushed = self.output.len();
        if self.status == b'T' {
            self.status = b'E';
        }
        if extended == Extended::Yes {
            self.group = Group::Skipped;
        } else {
            self.ready();
        }
    }

    fn aborted(&self, sql: &[u8]) -> bool {
        self.status == b'E' && !ends(sql)
    }

    fn query(&mut self, sql: &[u8], store: &mut dyn Store) {
        if self.aborted(sql) {
            return self.fail("25P02", Extended::No);
        }
        if sql.is_empty() {
            build::empty(&mut self.output, backend::EMPTY_QUERY);
            return self.ready();
        }
        if sql == b"bad" {
            return self.fail("42601", Extended::No);
        }
        if returns_rows(sql) && !sql.starts_with(b"sleep") {
            self.columns();
        }
        let before = self.output.len();
        self.execute(sql, Extended::No, store);
        // Those that take time, or data, say themselves when they are done.
        let failed = self.output[before..].first() == Some(&backend::ERROR);
        if !failed && !sql.starts_with(b"copy") && !sql.starts_with(b"sleep") {
            self.ready();
        }
    }

    fn columns(&mut self) {
        let column = build::Column { name: "x", oid: 25, len: -1, format: 0 };
        build::row_description(&mut self.output, [column].into_iter());
    }

    fn row(&mut self, value: &[u8], extended: Extended) {
        if extended == Extended::No {
            self.columns();
        }
        build::data_row(&mut self.output, [Some(value)].into_iter());
    }

    fn execute(&mut self, sql: &[u8], extended: Extended, store: &mut dyn Store) {
        if self.aborted(sql) {
            return self.fail("25P02", extended);
        }
        let words: Vec<&[u8]> = sql.splitn(3, |byte| *byte == b' ').collect();
        let tag = match (words[0], sql) {
            (_, b"") => return build::empty(&mut self.output, backend::EMPTY_QUERY),
            (_, b"fail") => return self.fail("22012", extended),
            (_, b"begin") => {
                if self.status == b'I' {
                    self.before = Some(self.parameters.clone());
                }
                self.status = b'T';
                "BEGIN"
            }
            (_, b"commit" | b"rollback") => self.end(sql == b"commit", store),
            (_, b"deallocate all") => {
                self.statements.clear();
                "DEALLOCATE ALL"
            }
            (_, b"DISCARD ALL") => {
                self.statements.clear();
                self.parameters = self.defaults.clone();
                "DISCARD ALL"
            }
            (_, b"copy" | b"copy early") => return self.copy_in(sql, extended),
            (b"rows", _) => {
                build::data_row(&mut self.output, [Some(&b"value"[..])].into_iter());
                "SELECT 1"
            }
            (b"echo", _) => {
                build::data_row(&mut self.output, [Some(&sql[5..])].into_iter());
                "SELECT 1"
            }
            (b"show", _) => {
                let value = self.parameters.get(&text(words[1])).cloned().unwrap_or_default();
                build::data_row(&mut self.output, [Some(value.as_bytes())].into_iter());
                "SHOW"
            }
            (b"sleep", _) => {
                let millis = text(words[1]).parse().unwrap_or(1);
                let time = Duration::from_millis(millis);
                self.sleep = Some(Sleep { time, text: words[2].to_vec(), extended });
                if self.pace == Pace::Instant {
                    self.wake(store);
                }
                return;
            }
            (b"insert", _) if !store.is_writable() => return self.fail("25006", extended),
            (b"insert", _) => {
                self.writes.extend(text(words[1]).parse::<u64>());
                if self.status == b'I' {
                    store.commit(&std::mem::take(&mut self.writes));
                }
                "INSERT 0 1"
            }
            (b"set" | b"SET" | b"RESET", _) => self.set(sql),
            (b"create", _) => "CREATE TABLE",
            _ => "OK",
        };
        build::command_complete(&mut self.output, tag);
    }

    fn copy_in(&mut self, sql: &[u8], extended: Extended) {
        build::message(&mut self.output, backend::COPY_IN, |out| out.extend([0, 0, 0]));
        self.flushed = self.output.len();
        if sql == b"copy early" {
            return self.fail("P0001", extended);
        }
        self.copy = match extended {
            Extended::Yes => Copy::Extended,
            Extended::No => Copy::Simple,
        };
    }

    /// The end of a block, or of nothing.
    fn end(&mut self, commits: bool, store: &mut dyn Store) -> &'static str {
        let failed = self.status == b'E';
        self.status = b'I';
        let (before, writes) = (self.before.take(), std::mem::take(&mut self.writes));
        if commits && !failed {
            if !writes.is_empty() {
                store.commit(&writes);
            }
            return "COMMIT";
        }
        self.parameters = before.unwrap_or_else(|| self.parameters.clone());
        "ROLLBACK"
    }

    fn set(&mut self, sql: &[u8]) -> &'static str {
        for part in text(sql).split(';') {
            if part == "RESET ALL" {
                self.parameters = self.defaults.clone();
                return "RESET";
            }
            let Some((name, value)) = part.get(4..).and_then(|part| part.split_once('=')) else {
                continue;
            };
            let known = self.parameters.keys().find(|known| known.eq_ignore_ascii_case(name));
            let name = known.cloned().unwrap_or_else(|| name.to_owned());
            let value = canonical(&name, value.trim_matches('\''));
            self.parameters.insert(name, value);
        }
        "SET"
    }

    fn parse(&mut self, body: &[u8]) {
        let parse = read::parse(body).expect("a Parse");
        let Some(sql) = self.judged(parse.sql) else { return self.refuse(Extended::Yes) };
        // PostgreSQL looks at the text first; the pooler at the name, since it keeps the texts of
        // names that exist from the server.
        if !parse.name.is_empty() && self.statements.contains_key(parse.name) {
            let message = format!("prepared statement \"{}\" already exists", text(parse.name));
            return self.fail_with("42P05", &message, Extended::Yes);
        }
        let sql = dialect(&sql);
        if *sql == *b"bad" {
            return self.fail("42601", Extended::Yes);
        }
        if self.aborted(&sql) {
            return self.fail("25P02", Extended::Yes);
        }
        self.statements.insert(parse.name.into(), sql.into_owned());
        build::empty(&mut self.output, backend::PARSE_COMPLETE);
    }

    fn bind(&mut self, body: &[u8]) {
        let (portal, name, _) = read::bind(body).expect("a Bind");
        let Some(sql) = self.statements.get(name).cloned() else {
            let message = format!("prepared statement \"{}\" does not exist", text(name));
            return self.fail_with("26000", &message, Extended::Yes);
        };
        if self.aborted(&sql) {
            return self.fail("25P02", Extended::Yes);
        }
        if !portal.is_empty() && self.portals.contains_key(portal) {
            return self.fail("42P03", Extended::Yes);
        }
        self.portals.insert(portal.into(), sql);
        build::empty(&mut self.output, backend::BIND_COMPLETE);
    }

    fn describe(&mut self, body: &[u8]) {
        let Some((kind, name)) = read::describe(body) else {
            return self.fail("08P01", Extended::Yes);
        };
        let names = if kind == b'S' { &self.statements } else { &self.portals };
        let sql = match names.get(name).cloned() {
            None if kind == b'S' => return self.fail("26000", Extended::Yes),
            None => return self.fail("34000", Extended::Yes),
            Some(sql) => sql,
        };
        // PostgreSQL describes statements without a result even then. A server that has to be
        // given the statement first cannot.
        if self.aborted(&sql) && (kind == b'S' || returns_rows(&sql)) {
            return self.fail("25P02", Extended::Yes);
        }
        if kind == b'S' {
            build::message(&mut self.output, backend::PARAMETER_DESCRIPTION, |out| {
                out.extend_from_slice(&[0, 0]);
            });
        }
        if returns_rows(&sql) {
            self.columns();
        } else {
            build::empty(&mut self.output, backend::NO_DATA);
        }
    }
}

fn returns_rows(sql: &[u8]) -> bool {
    let word = sql.split(|byte| *byte == b' ').next().unwrap_or_default();
    matches!(word, b"rows" | b"echo" | b"show" | b"sleep")
}

/// What PostgreSQL says with an error.
fn message_of(sqlstate: &str) -> &'static str {
    match sqlstate {
        "22012" => "division by zero",
        "25P02" => {
            "current transaction is aborted, commands ignored until end of transaction block"
        }
        "42601" => "syntax error at or near \"selec\"",
        _ => "no",
    }
}

/// Words of this model for the SQL of transcripts.
fn dialect(sql: &[u8]) -> Cow<'_, [u8]> {
    let Ok(line) = std::str::from_utf8(sql) else { return Cow::Borrowed(sql) };
    let words = match line {
        "select 1/0" => "fail".into(),
        _ if line.starts_with("select cast(") => "fail".into(),
        "selec" => "bad".into(),
        _ => match (line.strip_prefix("select "), line.strip_prefix("set ")) {
            (Some(value), _) => format!("echo {}", value.trim_matches('\'')),
            (_, Some(pair)) => format!("set {}", pair.replace(" = ", "=")),
            _ if line.ends_with(" from stdin") => "copy".into(),
            _ if line.starts_with("create ") => "create table".into(),
            _ => return Cow::Borrowed(sql),
        },
    };
    Cow::Owned(words.into_bytes())
}

/// The spelling that a server settles on.
fn canonical(name: &str, value: &str) -> String {
    if name == "TimeZone" { value.to_ascii_uppercase() } else { value.to_owned() }
}
