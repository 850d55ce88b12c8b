//! The dialogue in which a client proves who it is. Not here: who may log in at all, and what
//! comes after. Invariant: exactly one outcome; no secret in a text.

use std::sync::Arc;

use switchyard_auth::md5;
use switchyard_auth::scram::{
    Binding, Keys, MECHANISM, MECHANISM_PLUS, Outcome, ScramError, ServerExchange, Stored,
};
use switchyard_auth::secret::{Known, Secret, same};
use switchyard_wire::build::{self, Authentication};
use switchyard_wire::{read, tag::frontend};

/// How the client is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Password in the clear.
    Plain,
    /// MD5 with this salt; users with a SCRAM secret are asked for SCRAM.
    Md5([u8; 4]),
    /// SCRAM-SHA-256.
    Scram,
}

impl Method {
    /// Whether a user is asked for SCRAM, which needs `Material`: users with a SCRAM secret are,
    /// where others are asked for MD5.
    pub fn is_scram_for(&self, known: Option<&Known>) -> bool {
        match self {
            Method::Scram => true,
            Method::Md5(_) => known.is_some_and(|known| matches!(known.secret, Secret::Scram(..))),
            Method::Plain => false,
        }
    }
}

/// Randomness and settings for one SCRAM dialogue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Material {
    /// Our part of the SCRAM nonce.
    pub nonce: String,
    /// Salt for a verifier that is derived from a plain password.
    pub salt: Vec<u8>,
    /// Salt for users who cannot log in; the same whenever one is asked.
    pub mock_salt: Vec<u8>,
    /// Rounds for derived and mock verifiers.
    pub iterations: u32,
}

/// ```text
/// Password ──► done
/// SaslInitial ──► SaslFinal ──► done
/// ```
#[derive(Debug)]
enum State {
    /// Waits for a password or an MD5 answer.
    Password,
    /// Waits for the choice of a mechanism.
    SaslInitial,
    /// Waits for the proof.
    SaslFinal(Box<ServerExchange>),
    /// Decided.
    Done,
}

/// A dialogue.
#[derive(Debug)]
pub struct Login {
    method: Method,
    user: Vec<u8>,
    known: Option<Arc<Known>>,
    material: Material,
    /// Hash of the certificate that the client was shown, if there is one to bind the login to.
    endpoint: Option<Vec<u8>>,
    state: State,
}

/// What a message brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The dialogue goes on.
    More,
    /// The client is who it says; keys come from a SCRAM login against a stored secret.
    Accepted(Option<Keys>),
    /// It is not: text of an ERROR line if there is one, and of the FATAL.
    Refused(Option<String>, &'static str),
    /// A message that has no place here; nothing is answered.
    Misplaced,
}

const PASSWORD_FAILED: &str = "password authentication failed";
const SASL_FAILED: &str = "SASL authentication failed";

impl Login {
    /// A dialogue with a user; one without a secret goes through it and fails.
    pub fn new(method: Method, user: &str, known: Option<Arc<Known>>, material: Material) -> Self {
        let method = if method.is_scram_for(known.as_deref()) { Method::Scram } else { method };
        let state = match method {
            Method::Plain | Method::Md5(_) => State::Password,
            Method::Scram => State::SaslInitial,
        };
        Login { method, user: user.into(), known, material, endpoint: None, state }
    }

    /// Offers to bind the login to the TLS connection, by the hash of its certificate.
    pub fn bound_to(self, endpoint: Option<Vec<u8>>) -> Self {
        Login { endpoint, ..self }
    }

    /// Appends the question.
    pub fn ask(&self, out: &mut Vec<u8>) {
        let request = match self.method {
            Method::Plain => Authentication::Cleartext,
            Method::Md5(salt) => Authentication::Md5(salt),
            Method::Scram if self.endpoint.is_some() => {
                Authentication::Sasl(&[MECHANISM_PLUS, MECHANISM])
            }
            Method::Scram => Authentication::Sasl(&[MECHANISM]),
        };
        build::authentication(out, request);
    }

    /// A message of the client.
    pub fn handle_message(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Step {
        if tag != frontend::PASSWORD {
            return Step::Misplaced;
        }
        match std::mem::replace(&mut self.state, State::Done) {
            State::Password => self.password(body),
            State::SaslInitial => self.sasl_initial(body, out),
            State::SaslFinal(exchange) => match exchange.finish(body) {
                Ok(accepted) => {
                    build::authentication(out, Authentication::SaslFinal(&accepted.server_final));
                    let stored = matches!(self.secret(), Some(Secret::Scram(..)));
                    Step::Accepted(stored.then_some(accepted.keys))
                }
                Err(error) => refused(error),
            },
            State::Done => Step::Misplaced,
        }
    }

    fn secret(&self) -> Option<&Secret> {
        self.known.as_ref().map(|known| &known.secret)
    }

    fn password(&self, body: &[u8]) -> Step {
        let Some((password, _)) = read::cstr(body) else {
            return Step::Refused(None, "failed to parse packet");
        };
        if password.is_empty() {
            return Step::Refused(None, "empty password returned by client");
        }
        let accepted = match (self.secret(), self.method) {
            (None, _) => false,
            (Some(_), Method::Md5(salt)) => {
                let stored = self.known.as_ref().and_then(|known| known.md5(&self.user));
                stored.is_some_and(|stored| same(&md5::response(stored, salt), password))
            }
            (Some(secret), Method::Plain | Method::Scram) => secret.accepts(&self.user, password),
        };
        if accepted { Step::Accepted(None) } else { Step::Refused(None, PASSWORD_FAILED) }
    }

    fn sasl_initial(&mut self, body: &[u8], out: &mut Vec<u8>) -> Step {
        let Some((mechanism, data)) = read::sasl_initial(body) else {
            return refused(ScramError::Malformed("broken initial response".into()));
        };
        let binding = match &self.endpoint {
            Some(hash) if mechanism == MECHANISM_PLUS.as_bytes() => Binding::Used(hash.clone()),
            Some(_) if mechanism == MECHANISM.as_bytes() => Binding::Unused,
            None if mechanism == MECHANISM.as_bytes() => Binding::Impossible,
            Some(_) | None => {
                let text = "client selected an invalid SASL authentication mechanism";
                return Step::Refused(None, text);
            }
        };
        let (stored, outcome) = match self.verifier() {
            Ok(verifier) => verifier,
            Err(cause) => return Step::Refused(Some(cause.into()), SASL_FAILED),
        };
        let message = data.unwrap_or_default();
        match ServerExchange::start(stored, outcome, message, &self.material.nonce, &binding) {
            Ok((exchange, first)) => {
                build::authentication(out, Authentication::SaslContinue(&first));
                self.state = State::SaslFinal(Box::new(exchange));
                Step::More
            }
            Err(error) => refused(error),
        }
    }

    fn verifier(&self) -> Result<(Stored, Outcome), &'static str> {
        let Material { salt, iterations, .. } = &self.material;
        let Some(known) = &self.known else { return Ok((self.mock(), Outcome::Never)) };
        match &known.secret {
            Secret::Scram(_, stored) => Ok((stored.clone(), Outcome::Possible)),
            Secret::Plain(password) => {
                Ok((known.derived(password, salt, *iterations), Outcome::Possible))
            }
            Secret::Md5(_) => Err("SCRAM authentication failed: user has MD5 secret"),
            Secret::Empty => Ok((self.mock(), Outcome::Never)),
        }
    }

    /// What a user who cannot log in is asked against.
    fn mock(&self) -> Stored {
        let (stored_key, server_key) = ([0; 32], [0; 32]);
        let (salt, iterations) = (self.material.mock_salt.clone(), self.material.iterations);
        Stored { iterations, salt, stored_key, server_key }
    }
}

fn refused(error: ScramError) -> Step {
    Step::Refused(Some(error.to_string()), SASL_FAILED)
}

#[cfg(test)]
mod tests;
