//! Commands that take time: looked at in every turn until they are done, and undone by ^C.

use std::sync::Arc;

use switchyard_core::ids::Ticket;
use switchyard_core::pool::Pool;
use switchyard_io::Key;

use crate::entries::Entry;
use crate::log::Level;
use crate::worker::console::Wait;
use crate::worker::console::gather::{Gathering, Question};
use crate::worker::{Todo, Worker};

/// Waiting commands and their effects.
impl Worker {
    /// All workers have answered.
    pub(in crate::worker) fn gathered(&mut self, console: Ticket, gathering: &Gathering) {
        let key = Key::from_bits(console.client);
        if let Question::Connections(show) | Question::Counts(show) = &gathering.question {
            let rows = self.finish_rows(*show, gathering);
            self.consoles.retain(|waiting| *waiting != key);
            self.answer_gathered(key, *show, rows);
            return self.todo.push_back(Todo::Client(key));
        }
        if !self.stop_waiting(key) {
            return;
        }
        match &gathering.question {
            Question::Connections(_) | Question::Counts(_) => {}
            Question::KillClient(_) if gathering.found() => self.complete(key, "KILL_CLIENT"),
            Question::KillClient(_) => self.fail(key, "client not found"),
            Question::Suspend => self.complete(key, "SUSPEND"),
            Question::Kill(entries) => {
                // The answer is to come when the last server has gone.
                let _ = self.wait(key, Wait::Kill(entries.clone()));
                return;
            }
        }
        self.todo.push_back(Todo::Client(key));
    }

    /// A reload has come to its end.
    pub(in crate::worker) fn reloaded(&mut self, console: Ticket, valid: bool) {
        let key = Key::from_bits(console.client);
        if !valid {
            let text = "RELOAD Failed, see logs for more details";
            self.shared.log.write(Level::Error, text);
        }
        if !self.stop_waiting(key) {
            return;
        }
        if valid {
            self.complete(key, "RELOAD");
        } else {
            self.fail_with(key, "F0000", "RELOAD failed, see logs for additional details");
        }
        self.todo.push_back(Todo::Client(key));
    }

    pub(super) fn stop_waiting(&mut self, key: Key) -> bool {
        self.consoles.retain(|waiting| *waiting != key);
        self.console(key).is_some_and(|console| console.wait.take().is_some())
    }

    pub(in crate::worker) fn look_at_consoles(&mut self) {
        for key in self.consoles.clone() {
            let Some(wait) = self.console(key).and_then(|console| console.wait.as_ref()) else {
                self.consoles.retain(|waiting| *waiting != key);
                continue;
            };
            let tag = match wait {
                Wait::Pause(entries, _) => all_pools(entries, Pool::is_empty).then_some("PAUSE"),
                Wait::Kill(entries) => all_pools(entries, Pool::is_empty).then_some("KILL"),
                Wait::Close(entries) => {
                    all_pools(entries, |pool| !pool.has_stale()).then_some("WAIT_CLOSE")
                }
                Wait::Workers | Wait::Suspend | Wait::Cluster(_) | Wait::Explain(_) => None,
            };
            if let (Wait::Kill(entries), Some(_)) = (wait, tag) {
                entries.iter().for_each(|entry| entry.free_pools());
            }
            if let Some(tag) = tag {
                self.end_wait(key, tag);
            }
        }
    }

    pub(super) fn end_wait(&mut self, key: Key, tag: &str) {
        self.stop_waiting(key);
        self.complete(key, tag);
        self.todo.push_back(Todo::Client(key));
    }

    /// ^C on a console: a PAUSE or SUSPEND that is under way is undone and answered.
    pub(in crate::worker) fn cancel_console(&mut self, key: Key) {
        let wait = self.console(key).and_then(|console| console.wait.clone());
        let (resumed, tag) = match wait {
            Some(Wait::Pause(_, None)) => (self.shared.resume().is_ok(), "PAUSE"),
            Some(Wait::Pause(_, Some(name))) => {
                let resumed = self.shared.lifecycle().resume_one(&name).is_ok();
                self.shared.apply_pauses();
                (resumed, "PAUSE")
            }
            Some(Wait::Suspend) => (self.shared.resume().is_ok(), "SUSPEND"),
            Some(
                Wait::Workers
                | Wait::Kill(_)
                | Wait::Close(_)
                | Wait::Cluster(_)
                | Wait::Explain(_),
            )
            | None => {
                return;
            }
        };
        if resumed {
            self.end_wait(key, tag);
        }
    }
}

fn all_pools(entries: &[Arc<Entry>], test: impl Fn(&Pool) -> bool) -> bool {
    entries.iter().flat_map(|entry| entry.pools()).all(|pool| test(&pool.lock().machine))
}
