//! What lies between the loops and the processes: queues of calls that all of them share, files
//! for long texts, and the journal of each process.
//!
//! A queue is a pair of datagram sockets of which this process keeps both ends: the kernel gives
//! each call to one process only, an idle one takes it without being chosen, and what nobody has
//! begun can be taken back by receiving it here. No process has to be able to answer for that.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError};

use rustix::fs::MemfdFlags;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags};
use switchyard_core::hook::desk::{CallId, Class, Holds};
use switchyard_core::hook::frame::Call;

/// Calls handed over with one call of the system.
pub const BATCH: usize = 16;
/// Asked of the system for a queue, in bytes.
const QUEUE_SIZE: usize = 1 << 20;

/// A queue of calls.
#[derive(Debug)]
pub struct Queue {
    near: UnixDatagram,
    far: UnixDatagram,
}

impl Queue {
    /// An empty queue.
    pub fn new() -> io::Result<Self> {
        let (near, far) = UnixDatagram::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        socket2::SockRef::from(&near).set_send_buffer_size(QUEUE_SIZE)?;
        Ok(Queue { near, far })
    }

    /// Hands calls over; answers how many the queue took.
    pub fn send(&self, frames: &[&[u8]]) -> usize {
        let mut sent = 0;
        for chunk in frames.chunks(BATCH) {
            if let [frame] = chunk {
                sent += usize::from(self.near.send(frame).is_ok());
            } else {
                sent += self.send_chunk(chunk);
            }
            if sent % BATCH != 0 {
                break;
            }
        }
        sent
    }

    fn send_chunk(&self, frames: &[&[u8]]) -> usize {
        let slices: [[IoSlice<'_>; 1]; BATCH] =
            std::array::from_fn(|at| [IoSlice::new(frames.get(at).copied().unwrap_or_default())]);
        let mut none: [SendAncillaryBuffer<'_, '_, '_>; BATCH] =
            std::array::from_fn(|_| SendAncillaryBuffer::default());
        let pairs = slices.iter().zip(&mut none).take(frames.len());
        let mut messages: Vec<MMsgHdr<'_>> =
            pairs.map(|(slice, none)| MMsgHdr::new(slice, none)).collect();
        rustix::net::sendmmsg(&self.near, &mut messages, SendFlags::NOSIGNAL).unwrap_or(0)
    }

    /// Takes the oldest call back, if one lies here.
    pub fn take_back(&self, scratch: &mut [u8]) -> Option<usize> {
        self.far.recv(scratch).ok()
    }

    /// The end that processes take from.
    pub fn far(&self) -> &UnixDatagram {
        &self.far
    }
}

/// A file in memory.
pub fn memory(name: &str, len: u64) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(len)?;
    Ok(file)
}

/// A loop's file for texts that are too long for a datagram.
#[derive(Debug)]
pub struct Attic {
    file: File,
    stored: Mutex<Stored>,
}

#[derive(Debug, Default)]
struct Stored {
    end: u64,
    texts: usize,
}

impl Attic {
    /// An empty file.
    pub fn new() -> io::Result<Self> {
        Ok(Attic { file: memory("switchyard-texts", 0)?, stored: Mutex::default() })
    }

    /// Stores a text; answers where it begins.
    pub fn store(&self, text: &[u8]) -> io::Result<u64> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let at = stored.end;
        self.file.write_all_at(text, at)?;
        stored.end += text.len() as u64;
        stored.texts += 1;
        Ok(at)
    }

    /// A text is not needed any more. When none is, the memory is given back.
    pub fn forget(&self) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        stored.texts = stored.texts.saturating_sub(1);
        if stored.texts == 0 {
            stored.end = 0;
            // If it cannot be shortened it is overwritten.
            let _ = self.file.set_len(0);
        }
    }

    /// The file, for processes.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// What a process writes down about its work: the call in its hands, and results not sent yet.
/// The script in `worker.py` knows the same numbers.
#[derive(Debug)]
pub struct Journal(File);

const STATE_AT: u64 = 16;
const SERVED_AT: u64 = 17;
const FRAME_AT: u64 = 64;
const ARENA_AT: u64 = 65_536;
const JOURNAL_LEN: u64 = ARENA_AT + 192 * 1024;

impl Journal {
    /// An empty journal.
    pub fn new() -> io::Result<Self> {
        memory("switchyard-journal", JOURNAL_LEN).map(Journal)
    }

    /// What the process holds, seen from the loop `home`.
    pub fn holds(&self, home: u16) -> Holds {
        let mut bytes = [0; (FRAME_AT - STATE_AT) as usize + 10];
        if self.0.read_exact_at(&mut bytes, STATE_AT).is_err() || bytes[0] == 0 {
            return Holds::Nothing;
        }
        match Call::owner(&bytes[(FRAME_AT - STATE_AT) as usize..]) {
            Some((id, owner)) if owner == home && bytes[0] == 1 => Holds::Ours(id),
            Some((id, owner)) => Holds::Other(id.0 << 16 | u64::from(owner)),
            None => Holds::Nothing,
        }
    }

    /// Whether it has finished a call.
    pub fn has_served(&self) -> bool {
        let mut bytes = [0; SERVED_AT as usize + 1];
        let read = self.0.read_exact_at(&mut bytes, 0).is_ok();
        read && (bytes[SERVED_AT as usize] != 0 || bytes[..4] != [0; 4])
    }

    /// The call that was received last, and its loop; it may be finished.
    pub fn last(&self) -> Option<(CallId, u16)> {
        let mut bytes = [0; 10];
        self.0.read_exact_at(&mut bytes, FRAME_AT).ok()?;
        Call::owner(&bytes).filter(|(id, _)| id.0 > 0)
    }

    /// Results for the loop `home` that were not sent.
    pub fn results(&self, home: u16) -> Vec<u8> {
        let mut head = [0; 6];
        if self.0.read_exact_at(&mut head, 0).is_err() {
            return Vec::new();
        }
        let [a, b, c, d, owner @ ..] = head;
        let len = u64::from(u32::from_le_bytes([a, b, c, d])).min(JOURNAL_LEN - ARENA_AT);
        if u16::from_le_bytes(owner) != home {
            return Vec::new();
        }
        let mut results = vec![0; usize::try_from(len).unwrap_or(0)];
        match self.0.read_exact_at(&mut results, ARENA_AT) {
            Ok(()) => results,
            Err(_) => Vec::new(),
        }
    }

    /// The file, for its process.
    pub fn file(&self) -> &File {
        &self.0
    }
}

/// Both queues and the files for long texts.
#[derive(Debug)]
pub struct Queues {
    queues: [Queue; 2],
    attics: Vec<Attic>,
}

impl Queues {
    /// For so many loops.
    pub fn new(loops: usize) -> io::Result<Self> {
        let attics: io::Result<Vec<Attic>> = (0..loops).map(|_| Attic::new()).collect();
        Ok(Queues { queues: [Queue::new()?, Queue::new()?], attics: attics? })
    }

    /// The queue of a class.
    pub fn queue(&self, class: Class) -> &Queue {
        &self.queues[class as usize]
    }

    /// A loop's file.
    pub fn attic(&self, home: u16) -> Option<&Attic> {
        self.attics.get(usize::from(home))
    }

    /// Everything that each process gets.
    pub fn descriptors<'a>(
        &'a self,
        journal: &'a Journal,
    ) -> impl Iterator<Item = std::os::fd::BorrowedFd<'a>> {
        let queues = self.queues.iter().map(|queue| queue.far().as_fd());
        let attics = self.attics.iter().map(|attic| attic.file().as_fd());
        queues.chain([journal.file().as_fd()]).chain(attics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_gives_each_call_once_and_takes_back_the_rest() -> io::Result<()> {
        let queue = Queue::new()?;
        let frames: Vec<Vec<u8>> = (0..40u8).map(|number| vec![number; 100]).collect();
        let slices: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        assert_eq!(queue.send(&slices), 40);
        let mut scratch = [0; 200];
        let mut seen = Vec::new();
        while let Some(len) = queue.take_back(&mut scratch) {
            assert_eq!(len, 100);
            seen.push(scratch[0]);
        }
        assert_eq!(seen, (0..40).collect::<Vec<u8>>());
        Ok(())
    }

    #[test]
    fn a_full_queue_says_how_many_it_took() -> io::Result<()> {
        let queue = Queue::new()?;
        let frame = vec![1; 50_000];
        let slices = vec![frame.as_slice(); 100];
        let sent = queue.send(&slices);
        assert!((1..100).contains(&sent), "{sent}");
        let mut scratch = vec![0; 60_000];
        let count = std::iter::from_fn(|| queue.take_back(&mut scratch)).count();
        assert_eq!(count, sent);
        Ok(())
    }

    #[test]
    fn an_attic_gives_its_memory_back() -> io::Result<()> {
        let attic = Attic::new()?;
        assert_eq!(attic.store(&[1; 1000])?, 0);
        assert_eq!(attic.store(&[2; 1000])?, 1000);
        attic.forget();
        assert_eq!(attic.file().metadata()?.len(), 2000);
        attic.forget();
        assert_eq!(attic.file().metadata()?.len(), 0);
        Ok(())
    }
}
