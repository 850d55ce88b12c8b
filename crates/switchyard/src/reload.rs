//! Loading the configuration at start and again while running. A file with errors changes
//! nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use switchyard_config::{Config, Database, Settings, Severity, load};

use crate::access::Access;
use crate::cluster_settings;
use crate::entries::{Entry, Origin};
use crate::log::{Level, Log};
use crate::options;
use crate::rules::NativeRules;
use crate::shared::{Loaded, Shared};
use crate::snapshot::Snapshot;
use crate::tls::Setup;
use crate::worker::Message;

/// When a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// At start, when settings without effect are told.
    Start,
    /// While the process runs.
    Reload,
}

/// Loads a file; errors and warnings go to the log. Of a file with errors, it answers the settings
/// as far as they were read.
pub fn read_config(path: &Path, log: &Log, occasion: Occasion) -> Result<Config, Box<Settings>> {
    let loaded = load(path, &mut |path| std::fs::read(path));
    for one in &loaded.found {
        let level = match one.severity {
            Severity::Error => Level::Error,
            Severity::Warning => Level::Warning,
            Severity::Ignored if occasion == Occasion::Start => Level::Warning,
            Severity::Ignored | Severity::Advice | Severity::Better => continue,
        };
        log.write(level, &one.to_string());
    }
    let mut config = loaded.config.ok_or_else(|| Box::new(loaded.settings))?;
    if let Err(errors) = NativeRules::new(&config) {
        errors.iter().for_each(|error| log.write(Level::Error, error));
        return Err(Box::new(config.settings));
    }
    config.settings.verbose.get_or_insert(log.base().into());
    cluster_settings::complete(&mut config, log);
    Ok(config)
}

/// Reads the configuration again. Answers whether it was valid.
pub fn reload(shared: &Arc<Shared>) -> bool {
    let old = shared.snapshot();
    let path = old.config.settings.conffile.clone().unwrap_or_default();
    let Ok(mut config) = read_config(Path::new(&path), &shared.log, Occasion::Reload) else {
        shared.log.write(Level::Warning, "config file loading failed");
        return false;
    };
    config.settings.keep_fixed(&old.config.settings);
    let access = match Access::load(&config, &old.access, &shared.log) {
        Ok(access) => access,
        Err(text) => {
            shared.log.write(Level::Error, &text);
            shared.log.write(Level::Warning, "config file loading failed");
            return false;
        }
    };
    let loaded = match shared.load_hooks(&config) {
        Ok(loaded) => loaded,
        Err(text) => {
            shared.log.write(Level::Error, &format!("hooks not loaded: {text}"));
            return false;
        }
    };
    apply_log(&shared.log, &config.settings);
    let tls = load_tls(&config, &shared.log);
    if tls.is_none() {
        let line = "TLS configuration could not be reloaded, keeping old configuration";
        shared.log.write(Level::Error, line);
    }
    shared.set_rules(&config);
    let kept = tls.clone().unwrap_or_else(|| Arc::clone(&old.tls));
    shared.replace_snapshot(options::snapshot(config, access, kept, old.mock_key));
    define_entries(shared);
    check_keys(shared, loaded);
    recycle_for_tls(shared, &old);
    tls.is_some()
}

/// Which TLS set-up is in force after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The one of the settings.
    InForce,
    /// The old one, because the settings cannot be used.
    Old,
}

/// Applies a setting that was changed by itself.
pub fn apply(shared: &Arc<Shared>, config: Config, key: &str) -> Renewal {
    let old = shared.snapshot();
    let renewed = key.contains("_tls_") || key.contains("_tls13_");
    let tls = if renewed { load_tls(&config, &shared.log) } else { Some(Arc::clone(&old.tls)) };
    let kept = tls.clone().unwrap_or_else(|| Arc::clone(&old.tls));
    let mut access = old.access.clone();
    if Access::differs(&old.config.settings, &config.settings) {
        match Access::load(&config, &access, &shared.log) {
            Ok(read) => access = read,
            // The setting is in force, the lines of the old file too.
            Err(text) => shared.log.write(Level::Error, &text),
        }
    }
    apply_log(&shared.log, &config.settings);
    shared.replace_snapshot(options::snapshot(config, access, kept, old.mock_key));
    define_entries(shared);
    recycle_for_tls(shared, &old);
    if tls.is_some() { Renewal::InForce } else { Renewal::Old }
}

/// The TLS set-up for a configuration, from the files as they are. What is wrong with it goes to
/// the log.
pub fn load_tls(config: &Config, log: &Log) -> Option<Arc<Setup>> {
    match Setup::new(&config.settings, &|path| std::fs::read(path)) {
        Ok(setup) => Some(Arc::new(setup)),
        Err(lines) => {
            lines.iter().for_each(|line| log.write(Level::Error, line));
            None
        }
    }
}

/// Servers that were connected to with other TLS settings are closed when they are free.
fn recycle_for_tls(shared: &Arc<Shared>, old: &Snapshot) {
    let new = shared.snapshot();
    if !new.tls.servers.differs(&old.tls.servers, new.config.settings.tls_reload_contents) {
        return;
    }
    let now = Instant::now();
    for pool in shared.entries().iter().flat_map(|entry| entry.pools()) {
        shared.decide(&pool, |inner| {
            inner.machine.recycle(now, "database configuration changed");
        });
    }
}

/// Warns of keys that the modules declare and nobody defines.
pub fn check_keys(shared: &Shared, loaded: Loaded) {
    if loaded == Loaded::AsBefore {
        return;
    }
    let keys = shared.hooks().and_then(|hooks| hooks.report()).unwrap_or_default().keys;
    for key in keys {
        let known = shared.known_destination(&key);
        if !known {
            let line = format!("switchyard_keys names unknown database \"{key}\"");
            shared.log.write(Level::Warning, &line);
        }
    }
}

/// Log file and verbosity.
pub fn apply_log(log: &Log, settings: &Settings) {
    let logfile = settings.logfile.as_str();
    log.set_file((!logfile.is_empty()).then(|| logfile.into()));
    if let Some(verbose) = settings.verbose {
        log.set_verbose(u8::try_from(verbose.max(0)).unwrap_or(u8::MAX));
    }
}

/// Brings entries and pools in line with the settings in force.
pub fn define_entries(shared: &Arc<Shared>) {
    let snapshot = shared.snapshot();
    for (name, definition) in &snapshot.config.databases {
        match shared.known_entry(name) {
            Some(entry) => {
                entry.declare();
                shared.redefine(&entry, definition);
            }
            None => {
                let (name, definition) = (name.clone(), definition.clone());
                shared.add_entry(Arc::new(Entry::new(name, definition, Origin::Declared)));
            }
        }
    }
    shared.remake_automatic();
    if let Some(services) = shared.services() {
        services.set_clusters(cluster_settings::clusters(&snapshot));
    }
    for entry in shared.entries() {
        let declared = snapshot.config.databases.contains_key(&entry.name);
        if !declared && entry.origin() == Origin::Declared {
            shared.drop_entry(&entry);
        } else {
            shared.fit_pools(&snapshot, &entry);
        }
    }
    shared.make_standing_pools();
    shared.drop_peers();
}

impl Shared {
    /// An entry has another definition, which may lead elsewhere.
    pub(crate) fn redefine(&self, entry: &Arc<Entry>, definition: &Database) {
        let old = entry.definition();
        if *old == *definition {
            return;
        }
        entry.define(definition.clone());
        if old.user != definition.user {
            entry.pools().iter().for_each(|pool| pool.review());
            self.broadcast(|| Message::Rehome(Arc::clone(entry)));
        }
        if old.leads_elsewhere(definition) {
            self.renew(entry, "database configuration changed");
        }
        if old.topology_query.is_some() && definition.topology_query.is_none() {
            self.make_ordinary(entry);
        }
    }

    /// An entry does not exist any more: whoever uses it is closed.
    pub(crate) fn drop_entry(&self, entry: &Arc<Entry>) {
        let line = format!(
            "dropping database '{}' as it does not exist anymore or inactive auto-database",
            entry.name
        );
        self.log.write(Level::Warning, &line);
        self.remove_entry(&entry.name);
        self.lifecycle().forget(&entry.name);
        self.broadcast(|| Message::Kill(Arc::clone(entry), "database removed"));
    }

    /// Sizes, times and modes of an entry's pools.
    fn fit_pools(self: &Arc<Self>, snapshot: &Snapshot, entry: &Arc<Entry>) {
        let (now, definition) = (Instant::now(), entry.definition());
        for pool in entry.pools() {
            let limits = options::limits(snapshot, &definition, &pool.user);
            options::set_rules(snapshot, &definition, &pool);
            options::set_shared_limits(snapshot, entry, &pool.user, &self.sharing);
            self.decide(&pool, |inner| {
                options::set_hosts(&definition, &mut inner.machine);
                inner.machine.set_limits(now, limits);
            });
        }
    }
}
