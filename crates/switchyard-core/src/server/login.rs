//! Logging in to a server: startup packet, password dialogue, parameters, until it is ready.
//! Texts are PgBouncer's.

use switchyard_auth::md5;
use switchyard_auth::scram::{
    Binding, Challenge, ClientExchange, Credential, Derivation, Keys, MECHANISM, MECHANISM_PLUS,
    ScramError,
};
use switchyard_auth::secret::Secret;
use switchyard_wire::startup::VERSION_3_0;
use switchyard_wire::tag::backend;
use switchyard_wire::{build, read};

/// What is needed to log in.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// User name.
    pub user: String,
    /// Its secret, if any is known.
    pub secret: Option<Secret>,
    /// Keys of a client's SCRAM login with that secret.
    pub keys: Option<Keys>,
    /// A fresh nonce.
    pub nonce: String,
}

/// What a server said when it was ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Welcome {
    /// Reported parameters in order.
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
    /// Process id.
    pub pid: u32,
    /// Process id and secret, as a cancel request has to carry them.
    pub key: Vec<u8>,
}

/// What a message brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerLoginStep {
    /// The login goes on.
    More,
    /// It goes on with [`ServerLogin::derived`] when this was done. That takes its time; unless it
    /// is quick, it is not for a thread that others wait for.
    Derive(Derivation),
    /// The server is ready.
    Done(Welcome),
}

/// Why a login failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerLoginError {
    /// The server said no.
    Refused {
        /// Its severity.
        severity: String,
        /// Its SQLSTATE; 08P01 if it sent none.
        sqlstate: String,
        /// Its message.
        message: String,
    },
    /// We cannot answer its question: ERROR line, and the text for clients if they are told.
    CannotAnswer(String, Option<&'static str>),
    /// It broke the protocol; why.
    Broken(&'static str),
}

/// A login under way.
#[derive(Debug)]
pub struct ServerLogin {
    parameters: Vec<(String, String)>,
    credentials: Credentials,
    /// Hash of the server's certificate, if there is one to bind the login to.
    endpoint: Option<Vec<u8>>,
    exchange: Option<ClientExchange>,
    welcome: Welcome,
}

type Answer = Result<ServerLoginStep, ServerLoginError>;

impl ServerLogin {
    /// A login with these startup parameters, the user's name aside.
    pub fn new(parameters: Vec<(String, String)>, credentials: Credentials) -> Self {
        let (endpoint, exchange, welcome) = (None, None, Welcome::default());
        ServerLogin { parameters, credentials, endpoint, exchange, welcome }
    }

    /// Binds the login to its TLS connection, by the hash of the server's certificate.
    pub fn bind(&mut self, endpoint: Option<Vec<u8>>) {
        self.endpoint = endpoint;
    }

    /// Appends the startup packet.
    pub fn start(&self, out: &mut Vec<u8>) {
        let user = [("user", self.credentials.user.as_str())];
        let rest = self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let pairs = user.into_iter().chain(rest);
        let bytes = pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        build::startup(out, VERSION_3_0, bytes);
    }

    /// A message of the server.
    pub fn handle_message(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) -> Answer {
        let waits = self.exchange.as_ref().is_some_and(ClientExchange::is_challenged);
        match tag {
            // The server has spoken last, and has to wait for our answer.
            _ if waits && tag != backend::ERROR => {
                Err(ServerLoginError::Broken("unknown pkt from server"))
            }
            backend::AUTHENTICATION => self.authentication(body, out),
            backend::ERROR => Err(refused(body)),
            backend::NOTICE | backend::NEGOTIATE_PROTOCOL => Ok(ServerLoginStep::More),
            backend::PARAMETER_STATUS => {
                let pair = read::parameter_status(body);
                let (name, value) =
                    pair.ok_or(ServerLoginError::Broken("broken ParameterStatus packet"))?;
                self.welcome.parameters.push((name.into(), value.into()));
                Ok(ServerLoginStep::More)
            }
            backend::BACKEND_KEY_DATA => {
                let pid = body.first_chunk::<4>().filter(|_| body.len() >= 8);
                let pid = pid.ok_or(ServerLoginError::Broken("bad cancel key"))?;
                self.welcome.pid = u32::from_be_bytes(*pid);
                self.welcome.key = body.into();
                Ok(ServerLoginStep::More)
            }
            backend::READY_FOR_QUERY => {
                Ok(ServerLoginStep::Done(std::mem::take(&mut self.welcome)))
            }
            _ => Err(ServerLoginError::Broken("unknown pkt from server")),
        }
    }

    fn authentication(&mut self, body: &[u8], out: &mut Vec<u8>) -> Answer {
        let request = read::authentication(body);
        match request.ok_or(ServerLoginError::Broken("failed to answer authreq"))? {
            read::Authentication::Ok => {}
            read::Authentication::Cleartext => {
                let text = self.credentials.secret.as_ref().map_or(&b""[..], Secret::text);
                build::password(out, text);
            }
            read::Authentication::Md5(salt) => {
                let stored = match &self.credentials.secret {
                    Some(Secret::Plain(known)) => {
                        md5::secret(self.credentials.user.as_bytes(), known)
                    }
                    Some(Secret::Md5(stored)) => stored.clone(),
                    Some(Secret::Empty | Secret::Scram(..)) | None => {
                        return wrong_type("cannot do MD5 authentication: wrong password type");
                    }
                };
                build::password(out, &md5::response(&stored, salt));
            }
            read::Authentication::Sasl(mechanisms) => self.sasl(&mechanisms, out)?,
            read::Authentication::SaslContinue(message) => {
                let exchange = self.exchange.as_mut();
                let exchange = exchange.ok_or(ServerLoginError::Broken("bad packet"))?;
                return match exchange.challenge(message).map_err(cannot)? {
                    Challenge::Keys(keys) => self.derived(&keys, out),
                    Challenge::Derive(work) => Ok(ServerLoginStep::Derive(work)),
                };
            }
            read::Authentication::SaslFinal(message) => {
                let exchange = self.exchange.as_ref();
                let exchange = exchange.ok_or(ServerLoginError::Broken("bad packet"))?;
                exchange.check(message).map_err(|error| {
                    let told = "server login failed: invalid server signature";
                    ServerLoginError::CannotAnswer(error.to_string(), Some(told))
                })?;
            }
            read::Authentication::Other(kind) => {
                let line = format!("unknown/unsupported auth method: {kind}");
                return Err(ServerLoginError::CannotAnswer(line, None));
            }
        }
        Ok(ServerLoginStep::More)
    }

    /// The keys that a step asked for.
    pub fn derived(&mut self, keys: &Keys, out: &mut Vec<u8>) -> Answer {
        let exchange = self.exchange.as_mut();
        let exchange = exchange.ok_or(ServerLoginError::Broken("bad packet"))?;
        build::sasl_response(out, &exchange.answer(keys).map_err(cannot)?);
        Ok(ServerLoginStep::More)
    }

    fn sasl(&mut self, mechanisms: &[&[u8]], out: &mut Vec<u8>) -> Result<(), ServerLoginError> {
        let offered = |name: &str| mechanisms.contains(&name.as_bytes());
        let binding = match &self.endpoint {
            Some(hash) if offered(MECHANISM_PLUS) => Some(Binding::Used(hash.clone())),
            Some(_) => offered(MECHANISM).then_some(Binding::Unused),
            None => offered(MECHANISM).then_some(Binding::Impossible),
        };
        let Some(binding) = binding else {
            let told = "server login failed: none of the server's SASL authentication mechanisms \
                        are supported";
            return Err(ServerLoginError::CannotAnswer(told.into(), Some(told)));
        };
        let credential = match (&self.credentials.secret, &self.credentials.keys) {
            (Some(Secret::Plain(password)), _) => Credential::Password(password.clone()),
            (Some(Secret::Scram(..)), Some(keys)) => Credential::Keys(keys.clone()),
            (Some(Secret::Scram(..)), None) => {
                return wrong_type(
                    "cannot do SCRAM authentication: password is SCRAM secret but client \
                     authentication did not provide SCRAM keys",
                )
                .map(|_| ());
            }
            (Some(Secret::Empty | Secret::Md5(_)) | None, _) => {
                let line = "cannot do SCRAM authentication: wrong password type";
                return wrong_type(line).map(|_| ());
            }
        };
        let exchange = ClientExchange::new(credential, self.credentials.nonce.clone(), binding);
        build::sasl_initial(out, exchange.mechanism(), &exchange.first());
        self.exchange = Some(exchange);
        Ok(())
    }
}

fn cannot(error: ScramError) -> ServerLoginError {
    ServerLoginError::CannotAnswer(error.to_string(), None)
}

fn wrong_type(line: &str) -> Answer {
    let told = "server login failed: wrong password type";
    Err(ServerLoginError::CannotAnswer(line.into(), Some(told)))
}

fn refused(body: &[u8]) -> ServerLoginError {
    let field = |kind| read::field(body, kind).map(|text| String::from_utf8_lossy(text).into());
    ServerLoginError::Refused {
        severity: field(b'S').unwrap_or_else(|| "FATAL".to_string()),
        sqlstate: field(b'C').unwrap_or_else(|| "08P01".to_string()),
        message: field(b'M').unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::client::login::{Login, Material, Method, Step};
    use proptest::prelude::*;
    use switchyard_auth::secret::Known;
    use switchyard_wire::frame;

    /// Lets our two sides talk to each other: a client's login is a server's question.
    fn check(method: Method, known: &[u8], typed: &[u8]) -> bool {
        bound(method, known, typed, [None, None]).is_some()
    }

    /// The same over connections with these certificates; answers the chosen mechanism.
    fn bound(
        method: Method,
        known: &[u8],
        typed: &[u8],
        [shown, seen]: [Option<u8>; 2],
    ) -> Option<String> {
        let hash = |byte: Option<u8>| byte.map(|byte| vec![byte; 32]);
        let (salt, mock_salt) = (vec![1; 16], vec![2; 16]);
        let material = Material { nonce: "n".into(), salt, mock_salt, iterations: 5 };
        let known = Arc::new(Known::new(Secret::parse(known)));
        let mut login = Login::new(method, "u", Some(known), material).bound_to(hash(shown));
        let secret = Some(Secret::parse(typed));
        let credentials = Credentials { user: "u".into(), secret, keys: None, nonce: "m".into() };
        let mut server = ServerLogin::new(vec![], credentials);
        server.bind(hash(seen));
        let mut mechanism = String::new();
        let mut question = Vec::new();
        login.ask(&mut question);
        loop {
            let Ok(Some((head, body, _))) = frame::split(&question) else { return None };
            let mut answer = Vec::new();
            match server.handle_message(head.tag, body, &mut answer) {
                Ok(ServerLoginStep::Derive(work)) => {
                    server.derived(&work.run(), &mut answer).ok()?;
                }
                Ok(_) => {}
                Err(_) => return None,
            }
            let Ok(Some((head, body, _))) = frame::split(&answer) else { return None };
            if let (true, Some((name, _))) = (mechanism.is_empty(), read::sasl_initial(body)) {
                mechanism = String::from_utf8_lossy(name).into_owned();
            }
            let mut next = Vec::new();
            match login.handle_message(head.tag, body, &mut next) {
                Step::More => question = next,
                Step::Accepted(_) => return Some(mechanism),
                Step::Refused(..) | Step::Misplaced => return None,
            }
        }
    }

    #[test]
    fn both_sides_of_every_method() {
        for method in [Method::Plain, Method::Md5([1, 2, 3, 4]), Method::Scram] {
            assert!(check(method, b"pw", b"pw"), "{method:?}");
            assert!(!check(method, b"pw", b"px"), "{method:?}");
        }
        let md5 = md5::secret(b"u", b"pw");
        assert!(check(Method::Md5([9; 4]), &md5, b"pw"));
        assert!(check(Method::Md5([9; 4]), b"pw", &md5));
        assert!(!check(Method::Scram, &md5, b"pw"));
    }

    #[test]
    fn derivations_are_left_to_the_caller() {
        let login = || {
            let secret = Some(Secret::parse(b"pw"));
            let (user, nonce) = ("u".to_string(), "m".to_string());
            let mut login =
                ServerLogin::new(vec![], Credentials { user, secret, keys: None, nonce });
            let ask = b"\0\0\0\x0aSCRAM-SHA-256\0\0";
            login.handle_message(b'R', ask, &mut Vec::new()).expect("a first message");
            login
        };
        let challenge = |count| format!("\0\0\0\x0br=mx,s=c2FsdA==,i={count}").into_bytes();
        let mut out = Vec::new();
        let step = login().handle_message(b'R', &challenge(4096), &mut out);
        let Ok(ServerLoginStep::Derive(work)) = step else { panic!("{step:?}") };
        assert!(work.is_quick());
        let mut long = login();
        let step = long.handle_message(b'R', &challenge(1_000_000), &mut out);
        let Ok(ServerLoginStep::Derive(work)) = step else { panic!("{step:?}") };
        assert!(out.is_empty() && !work.is_quick());
        // Whatever comes meanwhile is out of turn, but for a refusal.
        let early = long.handle_message(b'R', b"\0\0\0\0", &mut out);
        assert_eq!(early, Err(ServerLoginError::Broken("unknown pkt from server")));
        let refused = long.handle_message(b'E', b"\0", &mut out);
        assert!(matches!(refused, Err(ServerLoginError::Refused { .. })));
        assert_eq!(long.derived(&work.run(), &mut out), Ok(ServerLoginStep::More));
        assert!(!out.is_empty());
        assert!(long.derived(&work.run(), &mut out).is_err(), "an answer is given once");
    }

    #[test]
    fn logins_are_bound_to_their_connection() {
        let check = |shown, seen| bound(Method::Scram, b"pw", b"pw", [shown, seen]);
        assert_eq!(check(None, None).as_deref(), Some("SCRAM-SHA-256"));
        assert_eq!(check(Some(1), Some(1)).as_deref(), Some("SCRAM-SHA-256-PLUS"));
        // One side without TLS, or without a hash of the certificate.
        assert_eq!(check(Some(1), None).as_deref(), Some("SCRAM-SHA-256"));
        assert_eq!(check(None, Some(1)).as_deref(), Some("SCRAM-SHA-256"));
        // Two connections with someone in between.
        assert_eq!(check(Some(1), Some(2)), None);
    }

    proptest! {
        #[test]
        fn no_message_panics(tag: u8, body in proptest::collection::vec(any::<u8>(), 0..40)) {
            let secret = Some(Secret::parse(b"pw"));
            let credentials =
                Credentials { user: "u".into(), secret, keys: None, nonce: "m".into() };
            let mut server = ServerLogin::new(vec![], credentials);
            for tag in [tag, b'R', b'K', b'S', b'E'] {
                let _ = server.handle_message(tag, &body, &mut Vec::new());
            }
        }
    }
}
