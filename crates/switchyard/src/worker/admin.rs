//! The console's commands. Those that wait are looked at in every turn until they are done.

use std::sync::Arc;
use std::time::Instant;

use switchyard_core::console::{self, Command, Show, Shutdown, tables};
use switchyard_core::ids::Ticket;
use switchyard_core::lifecycle::Phase;
use switchyard_io::Key;
use switchyard_wire::build::{self, Authentication, Report};
use switchyard_wire::{frame, read, tag::frontend};

use crate::entries::{Admission, Entry};
use crate::log::Level;
use crate::reload;
use crate::snapshot::Logged;
use crate::worker::client::{Activity, Stage};
use crate::worker::close::Farewell;
use crate::worker::message::{Listeners, Message};
use crate::worker::rows::{Gathering, Which};
use crate::worker::{Todo, Worker};

/// Name of the console's database and of its built-in user.
pub(super) const CONSOLE: &str = "pgbouncer";
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
    pub(super) fn new(rights: Rights) -> Self {
        ConsoleClient { rights, wait: None }
    }

    /// Whether a command is under way.
    pub fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    pub(super) fn welcome(key: [u8; 8]) -> Vec<u8> {
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
    pub(super) fn console_bytes(&mut self, key: Key, data: &[u8]) -> usize {
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

    fn command(&mut self, key: Key, command: Command) -> Done {
        let rights = match self.clients.get(key).map(|client| &client.stage) {
            Some(Stage::Console(console)) => console.rights,
            _ => return Ok(None),
        };
        let harmless = matches!(command, Command::Show(_) | Command::SetIgnored);
        if rights == Rights::Stats && !harmless {
            return Err("admin access needed".into());
        }
        match command {
            Command::Show(show) => self.show(key, show),
            Command::SetIgnored => {
                self.notice(key, "SET ignored", None);
                Ok(Some("SET"))
            }
            Command::Set(name, value) => self.set(key, &name, &value),
            Command::Reload => {
                self.shared.log.write(Level::Log, "RELOAD command issued");
                if reload::reload(&self.shared) {
                    return Ok(Some("RELOAD"));
                }
                let text = "RELOAD Failed, see logs for more details";
                self.shared.log.write(Level::Error, text);
                self.fail_with(key, "F0000", "RELOAD failed, see logs for additional details");
                Ok(None)
            }
            Command::Pause(database) => self.pause(key, database.as_deref()),
            Command::Resume(database) => self.resume(database.as_deref()),
            Command::Reconnect(database) => self.reconnect(database.as_deref()),
            Command::Disable(database) => {
                let entry = self.required(database.as_deref(), "disable")?;
                self.note_command("DISABLE", Some(&entry.name));
                entry.set_admission(Admission::Disabled);
                Ok(Some("DISABLE"))
            }
            Command::Enable(database) => {
                let entry = self.required(database.as_deref(), "enable")?;
                self.note_command("ENABLE", Some(&entry.name));
                entry.set_admission(Admission::Enabled);
                Ok(Some("ENABLE"))
            }
            Command::Kill(database) => self.kill_command(key, database.as_deref()),
            Command::KillClient(id) => {
                let number: u64 = id.parse().map_err(|_| "invalid client pointer supplied")?;
                let ticket = self.ticket(key);
                let left = self.shared.workers().len();
                let gathering = Gathering::new(ticket, Which::Kill, left);
                self.shared.broadcast(|| Message::KillClient(number, Arc::clone(&gathering)));
                self.wait(key, Wait::Workers)
            }
            Command::Shutdown(mode) => self.shutdown(mode),
        }
    }

    fn note_command(&self, word: &str, database: Option<&str>) {
        let database = database.map(|name| format!(" '{name}'")).unwrap_or_default();
        self.shared.log.write(Level::Log, &format!("{word}{database} command issued"));
    }

    /// The entry that a command names.
    fn named(&self, database: &str, verb: &str) -> Result<Arc<Entry>, String> {
        if database == CONSOLE {
            return Err(format!("cannot {verb} admin db: {database}"));
        }
        self.shared.entry(database).ok_or_else(|| format!("no such database: {database}"))
    }

    fn required(&self, database: Option<&str>, verb: &str) -> Result<Arc<Entry>, String> {
        self.named(database.ok_or("a database is required")?, verb)
    }

    fn set(&mut self, key: Key, name: &str, value: &str) -> Done {
        let mut config = self.snapshot.config.clone();
        match config.settings.set(name, value) {
            Ok(_) => {
                reload::apply(&self.shared, config);
                self.complete(key, &format!("SET {name}={value}"));
                Ok(None)
            }
            Err(error) => {
                let line = match error {
                    switchyard_config::settings::SetError::Unknown => {
                        format!("unknown parameter: pgbouncer/{name}")
                    }
                    switchyard_config::settings::SetError::Invalid => {
                        format!("invalid value \"{value}\" for parameter {name}")
                    }
                };
                self.shared.log.write(Level::Error, &line);
                Err("SET failed".into())
            }
        }
    }

    fn pause(&mut self, key: Key, database: Option<&str>) -> Done {
        let mut lifecycle = self.shared.lifecycle();
        let entries = match database {
            None => {
                lifecycle.pause()?;
                drop(lifecycle);
                self.shared.entries()
            }
            Some(name) => {
                drop(lifecycle);
                let entry = self.named(name, "pause")?;
                self.shared.lifecycle().pause_one(name)?;
                vec![entry]
            }
        };
        self.note_command("PAUSE", database);
        self.shared.apply_pauses();
        self.wait(key, Wait::NoServers(entries, "PAUSE"))
    }

    fn resume(&mut self, database: Option<&str>) -> Done {
        self.note_command("RESUME", database);
        match database {
            None => self.shared.lifecycle().resume()?,
            Some(name) => {
                self.shared.known_entry(name).ok_or_else(|| format!("no such database: {name}"))?;
                self.shared.lifecycle().resume_one(name)?;
            }
        }
        self.shared.apply_pauses();
        Ok(Some("RESUME"))
    }

    fn reconnect(&mut self, database: Option<&str>) -> Done {
        let entries = match database {
            None => self.shared.entries(),
            Some(name) => vec![self.named(name, "reconnect")?],
        };
        self.note_command("RECONNECT", database);
        let now = self.now;
        for pool in entries.iter().flat_map(|entry| entry.pools()) {
            pool.decide(&mut self.orders, |inner| {
                inner.machine.recycle(now, "obsolete connection")
            });
        }
        Ok(Some("RECONNECT"))
    }

    fn kill_command(&mut self, key: Key, database: Option<&str>) -> Done {
        if self.shared.phase() != Phase::Active {
            return Err("already suspended/paused".into());
        }
        let entries = match database {
            None => {
                let has_pools = |entry: &Arc<Entry>| !entry.pools().is_empty();
                self.shared.entries().into_iter().filter(has_pools).collect()
            }
            Some(name) => vec![self.named(name, "kill")?],
        };
        self.note_command("KILL", database);
        for entry in &entries {
            self.shared.lifecycle().pause_one(&entry.name)?;
        }
        self.shared.apply_pauses();
        for entry in &entries {
            self.shared.broadcast(|| Message::Kill(Arc::clone(entry), "database removed"));
        }
        self.wait(key, Wait::Nothing(entries, "KILL"))
    }

    fn shutdown(&mut self, mode: Shutdown) -> Done {
        match mode {
            Shutdown::Now => {
                self.note_command("SHUTDOWN", None);
                self.shared.exit(0)
            }
            Shutdown::WaitForClients => {
                self.shared.log.write(Level::Log, "SHUTDOWN WAIT_FOR_CLIENTS command issued");
                self.shared.begin_end(Phase::WaitForClients);
            }
            Shutdown::WaitForServers => {
                self.shared.log.write(Level::Log, "SHUTDOWN WAIT_FOR_SERVERS command issued");
                self.shared.begin_end(Phase::WaitForServers);
            }
        }
        Ok(Some("SHUTDOWN"))
    }

    fn show(&mut self, key: Key, show: Show) -> Done {
        let which = match show {
            Show::Help => {
                self.notice(key, "Console usage", Some(tables::HELP));
                return Ok(Some("SHOW"));
            }
            Show::Clients => Which::Clients,
            Show::Servers => Which::Servers,
            Show::Pools => Which::Pools,
            Show::Lists => Which::Lists,
            _ => {
                let rows = self.rows(show);
                self.answer(key, show, &rows);
                return Ok(None);
            }
        };
        let left = self.shared.workers().len();
        let gathering = Gathering::new(self.ticket(key), which, left);
        self.shared.broadcast(|| Message::Gather(Arc::clone(&gathering)));
        self.wait(key, Wait::Workers)
    }

    /// Sends a table.
    pub(super) fn answer(&mut self, key: Key, show: Show, rows: &[tables::Row]) {
        let mut bytes = Vec::new();
        tables::render(&mut bytes, show, rows);
        build::ready_for_query(&mut bytes, b'I');
        self.say(key, &bytes);
    }
}

/// Waiting commands and their effects.
impl Worker {
    /// All workers have answered.
    pub(super) fn gathered(&mut self, console: Ticket, gathering: &Gathering) {
        let key = Key::from_bits(console.client);
        if !self.stop_waiting(key) {
            return;
        }
        if let Some(show) = gathering.show() {
            let rows = self.finish_rows(gathering);
            self.answer(key, show, &rows);
        } else if gathering.found() {
            self.complete(key, "KILL_CLIENT");
        } else {
            self.fail(key, "client not found");
        }
        self.todo.push_back(Todo::Client(key));
    }

    fn stop_waiting(&mut self, key: Key) -> bool {
        self.consoles.retain(|waiting| *waiting != key);
        match self.clients.get_mut(key).map(|client| &mut client.stage) {
            Some(Stage::Console(console)) => console.wait.take().is_some(),
            _ => false,
        }
    }

    pub(super) fn look_at_consoles(&mut self) {
        for key in self.consoles.clone() {
            let Some(client) = self.clients.get(key) else {
                self.consoles.retain(|waiting| *waiting != key);
                continue;
            };
            let Stage::Console(console) = &client.stage else { continue };
            let no_servers = |entries: &[Arc<Entry>]| {
                let mut pools = entries.iter().flat_map(|entry| entry.pools());
                pools.all(|pool| pool.lock().machine.is_empty())
            };
            let no_clients = |entries: &[Arc<Entry>]| {
                use std::sync::atomic::Ordering::Relaxed;
                entries.iter().all(|entry| entry.clients.load(Relaxed) == 0)
            };
            let tag = match &console.wait {
                Some(Wait::NoServers(entries, tag)) => no_servers(entries).then_some(*tag),
                Some(Wait::Nothing(entries, tag)) => {
                    (no_servers(entries) && no_clients(entries)).then_some(*tag)
                }
                Some(Wait::Workers) | None => None,
            };
            if let Some(tag) = tag {
                self.stop_waiting(key);
                self.complete(key, tag);
                self.todo.push_back(Todo::Client(key));
            }
        }
    }

    /// ^C on a console: a pending PAUSE is undone and answered.
    pub(super) fn cancel_console(&mut self, key: Key) {
        let pausing = match self.clients.get(key).map(|client| &client.stage) {
            Some(Stage::Console(console)) => {
                matches!(console.wait, Some(Wait::NoServers(_, "PAUSE")))
            }
            _ => false,
        };
        if pausing && self.shared.lifecycle().resume().is_ok() {
            self.shared.apply_pauses();
            self.stop_waiting(key);
            self.complete(key, "PAUSE");
        }
    }

    /// Closes the clients and servers of an entry.
    pub(super) fn kill(&mut self, entry: &Arc<Entry>, reason: &'static str) {
        let ours = |found: Option<&Arc<Entry>>| found.is_some_and(|e| Arc::ptr_eq(e, entry));
        let clients: Vec<Key> = self
            .clients
            .iter()
            .filter(|(_, client)| {
                let logged_in = client.identity.as_ref().and_then(|i| i.entry.as_ref());
                ours(logged_in) || ours(client.place.as_ref().map(|place| &place.pool.entry))
            })
            .map(|(key, _)| key)
            .collect();
        for key in clients {
            let slot = self.clients.get(key).and_then(|client| client.server());
            if let Some(slot) = slot {
                self.close_server(slot, reason);
            }
            self.close_client(key, reason, Farewell::fatal());
        }
        let servers: Vec<Key> = self
            .servers
            .iter()
            .filter(|(_, slot)| slot.here.is_some() && ours(Some(&slot.pool.entry)))
            .map(|(key, _)| key)
            .collect();
        servers.into_iter().for_each(|slot| self.close_server(slot, reason));
        let now: Instant = self.now;
        for pool in entry.pools() {
            pool.decide(&mut self.orders, |inner| inner.machine.recycle(now, reason));
        }
    }

    /// Closes the client with this number, if it is here.
    pub(super) fn kill_client(&mut self, number: u64, gathering: &Arc<Gathering>) {
        let found = self.clients.iter().find(|(_, client)| client.number == number);
        if let Some(key) = found.map(|(key, _)| key) {
            if let Some(slot) = self.clients.get(key).and_then(|client| client.server()) {
                self.close_server(slot, "admin forced disconnect");
            }
            self.close_client(key, "admin forced disconnect", Farewell::fatal());
            gathering.add(vec![Vec::new()]);
        }
        self.report(gathering);
    }

    /// SHUTDOWN WAIT_FOR_SERVERS: whoever waits for a server is told to go.
    pub(super) fn refuse_waiting(&mut self) {
        let waiting: Vec<Key> = self
            .clients
            .iter()
            .filter(|(_, client)| client.activity() == Some(Activity::Waiting))
            .map(|(key, _)| key)
            .collect();
        for key in waiting {
            self.close_client(key, "server shutting down", Farewell::fatal());
        }
    }

    /// This worker has done its part of a gathering.
    pub(super) fn report(&self, gathering: &Arc<Gathering>) {
        if gathering.done() {
            let console = gathering.console;
            self.send(console.worker, Message::Gathered(console, Arc::clone(gathering)));
        }
    }
}

impl crate::shared::Shared {
    /// Begins a shutdown that waits.
    pub fn begin_end(&self, phase: Phase) {
        self.lifecycle().end(phase);
        self.broadcast(|| Message::StopListening(Listeners::Tcp));
        if phase == Phase::WaitForServers {
            self.apply_pauses();
            self.broadcast(|| Message::RefuseWaiting);
        }
    }
}
