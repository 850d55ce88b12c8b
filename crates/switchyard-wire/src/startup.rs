//! The untyped first messages of a connection ("Start-up", "SSL Session Encryption",
//! "Canceling Requests in Progress").

use crate::frame;
use crate::read::cstr;

/// Version word of a CancelRequest.
pub const CANCEL_CODE: u32 = 80_877_102;
/// Version word of an SSLRequest.
pub const SSL_CODE: u32 = 80_877_103;
/// Version word of a GSSENCRequest.
pub const GSS_CODE: u32 = 80_877_104;
/// Protocol 3.0.
pub const VERSION_3_0: u32 = 3 << 16;
/// Protocol 3.2.
pub const VERSION_3_2: u32 = (3 << 16) | 2;
/// Largest startup packet in bytes.
pub const STARTUP_MAX: usize = 65_536;

/// What a peer sends first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First<'a> {
    /// Not all of it is here.
    More,
    /// SSLRequest, with its length on the wire.
    Ssl(usize),
    /// GSSENCRequest, with its length on the wire.
    Gss(usize),
    /// CancelRequest with its key.
    Cancel(&'a [u8]),
    /// StartupMessage: version, body behind the version word, length on the wire.
    Startup(u32, &'a [u8], usize),
    /// A typed password message, which has no place here.
    Password,
    /// Another typed message, which has none either.
    Typed,
    /// Neither; the header bytes.
    Bad(&'a [u8]),
}

/// Reads the first message at the start of `buf`.
pub fn first(buf: &[u8]) -> First<'_> {
    match buf.first() {
        Some(b'p') => return First::Password,
        Some(0) | None => {}
        // No length below 2^24 begins with another byte, so this is a type.
        Some(_) => {
            return match frame::peek(buf, i32::MAX as usize) {
                Ok(None) => First::More,
                Ok(Some(_)) => First::Typed,
                Err(_) => First::Bad(frame::hint(buf)),
            };
        }
    }
    let Some((head, _)) = buf.split_first_chunk::<8>() else { return First::More };
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let code = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    if !(8..=STARTUP_MAX).contains(&len) {
        return First::Bad(&buf[..8]);
    }
    let Some(packet) = buf.get(..len) else { return First::More };
    match code {
        SSL_CODE if len == 8 => First::Ssl(len),
        GSS_CODE if len == 8 => First::Gss(len),
        CANCEL_CODE => First::Cancel(&packet[8..]),
        version if version >> 16 == 3 || version >> 16 == 2 => {
            First::Startup(version, &packet[8..], len)
        }
        _ => First::Bad(&buf[..8]),
    }
}

/// Name and value pairs of a startup message's body; `None` if the layout is broken.
pub fn parameters(body: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut pairs = Vec::new();
    let mut rest = body;
    loop {
        let (name, tail) = cstr(rest)?;
        if name.is_empty() {
            return tail.is_empty().then_some(pairs);
        }
        let (value, tail) = cstr(tail)?;
        pairs.push((name, value));
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;

    #[test]
    fn first_messages() {
        let mut out = Vec::new();
        build::startup(&mut out, VERSION_3_0, [(&b"user"[..], &b"u"[..])].into_iter());
        for end in 0..out.len() {
            assert_eq!(first(&out[..end]), First::More);
        }
        let First::Startup(VERSION_3_0, body, len) = first(&out) else { panic!("a startup") };
        assert_eq!(len, out.len());
        assert_eq!(parameters(body), Some(vec![(&b"user"[..], &b"u"[..])]));
        assert_eq!(parameters(&body[..body.len() - 1]), None);

        out.clear();
        build::cancel_request(&mut out, &[7; 8]);
        assert_eq!(first(&out), First::Cancel(&[7; 8]));
        assert_eq!(first(b"GET / HTTP/1.1\r\n"), First::Typed);
        assert_eq!(first(b"Q\0\0\0"), First::More);
        assert_eq!(first(b"Q\0\0\0\x03"), First::Bad(b"Q\0\0\0\x03"));
        assert_eq!(first(&[0xff; 64]), First::Bad(&[0xff; 8]));
        assert_eq!(first(b"\0\0\0\x07\0\x03\0\0"), First::Bad(b"\0\0\0\x07\0\x03\0\0"));
    }
}
