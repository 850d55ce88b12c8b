//! Entries made by the `*` entry: how they come, change and go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use switchyard_config::Database;

use crate::entries::{Entry, Origin};
use crate::log::Level;
use crate::shared::Shared;

impl Shared {
    /// An entry by its exact name; the `*` entry makes one for an unknown name. `whose` is the
    /// prefix of log lines about the connection that asks.
    pub fn entry(&self, name: &str, whose: &str) -> Option<Arc<Entry>> {
        if let Some(entry) = self.known_entry(name) {
            return Some(entry);
        }
        let snapshot = self.snapshot();
        let text = snapshot.config.automatic.as_ref()?;
        let definition = Database::parse(name, text).ok()?;
        let entry = Arc::new(Entry::new(name.into(), definition, Origin::Automatic));
        let entry = self.add_unless_known(&entry)?;
        let line = format!("{whose} registered new auto-database: {name}");
        self.log.write(Level::Log, line.trim_start());
        Some(entry)
    }

    /// Automatic entries follow a change of the `*` entry. Without one they stay as they are.
    pub(crate) fn remake_automatic(&self) {
        let snapshot = self.snapshot();
        let Some(text) = &snapshot.config.automatic else { return };
        for entry in self.automatic_entries() {
            if let Ok(definition) = Database::parse(&entry.name, text) {
                self.redefine(&entry, &definition);
            }
        }
    }

    /// Automatic entries that were not used for long are forgotten, but for paused ones.
    pub fn forget_automatic(&self, now: Instant) {
        let limit = self.snapshot().config.settings.autodb_idle_timeout;
        if limit.is_zero() {
            return;
        }
        for entry in self.automatic_entries() {
            let used = entry.clients.load(Ordering::Relaxed) > 0
                || entry.pools().iter().any(|pool| !pool.lock().machine.is_empty())
                || self.lifecycle().is_paused(&entry.name);
            let since = entry.idle_since(now, used);
            if since.is_some_and(|since| now.saturating_duration_since(since) > limit) {
                self.drop_entry(&entry);
            }
        }
    }

    fn automatic_entries(&self) -> impl Iterator<Item = Arc<Entry>> {
        self.entries().into_iter().filter(|entry| entry.origin() == Origin::Automatic)
    }
}
