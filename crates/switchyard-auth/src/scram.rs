//! SCRAM-SHA-256 (RFC 5802, RFC 7677), both sides, with or without channel binding of the type
//! tls-server-end-point (RFC 5929).

mod message;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::secret::same;
use message::{First, Flag, Last};

/// A verifier.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    /// Rounds of hashing.
    pub iterations: u32,
    /// Salt.
    pub salt: Vec<u8>,
    /// H(ClientKey).
    pub stored_key: [u8; 32],
    /// ServerKey.
    pub server_key: [u8; 32],
}

/// The two keys of a password, which let their holder log in.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// ClientKey.
    pub client_key: [u8; 32],
    /// ServerKey.
    pub server_key: [u8; 32],
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stored")
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// H(ClientKey).
    pub fn stored_key(&self) -> [u8; 32] {
        Sha256::digest(self.client_key).into()
    }

    /// A verifier with these keys.
    pub fn stored(&self, salt: Vec<u8>, iterations: u32) -> Stored {
        let (stored_key, server_key) = (self.stored_key(), self.server_key);
        Stored { iterations, salt, stored_key, server_key }
    }
}

/// What went wrong; shows as PgBouncer's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScramError {
    /// A message does not follow the grammar.
    Malformed(String),
    /// The client wants what we do not do.
    Refused(&'static str),
    /// The nonce is not ours.
    Nonce,
    /// The proof does not fit.
    Proof,
    /// The server's signature does not fit.
    Signature,
}

impl fmt::Display for ScramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScramError::Malformed(what) => write!(f, "malformed SCRAM message ({what})"),
            ScramError::Refused(text) => f.write_str(text),
            ScramError::Nonce => f.write_str("invalid SCRAM response (nonce does not match)"),
            ScramError::Proof => f.write_str("password authentication failed"),
            ScramError::Signature => f.write_str("invalid server signature"),
        }
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn xor(mut a: [u8; 32], b: &[u8; 32]) -> [u8; 32] {
    a.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
    a
}

/// Hi() of RFC 5802.
fn salted(password: &[u8], salt: &[u8], iterations: u32) -> [u8; 32] {
    let base = Hmac::<Sha256>::new_from_slice(password).expect("HMAC takes keys of any length");
    let mut mac = base.clone();
    mac.update(salt);
    mac.update(&1u32.to_be_bytes());
    let mut round: [u8; 32] = mac.finalize().into_bytes().into();
    let mut sum = round;
    for _ in 1..iterations {
        let mut mac = base.clone();
        mac.update(&round);
        round = mac.finalize().into_bytes().into();
        sum = xor(sum, &round);
    }
    sum
}

/// The keys of a password. It goes through SASLprep; if that fails, its bytes count.
pub fn keys(password: &[u8], salt: &[u8], iterations: u32) -> Keys {
    let prepared = std::str::from_utf8(password).ok().and_then(|p| stringprep::saslprep(p).ok());
    let bytes = prepared.as_ref().map_or(password, |prepared| prepared.as_bytes());
    let salted = salted(bytes, salt, iterations);
    Keys {
        client_key: hmac(&salted, &[b"Client Key"]),
        server_key: hmac(&salted, &[b"Server Key"]),
    }
}

fn malformed(cause: &str) -> ScramError {
    ScramError::Malformed(cause.into())
}

fn attributes(message: &str) -> impl Iterator<Item = (char, &str)> {
    message.split(',').filter_map(|part| {
        let (name, value) = part.split_once('=')?;
        Some((name.chars().next()?, value))
    })
}

fn attribute(message: &str, wanted: char) -> Option<&str> {
    attributes(message).find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

/// Whether the exchange can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// If the proof is right.
    Possible,
    /// Never: the user is unknown, which must not show.
    Never,
}

/// Names of the mechanism, without and with channel binding.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The same with channel binding.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The one type of channel binding that PostgreSQL knows.
const BINDING_TYPE: &[u8] = b"tls-server-end-point";

/// What an exchange has to do with the TLS connection that it runs over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Nothing: there is none, or its certificate has no hash.
    Impossible,
    /// It could be bound to it, and the other mechanism was chosen.
    Unused,
    /// It is bound to this hash of the server's certificate.
    Used(Vec<u8>),
}

impl Binding {
    /// What the last message of a client repeats of this: its header and the hash.
    fn data(&self, gs2: &[u8]) -> String {
        match self {
            Binding::Impossible | Binding::Unused => STANDARD.encode(gs2),
            Binding::Used(hash) => STANDARD.encode([gs2, hash].concat()),
        }
    }

    /// Whether a client's flag fits.
    fn check(&self, flag: Flag<'_>) -> Result<(), ScramError> {
        match (self, flag) {
            (Binding::Impossible, Flag::Unable | Flag::Unused)
            | (Binding::Unused, Flag::Unable) => Ok(()),
            (Binding::Impossible, Flag::Used(_)) => Err(ScramError::Refused(
                "client requires SCRAM channel binding, but it is not supported",
            )),
            // Someone in between has hidden that we offer it.
            (Binding::Unused, Flag::Unused) => {
                Err(ScramError::Refused("SCRAM channel binding negotiation error"))
            }
            (Binding::Unused, Flag::Used(_)) => Err(malformed(
                "client selected SCRAM-SHA-256 without channel binding, but the SCRAM message \
                 includes channel binding data",
            )),
            (Binding::Used(_), Flag::Used(BINDING_TYPE)) => Ok(()),
            (Binding::Used(_), Flag::Used(_)) => {
                Err(ScramError::Refused("unsupported SCRAM channel-binding type"))
            }
            (Binding::Used(_), Flag::Unable | Flag::Unused) => Err(malformed(
                "client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include \
                 channel binding data",
            )),
        }
    }
}

/// The side that a client logs in to, waiting for the client's last message.
#[derive(Debug)]
pub struct ServerExchange {
    stored: Stored,
    outcome: Outcome,
    /// What the last message has to say about channel binding.
    binding: String,
    bound: Bound,
    first_bare: Vec<u8>,
    nonce: Vec<u8>,
    server_first: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    No,
    Yes,
}

/// A right proof.
#[derive(Debug)]
pub struct Accepted {
    /// The server's last message.
    pub server_final: Vec<u8>,
    /// The keys recovered from the proof.
    pub keys: Keys,
}

impl ServerExchange {
    /// Takes the client's first message; answers the exchange and the server's first message.
    pub fn start(
        stored: Stored,
        outcome: Outcome,
        message: &[u8],
        server_nonce: &str,
        binding: &Binding,
    ) -> Result<(Self, Vec<u8>), ScramError> {
        let first = First::read(message)?;
        binding.check(first.flag)?;
        let nonce = [first.nonce, server_nonce.as_bytes()].concat();
        let salt = STANDARD.encode(&stored.salt);
        let rest = format!(",s={salt},i={}", stored.iterations);
        let server_first = [b"r=", &nonce[..], rest.as_bytes()].concat();
        let answer = server_first.clone();
        let bound = if matches!(binding, Binding::Used(_)) { Bound::Yes } else { Bound::No };
        let (binding, first_bare) = (binding.data(first.gs2), first.bare.into());
        let exchange =
            ServerExchange { stored, outcome, binding, bound, first_bare, nonce, server_first };
        Ok((exchange, answer))
    }

    /// Takes the client's last message.
    pub fn finish(self, message: &[u8]) -> Result<Accepted, ScramError> {
        let last = Last::read(message)?;
        if last.binding != self.binding.as_bytes() {
            return Err(ScramError::Refused(match self.bound {
                Bound::Yes => "SCRAM channel binding check failed",
                Bound::No => "unexpected SCRAM channel-binding attribute in client-final-message",
            }));
        }
        if last.nonce != self.nonce {
            return Err(ScramError::Nonce);
        }
        let message = [&self.first_bare[..], &self.server_first, last.without_proof].join(&b',');
        let signature = hmac(&self.stored.stored_key, &[&message]);
        let client_key = xor(last.proof, &signature);
        let stored_key: [u8; 32] = Sha256::digest(client_key).into();
        if !same(&stored_key, &self.stored.stored_key) || self.outcome == Outcome::Never {
            return Err(ScramError::Proof);
        }
        let signature = hmac(&self.stored.server_key, &[&message]);
        let server_final = format!("v={}", STANDARD.encode(signature)).into_bytes();
        let keys = Keys { client_key, server_key: self.stored.server_key };
        Ok(Accepted { server_final, keys })
    }
}

/// What the side that logs in knows.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// The password.
    Password(Vec<u8>),
    /// Keys that a client's login revealed.
    Keys(Keys),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

/// Rounds of a derivation that nobody notices.
const QUICK: u32 = 10_000;

/// The work of deriving a password's keys, as much as a server asks for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Derivation {
    password: Vec<u8>,
    salt: Vec<u8>,
    iterations: u32,
}

impl fmt::Debug for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Derivation({})", self.iterations)
    }
}

impl Derivation {
    /// Whether nobody notices the time that it takes.
    pub fn is_quick(&self) -> bool {
        self.iterations <= QUICK
    }

    /// Does the work.
    pub fn run(&self) -> Keys {
        keys(&self.password, &self.salt, self.iterations)
    }
}

/// What a server's first message asks for.
#[derive(Debug)]
pub enum Challenge {
    /// The last message can be made of these keys.
    Keys(Keys),
    /// They have to be derived first.
    Derive(Derivation),
}

/// The server's first message, while keys are derived.
#[derive(Debug)]
struct Pending {
    nonce: String,
    text: String,
}

/// The side that logs in to a server.
#[derive(Debug)]
pub struct ClientExchange {
    credential: Credential,
    nonce: String,
    binding: Binding,
    pending: Option<Box<Pending>>,
    server_signature: Option<[u8; 32]>,
}

impl ClientExchange {
    /// A login with a fresh nonce of printable characters.
    pub fn new(credential: Credential, nonce: String, binding: Binding) -> Self {
        ClientExchange { credential, nonce, binding, pending: None, server_signature: None }
    }

    /// Name of the mechanism.
    pub fn mechanism(&self) -> &'static str {
        match self.binding {
            Binding::Impossible | Binding::Unused => MECHANISM,
            Binding::Used(_) => MECHANISM_PLUS,
        }
    }

    fn gs2(&self) -> &'static str {
        match self.binding {
            Binding::Impossible => "n,,",
            Binding::Unused => "y,,",
            Binding::Used(_) => "p=tls-server-end-point,,",
        }
    }

    /// The first message.
    pub fn first(&self) -> Vec<u8> {
        format!("{}n=,r={}", self.gs2(), self.nonce).into_bytes()
    }

    /// Takes the server's first message; answers our last one.
    pub fn last(&mut self, message: &[u8]) -> Result<Vec<u8>, ScramError> {
        let keys = match self.challenge(message)? {
            Challenge::Keys(keys) => keys,
            Challenge::Derive(derivation) => derivation.run(),
        };
        self.answer(&keys)
    }

    /// Takes the server's first message; `answer` follows.
    pub fn challenge(&mut self, message: &[u8]) -> Result<Challenge, ScramError> {
        let text = std::str::from_utf8(message).map_err(|_| malformed("not UTF-8"))?;
        let nonce = attribute(text, 'r').ok_or(malformed("no nonce"))?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Nonce);
        }
        let salt = attribute(text, 's').and_then(|salt| STANDARD.decode(salt).ok());
        let salt = salt.ok_or(malformed("no salt"))?;
        let iterations: Option<u32> = attribute(text, 'i').and_then(|count| count.parse().ok());
        let iterations = iterations.filter(|count| (1..=ITERATIONS_MAX).contains(count));
        let iterations = iterations.ok_or(malformed("bad iterations"))?;
        self.pending = Some(Box::new(Pending { nonce: nonce.into(), text: text.into() }));
        Ok(match &self.credential {
            Credential::Password(password) => {
                Challenge::Derive(Derivation { password: password.clone(), salt, iterations })
            }
            Credential::Keys(keys) => Challenge::Keys(keys.clone()),
        })
    }

    /// Whether a challenge waits for its answer.
    pub fn is_challenged(&self) -> bool {
        self.pending.is_some()
    }

    /// The last message, made of the keys that the challenge asked for.
    pub fn answer(&mut self, keys: &Keys) -> Result<Vec<u8>, ScramError> {
        let pending = self.pending.take().ok_or(malformed("no challenge"))?;
        let Pending { nonce, text } = *pending;
        let binding = self.binding.data(self.gs2().as_bytes());
        let without_proof = format!("c={binding},r={nonce}");
        let message = format!("n=,r={},{text},{without_proof}", self.nonce);
        let signature = hmac(&keys.stored_key(), &[message.as_bytes()]);
        self.server_signature = Some(hmac(&keys.server_key, &[message.as_bytes()]));
        let proof = STANDARD.encode(xor(keys.client_key, &signature));
        Ok(format!("{without_proof},p={proof}").into_bytes())
    }

    /// Takes the server's last message.
    pub fn check(&self, message: &[u8]) -> Result<(), ScramError> {
        let text = std::str::from_utf8(message).map_err(|_| malformed("not UTF-8"))?;
        let signature = attribute(text, 'v').and_then(|value| STANDARD.decode(value).ok());
        match (signature, self.server_signature) {
            (Some(sent), Some(wanted)) if same(&sent, &wanted) => Ok(()),
            _ => Err(ScramError::Signature),
        }
    }
}

/// Rounds beyond which a server is not believed.
const ITERATIONS_MAX: u32 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exchange(known: &[u8], typed: &[u8], outcome: Outcome) -> Result<Keys, ScramError> {
        bound(known, typed, outcome, [Binding::Impossible, Binding::Impossible])
    }

    fn bound(
        known: &[u8],
        typed: &[u8],
        outcome: Outcome,
        [ours, theirs]: [Binding; 2],
    ) -> Result<Keys, ScramError> {
        let stored = keys(known, b"salt", 7).stored(b"salt".to_vec(), 7);
        let mut client =
            ClientExchange::new(Credential::Password(typed.into()), "abc".into(), ours);
        let (server, first) =
            ServerExchange::start(stored, outcome, &client.first(), "def", &theirs)?;
        let accepted = server.finish(&client.last(&first)?)?;
        client.check(&accepted.server_final)?;
        Ok(accepted.keys)
    }

    #[test]
    fn the_example_of_rfc_7677() {
        let stored =
            keys(b"pencil", &STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").expect("salt"), 4096);
        let message = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFI\
                       lj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO\
                       %hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let proof = xor(stored.client_key, &hmac(&stored.stored_key(), &[message.as_bytes()]));
        assert_eq!(STANDARD.encode(proof), "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    }

    #[test]
    fn both_sides_agree_and_keys_log_in() {
        let found = exchange(b"pw", b"pw", Outcome::Possible).expect("the right password");
        assert_eq!(found, keys(b"pw", b"salt", 7));
        assert_eq!(exchange(b"pw", b"px", Outcome::Possible), Err(ScramError::Proof));
        assert_eq!(exchange(b"pw", b"pw", Outcome::Never), Err(ScramError::Proof));
    }

    #[test]
    fn nonces_are_those_of_this_exchange() {
        let client = || {
            let credential = Credential::Password(b"pw"[..].into());
            ClientExchange::new(credential, "abc".into(), Binding::Impossible)
        };
        for (nonce, error) in [
            ("abcdef", None),
            ("abc", Some(ScramError::Nonce)),
            ("other", Some(ScramError::Nonce)),
            ("", Some(ScramError::Nonce)),
        ] {
            let first = format!("r={nonce},s=c2FsdA==,i=7");
            assert_eq!(client().last(first.as_bytes()).err(), error, "{nonce}");
        }
        // The right answer to another question.
        let stored = || keys(b"pw", b"salt", 7).stored(b"salt".to_vec(), 7);
        let start = |nonce: &str| {
            let first = client().first();
            ServerExchange::start(stored(), Outcome::Possible, &first, nonce, &Binding::Impossible)
        };
        let (_, heard) = start("def").expect("a first message");
        let (server, _) = start("ghi").expect("a first message");
        let answer = client().last(&heard).expect("an answer");
        assert_eq!(server.finish(&answer).err(), Some(ScramError::Nonce));
    }

    #[test]
    fn bindings_have_to_fit() {
        let hash = |byte| Binding::Used(vec![byte; 32]);
        let check = |ours: Binding, theirs: Binding, expected: &str| {
            let found = bound(b"pw", b"pw", Outcome::Possible, [ours.clone(), theirs.clone()]);
            let found = found.map_or_else(|error| error.to_string(), |_| "accepted".into());
            assert!(found.contains(expected), "{ours:?} {theirs:?}: {found}");
        };
        check(hash(1), hash(1), "accepted");
        check(hash(1), hash(2), "channel binding check failed");
        check(Binding::Unused, Binding::Impossible, "accepted");
        check(Binding::Impossible, Binding::Unused, "accepted");
        check(Binding::Unused, Binding::Unused, "channel binding negotiation error");
        check(hash(1), Binding::Unused, "includes channel binding data");
        check(hash(1), Binding::Impossible, "but it is not supported");
        check(Binding::Impossible, hash(1), "does not include channel binding data");
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let stored = keys(b"pw", b"salt", 1).stored(b"salt".to_vec(), 1);
            let none = Binding::Unused;
            let possible = Outcome::Possible;
            let _ = ServerExchange::start(stored.clone(), possible, &bytes, "x", &none);
            let (server, _) = ServerExchange::start(stored, possible, b"n,,n=,r=a", "x", &none)
                .expect("a first message");
            let _ = server.finish(&bytes);
            let _ = ClientExchange::new(Credential::Password(vec![]), "a".into(), none)
                .last(&bytes);
        }
    }
}
