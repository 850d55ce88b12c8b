//! Listening sockets, TCP or unix.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use mio::event::Source;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::stream::{FailedStep, Loopback, Stream, UNPACED, unix_address};
use crate::sys;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP, and what of the options its connections have from it.
    Tcp(TcpListener, Inherited),
    /// Unix socket.
    Unix(UnixListener),
}

/// Whether connections have the congestion control of loopback from their listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// They do, because all of them come over loopback.
    Unpaced,
    /// They do not.
    Nothing,
}

/// Whether more connections wait at a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// None does. One that comes from now on is reported.
    Empty,
    /// Some do, or the system does not tell.
    Unclear,
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
    /// What it has from its listener.
    pub inherited: Inherited,
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
        let mut inherited = Inherited::Nothing;
        if address.ip().is_loopback() && Loopback::suited() == Loopback::Unpaced {
            // Not every system allows it; then each connection is asked for it, in vain.
            if socket.set_tcp_congestion(UNPACED).is_ok() {
                inherited = Inherited::Unpaced;
            }
        }
        Ok(Listener::Tcp(TcpListener::from_std(socket.into()), inherited))
    }

    /// Whether connections are reported with their first bytes only. Unix sockets have no such
    /// thing.
    pub fn set_defer_accept(&self, defer: bool) -> io::Result<()> {
        match self {
            Listener::Tcp(listener, _) => {
                sys::set_defer_accept(listener.as_fd(), if defer { DEFER_SECONDS } else { 0 })
            }
            Listener::Unix(_) => Ok(()),
        }
    }

    /// Whether the system probes connections accepted from now on when they are silent.
    pub fn set_keepalive(&self, keepalive: bool) -> io::Result<()> {
        match self {
            Listener::Tcp(listener, _) => SockRef::from(listener).set_keepalive(keepalive),
            Listener::Unix(_) => Ok(()),
        }
    }

    /// Number of the descriptor.
    pub fn number(&self) -> RawFd {
        match self {
            Listener::Tcp(listener, _) => listener.as_raw_fd(),
            Listener::Unix(listener) => listener.as_raw_fd(),
        }
    }

    /// Own address, if it has one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Listener::Tcp(listener, _) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        }
    }

    /// Another descriptor of a TCP listener, by which it can be shut from any thread; `None` for
    /// a unix socket.
    pub fn handle(&self) -> Option<OwnedFd> {
        match self {
            Listener::Tcp(listener, _) => listener.as_fd().try_clone_to_owned().ok(),
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
        loop {
            return match self.accept_once() {
                Ok(accepted) => Ok(Some(accepted)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                // The peer gave up between its connect and our accept; others may wait behind it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
        }
    }

    fn accept_once(&self) -> io::Result<Accepted> {
        match self {
            Listener::Tcp(listener, inherited) => {
                let (stream, address) = listener.accept()?;
                let (stream, peer) = (Stream::Tcp(stream), Peer::Tcp(address));
                Ok(Accepted { stream, peer, inherited: *inherited })
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                let credentials = rustix::net::sockopt::socket_peercred(&stream).ok();
                let pid = credentials.map_or(0, |c| c.pid.as_raw_nonzero().get() as u32);
                let uid = credentials.map_or(u32::MAX, |c| c.uid.as_raw());
                let peer = Peer::Unix { pid, uid };
                Ok(Accepted { stream: Stream::Unix(stream), peer, inherited: Inherited::Nothing })
            }
        }
    }

    /// Whether more connections wait. An accept that finds nothing makes a socket and takes it
    /// back, which costs several times this question.
    pub fn queue(&self) -> Queue {
        match self {
            Listener::Tcp(listener, _) if sys::waiting(listener.as_fd()) == Some(0) => Queue::Empty,
            Listener::Tcp(..) | Listener::Unix(_) => Queue::Unclear,
        }
    }
}

impl Source for Listener {
    fn register(&mut self, r: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Listener::Tcp(listener, _) => listener.register(r, token, interests),
            Listener::Unix(listener) => listener.register(r, token, interests),
        }
    }

    fn reregister(&mut self, r: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Listener::Tcp(listener, _) => listener.reregister(r, token, interests),
            Listener::Unix(listener) => listener.reregister(r, token, interests),
        }
    }

    fn deregister(&mut self, r: &Registry) -> io::Result<()> {
        match self {
            Listener::Tcp(listener, _) => listener.deregister(r),
            Listener::Unix(listener) => listener.deregister(r),
        }
    }
}
