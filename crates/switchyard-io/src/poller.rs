//! One worker's readiness loop on mio. Edge-triggered: whoever is told *readable* reads until a
//! short read or remembers that there is more.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use crate::inbox::Inbox;
use crate::listener::Listener;
use crate::stream::Stream;

/// What one source is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The token given at registration.
    pub token: u64,
    /// Bytes, connections or an end are there to be read.
    pub readable: bool,
    /// There is room to write again, or a connection attempt ended.
    pub writable: bool,
    /// The peer closed its sending side or the connection failed.
    pub closed: bool,
}

/// A poll and its events.
#[derive(Debug)]
pub struct Poller {
    poll: Poll,
    events: Events,
}

/// What a stream is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Input only: the usual state. Watching for output as well would wake the loop each time a
    /// unix peer reads.
    Input,
    /// Input and room for output.
    Both,
}

impl Watch {
    fn interest(self) -> Interest {
        match self {
            Watch::Input => Interest::READABLE,
            Watch::Both => Interest::READABLE | Interest::WRITABLE,
        }
    }
}

/// Token of the wake-up of a worker's inbox.
pub const WAKE: u64 = u64::MAX;

/// Registry of a worker's poll that other threads may use to take a stream away from it.
#[derive(Clone, Debug)]
pub struct RemoteRegistry(Arc<Registry>);

impl RemoteRegistry {
    /// Stops watching `stream`.
    pub fn deregister(&self, stream: &mut Stream) -> io::Result<()> {
        self.0.deregister(stream)
    }
}

impl Poller {
    /// A poll that reports at most `capacity` events a turn.
    pub fn new(capacity: usize) -> io::Result<Self> {
        Ok(Poller { poll: Poll::new()?, events: Events::with_capacity(capacity) })
    }

    /// An inbox whose messages wake this poll with the token [`WAKE`].
    pub fn inbox<M>(&self) -> io::Result<Inbox<M>> {
        Ok(Inbox::new(Waker::new(self.poll.registry(), Token(WAKE as usize))?))
    }

    /// A handle for other threads.
    pub fn remote(&self) -> io::Result<RemoteRegistry> {
        Ok(RemoteRegistry(Arc::new(self.poll.registry().try_clone()?)))
    }

    /// Watches a stream.
    pub fn register(&self, stream: &mut Stream, token: u64, watch: Watch) -> io::Result<()> {
        self.poll.registry().register(stream, Token(token as usize), watch.interest())
    }

    /// Changes what a stream is watched for; what is ready already is reported again.
    pub fn reregister(&self, stream: &mut Stream, token: u64, watch: Watch) -> io::Result<()> {
        self.poll.registry().reregister(stream, Token(token as usize), watch.interest())
    }

    /// Stops watching a stream.
    pub fn deregister(&self, stream: &mut Stream) -> io::Result<()> {
        self.poll.registry().deregister(stream)
    }

    /// Watches a listening socket.
    pub fn register_listener(&self, listener: &mut Listener, token: u64) -> io::Result<()> {
        self.poll.registry().register(listener, Token(token as usize), Interest::READABLE)
    }

    /// Stops watching a listening socket.
    pub fn deregister_listener(&self, listener: &mut Listener) -> io::Result<()> {
        self.poll.registry().deregister(listener)
    }

    /// Watches a descriptor owned elsewhere for input.
    pub fn register_fd(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&fd), Token(token as usize), Interest::READABLE)
    }

    /// Watches a descriptor owned elsewhere for input and room for output.
    pub fn register_fd_both(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&fd), Token(token as usize), interest)
    }

    /// Stops watching a descriptor owned elsewhere.
    pub fn deregister_fd(&self, fd: RawFd) -> io::Result<()> {
        self.poll.registry().deregister(&mut SourceFd(&fd))
    }

    /// Waits up to `timeout` (for ever if `None`) and appends what is ready to `ready`.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        ready.extend(self.events.iter().map(|event| Ready {
            token: event.token().0 as u64,
            readable: event.is_readable() || event.is_read_closed() || event.is_error(),
            writable: event.is_writable() || event.is_error(),
            closed: event.is_read_closed() || event.is_error(),
        }));
        Ok(())
    }
}
