//! What a session has left in its server that no other server has: found in the texts of what it
//! sends. A session without such traces can go on elsewhere.
//!
//! Not here: tracked parameters, which are restored. Texts are not parsed: whatever is not known to
//! leave nothing counts as a trace, so that a session is clean only if it provably is, as far as
//! texts tell: what triggers and functions behind views do cannot be seen.

mod known;
mod tokens;

use crate::client::pipeline::words;
use crate::client::untracked;
use crate::params::Tracked;

use known::{introduces, is_harmless, is_known};
use tokens::{Token, tokens};

/// The traces of one session.
#[derive(Debug, Default)]
pub struct Traces {
    left: Option<Box<str>>,
    unnamed: Unnamed,
}

/// The unnamed statement of the extended protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Unnamed {
    /// There is none, or nobody needs it any more.
    #[default]
    Unused,
    /// It waits for its first Bind.
    Parsed,
    /// It was bound.
    Bound,
}

impl Traces {
    /// What was left, if anything was.
    pub fn left(&self) -> Option<&str> {
        let waits = self.unnamed == Unnamed::Parsed;
        self.left.as_deref().or(waits.then_some("a prepared statement"))
    }

    pub(super) fn query(&mut self, sql: &[u8], tracked: &Tracked) {
        self.unnamed = Unnamed::Unused;
        self.statements(sql, tracked);
    }

    pub(super) fn parse(&mut self, name: &[u8], sql: &[u8], tracked: &Tracked) {
        if name.is_empty() {
            self.unnamed = Unnamed::Parsed;
        } else {
            self.leave("a prepared statement");
        }
        self.statements(sql, tracked);
    }

    pub(super) fn bind(&mut self, statement: &[u8]) {
        match (statement, self.unnamed) {
            ([], Unnamed::Parsed) => self.unnamed = Unnamed::Bound,
            ([], Unnamed::Unused | Unnamed::Bound) => self.leave("an unnamed statement again"),
            ([_, ..], _) => {}
        }
    }

    /// Something was sent that cannot be looked at.
    pub(super) fn leave(&mut self, what: &str) {
        self.left.get_or_insert_with(|| what.into());
    }

    fn statements(&mut self, sql: &[u8], tracked: &Tracked) {
        if self.left.is_none()
            && let Some(trace) = trace(sql, tracked)
        {
            self.left = Some(trace);
        }
    }
}

/// What is not known to be harmless.
const STRANGE: &str = "a statement that cannot be judged";

/// The first trace of a text.
fn trace(sql: &[u8], tracked: &Tracked) -> Option<Box<str>> {
    let mut statement = Statement::default();
    for token in tokens(sql) {
        let found = match token {
            Token::Semicolon => {
                statement = Statement::default();
                None
            }
            Token::Strange => Some(STRANGE.into()),
            Token::Word(word, at) => {
                let name = Name { text: word, spelling: Spelling::Plain };
                let read = name.read();
                let begins = statement.first.text.is_empty();
                let found = if begins { begin(read.bytes(), &sql[at..], tracked) } else { None };
                let found = found.or_else(|| statement.within(read.bytes()));
                statement.word(name, begins);
                found
            }
            Token::Quoted(text) => {
                let temporary = text.starts_with(b"pg_temp");
                statement.word(Name { text, spelling: Spelling::Quoted }, false);
                temporary.then(|| "a temporary object".into())
            }
            Token::Open => statement.open(),
            Token::Dot => {
                statement.after = After::Dot;
                continue;
            }
            Token::Other => None,
        };
        if found.is_some() {
            return found;
        }
        if !matches!(token, Token::Word(..) | Token::Quoted(_)) {
            statement.name = Name::default();
        }
        statement.after = After::Anything;
    }
    None
}

/// A name or key word as it stands in the text.
#[derive(Clone, Copy, Default)]
struct Name<'a> {
    text: &'a [u8],
    spelling: Spelling,
}

impl Name<'_> {
    /// As the server reads it: in lower case, unless it stands in quotes.
    fn read(self) -> Read {
        let mut read = Read { bytes: [0; LONGEST], len: self.text.len().min(LONGEST) };
        let bytes = &mut read.bytes[..read.len];
        bytes.copy_from_slice(&self.text[..bytes.len()]);
        if self.spelling == Spelling::Plain {
            bytes.make_ascii_lowercase();
        }
        read
    }
}

/// A name as the server reads it, which ends it where it becomes too long.
struct Read {
    bytes: [u8; LONGEST],
    len: usize,
}

/// Longest name of a server.
const LONGEST: usize = 63;

impl Read {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A statement up to a token.
#[derive(Default)]
struct Statement<'a> {
    first: Name<'a>,
    /// The word in front of `name`.
    before: Name<'a>,
    /// The last name, if nothing has followed it.
    name: Name<'a>,
    schema: Name<'a>,
    after: After,
}

/// What the last token was.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum After {
    #[default]
    Anything,
    Dot,
}

/// How a name was written.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Spelling {
    #[default]
    Plain,
    Quoted,
}

impl<'a> Statement<'a> {
    fn word(&mut self, word: Name<'a>, begins: bool) {
        if begins {
            self.first = word;
        }
        if self.after == After::Dot {
            self.schema = std::mem::replace(&mut self.name, word);
        } else {
            self.schema = Name::default();
            self.before = std::mem::replace(&mut self.name, word);
        }
    }

    /// A word that leaves something wherever it stands.
    fn within(&self, word: &[u8]) -> Option<Box<str>> {
        match word {
            b"temp" | b"temporary" => Some("a temporary object".into()),
            b"hold" if self.first.read().bytes() == b"declare" => Some("a cursor WITH HOLD".into()),
            _ if word.starts_with(b"pg_temp") => Some("a temporary object".into()),
            _ => None,
        }
    }

    /// A parenthesis: a call, if a name is in front of it.
    fn open(&mut self) -> Option<Box<str>> {
        let (name, schema) = (std::mem::take(&mut self.name), std::mem::take(&mut self.schema));
        if self.first.text.is_empty() {
            // A SELECT in parentheses.
            self.first.text = b"(";
        }
        if name.text.is_empty() {
            return None;
        }
        let called = name.read();
        let plain = name.spelling == Spelling::Plain && schema.text.is_empty();
        let listed = || introduces(self.before.read().bytes(), self.first.read().bytes());
        if plain && is_known(called.bytes()) || listed() {
            return None;
        }
        let own = schema.text.is_empty() || schema.read().bytes() == b"pg_catalog";
        if own && is_harmless(called.bytes()) {
            return None;
        }
        Some(format!("the function {}", String::from_utf8_lossy(called.bytes())).into())
    }
}

/// What a statement that begins with this word leaves.
fn begin(word: &[u8], sql: &[u8], tracked: &Tracked) -> Option<Box<str>> {
    match word {
        b"set" => {
            let end = memchr::memchr(b';', sql).unwrap_or(sql.len());
            match untracked::set(&sql[..end]) {
                Some(name) if tracked.index(name.as_bytes()).is_some() => None,
                Some(name) => Some(format!("SET {name}").into()),
                None => {
                    let second = words(sql).nth(1).unwrap_or_default().to_ascii_lowercase();
                    let passes = matches!(&second[..], b"local" | b"transaction" | b"constraints");
                    // Something that is no name.
                    (!passes).then(|| "SET".into())
                }
            }
        }
        b"listen" => Some("LISTEN".into()),
        b"load" => Some("LOAD".into()),
        b"prepare" => {
            let second = words(sql).nth(1).unwrap_or_default();
            let two_phase = second.eq_ignore_ascii_case(b"transaction");
            (!two_phase).then(|| "PREPARE".into())
        }
        _ if known::begins(word) => None,
        _ => Some(STRANGE.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(sql: &str) -> Option<String> {
        let tracked = Tracked::new(&[]);
        trace(sql.as_bytes(), &tracked).map(String::from)
    }

    #[test]
    fn what_leaves_nothing() {
        for sql in [
            "",
            "select 1",
            "select count(*), max(a.b) from s.t where x in (1, 2) and (y = 'temp(' or z = $1)",
            "insert into t (a, b) values (1, now()) returning (a)",
            "SELECT LOWER(a), PG_CATALOG.\"lower\"(b) FROM t WHERE x IN (1) AND EXISTS (SELECT 1)",
            "INSERT INTO s.\"T\"(a) SELECT pg_catalog.lower(b) FROM u ON CONFLICT (a) DO NOTHING",
            "with x as (select 1) update t set a = (select 1), (b, c) = (1, 2)",
            "begin; insert into t values (1); commit",
            "set application_name = 'x'; set local work_mem = '1MB'",
            "prepare transaction 'x'",
            "declare c cursor for select 1; fetch 1 from c; close c",
            "create table if not exists t (a varchar(20) primary key, b numeric(1, 2))",
            "create index i on t (a, lower(b))",
            "copy t (a, b) from stdin",
            "(select 1) union (select 2)",
            "select $$ listen; pg_advisory_lock(1) $$, E'it\\'s (', 'a''b('",
            "select 1 -- listen(\n /* f( /* */ */",
            "select pg_advisory_xact_lock(1)",
            "discard all; reset all; unlisten *",
        ] {
            assert_eq!(of(sql), None, "{sql}");
        }
    }

    #[test]
    fn what_leaves_something() {
        for (sql, left) in [
            ("select 1; set work_mem = '1MB'", "SET work_mem"),
            ("set role x", "SET role"),
            ("set \"work_mem\" = '1GB'", "SET work_mem"),
            ("set session \"app.user\" = '1'", "SET app.user"),
            ("/* a */ LISTEN x", "LISTEN"),
            ("load 'x'", "LOAD"),
            ("prepare x as select 1", "PREPARE"),
            ("declare c cursor with hold for select 1", "a cursor WITH HOLD"),
            ("create temp table t (a int)", "a temporary object"),
            ("select 1 into TEMPORARY x", "a temporary object"),
            ("create table pg_temp.x (a int)", "a temporary object"),
            ("create table \"pg_temp_3\".x (a int)", "a temporary object"),
            ("select pg_advisory_lock(1)", "the function pg_advisory_lock"),
            ("select set_config('a.b', 'c', true)", "the function set_config"),
            ("select lastval()", "the function lastval"),
            ("select own.lower('x')", "the function lower"),
            ("select \"in\"(1)", "the function in"),
            ("select \"lower upper\"(1)", "the function lower upper"),
            ("select \"PG_CATALOG\".lower('x')", "the function lower"),
            ("SELECT \"Lower\"('x')", "the function Lower"),
            ("select a from t join u on f (b)", "the function f"),
            ("call p()", STRANGE),
            ("do 'x'", STRANGE),
            ("select 'a\\' || f(1) || '", STRANGE),
            ("select 'a", STRANGE),
            ("nonsense", STRANGE),
        ] {
            assert_eq!(of(sql).as_deref(), Some(left), "{sql}");
        }
    }

    #[test]
    fn statements_of_the_protocol() {
        let tracked = Tracked::new(&[]);
        let mut traces = Traces::default();
        traces.parse(b"", b"select 1", &tracked);
        assert!(traces.left().is_some(), "its Bind is to come");
        traces.bind(b"");
        assert_eq!(traces.left(), None);
        traces.bind(b"");
        assert!(traces.left().is_some());
        let mut traces = Traces::default();
        traces.parse(b"a", b"select 1", &tracked);
        assert!(traces.left().is_some());
    }

    proptest! {
        #[test]
        fn no_text_panics(
            sql in "[ -~é\n;'\"$]{0,60}|(select |;|'|\\$a\\$|--\n|/\\*|\\*/|f\\(){0,9}"
        ) {
            of(&sql);
        }
    }
}
