//! A model of PostgreSQL's side of the protocol ("Message Flow"): statements, portals, transaction
//! blocks, skipping after errors, COPY. Bytes in, bytes out.

use std::collections::HashMap;

use switchyard_wire::build::{self, Report};
use switchyard_wire::tag::{backend, frontend};
use switchyard_wire::{frame, read};

/// COPY from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copy {
    Off,
    Simple,
    Extended,
}

/// What happens to messages up to the next Sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Group {
    #[default]
    Heard,
    Skipped,
}

/// A server session.
#[derive(Debug, Default)]
pub(crate) struct Model {
    input: Vec<u8>,
    /// What it has answered and nobody has taken yet.
    pub(crate) output: Vec<u8>,
    /// Texts of named and unnamed statements.
    pub(crate) statements: HashMap<Vec<u8>, Vec<u8>>,
    portals: HashMap<Vec<u8>, Vec<u8>>,
    status: Option<u8>,
    group: Group,
    copy: Option<Copy>,
}

fn ends(sql: &[u8]) -> bool {
    matches!(sql, b"commit" | b"rollback")
}

impl Model {
    fn status(&self) -> u8 {
        self.status.unwrap_or(b'I')
    }

    fn copy(&self) -> Copy {
        self.copy.unwrap_or(Copy::Off)
    }

    /// Bytes of a client.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while let Ok(Some((head, body, tail))) = frame::split(rest) {
            self.message(head.tag, body);
            rest = tail;
        }
        self.input = rest.to_vec();
    }

    fn message(&mut self, tag: u8, body: &[u8]) {
        match (self.copy(), tag) {
            (Copy::Off, frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL) => return,
            (Copy::Off, _) => {}
            (_, frontend::COPY_DATA | frontend::SYNC | frontend::FLUSH) => return,
            (copy, frontend::COPY_DONE) => {
                self.copy = None;
                build::command_complete(&mut self.output, "COPY 1");
                if copy == Copy::Simple {
                    self.ready();
                }
                return;
            }
            (copy, _) => {
                self.copy = None;
                return self.fail("57014", copy == Copy::Extended);
            }
        }
        match tag {
            frontend::SYNC => {
                self.group = Group::Heard;
                self.ready();
            }
            frontend::TERMINATE | frontend::FLUSH => {}
            _ if self.group == Group::Skipped => {}
            frontend::QUERY => self.query(&body[..body.len() - 1]),
            frontend::FUNCTION_CALL => {
                build::message(&mut self.output, backend::FUNCTION_CALL_RESPONSE, |out| {
                    out.extend_from_slice(&u32::MAX.to_be_bytes());
                });
                self.ready();
            }
            frontend::PARSE => self.parse(body),
            frontend::BIND => self.bind(body),
            frontend::DESCRIBE => self.describe(body),
            frontend::EXECUTE => {
                let (portal, _) = read::cstr(body).expect("a portal");
                match self.portals.get(portal).cloned() {
                    None => self.fail("34000", true),
                    Some(sql) => self.execute(&sql, true),
                }
            }
            frontend::CLOSE => {
                let (kind, name) = read::describe(body).expect("a Close");
                let names = if kind == b'S' { &mut self.statements } else { &mut self.portals };
                names.remove(name);
                build::empty(&mut self.output, backend::CLOSE_COMPLETE);
            }
            other => unreachable!("message {}", char::from(other)),
        }
    }

    fn ready(&mut self) {
        if self.status() == b'I' {
            self.portals.clear();
        }
        let status = self.status();
        build::ready_for_query(&mut self.output, status);
    }

    fn fail(&mut self, sqlstate: &str, extended: bool) {
        let report = Report { severity: "ERROR", sqlstate, message: "no", detail: None };
        build::error_response(&mut self.output, report);
        if self.status() == b'T' {
            self.status = Some(b'E');
        }
        if extended {
            self.group = Group::Skipped;
        } else {
            self.ready();
        }
    }

    fn aborted(&self, sql: &[u8]) -> bool {
        self.status() == b'E' && !ends(sql)
    }

    fn query(&mut self, sql: &[u8]) {
        if self.aborted(sql) {
            return self.fail("25P02", false);
        }
        match sql {
            b"" => build::empty(&mut self.output, backend::EMPTY_QUERY),
            b"bad" => return self.fail("42601", false),
            _ => {
                if sql == b"rows" {
                    self.columns();
                }
                if sql.starts_with(b"copy") || sql == b"fail" {
                    return self.execute(sql, false);
                }
                self.execute(sql, false);
            }
        }
        self.ready();
    }

    fn columns(&mut self) {
        let column = build::Column { name: "x", oid: 25, len: -1, format: 0 };
        build::row_description(&mut self.output, [column].into_iter());
    }

    fn execute(&mut self, sql: &[u8], extended: bool) {
        if self.aborted(sql) {
            return self.fail("25P02", extended);
        }
        let copy = if extended { Copy::Extended } else { Copy::Simple };
        let tag = match sql {
            b"" => return build::empty(&mut self.output, backend::EMPTY_QUERY),
            b"fail" => return self.fail("22012", extended),
            b"begin" => {
                self.status = Some(b'T');
                "BEGIN"
            }
            b"commit" | b"rollback" => {
                self.status = None;
                "END"
            }
            b"deallocate all" => {
                self.statements.clear();
                "DEALLOCATE ALL"
            }
            b"copy" | b"copy early" => {
                build::message(&mut self.output, backend::COPY_IN, |out| out.extend([0, 0, 0]));
                if sql == b"copy" {
                    self.copy = Some(copy);
                } else {
                    self.fail("P0001", extended);
                }
                return;
            }
            b"rows" => {
                build::data_row(&mut self.output, [Some(&b"value"[..])].into_iter());
                "SELECT 1"
            }
            _ => "OK",
        };
        build::command_complete(&mut self.output, tag);
    }

    fn parse(&mut self, body: &[u8]) {
        let parse = read::parse(body).expect("a Parse");
        // PostgreSQL looks at the text first; the pooler at the name, since it keeps the texts of
        // names that exist from the server.
        if !parse.name.is_empty() && self.statements.contains_key(parse.name) {
            return self.fail("42P05", true);
        }
        if parse.sql == b"bad" {
            return self.fail("42601", true);
        }
        if self.aborted(parse.sql) {
            return self.fail("25P02", true);
        }
        self.statements.insert(parse.name.into(), parse.sql.into());
        build::empty(&mut self.output, backend::PARSE_COMPLETE);
    }

    fn bind(&mut self, body: &[u8]) {
        let (portal, name, _) = read::bind(body).expect("a Bind");
        let Some(sql) = self.statements.get(name).cloned() else { return self.fail("26000", true) };
        if self.aborted(&sql) {
            return self.fail("25P02", true);
        }
        if !portal.is_empty() && self.portals.contains_key(portal) {
            return self.fail("42P03", true);
        }
        self.portals.insert(portal.into(), sql);
        build::empty(&mut self.output, backend::BIND_COMPLETE);
    }

    fn describe(&mut self, body: &[u8]) {
        let Some((kind, name)) = read::describe(body) else { return self.fail("08P01", true) };
        let names = if kind == b'S' { &self.statements } else { &self.portals };
        let sql = match names.get(name).cloned() {
            None if kind == b'S' => return self.fail("26000", true),
            None => return self.fail("34000", true),
            Some(sql) => sql,
        };
        // PostgreSQL describes statements without a result even then. A server that has to be
        // given the statement first cannot.
        if kind == b'S' && self.aborted(&sql) || sql == b"rows" && self.aborted(&sql) {
            return self.fail("25P02", true);
        }
        if kind == b'S' {
            build::message(&mut self.output, backend::PARAMETER_DESCRIPTION, |out| {
                out.extend_from_slice(&[0, 0]);
            });
        }
        if sql == b"rows" {
            self.columns();
        } else {
            build::empty(&mut self.output, backend::NO_DATA);
        }
    }
}

/// Types of the messages, with the SQLSTATE of errors, command tags and the status of
/// ReadyForQuery.
pub(crate) fn shape(mut bytes: &[u8]) -> String {
    let mut shape = Vec::new();
    while let Ok(Some((head, body, rest))) = frame::split(bytes) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        shape.push(match head.tag {
            b'E' => text(read::field(body, b'C').expect("a code")),
            b'C' => text(&body[..body.len() - 1]).replace(' ', "_"),
            tag => {
                format!("{}{}", char::from(tag), if tag == b'Z' { text(body) } else { "".into() })
            }
        });
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a message");
    shape.join(" ")
}
