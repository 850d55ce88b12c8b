//! The HBA file: which clients prove in which way who they are. The first line that fits decides.
//!
//! `TYPE DATABASE USER [ADDRESS [MASK]] METHOD [map=NAME | LDAP options]`. Not here: the proof
//! itself, and reading files (names from `@file` come through an argument). Texts of warnings are
//! PgBouncer's.

mod address;
mod line;

use core::net::IpAddr;
use std::collections::BTreeSet;
use std::io;

pub use address::Address;

use crate::ident::IdentMaps;
use line::{Bad, Parser};

/// The first word of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Unix sockets.
    Local,
    /// TCP.
    Host,
    /// TCP with TLS.
    HostSsl,
    /// TCP without TLS.
    HostNoSsl,
}

/// The method of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// No proof.
    Trust,
    /// Nobody gets in.
    Reject,
    /// MD5, or SCRAM for users with a SCRAM secret.
    Md5,
    /// The password in the clear.
    Password,
    /// The user of the other process on this machine.
    Peer,
    /// A certificate.
    Cert,
    /// SCRAM-SHA-256.
    Scram,
    /// The password in the clear, which a directory checks.
    Ldap,
}

/// A list of names, with its keywords.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    names: BTreeSet<String>,
    keywords: BTreeSet<Keyword>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Keyword {
    All,
    SameUser,
    Replication,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its first word.
    pub kind: Kind,
    databases: Names,
    users: Names,
    address: Address,
    /// How those prove who they are whom it fits.
    pub method: Method,
    /// Name of the ident map that translates names.
    pub map: Option<String>,
    /// LDAP options as written.
    pub options: String,
    /// Number of the line.
    pub line: usize,
}

/// How a client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Through a unix socket.
    Local,
    /// TCP in the clear.
    Plain(IpAddr),
    /// TCP with TLS.
    Tls(IpAddr),
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A session in a database, which includes logical replication.
    Session,
    /// Physical replication.
    PhysicalReplication,
}

/// A client that asks to be let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applicant<'a> {
    /// How it is connected.
    pub transport: Transport,
    /// The database's name as it asked for it.
    pub database: &'a str,
    /// Its user name.
    pub user: &'a str,
    /// What it wants.
    pub purpose: Purpose,
}

impl Names {
    fn has(&self, keyword: Keyword) -> bool {
        self.keywords.contains(&keyword)
    }

    fn fits_database(&self, who: &Applicant<'_>) -> bool {
        match who.purpose {
            Purpose::PhysicalReplication => self.has(Keyword::Replication),
            Purpose::Session => {
                self.has(Keyword::All)
                    || (self.has(Keyword::SameUser) && who.database == who.user)
                    || self.names.contains(who.database)
            }
        }
    }

    fn fits_user(&self, user: &str) -> bool {
        self.has(Keyword::All) || self.names.contains(user)
    }
}

impl Rule {
    fn fits(&self, who: &Applicant<'_>) -> bool {
        let transport = match (self.kind, who.transport) {
            (Kind::Local, Transport::Local) => true,
            (Kind::Host | Kind::HostNoSsl, Transport::Plain(from)) => self.address.contains(from),
            (Kind::Host | Kind::HostSsl, Transport::Tls(from)) => self.address.contains(from),
            (Kind::Local, _)
            | (_, Transport::Local)
            | (Kind::HostSsl, Transport::Plain(_))
            | (Kind::HostNoSsl, Transport::Tls(_)) => false,
        };
        transport && self.databases.fits_database(who) && self.users.fits_user(who.user)
    }
}

/// The lines of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Rule>,
}

/// What a file is read with.
pub struct Source<'a> {
    /// Name of the file, for warnings.
    pub file: &'a str,
    /// Maps that lines may name.
    pub maps: &'a IdentMaps,
    /// Reads the file behind an `@`.
    pub read: &'a mut dyn FnMut(&str) -> io::Result<Vec<u8>>,
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Whether every line could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// It could.
    Whole,
    /// Some were left out.
    Lacking,
}

impl Rules {
    /// Reads a file's text; lines that cannot be read are told in `warnings` and left out.
    pub fn parse(
        text: &str,
        source: &mut Source<'_>,
        warnings: &mut Vec<String>,
    ) -> (Self, Quality) {
        let (mut rules, mut quality) = (Vec::new(), Quality::Whole);
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            match Parser::new(line, number, source, warnings).rule() {
                Ok(rule) => rules.extend(rule),
                Err(Bad) => {
                    quality = Quality::Lacking;
                    warnings.push(format!("could not parse hba config line {number}"));
                }
            }
        }
        (Rules { rules }, quality)
    }

    /// The line that decides about a client.
    pub fn find(&self, who: &Applicant<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.fits(who))
    }
}

#[cfg(test)]
mod tests;
