//! MD5 authentication ("Message Formats", AuthenticationMD5Password).

use md5::{Digest, Md5};

fn hex(parts: [&[u8]; 2]) -> Vec<u8> {
    let mut hash = Md5::new();
    parts.iter().for_each(|part| hash.update(part));
    let digits = hash.finalize();
    let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
    digits.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn prefixed(parts: [&[u8]; 2]) -> Vec<u8> {
    [b"md5".to_vec(), hex(parts)].concat()
}

/// The stored form of a password: `md5` and 32 hexadecimal digits.
pub fn secret(user: &[u8], password: &[u8]) -> Vec<u8> {
    prefixed([password, user])
}

/// The answer to a challenge, from the stored form.
pub fn response(secret: &[u8], salt: [u8; 4]) -> Vec<u8> {
    prefixed([secret.strip_prefix(b"md5").unwrap_or(secret), &salt])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        let stored = secret(b"user", b"pw");
        assert_eq!(stored, b"md5871c429757b7a0bf1654fad112b77bd4");
        let answer = response(&stored, [1, 2, 3, 4]);
        assert_eq!(answer, b"md546eacb7412409e1444bde22e56e70744");
    }
}
