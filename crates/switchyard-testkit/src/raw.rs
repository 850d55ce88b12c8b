//! A connection whose every message the test sees: for what drivers hide.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest wait for a message.
const LONGEST: Duration = Duration::from_secs(60);

/// A message: its type and its body.
pub type Message = (char, Vec<u8>);

/// A connection.
#[derive(Debug)]
pub struct Raw {
    output: TcpStream,
    input: BufReader<TcpStream>,
    /// Everything up to the first ReadyForQuery.
    pub greeting: Vec<Message>,
}

impl Raw {
    /// Connects to 127.0.0.1 with these startup parameters, without a password.
    pub fn connect(port: u16, parameters: &[(&str, &str)]) -> io::Result<Self> {
        let output = TcpStream::connect(("127.0.0.1", port))?;
        output.set_nodelay(true)?;
        output.set_read_timeout(Some(LONGEST))?;
        let input = BufReader::new(output.try_clone()?);
        let mut body = b"\0\x03\0\0".to_vec();
        for text in parameters.iter().flat_map(|(name, value)| [name, value]) {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        body.push(0);
        let mut raw = Raw { output, input, greeting: Vec::new() };
        raw.output.write_all(&(body.len() as u32 + 4).to_be_bytes())?;
        raw.output.write_all(&body)?;
        raw.greeting = raw.answer()?;
        Ok(raw)
    }

    /// Connects to the console.
    pub fn console(port: u16, user: &str) -> io::Result<Self> {
        Raw::connect(port, &[("user", user), ("database", "pgbouncer")])
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)
    }

    /// Sends a message.
    pub fn send(&mut self, tag: char, body: &[u8]) -> io::Result<()> {
        let mut message = vec![tag as u8];
        message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(body);
        self.output.write_all(&message)
    }

    /// Begins a simple query.
    pub fn ask(&mut self, sql: &str) -> io::Result<()> {
        self.send('Q', format!("{sql}\0").as_bytes())
    }

    /// A simple query and its answer.
    pub fn query(&mut self, sql: &str) -> io::Result<Vec<Message>> {
        self.ask(sql)?;
        self.answer()
    }

    /// Reads up to ReadyForQuery, or up to the end of the connection.
    pub fn answer(&mut self) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        while let Some(message) = self.message()? {
            let ready = message.0 == 'Z';
            messages.push(message);
            if ready {
                break;
            }
        }
        Ok(messages)
    }

    /// The next message; `None` at the end of the connection.
    pub fn message(&mut self) -> io::Result<Option<Message>> {
        let mut head = [0; 5];
        match self.input.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(_) => return Ok(None),
        }
        let [tag, a, b, c, d] = head;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let mut body = vec![0; len.saturating_sub(4)];
        self.input.read_exact(&mut body)?;
        Ok(Some((char::from(tag), body)))
    }

    /// Asks for what this connection does to be cancelled, and waits until that was taken notice
    /// of.
    pub fn cancel(&self) -> io::Result<()> {
        let key = self.greeting.iter().find(|(tag, _)| *tag == 'K');
        let (_, key) = key.ok_or_else(|| io::Error::other("no cancel key"))?;
        let mut other = TcpStream::connect(self.output.peer_addr()?)?;
        let mut message = (key.len() as u32 + 8).to_be_bytes().to_vec();
        message.extend_from_slice(&80_877_102u32.to_be_bytes());
        message.extend_from_slice(key);
        other.write_all(&message)?;
        other.read_to_end(&mut Vec::new()).map(drop)
    }
}

/// Messages as lines, in short: rows with `|` between their columns, errors and notices with their
/// fields, columns with their types.
pub fn transcript(messages: &[Message]) -> String {
    let line = |(tag, body): &Message| match tag {
        'D' => format!("D {}\n", row(body)),
        'T' => format!("T {}\n", columns(body)),
        'E' | 'N' => format!("{tag} {}\n", fields(body)),
        _ => format!("{tag} {}\n", String::from_utf8_lossy(body).trim_end_matches('\0')),
    };
    messages.iter().map(line).collect()
}

/// Rows of an answer.
pub fn rows(messages: &[Message]) -> Vec<String> {
    messages.iter().filter(|(tag, _)| *tag == 'D').map(|(_, body)| row(body)).collect()
}

fn row(body: &[u8]) -> String {
    let mut values = Vec::new();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        let len = i32::from_be_bytes(*head);
        let (value, after) = tail.split_at(usize::try_from(len).unwrap_or(0).min(tail.len()));
        let null = len < 0;
        values.push(if null { "NULL".into() } else { String::from_utf8_lossy(value) });
        rest = after;
    }
    values.join("|")
}

fn columns(body: &[u8]) -> String {
    let mut found = Vec::new();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let (name, tail) = (&rest[..end], &rest[end + 1..]);
        let Some((head, after)) = tail.split_first_chunk::<18>() else { break };
        let [_, _, _, _, _, _, a, b, c, d, ..] = *head;
        let kind = u32::from_be_bytes([a, b, c, d]);
        found.push(format!("{}:{kind}", String::from_utf8_lossy(name)));
        rest = after;
    }
    found.join(" ")
}

fn fields(body: &[u8]) -> String {
    let fields = body.split(|byte| *byte == 0).filter(|field| !field.is_empty());
    let texts: Vec<_> = fields.map(|field| String::from_utf8_lossy(field)).collect();
    texts.join(" ")
}
