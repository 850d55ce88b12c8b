//! A port of this machine that leads to another one, which may change: what an alias in the name
//! service is to a host.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Copies between whoever connects and a port on 127.0.0.1, until the process ends.
#[derive(Debug)]
pub struct Forward {
    target: Arc<AtomicU16>,
}

impl Forward {
    /// Begins to lead connections that the listener takes to this port.
    pub fn new(listener: TcpListener, target: u16) -> Self {
        let forward = Forward { target: Arc::new(AtomicU16::new(target)) };
        let target = Arc::clone(&forward.target);
        std::thread::spawn(move || {
            for incoming in listener.incoming().flatten() {
                // Who cannot be led on is closed.
                let _ = join(incoming, target.load(Ordering::Relaxed));
            }
        });
        forward
    }

    /// New connections lead to this port; those that are open stay where they are.
    pub fn lead(&self, target: u16) {
        self.target.store(target, Ordering::Relaxed);
    }
}

fn join(incoming: TcpStream, target: u16) -> io::Result<()> {
    let outgoing = TcpStream::connect(("127.0.0.1", target))?;
    incoming.set_nodelay(true)?;
    outgoing.set_nodelay(true)?;
    let (from, to) = (incoming.try_clone()?, outgoing.try_clone()?);
    std::thread::spawn(move || copy(incoming, to));
    std::thread::spawn(move || copy(outgoing, from));
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // The other side may be gone already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
