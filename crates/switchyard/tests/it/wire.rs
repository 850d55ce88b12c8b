//! A client that sends what it is told to, message by message.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use switchyard_wire::startup::VERSION_3_0;
use switchyard_wire::tag::frontend;
use switchyard_wire::{build, frame, read, transcript};

/// A connection.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    input: Vec<u8>,
    /// Body of BackendKeyData.
    pub(crate) key: Vec<u8>,
}

/// Nobody waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

impl Wire {
    /// Logs in as `postgres` on `database`; without a password.
    pub(crate) fn login(port: u16, database: &str) -> io::Result<Self> {
        Self::login_with(port, VERSION_3_0, &[("user", "postgres"), ("database", database)])
    }

    pub(crate) fn login_with(
        port: u16,
        version: u32,
        parameters: &[(&str, &str)],
    ) -> io::Result<Self> {
        let mut wire = Self::connect(port)?;
        let mut bytes = Vec::new();
        let pairs = parameters.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        build::startup(&mut bytes, version, pairs);
        wire.send(&bytes)?;
        loop {
            let (tag, body) = wire.message()?;
            match tag {
                b'K' => wire.key = body,
                b'Z' => return Ok(wire),
                b'E' => {
                    let text = read::field(&body, b'M').unwrap_or_default();
                    return Err(io::Error::other(String::from_utf8_lossy(text).into_owned()));
                }
                _ => {}
            }
        }
    }

    pub(crate) fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Wire { stream, input: Vec::new(), key: Vec::new() })
    }

    /// The same connection, for sending while this one reads.
    pub(crate) fn writer(&self) -> io::Result<Self> {
        Ok(Wire { stream: self.stream.try_clone()?, input: Vec::new(), key: Vec::new() })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next message.
    pub(crate) fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        loop {
            let split = frame::split(&self.input).map_err(|_| io::Error::other("a bad header"))?;
            if let Some((head, body, _)) = split {
                let message = (head.tag, body.to_vec());
                self.input.drain(..head.len);
                return Ok(message);
            }
            let mut bytes = [0; 16 * 1024];
            let count = self.stream.read(&mut bytes)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.input.extend_from_slice(&bytes[..count]);
        }
    }

    /// Messages up to so many ReadyForQuery or the end: types, rows, tags, SQLSTATEs and texts.
    pub(crate) fn answers(&mut self, ready: usize) -> io::Result<String> {
        let (mut shape, mut seen) = (Vec::new(), 0);
        while seen < ready {
            let (tag, body) = match self.message() {
                Ok(message) => message,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => {
                    shape.push("end".into());
                    break;
                }
            };
            seen += usize::from(tag == b'Z');
            shape.extend(transcript::summary(tag, &body));
        }
        Ok(shape.join(" "))
    }

    /// Sends messages, and reads up to as many ReadyForQuery as they ask for.
    pub(crate) fn ask(&mut self, messages: &[Message<'_>]) -> io::Result<String> {
        self.send(&bytes(messages))?;
        let asked = |m: &&Message<'_>| matches!(m, Message::Query(_) | Message::Sync);
        self.answers(messages.iter().filter(asked).count())
    }

    /// Ends the sending side.
    pub(crate) fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }
}

/// A message of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Message<'a> {
    Query(&'a str),
    /// Name and text.
    Parse(&'a str, &'a str),
    /// Statement, with text values.
    Bind(&'a str, &'a [&'a str]),
    Describe(&'a str),
    Execute,
    Close(&'a str),
    Sync,
    Flush,
    CopyData(&'a str),
    CopyDone,
}

pub(crate) fn bytes(messages: &[Message<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        match *message {
            Message::Query(sql) => build::query(&mut out, sql.as_bytes()),
            Message::Parse(name, sql) => {
                build::parse(&mut out, name.as_bytes(), sql.as_bytes(), &[0, 0]);
            }
            Message::Bind(name, values) => build::message(&mut out, frontend::BIND, |out| {
                build::cstr(out, b"");
                build::cstr(out, name.as_bytes());
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(&(values.len() as u16).to_be_bytes());
                for value in values {
                    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
                    out.extend_from_slice(value.as_bytes());
                }
                out.extend_from_slice(&[0, 0]);
            }),
            Message::Describe(name) => build::message(&mut out, frontend::DESCRIBE, |out| {
                out.push(b'S');
                build::cstr(out, name.as_bytes());
            }),
            Message::Execute => build::message(&mut out, frontend::EXECUTE, |out| {
                out.extend_from_slice(&[0; 5]);
            }),
            Message::Close(name) => build::close(&mut out, b'S', name.as_bytes()),
            Message::Sync => build::empty(&mut out, frontend::SYNC),
            Message::Flush => build::empty(&mut out, frontend::FLUSH),
            Message::CopyData(text) => build::message(&mut out, frontend::COPY_DATA, |out| {
                out.extend_from_slice(text.as_bytes());
            }),
            Message::CopyDone => build::empty(&mut out, frontend::COPY_DONE),
        }
    }
    out
}
