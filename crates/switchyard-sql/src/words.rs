//! Words of a text outside strings, quoted names and comments: enough to see where a statement
//! ends and whether rows are locked, which the parser's summary does not tell. Where this cannot
//! be sure it says "more than one statement", which costs time only.

/// Whether nothing but blanks and comments follows the first `;`.
pub(crate) fn has_one_statement(sql: &str) -> bool {
    let mut ended = false;
    for token in Tokens(sql.as_bytes()) {
        match token {
            Token::Semicolon => ended = true,
            Token::Word(_) | Token::Other => {
                if ended {
                    return false;
                }
            }
        }
    }
    true
}

/// Whether there is a `FOR UPDATE`, `FOR SHARE`, `FOR NO KEY UPDATE` or `FOR KEY SHARE`.
pub(crate) fn locks_rows(sql: &str) -> bool {
    let mut after_for = false;
    for token in Tokens(sql.as_bytes()) {
        let Token::Word(word) = token else {
            after_for = false;
            continue;
        };
        let is = |other: &str| word.eq_ignore_ascii_case(other.as_bytes());
        if after_for && (is("update") || is("share") || is("no") || is("key")) {
            return true;
        }
        after_for = is("for");
    }
    false
}

enum Token<'a> {
    Word(&'a [u8]),
    Semicolon,
    Other,
}

struct Tokens<'a>(&'a [u8]);

impl<'a> Tokens<'a> {
    fn skip(&mut self, count: usize) {
        self.0 = self.0.get(count..).unwrap_or_default();
    }

    /// Skips to behind the next `end`, or to the end of the text.
    fn skip_past(&mut self, end: &[u8]) {
        let at = self.0.windows(end.len()).position(|window| window == end);
        self.skip(at.map_or(self.0.len(), |at| at + end.len()));
    }

    fn skip_comment(&mut self) {
        let mut depth = 0usize;
        while !self.0.is_empty() {
            if self.0.starts_with(b"/*") {
                depth += 1;
                self.skip(2);
            } else if self.0.starts_with(b"*/") {
                self.skip(2);
                depth -= 1;
                if depth == 0 {
                    return;
                }
            } else {
                self.skip(1);
            }
        }
    }

    /// Skips a string that knows backslashes, its opening quote included.
    fn skip_escaped(&mut self) {
        self.skip(1);
        while let [first, rest @ ..] = self.0 {
            match first {
                b'\\' => self.skip(2),
                b'\'' if rest.first() == Some(&b'\'') => self.skip(2),
                b'\'' => return self.skip(1),
                _ => self.skip(1),
            }
        }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let first = *self.0.first()?;
            if first.is_ascii_whitespace() {
                self.skip(1);
            } else if self.0.starts_with(b"--") {
                self.skip_past(b"\n");
            } else if self.0.starts_with(b"/*") {
                self.skip_comment();
            } else {
                break;
            }
        }
        let first = *self.0.first()?;
        let part_of_word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
        match first {
            b';' => {
                self.skip(1);
                return Some(Token::Semicolon);
            }
            b'\'' | b'"' => {
                self.skip(1);
                self.skip_past(&[first]);
            }
            b'$' => {
                let tag = self.0[1..].iter().position(|b| *b == b'$');
                let tag = tag.map(|end| &self.0[..end + 2]);
                match tag.filter(|tag| tag[1..tag.len() - 1].iter().all(part_of_word)) {
                    Some(tag) if !tag.get(1).is_some_and(u8::is_ascii_digit) => {
                        self.skip(tag.len());
                        self.skip_past(tag);
                    }
                    Some(_) | None => self.skip(1),
                }
            }
            _ if part_of_word(&first) => {
                let end = self.0.iter().position(|b| !part_of_word(b) && *b != b'$');
                let (word, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
                self.0 = rest;
                if word.eq_ignore_ascii_case(b"e") && rest.first() == Some(&b'\'') {
                    self.skip_escaped();
                    return Some(Token::Other);
                }
                return Some(Token::Word(word));
            }
            _ => self.skip(1),
        }
        Some(Token::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_statements() {
        for (sql, one) in [
            ("", true),
            ("select 1; ", true),
            ("select ';' ; -- ;\n/* ; /* ; */ ; */", true),
            ("select 1; select 2", false),
            ("select $a$ ; $a$, $1, E'\\';', \"a;b\"", true),
            ("select 1;;", true),
        ] {
            assert_eq!(has_one_statement(sql), one, "{sql}");
        }
    }
}
