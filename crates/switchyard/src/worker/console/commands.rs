//! The commands: what they check, what they log and what they begin.

use std::sync::Arc;

use switchyard_core::console::{Command, Show, Shutdown, tables};
use switchyard_core::lifecycle::Phase;
use switchyard_io::Key;

use crate::entries::{Admission, Entry};
use crate::log::Level;
use crate::reload;
use crate::worker::Worker;
use crate::worker::client::Stage;
use crate::worker::console::gather::{Gathering, Which};
use crate::worker::console::{CONSOLE, Done, Rights, Wait};
use crate::worker::message::{Listeners, Message};

impl Worker {
    pub(super) fn command(&mut self, key: Key, command: Command) -> Done {
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
