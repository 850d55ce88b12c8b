//! One Python process: its start, its words, its end.

use std::io::{self, IoSlice, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use switchyard_config::reason;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use switchyard_core::hook::desk::Takes;

use super::ask::{self, Ears};
use super::options::HookOptions;
use super::queue::{Journal, Queues};

const SCRIPT: &str = include_str!("worker.py");
/// Longest wait for an interpreter that does not read what to load.
const PATIENCE: Duration = Duration::from_secs(10);
/// Descriptors that fit into one message of the system.
const DESCRIPTORS_MAX: usize = 253;
/// Longest message of a process to its keeper, in bytes.
const MESSAGE_MAX: usize = 1 << 30;
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// What every process of a host is started with.
#[derive(Debug)]
pub(super) struct Kit<'a> {
    /// Modules and limits.
    pub(super) options: &'a HookOptions,
    /// Channels.
    pub(super) queues: &'a Queues,
    /// Number of loops.
    pub(super) loops: usize,
    /// Pickled globals of the modules before, if there were any.
    pub(super) inherited: Option<&'a [u8]>,
}

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Becomes readable when it ends.
    pub(super) pidfd: OwnedFd,
    /// Its standard output and error output.
    pub(super) output: PipeReader,
    /// Messages both ways.
    pub(super) control: UnixStream,
    /// What it asks and tells.
    pub(super) ears: Ears,
    /// What it writes down.
    pub(super) journal: Arc<Journal>,
    /// Ends of the sockets for results, one a loop; taken once.
    pub(super) results: Vec<UnixStream>,
    heard: Vec<u8>,
}

/// A message of a process to its keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The modules are loaded.
    Loaded(Report),
    /// They are not; Python's message.
    Failed(String),
    /// Something that operators have to know.
    Warning(String),
    /// It uses that many megabytes.
    Large(u64),
    /// The modules' globals, pickled.
    Globals(Vec<u8>),
}

/// What loaded modules say about themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Results depend on the arguments only.
    pub purity: Purity,
    /// How many processes there may be.
    pub sharing: Sharing,
    /// Number of arguments of rewrite_query and routing_rules; 0 means off.
    pub arity: [u8; 2],
    /// Keys that routing_rules may return, as the modules declare them.
    pub keys: Vec<String>,
}

/// Whether results may be remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purity {
    /// They may not.
    #[default]
    Unknown,
    /// `switchyard_pure`.
    Pure,
}

/// Whether there may be several sets of globals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// One a process.
    #[default]
    Separate,
    /// `switchyard_shared_state`: one in all.
    Shared,
}

impl Report {
    fn read(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let mut parts = text.split('\0');
        let mut numbers = parts.next()?.split(' ').map(|number| number.parse::<u8>().ok());
        let mut number = || numbers.next().flatten();
        let flags = number()?;
        Some(Report {
            purity: if flags & 1 > 0 { Purity::Pure } else { Purity::Unknown },
            sharing: if flags & 2 > 0 { Sharing::Shared } else { Sharing::Separate },
            arity: [number()?, number()?],
            keys: parts.filter(|key| !key.is_empty()).map(String::from).collect(),
        })
    }
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

impl Process {
    /// Starts an interpreter, which then loads the modules.
    pub(super) fn start(kit: &Kit<'_>, takes: Takes) -> Result<Self, String> {
        let options = kit.options;
        let message = start_message(kit, takes)?;
        let text =
            |error: io::Error| format!("cannot start {}: {}", options.python, reason(&error));
        let (control, theirs) = UnixStream::pair().map_err(text)?;
        let (output, printed) = io::pipe().map_err(text)?;
        let errors = printed.try_clone().map_err(text)?;
        let journal = Journal::new().map_err(text)?;
        let (ears, mouth) = UnixStream::pair().map_err(text)?;
        let pairs: io::Result<Vec<_>> = (0..kit.loops).map(|_| UnixStream::pair()).collect();
        let (results, far): (Vec<_>, Vec<_>) = pairs.map_err(text)?.into_iter().unzip();
        let child = Command::new(&options.python)
            .args(["-u", "-c", SCRIPT, &std::process::id().to_string()])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(printed)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(text)?;
        let pidfd = Pid::from_raw(child.id().cast_signed())
            .ok_or(io::ErrorKind::NotFound.into())
            .and_then(|pid| Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?));
        let mut child = Guard(Some(child));
        let pidfd = pidfd.map_err(text)?;
        let descriptors: Vec<BorrowedFd<'_>> =
            kit.queues.descriptors(&journal).chain(far.iter().map(AsFd::as_fd)).collect();
        let descriptors = [descriptors, vec![mouth.as_fd()]].concat();
        control.set_write_timeout(Some(PATIENCE)).map_err(text)?;
        // An interpreter that has ended already says why, or its end does.
        let _ = send(&control, &message, &descriptors);
        control.set_nonblocking(true).map_err(text)?;
        rustix::io::ioctl_fionbio(&output, true).map_err(|error| text(error.into()))?;
        for stream in results.iter().chain([&ears]) {
            stream.set_nonblocking(true).map_err(text)?;
        }
        let child = child.0.take().ok_or("the interpreter is gone")?;
        let (heard, journal, ears) = (Vec::new(), Arc::new(journal), Ears::new(ears));
        Ok(Process { child, pidfd, output, control, ears, journal, results, heard })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends an order of one letter.
    pub(super) fn order(&mut self, letter: u8) {
        let message = [1, 0, 0, 0, letter];
        // One that does not read orders is ended when its time is over.
        let _ = self.control.write_all(&message);
    }

    /// Reads its messages.
    pub(super) fn words(&mut self) -> Vec<Word> {
        let mut chunk = vec![0; CHUNK];
        while let Ok(count @ 1..) = self.control.read(&mut chunk) {
            self.heard.extend_from_slice(&chunk[..count]);
        }
        let mut words = Vec::new();
        while let Some(head) = self.heard.first_chunk::<4>() {
            let len = u32::from_le_bytes(*head) as usize;
            if len > MESSAGE_MAX {
                words.push(Word::Failed("the interpreter's messages are garbled".into()));
                self.heard.clear();
                break;
            }
            let Some(body) = self.heard.get(4..4 + len) else { break };
            words.extend(word(body));
            self.heard.drain(..4 + len);
        }
        words
    }

    /// Kills it and everything it started in its group.
    pub(super) fn kill(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // Nothing of the group may be left, which is as good.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.kill();
    }

    /// Waits for its end, which has come or is near.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.kill();
        self.child.wait()
    }
}

/// A child that is not left behind when its start fails half-way.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_message(kit: &Kit<'_>, takes: Takes) -> Result<Vec<u8>, String> {
    let options = kit.options;
    let mut body = Vec::new();
    let both = u8::from(takes == Takes::Both);
    for number in [kit.loops as u64, u64::from(both), options.rss_max, options.packet_max as u64] {
        field(&mut body, number.to_string().as_bytes());
    }
    for module in &options.modules {
        field(&mut body, module.path.as_os_str().as_encoded_bytes());
    }
    for (index, module) in options.modules.iter().enumerate() {
        match &module.source {
            Ok(source) => field(&mut body, source),
            // A shadow that cannot be read says so when it is loaded.
            Err(_) if index >= 2 => field(&mut body, b"raise OSError('cannot be read')"),
            Err(text) => return Err(text.clone()),
        }
    }
    let mut inherited = Vec::new();
    if let Some(data) = kit.inherited {
        inherited.push(1);
        inherited.extend_from_slice(data);
    }
    field(&mut body, &inherited);
    field(&mut body, ask::MODULE.as_bytes());
    Ok(body)
}

/// Sends a message with descriptors in front of its first bytes.
fn send(control: &UnixStream, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let len = (body.len() as u32).to_le_bytes();
    // The descriptors go in as many parts as needed, each with a byte of the length.
    for (index, byte) in len.iter().enumerate() {
        let size = fds.len().div_ceil(len.len()).max(1);
        let part = fds.chunks(size).nth(index).unwrap_or_default();
        if part.len() > DESCRIPTORS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut space =
            [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !part.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(part)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = [*byte];
        let slices = [IoSlice::new(&bytes)];
        rustix::net::sendmsg(control, &slices, &mut ancillary, SendFlags::NOSIGNAL)?;
    }
    (&mut &*control).write_all(body)
}

fn word(body: &[u8]) -> Option<Word> {
    let (letter, rest) = body.split_first()?;
    let text = || String::from_utf8_lossy(rest).into_owned();
    match letter {
        b'L' => Report::read(rest).map(Word::Loaded),
        b'X' => Some(Word::Failed(text())),
        b'W' => Some(Word::Warning(text())),
        b'R' => Some(Word::Large(text().parse().unwrap_or(0))),
        b'D' => Some(Word::Globals(rest.to_vec())),
        _ => None,
    }
}
