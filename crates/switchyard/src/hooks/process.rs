//! One Python process: start, calls in, results out.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Call, HookOptions, Outcome, Verdict};
use crate::log::{Level, Log};

const SCRIPT: &str = include_str!("worker.py");
/// Longest loading of a module.
const LOAD_TIME: Duration = Duration::from_secs(30);
/// Longest result, in bytes.
const RESULT_MAX: usize = 1 << 31;

/// A running interpreter with the user's modules loaded.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    socket: UnixStream,
    input: Vec<u8>,
    patience: Option<Duration>,
}

fn frame(out: &mut Vec<u8>, call: &Call) {
    let user = &call.user.as_bytes()[..call.user.len().min(usize::from(u16::MAX))];
    let encoding = &call.encoding[..call.encoding.len().min(usize::from(u8::MAX))];
    let len = 4 + user.len() + encoding.len() + call.text.len();
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.push(u8::from(call.in_transaction));
    out.extend_from_slice(&(user.len() as u16).to_le_bytes());
    out.push(encoding.len() as u8);
    out.extend_from_slice(user);
    out.extend_from_slice(encoding);
    out.extend_from_slice(&call.text);
}

/// A result frame: two codes, two lengths, two texts.
fn verdict(frame: &[u8]) -> Option<Verdict> {
    let (head, rest) = frame.split_first_chunk::<10>()?;
    let [rewrite, route, a, b, c, d, lengths @ ..] = *head;
    let (first, second) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(lengths));
    let text = rest.get(..first as usize)?;
    let key = rest.get(first as usize..first as usize + second as usize)?;
    Some(Verdict { rewrite: Outcome::of(rewrite, text)?, route: Outcome::of(route, key)? })
}

impl Process {
    /// Starts an interpreter and loads the modules; the error is Python's own message.
    pub(super) fn start(options: &HookOptions, log: &Arc<Log>) -> Result<Self, String> {
        let mut sources = Vec::new();
        for module in &options.modules {
            let source = module.source.as_ref().map_err(String::clone)?;
            sources.extend_from_slice(&(source.len() as u32).to_le_bytes());
            sources.extend_from_slice(source);
        }
        let text = |error: io::Error| format!("cannot start {}: {error}", options.python);
        let (socket, theirs) = UnixStream::pair().map_err(text)?;
        let mut child = Command::new(&options.python)
            .args(["-u", "-c", SCRIPT, &options.rewrite_file, &options.route_file])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(text)?;
        if let Some(output) = child.stdout.take() {
            let log = Arc::clone(log);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines() {
                    let Ok(line) = line else { return };
                    log.write(Level::Log, &format!("hook: {line}"));
                }
            });
        }
        let mut process = Process { child, socket, input: Vec::new(), patience: None };
        // An interpreter that ended says why, or its end does.
        let _ = process.socket.write_all(&sources);
        let loaded = process.frame(Some(Instant::now() + LOAD_TIME));
        match loaded {
            Ok(error) if error.is_empty() => Ok(process),
            Ok(error) => Err(String::from_utf8_lossy(&error).into_owned()),
            Err(error) => Err(format!("the interpreter ended while loading: {error}")),
        }
    }

    /// Hands calls over.
    pub(super) fn send<'a>(&mut self, calls: impl Iterator<Item = &'a Call>) -> io::Result<()> {
        let mut out = Vec::new();
        calls.for_each(|call| frame(&mut out, call));
        self.socket.write_all(&out)
    }

    /// The next result.
    pub(super) fn receive(&mut self, deadline: Option<Instant>) -> io::Result<Verdict> {
        let frame = self.frame(deadline)?;
        verdict(&frame).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Whether another whole result has come already.
    pub(super) fn has_more(&self) -> bool {
        let head = self.input.first_chunk::<4>();
        head.is_some_and(|head| self.input.len() >= 4 + u32::from_le_bytes(*head) as usize)
    }

    /// Limits the next read. A deadline that is nearly that of the read before needs no call of
    /// the system: it is a little late then, by a tenth at most.
    fn be_patient(&mut self, left: Option<Duration>) -> io::Result<()> {
        let near = match (self.patience, left) {
            (Some(set), Some(left)) => set >= left && set - left <= left / 10,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !near {
            self.socket.set_read_timeout(left)?;
            self.patience = left;
        }
        Ok(())
    }

    fn frame(&mut self, deadline: Option<Instant>) -> io::Result<Vec<u8>> {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(head) = self.input.first_chunk::<4>() {
                let len = u32::from_le_bytes(*head) as usize;
                if len > RESULT_MAX {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                if self.input.len() >= 4 + len {
                    let rest = self.input.split_off(4 + len);
                    let mut frame = std::mem::replace(&mut self.input, rest);
                    frame.drain(..4);
                    return Ok(frame);
                }
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.be_patient(left)?;
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
