//! A Python module for the hooks of a pooler.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A file `rules.py` in a directory of its own, readable for everybody.
#[derive(Debug)]
pub struct Rules {
    directory: tempfile::TempDir,
}

impl Rules {
    /// Writes the module.
    pub fn new(source: &str) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("switchyard").tempdir()?;
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        let rules = Rules { directory };
        rules.write(source)?;
        Ok(rules)
    }

    /// Replaces the module; the pooler takes it at its next reload.
    pub fn write(&self, source: &str) -> io::Result<()> {
        std::fs::write(self.path(), source)?;
        std::fs::set_permissions(self.path(), Permissions::from_mode(0o644))
    }

    /// The module's file.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("rules.py")
    }

    /// Lines of an ini that name it for these settings' functions.
    pub fn settings(&self, names: &[&str]) -> String {
        let line = |name: &&str| format!("{name}_py_module_file = {}\n", self.path().display());
        names.iter().map(line).collect()
    }
}
