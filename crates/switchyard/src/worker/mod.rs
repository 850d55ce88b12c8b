//! One worker: a thread with its own poll, its clients and its servers.
//!
//! A turn handles what is ready, then messages of other threads, then work that these put off,
//! then timers. Work for another connection than the one at hand is always put off to the queue
//! of the turn, so that no handler is entered twice.
//!
//! Where to look: `accept` and `login` until a client is welcome, `relay` for its traffic,
//! `hooking`, `verdicts`, `calls` and `booths` for the user's functions,
//! `checkout` for servers changing hands, `connect` for new servers, `close` for ends, `console`
//! for the console, `timers` and `due` for time limits.

mod accept;
mod booths;
pub mod buffer;
mod calls;
mod cancel;
mod cancel_key;
mod cancel_peer;
mod cancel_request;
mod checkout;
pub mod client;
mod close;
mod clusters;
pub mod connect;
pub mod console;
pub mod doubt;
mod due;
mod fence;
pub mod hooking;
mod login;
pub mod message;
mod open;
mod random;
mod rehome;
mod relay;
mod relink;
pub mod routes;
mod secure;
pub mod server;
mod session;
mod timers;
mod verdicts;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use switchyard_core::batch::Batch;
use switchyard_core::client::session::Flow;
use switchyard_core::ids::{ServerId, WorkerId};
use switchyard_core::lifecycle::Phase;
use switchyard_core::wheel::Wheel;
use switchyard_io::poller::{RemoteRegistry, WAKE, Watch};
use switchyard_io::{Inbox, Key, Listener, Poller, Ready, Table};

use crate::pools::{Orders, SharedPool};
use crate::rules::NativeRules;
use crate::shared::Shared;
use crate::snapshot::Snapshot;
use crate::worker::booths::Booths;
use crate::worker::buffer::Spare;
use crate::worker::client::Client;
use crate::worker::console::gather::{Answering, Survey};
use crate::worker::console::suspend::Rest;
pub use crate::worker::message::Message;
use crate::worker::random::Random;
use crate::worker::server::Server;

/// A place in a worker's table of servers. While a server is parked in its pool, the place stays,
/// because the poll knows the connection by it.
#[derive(Debug)]
pub struct Slot {
    /// The pool.
    pub pool: Arc<SharedPool>,
    /// Identity in the pool.
    pub id: ServerId,
    /// The connection, unless it is parked.
    pub here: Option<Box<Server>>,
}

/// Work put off to the end of the handler at hand.
#[derive(Debug)]
enum Todo {
    /// Go on with a client's unused bytes.
    Client(Key),
    /// Go on reading a server.
    Server(Key),
    /// A waiting client got a server.
    Grant(Key, Box<Server>),
    /// A client may finish its login.
    Welcome(Key),
    /// What is known of a refused statement.
    Doubt(Key),
    /// More connections may wait at a listener.
    Accept(usize),
}

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Client(Key),
    Server(Key),
    Listener(usize),
    Cancel(Key),
    Hook(Key),
}

const KIND_SHIFT: u32 = 61;
const VALUE_MASK: u64 = (1 << KIND_SHIFT) - 1;

impl Source {
    fn token(self) -> u64 {
        let (kind, value) = match self {
            Source::Client(key) => (0, key.to_bits()),
            Source::Server(key) => (1, key.to_bits()),
            Source::Listener(index) => (2, index as u64),
            Source::Cancel(key) => (4, key.to_bits()),
            Source::Hook(key) => (5, key.to_bits()),
        };
        (kind << KIND_SHIFT) | (value & VALUE_MASK)
    }

    fn of(token: u64) -> Source {
        let value = token & VALUE_MASK;
        match token >> KIND_SHIFT {
            0 => Source::Client(Key::from_bits(value)),
            1 => Source::Server(Key::from_bits(value)),
            2 => Source::Listener(value as usize),
            5 => Source::Hook(Key::from_bits(value)),
            _ => Source::Cancel(Key::from_bits(value)),
        }
    }
}

/// A worker.
#[derive(Debug)]
pub struct Worker {
    id: WorkerId,
    shared: Arc<Shared>,
    snapshot: Arc<Snapshot>,
    poller: Poller,
    inbox: Inbox<Message>,
    clients: Table<Box<Client>>,
    servers: Table<Slot>,
    cancels: Table<cancel_request::Outgoing>,
    /// Servers to be opened that wait for the address of their host, by number.
    naming: HashMap<u64, open::Opening, RandomState>,
    listeners: Vec<accept::Listening>,
    consoles: Vec<Key>,
    /// What an end of the process means for clients that would wait.
    phase: Phase,
    surveys: Vec<Survey>,
    answering: Vec<Answering>,
    rest: Rest,
    scratch: Vec<u8>,
    flow: Flow,
    reply: Batch,
    spare: Spare,
    random: Random,
    orders: Orders,
    todo: VecDeque<Todo>,
    /// Those with a step of a handshake to take.
    shaking: VecDeque<Source>,
    hooks: Booths,
    rules: Option<Arc<NativeRules>>,
    /// When to look at which clients.
    wheel: Wheel<Key>,
    /// Those that are looked at in every tick.
    attended: Vec<Key>,
    now: Instant,
    next_tick: Instant,
}

/// What a thread needs to become a worker, made beforehand so that others can send to it.
#[derive(Debug)]
pub struct Seat {
    poller: Poller,
    inbox: Inbox<Message>,
}

/// How others reach a worker.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Its inbox.
    pub sender: switchyard_io::Sender<Message>,
    /// Its poll, for taking servers away from it.
    pub registry: RemoteRegistry,
}

/// Bytes read at once.
const SCRATCH: usize = 64 * 1024;
/// Events handled per turn.
const EVENTS: usize = 256;
/// Time between two looks at what is due.
const TICK: Duration = Duration::from_millis(250);
/// The same while a console waits for something.
const CONSOLE_TICK: Duration = Duration::from_millis(10);

impl Seat {
    /// A poll and an inbox.
    pub fn new() -> io::Result<(Seat, Handle)> {
        let poller = Poller::new(EVENTS)?;
        let inbox = poller.inbox()?;
        let handle = Handle { sender: inbox.sender(), registry: poller.remote()? };
        Ok((Seat { poller, inbox }, handle))
    }
}

impl Worker {
    /// A worker in its seat, with the listening sockets that it serves.
    pub fn new(id: WorkerId, seat: Seat, shared: Arc<Shared>, listeners: Vec<Listener>) -> Self {
        let now = Instant::now();
        let snapshot = shared.snapshot();
        Worker {
            id,
            shared,
            snapshot,
            poller: seat.poller,
            inbox: seat.inbox,
            clients: Table::default(),
            servers: Table::default(),
            cancels: Table::default(),
            naming: HashMap::default(),
            listeners: listeners.into_iter().map(accept::Listening::new).collect(),
            consoles: Vec::new(),
            phase: Phase::Active,
            surveys: Vec::new(),
            answering: Vec::new(),
            rest: Rest::Awake,
            scratch: vec![0; SCRATCH],
            flow: Flow::default(),
            reply: Batch::default(),
            spare: Spare::default(),
            random: Random::default(),
            orders: Vec::new(),
            todo: VecDeque::new(),
            shaking: VecDeque::new(),
            hooks: Booths::default(),
            rules: None,
            wheel: Wheel::new(now, TICK / 4),
            attended: Vec::new(),
            now,
            next_tick: now + TICK,
        }
    }

    /// Runs until the process ends.
    pub fn run(mut self) {
        self.start_listening();
        let mut ready = Vec::with_capacity(EVENTS);
        let mut messages = Vec::new();
        loop {
            let timeout = self.timeout();
            if let Err(error) = self.poller.wait(timeout, &mut ready) {
                self.shared.log.write(crate::log::Level::Fatal, &format!("poll failed: {error}"));
                std::process::exit(1);
            }
            self.now = Instant::now();
            for event in ready.drain(..) {
                if event.token == WAKE {
                    self.inbox.drain(&mut messages);
                    messages.drain(..).for_each(|message| self.receive(message));
                } else {
                    self.dispatch(event);
                }
                self.settle();
            }
            if !self.consoles.is_empty() {
                self.look_at_consoles();
                self.settle();
            }
            if self.has_rows_to_do() {
                self.survey();
                self.go_on_answering();
                self.settle();
            }
            if self.rest.is_suspended() {
                self.look_at_suspension();
                self.settle();
            }
            if self.now >= self.next_tick {
                self.next_tick = self.now + TICK;
                self.tick();
                self.settle();
            }
            if !self.shaking.is_empty() {
                self.shake_one();
                self.settle();
            }
            loop {
                self.serve_desks();
                self.settle();
                if !self.hooks.was_asked() {
                    break;
                }
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if self.has_rows_to_do() || !self.shaking.is_empty() {
            return Some(Duration::ZERO);
        }
        let due = self.hooks.timeout().map_or(self.next_tick, |at| at.min(self.next_tick));
        let tick = due.saturating_duration_since(Instant::now());
        let patient = self.consoles.is_empty() && !matches!(self.rest, Rest::Flushing(..));
        Some(if patient { tick } else { tick.min(CONSOLE_TICK) })
    }

    fn dispatch(&mut self, event: Ready) {
        match Source::of(event.token) {
            Source::Client(key) => self.client_ready(key, event),
            Source::Server(key) => self.server_ready(key, event),
            Source::Listener(index) => self.accept(index),
            Source::Cancel(key) => self.cancel_ready(key, event),
            Source::Hook(key) => self.hand_ready(key, event),
        }
    }

    /// Does what handlers put off, until nothing is left.
    fn settle(&mut self) {
        loop {
            if !self.orders.is_empty() {
                let orders = std::mem::take(&mut self.orders);
                orders.into_iter().for_each(|(pool, order)| self.obey(pool, order));
            }
            match self.todo.pop_front() {
                Some(Todo::Client(key)) => self.kick_client(key),
                Some(Todo::Server(key)) => self.read_server(key),
                Some(Todo::Grant(key, server)) => self.grant(key, server),
                Some(Todo::Welcome(key)) => self.welcome(key),
                Some(Todo::Doubt(key)) => self.look_at_doubt(key),
                Some(Todo::Accept(index)) => self.accept(index),
                None => {
                    self.shared.sharing.settle(self.now, &mut self.orders);
                    if self.orders.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    fn watch_client(&mut self, key: Key, watch: Watch) {
        if let Some(client) = self.clients.get_mut(key) {
            let token = Source::Client(key).token();
            // Failure shows as an end of the connection at its next use.
            let _ = self.poller.reregister(client.stream.socket(), token, watch);
        }
    }

    fn watch_server(&mut self, key: Key, watch: Watch) {
        if let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) {
            let token = Source::Server(key).token();
            let _ = self.poller.reregister(server.stream.socket(), token, watch);
        }
    }
}
