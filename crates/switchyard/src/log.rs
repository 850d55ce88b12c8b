//! The log: PgBouncer's line format, written unbuffered in the acting thread, so that a line
//! stands in the file before anybody can see the event that it explains.
//!
//! Not here: what to log, and when. Callers pass whole texts with their prefix.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Severity of a line, most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The process or the start-up ends.
    Fatal,
    /// Something asked for did not happen.
    Error,
    /// Worth an operator's look.
    Warning,
    /// Ordinary events.
    Log,
    /// With `-v`.
    Debug,
    /// With `-v -v`.
    Noise,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Fatal => "FATAL",
            Level::Error => "ERROR",
            Level::Warning => "WARNING",
            Level::Log => "LOG",
            Level::Debug => "DEBUG",
            Level::Noise => "NOISE",
        }
    }
}

/// Whether lines also go to the standard error stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stderr {
    /// Lines are copied to stderr.
    Show,
    /// `-q`, or a daemon.
    Quiet,
}

/// The process' log. One instance is shared by all threads.
#[derive(Debug)]
pub struct Log {
    verbose: AtomicU8,
    sink: Mutex<Sink>,
}

#[derive(Debug)]
struct Sink {
    stderr: Stderr,
    path: Option<PathBuf>,
    file: Option<File>,
    complained: Option<Instant>,
}

/// Pause between two complaints about a log file that cannot be written.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

impl Log {
    /// A log that goes to stderr until [`Log::set_file`] names a file.
    pub fn new(stderr: Stderr) -> Self {
        let sink = Sink { stderr, path: None, file: None, complained: None };
        Log { verbose: AtomicU8::new(0), sink: Mutex::new(sink) }
    }

    /// 0 shows up to LOG, 1 adds DEBUG, 2 and more add NOISE.
    pub fn set_verbose(&self, verbose: u8) {
        self.verbose.store(verbose, Ordering::Relaxed);
    }

    /// Names the log file; it is opened at the next line. `None` means stderr only.
    pub fn set_file(&self, path: Option<PathBuf>) {
        let mut sink = self.lock();
        sink.path = path;
        sink.file = None;
        sink.complained = None;
    }

    /// Whether a line of `level` would be written.
    pub fn enabled(&self, level: Level) -> bool {
        let verbose = self.verbose.load(Ordering::Relaxed);
        match level {
            Level::Debug => verbose >= 1,
            Level::Noise => verbose >= 2,
            Level::Fatal | Level::Error | Level::Warning | Level::Log => true,
        }
    }

    /// Writes one line. Newlines inside become newline and tab; trailing blanks are cut.
    pub fn write(&self, level: Level, text: &str) {
        if !self.enabled(level) {
            return;
        }
        let body = text.trim_end().replace('\n', "\n\t");
        let stamp = timestamp(SystemTime::now());
        let line = format!("{stamp} [{}] {} {body}\n", std::process::id(), level.name());
        self.lock().write(line.as_bytes());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sink> {
        self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Sink {
    fn write(&mut self, line: &[u8]) {
        if self.stderr == Stderr::Show {
            // A closed stderr must not end the pooler.
            let _ = std::io::stderr().write_all(line);
        }
        let Some(path) = &self.path else { return };
        if self.file.is_none() {
            match OpenOptions::new().append(true).create(true).open(path) {
                Ok(file) => self.file = Some(file),
                Err(error) => return self.complain(&error),
            }
        }
        if let Some(Err(error)) = self.file.as_mut().map(|file| file.write_all(line)) {
            self.complain(&error);
        }
    }

    /// Says on stderr, once a minute, that the log file cannot be written; the pooler goes on.
    fn complain(&mut self, error: &std::io::Error) {
        let now = Instant::now();
        let due = self.complained.is_none_or(|last| now - last >= COMPLAINT_INTERVAL);
        if due {
            self.complained = Some(now);
            let path = self.path.as_deref().map(|path| path.display().to_string());
            let path = path.unwrap_or_default();
            let _ = writeln!(std::io::stderr(), "could not write log file '{path}': {error}");
        }
    }
}

/// `YYYY-MM-DD HH:MM:SS.mmm UTC` of a moment.
fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let civil = Civil::of(since.as_secs());
    format!("{civil}.{:03} UTC", since.subsec_millis())
}

/// Time text of console columns: `YYYY-MM-DD HH:MM:SS UTC`.
pub fn time_text(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{} UTC", Civil::of(since.as_secs()))
}

struct Civil {
    year: i64,
    month: u64,
    day: u64,
    second_of_day: u64,
}

impl Civil {
    /// Days-to-civil conversion of the proleptic Gregorian calendar, counted in eras of 400 years.
    fn of(seconds: u64) -> Self {
        let days = seconds / 86_400 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = (year_of_era + era * 400) as i64 + i64::from(month <= 2);
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        Civil { year, month, day, second_of_day: seconds % 86_400 }
    }
}

impl std::fmt::Display for Civil {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = self.second_of_day;
        let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
        write!(f, "{:04}-{:02}-{:02} {h:02}:{m:02}:{s:02}", self.year, self.month, self.day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn civil_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(time_text(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn newlines_are_indented_and_the_file_gets_the_line_at_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("log");
        let log = Log::new(Stderr::Quiet);
        log.set_file(Some(path.clone()));
        log.write(Level::Log, "one\ntwo  ");
        log.write(Level::Debug, "hidden");
        let text = std::fs::read_to_string(path).expect("the log file");
        assert!(text.ends_with("LOG one\n\ttwo\n"), "{text:?}");
    }
}
