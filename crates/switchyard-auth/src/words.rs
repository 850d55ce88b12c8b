//! Words of the HBA and ident files: runs without blanks and commas, `"quoted"` ones with `""` for
//! a quote, commas, and `#` for the rest of a line. Words that touch each other are two.

/// What stands next in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A quoted word, which is never a keyword.
    Quoted(String),
    /// A bare word.
    Bare(String),
    /// A comma.
    Comma,
    /// A quote that does not end.
    Broken,
    /// Nothing.
    End,
}

impl Token {
    /// The number that PgBouncer's warnings give for a kind of token.
    pub(crate) fn number(&self) -> u8 {
        match self {
            Token::Quoted(_) => 0,
            Token::Bare(_) => 1,
            Token::Comma => 2,
            Token::Broken => 3,
            Token::End => 4,
        }
    }

    /// The word, quoted or not.
    pub(crate) fn word(self) -> Option<String> {
        match self {
            Token::Quoted(word) | Token::Bare(word) => Some(word),
            Token::Comma | Token::Broken | Token::End => None,
        }
    }
}

/// What is left of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    /// The words of a line.
    pub(crate) fn new(line: &'a str) -> Self {
        Words { rest: line }
    }

    /// The next token.
    pub(crate) fn next(&mut self) -> Token {
        self.rest = self.rest.trim_ascii_start();
        let Some(first) = self.rest.chars().next() else { return Token::End };
        match first {
            '#' => {
                self.rest = "";
                Token::End
            }
            ',' => {
                self.rest = &self.rest[1..];
                Token::Comma
            }
            '"' => self.quoted(),
            _ => {
                let stop = |c: char| c.is_ascii_whitespace() || matches!(c, ',' | '"' | '#');
                let end = self.rest.find(stop).unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at(end);
                self.rest = rest;
                Token::Bare(word.into())
            }
        }
    }

    /// The next token, which stays.
    pub(crate) fn peek(&self) -> Token {
        let mut ahead = *self;
        ahead.next()
    }

    /// The rest of the line as it stands there.
    pub(crate) fn rest(&self) -> &'a str {
        self.rest.trim_ascii()
    }

    fn quoted(&mut self) -> Token {
        let mut word = String::new();
        let mut rest = &self.rest[1..];
        loop {
            let Some(end) = rest.find('"') else {
                self.rest = "";
                return Token::Broken;
            };
            word.push_str(&rest[..end]);
            rest = &rest[end + 1..];
            match rest.strip_prefix('"') {
                Some(tail) => {
                    word.push('"');
                    rest = tail;
                }
                None => {
                    self.rest = rest;
                    return Token::Quoted(word);
                }
            }
        }
    }
}
