//! The binary frames between the pooler and the processes that run the user's functions.
//!
//! A call is one datagram, so that the kernel gives it to exactly one process and takes it back
//! whole. Results come as a stream of frames with a length in front. Numbers are little-endian.

use crate::hook::desk::CallId;

/// Longest call in one datagram, in bytes. A longer text goes through a file.
pub const CALL_MAX: usize = 60_000;
/// Bytes in front of the names of a call.
const CALL_HEAD: usize = 28;
/// Bytes of a result behind its length and in front of its texts.
const RESULT_HEAD: usize = 24;

const IN_TRANSACTION: u8 = 1;
const IN_FILE: u8 = 2;
const NO_REWRITE: u8 = 4;
const NO_ROUTE: u8 = 8;

/// Whether a transaction block is open where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// None is.
    Outside,
    /// One is.
    Inside,
}

/// Where the text of a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text<'a> {
    /// In the frame.
    Here(&'a [u8]),
    /// In the loop's file.
    InFile {
        /// Where it begins.
        offset: u64,
        /// Its length.
        len: u32,
    },
}

/// Which functions are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Both, as far as they are on.
    Both,
    /// rewrite_query only: a rule has said where the message goes.
    Rewrite,
    /// routing_rules only: a rule has said what the text becomes.
    Route,
}

impl Asked {
    /// The flags that say so in a frame.
    pub fn flags(self) -> u8 {
        match self {
            Asked::Both => 0,
            Asked::Rewrite => NO_ROUTE,
            Asked::Route => NO_REWRITE,
        }
    }
}

/// A question to the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// Which call of its loop.
    pub id: CallId,
    /// Which loop.
    pub home: u16,
    /// in_transaction.
    pub block: Block,
    /// Which functions are asked.
    pub asked: Asked,
    /// Login name.
    pub user: &'a [u8],
    /// Its client_encoding.
    pub encoding: &'a [u8],
    /// Text of the message.
    pub text: Text<'a>,
}

impl Call<'_> {
    /// Whether a text of this length fits into the frame.
    pub fn fits(user: &[u8], encoding: &[u8], text: usize) -> bool {
        CALL_HEAD + user.len() + encoding.len() + text <= CALL_MAX
    }

    /// Appends the frame. Names are cut at what their lengths can say.
    pub fn write(&self, out: &mut Vec<u8>) {
        let user = &self.user[..self.user.len().min(usize::from(u16::MAX) / 4)];
        let encoding = &self.encoding[..self.encoding.len().min(usize::from(u8::MAX))];
        let (flag, text, len, offset) = match self.text {
            Text::Here(text) => (0, text, text.len() as u32, 0),
            Text::InFile { offset, len } => (IN_FILE, &[][..], len, offset),
        };
        let inside = if self.block == Block::Inside { IN_TRANSACTION } else { 0 };
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.home.to_le_bytes());
        let flags = flag | inside | self.asked.flags();
        out.extend_from_slice(&[flags, encoding.len() as u8]);
        out.extend_from_slice(&(user.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(encoding);
        out.extend_from_slice(user);
        out.extend_from_slice(text);
    }

    /// Whose call a frame is.
    pub fn owner(frame: &[u8]) -> Option<(CallId, u16)> {
        let (id, rest) = frame.split_first_chunk::<8>()?;
        let home = rest.first_chunk::<2>()?;
        Some((CallId(u64::from_le_bytes(*id)), u16::from_le_bytes(*home)))
    }
}

/// What a function said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is off.
    Off,
    /// The same text or key.
    Same,
    /// None.
    None,
    /// A text or key.
    Given(Vec<u8>),
    /// It failed.
    Failed(Trouble),
}

/// Why a function failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// `Type: message`.
    pub reason: String,
    /// Python's traceback, if there is one.
    pub trace: String,
}

impl Trouble {
    /// A failure without a traceback.
    pub fn new(reason: &str) -> Self {
        Trouble { reason: reason.to_owned(), trace: String::new() }
    }
}

impl Outcome {
    fn read(code: u8, bytes: &[u8]) -> Option<Self> {
        Some(match code {
            0 => Outcome::Off,
            1 => Outcome::Same,
            2 => Outcome::Given(bytes.into()),
            3 => {
                let end = memchr::memchr(0, bytes).unwrap_or(bytes.len());
                let (reason, trace) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
                Outcome::Failed(Trouble {
                    reason: String::from_utf8_lossy(reason).into_owned(),
                    trace: String::from_utf8_lossy(trace).into_owned(),
                })
            }
            4 => Outcome::None,
            _ => return None,
        })
    }
}

/// Both functions' words about one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Of rewrite_query.
    pub rewrite: Outcome,
    /// Of routing_rules.
    pub route: Outcome,
}

/// A frame from a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A call is answered; microseconds that it took.
    Verdict(CallId, Verdict, u32),
    /// What the shadow functions would have said otherwise about rewriting and about routing;
    /// empty texts mean the same.
    Shadow(String, String),
}

/// Why a stream of results cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

/// The first frame in `input` and its length, or `None` if it is not there whole.
pub fn read(input: &[u8], len_max: usize) -> Result<Option<(Answer, usize)>, Garbled> {
    let Some(head) = input.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_le_bytes(*head) as usize;
    if len < RESULT_HEAD || len > len_max {
        return Err(Garbled);
    }
    let Some(body) = input.get(4..4 + len) else { return Ok(None) };
    let answer = answer(body).ok_or(Garbled)?;
    Ok(Some((answer, 4 + len)))
}

/// Bytes of the first frame, if its length is known.
pub fn wanted(input: &[u8]) -> Option<usize> {
    input.first_chunk::<4>().map(|head| 4 + u32::from_le_bytes(*head) as usize)
}

fn answer(body: &[u8]) -> Option<Answer> {
    let number = |at: usize| {
        let bytes = body.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let id = CallId(u64::from_le_bytes(*body.first_chunk::<8>()?));
    let [kind, rewrite, route] = *body.get(8..)?.first_chunk::<3>()?;
    let (first, second) = (number(12)? as usize, number(16)? as usize);
    let texts = body.get(RESULT_HEAD..)?;
    if texts.len() != first.checked_add(second)? {
        return None;
    }
    let (first, second) = texts.split_at(first);
    if kind == 1 {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        return Some(Answer::Shadow(text(first), text(second)));
    }
    let rewrite = Outcome::read(rewrite, first)?;
    let route = Outcome::read(route, second)?;
    Some(Answer::Verdict(id, Verdict { rewrite, route }, number(20)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_names_its_owner() {
        let mut frame = Vec::new();
        let call = Call {
            id: CallId(7),
            home: 3,
            block: Block::Inside,
            asked: Asked::Route,
            user: b"app",
            encoding: b"UTF8",
            text: Text::Here(b"select 1"),
        };
        call.write(&mut frame);
        assert_eq!(Call::owner(&frame), Some((CallId(7), 3)));
        assert_eq!(frame.len(), CALL_HEAD + 3 + 4 + 8);
        assert_eq!(Call::owner(&frame[..9]), None);
    }

    fn result(codes: [u8; 4], first: &[u8], second: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let len = RESULT_HEAD + first.len() + second.len();
        out.extend_from_slice(&(len as u32).to_le_bytes());
        out.extend_from_slice(&5u64.to_le_bytes());
        out.extend_from_slice(&codes);
        for number in [first.len() as u32, second.len() as u32, 17] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(first);
        out.extend_from_slice(second);
        out
    }

    #[test]
    fn results_are_read_however_they_are_cut() {
        let mut stream = result([0, 2, 3, 0], b"select 2", b"ValueError: no\0trace");
        let first = stream.len();
        stream.extend(result([1, 0, 0, 0], b"", b"routing_rules: a instead of b"));
        for cut in 0..first {
            assert_eq!(read(&stream[..cut], 1000), Ok(None));
        }
        let (answer, len) = read(&stream, 1000).unwrap().unwrap();
        assert_eq!(len, first);
        let trouble = Trouble { reason: "ValueError: no".into(), trace: "trace".into() };
        let rewrite = Outcome::Given(b"select 2".to_vec());
        let verdict = Verdict { rewrite, route: Outcome::Failed(trouble) };
        assert_eq!(answer, Answer::Verdict(CallId(5), verdict, 17));
        let (answer, _) = read(&stream[len..], 1000).unwrap().unwrap();
        assert!(matches!(answer, Answer::Shadow(a, b) if a.is_empty() && b.contains("instead")));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(read(&[255; 64], 1000), Err(Garbled));
        assert_eq!(read(&result([0, 9, 0, 0], b"", b""), 1000), Err(Garbled));
        let mut lies = result([0, 2, 0, 0], b"abc", b"");
        lies[16] = 200;
        assert_eq!(read(&lies, 1000), Err(Garbled));
    }
}
