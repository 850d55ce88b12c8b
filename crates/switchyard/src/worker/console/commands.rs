//! The commands: what they check, what they log and what they begin.

use std::sync::Arc;

use switchyard_core::console::{Command, Show, Shutdown, tables};
use switchyard_core::lifecycle::Phase;
use switchyard_io::Key;

use crate::entries::{Admission, Entry};
use crate::log::Level;
use crate::worker::Worker;
use crate::worker::console::gather::{Gathering, Question};
use crate::worker::console::{CONSOLE, Done, Rights, Wait};
use crate::worker::message::Message;

impl Worker {
    pub(super) fn command(&mut self, key: Key, command: Command) -> Done {
        let Some(rights) = self.console(key).map(|console| console.rights) else { return Ok(None) };
        let harmless = match command {
            Command::Show(show) => show != Show::Fds,
            _ => command == Command::SetIgnored,
        };
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
            Command::Reload => self.reload_command(key),
            Command::Pause(database) => self.pause(key, database),
            Command::Resume(database) => self.resume(database.as_deref()),
            Command::Suspend => self.suspend_command(key),
            Command::Reconnect(database) => self.reconnect(database.as_deref()),
            Command::Disable(database) => self.admit(database, Admission::Disabled),
            Command::Enable(database) => self.admit(database, Admission::Enabled),
            Command::Kill(database) => self.kill_command(key, database.as_deref()),
            Command::KillClient(id) => {
                let number: u64 = id.parse().map_err(|_| "invalid client pointer supplied")?;
                self.ask_workers(key, Question::KillClient(number), Wait::Workers)
            }
            Command::WaitClose(database) => {
                self.note_command("WAIT_CLOSE", database.as_deref());
                let entries = match database.as_deref() {
                    None => self.shared.entries(),
                    Some(name) => vec![self.named(name, "wait in")?],
                };
                self.wait(key, Wait::Close(entries))
            }
            Command::Cluster(database, command) => self.cluster_command(key, &database, command),
            Command::Shutdown(mode) => self.shutdown(mode),
            Command::ExplainRoute(question) => self.explain(key, question),
        }
    }

    pub(super) fn note_command(&self, word: &str, database: Option<&str>) {
        let database = database.map(|name| format!(" '{name}'")).unwrap_or_default();
        self.shared.log.write(Level::Log, &format!("{word}{database} command issued"));
    }

    /// The entry that a command names; an automatic one is made for it.
    fn named(&self, database: &str, verb: &str) -> Result<Arc<Entry>, String> {
        if database == CONSOLE {
            return Err(format!("cannot {verb} admin db: {database}"));
        }
        self.shared.entry(database, "").ok_or_else(|| format!("no such database: {database}"))
    }

    fn admit(&mut self, database: Option<String>, admission: Admission) -> Done {
        let name = database.ok_or("a database is required")?;
        let (word, verb) = match admission {
            Admission::Disabled => ("DISABLE", "disable"),
            Admission::Enabled => ("ENABLE", "enable"),
        };
        self.note_command(word, Some(&name));
        if admission == Admission::Enabled && name != CONSOLE {
            let known = self.shared.known_entry(&name);
            known.ok_or_else(|| format!("no such database: {name}"))?;
        }
        self.named(&name, verb)?.set_admission(admission);
        Ok(Some(word))
    }

    /// Reading files and loading hooks takes its time, which is not this worker's.
    fn reload_command(&mut self, key: Key) -> Done {
        self.shared.log.write(Level::Log, "RELOAD command issued");
        let (shared, ticket) = (Arc::clone(&self.shared), self.ticket(key));
        std::thread::spawn(move || {
            let message = Message::Reloaded(ticket, shared.reload());
            shared.send(ticket.worker, message);
        });
        self.wait(key, Wait::Workers)
    }

    fn pause(&mut self, key: Key, database: Option<String>) -> Done {
        let entries = match database.as_deref() {
            None => {
                self.shared.lifecycle().pause()?;
                self.note_command("PAUSE", None);
                self.shared.entries()
            }
            Some(name) => {
                if self.shared.phase() != Phase::Active {
                    return Err("already suspended/paused".into());
                }
                self.note_command("PAUSE", Some(name));
                let entry = self.named(name, "pause")?;
                self.shared.lifecycle().pause_one(name)?;
                vec![entry]
            }
        };
        self.shared.apply_pauses();
        self.wait(key, Wait::Pause(entries, database))
    }

    fn resume(&mut self, database: Option<&str>) -> Done {
        self.note_command("RESUME", database);
        match database {
            None => self.shared.resume()?,
            Some(name) => {
                self.shared.known_entry(name).ok_or_else(|| format!("no such database: {name}"))?;
                self.shared.lifecycle().resume_one(name)?;
                self.shared.apply_pauses();
            }
        }
        Ok(Some("RESUME"))
    }

    fn suspend_command(&mut self, key: Key) -> Done {
        self.shared.lifecycle().suspend()?;
        self.note_command("SUSPEND", None);
        self.ask_workers(key, Question::Suspend, Wait::Suspend)
    }

    fn reconnect(&mut self, database: Option<&str>) -> Done {
        self.note_command("RECONNECT", database);
        let entries = match database {
            None => self.shared.entries(),
            Some(name) => vec![self.named(name, "reconnect")?],
        };
        entries.iter().for_each(|entry| self.shared.renew(entry, "obsolete connection"));
        Ok(Some("RECONNECT"))
    }

    fn kill_command(&mut self, key: Key, database: Option<&str>) -> Done {
        if self.shared.phase() != Phase::Active {
            return Err("already suspended/paused".into());
        }
        self.note_command("KILL", database);
        let entries = match database {
            None => {
                let has_pools = |entry: &Arc<Entry>| !entry.pools().is_empty();
                self.shared.entries().into_iter().filter(has_pools).collect()
            }
            Some(name) => vec![self.named(name, "kill")?],
        };
        for entry in &entries {
            self.shared.lifecycle().pause_one(&entry.name)?;
            let now = self.now;
            for pool in entry.pools() {
                self.shared.decide(&pool, |it| it.machine.pause_because(now, "database removed"));
            }
        }
        self.shared.apply_pauses();
        self.ask_workers(key, Question::Kill(entries), Wait::Workers)
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
        let question = match show {
            Show::Help => {
                self.notice(key, "Console usage", Some(tables::HELP));
                return Ok(Some("SHOW"));
            }
            Show::Clients | Show::Servers | Show::Sockets | Show::ActiveSockets | Show::Fds => {
                Question::Connections(show)
            }
            Show::Pools | Show::Lists | Show::Mem | Show::PeerPools => Question::Counts(show),
            _ => {
                let rows = self.rows(show);
                self.answer(key, show, rows);
                return Ok(None);
            }
        };
        self.ask_workers(key, question, Wait::Workers)
    }

    fn ask_workers(&mut self, key: Key, question: Question, wait: Wait) -> Done {
        let gathering = Gathering::new(self.ticket(key), question, self.shared.workers().len());
        let done = self.wait(key, wait);
        self.shared.broadcast(|| Message::Gather(Arc::clone(&gathering)));
        done
    }
}
