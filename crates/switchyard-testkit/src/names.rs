//! A name server for tests, whose answers the test changes.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is answered for a name.
#[derive(Clone, Debug)]
enum Answer {
    Addresses(Vec<Ipv4Addr>),
    Silence,
}

/// The server. Names that it was not told of do not exist.
#[derive(Debug)]
pub struct NameServer {
    port: u16,
    directory: tempfile::TempDir,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
}

impl NameServer {
    /// Answers on a port of 127.0.0.1.
    pub fn start() -> io::Result<Self> {
        let socket = UdpSocket::bind(("127.0.0.1", 0))?;
        let server = NameServer {
            port: socket.local_addr()?.port(),
            directory: crate::directory()?,
            answers: Arc::default(),
            asked: Arc::default(),
            ended: Arc::default(),
        };
        let text = format!("nameserver 127.0.0.1:{}\noptions attempts:1\n", server.port);
        std::fs::write(server.directory.path().join("resolv.conf"), text)?;
        let (answers, asked) = (Arc::clone(&server.answers), Arc::clone(&server.asked));
        let ended = Arc::clone(&server.ended);
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut packet) {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let Some((name, kind, end)) = question(&packet[..len]) else { continue };
                let answer = {
                    let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
                    answers.get(&name).cloned()
                };
                asked.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                if let Some(reply) = reply(&packet[..end], kind, answer) {
                    // Whoever asked may be gone.
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        Ok(server)
    }

    /// The setting that makes a pooler ask this server.
    pub fn setting(&self) -> String {
        format!("resolv_conf = {}", self.directory.path().join("resolv.conf").display())
    }

    /// From now on a name has these addresses; without any it does not exist.
    pub fn set(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        self.answer(name, Answer::Addresses(addresses));
    }

    /// From now on questions for a name are not answered.
    pub fn keep_silent(&self, name: &str) {
        self.answer(name, Answer::Silence);
    }

    /// How often a name was asked for, with every kind of question.
    pub fn asked(&self, name: &str) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|asked| *asked == name).count()
    }

    fn answer(&self, name: &str, answer: Answer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.insert(name.to_owned(), answer);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that receives.
        let socket = UdpSocket::bind(("127.0.0.1", 0));
        let _ = socket.and_then(|socket| socket.send_to(b"", ("127.0.0.1", self.port)));
    }
}

/// Name and kind of a packet's question, and where it ends.
fn question(packet: &[u8]) -> Option<(String, u16, usize)> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let len = usize::from(*packet.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + len)?).to_lowercase());
        at += len;
    }
    let kind = u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]);
    Some((labels.join("."), kind, at + 4))
}

/// The question sent back with what is known.
fn reply(question: &[u8], kind: u16, answer: Option<Answer>) -> Option<Vec<u8>> {
    const KIND_A: u16 = 1;
    const NO_SUCH_NAME: u8 = 3;
    let addresses = match answer {
        Some(Answer::Silence) => return None,
        Some(Answer::Addresses(addresses)) => addresses,
        None => Vec::new(),
    };
    let code = if addresses.is_empty() { NO_SUCH_NAME } else { 0 };
    let sent = if kind == KIND_A { addresses } else { Vec::new() };
    let mut reply = question.to_vec();
    reply.get_mut(2..12)?.copy_from_slice(&[
        0x85,
        0x80 | code,
        0,
        1,
        0,
        u8::try_from(sent.len()).ok()?,
        0,
        0,
        0,
        0,
    ]);
    for address in sent {
        // The name of the question, class IN, one second.
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    Some(reply)
}
