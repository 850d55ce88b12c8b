//! Names, parentheses and semicolons of a text, outside strings and comments.

/// A token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A name or key word, and where it starts.
    Word(&'a [u8], usize),
    /// A name in quotes.
    Quoted(&'a [u8]),
    /// `(`.
    Open,
    /// `.`.
    Dot,
    /// `;`.
    Semicolon,
    /// Anything else but blanks and comments.
    Other,
    /// Something that may be read in two ways, or has no end.
    Strange,
}

/// The tokens of a text.
pub(super) fn tokens(sql: &[u8]) -> impl Iterator<Item = Token<'_>> {
    Tokens { sql, at: 0 }
}

struct Tokens<'a> {
    sql: &'a [u8],
    at: usize,
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let rest = self.rest();
            let first = *rest.first()?;
            if first.is_ascii_whitespace() {
                self.at += 1;
            } else if rest.starts_with(b"--") {
                self.at += memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            } else if rest.starts_with(b"/*") {
                if !self.skip_comment() {
                    return Some(Token::Strange);
                }
            } else {
                return Some(self.token(first));
            }
        }
    }
}

impl<'a> Tokens<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.sql[self.at..]
    }

    fn token(&mut self, first: u8) -> Token<'a> {
        let (start, rest) = (self.at, self.rest());
        match first {
            b'\'' => self.string(Escapes::Doubtful),
            b'"' => {
                let Some(end) = memchr::memchr(b'"', &rest[1..]) else { return self.strange() };
                self.at += end + 2;
                // A doubled quote inside makes two of one name, which changes nothing here.
                Token::Quoted(&rest[1..=end])
            }
            b'$' => self.dollar(),
            b'(' | b'.' | b';' => {
                self.at += 1;
                match first {
                    b'(' => Token::Open,
                    b'.' => Token::Dot,
                    _ => Token::Semicolon,
                }
            }
            _ if first.is_ascii_digit() => {
                let more = |b: &u8| !(is_name(*b) || *b == b'.');
                self.at += rest.iter().position(more).unwrap_or(rest.len());
                Token::Other
            }
            _ if is_name(first) => {
                let end = |b: &u8| !(is_name(*b) || *b == b'$');
                self.at += rest.iter().position(end).unwrap_or(rest.len());
                let word = &self.sql[start..self.at];
                let quoted = self.rest().first() == Some(&b'\'');
                match word {
                    b"e" | b"E" if quoted => self.string(Escapes::Known),
                    _ => Token::Word(word, start),
                }
            }
            _ => {
                self.at += 1;
                Token::Other
            }
        }
    }

    fn strange(&mut self) -> Token<'a> {
        self.at = self.sql.len();
        Token::Strange
    }

    /// A string from its opening quote on.
    fn string(&mut self, escapes: Escapes) -> Token<'a> {
        self.at += 1;
        while let Some(byte) = self.rest().first() {
            match (byte, escapes) {
                (b'\\', Escapes::Known) => self.at += 2,
                // The server may be set to read it as an escape.
                (b'\\', Escapes::Doubtful) => return self.strange(),
                (b'\'', _) => {
                    self.at += 1;
                    return Token::Other;
                }
                _ => self.at += 1,
            }
            if self.at > self.sql.len() {
                break;
            }
        }
        self.strange()
    }

    /// A string in dollar quotes, or a parameter.
    fn dollar(&mut self) -> Token<'a> {
        let rest = self.rest();
        let tag = rest[1..].iter().position(|b| !is_name(*b)).map_or(rest.len(), |at| at + 1);
        if rest.get(tag) != Some(&b'$') || rest.get(1).is_some_and(u8::is_ascii_digit) {
            self.at += tag;
            return Token::Other;
        }
        let (quote, body) = rest.split_at(tag + 1);
        match memchr::memmem::find(body, quote) {
            Some(end) => {
                self.at += quote.len() + end + quote.len();
                Token::Other
            }
            None => self.strange(),
        }
    }

    /// False if it has no end.
    fn skip_comment(&mut self) -> bool {
        let mut depth = 0usize;
        loop {
            let rest = self.rest();
            if rest.starts_with(b"/*") {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with(b"*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return true;
                }
            } else if rest.is_empty() {
                return false;
            } else {
                self.at += 1;
            }
        }
    }
}

/// Whether a backslash escapes in a string.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    Known,
    Doubtful,
}
