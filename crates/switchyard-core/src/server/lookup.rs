//! auth_query on a server: the question for a user, and what the answer says.
//!
//! Nothing but the query is sent: what a client wants set must not act on it. Not here: which
//! server is asked, and what becomes of it. Texts are PgBouncer's.

use switchyard_wire::tag::{backend, frontend};
use switchyard_wire::{build, read};

/// A user that was found.
#[derive(Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name as the server spells it.
    pub user: String,
    /// Its secret; `None` if it cannot log in with one.
    pub secret: Option<Vec<u8>>,
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Found").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupError {
    /// The server refused: `SEVERITY: TEXT`.
    Server(String),
    /// The answer is not what was asked for; why.
    Answer(String),
}

/// What a message brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupStep {
    /// The answer goes on.
    More,
    /// It is complete and the server is free. `None`: there is no such user.
    Done(Option<Found>),
}

/// A question that was asked.
#[derive(Debug, Default)]
pub struct Lookup {
    found: Option<Found>,
}

fn answer<T>(text: impl Into<String>) -> Result<T, LookupError> {
    Err(LookupError::Answer(text.into()))
}

impl Lookup {
    /// Appends the question: `sql` with the user's name as its parameter.
    pub fn ask(sql: &str, user: &str, out: &mut Vec<u8>) -> Self {
        build::parse(out, b"", sql.as_bytes(), &[0, 0]);
        build::message(out, frontend::BIND, |out| {
            // Unnamed portal and statement; no formats; one parameter; no formats of results.
            out.extend_from_slice(&[0, 0, 0, 0, 0, 1]);
            out.extend_from_slice(&(user.len() as u32).to_be_bytes());
            out.extend_from_slice(user.as_bytes());
            out.extend_from_slice(&[0, 0]);
        });
        build::message(out, frontend::DESCRIBE, |out| out.extend_from_slice(b"P\0"));
        build::message(out, frontend::EXECUTE, |out| out.extend_from_slice(&[0; 5]));
        build::empty(out, frontend::SYNC);
        Lookup::default()
    }

    /// A message of the server, ParameterStatus and notices aside.
    pub fn handle_message(&mut self, tag: u8, body: &[u8]) -> Result<LookupStep, LookupError> {
        match tag {
            backend::PARSE_COMPLETE | backend::BIND_COMPLETE | backend::COMMAND_COMPLETE => {}
            backend::ROW_DESCRIPTION => {
                let count = body.first_chunk::<2>().map_or(0, |count| u16::from_be_bytes(*count));
                if count != 2 {
                    return answer(format!("expected 2 columns from auth_query, not {count}"));
                }
            }
            backend::NO_DATA => return answer("expected 2 columns from auth_query, not 0"),
            backend::DATA_ROW => self.row(body)?,
            backend::ERROR => {
                let field = |kind| String::from_utf8_lossy(read::field(body, kind).unwrap_or(b"?"));
                return Err(LookupError::Server(format!("{}: {}", field(b'S'), field(b'M'))));
            }
            backend::READY_FOR_QUERY if body == b"I" => {
                return Ok(LookupStep::Done(self.found.take()));
            }
            backend::READY_FOR_QUERY => return answer("auth_query left a transaction open"),
            _ => return answer("unknown pkt from server"),
        }
        Ok(LookupStep::More)
    }

    fn row(&mut self, body: &[u8]) -> Result<(), LookupError> {
        let mut columns = read::data_row(body);
        let (Some(user), Some(secret)) = (columns.next(), columns.next()) else {
            return answer("broken row from auth_query");
        };
        let Some(user) = user else {
            return answer("auth_query response contained null user name");
        };
        let user = String::from_utf8_lossy(user).into_owned();
        if user.is_empty() || user.len() >= USER_MAX {
            return answer("auth_query response contained a user name of wrong length");
        }
        if secret.is_some_and(|secret| secret.len() >= SECRET_MAX) {
            return answer("auth_query response contained a secret that is too long");
        }
        self.found.get_or_insert(Found { user, secret: secret.map(Vec::from) });
        Ok(())
    }
}

/// Lengths of a name and of a secret in bytes are below these.
const USER_MAX: usize = 128;
const SECRET_MAX: usize = 65_531;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use switchyard_wire::frame;

    type Row<'a> = [Option<&'a str>];

    fn messages(columns: usize, rows: &[&Row<'_>]) -> Vec<u8> {
        let mut out = Vec::new();
        build::empty(&mut out, backend::PARSE_COMPLETE);
        build::empty(&mut out, backend::BIND_COMPLETE);
        let column = build::Column { name: "c", oid: 25, len: -1, format: 0 };
        build::row_description(&mut out, vec![column; columns].into_iter());
        for row in rows {
            build::data_row(&mut out, row.iter().map(|value| value.map(str::as_bytes)));
        }
        build::command_complete(&mut out, "SELECT 1");
        build::ready_for_query(&mut out, b'I');
        out
    }

    fn run(mut bytes: &[u8]) -> Result<Option<Found>, LookupError> {
        let mut lookup = Lookup::default();
        while let Ok(Some((head, body, rest))) = frame::split(bytes) {
            if let LookupStep::Done(found) = lookup.handle_message(head.tag, body)? {
                return Ok(found);
            }
            bytes = rest;
        }
        answer("no end")
    }

    fn found(user: &str, secret: Option<&str>) -> Result<Option<Found>, LookupError> {
        Ok(Some(Found { user: user.into(), secret: secret.map(|text| text.into()) }))
    }

    #[test]
    fn answers() {
        assert_eq!(run(&messages(2, &[&[Some("u"), Some("s")]])), found("u", Some("s")));
        assert_eq!(run(&messages(2, &[&[Some("u"), None]])), found("u", None));
        assert_eq!(run(&messages(2, &[])), Ok(None));
        let two: [&Row<'_>; 2] = [&[Some("u"), Some("s")], &[Some("v"), Some("t")]];
        assert_eq!(run(&messages(2, &two)), found("u", Some("s")));
        let long = "x".repeat(65_530);
        assert_eq!(run(&messages(2, &[&[Some("u"), Some(&long)]])), found("u", Some(&long)));
    }

    #[test]
    fn answers_that_are_none() {
        let text = "expected 2 columns from auth_query, not 3";
        assert_eq!(run(&messages(3, &[])), answer(text));
        let text = "auth_query response contained null user name";
        assert_eq!(run(&messages(2, &[&[None, Some("s")]])), answer(text));
        assert!(run(&messages(2, &[&[Some("")], &[Some("u")]])).is_err());
        for wrong in ["x".repeat(65_531), "x".repeat(200_000)] {
            assert!(run(&messages(2, &[&[Some("u"), Some(&wrong)]])).is_err());
        }
        let mut out = Vec::new();
        let report =
            build::Report { severity: "ERROR", sqlstate: "42501", message: "no", detail: None };
        build::error_response(&mut out, report);
        assert_eq!(run(&out), Err(LookupError::Server("ERROR: no".into())));
        assert_eq!(run(b"E\0\0\0\x05\0"), Err(LookupError::Server("?: ?".into())));
    }

    #[test]
    fn the_user_is_a_parameter_of_the_query() {
        let mut out = Vec::new();
        Lookup::ask("select $1", "u';--", &mut out);
        let Ok(Some((_, parse, rest))) = frame::split(&out) else { panic!("a Parse") };
        assert_eq!(read::parse(parse).map(|parse| parse.sql), Some(&b"select $1"[..]));
        let Ok(Some((_, bind, _))) = frame::split(rest) else { panic!("a Bind") };
        assert_eq!(bind, b"\0\0\0\0\0\x01\0\0\0\x05u';--\0\0");
    }

    proptest! {
        #[test]
        fn no_message_panics(tag: u8, body in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut lookup = Lookup::default();
            for tag in [tag, b'T', b'D', b'E', b'Z'] {
                let _ = lookup.handle_message(tag, &body);
            }
        }
    }
}
