//! The first statement of a transaction, kept until a server has begun to answer it: one that was
//! refused only because its server is read-only (25006) has had no effect and is sent again.
//!
//! Replay is what the client sent: a Query, or a group up to its Sync. Answers that say nothing yet
//! (a Parse or Bind was taken, a description) are withheld until the outcome is known. Not here:
//! whether the node is still the writer. Invariants: nothing is sent twice of which the client has
//! seen an answer; more than one group is never kept; a statement is sent again once.

use switchyard_wire::tag::{backend, frontend};
use switchyard_wire::{frame, read};

/// Whether first statements are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// No.
    Off,
    /// Those that could go to another server.
    On,
}

/// What is kept.
#[derive(Debug, Default)]
pub(super) enum Replay {
    /// Nothing.
    #[default]
    Nothing,
    /// A statement was sent again; its outcome counts whatever it is.
    Again,
    /// A group, and the answers that were withheld.
    Group(Box<Group>),
}

#[derive(Debug)]
pub(super) struct Group {
    bytes: Vec<u8>,
    names: Vec<Box<[u8]>>,
    answer: Vec<u8>,
    end: End,
}

/// Whether the group is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// More of it is to come.
    Open,
    /// It is.
    Reached,
}

/// What becomes of answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Answers {
    /// They go to the client, behind these that were withheld.
    Pass(Vec<u8>),
    /// They are withheld.
    Withhold,
    /// All of them have come, and say nothing but 25006.
    Refused(Refused),
}

/// A statement that a server refused because it is read-only.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the client sent, as the hooks have let it pass.
    pub bytes: Vec<u8>,
    /// Names of statements that it prepared.
    pub names: Vec<Box<[u8]>>,
    /// What the server answered.
    pub answer: Vec<u8>,
}

/// Longest group that is kept.
const GROUP_MAX: usize = 256 * 1024;
/// Longest answer that is withheld.
const ANSWER_MAX: usize = 64 * 1024;

impl Refused {
    /// How many messages of it hooks have judged.
    pub(super) fn judged(&self) -> usize {
        let mut rest = self.bytes.as_slice();
        let mut judged = 0;
        while let Ok(Some((head, _, behind))) = frame::split(rest) {
            judged += usize::from(matches!(head.tag, frontend::QUERY | frontend::PARSE));
            rest = behind;
        }
        judged
    }
}

impl Replay {
    /// A message of the client was passed to a server, as far as it was there; the server was fresh
    /// before it, or not.
    pub(super) fn message(&mut self, fresh: Fresh, head: frame::Frame, bytes: &[u8]) {
        match (fresh, &mut *self) {
            (Fresh::Yes, Replay::Again) => return,
            (Fresh::Yes, _) => {
                let (bytes, names) = (Vec::new(), Vec::new());
                let group = Group { bytes, names, answer: Vec::new(), end: End::Open };
                *self = Replay::Group(Box::new(group));
            }
            (Fresh::No, Replay::Nothing | Replay::Again) => return,
            (Fresh::No, Replay::Group(_)) => {}
        }
        let Replay::Group(group) = self else { return };
        let ends = match head.tag {
            frontend::QUERY | frontend::FUNCTION_CALL | frontend::SYNC => End::Reached,
            frontend::PARSE
            | frontend::BIND
            | frontend::DESCRIBE
            | frontend::EXECUTE
            | frontend::CLOSE => End::Open,
            // Data of a COPY, or a Flush, which wants its answers at once.
            _ => return *self = Replay::Nothing,
        };
        if group.end == End::Reached || group.bytes.len() + head.len > GROUP_MAX {
            return *self = Replay::Nothing;
        }
        if head.tag == frontend::PARSE {
            let name = bytes.get(frame::HEADER..).and_then(read::cstr).map(|(name, _)| name);
            group.names.extend(name.filter(|name| !name.is_empty()).map(Into::into));
        }
        group.bytes.extend_from_slice(bytes);
        group.end = ends;
    }

    /// More bytes of the last message.
    pub(super) fn more(&mut self, bytes: &[u8]) {
        if let Replay::Group(group) = self {
            group.bytes.extend_from_slice(bytes);
        }
    }

    /// Whether a whole group is kept: it may be sent again, in front of whatever follows.
    #[inline]
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Replay::Group(group) if group.end == End::Reached)
    }

    /// Whether answers have to be looked at.
    #[inline]
    pub(super) fn is_group(&self) -> bool {
        matches!(self, Replay::Group(_))
    }

    /// Everything was answered.
    #[inline]
    pub(super) fn settled(&mut self) {
        *self = Replay::Nothing;
    }

    /// Names that a group has prepared whose answers the client has not seen.
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        let group = match self {
            Replay::Group(group) => Some(group),
            Replay::Nothing | Replay::Again => None,
        };
        group.into_iter().flat_map(|group| group.names.iter().map(AsRef::as_ref))
    }

    /// Whole messages, or the beginning of one, are about to go to the client.
    pub(super) fn answers(&mut self, bytes: &[u8]) -> Answers {
        let Replay::Group(group) = self else { return Answers::Pass(Vec::new()) };
        let before = group.answer.len();
        let outcome = if group.end == End::Open || before + bytes.len() > ANSWER_MAX {
            Outcome::Speaks
        } else {
            group.answer.extend_from_slice(bytes);
            outcome(&group.answer)
        };
        match outcome {
            Outcome::Silent => Answers::Withhold,
            Outcome::Speaks => {
                let mut withheld = std::mem::take(&mut group.answer);
                withheld.truncate(before);
                *self = Replay::Nothing;
                Answers::Pass(withheld)
            }
            Outcome::ReadOnly => {
                let Replay::Group(group) = std::mem::take(self) else {
                    return Answers::Pass(Vec::new());
                };
                let Group { bytes, names, answer, .. } = *group;
                Answers::Refused(Refused { bytes, names, answer })
            }
        }
    }
}

/// Whether a server owes nothing to the client and is outside a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fresh {
    Yes,
    No,
}

/// What answers say so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing yet.
    Silent,
    /// 25006 and nothing else, up to the end.
    ReadOnly,
    /// Something else.
    Speaks,
}

fn outcome(mut bytes: &[u8]) -> Outcome {
    let mut refused = Outcome::Silent;
    while !bytes.is_empty() {
        let Ok(Some((head, body, rest))) = frame::split(bytes) else {
            let silent = bytes.first().is_some_and(|tag| says_nothing(*tag) || b"ES".contains(tag));
            return if silent { Outcome::Silent } else { Outcome::Speaks };
        };
        match head.tag {
            tag if says_nothing(tag) && refused == Outcome::Silent => {}
            // A server tells of its own settings at any time.
            backend::PARAMETER_STATUS => {}
            backend::ERROR if read::field(body, b'C') == Some(b"25006") => {
                refused = Outcome::ReadOnly;
            }
            backend::READY_FOR_QUERY if refused == Outcome::ReadOnly => {
                return if body == b"I" && rest.is_empty() { refused } else { Outcome::Speaks };
            }
            _ => return Outcome::Speaks,
        }
        bytes = rest;
    }
    Outcome::Silent
}

fn says_nothing(tag: u8) -> bool {
    matches!(
        tag,
        backend::PARSE_COMPLETE
            | backend::BIND_COMPLETE
            | backend::CLOSE_COMPLETE
            | backend::PARAMETER_DESCRIPTION
            | backend::ROW_DESCRIPTION
            | backend::NO_DATA
    )
}

#[cfg(test)]
mod tests {
    use switchyard_wire::build::{self, Report};

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        build::message(&mut out, tag, |out| out.extend_from_slice(body));
        out
    }

    fn error(sqlstate: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let report = Report { severity: "ERROR", sqlstate, message: "no", detail: None };
        build::error_response(&mut out, report);
        out
    }

    fn send(kept: &mut Replay, fresh: Fresh, tag: u8, body: &[u8]) {
        let bytes = message(tag, body);
        let head = frame::Frame { tag, len: bytes.len() };
        kept.message(fresh, head, &bytes);
    }

    #[test]
    fn a_refused_query_comes_back_whole() {
        let mut kept = Replay::default();
        send(&mut kept, Fresh::Yes, b'Q', b"insert\0");
        assert_eq!(kept.answers(&error("25006")), Answers::Withhold);
        let Answers::Refused(refused) = kept.answers(&message(b'Z', b"I")) else {
            panic!("it was refused");
        };
        assert_eq!(refused.bytes, message(b'Q', b"insert\0"));
        assert_eq!(refused.answer, [error("25006"), message(b'Z', b"I")].concat());
        // Once is enough.
        kept = Replay::Again;
        send(&mut kept, Fresh::Yes, b'Q', b"insert\0");
        assert_eq!(kept.answers(&error("25006")), Answers::Pass(Vec::new()));
    }

    #[test]
    fn a_group_is_kept_up_to_its_sync() {
        let mut kept = Replay::default();
        send(&mut kept, Fresh::Yes, b'P', b"s\0insert\0\0\0");
        for (tag, body) in [(b'B', &b"\0s\0\0\0\0\0\0\0"[..]), (b'E', b"\0\0\0\0\0"), (b'S', b"")] {
            send(&mut kept, Fresh::No, tag, body);
        }
        assert_eq!(kept.answers(&message(b'1', b"")), Answers::Withhold);
        let rest = [message(b'2', b""), error("25006"), message(b'Z', b"I")].concat();
        let Answers::Refused(refused) = kept.answers(&rest) else { panic!("it was refused") };
        assert_eq!(&*refused.names, [Box::from(&b"s"[..])]);
    }

    #[test]
    fn whatever_else_is_answered_passes() {
        for (answer, withheld) in [
            (vec![message(b'C', b"INSERT 0 1\0")], vec![]),
            (vec![error("23505")], vec![]),
            (vec![message(b'1', b""), message(b'D', b"\0\0")], message(b'1', b"")),
            (vec![error("25006"), message(b'Z', b"E")], error("25006")),
        ] {
            let mut kept = Replay::default();
            send(&mut kept, Fresh::Yes, b'Q', b"insert\0");
            let last = answer.len() - 1;
            for part in &answer[..last] {
                assert_eq!(kept.answers(part), Answers::Withhold);
            }
            assert_eq!(kept.answers(&answer[last]), Answers::Pass(withheld));
        }
    }

    #[test]
    fn a_pipeline_and_a_flush_are_not_kept() {
        for tag in [b'Q', b'H'] {
            let mut kept = Replay::default();
            send(&mut kept, Fresh::Yes, b'Q', b"insert\0");
            send(&mut kept, Fresh::No, tag, b"x\0");
            assert!(!kept.is_group());
        }
    }
}
