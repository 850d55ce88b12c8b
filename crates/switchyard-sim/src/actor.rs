//! A client of a plain pool, which compares every answer with what a server of its own would say.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use switchyard_core::ids::Ticket;
use switchyard_wire::tag::backend;
use switchyard_wire::{build, frame, read};

use crate::env::{Env, Event, Messages};
use crate::hooks::Hooks;
use crate::net::{End, Recv};
use crate::postgres::{Nowhere, Pace, Parameters, Session};
use crate::script::{self, Leave, Step};

/// What it waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Its welcome.
    Login,
    /// Nothing: the next step may begin.
    Ready,
    /// Its time to go on.
    Thinking,
    /// The answers to all it has sent.
    Answers,
    /// The answer to this statement, which may be cancelled.
    Sleep(Vec<u8>),
    /// It has gone, or was made to go.
    Gone,
}

/// How a life has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It left by itself.
    Left,
    /// It was told this FATAL, and its code.
    Told(String),
    /// The wire was closed.
    Closed,
}

/// A client.
#[derive(Debug)]
pub struct Actor {
    /// Its number.
    pub index: usize,
    /// Its pool.
    pub pool: usize,
    /// Who it is to the pooler.
    pub ticket: Option<Ticket>,
    end: Option<End>,
    script: VecDeque<Step>,
    unsent: Vec<u8>,
    inbox: Vec<u8>,
    reference: Session,
    expected: Vec<u8>,
    view: Parameters,
    phase: Phase,
    /// Since when it waits for the next word.
    since: Instant,
    /// When it last wanted a query to be cancelled.
    cancelled: Option<Instant>,
    /// How its life has ended.
    pub ending: Option<Ending>,
}

/// What somebody else has to do for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Nothing,
    /// A cancel request is to be sent.
    Cancel,
}

/// How long a cancel request may be under way.
const LATE: Duration = Duration::from_secs(8);

impl Actor {
    /// A client that has sent its login on this wire.
    pub fn new(
        env: &Env,
        (index, pool): (usize, usize),
        end: End,
        wanted: &[(String, String)],
        (life, hooks): (Vec<Step>, Hooks),
    ) -> Self {
        Actor {
            index,
            pool,
            ticket: None,
            end: Some(end),
            script: life.into(),
            unsent: Vec::new(),
            inbox: Vec::new(),
            reference: Session::new(Pace::Instant, wanted).behind(hooks),
            expected: Vec::new(),
            view: Parameters::new(),
            phase: Phase::Login,
            since: env.now,
            cancelled: None,
            ending: None,
        }
    }

    /// Since when it has waited for an answer, if it has asked something.
    pub fn waits_since(&self) -> Option<Instant> {
        let waits = matches!(self.phase, Phase::Answers | Phase::Sleep(_) | Phase::Login);
        (waits && self.ending.is_none()).then_some(self.since)
    }

    /// What it is doing, for the record.
    pub fn text(&self) -> String {
        let (expected, heard) = (Messages(&self.expected), Messages(&self.inbox));
        let (index, pool, phase) = (self.index, self.pool, &self.phase);
        format!("actor {index} in pool {pool}: {phase:?}, expects {expected}, has {heard}")
    }

    /// Its time has come, or bytes.
    pub fn go_on(&mut self, env: &mut Env, timer: bool) -> Wish {
        if self.ending.is_some() {
            return Wish::Nothing;
        }
        let mut wish = Wish::Nothing;
        if timer {
            match &self.phase {
                Phase::Thinking => self.phase = Phase::Ready,
                Phase::Sleep(_) => {
                    wish = Wish::Cancel;
                    self.cancelled = Some(env.now);
                }
                Phase::Login | Phase::Ready | Phase::Answers | Phase::Gone => {}
            }
        }
        self.flush(env);
        self.listen(env);
        while self.ending.is_none() && self.phase == Phase::Ready {
            self.step(env);
        }
        wish
    }

    fn flush(&mut self, env: &mut Env) {
        let Some(end) = self.end else { return };
        if !self.unsent.is_empty()
            && let Ok(count) = env.send(end, &self.unsent)
        {
            self.unsent.drain(..count);
        }
    }

    /// Sends in one piece or in several.
    fn send(&mut self, env: &mut Env, bytes: &[u8]) {
        env.note(|| format!("actor {} sends {}", self.index, Messages(bytes)));
        let mut rest = bytes;
        while !rest.is_empty() {
            let size = if env.random.one_in(3) { env.random.between(1, 40) } else { rest.len() };
            let (now, later) = rest.split_at(size.min(rest.len()));
            self.unsent.extend_from_slice(now);
            self.flush(env);
            rest = later;
        }
    }

    fn step(&mut self, env: &mut Env) {
        self.since = env.now;
        match self.script.pop_front().unwrap_or(Step::Leave(Leave::Politely)) {
            Step::Ask(bytes) => {
                self.send(env, &bytes);
                self.expect(&bytes);
                let done = self.expected.is_empty();
                self.phase = if done { Phase::Ready } else { Phase::Answers };
            }
            Step::Pipe(bytes) => {
                self.send(env, &bytes);
                self.expect(&bytes);
            }
            Step::Sleep(bytes, cancel) => {
                self.send(env, &bytes);
                if let Some(pause) = cancel {
                    env.after(pause, Event::Client(self.index));
                }
                self.phase = Phase::Sleep(bytes);
            }
            Step::Think(time) => {
                env.after(time, Event::Client(self.index));
                self.phase = Phase::Thinking;
            }
            Step::Leave(how) => {
                let mut bytes = Vec::new();
                match how {
                    Leave::Politely => {
                        build::empty(&mut bytes, switchyard_wire::tag::frontend::TERMINATE);
                    }
                    Leave::Silently => {}
                    Leave::Midway => bytes = script::unanswered(&mut env.random),
                }
                self.send(env, &bytes);
                self.leave(env, Ending::Left);
            }
        }
    }

    fn leave(&mut self, env: &mut Env, ending: Ending) {
        env.note(|| format!("actor {} ends: {ending:?}", self.index));
        if let Some(end) = self.end.take() {
            env.close(end);
        }
        self.phase = Phase::Gone;
        self.ending = Some(ending);
    }

    fn expect(&mut self, bytes: &[u8]) {
        self.reference.receive(bytes, &mut Nowhere);
        self.expected.append(&mut self.reference.output);
        self.drop_reports();
    }

    /// Servers report parameters when they like: what is expected of them is their values.
    fn drop_reports(&mut self) {
        while let Ok(Some((head, ..))) = frame::split(&self.expected) {
            if head.tag != backend::PARAMETER_STATUS {
                return;
            }
            self.expected.drain(..head.len);
        }
    }

    fn listen(&mut self, env: &mut Env) {
        while let Some(end) = self.end {
            match env.recv(end, 4096) {
                Recv::Bytes(bytes) => self.inbox.extend_from_slice(&bytes),
                Recv::Blocked => return,
                Recv::Eof | Recv::Failed => return self.leave(env, Ending::Closed),
            }
            while let Ok(Some((head, body, rest))) = frame::split(&self.inbox) {
                let (body, rest) = (body.to_vec(), rest.to_vec());
                self.inbox = rest;
                self.hear(env, head.tag, &body);
                if self.ending.is_some() {
                    return;
                }
            }
        }
    }

    fn hear(&mut self, env: &mut Env, tag: u8, body: &[u8]) {
        match tag {
            backend::PARAMETER_STATUS => {
                let (name, value) = read::parameter_status(body).expect("a parameter");
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                self.view.insert(text(name), text(value));
                return;
            }
            backend::NOTICE => return,
            backend::ERROR if read::field(body, b'S') == Some(b"FATAL") => {
                let text = String::from_utf8_lossy(read::field(body, b'M').unwrap_or_default());
                let text = text.into_owned();
                return self.leave(env, Ending::Told(text));
            }
            _ => {}
        }
        self.since = env.now;
        if self.phase == Phase::Login {
            if tag == backend::READY_FOR_QUERY {
                self.phase = Phase::Ready;
            }
            return;
        }
        if let Phase::Sleep(bytes) = &self.phase {
            let bytes = bytes.clone();
            let code = read::field(body, b'C');
            if tag == backend::ERROR && code == Some(b"57014") {
                // A request may be late and hit the next query of the same client.
                let asked = self.cancelled.is_some_and(|at| env.now - at < LATE);
                assert!(asked, "actor {} is cancelled by somebody else", self.index);
                self.reference.receive_cancelled(&bytes, &mut Nowhere);
                self.expected.append(&mut self.reference.output);
            } else {
                self.expect(&bytes);
            }
            self.phase = Phase::Answers;
        }
        self.compare(tag, body);
        if self.phase == Phase::Answers && self.expected.is_empty() {
            self.compare_parameters();
            self.phase = Phase::Ready;
        }
    }

    /// The message must be the next one that a server alone would send.
    fn compare(&mut self, tag: u8, body: &[u8]) {
        let mut heard = Vec::new();
        build::message(&mut heard, tag, |out| out.extend_from_slice(body));
        let expected = frame::split(&self.expected).ok().flatten();
        let Some((head, wanted, _)) = expected else {
            panic!("actor {} hears {} and expects nothing", self.index, Messages(&heard));
        };
        let same = if tag == backend::ERROR {
            head.tag == tag && read::field(body, b'C') == read::field(wanted, b'C')
        } else {
            head.tag == tag && body == wanted
        };
        assert!(
            same,
            "actor {} hears {} and expects {}",
            self.index,
            Messages(&heard),
            Messages(&self.expected[..head.len])
        );
        self.expected.drain(..head.len);
        self.drop_reports();
    }

    fn compare_parameters(&self) {
        for (name, value) in self.reference.parameters() {
            let Some(told) = self.view.get(name) else { continue };
            assert!(
                told.eq_ignore_ascii_case(value),
                "actor {} was told that {name} is {told}, and it should be {value}",
                self.index
            );
        }
    }
}
