//! Listening sockets, TCP or unix.

use std::io;
use std::net::SocketAddr;

use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::stream::{Stream, unix_address};

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix socket.
    Unix(UnixListener),
}

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Address and port.
    Tcp(SocketAddr),
    /// Process and user id of a unix peer, where the system tells.
    Unix {
        /// Process id, 0 if unknown.
        pid: u32,
        /// User id, `u32::MAX` if unknown.
        uid: u32,
    },
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: Stream,
    /// Its other end.
    pub peer: Peer,
}

/// Whether several sockets may listen on one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortSharing {
    /// Only this socket.
    Exclusive,
    /// SO_REUSEPORT.
    Shared,
}

impl Listener {
    /// Listens on an address. IPv6 sockets do not take IPv4 connections.
    pub fn tcp(address: SocketAddr, backlog: i32, sharing: PortSharing) -> io::Result<Listener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(sharing == PortSharing::Shared)?;
        socket.bind(&address.into())?;
        socket.listen(backlog)?;
        socket.set_nonblocking(true)?;
        Ok(Listener::Tcp(TcpListener::from_std(socket.into())))
    }

    /// Listens on a unix socket path, or an abstract name that starts with `@`.
    pub fn unix(path: &str) -> io::Result<Listener> {
        let listener = std::os::unix::net::UnixListener::bind_addr(&unix_address(path)?)?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Unix(UnixListener::from_std(listener)))
    }

    /// Accepts one connection; `None` when nobody waits.
    pub fn accept(&self) -> io::Result<Option<Accepted>> {
        let accepted = match self {
            Listener::Tcp(listener) => listener.accept().map(|(stream, address)| Accepted {
                stream: Stream::Tcp(stream),
                peer: Peer::Tcp(address),
            }),
            Listener::Unix(listener) => listener.accept().map(|(stream, _)| {
                let credentials = rustix::net::sockopt::socket_peercred(&stream).ok();
                let pid = credentials.map_or(0, |c| c.pid.as_raw_nonzero().get() as u32);
                let uid = credentials.map_or(u32::MAX, |c| c.uid.as_raw());
                Accepted { stream: Stream::Unix(stream), peer: Peer::Unix { pid, uid } }
            }),
        };
        match accepted {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The peer gave up between its connect and our accept.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Source for Listener {
    fn register(&mut self, r: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => listener.register(r, token, interests),
            Listener::Unix(listener) => listener.register(r, token, interests),
        }
    }

    fn reregister(&mut self, r: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => listener.reregister(r, token, interests),
            Listener::Unix(listener) => listener.reregister(r, token, interests),
        }
    }

    fn deregister(&mut self, r: &Registry) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => listener.deregister(r),
            Listener::Unix(listener) => listener.deregister(r),
        }
    }
}
