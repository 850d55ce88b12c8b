//! SET: what it checks at once, and the answer when the value is in force.

use std::sync::Arc;

use switchyard_config::settings::{SetError, Taken};
use switchyard_core::ids::Ticket;
use switchyard_io::Key;

use crate::log::Level;
use crate::reload::Renewal;
use crate::worker::console::{Done, Wait};
use crate::worker::{Message, Todo, Worker};

/// What a SET came to: its tag and what of TLS is in force, or the error of the hooks.
pub(in crate::worker) type Outcome = Result<(String, Renewal), String>;

impl Worker {
    pub(super) fn set(&mut self, key: Key, name: &str, value: &str) -> Done {
        let mut settings = self.shared.snapshot().config.settings.clone();
        let line = match settings.set(name, value) {
            Ok(Taken::Applied) => return self.set_beside(key, name, value),
            Ok(Taken::Ignored) => {
                let text = format!("SET ignored: {name} is read at start only");
                self.notice(key, &text, None);
                self.complete(key, &tag(name, value));
                return Ok(None);
            }
            Err(SetError::Unknown) => format!("unknown parameter: pgbouncer/{name}"),
            Err(SetError::Invalid) => format!("invalid value \"{value}\" for parameter {name}"),
        };
        self.shared.log.write(Level::Error, &line);
        Err("SET failed".into())
    }

    /// Reading files, loading hooks and waiting for a reload take their time, which is not this
    /// worker's.
    fn set_beside(&mut self, key: Key, name: &str, value: &str) -> Done {
        let (shared, ticket) = (Arc::clone(&self.shared), self.ticket(key));
        let (name, value) = (name.to_owned(), value.to_owned());
        std::thread::spawn(move || {
            let done = shared.set(&name, &value).map(|renewal| (tag(&name, &value), renewal));
            shared.send(ticket.worker, Message::Set(ticket, done));
        });
        self.wait(key, Wait::Workers)
    }

    /// A value is in force, or not.
    pub(in crate::worker) fn value_set(&mut self, console: Ticket, done: Outcome) {
        let key = Key::from_bits(console.client);
        if let Err(error) = &done {
            self.shared.log.write(Level::Error, &format!("hooks not loaded: {error}"));
        }
        if !self.stop_waiting(key) {
            return;
        }
        match done {
            Ok((tag, renewal)) => {
                if renewal == Renewal::Old {
                    let text = "TLS settings could not be applied, still using old configuration";
                    self.notice(key, text, None);
                }
                self.complete(key, &tag);
            }
            Err(_) => self.fail(key, "SET failed"),
        }
        self.todo.push_back(Todo::Client(key));
    }
}

/// Tag of a SET's answer.
fn tag(name: &str, value: &str) -> String {
    format!("SET {name}={value}")
}
