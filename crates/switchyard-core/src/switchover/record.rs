//! The flight recorder: what happened in each hold, from the first sign to the release.
//!
//! Not here: what clients experienced, which the shell counts under the identity of the record.
//! Invariants: one record at most is open; closed ones are [`CHANGES_MAX`] at most.

use std::time::Instant;

use super::snapshot::{CHANGES_MAX, Change, Kind};

/// All records of a cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    minted: u64,
    open: Option<Box<Change>>,
    closed: Vec<Change>,
    /// Since when the writer is the writer.
    pub(super) seated: Option<Instant>,
}

impl Records {
    /// Opens a record for a hold that begins; a planned one that is under way goes on.
    pub(super) fn begin(&mut self, change: Change) -> u64 {
        match &mut self.open {
            Some(open) if open.kind == Kind::Planned => {
                open.note(change.detected, format!("writer lost: {}", change.trigger));
            }
            Some(_) | None => {
                self.close("writer lost again");
                self.minted += 1;
                self.open = Some(Box::new(Change { id: self.minted, ..change }));
            }
        }
        self.minted
    }

    /// The record that is open.
    pub(super) fn open(&mut self) -> Option<&mut Change> {
        self.open.as_deref_mut()
    }

    /// Notes what was seen or decided, while something is recorded.
    pub(super) fn note(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if let Some(open) = &mut self.open {
            open.note(now, text());
        }
    }

    /// Closes the open record.
    pub(super) fn close(&mut self, result: &str) -> Option<Change> {
        let mut change = *self.open.take()?;
        result.clone_into(&mut change.result);
        if self.closed.len() == CHANGES_MAX {
            self.closed.remove(0);
        }
        self.closed.push(change.clone());
        Some(change)
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<Change> {
        self.closed.iter().chain(self.open.as_deref()).cloned().collect()
    }

    pub(super) fn check(&self) {
        let mut last = 0;
        for change in &self.closed {
            assert!(change.id > last, "identities grow");
            last = change.id;
        }
    }
}

impl Change {
    fn note(&mut self, now: Instant, text: String) {
        if self.journal.len() < JOURNAL_MAX {
            self.journal.push((now, text));
        }
    }
}

/// Lines of one record.
const JOURNAL_MAX: usize = 200;
