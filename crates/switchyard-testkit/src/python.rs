//! Interpreters that the unprivileged user can run, and virtual environments for them.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{run, unprivileged};

/// An interpreter; one that only we could reach was copied for others.
#[derive(Debug)]
pub struct Python {
    path: PathBuf,
    copy: Option<tempfile::TempDir>,
}

/// A virtual environment with packages.
#[derive(Debug)]
pub struct Venv {
    directory: tempfile::TempDir,
}

fn open_directory() -> io::Result<tempfile::TempDir> {
    let directory = tempfile::Builder::new().prefix("switchyard").tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

impl Python {
    /// CPython of a version such as `3.9`, if this machine has one: on the path, or among pyenv's.
    pub fn find(version: &str) -> io::Result<Option<Self>> {
        let name = format!("python{version}");
        let runs = |path: &Path| {
            let output = unprivileged(path).arg("-c").arg("import ssl").output();
            output.is_ok_and(|output| output.status.success())
        };
        for directory in ["/usr/bin", "/usr/local/bin"] {
            let path = Path::new(directory).join(&name);
            if path.exists() && runs(&path) {
                return Ok(Some(Python { path, copy: None }));
            }
        }
        let home = std::env::var("HOME").unwrap_or_default();
        let root = std::env::var("PYENV_ROOT").unwrap_or_else(|_| format!("{home}/.pyenv"));
        let versions = std::fs::read_dir(format!("{root}/versions")).into_iter().flatten();
        for prefix in versions.flatten().map(|entry| entry.path()) {
            let path = prefix.join("bin").join(&name);
            if !path.exists() {
                continue;
            }
            if runs(&path) {
                return Ok(Some(Python { path, copy: None }));
            }
            let copy = open_directory()?;
            let to = copy.path().join("python");
            let copied =
                |how: &str| run(Command::new("cp").arg(how).arg(&prefix).arg(&to)).map(drop);
            // Links are made at once, on the same file system.
            copied("-al").or_else(|_| copied("-a"))?;
            // Its own library is looked for where it was installed.
            let script = format!(
                "#!/bin/sh\nLD_LIBRARY_PATH='{0}/lib' exec '{0}/bin/{name}' \"$@\"\n",
                to.display()
            );
            let path = copy.path().join(&name);
            std::fs::write(&path, script)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
            return Ok(runs(&path).then_some(Python { path, copy: Some(copy) }));
        }
        Ok(None)
    }

    /// The program.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a copy.
    pub fn is_copy(&self) -> bool {
        self.copy.is_some()
    }
}

impl Venv {
    /// An environment of the unprivileged user's `python3`. `None`, with a line that says so, if
    /// the packages cannot be installed, for example without a network.
    pub fn new(packages: &[&str]) -> io::Result<Option<Self>> {
        let directory = open_directory()?;
        let python = "python3 -c 'import sys; print(sys.executable)'";
        let python = run(unprivileged(Path::new("/bin/sh")).args(["-c", python]))?;
        run(Command::new(python.trim()).args(["-m", "venv"]).arg(directory.path()))?;
        let mut pip = Command::new(directory.path().join("bin/python"));
        pip.args(["-m", "pip", "install", "-q", "--disable-pip-version-check"]).args(packages);
        match run(&mut pip) {
            Ok(_) => Ok(Some(Venv { directory })),
            Err(error) => {
                println!("left out: {packages:?} cannot be installed: {error}");
                Ok(None)
            }
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}
