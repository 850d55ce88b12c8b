//! The connection of a client or server: a socket, with or without TLS on it.
//!
//! A plain one costs a look at a pointer. With TLS, what is received is decrypted in the reader's
//! own buffer, and what is sent is sealed as a whole, so that one batch stays one system call.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use switchyard_io::{Recv, Stream};

use crate::tls::connection::{Connection, Progress};
use crate::tls::setup::Offer;

/// A socket and what is spoken on it.
#[derive(Debug)]
pub struct Transport {
    socket: Stream,
    tls: Option<Box<Connection>>,
}

/// Where a handshake has got to.
#[derive(Debug)]
pub enum Shake {
    /// The other side has to go on.
    Waiting,
    /// Both sides are done.
    Done,
    /// The other side left without a word.
    Ended,
    /// It came to nothing.
    Failed(String),
}

impl From<Stream> for Transport {
    fn from(socket: Stream) -> Self {
        Transport { socket, tls: None }
    }
}

impl Transport {
    /// The socket, for watching it and for its options.
    pub fn socket(&mut self) -> &mut Stream {
        &mut self.socket
    }

    /// The socket, for questions.
    pub fn peek_socket(&self) -> &Stream {
        &self.socket
    }

    /// Whether a handshake is under way.
    #[inline]
    pub fn is_shaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_shaking())
    }

    /// The TLS connection, if it is one.
    pub fn tls(&self) -> Option<&Connection> {
        self.tls.as_deref()
    }

    /// Version, suite and group as in logs; empty without TLS.
    pub fn tls_info(&self) -> String {
        self.tls.as_ref().map(|tls| tls.info()).unwrap_or_default()
    }

    /// Begins a handshake as the side that was connected to. `early` was received already.
    pub fn answer_hello(&mut self, offer: &Offer, early: &[u8]) -> io::Result<()> {
        self.tls = Some(Box::new(Connection::server(offer, early)?));
        Ok(())
    }

    /// Begins a handshake as the side that connected.
    pub fn say_hello(
        &mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<()> {
        self.tls = Some(Box::new(Connection::client(config, name)?));
        Ok(())
    }

    /// Goes on with a handshake; `room` is for what is received. What has to be sent waits for
    /// [`Transport::unsent`].
    pub fn shake(&mut self, room: &mut [u8]) -> Shake {
        let Some(tls) = &mut self.tls else { return Shake::Done };
        loop {
            match tls.shake() {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => return Shake::Done,
                Err(text) => return Shake::Failed(text),
            }
            match self.socket.recv(room) {
                Recv::Bytes(count) => {
                    if let Err(text) = tls.feed(&room[..count]) {
                        return Shake::Failed(text);
                    }
                }
                Recv::Blocked => return Shake::Waiting,
                Recv::Eof | Recv::Failed(_) => return Shake::Ended,
            }
        }
    }

    /// Receives into `buf`.
    #[inline]
    pub fn recv(&mut self, buf: &mut [u8]) -> Recv {
        match &mut self.tls {
            None => self.socket.recv(buf),
            Some(tls) => tls.recv(&mut self.socket, buf),
        }
    }

    /// Whether the last [`Transport::recv`], which brought `count` bytes for `room`, left nothing.
    #[inline]
    pub fn is_drained(&self, count: usize, room: usize) -> bool {
        match &self.tls {
            None => count < room,
            Some(tls) => tls.is_drained(),
        }
    }

    /// What has to go over the wire for `bytes`; `None` means the bytes themselves.
    #[inline]
    pub fn seal(&mut self, bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match &mut self.tls {
            None => Ok(None),
            Some(tls) => tls.seal(bytes).map(Some),
        }
    }

    /// What TLS itself has to say: parts of a handshake, alerts.
    pub fn unsent(&mut self) -> Vec<u8> {
        self.tls.as_mut().map(|tls| tls.unsent()).unwrap_or_default()
    }

    /// The last word of TLS before the connection is closed; lost if there is no room for it.
    pub fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            let bytes = tls.goodbye();
            // The peer may be gone, and is told by the end of the connection otherwise.
            let _ = self.socket.send(&bytes);
        }
    }
}
