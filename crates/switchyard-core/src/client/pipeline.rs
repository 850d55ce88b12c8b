//! Whether a client is inside a transaction block at a point of its message stream, also while
//! earlier messages are unanswered: by looking at the command word of what was sent.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::server::link::Status;

/// Names remembered for one client.
const NAMES_MAX: usize = 1000;

/// What the unanswered messages of a client do to its transaction block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Predicted {
    /// Nothing: the last ReadyForQuery says it all.
    #[default]
    AsReported,
    /// They open a block.
    Opened,
    /// They close it.
    Closed,
}

impl Predicted {
    /// Whether the next message is inside a block.
    pub fn in_transaction(self, status: Status) -> bool {
        match self {
            Predicted::AsReported => status != Status::Idle,
            Predicted::Opened => true,
            Predicted::Closed => false,
        }
    }

    /// Takes a message with this query text into account.
    pub fn after(self, sql: &[u8]) -> Self {
        self.after_word(Word::of(sql))
    }

    /// The same for a statement whose word is known.
    pub fn after_word(self, word: Word) -> Self {
        match word {
            Word::Begin => Predicted::Opened,
            Word::End => Predicted::Closed,
            Word::Other => self,
        }
    }
}

/// A client's prepared statements that begin or end a block, by name: what they do is done when
/// they are bound, which may be long after their text was seen.
#[derive(Debug, Default)]
pub struct BlockStatements(Option<Box<ByName>>);

type ByName = HashMap<Box<[u8]>, Word, RandomState>;

impl BlockStatements {
    /// A Parse of this name has this text.
    pub fn define(&mut self, name: &[u8], sql: &[u8]) {
        match Word::of(sql) {
            Word::Other => self.remove(name),
            word => {
                let known = self.0.get_or_insert_default();
                if known.len() < NAMES_MAX || known.contains_key(name) {
                    known.insert(name.into(), word);
                }
            }
        }
    }

    /// A statement was closed.
    pub fn remove(&mut self, name: &[u8]) {
        if let Some(known) = &mut self.0 {
            known.remove(name);
        }
    }

    /// What the statement of this name does.
    pub fn word(&self, name: &[u8]) -> Word {
        let known = self.0.as_ref().and_then(|known| known.get(name).copied());
        known.unwrap_or(Word::Other)
    }
}

/// What a statement does to a transaction block, judged by its first words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END, ROLLBACK, ABORT, without AND CHAIN or TO; PREPARE TRANSACTION.
    End,
    /// Anything else.
    Other,
}

impl Word {
    /// The word that starts `sql`.
    pub fn of(sql: &[u8]) -> Word {
        let mut words = Words(sql);
        let first = words.next().unwrap_or_default();
        let is = |word: &str| first.eq_ignore_ascii_case(word.as_bytes());
        if is("begin") {
            return Word::Begin;
        }
        if is("start") {
            let second = words.next().unwrap_or_default();
            let begin = second.eq_ignore_ascii_case(b"transaction");
            return if begin { Word::Begin } else { Word::Other };
        }
        if is("prepare") {
            let second = words.next().unwrap_or_default();
            let ends = second.eq_ignore_ascii_case(b"transaction");
            return if ends { Word::End } else { Word::Other };
        }
        if !(is("commit") || is("end") || is("rollback") || is("abort")) {
            return Word::Other;
        }
        let rest: Vec<&[u8]> = words.take(4).collect();
        let has = |word: &str| rest.iter().any(|w| w.eq_ignore_ascii_case(word.as_bytes()));
        let chained = has("chain") && !has("no");
        if has("to") || has("prepared") || chained { Word::Other } else { Word::End }
    }
}

/// Words of a statement up to the first other character, comments and blanks skipped.
pub fn words(sql: &[u8]) -> impl Iterator<Item = &[u8]> {
    Words(sql)
}

/// Words of the first statement, comments and blanks skipped.
struct Words<'a>(&'a [u8]);

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.0 = skip_blanks(self.0);
        let end = self.0.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_');
        let (word, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }
}

/// Skips blanks, `--` comments and nested `/* */` comments.
pub(super) fn skip_blanks(mut sql: &[u8]) -> &[u8] {
    loop {
        let start = sql.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(sql.len());
        sql = &sql[start..];
        if sql.starts_with(b"--") {
            let end = sql.iter().position(|b| *b == b'\n').unwrap_or(sql.len());
            sql = &sql[end..];
        } else if sql.starts_with(b"/*") {
            sql = skip_comment(sql);
        } else {
            return sql;
        }
    }
}

fn skip_comment(sql: &[u8]) -> &[u8] {
    let (mut depth, mut at) = (0usize, 0usize);
    while at < sql.len() {
        if sql[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if sql[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return &sql[at..];
            }
        } else {
            at += 1;
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (sql, word) in [
            ("begin", Word::Begin),
            ("  -- x\n /* a /* b */ */ START  transaction read only", Word::Begin),
            ("start slave", Word::Other),
            ("COMMIT;", Word::End),
            ("end", Word::End),
            ("abort", Word::End),
            ("rollback to savepoint a", Word::Other),
            ("commit and chain", Word::Other),
            ("commit and no chain", Word::End),
            ("commit prepared 'x'", Word::Other),
            ("prepare transaction 'x'", Word::End),
            ("prepare x as select 1", Word::Other),
            ("select 1", Word::Other),
            ("/* open", Word::Other),
            ("", Word::Other),
        ] {
            assert_eq!(Word::of(sql.as_bytes()), word, "{sql}");
        }
    }

    #[test]
    fn prepared_statements() {
        let mut blocks = BlockStatements::default();
        assert_eq!(blocks.word(b"b"), Word::Other);
        blocks.define(b"b", b"begin");
        blocks.define(b"", b"commit");
        blocks.define(b"s", b"select 1");
        assert_eq!(
            [&b"b"[..], b"", b"s"].map(|name| blocks.word(name)),
            [Word::Begin, Word::End, Word::Other]
        );
        blocks.define(b"", b"select 1");
        blocks.remove(b"b");
        assert_eq!([&b"b"[..], b""].map(|name| blocks.word(name)), [Word::Other; 2]);
        for number in 0..2 * NAMES_MAX {
            blocks.define(number.to_string().as_bytes(), b"begin");
        }
        assert_eq!(blocks.word(b"7"), Word::Begin);
        assert_eq!(blocks.word((2 * NAMES_MAX - 1).to_string().as_bytes()), Word::Other);
    }

    #[test]
    fn predictions() {
        let opened = Predicted::AsReported.after(b"BEGIN").after(b"select 1");
        assert!(opened.in_transaction(Status::Idle));
        assert!(!opened.after(b"commit").in_transaction(Status::Block));
        assert!(Predicted::AsReported.in_transaction(Status::Failed));
        assert_eq!(opened.after_word(Word::End), Predicted::Closed);
        assert_eq!(opened.after_word(Word::Other), Predicted::Opened);
    }
}
