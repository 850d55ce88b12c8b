//! A network namespace of its own for servers: packets to and from them can be dropped without a
//! word, as a firewall or a dead host does. Needs root, `ip` and `nft`.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::process::Command;

use crate::run;

/// A namespace with addresses that are reached from outside.
#[derive(Debug)]
pub struct Space {
    name: String,
    link: String,
    prefix: String,
}

/// Addresses in a namespace.
const ADDRESSES: std::ops::Range<u8> = 10..13;

impl Space {
    /// Makes one. Without the rights or the programs for it there is an error that says so.
    pub fn new() -> io::Result<Self> {
        // Several tests of one process run at once: each has a namespace of its own.
        let id = RandomState::new().build_hasher().finish() % 10_000_000;
        let name = format!("switchyard{id}");
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let space = Space {
            name,
            link: format!("sy{id}"),
            prefix: format!("10.{}.{}", 100 + id % 100, id / 100 % 250),
        };
        let (name, link, prefix) = (&space.name, &space.link, &space.prefix);
        let inside = format!("{link}i");
        let ip = |arguments: &str| run(Command::new("ip").args(arguments.split(' '))).map(drop);
        ip(&format!("link add {link} type veth peer name {inside} netns {name}"))?;
        ip(&format!("addr add {prefix}.1/24 dev {link}"))?;
        ip(&format!("link set {link} up"))?;
        for address in ADDRESSES {
            ip(&format!("-n {name} addr add {prefix}.{address}/24 dev {inside}"))?;
        }
        ip(&format!("-n {name} link set {inside} up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        for rule in [
            "add table inet holes",
            "add chain inet holes incoming { type filter hook input priority 0 ; }",
            "add chain inet holes outgoing { type filter hook output priority 0 ; }",
        ] {
            space.filter(rule)?;
        }
        Ok(space)
    }

    /// Addresses of its servers.
    pub fn addresses(&self) -> Vec<String> {
        ADDRESSES.map(|address| format!("{}.{address}", self.prefix)).collect()
    }

    /// The command in front of a program that runs inside.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// From now on nothing reaches this address from outside, and nothing leaves it.
    pub fn swallow(&self, address: &str) -> io::Result<()> {
        self.filter(&format!("add rule inet holes incoming ip daddr {address} drop"))?;
        self.filter(&format!("add rule inet holes outgoing ip saddr {address} drop"))
    }

    /// Everything passes again.
    pub fn pass(&self) -> io::Result<()> {
        self.filter("flush table inet holes")
    }

    fn filter(&self, rule: &str) -> io::Result<()> {
        let arguments = ["netns", "exec", &self.name, "nft"];
        run(Command::new("ip").args(arguments).args(rule.split(' '))).map(drop)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // The link goes with the namespace.
        let _ = run(Command::new("ip").args(["link", "del", &self.link]));
        let _ = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}
