//! What the demonstration prints: titles, a line that moves while a step runs, results.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const BAR: u64 = 30;

/// Standard output.
pub(crate) struct Screen {
    terminal: bool,
    interrupted: Arc<AtomicBool>,
    number: usize,
}

impl Screen {
    /// A screen that breaks off once the flag is raised.
    pub(crate) fn new(interrupted: Arc<AtomicBool>) -> Self {
        Screen { terminal: io::stdout().is_terminal(), interrupted, number: 0 }
    }

    /// Begins a step.
    pub(crate) fn title(&mut self, title: &str) -> io::Result<()> {
        self.number += 1;
        println!("\n{}. {title}", self.number);
        self.check()
    }

    /// Tells a fact that stays.
    pub(crate) fn say(&mut self, text: &str) {
        self.clear();
        for line in text.lines() {
            println!("   {line}");
        }
    }

    /// Shows how far a step is; on a terminal only.
    pub(crate) fn progress(&mut self, done: u64, total: u64, what: &str) -> io::Result<()> {
        if self.terminal {
            let full = (done.min(total) * BAR / total.max(1)) as usize;
            let (full, rest) = ("#".repeat(full), ".".repeat(BAR as usize - full));
            print!("\r\x1b[K   [{full}{rest}] {done} of {total} {what}");
            io::stdout().flush()?;
        }
        self.check()
    }

    /// Waits until `done` counts up to `total`, drawing its way.
    pub(crate) fn follow(
        &mut self,
        total: u64,
        what: &str,
        mut done: impl FnMut() -> u64,
    ) -> io::Result<()> {
        loop {
            let now = done();
            self.progress(now, total, what)?;
            if now >= total {
                self.clear();
                return Ok(());
            }
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
    }

    fn clear(&self) {
        if self.terminal {
            print!("\r\x1b[K");
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}
