//! From files to a configuration: every error is found and reported with its place; nothing of a
//! broken file is used.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::connstr::Numbers;
use crate::database::Database;
use crate::diagnostic::{Diagnostic, Severity, blot};
use crate::ini::{Ini, Item, Section};
use crate::peer::Peer;
use crate::remarks;
use crate::settings::{SetError, Settings};
use crate::user::User;

/// A valid configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// `[pgbouncer]`.
    pub settings: Settings,
    /// `[databases]`.
    pub databases: BTreeMap<String, Database>,
    /// Connection string of the `*` entry.
    pub automatic: Option<String>,
    /// `[users]`.
    pub users: BTreeMap<String, User>,
    /// `[peers]` by id.
    pub peers: BTreeMap<u32, Peer>,
    /// `[routes]`: names and texts of rules, in their order.
    pub routes: Vec<(String, String)>,
    /// `[rewrites]`: names and texts of rules, in their order.
    pub rewrites: Vec<(String, String)>,
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration, unless there are errors.
    pub config: Option<Config>,
    /// The settings as far as they were read: for telling the errors where they are to be told.
    pub settings: Settings,
    /// Everything that was found, in the order of the file.
    pub found: Vec<Diagnostic>,
}

/// Longest names of databases in bytes, exclusive.
const DATABASE_NAME_MAX: usize = 64;
/// Longest names of users in bytes, exclusive.
const USER_NAME_MAX: usize = 128;
/// Name of the console.
const CONSOLE: &str = "pgbouncer";

/// Loads a file and what it includes.
pub fn load(path: &Path, read: &mut dyn FnMut(&Path) -> io::Result<Vec<u8>>) -> Loaded {
    let mut ini = Ini::new(read);
    let known = ini.file(path, 0);
    let Ini { items, mut found, main_sections, .. } = ini;
    if known.is_ok() && main_sections == 0 {
        let text = "load_init_file: main section missing from config file";
        found.push(Diagnostic::bare(Severity::Error, text));
    }
    let mut loader = Loader { config: Config::default(), found };
    loader.config.settings.conffile = Some(path.display().to_string());
    items.iter().for_each(|item| loader.take(item));
    let Loader { config, mut found } = loader;
    remarks::add(&items, &config, &mut found);
    let broken = found.iter().any(|one| one.severity == Severity::Error);
    let settings = config.settings.clone();
    Loaded { config: (!broken).then_some(config), settings, found }
}

struct Loader {
    config: Config,
    found: Vec<Diagnostic>,
}

impl Loader {
    fn take(&mut self, item: &Item) {
        let Item { section, key, value, .. } = item;
        let mut numbers = Numbers::default();
        let taken = match section {
            Section::Pgbouncer => return self.setting(item),
            Section::Databases => self.database(key, value, &mut numbers),
            Section::Users => self.user(key, value, &mut numbers),
            Section::Peers => Peer::read(key, value, &mut numbers).map(|(id, peer)| {
                self.config.peers.insert(id, peer);
            }),
            Section::Routes => {
                rule(&mut self.config.routes, key, value);
                Ok(())
            }
            Section::Rewrites => {
                rule(&mut self.config.rewrites, key, value);
                Ok(())
            }
        };
        for warning in numbers.warnings {
            self.found.push(Diagnostic::bare(Severity::Warning, format!("{key}: {warning}")));
        }
        if let Err(text) = taken {
            self.found.push(Diagnostic::bare(Severity::Error, text));
            self.invalid(item);
        }
    }

    fn setting(&mut self, item: &Item) {
        if item.key == "auth_dbname" && item.value == CONSOLE {
            let text = format!("cannot use the reserved \"{CONSOLE}\" database as an auth_dbname");
            self.found.push(Diagnostic::bare(Severity::Error, text));
            return self.invalid(item);
        }
        match self.config.settings.assign(&item.key, &item.value) {
            Ok(()) => {}
            Err(SetError::Unknown) => {
                let text = format!("unknown parameter: {}/{}", item.section.name(), item.key);
                self.found.push(Diagnostic::at(Severity::Error, text, &item.place, item.columns.0));
            }
            Err(SetError::Invalid) => self.invalid(item),
        }
    }

    fn invalid(&mut self, item: &Item) {
        let Item { key, value, place, columns, .. } = item;
        let value = blot(value);
        let text =
            format!("invalid value \"{value}\" for parameter {key} in configuration ({place})");
        self.found.push(Diagnostic::at(Severity::Error, text, place, columns.1));
    }

    fn database(&mut self, name: &str, value: &str, numbers: &mut Numbers) -> Result<(), String> {
        if name == CONSOLE {
            return Err(format!("database name \"{CONSOLE}\" is reserved"));
        }
        if name.len() >= DATABASE_NAME_MAX {
            let text = format!("too long db name: {name}");
            self.found.push(Diagnostic::bare(Severity::Warning, text));
            return Err("cannot create database, no memory?".into());
        }
        let entry = Database::read(name, value, numbers)?;
        if name == "*" {
            self.config.automatic = Some(value.into());
        } else {
            self.config.databases.insert(name.into(), entry);
        }
        Ok(())
    }

    fn user(&mut self, name: &str, value: &str, numbers: &mut Numbers) -> Result<(), String> {
        if name.len() >= USER_NAME_MAX {
            return Err("username too long".into());
        }
        let user = User::read(value, numbers)?;
        self.config.users.insert(name.into(), user);
        Ok(())
    }
}

/// A rule takes the place of an earlier one of its name.
fn rule(rules: &mut Vec<(String, String)>, name: &str, text: &str) {
    match rules.iter_mut().find(|(known, _)| known == name) {
        Some(rule) => rule.1 = text.into(),
        None => rules.push((name.into(), text.into())),
    }
}

#[cfg(test)]
mod tests;
