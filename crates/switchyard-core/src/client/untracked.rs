//! Parameters that a client sets although nobody follows them: found by looking at the text of what
//! it sends.
//!
//! Not here: tracked parameters (`params`). Texts are cut into tokens, not parsed: a SET that fails
//! or is rolled back counts all the same. What functions do, but for `set_config`, is not seen.

use crate::client::session::Untracked;
use crate::client::tokens::{Token, Tokens};
use crate::params::Tracked;

/// What has to happen to a server because of what its client has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Nothing.
    Nothing,
    /// It was told.
    Told,
    /// It stays with this client.
    Pinned,
    /// [`FORGET`] has to run before its next client.
    ToForget,
}

/// What takes back all that SET can do to a session. Tracked parameters are reported as they
/// change, so that the next client finds its own.
pub const FORGET: &[u8] = b"SET SESSION AUTHORIZATION DEFAULT;RESET ALL";

impl Kept {
    /// What a first SET of a transaction leads to.
    pub fn after(untracked: Untracked) -> Kept {
        match untracked {
            Untracked::Ignore => Kept::Nothing,
            Untracked::Warn => Kept::Told,
            Untracked::Pin => Kept::Pinned,
            Untracked::Reset => Kept::ToForget,
        }
    }
}

/// The first untracked parameter that the statements of `sql` set beyond their transaction.
pub fn assigned(sql: &[u8], tracked: &Tracked) -> Option<String> {
    let untracked = |name: &String| tracked.index(name.as_bytes()).is_none();
    let mut tokens = Tokens::of(sql).peekable();
    while tokens.peek().is_some() {
        let statement = tokens.by_ref().take_while(|token| *token != Token::Mark(b';'));
        let statement: Vec<Token<'_>> = statement.collect();
        let mut names = set_by(&statement).into_iter().chain(set_config(&statement));
        if let Some(name) = names.find(untracked) {
            return Some(name);
        }
    }
    None
}

/// The parameter that a SET statement sets, in lower case.
pub(super) fn set(statement: &[u8]) -> Option<String> {
    // Names have at most two parts, and four words stand before them.
    set_by(&Tokens::of(statement).take(8).collect::<Vec<_>>())
}

fn set_by(statement: &[Token<'_>]) -> Option<String> {
    let (first, mut rest) = statement.split_first()?;
    if !first.is("set") {
        return None;
    }
    if rest.first()?.is("session") {
        rest = &rest[1..];
        for (word, name) in [
            ("characteristics", "default_transaction_isolation"),
            ("authorization", "session_authorization"),
        ] {
            if rest.first()?.is(word) {
                return Some(name.into());
            }
        }
    }
    let is = |word| rest.first().is_some_and(|token| token.is(word));
    // What is for the transaction alone.
    if ["local", "transaction", "constraints"].into_iter().any(is) {
        return None;
    }
    let others = [
        ("time", "timezone"),
        ("names", "client_encoding"),
        ("schema", "search_path"),
        ("xml", "xmloption"),
    ];
    if let Some((_, name)) = others.into_iter().find(|(word, _)| is(word)) {
        return Some(name.into());
    }
    let mut name = part(rest.first()?)?;
    if let [_, Token::Mark(b'.'), second, ..] = rest {
        name = [name, part(second)?].join(".");
    }
    (!PASSING.contains(&name.as_str())).then_some(name)
}

/// Parameters that are the transaction's in any case.
const PASSING: [&str; 3] =
    ["transaction_isolation", "transaction_read_only", "transaction_deferrable"];

/// Names of parameters do not depend on case, with quotes or without.
fn part(token: &Token<'_>) -> Option<String> {
    let bytes = match token {
        Token::Word(word) => word,
        Token::Name(name) => &name[..],
        Token::Text(_) | Token::Mark(_) => return None,
    };
    Some(String::from_utf8_lossy(bytes).to_ascii_lowercase())
}

/// The parameters that calls of `set_config` set, unless they say that it is for the transaction;
/// an empty name where it is not a literal.
fn set_config(statement: &[Token<'_>]) -> impl Iterator<Item = String> {
    let is_call = |pair: &[Token<'_>]| match pair {
        [Token::Name(name), Token::Mark(b'(')] => name == b"set_config",
        [word, Token::Mark(b'(')] => word.is("set_config"),
        _ => false,
    };
    let calls = (2..=statement.len()).filter(move |at| is_call(&statement[at - 2..*at]));
    calls.filter_map(|at| set_by_call(&statement[at..]))
}

fn set_by_call(arguments: &[Token<'_>]) -> Option<String> {
    let (mut depth, mut commas) = (0usize, 0usize);
    let mut last = arguments.iter().skip_while(|token| {
        match token {
            Token::Mark(b'(' | b'[') => depth += 1,
            Token::Mark(b')' | b']') => depth = depth.saturating_sub(1),
            Token::Mark(b',') if depth == 0 => commas += 1,
            _ => {}
        }
        commas < 2
    });
    let yes = |text: &[u8]| {
        ["true", "t", "yes", "y", "on", "1"]
            .iter()
            .any(|word| text.eq_ignore_ascii_case(word.as_bytes()))
    };
    let passes = match last.nth(1) {
        Some(Token::Word(word)) => yes(word),
        Some(Token::Text(text)) => yes(text),
        _ => false,
    };
    if passes {
        return None;
    }
    match arguments {
        [Token::Text(name), ..] => Some(String::from_utf8_lossy(name).to_ascii_lowercase()),
        _ => Some(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let tracked = Tracked::new(&[]);
        for (sql, name) in [
            ("select 1", None),
            ("SET work_mem = '1MB'", Some("work_mem")),
            ("set session Statement_Timeout to 5", Some("statement_timeout")),
            ("/* x */ select 1; -- y\n set search_path = a", Some("search_path")),
            ("set schema 'a'", Some("search_path")),
            ("set local work_mem = 1", None),
            ("set transaction read only", None),
            ("set session characteristics as transaction read only", {
                Some("default_transaction_isolation")
            }),
            ("set role x", Some("role")),
            ("set application_name = 'x'; set names 'utf8'; set time zone 'UTC'", None),
            ("select set_config('work_mem', '1MB', false)", Some("work_mem")),
            ("select set_config('work_mem', '1MB', true)", None),
            ("select pg_catalog.set_config('search_path', '', false);", Some("search_path")),
            ("update t set work_mem = 1", None),
            ("SET \"search_path\" TO a", Some("search_path")),
            ("set \"Work_Mem\" = 1", Some("work_mem")),
            ("set \"local\".x = 1", Some("local.x")),
            ("set my . \"Own\" to 1", Some("my.own")),
            ("set LOCAL \"search_path\" = a", None),
            ("SET SESSION \"application_name\" = 'x'", None),
            ("set transaction_read_only = on", None),
            ("set xml option document", Some("xmloption")),
            ("select '; set work_mem = 1'", None),
            ("select $$; set work_mem = 1$$; /* ; set a = 1 */", None),
            ("select 'set_config(''a'', ''b'', false)'", None),
            ("select \"set_config\"('Work_Mem', 'a;b', f(1, true))", Some("work_mem")),
            ("select set_config('a.b', concat('(', 'x', 'y'), true)", None),
            ("select set_config('a.b', '', 't'), set_config('c.d', '', 'false')", Some("c.d")),
            (
                "select set_config('application_name', '', false), set_config($1, $2, false)",
                Some(""),
            ),
            ("select set_config", None),
        ] {
            assert_eq!(assigned(sql.as_bytes(), &tracked).as_deref(), name, "{sql}");
        }
    }
}
