//! Keys that were derived from passwords, for the next login with the same challenge: a server
//! asks every one of its clients for the same salt until the password changes.

use std::collections::HashMap;

use crate::scram::{Derivation, Keys};

/// The keys last used, of which the number is bounded.
#[derive(Debug)]
pub struct Keyring {
    keys: HashMap<Derivation, Kept>,
    room: usize,
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    keys: Keys,
    used: u64,
}

impl Keyring {
    /// An empty one with room for so many.
    pub fn new(room: usize) -> Self {
        Keyring { keys: HashMap::new(), room, uses: 0 }
    }

    /// The outcome of a derivation, if it is known.
    pub fn get(&mut self, work: &Derivation) -> Option<Keys> {
        self.uses += 1;
        let kept = self.keys.get_mut(work)?;
        kept.used = self.uses;
        Some(kept.keys.clone())
    }

    /// Keeps the outcome of a derivation; what was not used for the longest time makes room.
    pub fn put(&mut self, work: Derivation, keys: Keys) {
        self.uses += 1;
        if self.keys.len() >= self.room && !self.keys.contains_key(&work) {
            let oldest = self.keys.iter().min_by_key(|(_, kept)| kept.used);
            if let Some(oldest) = oldest.map(|(work, _)| work.clone()) {
                self.keys.remove(&oldest);
            }
        }
        self.keys.insert(work, Kept { keys, used: self.uses });
    }

    /// Forgets everything: passwords may have changed.
    pub fn clear(&mut self) {
        self.keys.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scram::{Binding, Challenge, ClientExchange, Credential};

    fn work(password: &str, salt: &str, iterations: u32) -> Derivation {
        let credential = Credential::Password(password.into());
        let mut exchange = ClientExchange::new(credential, "n".into(), Binding::Impossible);
        let message = format!("r=nm,s={salt},i={iterations}");
        match exchange.challenge(message.as_bytes()) {
            Ok(Challenge::Derive(work)) => work,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_are_those_of_their_password_salt_and_rounds() {
        let mut ring = Keyring::new(10);
        let known = work("pw", "c2FsdA==", 3);
        assert_eq!(ring.get(&known), None);
        ring.put(known.clone(), known.run());
        assert_eq!(ring.get(&work("pw", "c2FsdA==", 3)), Some(known.run()));
        for other in
            [work("px", "c2FsdA==", 3), work("pw", "c2FsdGE=", 3), work("pw", "c2FsdA==", 4)]
        {
            assert_eq!(ring.get(&other).is_some(), other == known, "{other:?}");
        }
        ring.clear();
        assert_eq!(ring.get(&known), None);
    }

    #[test]
    fn what_is_used_stays() {
        let mut ring = Keyring::new(2);
        let [a, b, c] = ["a", "b", "c"].map(|password| work(password, "c2FsdA==", 1));
        ring.put(a.clone(), a.run());
        ring.put(b.clone(), b.run());
        assert!(ring.get(&a).is_some());
        ring.put(c.clone(), c.run());
        assert_eq!((ring.get(&b), ring.keys.len()), (None, 2));
        assert!(ring.get(&a).is_some() && ring.get(&c).is_some());
        ring.put(c.clone(), c.run());
        assert!(ring.get(&a).is_some(), "what is there already needs no room");
    }
}
