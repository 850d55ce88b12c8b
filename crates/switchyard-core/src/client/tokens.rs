//! The tokens of SQL text, as far as they are needed to find names and literals in it: strings,
//! names in quotes and comments are told apart, with `standard_conforming_strings` on.
//!
//! Not here: grammar, numbers, operators of several characters.

use crate::client::pipeline::skip_blanks;

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// A word or number without quotes.
    Word(&'a [u8]),
    /// A name in double quotes.
    Name(Vec<u8>),
    /// A string, in whatever quotes; escapes with a backslash are left as they are.
    Text(Vec<u8>),
    /// Any other character.
    Mark(u8),
}

impl Token<'_> {
    /// Whether it is this keyword.
    pub fn is(&self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword.as_bytes()))
    }
}

/// The tokens of a text.
#[derive(Clone, Debug)]
pub struct Tokens<'a>(&'a [u8]);

impl<'a> Tokens<'a> {
    /// Those of this text.
    pub fn of(sql: &'a [u8]) -> Self {
        Tokens(sql)
    }

    fn cut(&mut self, at: usize) -> &'a [u8] {
        let (token, rest) = self.0.split_at(at.min(self.0.len()));
        self.0 = rest;
        token
    }

    /// What is between quotes; doubled ones stand for one.
    fn quoted(&mut self, quote: u8, backslash: bool) -> Vec<u8> {
        let mut text = Vec::new();
        let mut bytes = self.0.iter().copied().enumerate().skip(1).peekable();
        while let Some((at, byte)) = bytes.next() {
            if byte == quote && bytes.next_if(|(_, next)| *next == quote).is_none() {
                self.cut(at + 1);
                return text;
            }
            text.push(byte);
            if byte == b'\\' && backslash {
                text.extend(bytes.next().map(|(_, escaped)| escaped));
            }
        }
        self.0 = &[];
        text
    }

    /// A string in dollar quotes, if there is one.
    fn dollars(&mut self) -> Option<Vec<u8>> {
        let tag = self.0.iter().skip(1).position(|byte| *byte == b'$')? + 2;
        let (tag, rest) = self.0.split_at(tag);
        let name = tag.get(1..tag.len() - 1)?;
        if name.first().is_some_and(u8::is_ascii_digit) || !name.iter().copied().all(is_of_word) {
            return None;
        }
        let end = memchr::memmem::find(rest, tag);
        let text = rest.get(..end.unwrap_or(rest.len()))?.to_vec();
        self.0 = end.and_then(|end| rest.get(end + tag.len()..)).unwrap_or_default();
        Some(text)
    }
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.0 = skip_blanks(self.0);
        let first = *self.0.first()?;
        if is_of_word(first) {
            let end = self.0.iter().position(|byte| !is_of_word(*byte) && *byte != b'$');
            let word = self.cut(end.unwrap_or(self.0.len()));
            if word.eq_ignore_ascii_case(b"e") && self.0.first() == Some(&b'\'') {
                return Some(Token::Text(self.quoted(b'\'', true)));
            }
            return Some(Token::Word(word));
        }
        match first {
            b'\'' => Some(Token::Text(self.quoted(first, false))),
            b'"' => Some(Token::Name(self.quoted(first, false))),
            b'$' => match self.dollars() {
                Some(text) => Some(Token::Text(text)),
                None => Some(Token::Mark(self.cut(1)[0])),
            },
            _ => {
                self.cut(1);
                Some(Token::Mark(first))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts() {
        let text = |text: &str| Token::Text(text.into());
        let sql = b"a1 \"B\"\"c\" 'it''s;' E'x\\'y' $$;$$ $t$ $$ $t$ $1 /* ; */ .5 -- ;";
        let found: Vec<_> = Tokens::of(sql).collect();
        let expected = [
            Token::Word(b"a1"),
            Token::Name(b"B\"c".into()),
            text("it's;"),
            text("x\\'y"),
            text(";"),
            text(" $$ "),
            Token::Mark(b'$'),
            Token::Word(b"1"),
            Token::Mark(b'.'),
            Token::Word(b"5"),
        ];
        assert_eq!(found, expected);
        for open in ["'a", "\"a", "$$a", "$x$a$x", "E'\\", "/*"] {
            assert!(Tokens::of(open.as_bytes()).count() <= 1, "{open}");
        }
    }

    proptest! {
        #[test]
        fn any_text_comes_to_an_end(sql in "[a-e$'\"\\\\/*\\-;(é0 ]{0,40}") {
            prop_assert!(Tokens::of(sql.as_bytes()).count() <= sql.len());
        }
    }
}
