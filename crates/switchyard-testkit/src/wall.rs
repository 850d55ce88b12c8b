//! A wall clock of a program's own, which can be set while it runs; its monotonic clock goes on as
//! the system's does. Needs libfaketime.

use std::io;
use std::path::PathBuf;
use std::process::Command;

use crate::{directory, run};

/// The clock.
#[derive(Debug)]
pub struct Wall {
    library: PathBuf,
    directory: tempfile::TempDir,
}

impl Wall {
    /// The library, where it is installed.
    pub fn library() -> Option<PathBuf> {
        let places = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let places = places.map(|place| place.path().join("faketime/libfaketime.so.1"));
        places.into_iter().find(|path| path.exists())
    }

    /// A clock that agrees with the system's; none without the library.
    pub fn new() -> io::Result<Option<Self>> {
        let Some(library) = Self::library() else { return Ok(None) };
        let wall = Wall { library, directory: directory()? };
        run(Command::new("chmod").arg("755").arg(wall.directory.path()))?;
        wall.set(0)?;
        Ok(Some(wall))
    }

    /// Sets the clock so many seconds after the system's.
    pub fn set(&self, seconds: i64) -> io::Result<()> {
        // Whoever looks meanwhile must not find half a file.
        let fresh = self.directory.path().join("fresh");
        std::fs::write(&fresh, format!("{seconds:+}\n"))?;
        std::fs::rename(fresh, self.file())
    }

    /// The command in front of a program that lives by it.
    pub fn wrapper(&self) -> Vec<String> {
        let file = self.file().display().to_string();
        let library = self.library.display().to_string();
        let settings = [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let settings = settings.map(|(name, value)| format!("{name}={value}"));
        ["env".to_owned()].into_iter().chain(settings).collect()
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("offset")
    }
}
