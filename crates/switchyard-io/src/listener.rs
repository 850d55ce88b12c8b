//! Listening sockets, TCP or unix.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::stream::{FailedStep, Stream, unix_address};
use crate::sys;

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

impl Peer {
    /// Its address, unless it has none.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Peer::Tcp(address) => Some(address.ip()),
            Peer::Unix { .. } => None,
        }
    }
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: Stream,
    /// Its other end.
    pub peer: Peer,
}

/// Longest time for which a connection without a byte stays unreported.
const DEFER_SECONDS: i32 = 45;

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
    pub fn tcp(
        address: SocketAddr,
        backlog: i32,
        sharing: PortSharing,
    ) -> Result<Listener, FailedStep> {
        let step = |name| move |error| FailedStep { name, error };
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP));
        let socket = socket.map_err(step("socket()"))?;
        if address.is_ipv6() {
            socket.set_only_v6(true).map_err(step("setsockopt(IPV6_V6ONLY)"))?;
        }
        socket.set_reuse_address(true).map_err(step("setsockopt(SO_REUSEADDR)"))?;
        let shared = sharing == PortSharing::Shared;
        socket.set_reuse_port(shared).map_err(step("setsockopt(SO_REUSEPORT)"))?;
        // Accepted sockets have the option from here, without a call of their own.
        socket.set_tcp_nodelay(true).map_err(step("setsockopt(TCP_NODELAY)"))?;
        socket.bind(&address.into()).map_err(step("bind()"))?;
        socket.listen(backlog).map_err(step("listen()"))?;
        socket.set_nonblocking(true).map_err(step("fcntl(O_NONBLOCK)"))?;
        Ok(Listener::Tcp(TcpListener::from_std(socket.into())))
    }

    /// Whether connections are reported with their first bytes only. Unix sockets have no such
    /// thing.
    pub fn set_defer_accept(&self, defer: bool) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => {
                sys::set_defer_accept(listener.as_fd(), if defer { DEFER_SECONDS } else { 0 })
            }
            Listener::Unix(_) => Ok(()),
        }
    }

    /// Whether the system probes connections accepted from now on when they are silent.
    pub fn set_keepalive(&self, keepalive: bool) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => SockRef::from(listener).set_keepalive(keepalive),
            Listener::Unix(_) => Ok(()),
        }
    }

    /// Another descriptor of a TCP listener, by which it can be shut from any thread; `None` for
    /// a unix socket.
    pub fn handle(&self) -> Option<OwnedFd> {
        match self {
            Listener::Tcp(listener) => listener.as_fd().try_clone_to_owned().ok(),
            Listener::Unix(_) => None,
        }
    }

    /// Listens on a unix socket path, or an abstract name that starts with `@`.
    pub fn unix(path: &str, backlog: i32) -> io::Result<Listener> {
        let listener = std::os::unix::net::UnixListener::bind_addr(&unix_address(path)?)?;
        // A second call changes the length of the queue.
        rustix::net::listen(&listener, backlog)?;
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
