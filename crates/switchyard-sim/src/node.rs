//! A made-up PostgreSQL node: its sessions, its role and timeline, what was committed, and the ways
//! in which it fails.

use std::collections::BTreeMap;

use switchyard_wire::build::{self, Authentication, Report};

use crate::env::{Env, Event, Messages};
use crate::net::{End, Recv};
use crate::postgres::{DEFAULTS, Pace, Session, Store};

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Up,
    /// Nobody listens.
    Down,
    /// It accepts and says nothing; what is sent to it waits.
    Silent,
}

/// What a node says to logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorman {
    /// Come in.
    Welcomes,
    /// This FATAL.
    Refuses(&'static str),
}

/// Whether it takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// It does.
    Writer,
    /// It does not.
    Standby,
}

/// What a node keeps on disk.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Whether it takes writes.
    pub position: Position,
    /// Its timeline.
    pub timeline: u32,
    /// Writes in the order of their commits, with the transaction that each belongs to.
    pub log: Vec<u64>,
    /// What was committed here and nobody has looked at.
    pub fresh: Vec<u64>,
}

impl Store for Disk {
    fn is_writable(&self) -> bool {
        self.position == Position::Writer
    }

    fn commit(&mut self, writes: &[u64]) {
        self.log.extend_from_slice(writes);
        self.fresh.extend_from_slice(writes);
    }
}

/// One of its sessions.
#[derive(Debug)]
struct Backend {
    end: End,
    start: Vec<u8>,
    session: Option<Session>,
    /// Bytes that did not fit into the wire.
    unsent: Vec<u8>,
    user: String,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    index: usize,
    /// How it is.
    pub health: Health,
    /// What it says to logins.
    pub doorman: Doorman,
    /// What it keeps.
    pub disk: Disk,
    sessions: BTreeMap<u64, Backend>,
}

impl Node {
    /// A node without sessions.
    pub fn new(index: usize, position: Position) -> Self {
        let (log, fresh) = (Vec::new(), Vec::new());
        Node {
            index,
            health: Health::Up,
            doorman: Doorman::Welcomes,
            disk: Disk { position, timeline: 1, log, fresh },
            sessions: BTreeMap::new(),
        }
    }

    /// Sessions of a user that are logged in or about to.
    pub fn sessions_of(&self, user: &str) -> usize {
        self.sessions.values().filter(|backend| backend.user == user).count()
    }

    /// Number of sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Sessions in which something is under way.
    pub fn unclean(&self) -> usize {
        let sessions = self.sessions.values().filter_map(|backend| backend.session.as_ref());
        sessions.filter(|session| !session.is_clean()).count()
    }

    /// Something has happened at the end of a session; one that is not known begins here.
    pub fn heard(&mut self, env: &mut Env, id: u64, end: End) {
        match self.health {
            Health::Down => {
                self.sessions.remove(&id);
                return env.reset(end);
            }
            Health::Silent => {
                self.backend(id, end);
                return;
            }
            Health::Up => {}
        }
        self.backend(id, end);
        self.flush(env, id);
        loop {
            match env.recv(end, 4096) {
                Recv::Blocked => return,
                Recv::Eof | Recv::Failed => {
                    env.note(|| format!("node {} session {id} ends", self.index));
                    self.sessions.remove(&id);
                    return env.close(end);
                }
                Recv::Bytes(bytes) => self.take(env, id, &bytes),
            }
        }
    }

    fn backend(&mut self, id: u64, end: End) {
        self.sessions.entry(id).or_insert_with(|| Backend {
            end,
            start: Vec::new(),
            session: None,
            unsent: Vec::new(),
            user: String::new(),
        });
    }

    fn take(&mut self, env: &mut Env, id: u64, bytes: &[u8]) {
        let index = self.index;
        let Some(backend) = self.sessions.get_mut(&id) else { return };
        let Some(session) = &mut backend.session else {
            backend.start.extend_from_slice(bytes);
            return self.log_in(env, id);
        };
        let slept = session.sleeps().is_some();
        session.receive(bytes, &mut self.disk);
        if let Some(time) = session.sleeps().filter(|_| !slept) {
            env.after(time, Event::Session(index, id));
        }
        self.flush(env, id);
    }

    fn log_in(&mut self, env: &mut Env, id: u64) {
        let Some(backend) = self.sessions.get_mut(&id) else { return };
        let Some(length) = backend.start.first_chunk::<4>() else { return };
        let length = u32::from_be_bytes(*length) as usize;
        if backend.start.len() < length {
            return;
        }
        let rest = backend.start.split_off(length);
        let words: Vec<String> = backend.start[8..]
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let pairs = words.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        backend.user = pairs.clone().find(|(name, _)| name == "user").unwrap_or_default().1;
        let known = |name: &String| DEFAULTS.iter().any(|(known, _)| known == name);
        let wanted: Vec<_> = pairs.filter(|(name, _)| known(name)).collect();
        if let Doorman::Refuses(sqlstate) = self.doorman {
            let report = Report { severity: "FATAL", sqlstate, message: "no", detail: None };
            build::error_response(&mut backend.unsent, report);
            let (bytes, end) = (std::mem::take(&mut backend.unsent), backend.end);
            let _ = env.send(end, &bytes);
            self.sessions.remove(&id);
            return env.close(end);
        }
        let session = Session::new(Pace::Real, &wanted);
        let out = &mut backend.unsent;
        build::authentication(out, Authentication::Ok);
        for (name, value) in session.parameters() {
            build::parameter_status(out, name.as_bytes(), value.as_bytes());
        }
        let standby = self.disk.position == Position::Standby;
        build::parameter_status(out, b"in_hot_standby", if standby { b"on" } else { b"off" });
        build::backend_key_data(out, &id.to_be_bytes());
        build::ready_for_query(out, b'I');
        backend.session = Some(session);
        env.note(|| format!("node {} session {id} of {} begins", self.index, backend.user));
        self.take(env, id, &rest);
        self.flush(env, id);
    }

    /// Sends what there is to say, as far as the wire takes it.
    fn flush(&mut self, env: &mut Env, id: u64) {
        let index = self.index;
        let Some(backend) = self.sessions.get_mut(&id) else { return };
        if let Some(session) = &mut backend.session {
            let output = session.take_output();
            if !output.is_empty() {
                env.note(|| format!("node {index} session {id} says {}", Messages(&output)));
            }
            backend.unsent.extend_from_slice(&output);
        }
        if self.health != Health::Up || backend.unsent.is_empty() {
            return;
        }
        if let Ok(count) = env.send(backend.end, &backend.unsent) {
            backend.unsent.drain(..count);
        }
    }

    /// A statement has taken its time.
    pub fn wake(&mut self, env: &mut Env, id: u64) {
        let Some(backend) = self.sessions.get_mut(&id) else { return };
        let Some(session) = &mut backend.session else { return };
        session.wake(&mut self.disk);
        if let Some(time) = session.sleeps() {
            env.after(time, Event::Session(self.index, id));
        }
        self.flush(env, id);
    }

    /// A cancel request has arrived.
    pub fn cancel(&mut self, env: &mut Env, id: u64) {
        let Some(backend) = self.sessions.get_mut(&id) else { return };
        let Some(session) = &mut backend.session else { return };
        let hit = session.cancel(&mut self.disk);
        env.note(|| format!("node {} session {id} is cancelled: {hit}", self.index));
        if let Some(time) = session.sleeps() {
            env.after(time, Event::Session(self.index, id));
        }
        self.flush(env, id);
    }

    /// Breaks one session, somewhere in what it says.
    pub fn kill_one(&mut self, env: &mut Env) {
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let id = *env.random.pick(&ids);
        if let Some(backend) = self.sessions.remove(&id) {
            env.note(|| format!("node {} session {id} is killed", self.index));
            Self::end(env, &backend);
        }
    }

    fn end(env: &mut Env, backend: &Backend) {
        if env.random.one_in(3) {
            let mut bytes = Vec::new();
            let message = "terminating connection due to administrator command";
            let report = Report { severity: "FATAL", sqlstate: "57P01", message, detail: None };
            build::error_response(&mut bytes, report);
            // Only behind whole messages; a full wire tells nothing.
            if backend.unsent.is_empty() {
                let _ = env.send(backend.end, &bytes);
            }
            env.close(backend.end);
        } else {
            env.reset(backend.end);
        }
    }

    /// All sessions end.
    pub fn kill_all(&mut self, env: &mut Env) {
        for backend in std::mem::take(&mut self.sessions).into_values() {
            Self::end(env, &backend);
        }
    }

    /// It falls silent, or speaks again.
    pub fn set_health(&mut self, env: &mut Env, health: Health) {
        self.health = health;
        if health == Health::Down {
            self.kill_all(env);
        }
        if health == Health::Up {
            for (id, end) in self.sessions.iter().map(|(id, b)| (*id, b.end)).collect::<Vec<_>>() {
                self.heard(env, id, end);
            }
        }
    }

    /// It becomes a standby. Sessions live on in which nothing is under way.
    pub fn demote(&mut self, env: &mut Env) {
        self.disk.position = Position::Standby;
        let busy = |backend: &Backend| backend.session.as_ref().is_some_and(|s| !s.is_clean());
        let busy = self.sessions.iter().filter(|(_, backend)| busy(backend));
        for id in busy.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(backend) = self.sessions.remove(&id) {
                Self::end(env, &backend);
            }
        }
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            let session = self.sessions.get_mut(&id).and_then(|b| b.session.as_mut());
            if let Some(session) = session.filter(|session| session.sleeps().is_none()) {
                session.report("in_hot_standby", "on");
            }
            self.flush(env, id);
        }
    }

    /// It is promoted, and its sessions live on.
    pub fn promote(&mut self, env: &mut Env, timeline: u32) {
        self.disk.position = Position::Writer;
        self.disk.timeline = timeline;
        for id in self.sessions.keys().copied().collect::<Vec<_>>() {
            let session = self.sessions.get_mut(&id).and_then(|b| b.session.as_mut());
            if let Some(session) = session.filter(|session| session.sleeps().is_none()) {
                session.report("in_hot_standby", "off");
            }
            self.flush(env, id);
        }
    }
}
