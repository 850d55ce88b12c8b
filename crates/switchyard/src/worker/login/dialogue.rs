//! How a client proves who it is: the choice of a method and the messages of its dialogue.

use switchyard_core::client::login::{Login, Material, Method, Step};
use switchyard_io::Key;
use switchyard_wire::frame;
use switchyard_wire::tag::frontend;

use crate::log::Level;
use crate::options;
use crate::snapshot::AuthMethod;
use crate::worker::client::Stage;
use crate::worker::close::Farewell;
use crate::worker::{Todo, Worker};

/// How a client gets in.
enum Entrance {
    /// After a dialogue.
    Dialogue(Method),
    /// At once.
    Open,
    /// Not: text of the FATAL.
    Closed(&'static str),
}

impl Worker {
    fn entrance(&mut self, key: Key, console: bool, user: &str) -> Entrance {
        let known = self.snapshot.users.contains_key(user);
        match self.snapshot.auth {
            AuthMethod::Any => {
                let entry = match self.clients.get(key).map(|client| &client.stage) {
                    Some(Stage::Login(state)) => state.entry.clone(),
                    _ => None,
                };
                let forced = entry.is_some_and(|entry| entry.definition().user.is_some());
                if console || forced {
                    return Entrance::Open;
                }
                self.log_client(key, Level::Error, "auth_type=any requires forced user");
                Entrance::Closed("bouncer config error")
            }
            AuthMethod::Trust if known => Entrance::Open,
            AuthMethod::Trust => Entrance::Closed("\"trust\" authentication failed"),
            AuthMethod::Plain => Entrance::Dialogue(Method::Plain),
            AuthMethod::Md5 => {
                let mut salt = [0; 4];
                match getrandom::fill(&mut salt) {
                    Ok(()) => Entrance::Dialogue(Method::Md5(salt)),
                    Err(_) => Entrance::Closed("bouncer config error"),
                }
            }
            AuthMethod::Scram => Entrance::Dialogue(Method::Scram),
            AuthMethod::Unsupported => Entrance::Closed("no authentication method is found"),
        }
    }

    pub(super) fn ask(&mut self, key: Key, console: bool, user: &str) {
        let secret = self.snapshot.users.get(user).cloned();
        let method = match self.entrance(key, console, user) {
            Entrance::Open => return self.authenticated(key),
            Entrance::Closed(text) => return self.close_client(key, text, Farewell::fatal()),
            Entrance::Dialogue(method) => method,
        };
        if secret.is_none() {
            self.log_client(key, Level::Log, &format!("no such user: {user}"));
        }
        let settings = &self.snapshot.config.settings;
        let iterations = u32::try_from(settings.scram_iterations).unwrap_or(4096).max(1);
        // Stable for a user name as long as the process lives, so that nobody can tell by asking
        // twice which users exist.
        let seed = [&self.snapshot.mock_key[..], user.as_bytes()].concat();
        let digest = switchyard_auth::md5::secret(&seed, b"");
        let salt = digest.iter().skip(3).take(16).copied().collect();
        let material = Material { nonce: options::nonce(), salt, iterations };
        let login = Login::new(method, user, secret, material);
        let mut bytes = Vec::new();
        login.ask(&mut bytes);
        if let Some(client) = self.clients.get_mut(key)
            && let Stage::Login(state) = &mut client.stage
        {
            state.dialogue = Some(login);
        }
        self.say(key, &bytes);
    }

    /// Bytes of a login dialogue; answers how many were used.
    pub(in crate::worker) fn login_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let Some(client) = self.clients.get_mut(key) else { return data.len() };
        let Stage::Login(state) = &mut client.stage else { return 0 };
        let (head, body) = match frame::split(data) {
            Ok(Some((head, body, _))) => (head, body),
            Ok(None) if data.first().is_some_and(|tag| *tag == 0) => {
                self.close_client(key, "client re-sent startup pkt", Farewell::fatal());
                return data.len();
            }
            Ok(None) => return 0,
            Err(bad) => {
                let text = format!("bad packet header: '{}'", bad.hex());
                self.close_client(key, &text, Farewell::fatal());
                return data.len();
            }
        };
        if head.tag == frontend::TERMINATE {
            self.close_client(key, "client close request", Farewell::Silent);
            return data.len();
        }
        let Some(dialogue) = &mut state.dialogue else { return 0 };
        let mut out = Vec::new();
        let step = dialogue.handle_message(head.tag, body, &mut out);
        if !out.is_empty() {
            self.say(key, &out);
        }
        match step {
            Step::More => {}
            Step::Accepted(keys) => {
                if let Some(client) = self.clients.get_mut(key)
                    && let Stage::Login(state) = &mut client.stage
                {
                    state.dialogue = None;
                    state.keys = keys;
                }
                self.authenticated(key);
            }
            Step::Refused(cause, text) => {
                if let Some(cause) = cause {
                    self.log_client(key, Level::Error, &cause);
                }
                self.close_client(key, text, Farewell::fatal());
            }
        }
        if head.len < data.len() {
            self.todo.push_back(Todo::Client(key));
        }
        head.len
    }
}
