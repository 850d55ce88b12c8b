//! The grammar of ini files: lines, sections, keys, includes.

use std::io;
use std::path::{Path, PathBuf};

use crate::load::{Diagnostic, Place};

/// One `key = value` with where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) section: Section,
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) place: Place,
}

/// Known sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Pgbouncer,
    Databases,
    Users,
    Peers,
    Routes,
    Rewrites,
}

impl Section {
    fn of(name: &str) -> Option<Section> {
        Some(match name {
            "pgbouncer" => Section::Pgbouncer,
            "databases" => Section::Databases,
            "users" => Section::Users,
            "peers" => Section::Peers,
            "routes" => Section::Routes,
            "rewrites" => Section::Rewrites,
            _ => return None,
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Section::Pgbouncer => "pgbouncer",
            Section::Databases => "databases",
            Section::Users => "users",
            Section::Peers => "peers",
            Section::Routes => "routes",
            Section::Rewrites => "rewrites",
        }
    }
}

/// Where the reader stands with respect to sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Current {
    None,
    Unknown,
    In(Section),
}

/// Files included in each other, at most.
const INCLUDE_DEPTH: usize = 10;

/// Reads a file from somewhere.
pub(crate) type Reader<'a> = &'a mut dyn FnMut(&Path) -> io::Result<Vec<u8>>;

pub(crate) struct Ini<'a> {
    read: Reader<'a>,
    current: Current,
    pub(crate) items: Vec<Item>,
    pub(crate) errors: Vec<Diagnostic>,
    pub(crate) warnings: Vec<Diagnostic>,
    pub(crate) main_sections: usize,
}

impl<'a> Ini<'a> {
    pub(crate) fn new(read: Reader<'a>) -> Self {
        Ini {
            read,
            current: Current::None,
            items: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
            main_sections: 0,
        }
    }

    pub(crate) fn file(&mut self, path: &Path, depth: usize) {
        let bytes = match (self.read)(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let text = format!("could not load file \"{}\": {error}", path.display());
                self.errors.push(Diagnostic::bare(text));
                return;
            }
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        for (index, line) in text.lines().enumerate() {
            let place = Place { file: path.to_path_buf(), line: index + 1, source: line.into() };
            self.line(line, &place, depth);
        }
    }

    fn line(&mut self, line: &str, place: &Place, depth: usize) {
        let text = line.trim();
        if text.is_empty() || text.starts_with([';', '#']) {
            return;
        }
        if let Some(rest) = text.strip_prefix("%include") {
            let file = PathBuf::from(rest.trim());
            if rest.trim().is_empty() || depth >= INCLUDE_DEPTH {
                return self.syntax(place, text);
            }
            return self.file(&file, depth + 1);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let Some((name, rest)) = rest.split_once(']') else {
                return self.syntax(place, text);
            };
            self.section(name.trim(), place);
            return self.line(rest, place, depth);
        }
        self.pair(text, place);
    }

    fn section(&mut self, name: &str, place: &Place) {
        match Section::of(name) {
            Some(section) => {
                self.current = Current::In(section);
                if section == Section::Pgbouncer {
                    self.main_sections += 1;
                    if self.main_sections > 1 {
                        let text = format!("section [pgbouncer] continues ({place})");
                        self.warnings.push(Diagnostic::bare(text));
                    }
                }
            }
            None => {
                self.current = Current::Unknown;
                let text = format!("invalid section \"{name}\" in configuration ({place})");
                self.errors.push(Diagnostic::at(text, place, name));
            }
        }
    }

    fn pair(&mut self, text: &str, place: &Place) {
        let Some((key, rest)) = key(text) else { return self.syntax(place, text) };
        let Some(value) = rest.trim_start().strip_prefix('=') else {
            return self.syntax(place, rest.trim_start());
        };
        match self.current {
            Current::None => {
                let text = format!("load_init_file: value without section: {key}");
                self.errors.push(Diagnostic::at(text, place, &key));
            }
            Current::Unknown => {}
            Current::In(section) => {
                let (value, place) = (value.trim().into(), place.clone());
                self.items.push(Item { section, key, value, place });
            }
        }
    }

    fn syntax(&mut self, place: &Place, at: &str) {
        let text = format!("syntax error in configuration ({place})");
        self.errors.push(Diagnostic::at(text, place, at));
    }
}

/// A key and what follows: bare, in single quotes, or in double quotes with `""` for one.
fn key(text: &str) -> Option<(String, &str)> {
    if let Some(rest) = text.strip_prefix('\'') {
        let (key, rest) = rest.split_once('\'')?;
        return Some((key.into(), rest));
    }
    if let Some(mut rest) = text.strip_prefix('"') {
        let mut key = String::new();
        loop {
            let (part, tail) = rest.split_once('"')?;
            key.push_str(part);
            match tail.strip_prefix('"') {
                Some(tail) => {
                    key.push('"');
                    rest = tail;
                }
                None => return Some((key, tail)),
            }
        }
    }
    let bare = |c: char| c.is_ascii_alphanumeric() || "_.*-".contains(c);
    let end = text.find(|c| !bare(c)).unwrap_or(text.len());
    (end > 0).then(|| (text[..end].into(), &text[end..]))
}
