//! One line of an HBA file.

use core::net::IpAddr;

use super::address::{Address, mask_of};
use super::{Keyword, Kind, Method, Names, Rule, Source};
use crate::words::{Token, Words};

/// A line that cannot be used; the warnings say why.
#[derive(Debug)]
pub(super) struct Bad;

/// Files may name files; this deep.
const DEPTH: usize = 8;

/// Which column a list of names stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Database,
    User,
}

pub(super) struct Parser<'a, 'b> {
    words: Words<'a>,
    number: usize,
    source: &'a mut Source<'b>,
    warnings: &'a mut Vec<String>,
    /// The word read last, which some warnings name.
    last: String,
}

impl<'a, 'b> Parser<'a, 'b> {
    pub(super) fn new(
        line: &'a str,
        number: usize,
        source: &'a mut Source<'b>,
        warnings: &'a mut Vec<String>,
    ) -> Self {
        Parser { words: Words::new(line), number, source, warnings, last: String::new() }
    }

    /// The rule; `None` for a line without one.
    pub(super) fn rule(mut self) -> Result<Option<Rule>, Bad> {
        let kind = match self.next() {
            Token::End => return Ok(None),
            Token::Bare(word) => match word.as_str() {
                "local" => Kind::Local,
                "host" => Kind::Host,
                "hostssl" => Kind::HostSsl,
                "hostnossl" => Kind::HostNoSsl,
                _ => return self.bad("unknown type"),
            },
            Token::Quoted(_) | Token::Comma | Token::Broken => return self.bad("unknown type"),
        };
        let databases = self.names(Column::Database)?;
        let users = self.names(Column::User)?;
        let address = if kind == Kind::Local { Address::All } else { self.address()? };
        let method = self.method()?;
        let mut rule = Rule {
            kind,
            databases,
            users,
            address,
            method,
            map: None,
            options: String::new(),
            line: self.number,
        };
        self.options(&mut rule)?;
        Ok(Some(rule))
    }

    fn next(&mut self) -> Token {
        let token = self.words.next();
        if let Token::Bare(word) | Token::Quoted(word) = &token {
            self.last.clone_from(word);
        }
        token
    }

    fn bad<T>(&mut self, cause: &str) -> Result<T, Bad> {
        self.warnings.push(format!("hba line {}: {cause}", self.number));
        Err(Bad)
    }

    fn names(&mut self, column: Column) -> Result<Names, Bad> {
        let mut names = Names::default();
        self.list(column, &mut names, 0)?;
        Ok(names)
    }

    fn list(&mut self, column: Column, names: &mut Names, depth: usize) -> Result<(), Bad> {
        loop {
            match self.next() {
                Token::Quoted(name) => {
                    names.names.insert(name);
                }
                Token::Bare(word) => self.name(&word, column, names, depth)?,
                Token::Comma | Token::Broken | Token::End => return Err(Bad),
            }
            if self.words.peek() != Token::Comma {
                return Ok(());
            }
            self.words.next();
        }
    }

    fn name(
        &mut self,
        word: &str,
        column: Column,
        names: &mut Names,
        depth: usize,
    ) -> Result<(), Bad> {
        match (word, column) {
            ("all", _) => {
                names.keywords.insert(Keyword::All);
            }
            ("sameuser", Column::Database) => {
                names.keywords.insert(Keyword::SameUser);
            }
            ("replication", Column::Database) => {
                names.keywords.insert(Keyword::Replication);
            }
            ("samerole" | "samegroup", _) => {
                self.warnings.push(format!("{word} is not supported"));
                return Err(Bad);
            }
            _ if word.starts_with('+') => return Err(Bad),
            _ => match word.strip_prefix('@') {
                Some(file) => return self.file(file, column, names, depth),
                None => {
                    names.names.insert(word.into());
                }
            },
        }
        Ok(())
    }

    /// Names of another file, one list a line.
    fn file(
        &mut self,
        file: &str,
        column: Column,
        names: &mut Names,
        depth: usize,
    ) -> Result<(), Bad> {
        if depth >= DEPTH {
            return Err(Bad);
        }
        let bytes = (self.source.read)(file).map_err(|error| {
            self.warnings.push(format!("hba line {}: could not open {file}: {error}", self.number));
            Bad
        })?;
        let text = String::from_utf8_lossy(&bytes);
        for line in text.lines().filter(|line| Words::new(line).peek() != Token::End) {
            let mut parser = Parser::new(line, self.number, self.source, self.warnings);
            parser.list(column, names, depth + 1)?;
        }
        Ok(())
    }

    fn address(&mut self) -> Result<Address, Bad> {
        let word = match self.next() {
            Token::Bare(word) => word,
            other => {
                let (number, last) = (other.number(), self.last.clone());
                return self.bad(&format!("did not find address - {number} - '{last}'"));
            }
        };
        if word == "all" {
            return Ok(Address::All);
        }
        let (text, bits) = match word.split_once('/') {
            Some((text, bits)) => (text, Some(bits)),
            None => (word.as_str(), None),
        };
        self.last = text.into();
        let Ok(net) = text.parse::<IpAddr>() else {
            return self.bad(&format!("failed to parse address - {text}"));
        };
        let mask = match bits {
            Some(bits) => match bits.parse().ok().and_then(|bits| mask_of(net, bits)) {
                Some(mask) => mask,
                None => return self.bad("invalid mask"),
            },
            None => match self.next() {
                Token::Bare(word) => match word.parse::<IpAddr>() {
                    Ok(mask) if mask.is_ipv4() == net.is_ipv4() => mask,
                    _ => return self.bad(&format!("failed to parse mask: {word}")),
                },
                _ => return self.bad("did not find mask"),
            },
        };
        let address = Address::Masked(net, mask);
        if address.is_void() {
            let (file, number) = (self.source.file, self.number);
            self.warnings.push(format!(
                "address does not match mask in {file} line #{number}: {net} / {mask}"
            ));
        }
        Ok(address)
    }

    fn method(&mut self) -> Result<Method, Bad> {
        let token = self.next();
        let method = match &token {
            Token::Bare(word) => match word.as_str() {
                "trust" => Some(Method::Trust),
                "reject" => Some(Method::Reject),
                "md5" => Some(Method::Md5),
                "password" => Some(Method::Password),
                "peer" => Some(Method::Peer),
                "cert" => Some(Method::Cert),
                "scram-sha-256" => Some(Method::Scram),
                "ldap" => Some(Method::Ldap),
                _ => None,
            },
            Token::Quoted(_) | Token::Comma | Token::Broken | Token::End => None,
        };
        match method {
            Some(method) => Ok(method),
            None => {
                let last = self.last.clone();
                self.bad(&format!("unsupported method: buf={last}"))
            }
        }
    }

    fn options(&mut self, rule: &mut Rule) -> Result<(), Bad> {
        if rule.method == Method::Ldap {
            rule.options = self.words.rest().into();
            return Ok(());
        }
        let word = match self.next() {
            Token::End => return Ok(()),
            Token::Bare(word) if matches!(rule.method, Method::Cert | Method::Peer) => word,
            _ => return self.bad("unsupported parameters"),
        };
        if self.next() != Token::End {
            return self.bad("unsupported parameters");
        }
        let Some(map) = word.strip_prefix("map=").filter(|map| !map.is_empty()) else {
            return self
                .bad(&format!("Ident map {word} is malformed. It is not in map=value format."));
        };
        if !self.source.maps.contains(map) {
            return self.bad(&format!("Ident map {map} is not found in ident config file"));
        }
        rule.map = Some(map.into());
        Ok(())
    }
}
