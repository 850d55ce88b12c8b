//! How a client proves who it is: the messages of its dialogue.

use switchyard_core::client::login::{Login, Material, Method, Step};
use switchyard_io::Key;
use switchyard_wire::frame;
use switchyard_wire::startup::{First, first};

use crate::log::Level;
use crate::options;
use crate::worker::close::Farewell;
use crate::worker::{Todo, Worker};

/// Largest message of a login, its length word included. The longest password and then some.
const MESSAGE_MAX: usize = 128 * 1024;

impl Worker {
    /// Begins a dialogue.
    pub(super) fn ask(&mut self, key: Key, method: Method) {
        let Some(identity) = self.identity(key) else { return };
        let Some(state) = self.login_state(key) else { return };
        let known = state.known.clone();
        let material = if method.is_scram_for(known.as_deref()) {
            match self.material(&identity.user) {
                Some(material) => material,
                None => return self.close_client(key, "bouncer config error", Farewell::fatal()),
            }
        } else {
            Material::default()
        };
        let tls = self.clients.get(key).and_then(|client| client.stream.tls());
        let endpoint = tls.and_then(|tls| tls.endpoint());
        let Some(state) = self.login_state(key) else { return };
        let login = Login::new(method, &identity.user, known, material);
        let login = login.bound_to(endpoint);
        let mut bytes = Vec::new();
        login.ask(&mut bytes);
        state.dialogue = Some(login);
        self.say(key, &bytes);
        // It may have sent more while its user was looked up.
        self.todo.push_back(Todo::Client(key));
    }

    /// Stable for a user name as long as the process lives, so that nobody can tell by asking
    /// twice which users exist.
    /// What a SCRAM dialogue needs; `None` without randomness.
    fn material(&mut self, user: &str) -> Option<Material> {
        let settings = &self.snapshot.config.settings;
        let iterations = u32::try_from(settings.scram_iterations).unwrap_or(4096).max(1);
        let salt = self.random.take::<16>()?.to_vec();
        let mock_salt = self.mock_salt(user);
        Some(Material { nonce: options::nonce(), salt, mock_salt, iterations })
    }

    fn mock_salt(&self, user: &str) -> Vec<u8> {
        let keyed = switchyard_auth::scram::keys(user.as_bytes(), &self.snapshot.mock_key, 1);
        keyed.client_key.iter().take(16).copied().collect()
    }

    /// Bytes of a login dialogue; answers how many were used.
    pub(in crate::worker) fn login_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        if data.first() == Some(&0) {
            return self.untyped_bytes(key, data);
        }
        let head = match frame::peek(data, MESSAGE_MAX) {
            Ok(Some(head)) if head.len <= data.len() => head,
            Ok(_) => return 0,
            Err(_) => return self.bad_header(key, data),
        };
        let body = &data[frame::HEADER..head.len];
        let dialogue = self.login_state(key).and_then(|state| state.dialogue.as_mut());
        let Some(dialogue) = dialogue else { return 0 };
        let mut out = Vec::new();
        let step = dialogue.handle_message(head.tag, body, &mut out);
        if !out.is_empty() {
            self.say(key, &out);
        }
        match step {
            Step::More => {}
            Step::Accepted(keys) => {
                if let Some(state) = self.login_state(key) {
                    state.dialogue = None;
                    state.keys = keys;
                }
                self.authenticated(key);
            }
            Step::Refused(cause, text) => {
                if let Some(cause) = cause {
                    self.log_client(key, Level::Error, &cause);
                }
                self.refuse(key, text);
            }
            Step::Misplaced => self.close_client(key, "bad packet", Farewell::Silent),
        }
        if head.len < data.len() {
            self.todo.push_back(Todo::Client(key));
        }
        head.len
    }

    /// A message without a type, which belongs before the startup packet.
    fn untyped_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        match first(data) {
            First::More => 0,
            First::Ssl(len) | First::Gss(len) => {
                self.say(key, b"N");
                len
            }
            First::Startup(..) => {
                self.close_client(key, "client re-sent startup pkt", Farewell::fatal());
                data.len()
            }
            First::Cancel(_) | First::Password | First::Typed | First::Bad(_) => {
                self.bad_header(key, data)
            }
        }
    }

    fn bad_header(&mut self, key: Key, data: &[u8]) -> usize {
        let hex: String = frame::hint(data).iter().map(|byte| format!("{byte:02x}")).collect();
        self.close_client(key, &format!("bad packet header: '{hex}'"), Farewell::fatal());
        data.len()
    }
}
