//! The grammar of ini files: lines, sections, keys, includes.

use std::io;
use std::path::Path;

use crate::diagnostic::{Diagnostic, Place, Severity, blot, reason};

/// One `key = value` with where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) section: Section,
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) place: Place,
    /// Where the key and the value begin in the line.
    pub(crate) columns: (usize, usize),
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
/// Files read for one configuration, at most: files that include each other twice would grow
/// without end otherwise.
const FILES_MAX: usize = 1000;

/// Reads a file from somewhere.
pub(crate) type Reader<'a> = &'a mut dyn FnMut(&Path) -> io::Result<Vec<u8>>;

pub(crate) struct Ini<'a> {
    read: Reader<'a>,
    current: Current,
    files: usize,
    pub(crate) items: Vec<Item>,
    pub(crate) found: Vec<Diagnostic>,
    pub(crate) main_sections: usize,
}

/// What is left of a line.
#[derive(Clone, Copy)]
struct Rest<'a> {
    text: &'a str,
    /// Where it begins in the line.
    at: usize,
}

impl<'a> Rest<'a> {
    fn after(self, bytes: usize) -> Rest<'a> {
        Rest { text: &self.text[bytes..], at: self.at + bytes }.trimmed()
    }

    fn trimmed(self) -> Rest<'a> {
        let text = self.text.trim_start();
        Rest { text: text.trim_end(), at: self.at + self.text.len() - text.len() }
    }
}

impl<'a> Ini<'a> {
    pub(crate) fn new(read: Reader<'a>) -> Self {
        Ini {
            read,
            current: Current::None,
            files: 0,
            items: Vec::new(),
            found: Vec::new(),
            main_sections: 0,
        }
    }

    /// Reads a file and what it includes. Answers whether the file itself could be read.
    pub(crate) fn file(&mut self, path: &Path, depth: usize) -> Result<(), ()> {
        self.files += 1;
        let bytes = match (self.read)(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let reason = reason(&error);
                let text = format!("could not load file \"{}\": {reason}", path.display());
                self.found.push(Diagnostic::bare(Severity::Error, text));
                return Err(());
            }
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        for (index, line) in text.lines().enumerate() {
            let place = Place { file: path.into(), line: index + 1, source: blot(line) };
            self.line(Rest { text: line, at: 0 }, &place, depth);
        }
        Ok(())
    }

    fn line(&mut self, rest: Rest<'_>, place: &Place, depth: usize) {
        let rest = rest.trimmed();
        let text = rest.text;
        if text.is_empty() || text.starts_with([';', '#']) {
            return;
        }
        if let Some(file) = text.strip_prefix("%include") {
            return self.include(rest, file, place, depth);
        }
        if let Some(name) = text.strip_prefix('[') {
            let Some((name, _)) = name.split_once(']') else {
                return self.syntax(place, rest.at);
            };
            self.section(name, place, rest.at + 1);
            return self.line(rest.after(name.len() + 2), place, depth);
        }
        self.pair(rest, place);
    }

    fn include(&mut self, rest: Rest<'_>, file: &str, place: &Place, depth: usize) {
        let path = file.trim();
        if path.is_empty() || !file.starts_with(char::is_whitespace) {
            return self.syntax(place, rest.at);
        }
        let too_deep = depth >= INCLUDE_DEPTH || self.files >= FILES_MAX;
        if too_deep || self.file(Path::new(path), depth + 1).is_err() {
            let text = format!("error processing include file in configuration ({place})");
            self.error(text, place, rest.after("%include".len()).at);
        }
    }

    fn section(&mut self, name: &str, place: &Place, at: usize) {
        match Section::of(name.trim()) {
            Some(section) => {
                self.current = Current::In(section);
                if section == Section::Pgbouncer {
                    self.main_sections += 1;
                    if self.main_sections > 1 {
                        let text = format!("section [pgbouncer] continues ({place})");
                        self.found.push(Diagnostic::bare(Severity::Warning, text));
                    }
                }
            }
            None => {
                self.current = Current::Unknown;
                let text = format!("invalid section \"{name}\" in configuration ({place})");
                self.error(text, place, at);
            }
        }
    }

    fn pair(&mut self, start: Rest<'_>, place: &Place) {
        let Some((key, len)) = key(start.text) else { return self.syntax(place, start.at) };
        let rest = start.after(len);
        if !rest.text.starts_with('=') {
            return self.syntax(place, rest.at);
        }
        let value = rest.after(1);
        match self.current {
            Current::None => {
                let text = format!("load_init_file: value without section: {key}");
                self.error(text, place, start.at);
            }
            Current::Unknown => {}
            Current::In(section) => {
                if start.text.starts_with('"') {
                    let text = format!("a name in double quotes ({place})");
                    self.found.push(Diagnostic::at(Severity::Better, text, place, start.at));
                }
                let columns = (start.at, value.at);
                let (value, place) = (value.text.into(), place.clone());
                self.items.push(Item { section, key, value, place, columns });
            }
        }
    }

    fn error(&mut self, text: String, place: &Place, at: usize) {
        self.found.push(Diagnostic::at(Severity::Error, text, place, at));
    }

    fn syntax(&mut self, place: &Place, at: usize) {
        self.error(format!("syntax error in configuration ({place})"), place, at);
    }
}

/// A key and its length in the text: bare, in single quotes, or in double quotes with `""` for
/// one.
fn key(text: &str) -> Option<(String, usize)> {
    if let Some(rest) = text.strip_prefix('\'') {
        let (key, _) = rest.split_once('\'')?;
        return Some((key.into(), key.len() + 2));
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
                None => return Some((key, text.len() - tail.len())),
            }
        }
    }
    let bare = |c: char| c.is_ascii_alphanumeric() || "_.*-".contains(c);
    let end = text.find(|c| !bare(c)).unwrap_or(text.len());
    (end > 0).then(|| (text[..end].into(), end))
}
