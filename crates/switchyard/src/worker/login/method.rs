//! How a client has to prove who it is: by auth_type, or by the first HBA line that fits.

use switchyard_auth::hba::{Applicant, Method as HbaMethod, Purpose, Transport};
use switchyard_core::client::login::Method;
use switchyard_core::client::startup::Replication;
use switchyard_io::{Key, Peer};

use crate::log::Level;
use crate::snapshot::AuthMethod;
use crate::worker::Worker;
use crate::worker::client::Lookup;
use crate::worker::close::Farewell;
use crate::worker::console::CONSOLE;

/// How a client gets in.
enum Entrance {
    /// After a dialogue.
    Dialogue(Method),
    /// At once.
    Open,
    /// Not: text of the FATAL.
    Closed(&'static str),
}

/// What decides about a client.
enum Proof {
    /// Nothing.
    None,
    /// That it is known.
    Trust,
    /// A dialogue.
    Dialogue(Method),
    /// Its certificate, through this map.
    Certificate(Option<String>),
    /// The user of the other process, through this map.
    Peer(Option<String>),
    /// Nothing would help: text of the FATAL.
    Refused(&'static str),
}

const NO_METHOD: &str = "no authentication method is found";

impl Worker {
    /// Everything about the client is known but whether it is who it says.
    pub(super) fn examine(&mut self, key: Key) {
        self.note_attempt(key);
        let Some(identity) = self.identity(key) else { return };
        let Some(state) = self.login_state(key) else { return };
        if state.request.replication != Replication::None {
            let text = "replication connections are not served";
            return self.close_client(key, text, Farewell::fatal());
        }
        let settings = &self.snapshot.config.settings;
        let listed = settings.admin_users.contains(&identity.user)
            || settings.stats_users.contains(&identity.user);
        let any = self.snapshot.auth == AuthMethod::Any;
        if identity.database == CONSOLE && !any && !listed {
            return self.refuse(key, "not allowed");
        }
        match self.entrance(key) {
            Entrance::Open => self.authenticated(key),
            Entrance::Closed(text) => self.refuse(key, text),
            Entrance::Dialogue(method) => self.ask(key, method),
        }
    }

    fn entrance(&mut self, key: Key) -> Entrance {
        let proof = self.proof(key);
        let Some(state) = self.login_state(key) else { return Entrance::Closed(NO_METHOD) };
        let (known, nobody) = (state.known.is_some(), state.lookup == Lookup::Nobody);
        match proof {
            Proof::None => Entrance::Open,
            Proof::Refused(text) => Entrance::Closed(text),
            Proof::Dialogue(Method::Plain) | Proof::Trust if nobody => {
                Entrance::Closed("no such user")
            }
            Proof::Dialogue(method) => Entrance::Dialogue(method),
            Proof::Trust if known => Entrance::Open,
            Proof::Trust => Entrance::Closed("\"trust\" authentication failed"),
            Proof::Certificate(map) => {
                match self.certificate(key, map.as_deref()).filter(|()| known) {
                    Some(()) => Entrance::Open,
                    None => Entrance::Closed("certificate authentication failed"),
                }
            }
            Proof::Peer(map) => match self.peer(key, map.as_deref()).filter(|()| known) {
                Some(()) => Entrance::Open,
                None => Entrance::Closed("unix socket login rejected"),
            },
        }
    }

    fn proof(&mut self, key: Key) -> Proof {
        match self.snapshot.auth {
            AuthMethod::Any => Proof::None,
            AuthMethod::Trust => Proof::Trust,
            AuthMethod::Plain => Proof::Dialogue(Method::Plain),
            AuthMethod::Md5 => self.md5(),
            AuthMethod::Scram => Proof::Dialogue(Method::Scram),
            AuthMethod::Cert => Proof::Certificate(None),
            AuthMethod::Hba => self.proof_by_line(key),
            AuthMethod::Unsupported => Proof::Refused(NO_METHOD),
        }
    }

    fn proof_by_line(&mut self, key: Key) -> Proof {
        let (Some(client), Some(identity)) = (self.clients.get(key), self.identity(key)) else {
            return Proof::Refused(NO_METHOD);
        };
        let transport = match (client.peer, client.stream.tls()) {
            (Peer::Unix { .. }, _) => Transport::Local,
            (Peer::Tcp(from), None) => Transport::Plain(from.ip()),
            (Peer::Tcp(from), Some(_)) => Transport::Tls(from.ip()),
        };
        let replication = self.login_state(key).map(|state| state.request.replication);
        let purpose = match replication {
            Some(Replication::Physical) => Purpose::PhysicalReplication,
            Some(Replication::Logical | Replication::None) | None => Purpose::Session,
        };
        let (database, user) = (identity.database.as_str(), identity.user.as_str());
        let applicant = Applicant { transport, database, user, purpose };
        let Some(rule) = self.snapshot.access.rules.find(&applicant) else {
            return Proof::Refused(NO_METHOD);
        };
        match rule.method {
            HbaMethod::Trust => Proof::Trust,
            HbaMethod::Reject => Proof::Refused("login rejected"),
            HbaMethod::Md5 => self.md5(),
            HbaMethod::Password => Proof::Dialogue(Method::Plain),
            HbaMethod::Peer => Proof::Peer(rule.map.clone()),
            HbaMethod::Cert => Proof::Certificate(rule.map.clone()),
            HbaMethod::Scram => Proof::Dialogue(Method::Scram),
            HbaMethod::Ldap => Proof::Refused("ldap is not supported by this build"),
        }
    }

    /// Whether a client's certificate stands for its user.
    fn certificate(&self, key: Key, map: Option<&str>) -> Option<()> {
        let user = self.identity(key)?;
        let client = self.clients.get(key)?;
        let complain = |text: &str| self.log_client(key, Level::Error, text);
        let Some(tls) = client.stream.tls() else {
            complain("TLS connection required");
            return None;
        };
        let Some(names) = tls.peer_names() else {
            complain("TLS client certificate required");
            return None;
        };
        match map {
            None if names.contains(&user.user) => Some(()),
            None => {
                complain("TLS certificate name mismatch");
                None
            }
            Some(map) => {
                let maps = &self.snapshot.access.maps;
                if names.iter().any(|name| maps.allows(map, name, &user.user)) {
                    return Some(());
                }
                complain(&format!("ident map: {map} does not have a match"));
                None
            }
        }
    }

    /// Whether the process at the other end belongs to the client's user.
    fn peer(&self, key: Key, map: Option<&str>) -> Option<()> {
        let user = self.identity(key)?;
        let Peer::Unix { uid, .. } = self.clients.get(key)?.peer else { return None };
        let system = nix::unistd::User::from_uid(uid.into()).ok()??.name;
        match map {
            None => (system == user.user).then_some(()),
            Some(map) => {
                if self.snapshot.access.maps.allows(map, &system, &user.user) {
                    return Some(());
                }
                let text = format!("ident map {map} cannot be matched");
                self.log_client(key, Level::Error, &text);
                None
            }
        }
    }

    fn md5(&mut self) -> Proof {
        match self.random.take() {
            Some(salt) => Proof::Dialogue(Method::Md5(salt)),
            None => Proof::Refused("bouncer config error"),
        }
    }

    /// Ends a login with a FATAL.
    pub(super) fn refuse(&mut self, key: Key, text: &str) {
        let farewell = if self.snapshot.config.settings.auth_error_codes {
            Farewell::coded(sqlstate(text))
        } else {
            Farewell::fatal()
        };
        self.close_client(key, text, farewell);
    }
}

/// The SQLSTATE that PostgreSQL has for a failed login.
fn sqlstate(text: &str) -> &'static str {
    match text {
        "password authentication failed"
        | "SASL authentication failed"
        | "empty password returned by client" => "28P01",
        "\"trust\" authentication failed"
        | "certificate authentication failed"
        | "unix socket login rejected"
        | "login rejected"
        | "not allowed"
        | "no such user"
        | NO_METHOD => "28000",
        _ => "08P01",
    }
}
