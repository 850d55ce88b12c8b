//! Whether a client is inside a transaction block at a point of its message stream, also while
//! earlier messages are unanswered: by looking at the command word of what was sent.

use crate::server::link::Status;

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
        match Word::of(sql) {
            Word::Begin => Predicted::Opened,
            Word::End => Predicted::Closed,
            Word::Other => self,
        }
    }
}

/// What a statement does to a transaction block, judged by its first words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END, ROLLBACK, ABORT, without AND CHAIN or TO.
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
            ("select 1", Word::Other),
            ("/* open", Word::Other),
            ("", Word::Other),
        ] {
            assert_eq!(Word::of(sql.as_bytes()), word, "{sql}");
        }
    }

    #[test]
    fn predictions() {
        let opened = Predicted::AsReported.after(b"BEGIN").after(b"select 1");
        assert!(opened.in_transaction(Status::Idle));
        assert!(!opened.after(b"commit").in_transaction(Status::Block));
        assert!(Predicted::AsReported.in_transaction(Status::Failed));
    }
}
