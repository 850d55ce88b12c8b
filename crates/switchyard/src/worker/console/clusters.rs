//! Commands to clusters: PROBE, HOLD, RELEASE, SWITCHOVER, SWITCHOVER_ABORT. They are answered by
//! those who watch the cluster, when what was asked for has happened.

use switchyard_core::ids::Ticket;
use switchyard_core::switchover::planned::Command;
use switchyard_io::Key;

use crate::worker::Worker;
use crate::worker::console::{Done, Wait};

/// SQLSTATE of what a cluster refuses.
const NOT_IN_STATE: &str = "55000";

impl Worker {
    pub(super) fn cluster_command(&mut self, key: Key, database: &str, command: Command) -> Done {
        let tag = match &command {
            Command::Probe => "PROBE",
            Command::Hold => "HOLD",
            Command::Release => "RELEASE",
            Command::Switchover(_) => "SWITCHOVER",
            Command::Abort => "SWITCHOVER_ABORT",
        };
        let known = self.shared.known_entry(database);
        let entry = known.ok_or_else(|| format!("no such database: {database}"))?;
        self.note_command(tag, Some(database));
        let console = self.ticket(key);
        let services = self.shared.services().filter(|_| entry.is_cluster());
        if !services.is_some_and(|services| services.command(database, command, console)) {
            let text = format!("database \"{database}\" has no topology_query");
            self.fail_with(key, NOT_IN_STATE, &text);
            return Ok(None);
        }
        self.wait(key, Wait::Cluster(tag))
    }

    /// A cluster has answered.
    pub(in crate::worker) fn answered(&mut self, console: Ticket, result: Result<(), String>) {
        let key = Key::from_bits(console.client);
        let wait = self.console(key).and_then(|console| console.wait.clone());
        let Some(Wait::Cluster(tag)) = wait else { return };
        match result {
            Ok(()) => self.end_wait(key, tag),
            Err(text) => {
                self.stop_waiting(key);
                self.fail_with(key, NOT_IN_STATE, &text);
                self.todo.push_back(crate::worker::Todo::Client(key));
            }
        }
    }
}
