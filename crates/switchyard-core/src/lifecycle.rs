//! What operators have stopped: the whole process or single databases, and shutdowns.
//! Invariants: RESUME undoes PAUSE exactly; nothing undoes a shutdown.

use std::collections::BTreeSet;

/// What the process as a whole does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It works.
    #[default]
    Active,
    /// PAUSE: nothing is given to clients.
    Paused,
    /// SUSPEND: nothing is read from anybody, and nobody is let in.
    Suspended,
    /// It ends when the last client is gone.
    WaitForClients,
    /// It ends when the last server is free.
    WaitForServers,
}

/// The state of the process and of single databases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    phase: Phase,
    paused: BTreeSet<String>,
}

impl Lifecycle {
    /// What the process does.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether servers of a database are withheld.
    pub fn is_paused(&self, database: &str) -> bool {
        matches!(self.phase, Phase::Paused | Phase::WaitForServers)
            || self.is_paused_alone(database)
    }

    /// Whether a database was paused by name.
    pub fn is_paused_alone(&self, database: &str) -> bool {
        self.paused.contains(database)
    }

    /// Whether the process is ending.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::WaitForClients | Phase::WaitForServers)
    }

    /// PAUSE.
    pub fn pause(&mut self) -> Result<(), &'static str> {
        match self.phase {
            Phase::Active => {
                self.phase = Phase::Paused;
                Ok(())
            }
            Phase::Paused | Phase::Suspended | Phase::WaitForClients | Phase::WaitForServers => {
                Err("already suspended/paused")
            }
        }
    }

    /// SUSPEND.
    pub fn suspend(&mut self) -> Result<(), &'static str> {
        if self.phase != Phase::Active {
            return Err("already suspended/paused");
        }
        if !self.paused.is_empty() {
            return Err("cannot suspend with paused databases");
        }
        self.phase = Phase::Suspended;
        Ok(())
    }

    /// PAUSE of one database.
    pub fn pause_one(&mut self, database: &str) -> Result<(), &'static str> {
        if self.phase != Phase::Active {
            return Err("already suspended/paused");
        }
        self.paused.insert(database.into());
        Ok(())
    }

    /// RESUME.
    pub fn resume(&mut self) -> Result<(), &'static str> {
        match self.phase {
            Phase::Paused | Phase::Suspended => {
                self.phase = Phase::Active;
                Ok(())
            }
            Phase::Active => Err("pooler is not paused/suspended"),
            Phase::WaitForClients | Phase::WaitForServers => Err("pooler is shutting down"),
        }
    }

    /// Forgets a database that is gone.
    pub fn forget(&mut self, database: &str) {
        self.paused.remove(database);
    }

    /// RESUME of one database.
    pub fn resume_one(&mut self, database: &str) -> Result<(), String> {
        if self.paused.remove(database) {
            Ok(())
        } else {
            Err(format!("database {database} is not paused"))
        }
    }

    /// SHUTDOWN WAIT_FOR_CLIENTS and WAIT_FOR_SERVERS.
    pub fn end(&mut self, phase: Phase) {
        self.phase = phase;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resume_undoes_pause_exactly() {
        let mut state = Lifecycle::default();
        assert_eq!(state.resume(), Err("pooler is not paused/suspended"));
        state.pause_one("a").expect("a pause");
        let before = state.clone();
        state.pause().expect("a pause");
        assert_eq!(state.pause(), Err("already suspended/paused"));
        assert!(state.is_paused("b"));
        state.resume().expect("a resume");
        assert_eq!(state, before);
        assert!(state.is_paused("a") && !state.is_paused("b"));
        assert_eq!(state.resume_one("b"), Err("database b is not paused".into()));
        assert_eq!(state.suspend(), Err("cannot suspend with paused databases"));
        state.resume_one("a").expect("a resume");
        state.suspend().expect("a suspend");
        assert_eq!(state.suspend(), Err("already suspended/paused"));
        assert_eq!(state.pause(), Err("already suspended/paused"));
        assert_eq!(state.pause_one("a"), Err("already suspended/paused"));
        assert!(!state.is_paused("a"));
        state.resume().expect("a resume");
        state.end(Phase::WaitForClients);
        assert_eq!(state.resume(), Err("pooler is shutting down"));
    }
}
