//! The console: a client that asks the pooler itself. Here its messages and what it is answered;
//! `commands` act, `waits` are the ends of those that take time, `kill` closes connections.
//! Rows of SHOW: `tables` are those that one thread can tell, `gather` collects what all workers
//! have to add to, of which `connections` are the widest; `pools` and `stats` are numbers.

mod commands;
mod connections;
pub mod gather;
mod kill;
mod pools;
mod stats;
mod tables;
mod waits;

use std::sync::Arc;

use switchyard_core::console::{self, Show, tables as columns};
use switchyard_io::Key;
use switchyard_wire::build::{self, Authentication, Report};
use switchyard_wire::{frame, read, tag::frontend};

use crate::entries::Entry;
use crate::log::Level;
use crate::snapshot::Logged;
use crate::worker::client::Stage;
use crate::worker::close::Farewell;
use crate::worker::{Todo, Worker};

/// Name of the console's database and of its built-in user.
pub(in crate::worker) const CONSOLE: &str = "pgbouncer";
/// Version of PgBouncer that this one is compatible with.
pub const COMPATIBLE: &str = "1.25.2";

/// What a console may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Everything.
    Admin,
    /// SHOW only.
    Stats,
}

/// What a console waits for.
#[derive(Clone, Debug)]
enum Wait {
    /// Rows of the workers, or a client's end.
    Workers,
    /// The servers of these entries to be gone.
    NoServers(Vec<Arc<Entry>>, &'static str),
    /// The clients and servers of these entries to be gone.
    Nothing(Vec<Arc<Entry>>, &'static str),
}

/// A client on the console.
#[derive(Debug)]
pub struct ConsoleClient {
    rights: Rights,
    wait: Option<Wait>,
}

/// First line of `--version`.
pub fn program() -> String {
    format!("Switchyard {} (PgBouncer {COMPATIBLE})", env!("CARGO_PKG_VERSION"))
}

impl ConsoleClient {
    /// A console with these rights.
    pub(in crate::worker) fn new(rights: Rights) -> Self {
        ConsoleClient { rights, wait: None }
    }

    /// Whether a command is under way.
    pub fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    pub(in crate::worker) fn welcome(key: [u8; 8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        build::authentication(&mut bytes, Authentication::Ok);
        let version = format!("{COMPATIBLE}/bouncer");
        for (name, value) in [
            ("server_version", version.as_str()),
            ("client_encoding", "UTF8"),
            ("server_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("TimeZone", "GMT"),
            ("standard_conforming_strings", "on"),
            ("is_superuser", "on"),
        ] {
            build::parameter_status(&mut bytes, name.as_bytes(), value.as_bytes());
        }
        build::backend_key_data(&mut bytes, key);
        build::ready_for_query(&mut bytes, b'I');
        bytes
    }
}

type Done = Result<Option<&'static str>, String>;

impl Worker {
    /// Bytes of a console client; answers how many were used.
    pub(in crate::worker) fn console_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let (head, body) = match frame::split(data) {
            Ok(Some((head, body, _))) => (head, body),
            Ok(None) => return 0,
            Err(bad) => {
                let text = format!("bad packet header: '{}'", bad.hex());
                self.close_client(key, &text, Farewell::fatal());
                return data.len();
            }
        };
        match head.tag {
            frontend::QUERY => match read::cstr(body) {
                Some((query, _)) => self.run_query(key, &String::from_utf8_lossy(query)),
                None => self.close_client(key, "incomplete query", Farewell::fatal()),
            },
            frontend::TERMINATE => {
                self.close_client(key, "client close request", Farewell::Silent);
            }
            frontend::PARSE | frontend::BIND | frontend::EXECUTE => {
                self.fail(key, "extended query protocol not supported by admin console");
                self.close_client(key, "bad packet", Farewell::fatal());
            }
            other => {
                let text = format!("unsupported packet type for admin console: {other}");
                self.fail(key, &text);
                self.close_client(key, "bad packet", Farewell::fatal());
            }
        }
        if head.len < data.len() {
            self.todo.push_back(Todo::Client(key));
        }
        head.len
    }

    fn run_query(&mut self, key: Key, query: &str) {
        let done = console::parse(query).and_then(|command| self.command(key, command));
        match done {
            Ok(Some(tag)) => self.complete(key, tag),
            Ok(None) => {}
            Err(text) => self.fail(key, &text),
        }
    }

    fn complete(&mut self, key: Key, tag: &str) {
        let mut bytes = Vec::new();
        build::command_complete(&mut bytes, tag);
        build::ready_for_query(&mut bytes, b'I');
        self.say(key, &bytes);
    }

    fn fail(&mut self, key: Key, text: &str) {
        self.fail_with(key, "08P01", text);
    }

    fn fail_with(&mut self, key: Key, sqlstate: &str, text: &str) {
        self.shared.log.write(Level::Error, text);
        if self.snapshot.log.pooler_errors == Logged::Yes {
            self.log_client(key, Level::Warning, &format!("pooler error: {text}"));
        }
        let mut bytes = Vec::new();
        let report = Report { severity: "ERROR", sqlstate, message: text, detail: None };
        build::error_response(&mut bytes, report);
        build::ready_for_query(&mut bytes, b'I');
        self.say(key, &bytes);
    }

    fn notice(&mut self, key: Key, message: &str, detail: Option<&str>) {
        let mut bytes = Vec::new();
        let report = Report { severity: "NOTICE", sqlstate: "00000", message, detail };
        build::notice_response(&mut bytes, report);
        self.say(key, &bytes);
    }

    fn wait(&mut self, key: Key, wait: Wait) -> Done {
        if let Some(client) = self.clients.get_mut(key)
            && let Stage::Console(console) = &mut client.stage
        {
            console.wait = Some(wait);
            self.consoles.push(key);
        }
        Ok(None)
    }

    /// Sends a table.
    pub(in crate::worker) fn answer(&mut self, key: Key, show: Show, rows: &[columns::Row]) {
        let mut bytes = Vec::new();
        columns::render(&mut bytes, show, rows);
        build::ready_for_query(&mut bytes, b'I');
        self.say(key, &bytes);
    }
}
