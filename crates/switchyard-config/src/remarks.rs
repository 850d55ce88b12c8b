//! What is worth knowing about a valid file beyond its errors: settings without effect, lines that
//! undo each other, and what works better than in PgBouncer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::diagnostic::{Diagnostic, Severity};
use crate::ini::{Item, Section};
use crate::load::Config;
use crate::settings::{Settings, Written};
use crate::value::{Io, Value as _};

/// Adds remarks about a file's lines and what they amount to.
pub(crate) fn add(items: &[Item], config: &Config, found: &mut Vec<Diagnostic>) {
    repeated(items, found);
    inert(items, found);
    written(items, found);
    let better = better(config);
    found.extend(better.into_iter().map(|text| Diagnostic::bare(Severity::Better, text)));
}

fn repeated(items: &[Item], found: &mut Vec<Diagnostic>) {
    let mut seen = BTreeMap::new();
    for item in items {
        let name = (item.section.name(), item.key.as_str());
        if let Some(before) = seen.insert(name, &item.place) {
            let text = format!("{} was set before ({before}), this line wins", item.key);
            found.push(Diagnostic::at(Severity::Advice, text, &item.place, item.columns.0));
        }
    }
}

fn settings(items: &[Item]) -> impl Iterator<Item = &Item> {
    items.iter().filter(|item| item.section == Section::Pgbouncer)
}

fn inert(items: &[Item], found: &mut Vec<Diagnostic>) {
    let keys = settings(items).map(|item| item.key.as_str());
    let inert: BTreeSet<&str> = keys.filter(|key| Settings::is_inert(key)).collect();
    for key in inert {
        let text = format!("setting {key} has no effect in this version");
        found.push(Diagnostic::bare(Severity::Ignored, text));
    }
    for item in settings(items) {
        if item.key == "io" && Io::parse(&item.value) == Some(Io::IoUring) {
            let text = "io_uring is not served by this version, epoll is used";
            found.push(Diagnostic::at(Severity::Warning, text.into(), &item.place, item.columns.0));
        }
        let why = match item.key.as_str() {
            "pkt_buf" => "buffers grow as needed and limit nothing",
            "service_name" => "only programs for Windows have one",
            _ => continue,
        };
        let text = format!("{} is accepted and does nothing: {why}", item.key);
        found.push(Diagnostic::at(Severity::Ignored, text, &item.place, item.columns.0));
    }
}

/// Values in a form that PgBouncer does not read.
fn written(items: &[Item], found: &mut Vec<Diagnostic>) {
    for item in settings(items) {
        let what = match Settings::written(&item.key, &item.value) {
            Some(Written::Plain) | None => continue,
            Some(Written::Unit) => "a time or size with a unit",
            Some(Written::Word) => "a word for 0 or 1",
        };
        let text = format!("{} = {}: {what}", item.key, item.value);
        found.push(Diagnostic::at(Severity::Better, text, &item.place, item.columns.1));
    }
}

/// Consequences of values that differ from PgBouncer's.
fn better(config: &Config) -> Vec<String> {
    let settings = &config.settings;
    let mut better = Vec::new();
    let mut say = |applies: bool, text: &str| {
        if applies {
            better.push(text.to_string());
        }
    };
    say(
        settings.so_reuseport,
        "so_reuseport = 1: one process uses all cores and keeps all limits by itself",
    );
    say(
        settings.server_connect_timeout < Duration::from_secs(1),
        "server_connect_timeout: fractions of a second are kept, and 0 is no limit",
    );
    say(
        settings.client_idle_timeout.is_zero()
            && config.users.values().any(|user| user.client_idle_timeout.is_some()),
        "client_idle_timeout of a user: it ends the idle clients of that user only",
    );
    say(
        settings.query_wait_timeout.is_zero()
            && config.users.values().any(|user| user.query_wait_timeout.is_some()),
        "query_wait_timeout of a user: it is kept although the global one is 0",
    );
    say(settings.stats_period != 60, "stats_period: a change acts without a restart");
    say(
        config.databases.values().any(|database| database.topology_query.is_some()),
        "topology_query: every node is watched and clients follow the writer",
    );
    better
}
