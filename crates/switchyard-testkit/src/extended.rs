//! Messages of the extended protocol, put together by hand: what is sent in one write, and what
//! comes back, message by message.

use std::io::{self, Read, Write};

use crate::Client;
use crate::client::{complaint, row};

/// Messages that are sent together.
#[derive(Clone, Debug, Default)]
pub struct Messages(Vec<u8>);

impl Messages {
    /// None yet.
    pub fn new() -> Self {
        Messages::default()
    }

    fn add(mut self, tag: u8, parts: &[&[u8]]) -> Self {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.0.push(tag);
        self.0.extend_from_slice(&(len as u32 + 4).to_be_bytes());
        parts.iter().for_each(|part| self.0.extend_from_slice(part));
        self
    }

    /// A simple query.
    pub fn query(self, sql: &[u8]) -> Self {
        self.add(b'Q', &[sql, b"\0"])
    }

    /// Parse without parameter types.
    pub fn parse(self, name: &str, sql: &str) -> Self {
        self.add(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
    }

    /// Bind without parameters, to the unnamed portal.
    pub fn bind(self, statement: &str) -> Self {
        self.add(b'B', &[b"\0", statement.as_bytes(), b"\0\0\0\0\0\0\0"])
    }

    /// Describe of a statement.
    pub fn describe(self, statement: &str) -> Self {
        self.add(b'D', &[b"S", statement.as_bytes(), b"\0"])
    }

    /// Close of a statement.
    pub fn close(self, statement: &str) -> Self {
        self.add(b'C', &[b"S", statement.as_bytes(), b"\0"])
    }

    /// Execute of the unnamed portal.
    pub fn execute(self) -> Self {
        self.add(b'E', &[b"\0\0\0\0\0"])
    }

    /// Sync.
    pub fn sync(self) -> Self {
        self.add(b'S', &[])
    }

    /// Their bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Client {
    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)
    }

    /// Sends messages and reads up to so many ReadyForQuery: one word a message, rows with their
    /// values, errors with SQLSTATE and text, ReadyForQuery with its status.
    pub fn exchange(&mut self, messages: &Messages, readies: usize) -> io::Result<Vec<String>> {
        self.send(messages.bytes())?;
        self.receive(readies)
    }

    /// Reads up to so many ReadyForQuery.
    pub fn receive(&mut self, readies: usize) -> io::Result<Vec<String>> {
        let (mut words, mut left) = (Vec::new(), readies);
        while left > 0 {
            let mut head = [0; 5];
            self.input.read_exact(&mut head)?;
            let [tag, a, b, c, d] = head;
            let len = u32::from_be_bytes([a, b, c, d]) as usize;
            let mut body = vec![0; len.saturating_sub(4)];
            self.input.read_exact(&mut body)?;
            words.push(match tag {
                b'E' => format!("E:{}", complaint(&body)),
                b'D' => format!("D:{}", row(&body)),
                b'Z' => format!("Z:{}", body.iter().map(|b| char::from(*b)).collect::<String>()),
                tag => char::from(tag).to_string(),
            });
            left -= usize::from(tag == b'Z');
        }
        Ok(words)
    }
}
