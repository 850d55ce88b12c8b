//! auth_query: users that auth_file does not know are looked up on a server of the pool of
//! auth_user, which the client waits for like for any other.

use std::sync::Arc;

use switchyard_auth::secret::{Known, Secret};
use switchyard_core::params::Tracked;
use switchyard_core::pool::Want;
use switchyard_core::pool::parking::Lent;
use switchyard_core::server::lookup::{Found, Lookup as Question, LookupError, LookupStep};
use switchyard_io::Key;
use switchyard_io::poller::Watch;
use switchyard_wire::frame;
use switchyard_wire::tag::backend;

use crate::entries::{Admission, Entry};
use crate::log::Level;
use crate::snapshot::AuthMethod;
use crate::worker::Worker;
use crate::worker::client::{LoginState, Lookup, Place, Stage};
use crate::worker::close::Farewell;
use crate::worker::console::CONSOLE;
use crate::worker::server::{Asked, Stage as ServerStage, Use};

/// Largest answer to auth_query in bytes.
const ANSWER_MAX: usize = 1024 * 1024;

const CONFIG_ERROR: &str = "bouncer config error";

impl Worker {
    /// As whom a client's user is looked up; `None` if it is not.
    pub(super) fn lookup_user(&self, key: Key) -> Option<String> {
        let identity = self.identity(key)?;
        if self.snapshot.auth == AuthMethod::Unsupported {
            return None;
        }
        let settings = &self.snapshot.config.settings;
        let user = match &identity.entry {
            Some(entry) => {
                let definition = entry.definition();
                let overrides = self.snapshot.overrides(&definition, &identity.user);
                overrides.auth_user().map(str::to_owned)
            }
            None if identity.database == CONSOLE => settings.auth_user.clone(),
            None => None,
        };
        user.filter(|user| !user.is_empty())
    }

    /// Looks a client's user up.
    pub(super) fn look_up(&mut self, key: Key, auth_user: &str) {
        let entry = match self.lookup_entry(key) {
            Ok(entry) => entry,
            Err(text) => return self.close_client(key, &text, Farewell::fatal()),
        };
        let pool = self.shared.pool_as(&entry, auth_user);
        let (now, ticket) = (self.now, self.ticket(key));
        let Some(client) = self.clients.get_mut(key) else { return };
        client.place = Some(Place { pool: Arc::clone(&pool), want: Want::Writer });
        client.waiting_since = Some(now);
        if let Stage::Login(state) = &mut client.stage {
            state.lookup = Lookup::Waiting;
        }
        match pool.decide(&mut self.orders, |inner| inner.checkout_for_login(now, ticket)) {
            Lent::Server(server) => {
                let slot = self.take_over(server);
                self.put_lookup(key, slot);
            }
            Lent::Refused(reason) => {
                let text = format!(
                    "server login has been failing, cached error: {reason} (server_login_retry)"
                );
                self.close_client(key, &text, Farewell::fatal());
            }
            Lent::Wait => self.attend(key),
        }
    }

    /// The entry whose server is asked; the error is the text of the FATAL.
    fn lookup_entry(&self, key: Key) -> Result<Arc<Entry>, String> {
        let identity = self.identity(key).ok_or(CONFIG_ERROR)?;
        let settings = &self.snapshot.config.settings;
        let name = match &identity.entry {
            Some(entry) => {
                let definition = entry.definition();
                let overrides = self.snapshot.overrides(&definition, &identity.user);
                match overrides.auth_dbname() {
                    Some(name) => name.to_owned(),
                    None => return Ok(Arc::clone(entry)),
                }
            }
            None => settings.auth_dbname.clone().unwrap_or_else(|| CONSOLE.into()),
        };
        if name == CONSOLE {
            let text = "cannot use the reserved \"pgbouncer\" database as an auth_dbname";
            self.log_client(key, Level::Error, text);
            return Err(CONFIG_ERROR.into());
        }
        let Some(entry) = self.shared.entry(&name, "") else {
            let text = format!("authentication database \"{name}\" is not configured.");
            self.log_client(key, Level::Error, &text);
            return Err(CONFIG_ERROR.into());
        };
        if entry.admission() == Admission::Disabled {
            return Err(format!("authentication database \"{name}\" is disabled"));
        }
        Ok(entry)
    }

    /// Puts the question to a server that the client was given.
    pub(in crate::worker) fn put_lookup(&mut self, key: Key, slot: Key) {
        let Some(identity) = self.identity(key) else { return };
        let sql = match &identity.entry {
            Some(entry) => {
                let definition = entry.definition();
                self.snapshot.overrides(&definition, &identity.user).auth_query().to_owned()
            }
            None => self.snapshot.config.settings.auth_query.clone(),
        };
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let stage = std::mem::replace(&mut server.stage, ServerStage::Between);
        let ServerStage::Ready(link, _) = stage else {
            server.stage = stage;
            return;
        };
        let mut question = Vec::new();
        let lookup = Question::ask(&sql, &identity.user, &mut question);
        let asked = Asked { link, client: key, lookup, input: Vec::new() };
        server.stage = ServerStage::Asked(Box::new(asked));
        let sent = server.output.send(&mut server.stream, &question);
        let full = !server.output.is_empty();
        if let Some(client) = self.clients.get_mut(key) {
            client.waiting_since = None;
            if let Stage::Login(state) = &mut client.stage {
                state.lookup = Lookup::Asked(slot);
            }
        }
        if sent.is_err() {
            return self.server_failed(slot, "unable to send auth_query");
        }
        if full {
            self.watch_server(slot, Watch::Both);
        }
    }

    /// Bytes of a server that was asked for a user; all are used.
    pub(in crate::worker) fn lookup_bytes(&mut self, slot: Key, data: &[u8]) -> usize {
        let tracked = Arc::clone(&self.snapshot.tracked);
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return data.len();
        };
        server.heard = self.now;
        let ServerStage::Asked(asked) = &mut server.stage else { return data.len() };
        asked.input.extend_from_slice(data);
        let key = asked.client;
        match advance(asked, &tracked) {
            Ok(None) if asked.input.len() <= ANSWER_MAX => {}
            Ok(None) => self.lookup_failed(key, slot, &LookupError::Answer("unknown pkt".into())),
            Ok(Some(found)) => {
                let stage = std::mem::replace(&mut server.stage, ServerStage::Between);
                if let ServerStage::Asked(asked) = stage {
                    server.stage = ServerStage::Ready(asked.link, Use::Idle);
                }
                self.end_lookup(key, Lookup::No);
                self.release(slot);
                self.lookup_answered(key, found);
            }
            Err(error) => self.lookup_failed(key, slot, &error),
        }
        data.len()
    }

    /// The client of a question leaves the server's pool.
    fn end_lookup(&mut self, key: Key, to: Lookup) {
        if let Some(client) = self.clients.get_mut(key) {
            client.place = None;
            client.waiting_since = None;
            if let Stage::Login(state) = &mut client.stage {
                state.lookup = to;
            }
        }
    }

    fn lookup_failed(&mut self, key: Key, slot: Key, error: &LookupError) {
        self.end_lookup(key, Lookup::No);
        let (reason, told) = match error {
            LookupError::Server(text) => {
                let line = format!("S: error in auth_query: {text}");
                self.shared.log.write(Level::Error, &line);
                ("error response from auth_query", CONFIG_ERROR)
            }
            LookupError::Answer(text) => (text.as_str(), text.as_str()),
        };
        self.close_server(slot, reason);
        self.close_client(key, told, Farewell::fatal());
    }

    fn lookup_answered(&mut self, key: Key, found: Option<Found>) {
        let Some(found) = found else {
            self.end_lookup(key, Lookup::Nobody);
            if let Some(identity) = self.identity(key) {
                self.note_login(key, &format!("login failed: db={}", identity.database));
            }
            return self.miss(key);
        };
        self.end_lookup(key, Lookup::Found);
        let secret = found.secret.map_or(Secret::Empty, |text| Secret::parse(&text));
        if let Some(entry) = self.identity(key).and_then(|identity| identity.entry.clone()) {
            entry.find(&found.user, secret.clone());
        }
        let known = Some(Arc::new(Known::new(secret)));
        if let Some(state) = self.login_state(key) {
            state.known = known;
        }
        self.change_identity(key, |identity| identity.user = found.user);
        self.recognise(key);
    }

    /// The login of a client, if it is in one.
    pub(super) fn login_state(&mut self, key: Key) -> Option<&mut LoginState> {
        match &mut self.clients.get_mut(key)?.stage {
            Stage::Login(state) => Some(state),
            _ => None,
        }
    }
}

/// Follows the answer as far as it has come; what it says once it is complete.
fn advance(asked: &mut Asked, tracked: &Tracked) -> Result<Option<Option<Found>>, LookupError> {
    let input = std::mem::take(&mut asked.input);
    let mut rest = &input[..];
    loop {
        let split = frame::split(rest);
        let split = split.map_err(|_| LookupError::Answer("bad pkt header".into()))?;
        let Some((head, body, tail)) = split else { break };
        match head.tag {
            backend::PARAMETER_STATUS => {
                let message = &rest[..head.len];
                asked.link.receive(message, &mut Default::default(), tracked, None);
            }
            backend::NOTICE | backend::NOTIFICATION => {}
            tag => match asked.lookup.handle_message(tag, body)? {
                LookupStep::More => {}
                LookupStep::Done(found) if tail.is_empty() => return Ok(Some(found)),
                LookupStep::Done(_) => return Err(LookupError::Answer("unknown pkt".into())),
            },
        }
        rest = tail;
    }
    asked.input = rest.to_vec();
    Ok(None)
}
