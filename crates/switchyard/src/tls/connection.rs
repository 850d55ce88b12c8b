//! The state of one TLS connection, around rustls' connections without buffers.
//!
//! Invariants: `input` holds at most the beginning of a record or of a handshake message; every
//! byte of plaintext is handed out once and in order; an idle connection owns no buffer.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{CertificateError, ClientConfig, CommonState, Error, ProtocolVersion};
use switchyard_io::{Recv, Stream};

use crate::tls::setup::Offer;
use crate::tls::{certificate, suites};

/// A TLS connection.
#[derive(Debug)]
pub struct Connection {
    side: Side,
    /// Received and not decrypted: the beginning of a record.
    input: Vec<u8>,
    /// Decrypted and not handed out: what did not fit into a reader's buffer.
    plain: Vec<u8>,
    /// To be sent before anything else.
    control: Vec<u8>,
    state: State,
    /// What a login over this connection may be bound to, where we showed the certificate.
    endpoint: Option<Arc<[u8]>>,
}

/// ```text
/// Shaking ──► Open ──► Closed
///    └──────────┴────► Broken
/// ```
#[derive(Debug)]
enum State {
    /// The handshake is under way.
    Shaking,
    /// Bytes flow; whether the last receive left some in the socket.
    Open(Rest),
    /// The peer has said that no more comes.
    Closed,
    /// It failed.
    Broken(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    None,
    Maybe,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Client(_) => "Client",
            Side::Server(_) => "Server",
        })
    }
}

/// How a handshake goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More bytes are needed.
    More,
    /// It is done.
    Done,
}

/// Plaintext of one record.
const RECORD_MAX: usize = 16 * 1024;
/// Buffers from this size on hold plaintext and ciphertext at once.
const ROOMY: usize = 3 * RECORD_MAX;
/// What a record adds to its plaintext, at most.
const OVERHEAD: usize = 64;
/// Bytes that may wait for the rest of a record or handshake message.
const INPUT_MAX: usize = 2 * RECORD_MAX;
/// The same during a handshake: rustls takes messages of 64 KiB.
const SHAKE_MAX: usize = 80 * 1024;

/// What came of one step of rustls.
enum Next {
    Again,
    Blocked,
    Open,
    Closed,
    Failed(Error),
}

/// Where a step's output goes.
struct Sink<'a> {
    front: &'a mut [u8],
    filled: usize,
    rest: &'a mut Vec<u8>,
    control: &'a mut Vec<u8>,
}

impl Sink<'_> {
    fn put(&mut self, payload: &[u8]) {
        let fits = if self.rest.is_empty() {
            payload.len().min(self.front.len() - self.filled)
        } else {
            0
        };
        self.front[self.filled..self.filled + fits].copy_from_slice(&payload[..fits]);
        self.filled += fits;
        self.rest.extend_from_slice(&payload[fits..]);
    }
}

/// Takes what rustls offers; answers how many bytes it has used.
fn digest<D>(status: UnbufferedStatus<'_, '_, D>, sink: &mut Sink<'_>) -> (usize, Next) {
    let UnbufferedStatus { mut discard, state } = status;
    let next = match state {
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    sink.put(record.payload);
                }
                Some(Err(error)) => break Next::Failed(error),
                None => break Next::Again,
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let start = sink.control.len();
            let mut size = 0;
            loop {
                sink.control.resize(start + size, 0);
                match data.encode(&mut sink.control[start..]) {
                    Ok(count) => {
                        sink.control.truncate(start + count);
                        break;
                    }
                    Err(EncodeError::InsufficientSize(error)) if error.required_size > size => {
                        size = error.required_size;
                    }
                    Err(_) => {
                        sink.control.truncate(start);
                        break;
                    }
                }
            }
            Next::Again
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Next::Again
        }
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Next::Closed,
        Ok(ConnectionState::BlockedHandshake) => Next::Blocked,
        Ok(ConnectionState::WriteTraffic(_)) => Next::Open,
        // No configuration of ours allows early data.
        Ok(_) => Next::Failed(Error::General("early data".into())),
        Err(error) => Next::Failed(error),
    };
    (discard, next)
}

/// Appends what `traffic` writes into the room that it is given.
fn write(
    mut traffic: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
    out: &mut Vec<u8>,
    mut size: usize,
) -> io::Result<()> {
    let start = out.len();
    loop {
        out.resize(start + size, 0);
        match traffic(&mut out[start..]) {
            Ok(count) => {
                out.truncate(start + count);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(error)) if error.required_size > size => {
                size = error.required_size;
            }
            Err(error) => {
                out.truncate(start);
                return Err(io::Error::other(error.to_string()));
            }
        }
    }
}

/// What is to be written.
#[derive(Clone, Copy)]
enum Outgoing<'a> {
    Data(&'a [u8]),
    CloseNotify,
}

impl Outgoing<'_> {
    fn write<D>(self, traffic: &mut WriteTraffic<'_, D>, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Outgoing::Data(bytes) => {
                let size = bytes.len() + (bytes.len() / RECORD_MAX + 1) * OVERHEAD;
                write(|room| traffic.encrypt(bytes, room), out, size)
            }
            Outgoing::CloseNotify => write(|room| traffic.queue_close_notify(room), out, OVERHEAD),
        }
    }
}

impl Side {
    fn common(&self) -> &CommonState {
        match self {
            Side::Client(client) => client,
            Side::Server(server) => server,
        }
    }

    fn step(&mut self, incoming: &mut [u8], sink: &mut Sink<'_>) -> (usize, Next) {
        match self {
            Side::Client(client) => digest(client.process_tls_records(incoming), sink),
            Side::Server(server) => digest(server.process_tls_records(incoming), sink),
        }
    }

    /// Writes if the connection is ready to; answers what else it wants otherwise.
    fn write(&mut self, what: Outgoing<'_>, out: &mut Vec<u8>, plain: &mut Vec<u8>) -> Written {
        fn go<D>(
            status: UnbufferedStatus<'_, '_, D>,
            what: Outgoing<'_>,
            sink: &mut Sink<'_>,
        ) -> Written {
            let UnbufferedStatus { discard, state } = status;
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    Written::Done(what.write(&mut traffic, sink.control))
                }
                state => match digest(UnbufferedStatus { discard, state }, sink).1 {
                    Next::Again => Written::Again,
                    Next::Closed => Written::Closed,
                    Next::Blocked | Next::Open => {
                        Written::Done(Err(io::Error::other("the handshake is not complete")))
                    }
                    Next::Failed(error) => Written::Done(Err(io::Error::other(error))),
                },
            }
        }
        let sink = &mut Sink { front: &mut [], filled: 0, rest: plain, control: out };
        match self {
            Side::Client(client) => go(client.process_tls_records(&mut []), what, sink),
            Side::Server(server) => go(server.process_tls_records(&mut []), what, sink),
        }
    }
}

enum Written {
    Done(io::Result<()>),
    Again,
    Closed,
}

impl Connection {
    /// The side that connects.
    pub(super) fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<Self> {
        let connection = UnbufferedClientConnection::new(config, name).map_err(io::Error::other)?;
        Ok(Connection::new(Side::Client(connection), Vec::new(), None))
    }

    /// The side that is connected to; `early` was received already.
    pub(super) fn server(offer: &Offer, early: &[u8]) -> io::Result<Self> {
        let config = Arc::clone(&offer.config);
        let connection = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        let endpoint = offer.endpoint.clone();
        Ok(Connection::new(Side::Server(connection), early.to_vec(), endpoint))
    }

    fn new(side: Side, input: Vec<u8>, endpoint: Option<Arc<[u8]>>) -> Self {
        let (plain, control) = (Vec::new(), Vec::new());
        Connection { side, input, plain, control, state: State::Shaking, endpoint }
    }

    /// Whether the handshake is under way.
    #[inline]
    pub(super) fn is_shaking(&self) -> bool {
        matches!(self.state, State::Shaking)
    }

    /// Whether the last receive has left nothing.
    #[inline]
    pub(super) fn is_drained(&self) -> bool {
        matches!(self.state, State::Open(Rest::None))
    }

    /// Version, cipher suite and group of the key exchange in OpenSSL's words.
    pub fn info(&self) -> String {
        let common = self.side.common();
        let version = if self.is_new() { "TLSv1.3" } else { "TLSv1.2" };
        let suite = common.negotiated_cipher_suite();
        let suite = suite.map_or("unknown", |suite| suites::suite_name(suite.suite()));
        let group = common.negotiated_key_exchange_group();
        let group = group.map_or("unknown", |group| suites::group_name(group.name()));
        format!("{version}/{suite}/ECDH={group}")
    }

    /// Whether it speaks TLS 1.3.
    pub fn is_new(&self) -> bool {
        self.side.common().protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// The names that the peer's verified certificate stands for; `None` without a certificate.
    pub fn peer_names(&self) -> Option<Vec<String>> {
        self.peer_certificate().map(|leaf| certificate::names(leaf))
    }

    /// What a login over this connection is bound to with `tls-server-end-point`.
    pub fn endpoint(&self) -> Option<Vec<u8>> {
        match &self.side {
            Side::Server(_) => self.endpoint.as_ref().map(|hash| hash.to_vec()),
            Side::Client(_) => certificate::endpoint(self.peer_certificate()?),
        }
    }

    fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.side.common().peer_certificates()?.first()
    }

    /// Adds received bytes of a handshake.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.input.len() + bytes.len() > SHAKE_MAX {
            return Err("handshake failed: message too large".into());
        }
        self.input.extend_from_slice(bytes);
        Ok(())
    }

    /// Goes on with a handshake as far as the received bytes lead.
    pub(super) fn shake(&mut self) -> Result<Progress, String> {
        let mut input = std::mem::take(&mut self.input);
        let (mut used, plain, control) = (0, &mut self.plain, &mut self.control);
        let mut sink = Sink { front: &mut [], filled: 0, rest: plain, control };
        let next = loop {
            let (count, next) = self.side.step(&mut input[used..], &mut sink);
            used += count;
            match next {
                Next::Again => {}
                Next::Blocked | Next::Open | Next::Closed | Next::Failed(_) => break next,
            }
        };
        if used < input.len() {
            input.drain(..used);
            self.input = input;
        }
        match next {
            Next::Failed(error) => {
                let text = format!("handshake failed: {}", describe(&error));
                self.fail(text.clone());
                Err(text)
            }
            Next::Closed => Err("handshake failed: closed by the peer".into()),
            _ if self.side.common().is_handshaking() => Ok(Progress::More),
            _ => {
                self.state = State::Open(Rest::Maybe);
                Ok(Progress::Done)
            }
        }
    }

    /// Remembers a failure and makes its alert ready to be sent.
    fn fail(&mut self, text: String) {
        let (plain, control) = (&mut self.plain, &mut self.control);
        let mut sink = Sink { front: &mut [], filled: 0, rest: plain, control };
        while let (_, Next::Again) = self.side.step(&mut [], &mut sink) {}
        self.state = State::Broken(text);
    }

    /// Receives, decrypts and hands out.
    pub(super) fn recv(&mut self, socket: &mut Stream, buf: &mut [u8]) -> Recv {
        if !self.plain.is_empty() {
            let count = self.plain.len().min(buf.len());
            buf[..count].copy_from_slice(&self.plain[..count]);
            self.plain.drain(..count);
            if self.plain.is_empty() {
                self.plain = Vec::new();
            }
            return Recv::Bytes(count);
        }
        match &self.state {
            State::Open(_) => {}
            State::Shaking => return Recv::Blocked,
            State::Closed => return Recv::Eof,
            State::Broken(text) => return Recv::Failed(io::Error::other(text.clone())),
        }
        if buf.len() >= ROOMY {
            return self.fill(socket, buf, None);
        }
        self.fill(socket, buf, Some(vec![0; ROOMY]))
    }

    /// Fills `buf` with plaintext. The ciphertext is received behind the room for one record's
    /// plaintext, which the plaintext can never overtake, or into a buffer of its own.
    fn fill(&mut self, socket: &mut Stream, buf: &mut [u8], mut own: Option<Vec<u8>>) -> Recv {
        loop {
            let start = if own.is_some() { 0 } else { RECORD_MAX };
            let room = own.as_deref_mut().unwrap_or(buf);
            let kept = start + self.input.len();
            room[start..kept].copy_from_slice(&self.input);
            let space = room.len() - kept;
            let count = match socket.recv(&mut room[kept..]) {
                Recv::Bytes(count) => count,
                other => return other,
            };
            self.state = State::Open(if count < space { Rest::None } else { Rest::Maybe });
            let (used, filled) = self.open(buf, own.as_deref_mut(), start..kept + count);
            let room = own.as_deref().unwrap_or(buf);
            let left = &room[used..kept + count];
            if left.len() > INPUT_MAX {
                self.fail("message too large".into());
            } else if left.is_empty() {
                self.input = Vec::new();
            } else {
                self.input.clear();
                self.input.extend_from_slice(left);
            }
            if filled > 0 {
                if !self.plain.is_empty() {
                    self.put_off();
                }
                return Recv::Bytes(filled);
            }
            match &self.state {
                State::Open(_) | State::Shaking => {}
                State::Closed => return Recv::Eof,
                State::Broken(text) => return Recv::Failed(io::Error::other(text.clone())),
            }
        }
    }

    fn put_off(&mut self) {
        if let State::Open(rest) = &mut self.state {
            *rest = Rest::Maybe;
        }
    }

    /// Decrypts `range` of `own`, or of `buf`; answers where it stopped and how many bytes of
    /// plaintext are in `buf`.
    fn open(
        &mut self,
        buf: &mut [u8],
        mut own: Option<&mut [u8]>,
        range: std::ops::Range<usize>,
    ) -> (usize, usize) {
        let (mut at, mut filled) = (range.start, 0);
        loop {
            let (front, incoming) = match own.as_deref_mut() {
                Some(own) => (&mut *buf, &mut own[at..range.end]),
                None => {
                    let (front, behind) = buf.split_at_mut(at);
                    (front, &mut behind[..range.end - at])
                }
            };
            let (rest, control) = (&mut self.plain, &mut self.control);
            let mut sink = Sink { front, filled, rest, control };
            let (count, next) = self.side.step(incoming, &mut sink);
            filled = sink.filled;
            at += count;
            match next {
                Next::Again => {}
                Next::Blocked | Next::Open => return (at, filled),
                Next::Closed => {
                    self.state = State::Closed;
                    return (at, filled);
                }
                Next::Failed(error) => {
                    self.fail(describe(&error));
                    return (at, filled);
                }
            }
        }
    }

    /// The records of `bytes`, behind what TLS itself has to say.
    pub(super) fn seal(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = self.unsent();
        self.write(Outgoing::Data(bytes), &mut out)?;
        Ok(out)
    }

    /// What TLS itself has to say.
    pub(super) fn unsent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.control)
    }

    /// A close_notify, if one can be sent, behind an alert that is due.
    pub(super) fn goodbye(&mut self) -> Vec<u8> {
        let mut out = self.unsent();
        if !matches!(self.state, State::Broken(_) | State::Shaking) {
            // Without it the peer is told by the end of the connection.
            let _ = self.write(Outgoing::CloseNotify, &mut out);
        }
        out
    }

    fn write(&mut self, what: Outgoing<'_>, out: &mut Vec<u8>) -> io::Result<()> {
        loop {
            match self.side.write(what, out, &mut self.plain) {
                Written::Done(result) => return result,
                Written::Again => {}
                Written::Closed if matches!(self.state, State::Closed) => {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                Written::Closed => self.state = State::Closed,
            }
        }
    }
}

/// The text of an error, with OpenSSL's words where programs look for them.
fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(cause) => {
            let cause = match cause {
                CertificateError::Expired => "certificate has expired".into(),
                CertificateError::NotValidYet => "certificate is not yet valid".into(),
                CertificateError::UnknownIssuer => "unable to get local issuer certificate".into(),
                CertificateError::Other(cause) => cause.0.to_string(),
                cause => cause.to_string(),
            };
            format!("certificate verify failed: {cause}")
        }
        error => error.to_string(),
    }
}
