//! A client connection as a worker holds it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use switchyard_auth::scram::Keys;
use switchyard_auth::secret::Known;
use switchyard_core::client::doubt::Doubt;
use switchyard_core::client::login::Login;
use switchyard_core::client::patience::Notice;
use switchyard_core::client::session::Session;
use switchyard_core::client::startup::StartupRequest;
use switchyard_core::client::untracked::Kept;
use switchyard_core::pool::Want;
use switchyard_core::server::duty::Bond;
use switchyard_core::wheel::Tick;
use switchyard_io::{Key, Peer, Stream};

use crate::entries::Entry;
use crate::pools::SharedPool;
use crate::shared::Shared;
use crate::tls::Transport;
use crate::worker::buffer::Pending;
use crate::worker::console::ConsoleClient;
use crate::worker::hooking::Asking;
use crate::worker::routes::Routes;
use crate::worker::server::{Unread, pointer};

/// What a client is doing.
#[derive(Debug)]
pub enum Stage {
    /// Nothing of its startup packet is known.
    Start,
    /// In the login dialogue.
    Login(Box<LoginState>),
    /// Logged in, waiting for the parameters of a first server.
    AwaitingWelcome(Box<LoginState>),
    /// In a session.
    Session(Box<Session>, Activity),
    /// On the console.
    Console(Box<ConsoleClient>),
    /// A cancel request that is being forwarded; the number of the connection that has carried it
    /// to its server.
    Cancel(Option<u64>),
    /// Its last bytes are being sent.
    Leaving,
}

/// What a client in a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// No server, nothing to do.
    Idle,
    /// In a pool's queue.
    Waiting,
    /// Linked to the server in this slot.
    Linked(Key),
}

/// A login under way.
#[derive(Debug)]
pub struct LoginState {
    /// What the startup packet asked for.
    pub request: StartupRequest,
    /// The dialogue; `None` when no question is open.
    pub dialogue: Option<Login>,
    /// What is known about the user.
    pub known: Option<Arc<Known>>,
    /// The question of auth_query.
    pub lookup: Lookup,
    /// The entry; `None` when it is unknown, which is told after authentication only.
    pub entry: Option<Arc<Entry>>,
    /// Which node it wants to go to.
    pub want: Want,
    /// Keys of its SCRAM login.
    pub keys: Option<Keys>,
}

/// Where the question of auth_query has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is not asked.
    No,
    /// The client waits for a server of its place.
    Waiting,
    /// It was put to the server in this slot.
    Asked(Key),
    /// It was answered: there is such a user.
    Found,
    /// It was answered: there is no such user.
    Nobody,
}

/// Who a client is, once known.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Login user.
    pub user: String,
    /// The name it sent, if it was logged in as somebody else.
    pub sent: Option<Box<str>>,
    /// Database it logged in to, as asked for.
    pub database: String,
    /// That entry.
    pub entry: Option<Arc<Entry>>,
    /// What log lines say of it.
    pub shown: Shown,
    /// Where it counts.
    pub counted: Counted,
}

/// What log lines say of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing: it was not looked at yet.
    Nothing,
    /// The user; the database or the user does not exist.
    User,
    /// Database and user.
    Both,
}

/// Where a client counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Nowhere.
    Nowhere,
    /// With its entry.
    Entry,
    /// With its entry and its user.
    User,
}

impl Identity {
    /// The name that the client sent.
    pub fn sent(&self) -> &str {
        self.sent.as_deref().unwrap_or(&self.user)
    }

    /// The client is gone: it counts no more.
    pub fn left(&self, shared: &Shared) {
        if let (Some(entry), Counted::Entry | Counted::User) = (&self.entry, self.counted) {
            entry.clients.fetch_sub(1, Ordering::Relaxed);
        }
        if self.counted == Counted::User {
            shared.user_left(&self.user);
        }
    }
}

/// Whether a client counts in max_client_conn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// It does.
    Taken,
    /// It was refused for want of one.
    Refused,
}

/// Where a client's queries go.
#[derive(Clone, Debug)]
pub struct Place {
    /// The pool.
    pub pool: Arc<SharedPool>,
    /// Which node of it.
    pub want: Want,
}

/// A client connection.
#[derive(Debug)]
pub struct Client {
    /// Number shown to operators.
    pub number: u64,
    /// The socket.
    pub stream: Transport,
    /// Other end.
    pub peer: Peer,
    /// Progress.
    pub stage: Stage,
    /// Bytes not used yet.
    pub input: Vec<u8>,
    /// Bytes that did not fit into the socket.
    pub output: Pending,
    /// Whether the socket may hold unread bytes.
    pub unread: Unread,
    /// Whether it counts in max_client_conn.
    pub seat: Seat,
    /// Who it is.
    pub identity: Option<Arc<Identity>>,
    /// Where its queries go now.
    pub place: Option<Place>,
    /// Where they go once the answers under way have come.
    pub moving: Option<Place>,
    /// Where else they have gone.
    pub routes: Option<Box<Routes>>,
    /// A statement that was refused, while its node is asked.
    pub doubt: Option<Box<Doubt>>,
    /// Whether a message is with the hooks.
    pub asking: Asking,
    /// Where they went at login.
    pub home: Option<Place>,
    /// Its cancel key.
    pub key: [u8; 8],
    /// When it was accepted.
    pub connected: Instant,
    /// When the query under way began.
    pub query_since: Option<Instant>,
    /// When the transaction under way began.
    pub xact_since: Option<Instant>,
    /// Since when it waits for a server.
    pub waiting_since: Option<Instant>,
    /// Last message, as time since the worker's start.
    pub active: Instant,
    /// What the queue notice has to say.
    pub notice: Notice,
    /// How often it is looked at.
    pub attention: Attention,
    /// When it is looked at next, if it is to be.
    pub look: Option<Tick>,
}

/// How often a client is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// When something may be due.
    Rare,
    /// In every tick, because it waits.
    EveryTick,
}

impl Client {
    /// A connection that was just accepted.
    pub fn new(number: u64, stream: Stream, peer: Peer, now: Instant) -> Self {
        Client {
            number,
            stream: stream.into(),
            peer,
            stage: Stage::Start,
            input: Vec::new(),
            output: Pending::default(),
            unread: Unread::No,
            seat: Seat::Taken,
            identity: None,
            place: None,
            moving: None,
            routes: None,
            doubt: None,
            asking: Asking::Unknown,
            home: None,
            key: [0; 8],
            connected: now,
            query_since: None,
            xact_since: None,
            waiting_since: None,
            active: now,
            notice: Notice::Due,
            attention: Attention::Rare,
            look: None,
        }
    }

    /// The server it is linked to.
    #[inline]
    pub fn server(&self) -> Option<Key> {
        match &self.stage {
            Stage::Session(_, Activity::Linked(server)) => Some(*server),
            Stage::Login(state) => match state.lookup {
                Lookup::Asked(server) => Some(server),
                Lookup::No | Lookup::Waiting | Lookup::Found | Lookup::Nobody => None,
            },
            _ => None,
        }
    }

    /// Whether it waits for something that ends by time.
    pub fn is_attended(&self) -> bool {
        let waits = match &self.stage {
            Stage::Session(_, activity) => *activity == Activity::Waiting,
            Stage::AwaitingWelcome(_) => true,
            Stage::Login(state) => state.lookup == Lookup::Waiting,
            Stage::Start | Stage::Console(_) | Stage::Cancel(_) | Stage::Leaving => false,
        };
        waits || self.doubt.is_some()
    }

    /// What ties it to its server, or away from it.
    pub fn bond(&self) -> Bond {
        match &self.stage {
            _ if self.moving.is_some() => Bond::Moving,
            Stage::Session(session, _) if session.kept() == Kept::Pinned => Bond::Pinned,
            _ => Bond::None,
        }
    }

    /// Whether a message of its was passed on in part only.
    pub fn is_inside_message(&self) -> bool {
        matches!(&self.stage, Stage::Session(session, _) if session.is_inside_message())
    }

    /// Changes what it is doing in its session.
    pub fn set_activity(&mut self, to: Activity) {
        if let Stage::Session(_, activity) = &mut self.stage {
            *activity = to;
        }
    }

    /// What it is doing in its session.
    pub fn activity(&self) -> Option<Activity> {
        match &self.stage {
            Stage::Session(_, activity) => Some(*activity),
            _ => None,
        }
    }

    /// Prefix of its log lines.
    pub fn prefix(&self, listen_port: i64) -> String {
        let (database, user) = match &self.identity {
            Some(identity) => match identity.shown {
                Shown::Nothing => ("(nodb)", "(nouser)"),
                Shown::User => ("(nodb)", identity.user.as_str()),
                Shown::Both => (identity.database.as_str(), identity.user.as_str()),
            },
            None => ("(nodb)", "(nouser)"),
        };
        let database = match (&self.place, &self.identity) {
            (Some(place), _) => place.pool.entry.name.as_str(),
            (None, _) => database,
        };
        let mut text = String::with_capacity(PREFIX_ROOM + database.len() + user.len());
        text.push_str("C-0x");
        push_hex(&mut text, pointer(self.number));
        for part in [": ", database, "/", user, "@"] {
            text.push_str(part);
        }
        push_peer(&mut text, &self.peer, listen_port);
        text
    }

    /// Time of day of an instant of this client.
    pub fn time_of(&self, instant: Instant, now: Instant) -> SystemTime {
        SystemTime::now() - now.saturating_duration_since(instant)
    }
}

/// `ADDR:PORT`, `[V6]:PORT` or `unix(PID):PORT`.
pub fn peer_text(peer: &Peer, listen_port: i64) -> String {
    let mut text = String::with_capacity(PREFIX_ROOM);
    push_peer(&mut text, peer, listen_port);
    text
}

/// Bytes of a prefix besides its names.
const PREFIX_ROOM: usize = 48;

/// Lines about clients are written for every login; the general formatting costs ten times this.
fn push_peer(text: &mut String, peer: &Peer, listen_port: i64) {
    let mut digits = itoa::Buffer::new();
    match peer {
        Peer::Tcp(SocketAddr::V4(address)) => {
            for (index, octet) in address.ip().octets().into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "." });
                text.push_str(digits.format(octet));
            }
            text.push(':');
            text.push_str(digits.format(address.port()));
            return;
        }
        Peer::Tcp(address) => {
            text.push_str(&address.to_string());
            return;
        }
        Peer::Unix { pid: 0, .. } => text.push_str("unix:"),
        Peer::Unix { pid, .. } => {
            text.push_str("unix(");
            text.push_str(digits.format(*pid));
            text.push_str("):");
        }
    }
    text.push_str(digits.format(listen_port));
}

fn push_hex(text: &mut String, number: u64) {
    let digits = (u64::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (number >> (4 * place)) as u32 & 15;
        text.extend(char::from_digit(digit, 16));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_and_numbers_are_written_as_usual() {
        for address in ["127.0.0.1:6432", "10.200.3.255:65535", "[::1]:1"] {
            let peer = Peer::Tcp(address.parse().expect("an address"));
            assert_eq!(peer_text(&peer, 6432), address);
        }
        assert_eq!(peer_text(&Peer::Unix { pid: 0, uid: 1 }, 6432), "unix:6432");
        assert_eq!(peer_text(&Peer::Unix { pid: 70, uid: 1 }, 6432), "unix(70):6432");
        for number in [0, 1, 15, 16, 0x10_0000_0040, u64::MAX] {
            let mut text = String::new();
            push_hex(&mut text, number);
            assert_eq!(text, format!("{number:x}"));
        }
    }
}
