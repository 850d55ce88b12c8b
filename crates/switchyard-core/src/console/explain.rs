//! `EXPLAIN ROUTE 'user', 'db', 'sql'`: what rules and functions would do with a message.

use crate::console::tables::{TableColumn, Type};

/// A question about routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainRoute {
    /// Who would ask.
    pub user: String,
    /// Logged in to what.
    pub database: String,
    /// The text of the message.
    pub query: String,
}

/// Columns of the answer.
pub const COLUMNS: &[TableColumn] = &[
    ("rewritten", Type::Text),
    ("dbkey", Type::Text),
    ("database", Type::Text),
    ("host", Type::Text),
    ("note", Type::Text),
];

/// Reads the command; `None` if the text is another one.
pub(super) fn parse(text: &str) -> Option<ExplainRoute> {
    let rest = word(text, "explain")?;
    let rest = word(rest, "route")?;
    let (user, rest) = quoted(rest)?;
    let (database, rest) = quoted(rest.trim_start().strip_prefix(',')?)?;
    let (query, rest) = quoted(rest.trim_start().strip_prefix(',')?)?;
    let rest = rest.trim_start();
    let rest = rest.strip_prefix(';').unwrap_or(rest);
    rest.trim_start().is_empty().then_some(ExplainRoute { user, database, query })
}

fn word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let text = text.trim_start();
    let head = text.get(..word.len()).filter(|head| head.eq_ignore_ascii_case(word))?;
    text[head.len()..].starts_with(char::is_whitespace).then_some(&text[head.len()..])
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.trim_start().strip_prefix('\'')?;
    let mut value = String::new();
    loop {
        let (part, tail) = rest.split_once('\'')?;
        value.push_str(part);
        match tail.strip_prefix('\'') {
            Some(tail) => {
                value.push('\'');
                rest = tail;
            }
            None => return Some((value, tail)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_texts() {
        let found = parse(" explain ROUTE 'a','b' , 'select ''x'', 1';\n").expect("a command");
        let ExplainRoute { user, database, query } = found;
        assert_eq!((&user[..], &database[..], &query[..]), ("a", "b", "select 'x', 1"));
        for wrong in ["explain route", "explain route 'a', 'b'", "explain route 'a','b','c' d"] {
            assert_eq!(parse(wrong), None);
        }
    }
}
