//! Who may log in, and how: the users of auth_file and the lines of auth_hba_file and
//! auth_ident_file. Read at start and at reload.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use switchyard_auth::hba::{Quality, Rules, Source};
use switchyard_auth::ident::IdentMaps;
use switchyard_auth::secret::{Known, Secret};
use switchyard_auth::userlist;
use switchyard_config::settings::Settings;
use switchyard_config::{AuthType, Config, reason};

use crate::log::{Level, Log};

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Users of auth_file.
    pub users: Arc<Users>,
    /// Lines of auth_hba_file.
    pub rules: Arc<Rules>,
    /// Maps of auth_ident_file.
    pub maps: Arc<IdentMaps>,
}

/// The users of an auth_file, with what was derived from their secrets.
#[derive(Debug, Default)]
pub struct Users {
    by_name: HashMap<String, Arc<Known>>,
    origin: Option<Origin>,
}

/// What tells one version of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    path: String,
    /// Device, inode, mode, owner, size, and time of change in seconds and nanoseconds.
    stat: [i128; 7],
}

impl Users {
    /// What is known about a user.
    pub fn get(&self, name: &str) -> Option<&Arc<Known>> {
        self.by_name.get(name)
    }

    /// The secret of a user.
    pub fn secret(&self, name: &str) -> Option<Secret> {
        self.get(name).map(|known| known.secret.clone())
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }
}

impl Access {
    /// Reads what the settings name, keeping of `old` what did not change or cannot be read. The
    /// error says why a reload must not go on.
    pub fn load(config: &Config, old: &Access, log: &Log) -> Result<Self, String> {
        let settings = &config.settings;
        let mut access = Access { users: users(settings, &old.users, log), ..old.clone() };
        if settings.auth_type == AuthType::Hba {
            access.maps = maps(settings, &old.maps, log);
            access.rules = rules(settings, &access.maps, &old.rules, log)?;
        }
        Ok(access)
    }

    /// Whether a change of settings asks for reading again.
    pub fn differs(old: &Settings, new: &Settings) -> bool {
        let relevant = |settings: &Settings| {
            let files = (settings.auth_file.clone(), settings.auth_hba_file.clone());
            (settings.auth_type, files, settings.auth_ident_file.clone())
        };
        relevant(old) != relevant(new)
    }
}

fn named(path: Option<&str>) -> Option<&str> {
    path.filter(|path| !path.is_empty())
}

fn users(settings: &Settings, old: &Arc<Users>, log: &Log) -> Arc<Users> {
    if matches!(settings.auth_type, AuthType::Any | AuthType::Pam) {
        return Arc::clone(old);
    }
    let Some(path) = named(settings.auth_file.as_deref()) else { return Arc::default() };
    let read = std::fs::metadata(path).and_then(|meta| {
        let stat = [
            meta.dev().into(),
            meta.ino().into(),
            meta.mode().into(),
            meta.uid().into(),
            meta.size().into(),
            meta.mtime().into(),
            meta.mtime_nsec().into(),
        ];
        let origin = Some(Origin { path: path.into(), stat });
        if old.origin == origin { Ok(None) } else { Ok(Some((origin, std::fs::read(path)?))) }
    });
    match read {
        Ok(None) => Arc::clone(old),
        Ok(Some((origin, text))) => {
            let list = userlist::parse(&text);
            if let Some(error) = list.error {
                log.write(Level::Error, error);
            }
            let known = |(name, secret)| (name, Arc::new(Known::new(secret)));
            Arc::new(Users { by_name: list.users.into_iter().map(known).collect(), origin })
        }
        Err(error) => {
            let text = format!("could not open auth_file {path}: {}", reason(&error));
            log.write(Level::Error, &text);
            Arc::clone(old)
        }
    }
}

fn maps(settings: &Settings, old: &Arc<IdentMaps>, log: &Log) -> Arc<IdentMaps> {
    let Some(path) = named(settings.auth_ident_file.as_deref()) else { return Arc::default() };
    match std::fs::read(path) {
        Ok(bytes) => {
            let mut warnings = Vec::new();
            let maps = IdentMaps::parse(&String::from_utf8_lossy(&bytes), &mut warnings);
            warnings.iter().for_each(|warning| log.write(Level::Warning, warning));
            Arc::new(maps)
        }
        Err(error) => {
            let text = format!("could not open ident config file {path}: {}", reason(&error));
            log.write(Level::Error, &text);
            Arc::clone(old)
        }
    }
}

fn rules(
    settings: &Settings,
    maps: &IdentMaps,
    old: &Arc<Rules>,
    log: &Log,
) -> Result<Arc<Rules>, String> {
    let path = settings.auth_hba_file.as_str();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let text = format!("could not open hba config file {path}: {}", reason(&error));
            log.write(Level::Error, &text);
            return Ok(Arc::clone(old));
        }
    };
    let directory = Path::new(path).parent().unwrap_or(Path::new(""));
    let mut read = |name: &str| {
        std::fs::read(directory.join(name)).map_err(|error| io::Error::other(reason(&error)))
    };
    let mut source = Source { file: path, maps, read: &mut read };
    let mut warnings = Vec::new();
    let text = String::from_utf8_lossy(&bytes);
    let (rules, quality) = Rules::parse(&text, &mut source, &mut warnings);
    warnings.iter().for_each(|warning| log.write(Level::Warning, warning));
    if quality == Quality::Lacking && settings.auth_hba_strict {
        return Err(format!("hba config file {path} has lines that cannot be used"));
    }
    Ok(Arc::new(rules))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Stderr;

    #[test]
    fn users_are_read_again_when_their_file_changes() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let log = Log::new(Stderr::Quiet);
        let auth_file = Some(file.path().display().to_string());
        let mut settings = Settings { auth_file, ..Settings::default() };
        std::fs::write(file.path(), "\"a\" \"1\"\n\"b\" \"2\"\n").expect("written");
        let first = users(&settings, &Arc::default(), &log);
        assert!(Arc::ptr_eq(&users(&settings, &first, &log), &first));
        std::fs::write(file.path(), "\"b\" \"longer\"\n\"c\" \"3\"\nbroken\n").expect("written");
        let second = users(&settings, &first, &log);
        let mut names: Vec<&String> = second.names().collect();
        names.sort();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(second.secret("b"), Some(Secret::Plain(b"longer".into())));
        settings.auth_type = AuthType::Any;
        settings.auth_file = None;
        assert!(Arc::ptr_eq(&users(&settings, &second, &log), &second));
        settings.auth_type = AuthType::Md5;
        settings.auth_file = Some("/nonexistent/file".into());
        assert!(Arc::ptr_eq(&users(&settings, &second, &log), &second));
    }
}
