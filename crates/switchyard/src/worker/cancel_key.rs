//! Keys of cancel requests, as clients are told them.
//!
//! Eight random bytes find the client. Clients that speak protocol 3.2 are told a longer key, whose
//! rest follows from those bytes and a secret of the process, so that nobody has to remember it.
//! With a peer_id the second and third byte say whose key it is, and the lowest two bits of the
//! eighth how often a request for it may be passed on.

use sha2::{Digest, Sha256};

use crate::worker::random::Random;

/// Bytes by which a client is found.
pub(super) type Short = [u8; 8];

/// Length of a key of protocol 3.2, in bytes.
const LONG: usize = 36;
/// First byte: the top bit is never set, the next one says that the key is a long one.
const TOP: u8 = 0x80;
const IS_LONG: u8 = 0x40;
/// Last of the eight bytes: how often a request may still be passed on.
const HOPS: u8 = 0x03;

/// Which kind of key a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// Eight bytes.
    Short,
    /// That of protocol 3.2.
    Long,
}

/// A fresh key of the pooler with this peer_id; `None` without randomness.
pub(super) fn mint(length: Length, own: Option<u16>, random: &mut Random) -> Option<Short> {
    let mut key: Short = random.take()?;
    key[0] &= !(TOP | IS_LONG);
    if length == Length::Long {
        key[0] |= IS_LONG;
    }
    if let Some(own) = own {
        [key[1], key[2]] = own.to_le_bytes();
        key[7] |= HOPS;
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// It may be one of ours.
    Key(Short),
    /// It has the length of ours, but we have not told it to anybody.
    Foreign,
    /// It cannot be one of ours.
    Malformed,
    /// It is the key of a client of this peer, which is to be told this one.
    Peer(u16, Vec<u8>),
    /// It is a key of some other pooler, and was passed on too often.
    Exhausted,
}

/// Reads a key; `own` is the peer_id of this process.
pub(super) fn read(key: &[u8], secret: &[u8], own: Option<u16>) -> Received {
    let mut key = key.to_vec();
    let long = key.len() == LONG;
    let Some(short) = key.first_chunk_mut::<8>() else { return Received::Malformed };
    let peer = u16::from_le_bytes([short[1], short[2]]);
    let hops = short[7] & HOPS;
    match own {
        Some(own) if own == peer => short[7] |= HOPS,
        Some(_) if hops > 0 => short[7] -= 1,
        Some(_) | None => {}
    }
    let short = *short;
    if key.len() != short.len() && !long {
        return Received::Malformed;
    }
    if own.is_some_and(|own| own != peer) {
        return if hops == 0 { Received::Exhausted } else { Received::Peer(peer, key) };
    }
    // All bytes are compared, so that the time taken says nothing about where they differ.
    let expected = told(short, secret);
    let differ = expected.iter().zip(&key).fold(0, |sum, (a, b)| sum | (a ^ b));
    if expected.len() == key.len() && differ == 0 {
        Received::Key(short)
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
            let key = mint(length, None, &mut Random::default()).expect("randomness");
            assert_eq!(key[0] & TOP, 0);
            let told = told(key, b"secret");
            assert_eq!(told.len(), bytes);
            assert_eq!(read(&told, b"secret", None), Received::Key(key));
            let mut other = told.clone();
            other[bytes - 1] ^= 1;
            let found = if length == Length::Short {
                Received::Key(*other.first_chunk().expect("eight bytes"))
            } else {
                Received::Foreign
            };
            assert_eq!(read(&other, b"secret", None), found);
            assert_eq!(read(&told[..4], b"secret", None), Received::Malformed);
            assert_eq!(read(&[&told[..], &[0]].concat(), b"secret", None), Received::Malformed);
        }
        let long = mint(Length::Long, None, &mut Random::default()).expect("randomness");
        assert_eq!(read(&long, b"secret", None), Received::Foreign);
        assert_eq!(read(&told(long, b"other"), b"secret", None), Received::Foreign);
    }

    #[test]
    fn keys_of_peers_are_passed_on_three_times() {
        for length in [Length::Short, Length::Long] {
            let key = mint(length, Some(0x0102), &mut Random::default()).expect("randomness");
            assert_eq!((key[0] & TOP, key[1], key[2], key[7] & HOPS), (0, 2, 1, 3));
            let mut travelling = told(key, b"secret");
            for left in [2, 1, 0] {
                let Received::Peer(0x0102, next) = read(&travelling, b"other", Some(7)) else {
                    panic!("it is passed on");
                };
                assert_eq!(next[7] & HOPS, left);
                assert_eq!(read(&next, b"secret", Some(0x0102)), Received::Key(key), "{length:?}");
                travelling = next;
            }
            assert_eq!(read(&travelling, b"other", Some(7)), Received::Exhausted);
        }
    }
}
