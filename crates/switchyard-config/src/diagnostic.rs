//! What the reader of a configuration has to say, with the place in the file.
//!
//! Passwords are blotted out before anything of a file is kept for showing.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where something stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// File.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// The line's text, without passwords.
    pub source: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What follows from something that was found in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can, but it is hardly what was meant.
    Warning,
    /// It can, and one line of it undoes another.
    Advice,
    /// A setting does nothing here.
    Ignored,
    /// Something works here that does not work, or works less well, in PgBouncer.
    Better,
}

/// Something found in a file. Shows as PgBouncer's text, and where the place is known as a second
/// line with the column and a third and fourth with the line and a caret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What follows from it.
    pub severity: Severity,
    /// PgBouncer's text where it has one.
    pub text: String,
    place: Option<(Place, usize)>,
}

impl Diagnostic {
    /// Without a place.
    pub(crate) fn bare(severity: Severity, text: impl Into<String>) -> Self {
        Diagnostic { severity, text: text.into(), place: None }
    }

    /// At a byte of a line.
    pub(crate) fn at(severity: Severity, text: String, place: &Place, byte: usize) -> Self {
        let before = place.source.char_indices().take_while(|(at, _)| *at < byte);
        Diagnostic { severity, text, place: Some((place.clone(), before.count())) }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if let Some((place, column)) = &self.place {
            let pad = " ".repeat(*column);
            write!(f, "\n{place}:{}\n{}\n{pad}^", column + 1, place.source)?;
        }
        Ok(())
    }
}

/// The system's own words for an error, without its number.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.into(),
        None => text,
    }
}

/// A line with the values of its passwords blotted out, whether or not its syntax is right.
pub(crate) fn blot(line: &str) -> String {
    const WORD: &str = "password";
    let mut clean = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(WORD) {
        let (before, tail) = rest.split_at(at + WORD.len());
        clean.push_str(before);
        rest = tail;
        let value = tail.trim_start();
        let Some(value) = value.strip_prefix('=') else { continue };
        let value = value.trim_start();
        clean.push_str(&tail[..tail.len() - value.len()]);
        rest = past_value(value);
        if rest.len() < value.len() {
            clean.push_str("***");
        }
    }
    clean.push_str(rest);
    clean
}

/// What follows a value that may be quoted, or broken.
fn past_value(text: &str) -> &str {
    let Some(quoted) = text.strip_prefix('\'') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return &text[end..];
    };
    let mut rest = quoted;
    while let Some(at) = rest.find(['\\', '\'']) {
        let (found, tail) = (&rest[at..], &rest[at + 1..]);
        rest = match tail.strip_prefix('\'') {
            Some(tail) => tail,
            None if found.starts_with('\'') => return tail,
            None => tail,
        };
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn passwords_are_blotted_out() {
        for (line, clean) in [
            ("d = host=a password=b port=c", "d = host=a password=*** port=c"),
            ("password = 'b''c d\\'e' x", "password = *** x"),
            ("probe_password=b password=", "probe_password=*** password="),
            ("password='never closed", "password=***"),
            ("password_encryption = 1", "password_encryption = 1"),
            ("password='é' x", "password=*** x"),
        ] {
            assert_eq!(blot(line), clean);
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "(password|[ ='\\\\aé]){0,20}") {
            blot(&line);
        }
    }
}
