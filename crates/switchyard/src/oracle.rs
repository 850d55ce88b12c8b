//! What modules learn of the pooler through `import switchyard`.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use switchyard_config::value::Value as _;
use switchyard_config::{Config, Database};
use switchyard_core::switchover::view::{Lag, NodeState, Role};

use crate::entries::Admission;
use crate::hooks::ask::{ClusterFacts, DatabaseFacts, Disabled, Oracle};
use crate::shared::Shared;

/// A configuration that is about to come into force, for modules that are loaded with it.
pub(crate) type Upcoming = Arc<Mutex<Option<Config>>>;

/// The state of the process.
pub(crate) struct Knowledge {
    /// Everything shared.
    pub(crate) shared: Weak<Shared>,
    /// What is not in force yet.
    pub(crate) upcoming: Upcoming,
}

fn facts(config: &Config, name: &str, database: &Database, disabled: Disabled) -> DatabaseFacts {
    let Database { hosts, port, dbname, .. } = database;
    let pool_mode = config.overrides(database, "").pool_mode().show().unwrap_or_default();
    let host = (!hosts.is_empty()).then(|| hosts.join(","));
    let (name, dbname) = (name.to_owned(), dbname.clone());
    DatabaseFacts { name, host, port: *port, dbname, pool_mode, disabled }
}

impl Oracle for Knowledge {
    fn databases(&self) -> Vec<DatabaseFacts> {
        if let Some(config) = &*self.upcoming.lock().unwrap_or_else(PoisonError::into_inner) {
            let all = config.databases.iter();
            return all.map(|(name, one)| facts(config, name, one, Disabled::No)).collect();
        }
        let Some(shared) = self.shared.upgrade() else { return Vec::new() };
        let snapshot = shared.snapshot();
        let entries = shared.entries().into_iter();
        let known = entries.map(|entry| {
            let disabled = match entry.admission() {
                Admission::Enabled => Disabled::No,
                Admission::Disabled => Disabled::Yes,
            };
            facts(&snapshot.config, &entry.name, &entry.definition(), disabled)
        });
        known.collect()
    }

    fn cluster(&self, name: &str) -> Option<ClusterFacts> {
        let shared = self.shared.upgrade()?;
        let found = shared.services()?.snapshots().into_iter().find(|one| one.database == name)?;
        let nodes = || found.nodes.iter();
        let writer = nodes().find(|node| Some(node.view.id) == found.writer);
        let is_well =
            |role, state, lag| role == Role::Reader && state == NodeState::Up && lag == Lag::Fine;
        let readers = nodes().filter(|n| is_well(n.view.role, n.view.state, n.view.lag));
        let lags = nodes().filter_map(|node| Some((node.view.name.clone(), node.lag?)));
        Some(ClusterFacts {
            state: found.state.to_owned(),
            writer: writer.map(|node| node.view.name.clone()),
            readers: readers.map(|node| node.view.name.clone()).collect(),
            lag_bytes: lags.collect(),
        })
    }

    fn count(&self, name: &str, amount: u64) {
        if let Some(shared) = self.shared.upgrade() {
            shared.hook_stats.grow(name, amount);
        }
    }
}
