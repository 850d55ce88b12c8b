//! Parameters that a client sets although nobody follows them: found by looking at the text of what
//! it sends.
//!
//! Not here: tracked parameters (`params`). Texts are not parsed: a SET that fails or is rolled
//! back counts all the same, and one behind a semicolon within quotes is seen although it is none.
//! Functions that set parameters by other names than `set_config` are not seen.

use crate::client::session::Untracked;
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
    let statements = sql.split(|byte| *byte == b';');
    let set = statements.filter_map(set);
    let mut names = set.chain(set_config(sql));
    names.find(|name| tracked.index(name.as_bytes()).is_none())
}

/// The parameter that a SET statement sets, in lower case.
pub(super) fn set(statement: &[u8]) -> Option<String> {
    let mut words = crate::client::pipeline::words(statement);
    let mut next = || words.next().map(|word| String::from_utf8_lossy(word).to_ascii_lowercase());
    if next()? != "set" {
        return None;
    }
    let mut name = next()?;
    if name == "session" {
        name = match next()?.as_str() {
            "characteristics" => return Some("default_transaction_isolation".into()),
            "authorization" => return Some("session_authorization".into()),
            other => other.into(),
        };
    }
    match name.as_str() {
        "local" | "transaction" | "constraints" => None,
        "time" => Some("timezone".into()),
        "names" => Some("client_encoding".into()),
        "schema" => Some("search_path".into()),
        _ => Some(name),
    }
}

/// The parameter that a call of `set_config` sets, unless it says that it is for the transaction.
fn set_config(sql: &[u8]) -> Option<String> {
    const CALL: &[u8] = b"set_config";
    let at = sql.windows(CALL.len()).position(|window| window.eq_ignore_ascii_case(CALL))?;
    let rest = &sql[at + CALL.len()..];
    let end = rest.iter().position(|byte| *byte == b';').unwrap_or(rest.len());
    let lower = rest[..end].to_ascii_lowercase();
    if lower.windows(4).any(|window| window == b"true") {
        return None;
    }
    let mut quoted = lower.split(|byte| *byte == b'\'').skip(1);
    Some(quoted.next().map_or_else(String::new, |name| String::from_utf8_lossy(name).into_owned()))
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
        ] {
            assert_eq!(assigned(sql.as_bytes(), &tracked).as_deref(), name, "{sql}");
        }
    }
}
