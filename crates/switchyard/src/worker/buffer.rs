//! Bytes that a socket did not take, and recycled buffers, so that idle connections own none.

use std::io;

use switchyard_io::Stream;

use crate::tls::Transport;

/// Bytes waiting for room in a socket.
#[derive(Debug, Default)]
pub struct Pending {
    bytes: Vec<u8>,
    sent: usize,
}

impl Pending {
    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Number of bytes that wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends `bytes` behind what waits already; what does not fit waits. What waits is what goes
    /// over the wire: with TLS, records that are sealed already.
    #[inline]
    pub fn send(&mut self, stream: &mut Transport, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match stream.seal(bytes)? {
            None => self.put(stream.socket(), bytes),
            Some(sealed) => self.put(stream.socket(), &sealed),
        }
    }

    /// Sends what TLS itself has to say.
    pub fn send_unsent(&mut self, stream: &mut Transport) -> io::Result<()> {
        let bytes = stream.unsent();
        self.put(stream.socket(), &bytes)
    }

    /// Sends the last word of TLS before a connection is closed, unless something waits: in the
    /// middle of a record it would not be understood.
    pub fn say_goodbye(&mut self, stream: &mut Transport) {
        if self.bytes.is_empty() {
            stream.say_goodbye();
        }
    }

    #[inline]
    fn put(&mut self, stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
        if self.bytes.is_empty() {
            let sent = stream.send(bytes)?;
            if sent < bytes.len() {
                self.bytes.extend_from_slice(&bytes[sent..]);
            }
        } else {
            self.bytes.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// The socket has room again.
    pub fn flush(&mut self, stream: &mut Transport) -> io::Result<()> {
        let stream = stream.socket();
        while self.sent < self.bytes.len() {
            let count = stream.send(&self.bytes[self.sent..])?;
            if count == 0 {
                return Ok(());
            }
            self.sent += count;
        }
        self.bytes = Vec::new();
        self.sent = 0;
        Ok(())
    }
}

/// Buffers of a worker that wait for their next use.
#[derive(Debug, Default)]
pub struct Spare(Vec<Vec<u8>>);

/// Buffers kept.
const SPARE_COUNT: usize = 256;
/// Largest buffer kept, in bytes.
pub const SPARE_SIZE: usize = 16 * 1024;

impl Spare {
    /// Puts `bytes` at the front of a connection's input, which is empty.
    pub fn keep(&mut self, input: &mut Vec<u8>, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if input.capacity() == 0 {
            *input = self.0.pop().unwrap_or_default();
        }
        input.extend_from_slice(bytes);
    }

    /// Number of buffers.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Takes back a buffer.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 && buffer.capacity() <= SPARE_SIZE && self.0.len() < SPARE_COUNT {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}
