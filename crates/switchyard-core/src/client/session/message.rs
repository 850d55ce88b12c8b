//! One message of a client in its input.

use switchyard_wire::tag::frontend;
use switchyard_wire::{frame, read};

use super::terms::{Refusal, Stop};

/// A message in the input: where it starts, and its head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) head: frame::Frame,
    pub(super) at: usize,
    pub(super) input: &'a [u8],
}

impl Message<'_> {
    /// Bytes of it that are there.
    pub(super) fn there(&self) -> usize {
        self.head.len.min(self.input.len() - self.at)
    }

    /// The part of its body that is there.
    pub(super) fn body_there(&self) -> &[u8] {
        self.input.get(self.at + frame::HEADER..self.at + self.there()).unwrap_or_default()
    }
}

/// The body of a message that has to be there whole.
pub(super) fn whole<'a>(m: &Message<'a>) -> Result<&'a [u8], Stop> {
    m.input.get(m.at + frame::HEADER..m.at + m.head.len).ok_or(Stop::More)
}

/// The question to the hooks about a Query or Parse: where its text is.
pub(super) fn question(m: &Message<'_>) -> Result<Stop, Stop> {
    let body = whole(m)?;
    let start = m.at + frame::HEADER;
    if m.head.tag == frontend::QUERY {
        let Some((sql, _)) = read::cstr(body) else { return Err(refuse("bad packet", None)) };
        return Ok(Stop::Ask(start..start + sql.len()));
    }
    let Some(parse) = read::parse(body) else { return Err(refuse("broken Parse packet", None)) };
    let start = start + parse.name.len() + 1;
    Ok(Stop::Ask(start..start + parse.sql.len()))
}

pub(super) fn is_request(tag: u8) -> bool {
    matches!(
        tag,
        frontend::QUERY
            | frontend::PARSE
            | frontend::BIND
            | frontend::DESCRIBE
            | frontend::EXECUTE
            | frontend::CLOSE
            | frontend::FUNCTION_CALL
            | frontend::SYNC
            | frontend::FLUSH
    )
}

pub(super) fn unknown(tag: u8) -> Stop {
    let cause = format!("unknown pkt from client: {tag}/0x{tag:x}");
    refuse("unknown pkt", Some(cause))
}

pub(super) fn refuse(reason: impl Into<String>, cause: Option<String>) -> Stop {
    Stop::Close(Refusal { reason: reason.into(), cause })
}
