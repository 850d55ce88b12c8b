//! Connection strings: `key=value key='va''lue'`, and how their numbers are read.

use std::time::Duration;

use crate::value::Value as _;

/// Splits a connection string; `None` on a syntax error.
pub(crate) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, tail) = rest.split_once('=')?;
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        let tail = tail.trim_start();
        let (value, tail) = match tail.strip_prefix('\'') {
            Some(quoted) => quoted_value(quoted)?,
            None => {
                let end = tail.find(char::is_whitespace).unwrap_or(tail.len());
                (tail[..end].to_string(), &tail[end..])
            }
        };
        if value.is_empty() {
            return None;
        }
        pairs.push((key.to_string(), value));
        rest = tail.trim_start();
    }
    Some(pairs)
}

/// A value up to its closing quote; `''` and `\'` stand for a quote.
fn quoted_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' | '\'' if text[at + 1..].starts_with('\'') => {
                value.push('\'');
                chars.next();
            }
            '\'' => return Some((value, &text[at + 1..])),
            other => value.push(other),
        }
    }
    None
}

/// Reads the numbers of one entry as PgBouncer does, which takes the digits at the beginning and
/// nothing as 0, and remembers what was no number.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    pub(crate) warnings: Vec<String>,
}

impl Numbers {
    pub(crate) fn count(&mut self, key: &str, text: &str) -> i64 {
        if let Ok(number) = text.parse() {
            return number;
        }
        let digits = usize::from(text.starts_with(['-', '+']));
        let end = text[digits..].find(|c: char| !c.is_ascii_digit());
        let end = end.map_or(text.len(), |end| digits + end);
        let number = text[..end].parse().unwrap_or(0);
        self.warnings.push(format!("{key}={text} is not a number, read as {number}"));
        number
    }

    /// Seconds, or a time with a unit.
    pub(crate) fn seconds(&mut self, key: &str, text: &str) -> Duration {
        match Duration::parse(text) {
            Some(time) => time,
            None => Duration::from_secs(self.count(key, text).try_into().unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_lenient_and_say_so() {
        let mut numbers = Numbers::default();
        for (text, number) in [("20", 20), ("-1", -1), ("010", 10)] {
            assert_eq!(numbers.count("k", text), number);
        }
        assert!(numbers.warnings.is_empty());
        for (text, number) in [("20,", 20), ("x", 0), ("-", 0), ("-3é", -3), ("0x10", 0)] {
            assert_eq!(numbers.count("k", text), number);
        }
        assert_eq!(numbers.warnings[0], "k=20, is not a number, read as 20");
        assert_eq!(numbers.seconds("k", "2min").as_secs(), 120);
        assert_eq!(numbers.seconds("k", "7 apples").as_secs(), 7);
    }

    #[test]
    fn quotes_in_both_ways() {
        let text = r"topology_query='select f(\'x\')'  a = 'it''s' b=c";
        let expected = [("topology_query", "select f('x')"), ("a", "it's"), ("b", "c")];
        let expected = expected.map(|(key, value)| (key.to_string(), value.to_string()));
        assert_eq!(pairs(text), Some(expected.to_vec()));
        for bad in ["a", "a=", "a=''", "a='b", "=b", "a b=c", "a=b c"] {
            assert_eq!(pairs(bad), None, "{bad}");
        }
    }

    fn quoted(value: &str) -> String {
        format!("'{}'", value.replace('\'', "''"))
    }

    proptest! {
        #[test]
        fn quoted_values_come_back(
            pairs_in in proptest::collection::vec(("[a-z_]{1,8}", "[ -~é]{0,11}[a-zé]"), 0..6),
            blanks in "[ \t]{1,3}",
        ) {
            let text: Vec<String> =
                pairs_in.iter().map(|(key, value)| format!("{key} = {}", quoted(value))).collect();
            // A backslash before a quote is the other way to write a quote.
            let plain = pairs_in.iter().all(|(_, value)| !value.contains("\\'"));
            prop_assume!(plain);
            prop_assert_eq!(pairs(&text.join(&blanks)), Some(pairs_in));
        }

        #[test]
        fn no_text_panics(text in "[a-z='\\\\ é]{0,30}") {
            if let Some(found) = pairs(&text) {
                for (key, value) in found {
                    Numbers::default().seconds(&key, &value);
                }
            }
        }
    }
}
