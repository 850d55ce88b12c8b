//! From files to a configuration: every error is found and reported with its place; nothing of a
//! broken file is used.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::database::{self, Database, User};
use crate::ini::{Ini, Item, Section};
use crate::settings::{SetError, Settings};

/// A valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[pgbouncer]`.
    pub settings: Settings,
    /// `[databases]`.
    pub databases: BTreeMap<String, Database>,
    /// Connection string of the `*` entry.
    pub automatic: Option<String>,
    /// `[users]`.
    pub users: BTreeMap<String, User>,
}

/// A loaded configuration and what is worth saying about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// WARNING lines.
    pub warnings: Vec<Diagnostic>,
}

/// Where something stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// File.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// The line's text.
    pub source: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Something wrong in a file. Shows as PgBouncer's text, and where the place is known as a second
/// line with the column and a third and fourth with the line and a caret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// PgBouncer's text.
    pub text: String,
    place: Option<(Place, usize)>,
}

impl Diagnostic {
    pub(crate) fn bare(text: String) -> Self {
        Diagnostic { text, place: None }
    }

    pub(crate) fn at(text: String, place: &Place, word: &str) -> Self {
        let column = place.source.rfind(word).map_or(0, |at| place.source[..at].chars().count());
        Diagnostic { text, place: Some((place.clone(), column)) }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if let Some((place, column)) = &self.place {
            let pad = " ".repeat(*column);
            write!(f, "\n{place}:{}\n{}\n{pad}^", column + 1, place.source)?;
        }
        Ok(())
    }
}

/// Longest names in bytes, exclusive.
const DATABASE_NAME_MAX: usize = 64;
/// Name of the console.
const CONSOLE: &str = "pgbouncer";

/// Loads a file and what it includes.
pub fn load(
    path: &Path,
    read: &mut dyn FnMut(&Path) -> io::Result<Vec<u8>>,
) -> Result<Loaded, Vec<Diagnostic>> {
    let mut ini = Ini::new(read);
    ini.file(path, 0);
    let Ini { items, mut errors, mut warnings, main_sections, .. } = ini;
    if errors.is_empty() && main_sections == 0 {
        let text = "load_init_file: main section missing from config file".into();
        errors.push(Diagnostic::bare(text));
    }
    let mut config = Config {
        settings: Settings::default(),
        databases: BTreeMap::new(),
        automatic: None,
        users: BTreeMap::new(),
    };
    config.settings.conffile = Some(path.display().to_string());
    let mut inert = Vec::new();
    for item in &items {
        if let Err(error) = take(&mut config, item) {
            errors.push(error);
        }
        if item.section == Section::Pgbouncer && Settings::is_inert(&item.key) {
            inert.push(item.key.clone());
        }
    }
    inert.sort_unstable();
    inert.dedup();
    let say = |key| Diagnostic::bare(format!("setting {key} has no effect in this version"));
    warnings.extend(inert.into_iter().map(say));
    if errors.is_empty() { Ok(Loaded { config, warnings }) } else { Err(errors) }
}

fn take(config: &mut Config, item: &Item) -> Result<(), Diagnostic> {
    let Item { section, key, value, place } = item;
    let fail = |text: String, word: &str| Diagnostic::at(text, place, word);
    match section {
        Section::Pgbouncer => config.settings.assign(key, value).map_err(|error| match error {
            SetError::Unknown => fail(format!("unknown parameter: {}/{key}", section.name()), key),
            SetError::Invalid => {
                let text = format!(
                    "invalid value \"{value}\" for parameter {key} in configuration ({place})"
                );
                fail(text, value)
            }
        }),
        Section::Databases => database(config, key, value).map_err(|text| fail(text, value)),
        Section::Users => {
            let user = User::parse(value).map_err(|text| fail(text, value))?;
            config.users.insert(key.clone(), user);
            Ok(())
        }
        Section::Peers => peer(key, value).map_err(|text| fail(text, value)),
        Section::Routes | Section::Rewrites => Err(fail(
            format!("invalid section \"{}\" in configuration ({place})", section.name()),
            key,
        )),
    }
}

fn database(config: &mut Config, name: &str, value: &str) -> Result<(), String> {
    if name == CONSOLE {
        return Err(format!("database name \"{CONSOLE}\" is reserved"));
    }
    if name.len() >= DATABASE_NAME_MAX {
        return Err(format!("too long db name: {name}"));
    }
    let entry = Database::parse(name, value)?;
    if name == "*" {
        config.automatic = Some(value.into());
    } else {
        config.databases.insert(name.into(), entry);
    }
    Ok(())
}

fn peer(key: &str, value: &str) -> Result<(), String> {
    let id: u32 = key.parse().unwrap_or(0);
    if !(1..=65_536).contains(&id) {
        return Err("ids of peers must be a number larger than 0 and at most 65536".into());
    }
    let pairs = database::pairs(value).ok_or("syntax error in connection string")?;
    for (key, _) in &pairs {
        if !matches!(key.as_str(), "host" | "port" | "pool_size") {
            return Err(format!("unrecognized connection parameter: {key}"));
        }
    }
    if !pairs.iter().any(|(key, _)| key == "host") {
        return Err(format!("host was not provided for peer {id}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) -> Result<Loaded, Vec<String>> {
        let mut read = |path: &Path| match path.to_str() {
            Some("main.ini") => Ok(text.as_bytes().to_vec()),
            Some("more.ini") => Ok(b"c = host=::1 port=6000".to_vec()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        load(Path::new("main.ini"), &mut read)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_whole_file() {
        let loaded = check(
            "[databases]\na = host=h,i user=u password='it''s'\n* = port=1\n\"x y\" =\n\
             %include more.ini\n[users]\nu = pool_size=3\n[pgbouncer]\npool_mode = Transaction\n\
             server_lifetime = 2min\nadmin_users = a, b c\nio=epoll\n",
        );
        let Loaded { config, warnings } = loaded.expect("a valid file");
        assert_eq!(config.databases["a"].password.as_deref(), Some("it's"));
        assert_eq!(config.databases["a"].hosts, ["h", "i"]);
        assert_eq!(config.databases["c"].port, 6000);
        assert_eq!(config.databases["x y"].dbname, "x y");
        assert_eq!(config.automatic.as_deref(), Some("port=1"));
        assert_eq!(config.users["u"].pool_size, Some(3));
        assert_eq!(config.settings.server_lifetime.as_secs(), 120);
        assert_eq!(config.settings.admin_users.list, ["a", "b", "c"]);
        assert_eq!(warnings[0].text, "setting io has no effect in this version");
    }

    #[test]
    fn every_error_is_told_with_its_place() {
        let errors = check(
            "x=1\n[pgbouncer]\nnope = 1\nmax_client_conn = many\n= 2\n[what]\n\
             [databases]\npgbouncer = host=h\nd = host=\ne = port=0\nf = hist=1\n",
        );
        let errors = errors.expect_err("a broken file");
        let firsts: Vec<&str> = errors.iter().filter_map(|e| e.lines().next()).collect();
        assert_eq!(
            firsts,
            [
                "load_init_file: value without section: x",
                "syntax error in configuration (main.ini:5)",
                "invalid section \"what\" in configuration (main.ini:6)",
                "unknown parameter: pgbouncer/nope",
                "invalid value \"many\" for parameter max_client_conn in configuration \
                 (main.ini:4)",
                "database name \"pgbouncer\" is reserved",
                "syntax error in connection string",
                "invalid port: 0",
                "unrecognized connection parameter: hist",
            ]
        );
        assert_eq!(
            errors[4].lines().skip(1).collect::<Vec<_>>(),
            ["main.ini:4:19", "max_client_conn = many", "                  ^"]
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(
            text in "(\\[pgbouncer\\]\n|\\[databases\\]\n|[ -~é]{0,12}[=\n']?){0,8}") {
            let _ = check(&text);
        }
    }
}
