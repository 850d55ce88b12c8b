//! The log: PgBouncer's line format, written unbuffered in the acting thread, so that a line
//! stands in the file before anybody can see the event that it explains.
//!
//! Not here: what to log, and when. Callers pass whole texts with their prefix.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use switchyard_config::reason;
use switchyard_io::sys::LocalTime;

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
    pid: u32,
    verbose: AtomicU8,
    base: AtomicU8,
    sink: Mutex<Sink>,
}

#[derive(Debug)]
struct Sink {
    /// A descriptor of its own: the SQL parser redirects the usual one while it runs.
    stderr: Option<File>,
    path: Option<PathBuf>,
    file: Option<File>,
    ending: Ending,
    /// Lines from before it is known where the log is, for the file.
    early: Vec<Early>,
    place: Place,
    complained: Option<Instant>,
    clock: Clock,
    /// The line under work: its room is used again and again.
    line: Vec<u8>,
}

/// A line that waits for the log file.
#[derive(Clone, Debug)]
struct Early {
    level: Level,
    text: String,
    line: Vec<u8>,
}

/// Whether it is known where the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Unknown,
    Known,
}

/// The texts of the current second.
#[derive(Debug, Default)]
struct Clock {
    second: u64,
    time: String,
    zone: String,
}

/// How the last line in the file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// As it should.
    Whole,
    /// In the middle, for example because the disk was full.
    Torn,
}

/// Largest buffer for a line that is kept, in bytes.
const LINE_KEPT: usize = 4096;
/// Lines that are kept for a log file that is not known yet.
const EARLY_MAX: usize = 1000;
/// Pause between two complaints about a log file that cannot be written.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

impl Log {
    /// A log that goes to stderr until [`Log::set_file`] names a file.
    pub fn new(stderr: Stderr) -> Self {
        let stderr = own_stderr(stderr);
        let sink = Sink {
            stderr,
            path: None,
            file: None,
            ending: Ending::Whole,
            early: Vec::new(),
            place: Place::Unknown,
            complained: None,
            clock: Clock::default(),
            line: Vec::new(),
        };
        Log {
            pid: std::process::id(),
            verbose: AtomicU8::new(0),
            base: AtomicU8::new(0),
            sink: Mutex::new(sink),
        }
    }

    /// The verbosity of the command line, for a configuration that says nothing.
    pub fn set_base(&self, verbose: u8) {
        self.base.store(verbose, Ordering::Relaxed);
        self.set_verbose(verbose);
    }

    /// The verbosity of the command line.
    pub fn base(&self) -> u8 {
        self.base.load(Ordering::Relaxed)
    }

    /// 0 shows up to LOG, 1 adds DEBUG, 2 and more add NOISE.
    pub fn set_verbose(&self, verbose: u8) {
        self.verbose.store(verbose, Ordering::Relaxed);
    }

    /// Whether lines go to stderr from now on.
    pub fn set_stderr(&self, stderr: Stderr) {
        self.lock().stderr = own_stderr(stderr);
    }

    /// Names the log file; it is opened at the next line, behind those that came before it was
    /// known. `None` means stderr only.
    pub fn set_file(&self, path: Option<PathBuf>) {
        let mut sink = self.lock();
        if path.is_none() {
            sink.early = Vec::new();
        }
        sink.place = Place::Known;
        sink.path = path;
        sink.file = None;
        sink.ending = Ending::Whole;
        sink.complained = None;
    }

    /// Takes the lines that wait for a log file.
    pub fn take_early(&self) -> Vec<(Level, String)> {
        let early = std::mem::take(&mut self.lock().early);
        early.into_iter().map(|early| (early.level, early.text)).collect()
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
        self.write_about("", level, text);
    }

    /// The same about something that the line begins with.
    pub fn write_about(&self, prefix: &str, level: Level, text: &str) {
        if !self.enabled(level) {
            return;
        }
        let mut guard = self.lock();
        let sink = &mut *guard;
        let mut line = std::mem::take(&mut sink.line);
        line.clear();
        sink.clock.stamp(SystemTime::now(), &mut line);
        let mut pid = itoa::Buffer::new();
        for part in [" [", pid.format(self.pid), "] ", level.name(), " "] {
            line.extend_from_slice(part.as_bytes());
        }
        if !prefix.is_empty() {
            line.extend_from_slice(prefix.as_bytes());
            line.push(b' ');
        }
        for (index, part) in text.trim_end().split('\n').enumerate() {
            if index > 0 {
                line.extend_from_slice(b"\n\t");
            }
            line.extend_from_slice(part.as_bytes());
        }
        line.push(b'\n');
        sink.write(&line);
        if sink.place == Place::Unknown && sink.early.len() < EARLY_MAX {
            let (text, line) = (text.to_owned(), line.clone());
            sink.early.push(Early { level, text, line });
        }
        if line.capacity() <= LINE_KEPT {
            sink.line = line;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sink> {
        self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn own_stderr(wish: Stderr) -> Option<File> {
    let open = || std::io::stderr().as_fd().try_clone_to_owned().ok();
    (wish == Stderr::Show).then(open).flatten().map(File::from)
}

impl Sink {
    fn write(&mut self, line: &[u8]) {
        if let Some(stderr) = &mut self.stderr {
            // A closed stderr must not end the pooler.
            let _ = stderr.write_all(line);
        }
        let Some(path) = &self.path else { return };
        if self.file.is_none() {
            match OpenOptions::new().append(true).create(true).open(path) {
                Ok(file) => {
                    self.file = Some(file);
                    for early in std::mem::take(&mut self.early) {
                        if let Err(error) = self.append(&early.line) {
                            self.complain(&error);
                        }
                    }
                }
                Err(error) => return self.complain(&error),
            }
        }
        if let Err(error) = self.append(line) {
            self.complain(&error);
        }
    }

    /// Appends a line, in one call if the system takes it whole.
    fn append(&mut self, line: &[u8]) -> std::io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if self.ending == Ending::Torn {
            file.write_all(b"\n")?;
            self.ending = Ending::Whole;
        }
        let mut rest = line;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = &rest[written..];
                    self.ending = if rest.is_empty() { Ending::Whole } else { Ending::Torn };
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says on stderr, once a minute, that the log file cannot be written; the pooler goes on.
    fn complain(&mut self, error: &std::io::Error) {
        let now = Instant::now();
        let due = self.complained.is_none_or(|last| now - last >= COMPLAINT_INTERVAL);
        if due {
            self.complained = Some(now);
            let path = self.path.as_deref().map(|path| path.display().to_string());
            let (path, text) = (path.unwrap_or_default(), reason(error));
            let _ = writeln!(std::io::stderr(), "could not write log file '{path}': {text}");
        }
    }
}

impl Clock {
    /// Appends `YYYY-MM-DD HH:MM:SS.mmm TZ` of a moment.
    fn stamp(&mut self, at: SystemTime, line: &mut Vec<u8>) {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.second != since.as_secs() || self.time.is_empty() {
            (self.time, self.zone) = parts(since);
            self.second = since.as_secs();
        }
        let millis = since.subsec_millis();
        let digit = |unit: u32| b'0' + (millis / unit % 10) as u8;
        line.extend_from_slice(self.time.as_bytes());
        line.extend_from_slice(&[b'.', digit(100), digit(10), digit(1), b' ']);
        line.extend_from_slice(self.zone.as_bytes());
    }
}

/// Time text of console columns: `YYYY-MM-DD HH:MM:SS TZ`.
pub fn time_text(at: SystemTime) -> String {
    let (text, zone) = parts(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    format!("{text} {zone}")
}

fn parts(since: Duration) -> (String, String) {
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let Some(at) = LocalTime::of(seconds) else { return Default::default() };
    let LocalTime { year, month, day, hour, minute, second, zone } = at;
    (format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"), zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_pgbouncer_writes_them() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_millis(951_782_400_050);
        let mut line = Vec::new();
        let mut clock = Clock::default();
        clock.stamp(moment, &mut line);
        let text = String::from_utf8(line).expect("text");
        assert!(text.starts_with("2000-02-2") && text.contains(":00.050 "), "{text}");
        assert_eq!(time_text(moment), text.replace(".050", ""));
        let mut later = Vec::new();
        clock.stamp(moment + Duration::from_millis(1957), &mut later);
        assert_eq!(String::from_utf8_lossy(&later), text.replace(":00.050", ":02.007"));
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
