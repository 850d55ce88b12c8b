//! Secrets of users as an auth_file or PostgreSQL stores them.

use std::fmt;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::md5;
use crate::scram::{self, Stored};

/// What is known about a user's password.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// Nothing: no password fits.
    Empty,
    /// The password itself.
    Plain(Vec<u8>),
    /// `md5` and 32 hexadecimal digits.
    Md5(Vec<u8>),
    /// A SCRAM-SHA-256 verifier; the text it was read from comes along.
    Scram(Vec<u8>, Stored),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Empty => "Empty",
            Secret::Plain(_) => "Plain",
            Secret::Md5(_) => "Md5",
            Secret::Scram(..) => "Scram",
        })
    }
}

impl Secret {
    /// Tells the kind by the form.
    pub fn parse(text: &[u8]) -> Self {
        if text.is_empty() {
            return Secret::Empty;
        }
        let digits = text.strip_prefix(b"md5").filter(|digits| digits.len() == 32);
        if digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Secret::Md5(text.into());
        }
        match stored(text) {
            Some(stored) => Secret::Scram(text.into(), stored),
            None => Secret::Plain(text.into()),
        }
    }

    /// The stored text.
    pub fn text(&self) -> &[u8] {
        match self {
            Secret::Empty => b"",
            Secret::Plain(text) | Secret::Md5(text) | Secret::Scram(text, _) => text,
        }
    }

    /// Whether a password sent in the clear fits.
    pub fn accepts(&self, user: &[u8], password: &[u8]) -> bool {
        match self {
            Secret::Empty => false,
            Secret::Plain(known) => same(known, password),
            Secret::Md5(known) => same(known, &md5::secret(user, password)),
            Secret::Scram(_, stored) => {
                let keys = scram::keys(password, &stored.salt, stored.iterations);
                same(&keys.stored_key(), &stored.stored_key)
            }
        }
    }
}

/// A user's secret, with the verifier that was derived from it.
#[derive(Debug)]
pub struct Known {
    /// The secret.
    pub secret: Secret,
    derived: OnceLock<Stored>,
    md5: OnceLock<Vec<u8>>,
}

impl Known {
    /// A secret that nothing was derived from.
    pub fn new(secret: Secret) -> Self {
        Known { secret, derived: OnceLock::new(), md5: OnceLock::new() }
    }

    /// The MD5 secret of this user, who is the same at each call; `None` for one who has none.
    pub fn md5(&self, user: &[u8]) -> Option<&[u8]> {
        match &self.secret {
            Secret::Plain(password) => Some(self.md5.get_or_init(|| md5::secret(user, password))),
            Secret::Md5(stored) => Some(stored),
            Secret::Empty | Secret::Scram(..) => None,
        }
    }

    /// The SCRAM verifier of a plain password. It is derived at the first call, which takes as
    /// long as a login of the client's side, and stays.
    pub fn derived(&self, password: &[u8], salt: &[u8], iterations: u32) -> Stored {
        let derive = || scram::keys(password, salt, iterations).stored(salt.to_vec(), iterations);
        self.derived.get_or_init(derive).clone()
    }
}

/// Comparison in a time that does not depend on where the difference is.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// `SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY`.
fn stored(text: &[u8]) -> Option<Stored> {
    let text = std::str::from_utf8(text).ok()?.strip_prefix("SCRAM-SHA-256$")?;
    let (head, keys) = text.split_once('$')?;
    let (iterations, salt) = head.split_once(':')?;
    let (stored_key, server_key) = keys.split_once(':')?;
    Some(Stored {
        iterations: iterations.parse().ok().filter(|count| *count > 0)?,
        salt: STANDARD.decode(salt).ok()?,
        stored_key: STANDARD.decode(stored_key).ok()?.try_into().ok()?,
        server_key: STANDARD.decode(server_key).ok()?.try_into().ok()?,
    })
}
