//! Keys of cancel requests, as clients are told them.
//!
//! Eight random bytes find the client. Clients that speak protocol 3.2 are told a longer key, whose
//! rest follows from those bytes and a secret of the process, so that nobody has to remember it.

use sha2::{Digest, Sha256};

use crate::worker::random::Random;

/// Bytes by which a client is found.
pub(super) type Short = [u8; 8];

/// Length of a key of protocol 3.2, in bytes.
const LONG: usize = 36;
/// First byte: the top bit is never set, the next one says that the key is a long one.
const TOP: u8 = 0x80;
const IS_LONG: u8 = 0x40;

/// Which kind of key a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// Eight bytes.
    Short,
    /// That of protocol 3.2.
    Long,
}

/// A fresh key; `None` without randomness.
pub(super) fn mint(length: Length, random: &mut Random) -> Option<Short> {
    let mut key: Short = random.take()?;
    key[0] &= !(TOP | IS_LONG);
    if length == Length::Long {
        key[0] |= IS_LONG;
    }
    Some(key)
}

/// The key as its client is told it.
pub(super) fn told(key: Short, secret: &[u8]) -> Vec<u8> {
    let mut told = key.to_vec();
    if key[0] & IS_LONG != 0 {
        let digest = Sha256::new_with_prefix(secret).chain_update(key).finalize();
        told.extend(digest.iter().take(LONG - key.len()));
    }
    told
}

/// What came in a cancel request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// It may be one of ours.
    Key(Short),
    /// It has the length of ours, but we have not told it to anybody.
    Foreign,
    /// It cannot be one of ours.
    Malformed,
}

/// Reads a key.
pub(super) fn read(key: &[u8], secret: &[u8]) -> Received {
    let Some(short) = key.first_chunk::<8>().filter(|_| matches!(key.len(), 8 | LONG)) else {
        return Received::Malformed;
    };
    // All bytes are compared, so that the time taken says nothing about where they differ.
    let expected = told(*short, secret);
    let differ = expected.iter().zip(key).fold(0, |sum, (a, b)| sum | (a ^ b));
    if expected.len() == key.len() && differ == 0 {
        Received::Key(*short)
    } else {
        Received::Foreign
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_only_as_they_were_told() {
        for (length, bytes) in [(Length::Short, 8), (Length::Long, LONG)] {
            let key = mint(length, &mut Random::default()).expect("randomness");
            assert_eq!(key[0] & TOP, 0);
            let told = told(key, b"secret");
            assert_eq!(told.len(), bytes);
            assert_eq!(read(&told, b"secret"), Received::Key(key));
            let mut other = told.clone();
            other[bytes - 1] ^= 1;
            let found = if length == Length::Short {
                Received::Key(*other.first_chunk().expect("eight bytes"))
            } else {
                Received::Foreign
            };
            assert_eq!(read(&other, b"secret"), found);
            assert_eq!(read(&told[..4], b"secret"), Received::Malformed);
        }
        let long = mint(Length::Long, &mut Random::default()).expect("randomness");
        assert_eq!(read(&long, b"secret"), Received::Foreign);
        assert_eq!(read(&told(long, b"other"), b"secret"), Received::Foreign);
    }
}
