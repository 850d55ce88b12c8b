//! Conventions that no lint knows: sizes of files and lines, where things may be mentioned, and
//! which crate may use which.

use std::path::{Path, PathBuf};

/// Lines of production code in a file.
const FILE_MAX: usize = 600;
/// Characters in a line.
const LINE_MAX: usize = 100;
/// Crates without input or output.
const PURE: [&str; 5] = ["auth", "config", "core", "sql", "wire"];
/// What a pure crate must not mention.
const IMPURE: [&str; 5] = ["std::net", "std::fs", "std::thread", "Instant::now", "SystemTime"];
/// Crates of ours that each crate may use.
const ARROWS: [(&str, &[&str]); 9] = [
    ("auth", &["wire"]),
    ("config", &[]),
    ("core", &["auth", "wire"]),
    ("io", &[]),
    ("sim", &["auth", "core", "wire"]),
    ("sql", &[]),
    ("switchyard", &["auth", "config", "core", "io", "sql", "testkit", "wire"]),
    ("testkit", &[]),
    ("wire", &[]),
];

/// Checks all files; the error lists what is wrong, one line each.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let mut wrong = Vec::new();
    let mut files = Vec::new();
    for part in ["crates", "xtask"] {
        collect(&root.join(part), &mut files)
            .map_err(|error| format!("{}: {error}", root.join(part).display()))?;
    }
    for path in files {
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        wrong.extend(file(&name, &text));
    }
    for (name, allowed) in ARROWS {
        let folder = if name == "switchyard" { name.into() } else { format!("switchyard-{name}") };
        let path = root.join("crates").join(folder).join("Cargo.toml");
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        wrong.extend(arrows(name, allowed, &text));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

fn file(name: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if !text.starts_with("//!") {
        wrong.push(format!("{name}: no module comment"));
    }
    let production = text.split("[cfg(test)]").next().unwrap_or(text);
    let lines = production.lines().count();
    if lines > FILE_MAX {
        wrong.push(format!("{name}: {lines} lines of production code"));
    }
    for (index, line) in text.lines().enumerate() {
        if line.chars().count() > LINE_MAX {
            wrong.push(format!("{name}:{}: a long line", index + 1));
        }
    }
    let pure = PURE.iter().any(|pure| name.starts_with(&format!("crates/switchyard-{pure}/src/")));
    for word in IMPURE.iter().filter(|word| pure && production.contains(**word)) {
        wrong.push(format!("{name}: {word} in a pure crate"));
    }
    let machine = name.starts_with("crates/switchyard-core/");
    for (index, line) in production.lines().enumerate().filter(|_| machine) {
        let line = line.trim();
        if !line.starts_with("//") && line.ends_with(": bool,") && !line.contains('(') {
            wrong.push(format!("{name}:{}: a boolean field", index + 1));
        }
    }
    wrong
}

fn arrows(name: &str, allowed: &[&str], manifest: &str) -> Vec<String> {
    let used = manifest.lines().filter_map(|line| line.strip_prefix("switchyard-"));
    used.filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|used| !allowed.contains(used))
        .map(|used| format!("{name} must not use {used}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_finds_what_it_is_for() {
        let name = "crates/switchyard-core/src/a.rs";
        assert_eq!(file(name, "//! Fine.\n"), Vec::<String>::new());
        let long = "x".repeat(LINE_MAX + 1);
        for bad in ["fn a() {}", "//! A.\nuse std::net;", "//! A.\nstruct A {\n    a: bool,\n}"] {
            assert_eq!(file(name, bad).len(), 1, "{bad}");
        }
        assert_eq!(file(name, &format!("//! A.\n//{long}")).len(), 1);
        assert_eq!(file(name, &format!("//! A.\n{}", "\n".repeat(FILE_MAX))).len(), 1);
        assert_eq!(arrows("wire", &[], "switchyard-core.workspace = true").len(), 1);
        assert_eq!(arrows("core", &["wire"], "switchyard-wire.workspace = true").len(), 0);
    }
}
