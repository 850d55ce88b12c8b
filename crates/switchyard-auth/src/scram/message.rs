//! The two messages of a client's SCRAM exchange (RFC 5802, section 7), read strictly. Texts of
//! errors are PgBouncer's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::ScramError;

/// What the client says about channel binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag<'a> {
    /// `n`: it knows none.
    Unable,
    /// `y`: it knows it but thinks that we do not.
    Unused,
    /// `p=`: it uses this one.
    Used(&'a [u8]),
}

/// client-first-message.
#[derive(Debug)]
pub(super) struct First<'a> {
    pub(super) flag: Flag<'a>,
    /// The header that the last message repeats, with its commas.
    pub(super) gs2: &'a [u8],
    /// What follows it.
    pub(super) bare: &'a [u8],
    pub(super) nonce: &'a [u8],
}

/// client-final-message.
#[derive(Debug)]
pub(super) struct Last<'a> {
    /// Channel binding data, in base64.
    pub(super) binding: &'a [u8],
    pub(super) nonce: &'a [u8],
    pub(super) proof: [u8; 32],
    /// Everything before the proof's comma.
    pub(super) without_proof: &'a [u8],
}

fn malformed<T>(cause: impl Into<String>) -> Result<T, ScramError> {
    Err(ScramError::Malformed(cause.into()))
}

/// A byte as texts name it; the end of a message counts as zero.
fn name(byte: Option<&u8>) -> String {
    match byte {
        Some(byte @ 0x21..=0x7e) => format!("'{}'", char::from(*byte)),
        other => format!("0x{:02x}", other.copied().unwrap_or(0)),
    }
}

/// `a=value` at the start of `text`, and what follows its comma.
fn attribute(text: &[u8], wanted: u8) -> Result<(&[u8], &[u8]), ScramError> {
    if text.first() != Some(&wanted) {
        return malformed(format!("attribute \"{}\" expected", char::from(wanted)));
    }
    any_attribute(text).map(|(_, value, rest)| (value, rest))
}

/// The next attribute: its letter, its value, and what follows its comma.
fn any_attribute(text: &[u8]) -> Result<(u8, &[u8], &[u8]), ScramError> {
    let Some(letter) = text.first().filter(|byte| byte.is_ascii_alphabetic()) else {
        let found = name(text.first());
        return malformed(format!("attribute expected, but found invalid character \"{found}\""));
    };
    let Some(rest) = text[1..].strip_prefix(b"=") else {
        let letter = char::from(*letter);
        return malformed(format!("expected character \"=\" for attribute \"{letter}\""));
    };
    let end = rest.iter().position(|byte| *byte == b',').unwrap_or(rest.len());
    Ok((*letter, &rest[..end], rest.get(end + 1..).unwrap_or_default()))
}

fn comma(text: &[u8]) -> Result<&[u8], ScramError> {
    match text.strip_prefix(b",") {
        Some(rest) => Ok(rest),
        None => {
            let found = name(text.first());
            malformed(format!("comma expected, but found character \"{found}\""))
        }
    }
}

impl<'a> First<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self, ScramError> {
        let (flag, rest) = match message.first() {
            Some(b'n') => (Flag::Unable, comma(&message[1..])?),
            Some(b'y') => (Flag::Unused, comma(&message[1..])?),
            Some(b'p') => {
                let (binding, rest) = attribute(message, b'p')?;
                (Flag::Used(binding), rest)
            }
            other => {
                let found = name(other);
                return malformed(format!("unexpected channel-binding flag \"{found}\""));
            }
        };
        let bare = match rest.first() {
            Some(b',') => &rest[1..],
            Some(b'a') => {
                return Err(ScramError::Refused(
                    "client uses authorization identity, but it is not supported",
                ));
            }
            other => {
                let found = name(other);
                let cause = format!("unexpected attribute \"{found}\" in client-first-message");
                return malformed(cause);
            }
        };
        if bare.first() == Some(&b'm') {
            return Err(ScramError::Refused("client requires an unsupported SCRAM extension"));
        }
        // The user is the one of the startup packet, whatever is said here.
        let (_, rest) = attribute(bare, b'n')?;
        let (nonce, mut rest) = attribute(rest, b'r')?;
        if !nonce.iter().all(u8::is_ascii_graphic) {
            return Err(ScramError::Refused("non-printable characters in SCRAM nonce"));
        }
        if nonce.is_empty() {
            return malformed("attribute \"r\" expected");
        }
        while !rest.is_empty() {
            rest = any_attribute(rest)?.2;
        }
        let gs2 = &message[..message.len() - bare.len()];
        Ok(First { flag, gs2, bare, nonce })
    }
}

impl<'a> Last<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self, ScramError> {
        let (binding, rest) = attribute(message, b'c')?;
        let (nonce, mut rest) = attribute(rest, b'r')?;
        loop {
            let at = message.len() - rest.len();
            let (letter, value, tail) = any_attribute(rest)?;
            if letter != b'p' {
                rest = tail;
                continue;
            }
            let proof = STANDARD.decode(value).ok().and_then(|proof| proof.try_into().ok());
            let Some(proof) = proof else {
                return malformed("malformed proof in client-final-message");
            };
            if at + 2 + value.len() != message.len() {
                return malformed("garbage at the end of client-final-message");
            }
            return Ok(Last { binding, nonce, proof, without_proof: &message[..at - 1] });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn first(message: &str) -> String {
        match First::read(message.as_bytes()) {
            Ok(first) => String::from_utf8_lossy(first.nonce).into_owned(),
            Err(error) => error.to_string(),
        }
    }

    fn last(message: &str) -> String {
        let proof = STANDARD.encode([b'x'; 32]);
        match Last::read(message.replace("PROOF", &proof).as_bytes()) {
            Ok(last) => String::from_utf8_lossy(last.without_proof).into_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn first_messages() {
        let check =
            |message: &str, expected: &str| assert_eq!(first(message), expected, "{message}");
        for good in
            ["n,,n=,r=abc", "y,,n=a=b,r=abc", "p=x,,n=,r=abc", "n,,n=u,r=abc,e=x", "n,,n=,r=abc,"]
        {
            check(good, "abc");
        }
        let bad = |message: &str, cause: &str| {
            check(message, &format!("malformed SCRAM message ({cause})"));
        };
        bad("", "unexpected channel-binding flag \"0x00\"");
        bad("x", "unexpected channel-binding flag \"'x'\"");
        bad("n", "comma expected, but found character \"0x00\"");
        bad("nn,,n=,r=abc", "comma expected, but found character \"'n'\"");
        bad("n,", "unexpected attribute \"0x00\" in client-first-message");
        bad("n,x,n=,r=abc", "unexpected attribute \"'x'\" in client-first-message");
        bad("n,,", "attribute \"n\" expected");
        bad("n,,r=abc", "attribute \"n\" expected");
        bad("n,,n=,x=1,r=abc", "attribute \"r\" expected");
        bad("n,,n=,r=", "attribute \"r\" expected");
        bad("n,,n=,r=abc,1", "attribute expected, but found invalid character \"'1'\"");
        bad("n,,n=,r=abc,x", "expected character \"=\" for attribute \"x\"");
        check("n,a=x,n=,r=a", "client uses authorization identity, but it is not supported");
        check("n,,m=x,n=,r=a", "client requires an unsupported SCRAM extension");
        check("n,,n=,r=a c", "non-printable characters in SCRAM nonce");
        check("n,,n=,r=aéc", "non-printable characters in SCRAM nonce");
    }

    #[test]
    fn last_messages() {
        assert_eq!(last("c=biws,r=abc,p=PROOF"), "c=biws,r=abc");
        assert_eq!(last("c=biws,r=abc,e=1,p=PROOF"), "c=biws,r=abc,e=1");
        let bad = |message: &str, cause: &str| {
            assert_eq!(last(message), format!("malformed SCRAM message ({cause})"));
        };
        bad("", "attribute \"c\" expected");
        bad("r=abc,c=biws,p=PROOF", "attribute \"c\" expected");
        bad("c=biws,p=PROOF", "attribute \"r\" expected");
        bad("c=biws,r=abc", "attribute expected, but found invalid character \"0x00\"");
        bad("c=biws,r=abc,é,p=PROOF", "attribute expected, but found invalid character \"0xc3\"");
        for proof in ["", "eHg=", "%%%"] {
            let message = format!("c=biws,r=abc,p={proof}");
            bad(&message, "malformed proof in client-final-message");
        }
        bad("c=biws,r=abc,p=PROOF,x=y", "garbage at the end of client-final-message");
        bad("c=biws,r=abc,p=PROOF,", "garbage at the end of client-final-message");
    }

    proptest! {
        #[test]
        fn no_message_panics(text in "([cnprymae]=?[a-zA-Z+/=é]{0,6},?){0,6}") {
            let _ = (first(&text), last(&text));
        }
    }
}
