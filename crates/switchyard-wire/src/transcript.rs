//! Conversations as text: what clients send and what they are answered, in a form that people read
//! and that several poolers can be held to.
//!
//! ```text
//! # What this is about.
//! with default_pool_size = 1
//! skip pgbouncer it does not follow prepared statements
//! a> Parse s select 1
//! a> Sync
//! a< 1 ZI
//! a<pgbouncer 1 ZI
//! ```
//! Lines with `>` send a message; those of one client up to the next line that is none go out
//! together. Lines with `<` say what comes back, up to as many ReadyForQuery as they name, or to
//! the end of the connection if they end with `end`; one with a name holds for that pooler instead.
//! Not here: who runs them.

use std::fmt::Write;

use crate::tag::{backend, frontend};
use crate::{build, read};

/// A conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// Lines for the pooler's configuration.
    pub settings: Vec<String>,
    /// Poolers that are not held to it, and why.
    pub skips: Vec<(String, String)>,
    /// What happens, in order.
    pub turns: Vec<Turn>,
}

/// One step of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// This client sends these bytes.
    Send(String, Vec<u8>),
    /// This client is answered.
    Expect(String, Expected),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Line of the text, for messages.
    pub line: usize,
    text: String,
    others: Vec<(String, String)>,
}

impl Expected {
    /// What this pooler is expected to answer.
    pub fn of(&self, pooler: &str) -> &str {
        let own = self.others.iter().find(|(name, _)| name == pooler);
        own.map_or(&self.text, |(_, text)| text)
    }
}

/// How far an answer reaches: so many ReadyForQuery, or the end of the connection.
pub fn reach(text: &str) -> Option<usize> {
    let words = || text.split(' ');
    let ends = words().next_back() == Some("end");
    (!ends).then(|| words().filter(|word| matches!(*word, "ZI" | "ZT" | "ZE")).count())
}

impl Transcript {
    /// Reads a text; the error names its line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut transcript = Transcript::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if !line.is_empty() && !line.starts_with('#') {
                let wrong = |what| format!("line {}: {what}: {line}", index + 1);
                transcript.line(index + 1, line).map_err(wrong)?;
            }
        }
        Ok(transcript)
    }

    /// Why a pooler is not held to this, if it is not.
    pub fn skipped(&self, pooler: &str) -> Option<&str> {
        let skip = self.skips.iter().find(|(name, _)| name == pooler);
        skip.map(|(_, reason)| reason.as_str())
    }

    fn line(&mut self, number: usize, line: &str) -> Result<(), &'static str> {
        let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
        match head {
            "with" => {
                self.settings.push(rest.into());
                return Ok(());
            }
            "skip" => {
                let (name, reason) = rest.split_once(' ').ok_or("a reason is missing")?;
                self.skips.push((name.into(), reason.into()));
                return Ok(());
            }
            _ => {}
        }
        if let Some(client) = head.strip_suffix('>') {
            match self.turns.last_mut() {
                Some(Turn::Send(last, bytes)) if last == client => message(bytes, rest)?,
                _ => {
                    let mut bytes = Vec::new();
                    message(&mut bytes, rest)?;
                    self.turns.push(Turn::Send(client.into(), bytes));
                }
            }
            return Ok(());
        }
        let (client, pooler) = head.split_once('<').ok_or("neither < nor >")?;
        if pooler.is_empty() {
            let (text, others) = (rest.into(), Vec::new());
            let expected = Expected { line: number, text, others };
            self.turns.push(Turn::Expect(client.into(), expected));
            return Ok(());
        }
        match self.turns.last_mut() {
            Some(Turn::Expect(last, expected)) if last == client => {
                expected.others.push((pooler.into(), rest.into()));
                Ok(())
            }
            _ => Err("an answer of one pooler follows that of all others"),
        }
    }
}

/// Appends the message that a line describes.
fn message(out: &mut Vec<u8>, line: &str) -> Result<(), &'static str> {
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (word, more) = rest.split_once(' ').unwrap_or((rest, ""));
    let name = if word == "-" { "" } else { word }.as_bytes();
    match kind {
        "Query" => build::query(out, rest.as_bytes()),
        "Parse" => build::parse(out, name, more.as_bytes(), &[0, 0]),
        "Bind" => {
            let values = || more.split(' ').filter(|value| !value.is_empty());
            build::message(out, frontend::BIND, |out| {
                build::cstr(out, b"");
                build::cstr(out, name);
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(&(values().count() as u16).to_be_bytes());
                for value in values() {
                    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
                    out.extend_from_slice(value.as_bytes());
                }
                out.extend_from_slice(&[0, 0]);
            });
        }
        "Describe" => build::message(out, frontend::DESCRIBE, |out| {
            out.push(b'S');
            build::cstr(out, name);
        }),
        "Execute" => build::message(out, frontend::EXECUTE, |out| out.extend([0; 5])),
        "Close" => build::close(out, b'S', name),
        "Sync" => build::empty(out, frontend::SYNC),
        "Flush" => build::empty(out, frontend::FLUSH),
        "Data" => build::message(out, frontend::COPY_DATA, |out| {
            out.extend_from_slice(rest.as_bytes());
            out.push(b'\n');
        }),
        "Done" => build::empty(out, frontend::COPY_DONE),
        "Fail" => build::message(out, frontend::COPY_FAIL, |out| build::cstr(out, rest.as_bytes())),
        "Terminate" => build::empty(out, frontend::TERMINATE),
        _ => return Err("no such message"),
    }
    Ok(())
}

/// One message of a server as a word or two: its type, a row's values, a command's tag, an error's
/// SQLSTATE and text, the status of ReadyForQuery. What comes at any time is `None`.
pub fn summary(tag: u8, body: &[u8]) -> Option<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let field = |kind| text(read::field(body, kind).unwrap_or_default());
    Some(match tag {
        backend::ERROR => format!("{} {}", field(b'C'), field(b'M')),
        backend::COMMAND_COMPLETE => text(read::cstr(body).map_or(body, |(text, _)| text)),
        backend::DATA_ROW => {
            let mut row = String::from("<");
            for (index, value) in read::data_row(body).enumerate() {
                let comma = if index > 0 { "," } else { "" };
                let _ = write!(row, "{comma}{}", text(value.unwrap_or_default()));
            }
            row + ">"
        }
        backend::READY_FOR_QUERY => format!("Z{}", text(body)),
        backend::PARAMETER_STATUS | backend::NOTICE => return None,
        tag => char::from(tag).to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation() {
        let text = "# About.\nwith pool_mode = session\nskip core it is too small\n\
                    a> Parse - select $1\na> Sync\na< 1 ZI\na<other ZI\n\
                    b> Query x\nb< 1 ZT ZE end\n";
        let read = Transcript::parse(text).expect("a transcript");
        assert_eq!(read.settings, ["pool_mode = session"]);
        assert_eq!((read.skipped("core"), read.skipped("other")), (Some("it is too small"), None));
        let mut sent = Vec::new();
        build::parse(&mut sent, b"", b"select $1", &[0, 0]);
        build::empty(&mut sent, frontend::SYNC);
        assert_eq!(read.turns[0], Turn::Send("a".into(), sent));
        let Turn::Expect(client, expected) = &read.turns[1] else { panic!("an answer") };
        assert_eq!((client.as_str(), expected.line), ("a", 6));
        assert_eq!((expected.of("core"), expected.of("other")), ("1 ZI", "ZI"));
        assert_eq!((reach("1 ZT ZE"), reach("1 ZT end"), reach("<ZI>")), (Some(2), None, Some(0)));
    }

    #[test]
    fn wrong_lines_are_named() {
        for line in ["a Query", "a> Qury x", "skip core", "a<other ZI"] {
            let error = Transcript::parse(&format!("\n{line}")).expect_err("it is wrong");
            assert!(error.starts_with("line 2: "), "{error}");
        }
    }

    #[test]
    fn summaries() {
        let mut out = Vec::new();
        let report =
            build::Report { severity: "ERROR", sqlstate: "22012", message: "no", detail: None };
        build::error_response(&mut out, report);
        build::data_row(&mut out, [Some(&b"1"[..]), None].into_iter());
        build::command_complete(&mut out, "SELECT 1");
        build::parameter_status(&mut out, b"a", b"b");
        build::ready_for_query(&mut out, b'T');
        let (mut rest, mut words) = (&out[..], Vec::new());
        while let Ok(Some((head, body, tail))) = crate::frame::split(rest) {
            words.extend(summary(head.tag, body));
            rest = tail;
        }
        assert_eq!(words, ["22012 no", "<1,>", "SELECT 1", "ZT"]);
    }
}
