//! The console: a client that asks the pooler itself. Here its messages and what it is answered;
//! `commands` act, `clusters` are those to clusters, `waits` are the ends of those that take time,
//! `suspend` is SUSPEND, `kill` closes connections. Rows of SHOW: `tables` are those that one
//! thread can tell, `gather` collects what all workers have to add to, of which `connections` are
//! the widest and `descriptors` those of sockets as numbers; `pools` and `stats` are numbers,
//! `hooks` those of the Python functions.

mod clusters;
mod commands;
mod connections;
mod descriptors;
mod explain;
pub mod gather;
mod hooks;
mod kill;
mod pools;
pub mod set;
mod stats;
pub mod suspend;
mod tables;
mod waits;

use std::sync::Arc;

use switchyard_core::console::conversation::{Conversation, Step};
use switchyard_core::console::{Command, Show, tables as columns};
use switchyard_core::params::{APPLICATION_NAME, Params, Tracked};
use switchyard_io::Key;
use switchyard_wire::build::{self, Authentication, Report};
use switchyard_wire::frame;

use crate::entries::Entry;
use crate::log::Level;
use crate::pools::Stats;
use crate::snapshot::Logged;
use crate::worker::client::Stage;
use crate::worker::close::Farewell;
use crate::worker::console::explain::Explaining;
use crate::worker::{Todo, Worker};

/// Name of the console's database and of its built-in user.
pub const CONSOLE: &str = "pgbouncer";
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
    /// Answers of the workers, or of a reload.
    Workers,
    /// SUSPEND: the workers to have sent everything.
    Suspend,
    /// PAUSE of all or of one: the servers of these entries to be gone.
    Pause(Vec<Arc<Entry>>, Option<String>),
    /// KILL: the same.
    Kill(Vec<Arc<Entry>>),
    /// A command to a cluster, with its tag.
    Cluster(&'static str),
    /// EXPLAIN ROUTE: the functions to say what they would do.
    Explain(Box<Explaining>),
    /// WAIT_CLOSE: the servers of these entries that must not be used again to be gone.
    Close(Vec<Arc<Entry>>),
}

/// Whether a console has asked anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Nothing,
    Something,
}

/// A client on the console.
#[derive(Debug)]
pub struct ConsoleClient {
    rights: Rights,
    conversation: Conversation,
    params: Params,
    asked: Asked,
    wait: Option<Wait>,
}

/// First line of `--version`.
pub fn program() -> String {
    format!("Switchyard {} (PgBouncer {COMPATIBLE})", env!("CARGO_PKG_VERSION"))
}

impl ConsoleClient {
    /// A console with these rights, of a client that set these parameters.
    pub(in crate::worker) fn new(rights: Rights, params: Params) -> Self {
        let (conversation, asked) = (Conversation::default(), Asked::Nothing);
        ConsoleClient { rights, conversation, params, asked, wait: None }
    }

    /// Whether a command is under way.
    pub fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// application_name as the client gave it.
    fn application_name(&self) -> String {
        let name = self.params.value(APPLICATION_NAME).unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }

    pub(in crate::worker) fn welcome(
        &self,
        tracked: &Tracked,
        key: [u8; 8],
        notice: &str,
    ) -> Vec<u8> {
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
        for (index, name) in tracked.names().enumerate() {
            if let Some(value) = self.params.value(index) {
                build::parameter_status(&mut bytes, name.as_bytes(), value);
            }
        }
        build::backend_key_data(&mut bytes, &key);
        if !notice.is_empty() {
            let (severity, sqlstate) = ("NOTICE", "00000");
            let report = Report { severity, sqlstate, message: notice, detail: None };
            build::notice_response(&mut bytes, report);
        }
        build::ready_for_query(&mut bytes, b'I');
        bytes
    }
}

/// What a command has to say at once: its tag, nothing yet, or an error.
type Done = Result<Option<&'static str>, String>;

impl Worker {
    fn console(&mut self, key: Key) -> Option<&mut ConsoleClient> {
        match &mut self.clients.get_mut(key)?.stage {
            Stage::Console(console) => Some(console),
            _ => None,
        }
    }

    /// Bytes of a console client; answers how many were used.
    pub(in crate::worker) fn console_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let limit = self.snapshot.config.settings.max_packet_size;
        let head = match frame::peek(data, usize::try_from(limit).unwrap_or(usize::MAX)) {
            Ok(Some(head)) if head.len <= data.len() => head,
            Ok(_) => return 0,
            Err(bad) => {
                let text = format!("bad packet header: '{}'", bad.hex());
                self.close_client(key, &text, Farewell::fatal());
                return data.len();
            }
        };
        let Some(console) = self.console(key) else { return data.len() };
        let mut out = Vec::new();
        let body = &data[frame::HEADER..head.len];
        let step = console.conversation.handle_message(head.tag, body, &mut out);
        if !out.is_empty() {
            self.say(key, &out);
        }
        match step {
            Step::Answered => {}
            Step::Run(command) => self.carry_out(key, command),
            Step::Fail(text) => {
                self.count_command(key);
                self.fail(key, &text);
            }
            Step::Unsupported(text) => {
                self.fail(key, &text);
                self.close_client(key, "bad packet", Farewell::fatal());
            }
            Step::Broken(text) => self.close_client(key, text, Farewell::fatal()),
            Step::Goodbye => self.close_client(key, "client close request", Farewell::Silent),
        }
        if head.len < data.len() {
            self.todo.push_back(Todo::Client(key));
        }
        head.len
    }

    fn carry_out(&mut self, key: Key, command: Command) {
        self.count_command(key);
        match self.command(key, command) {
            Ok(Some(tag)) => self.complete(key, tag),
            Ok(None) => {}
            Err(text) => self.fail(key, &text),
        }
    }

    /// Only the first command of a console counts, as one query and one transaction.
    fn count_command(&mut self, key: Key) {
        let Some(console) = self.console(key) else { return };
        if console.asked == Asked::Nothing {
            console.asked = Asked::Something;
            let stats = self.shared.ledger.console(self.id);
            Stats::add(&stats.xacts, 1);
            Stats::add(&stats.queries, 1);
        }
    }

    fn complete(&mut self, key: Key, tag: &str) {
        let mut out = Vec::new();
        if let Some(console) = self.console(key) {
            console.conversation.complete(tag, &mut out);
        }
        self.say(key, &out);
    }

    fn fail(&mut self, key: Key, text: &str) {
        self.fail_with(key, "08P01", text);
    }

    fn fail_with(&mut self, key: Key, sqlstate: &str, text: &str) {
        self.shared.log.write(Level::Error, text);
        if self.snapshot.log.pooler_errors == Logged::Yes {
            self.log_client(key, Level::Warning, &format!("pooler error: {text}"));
        }
        let mut out = Vec::new();
        if let Some(console) = self.console(key) {
            console.conversation.fail(sqlstate, text, &mut out);
        }
        self.say(key, &out);
    }

    fn notice(&mut self, key: Key, message: &str, detail: Option<&str>) {
        let mut bytes = Vec::new();
        let report = Report { severity: "NOTICE", sqlstate: "00000", message, detail };
        build::notice_response(&mut bytes, report);
        self.say(key, &bytes);
    }

    /// Sends a table.
    fn answer(&mut self, key: Key, show: Show, rows: Vec<columns::Row>) {
        let mut out = Vec::new();
        if let Some(console) = self.console(key) {
            console.conversation.answer(&columns::columns(show), rows, &mut out);
        }
        self.say(key, &out);
    }

    fn wait(&mut self, key: Key, wait: Wait) -> Done {
        if let Some(console) = self.console(key) {
            console.wait = Some(wait);
            self.consoles.push(key);
        }
        Ok(None)
    }
}
