//! What a process prints: lines for the log, as many as anybody wants to read.

use std::io;
use std::time::{Duration, Instant};

use crate::log::{Level, Log};

/// Longest line, in bytes; the rest of it is left out.
const LINE_MAX: usize = 1000;
/// Lines of one process in a period.
const LINES_MAX: u32 = 100;
const PERIOD: Duration = Duration::from_secs(1);
/// Bytes read at once, and reads before others have their turn.
const CHUNK: usize = 64 * 1024;
const READS: usize = 16;

/// The output of a process.
#[derive(Debug)]
pub(super) struct Output {
    line: Vec<u8>,
    lines: u32,
    left_out: u64,
    period: Instant,
    more: More,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum More {
    Maybe,
    No,
}

impl Output {
    /// Nothing yet.
    pub(super) fn new(now: Instant) -> Self {
        Output { line: Vec::new(), lines: 0, left_out: 0, period: now, more: More::No }
    }

    /// Whether reading stopped before its end.
    pub(super) fn has_more(&self) -> bool {
        self.more == More::Maybe
    }

    /// Reads what is there.
    pub(super) fn read(
        &mut self,
        now: Instant,
        mut read: impl FnMut(&mut [u8]) -> io::Result<usize>,
        log: &Log,
    ) {
        let mut chunk = vec![0; CHUNK];
        self.more = More::Maybe;
        for _ in 0..READS {
            match read(&mut chunk) {
                Ok(count @ 1..) => self.take(now, &chunk[..count], log),
                Ok(0) | Err(_) => {
                    self.more = More::No;
                    return;
                }
            }
        }
    }

    /// Writes a line of a module's own at its level; it counts as printed.
    pub(super) fn say(&mut self, now: Instant, level: Level, text: &str, log: &Log) {
        if !log.enabled(level) {
            return;
        }
        self.turn(now, log);
        let end = text.floor_char_boundary(text.len().min(LINE_MAX));
        self.count(level, &text[..end].replace(['\n', '\r'], " "), log);
    }

    fn turn(&mut self, now: Instant, log: &Log) {
        if now.saturating_duration_since(self.period) > PERIOD {
            self.period = now;
            self.lines = 0;
            if self.left_out > 0 {
                let line = format!("hook: {} lines were not logged", self.left_out);
                log.write(Level::Log, &line);
                self.left_out = 0;
            }
        }
    }

    fn take(&mut self, now: Instant, bytes: &[u8], log: &Log) {
        self.turn(now, log);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let room = LINE_MAX.saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                self.write(log);
            }
        }
    }

    fn write(&mut self, log: &Log) {
        let line = std::mem::take(&mut self.line);
        self.count(Level::Log, &String::from_utf8_lossy(&line), log);
    }

    fn count(&mut self, level: Level, line: &str, log: &Log) {
        if self.lines < LINES_MAX {
            self.lines += 1;
            log.write(level, &format!("hook: {line}"));
        } else {
            self.left_out += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Stderr;

    #[test]
    fn a_gigabyte_becomes_a_hundred_lines_and_a_count() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let log = Log::new(Stderr::Quiet);
        log.set_file(Some(file.path().into()));
        let now = Instant::now();
        let mut output = Output::new(now);
        let text = "x".repeat(5000) + "\n";
        for _ in 0..300 {
            output.take(now, text.as_bytes(), &log);
        }
        output.take(now + Duration::from_secs(2), b"after\n", &log);
        let text = std::fs::read_to_string(file.path())?;
        assert_eq!(text.lines().count(), 102, "{text}");
        assert!(text.lines().all(|line| line.len() < LINE_MAX + 100));
        assert!(text.contains("hook: 200 lines were not logged"));
        assert!(text.contains("hook: after"));
        Ok(())
    }
}
