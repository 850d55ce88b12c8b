//! A server that does what a script says, message by message: for answers that a real PostgreSQL
//! never gives, or gives once in a year.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::raw::Message;

/// Longest wait for a message.
const LONGEST: Duration = Duration::from_secs(60);

/// A listening server. It ends with this value; connections that are open go on.
#[derive(Debug)]
pub struct Model {
    /// TCP port.
    pub port: u16,
    address: String,
    accepted: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    errors: Arc<Mutex<Vec<String>>>,
}

/// One connection of a model server.
#[derive(Debug)]
pub struct Peer {
    /// Its number, from 0.
    pub number: usize,
    /// Parameters of its startup packet.
    pub startup: Vec<(String, String)>,
    stream: TcpStream,
}

impl Model {
    /// Listens on a port of 127.0.0.1; `script` plays each connection from its startup packet on.
    pub fn start(
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::start_at("127.0.0.1", 0, script)
    }

    /// The same at this address and port; 0 means any port.
    pub fn start_at(
        address: &str,
        port: u16,
        script: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((address, port))?;
        let model = Model {
            port: listener.local_addr()?.port(),
            address: address.to_owned(),
            accepted: Arc::default(),
            ended: Arc::default(),
            errors: Arc::default(),
        };
        let (accepted, ended) = (Arc::clone(&model.accepted), Arc::clone(&model.ended));
        let errors = Arc::clone(&model.errors);
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let (script, errors) = (Arc::clone(&script), Arc::clone(&errors));
                std::thread::spawn(move || {
                    let mut peer = Peer { number, startup: Vec::new(), stream };
                    let played = peer.greet().and_then(|()| script(&mut peer));
                    if let Err(error) = played {
                        let mut errors = errors.lock().unwrap_or_else(PoisonError::into_inner);
                        errors.push(format!("connection {number}: {error}"));
                    }
                });
            }
        });
        Ok(model)
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// How scripts have failed, the end of a connection included.
    pub fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; it may have ended by itself.
        let _ = TcpStream::connect((self.address.as_str(), self.port));
    }
}

impl Peer {
    /// Reads the startup packet; TLS is refused.
    fn greet(&mut self) -> io::Result<()> {
        self.stream.set_nodelay(true)?;
        self.stream.set_read_timeout(Some(LONGEST))?;
        loop {
            let mut head = [0; 8];
            self.stream.read_exact(&mut head)?;
            let number = |at: usize| {
                u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let (len, code) = (number(0) as usize, number(4));
            let mut body = vec![0; len.saturating_sub(8)];
            self.stream.read_exact(&mut body)?;
            match code {
                80_877_103 => self.raw(b"N")?,
                // A cancel request, which nobody answers.
                80_877_102 => return Err(io::Error::other("cancel request")),
                _ => {
                    let text = String::from_utf8_lossy(&body).into_owned();
                    let mut words = text.split('\0').map(str::to_owned);
                    while let (Some(name), Some(value)) = (words.next(), words.next()) {
                        self.startup.push((name, value));
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a message.
    pub fn send(&mut self, tag: char, body: &[u8]) -> io::Result<()> {
        let mut message = vec![tag as u8];
        message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(body);
        self.raw(&message)
    }

    /// Sends an authentication request.
    pub fn ask(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        self.send('R', &[&kind.to_be_bytes(), body].concat())
    }

    /// Sends an error with these fields: `SFATAL`, `C28P01`, `Mtext`.
    pub fn error(&mut self, fields: &[&str]) -> io::Result<()> {
        let mut body = Vec::new();
        for field in fields {
            body.extend_from_slice(field.as_bytes());
            body.push(0);
        }
        body.push(0);
        self.send('E', &body)
    }

    /// The next message; an end of the connection is an error.
    pub fn message(&mut self) -> io::Result<Message> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let [tag, a, b, c, d] = head;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let mut body = vec![0; len.saturating_sub(4)];
        self.stream.read_exact(&mut body)?;
        Ok((char::from(tag), body))
    }

    /// The end of a login that was accepted, up to ReadyForQuery.
    pub fn welcome(&mut self) -> io::Result<()> {
        self.ask(0, b"")?;
        for (name, value) in [
            ("server_version", "15.0"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO, MDY"),
            ("TimeZone", "UTC"),
            ("standard_conforming_strings", "on"),
            ("application_name", ""),
            ("IntervalStyle", "postgres"),
        ] {
            self.send('S', format!("{name}\0{value}\0").as_bytes())?;
        }
        self.send('K', &[0, 0, 0, 7, 1, 2, 3, 4])?;
        self.ready('I')
    }

    /// ReadyForQuery.
    pub fn ready(&mut self, status: char) -> io::Result<()> {
        self.send('Z', &[status as u8])
    }

    /// Answers every query with one row of this text, until the pooler leaves. BEGIN opens a
    /// transaction, COMMIT ends it.
    pub fn serve(&mut self, row: &str) -> io::Result<()> {
        let mut status = 'I';
        loop {
            let (tag, body) = match self.message() {
                Ok(message) => message,
                Err(_) => return Ok(()),
            };
            match &body[..] {
                b"begin\0" => status = 'T',
                b"commit\0" => status = 'I',
                _ => {}
            }
            match tag {
                'X' => return Ok(()),
                'Q' if body == b"\0" => self.send('I', b"")?,
                'Q' => self.row(row)?,
                _ => {}
            }
            if matches!(tag, 'Q' | 'S') {
                self.ready(status)?;
            }
        }
    }

    /// One row of one text column, and the end of its statement.
    pub fn row(&mut self, text: &str) -> io::Result<()> {
        let mut column = b"\0\x01column\0\0\0\0\0\0\0".to_vec();
        column.extend_from_slice(&25u32.to_be_bytes());
        column.extend_from_slice(b"\xff\xff\xff\xff\xff\xff\0\0");
        self.send('T', &column)?;
        let mut row = b"\0\x01".to_vec();
        row.extend_from_slice(&(text.len() as u32).to_be_bytes());
        row.extend_from_slice(text.as_bytes());
        self.send('D', &row)?;
        self.send('C', b"SELECT 1\0")
    }

    /// Lets the connection end with a reset when the script does.
    pub fn reset(&mut self) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))?)
    }

    /// Closes the connection.
    pub fn close(&mut self) -> io::Result<()> {
        // The pooler may have been faster.
        let _ = self.stream.shutdown(Shutdown::Both);
        Ok(())
    }
}
