//! Connected sockets, TCP or unix: receive, send, options, addresses.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::{SockRef, TcpKeepalive};

use crate::listener::Inherited;

/// A connected or connecting socket.
#[derive(Debug)]
pub enum Stream {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

/// What a receive brought.
#[derive(Debug)]
pub enum Recv {
    /// That many bytes, at least one.
    Bytes(usize),
    /// Nothing there yet.
    Blocked,
    /// The peer will send nothing more.
    Eof,
    /// The connection failed.
    Failed(io::Error),
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Remote {
    /// An address and port.
    Tcp(SocketAddr),
    /// A path, or `@name` in the abstract namespace.
    Unix(String),
}

/// Options for accepted and outgoing sockets; zero means the operating system's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// SO_KEEPALIVE.
    pub keepalive: bool,
    /// TCP_KEEPIDLE in seconds.
    pub keepidle: u32,
    /// TCP_KEEPINTVL in seconds.
    pub keepintvl: u32,
    /// TCP_KEEPCNT.
    pub keepcnt: u32,
    /// TCP_USER_TIMEOUT in milliseconds.
    pub user_timeout: u32,
    /// SO_SNDBUF and SO_RCVBUF in bytes.
    pub buffer: usize,
    /// What happens over loopback.
    pub loopback: Loopback,
}

/// Congestion control of connections over loopback, where there is no path to be gentle with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loopback {
    /// As everywhere.
    #[default]
    AsUsual,
    /// Without pacing, for which BBR sets a timer at every send.
    Unpaced,
}

/// The algorithm that does not pace, and which every system has.
pub(crate) const UNPACED: &[u8] = b"reno";

impl Loopback {
    /// What suits the system's usual algorithm.
    pub fn suited() -> Self {
        let usual = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
        match usual {
            Ok(name) if name.starts_with("bbr") => Loopback::Unpaced,
            Ok(_) | Err(_) => Loopback::AsUsual,
        }
    }
}

/// A step of making or tuning a socket that failed.
#[derive(Debug)]
pub struct FailedStep {
    /// The call.
    pub name: &'static str,
    /// What the system said.
    pub error: io::Error,
}

impl Stream {
    /// Starts to connect; the outcome is known when the stream becomes writable.
    pub fn connect(remote: &Remote) -> io::Result<Stream> {
        match remote {
            Remote::Tcp(address) => {
                let stream = TcpStream::connect(*address)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Remote::Unix(path) => {
                let address = unix_address(path)?;
                let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(UnixStream::from_std(stream)))
            }
        }
    }

    /// Outcome of a connection attempt after the stream became writable.
    pub fn connected(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => match stream.take_error()? {
                Some(error) => Err(error),
                None => stream.peer_addr().map(drop),
            },
            Stream::Unix(_) => Ok(()),
        }
    }

    /// Receives once into `buf`.
    #[inline]
    pub fn recv(&mut self, buf: &mut [u8]) -> Recv {
        loop {
            let result = match self {
                Stream::Tcp(stream) => stream.read(buf),
                Stream::Unix(stream) => stream.read(buf),
            };
            return match result {
                Ok(0) => Recv::Eof,
                Ok(count) => Recv::Bytes(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Recv::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Recv::Failed(error),
            };
        }
    }

    /// Sends once; answers how many bytes were taken, 0 if there is no room.
    #[inline]
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Stream::Tcp(stream) => stream.write(bytes),
                Stream::Unix(stream) => stream.write(bytes),
            };
            return match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other,
            };
        }
    }

    /// Applies the options of an outgoing socket; unix sockets have none of them.
    pub fn set_options(&self, options: &SocketOptions) -> Result<(), FailedStep> {
        if let (Stream::Tcp(stream), true) = (self, options.keepalive) {
            let step = |error| FailedStep { name: "setsockopt/SO_KEEPALIVE", error };
            SockRef::from(stream).set_keepalive(true).map_err(step)?;
        }
        let peer = match self {
            Stream::Tcp(stream) => stream.peer_addr().ok().map(|address| address.ip()),
            Stream::Unix(_) => None,
        };
        self.set_rare_options(options, peer, Inherited::Nothing)
    }

    /// Applies what an accepted socket does not have from its listener.
    pub fn set_rare_options(
        &self,
        options: &SocketOptions,
        peer: Option<IpAddr>,
        inherited: Inherited,
    ) -> Result<(), FailedStep> {
        let Stream::Tcp(stream) = self else { return Ok(()) };
        let near = peer.is_some_and(|address| address.to_canonical().is_loopback());
        if near && inherited == Inherited::Nothing && options.loopback == Loopback::Unpaced {
            // Not every system allows it; the connection works either way.
            let _ = SockRef::from(stream).set_tcp_congestion(UNPACED);
        }
        let step = |name| move |error| FailedStep { name, error };
        let socket = SockRef::from(stream);
        if options.keepalive {
            if options.keepidle > 0 {
                let idle = Duration::from_secs(options.keepidle.into());
                let keepalive = TcpKeepalive::new().with_time(idle);
                socket.set_tcp_keepalive(&keepalive).map_err(step("setsockopt/TCP_KEEPIDLE"))?;
            }
            if options.keepintvl > 0 {
                let interval = Duration::from_secs(options.keepintvl.into());
                let keepalive = TcpKeepalive::new().with_interval(interval);
                socket.set_tcp_keepalive(&keepalive).map_err(step("setsockopt/TCP_KEEPINTVL"))?;
            }
            if options.keepcnt > 0 {
                let keepalive = TcpKeepalive::new().with_retries(options.keepcnt);
                socket.set_tcp_keepalive(&keepalive).map_err(step("setsockopt/TCP_KEEPCNT"))?;
            }
        }
        if options.user_timeout > 0 {
            let timeout = Some(Duration::from_millis(options.user_timeout.into()));
            socket.set_tcp_user_timeout(timeout).map_err(step("setsockopt/TCP_USER_TIMEOUT"))?;
        }
        if options.buffer > 0 {
            let step = step("setsockopt/SO_SNDBUF");
            socket.set_send_buffer_size(options.buffer).map_err(step)?;
            let step = |error| FailedStep { name: "setsockopt/SO_RCVBUF", error };
            socket.set_recv_buffer_size(options.buffer).map_err(step)?;
        }
        Ok(())
    }

    /// Number of its descriptor.
    pub fn number(&self) -> RawFd {
        match self {
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Unix(stream) => stream.as_raw_fd(),
        }
    }

    /// Stops sending, so that the peer sees an end behind the last byte.
    pub fn finish(&self) {
        // The peer may be gone already, which is an end as well.
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Own address of a TCP connection.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }
}

/// Address of a unix socket path; `@name` is abstract.
pub(crate) fn unix_address(path: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    match path.strip_prefix('@') {
        Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name),
        None => std::os::unix::net::SocketAddr::from_pathname(path),
    }
}

impl Source for Stream {
    fn register(&mut self, r: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.register(r, token, interests),
            Stream::Unix(stream) => stream.register(r, token, interests),
        }
    }

    fn reregister(&mut self, r: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.reregister(r, token, interests),
            Stream::Unix(stream) => stream.reregister(r, token, interests),
        }
    }

    fn deregister(&mut self, r: &Registry) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.deregister(r),
            Stream::Unix(stream) => stream.deregister(r),
        }
    }
}
