//! Whether a connection comes from a process that runs the user's functions: such a connection is
//! never shown to the hooks, so that a function cannot wait for itself.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

/// Inodes of the sockets of a process.
fn sockets(pid: u32) -> HashSet<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return HashSet::new() };
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inode = |link: std::path::PathBuf| {
        let text = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
        text.parse().ok()
    };
    links.filter_map(inode).collect()
}

/// An address as /proc/net/tcp and tcp6 write it.
fn hexadecimal(address: SocketAddr) -> String {
    let words = |bytes: &[u8]| -> String {
        let word = |four: &[u8]| four.iter().rev().map(|byte| format!("{byte:02X}")).collect();
        bytes.chunks(4).map(word).collect::<Vec<String>>().concat()
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    };
    format!("{ip}:{:04X}", address.port())
}

/// The inode of the socket with these addresses in a table of the system.
fn inode(table: &str, own: SocketAddr, other: SocketAddr) -> Option<u64> {
    let (own, other) = (hexadecimal(own), hexadecimal(other));
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let found = fields.next() == Some(&own) && fields.next() == Some(&other);
        found.then(|| fields.nth(6)?.parse().ok())?
    })
}

/// Whether the peer of a TCP connection to `here` is a socket of one of these processes. Each of
/// them has `usual` sockets of its own to us.
pub fn owned_by(pids: &[u32], usual: usize, peer: SocketAddr, here: SocketAddr) -> bool {
    if !peer.ip().to_canonical().is_loopback() && peer.ip() != here.ip() {
        return false;
    }
    let inodes: Vec<HashSet<u64>> =
        pids.iter().map(|pid| sockets(*pid)).filter(|inodes| inodes.len() > usual).collect();
    if inodes.is_empty() {
        return false;
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), address.port()),
        IpAddr::V6(_) => address,
    };
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let read = |name: &str| fs::read_to_string(name).unwrap_or_default();
    let found = inode(&read("/proc/net/tcp"), plain(peer), plain(here))
        .or_else(|| inode(&read("/proc/net/tcp6"), mapped(peer), mapped(here)));
    found.is_some_and(|inode| inodes.iter().any(|own| own.contains(&inode)))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_owner_of_a_connection_is_found() -> std::io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, peer) = listener.accept()?;
        let here = server.local_addr()?;
        assert!(owned_by(&[std::process::id()], 0, peer, here));
        assert!(!owned_by(&[1], 0, peer, here));
        let elsewhere = SocketAddr::new(peer.ip(), client.local_addr()?.port().wrapping_add(1));
        assert!(!owned_by(&[std::process::id()], 0, elsewhere, here));
        Ok(())
    }
}
