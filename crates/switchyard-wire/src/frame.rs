//! Framing of typed messages: one byte of type, four bytes of length that count themselves.
//!
//! Not here: the untyped first messages of a connection (`startup`). Invariant: any chunking of
//! a stream gives the same frames.

/// Head of a typed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Type byte.
    pub tag: u8,
    /// Length on the wire in bytes, type byte and length word included.
    pub len: usize,
}

/// Bytes of a typed message before its body.
pub const HEADER: usize = 5;

/// A length word below four or above the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader(pub [u8; HEADER]);

impl BadHeader {
    /// The header in hexadecimal, as logged.
    pub fn hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The bytes that are named when those at the start of `buf` are no header.
pub fn hint(buf: &[u8]) -> &[u8] {
    &buf[..buf.len().min(8)]
}

/// Reads the head at the start of `buf`; `None` while fewer than five bytes are there.
/// `limit` is the largest acceptable message in bytes (`max_packet_size`).
#[inline]
pub fn peek(buf: &[u8], limit: usize) -> Result<Option<Frame>, BadHeader> {
    let Some((head, _)) = buf.split_first_chunk::<HEADER>() else { return Ok(None) };
    let [tag, a, b, c, d] = *head;
    let word = u32::from_be_bytes([a, b, c, d]) as usize;
    if word < 4 || word > limit {
        return Err(BadHeader(*head));
    }
    Ok(Some(Frame { tag, len: word + 1 }))
}

/// Position behind the complete frames with one of the two `tags` that start at `at`.
///
/// The loop over rows and COPY data: nothing but their heads is looked at.
#[inline]
pub fn skip(buf: &[u8], mut at: usize, tags: [u8; 2]) -> usize {
    while let Some(head) = buf.get(at..).and_then(|rest| rest.first_chunk::<HEADER>()) {
        let [tag, a, b, c, d] = *head;
        let len = u32::from_be_bytes([a, b, c, d]) as usize + 1;
        if (tag != tags[0] && tag != tags[1]) || len < HEADER || buf.len() - at < len {
            break;
        }
        at += len;
    }
    at
}

/// A whole message: its frame, its body and the bytes that follow it.
pub type Split<'a> = (Frame, &'a [u8], &'a [u8]);

/// The whole message at the start of `buf`; `None` while it is not all there.
pub fn split(buf: &[u8]) -> Result<Option<Split<'_>>, BadHeader> {
    match peek(buf, i32::MAX as usize)? {
        Some(frame) if frame.len <= buf.len() => {
            let (message, rest) = buf.split_at(frame.len);
            Ok(Some((frame, &message[HEADER..], rest)))
        }
        Some(_) | None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        assert_eq!(peek(b"Q\0\0\0", 100), Ok(None));
        assert_eq!(peek(b"Q\0\0\0\x04", 100), Ok(Some(Frame { tag: b'Q', len: 5 })));
        assert_eq!(peek(b"Q\0\0\0\x03", 100).map_err(BadHeader::hex), Err("5100000003".into()));
        assert!(peek(b"Q\0\0\x01\0", 100).is_err());
    }

    #[test]
    fn rows_are_skipped_up_to_the_first_other_or_partial_frame() {
        let rows = b"D\0\0\0\x05xd\0\0\0\x04Z\0\0\0\x05I";
        assert_eq!(skip(rows, 0, *b"Dd"), 11);
        assert_eq!(skip(&rows[..9], 0, *b"Dd"), 6);
        assert_eq!(skip(rows, 11, *b"Dd"), 11);
    }
}
