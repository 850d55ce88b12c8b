//! What modules ask and tell through `import switchyard`: each process has a socket of its own for
//! it, which the keeper answers. Questions come one at a time, what is told is not answered.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// The module that functions import. The script in `worker.py` gives it its backend.
pub(super) const MODULE: &str = include_str!("../../../../python/src/switchyard/__init__.py");
/// Longest message of a process, in bytes.
const MESSAGE_MAX: usize = 1 << 20;
/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// An entry of `[databases]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseFacts {
    /// Name of the entry.
    pub name: String,
    /// Hosts, with commas between them.
    pub host: Option<String>,
    /// Port.
    pub port: u16,
    /// Database at the server.
    pub dbname: String,
    /// Pool mode in force.
    pub pool_mode: String,
    /// Whether DISABLE is in force.
    pub disabled: Disabled,
}

/// Whether DISABLE is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disabled {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// A cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterFacts {
    /// State as SHOW CLUSTERS has it.
    pub state: String,
    /// Name of the writer.
    pub writer: Option<String>,
    /// Names of the readers that are well.
    pub readers: Vec<String>,
    /// Bytes behind the writer, where known.
    pub lag_bytes: Vec<(String, u64)>,
}

/// Who knows the pooler's state.
pub trait Oracle: Send + Sync {
    /// Entries of `[databases]`.
    fn databases(&self) -> Vec<DatabaseFacts>;
    /// A cluster, if this is one.
    fn cluster(&self, name: &str) -> Option<ClusterFacts>;
    /// A counter of the modules grows.
    fn count(&self, name: &str, amount: u64);
}

/// A message of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A question with its answer's fields still to be found.
    Asked(Question),
    /// A line for the log: level and text.
    Log(String, String),
    /// Counters that have grown.
    Grown(Vec<(String, u64)>),
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Parse(String),
    Fingerprint(String),
    Cluster(String),
    Databases,
}

/// The keeper's end of a process' socket for questions.
#[derive(Debug)]
pub(super) struct Ears {
    stream: Option<UnixStream>,
    heard: Vec<u8>,
    unsent: Vec<u8>,
}

impl Ears {
    /// On a stream that does not block.
    pub(super) fn new(stream: UnixStream) -> Self {
        Ears { stream: Some(stream), heard: Vec::new(), unsent: Vec::new() }
    }

    /// The descriptor to watch for input and room for output.
    pub(super) fn fd(&self) -> Option<RawFd> {
        self.stream.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Reads what has come. One whose messages make no sense is not listened to any more.
    pub(super) fn listen(&mut self) -> Vec<Told> {
        let mut chunk = [0; CHUNK];
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut chunk) {
                Ok(count @ 1..) => self.heard.extend_from_slice(&chunk[..count]),
                Ok(0) => self.stream = None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
            if self.heard.len() > 2 * MESSAGE_MAX {
                break;
            }
        }
        let mut all = Vec::new();
        let mut used = 0;
        while let Some(head) = self.heard.get(used..).and_then(|rest| rest.first_chunk::<4>()) {
            let len = u32::from_le_bytes(*head) as usize;
            if len > MESSAGE_MAX {
                self.stream = None;
                break;
            }
            let Some(body) = self.heard.get(used + 4..used + 4 + len) else { break };
            let Some(told) = told(body) else {
                self.stream = None;
                break;
            };
            all.push(told);
            used += 4 + len;
        }
        self.heard.drain(..used);
        all
    }

    /// Sends an answer.
    pub(super) fn answer(&mut self, fields: &[String]) {
        let mut body = Vec::new();
        for field in fields {
            body.extend_from_slice(&(field.len() as u32).to_le_bytes());
            body.extend_from_slice(field.as_bytes());
        }
        self.unsent.extend_from_slice(&(body.len() as u32).to_le_bytes());
        self.unsent.extend_from_slice(&body);
        self.send();
    }

    /// Sends what had no room.
    pub(super) fn send(&mut self) {
        let Some(stream) = &mut self.stream else { return self.unsent.clear() };
        while !self.unsent.is_empty() {
            match stream.write(&self.unsent) {
                Ok(count @ 1..) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Its end is seen elsewhere.
                Ok(0) | Err(_) => return self.unsent.clear(),
            }
        }
    }
}

fn told(body: &[u8]) -> Option<Told> {
    let (letter, mut rest) = body.split_first()?;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let (field, tail) = tail.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        fields.push(String::from_utf8_lossy(field).into_owned());
        rest = tail;
    }
    let question = |make: fn(String) -> Question, mut fields: Vec<String>| {
        fields.pop().map(make).map(Told::Asked)
    };
    match letter {
        b'P' => question(Question::Parse, fields),
        b'F' => question(Question::Fingerprint, fields),
        b'C' => question(Question::Cluster, fields),
        b'D' => Some(Told::Asked(Question::Databases)),
        b'L' => {
            let mut fields = fields.into_iter();
            Some(Told::Log(fields.next()?, fields.next()?))
        }
        b'I' => {
            let pair = |pair: &[String]| match pair {
                [name, amount] => Some((name.clone(), amount.parse().ok()?)),
                _ => None,
            };
            fields.chunks(2).map(pair).collect::<Option<Vec<_>>>().map(Told::Grown)
        }
        _ => None,
    }
}

/// The fields of an answer.
pub(super) fn answer(question: &Question, oracle: &dyn Oracle) -> Vec<String> {
    match question {
        Question::Parse(sql) => parsed(sql),
        Question::Fingerprint(sql) => fingerprint(sql),
        Question::Cluster(name) => oracle.cluster(name).map(cluster).unwrap_or_default(),
        Question::Databases => oracle.databases().into_iter().flat_map(database).collect(),
    }
}

fn list(out: &mut Vec<String>, names: Vec<String>) {
    out.push(names.len().to_string());
    out.extend(names);
}

fn database(facts: DatabaseFacts) -> [String; 6] {
    let DatabaseFacts { name, host, port, dbname, pool_mode, disabled } = facts;
    let disabled = u8::from(disabled == Disabled::Yes).to_string();
    [name, host.unwrap_or_default(), port.to_string(), dbname, pool_mode, disabled]
}

fn cluster(facts: ClusterFacts) -> Vec<String> {
    let mut out = vec![facts.state, facts.writer.unwrap_or_default()];
    list(&mut out, facts.readers);
    for (name, lag) in facts.lag_bytes {
        out.extend([name, lag.to_string()]);
    }
    out
}

#[cfg(feature = "sql-parser")]
fn parsed(sql: &str) -> Vec<String> {
    match switchyard_sql::parse(sql) {
        Err(error) => vec![error],
        Ok(parsed) => {
            let mut out = vec![String::new()];
            for one in parsed.statements {
                out.extend([one.kind, u8::from(one.is_read_only).to_string()]);
                list(&mut out, one.tables);
                list(&mut out, one.functions);
            }
            out
        }
    }
}

#[cfg(feature = "sql-parser")]
fn fingerprint(sql: &str) -> Vec<String> {
    switchyard_sql::fingerprint(sql).into_iter().collect()
}

#[cfg(not(feature = "sql-parser"))]
fn parsed(_sql: &str) -> Vec<String> {
    vec!["this build is without the SQL parser".into()]
}

#[cfg(not(feature = "sql-parser"))]
fn fingerprint(_sql: &str) -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(letter: u8, fields: &[&[u8]]) -> Vec<u8> {
        let mut body = vec![letter];
        for field in fields {
            body.extend_from_slice(&(field.len() as u32).to_le_bytes());
            body.extend_from_slice(field);
        }
        [&(body.len() as u32).to_le_bytes()[..], &body].concat()
    }

    #[test]
    fn messages_are_read_however_they_are_cut() -> io::Result<()> {
        let (near, mut far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        let mut ears = Ears::new(near);
        let bytes = [
            message(b'P', &[b"select \xff"]),
            message(b'L', &[b"warning", b"text"]),
            message(b'I', &[b"a", b"2", b"b", b"3"]),
            message(b'D', &[]),
        ]
        .concat();
        let mut all = Vec::new();
        for byte in bytes {
            far.write_all(&[byte])?;
            all.extend(ears.listen());
        }
        let asked = [
            Told::Asked(Question::Parse("select \u{fffd}".into())),
            Told::Log("warning".into(), "text".into()),
            Told::Grown(vec![("a".into(), 2), ("b".into(), 3)]),
            Told::Asked(Question::Databases),
        ];
        assert_eq!(all, asked);
        ears.answer(&["one".into(), String::new()]);
        let mut answer = [0; 15];
        far.read_exact(&mut answer)?;
        assert_eq!(&answer, b"\x0b\0\0\0\x03\0\0\0one\0\0\0\0");
        Ok(())
    }

    #[test]
    fn nonsense_ends_the_conversation_only() -> io::Result<()> {
        for bytes in [&[255; 64][..], &message(b'?', &[]), &message(b'I', &[b"a", b"x"])] {
            let (near, mut far) = UnixStream::pair()?;
            near.set_nonblocking(true)?;
            let mut ears = Ears::new(near);
            far.write_all(bytes)?;
            assert_eq!(ears.listen(), []);
            assert_eq!(ears.fd(), None);
            ears.answer(&[]);
        }
        Ok(())
    }

    #[test]
    fn an_answer_without_room_waits() -> io::Result<()> {
        let (near, mut far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        let mut ears = Ears::new(near);
        let long = "x".repeat(10_000_000);
        ears.answer(std::slice::from_ref(&long));
        assert!(!ears.unsent.is_empty());
        let reader = std::thread::spawn(move || {
            let mut answer = vec![0; 8 + 10_000_000];
            far.read_exact(&mut answer).map(|()| answer)
        });
        while !ears.unsent.is_empty() {
            ears.send();
            std::thread::yield_now();
        }
        let answer = reader.join().map_err(|_| io::Error::other("a panic"))??;
        assert!(answer.ends_with(b"xxx"));
        Ok(())
    }
}
