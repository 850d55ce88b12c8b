//! A client of a cluster: it writes and reads, and remembers what it was told about each write.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use switchyard_wire::tag::{backend, frontend};
use switchyard_wire::{build, frame, read};

use crate::env::{Env, Event, Messages};
use crate::net::{End, Recv};
use crate::random::Random;
use crate::script;

/// What a client knows about a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was acknowledged.
    Acknowledged,
    /// It was refused or rolled back.
    Refused,
    /// Nobody could say.
    Unknown,
}

/// One request; each is answered up to a ReadyForQuery.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Request {
    Begin,
    Insert(u64),
    /// The end of a block: a commit, or a rollback.
    Commit,
    Rollback,
    Echo(String),
}

/// What came as the answer to one request.
#[derive(Clone, Debug, Default)]
struct Answer {
    tag: Option<String>,
    error: Option<(String, String)>,
    row: Option<String>,
}

/// What the client is about to do.
#[derive(Clone, Debug)]
enum Turn {
    Send(Vec<(Request, Vec<u8>)>),
    Think(Duration),
}

/// A client of a cluster.
#[derive(Debug)]
pub struct Writer {
    /// Its number.
    pub index: usize,
    end: Option<End>,
    turns: VecDeque<Turn>,
    unsent: Vec<u8>,
    inbox: Vec<u8>,
    pending: VecDeque<Request>,
    answer: Answer,
    /// Writes of the block that is open.
    block: Vec<u64>,
    status: u8,
    /// Requests to come whose outcome is as unknown as that of one before.
    doubtful: usize,
    phase: Phase,
    since: Instant,
    /// What it knows about each of its writes.
    pub fates: BTreeMap<u64, Fate>,
    /// Why it has ended.
    pub ending: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Login,
    Ready,
    Thinking,
    Waiting,
}

/// What such a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trade {
    /// It writes and reads.
    Writes,
    /// It only reads.
    Reads,
}

fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    build::query(&mut out, sql.as_bytes());
    out
}

fn extended(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    script::unnamed(&mut out, sql);
    build::empty(&mut out, frontend::SYNC);
    out
}

/// How it does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Without much rest, in words of the model.
    Hasty,
    /// With rests, in words of SQL: what a session leaves behind is told by them.
    Restful,
}

fn turn(random: &mut Random, trade: (Trade, Manner), minted: &mut u64) -> Vec<Turn> {
    let (trade, manner) = trade;
    let reads = if manner == Manner::Restful { "select" } else { "echo" };
    let form = |random: &mut Random, sql: &str| {
        if random.one_in(3) { extended(sql) } else { query(sql) }
    };
    let insert = |random: &mut Random, minted: &mut u64| {
        *minted += 1;
        (Request::Insert(*minted), form(random, &format!("insert {minted}")))
    };
    let echo = |random: &mut Random, minted: &mut u64| {
        *minted += 1;
        let mark = format!("m{minted}");
        let sql = format!("{reads} {mark}");
        (Request::Echo(mark), form(random, &sql))
    };
    let each = |requests: Vec<(Request, Vec<u8>)>| {
        requests.into_iter().map(|request| Turn::Send(vec![request])).collect::<Vec<_>>()
    };
    if trade == Trade::Reads {
        return each(vec![echo(random, minted)]);
    }
    match random.below(10) {
        0 => vec![Turn::Think(random.millis(1, 80))],
        1..=2 => each(vec![echo(random, minted)]),
        3..=5 => each(vec![insert(random, minted)]),
        6 => vec![Turn::Send((0..3).map(|_| insert(random, minted)).collect())],
        _ => {
            let mut block = vec![(Request::Begin, query("begin"))];
            for _ in 0..random.below(4) {
                block.push(insert(random, minted));
            }
            block.push(match random.below(4) {
                0 => (Request::Rollback, query("rollback")),
                _ => (Request::Commit, form(random, "commit")),
            });
            if random.one_in(4) {
                return vec![Turn::Send(block)];
            }
            let mut turns = each(block);
            if random.one_in(3) {
                turns.insert(2, Turn::Think(random.millis(1, 300)));
            }
            turns
        }
    }
}

impl Writer {
    /// A client that has sent its login on this wire; `minted` are the writes of all clients.
    pub fn new(
        env: &mut Env,
        index: usize,
        end: End,
        trade: (Trade, Manner),
        minted: &mut u64,
    ) -> Self {
        let count = env.random.between(5, 60);
        let mut turns = VecDeque::new();
        for _ in 0..count {
            turns.extend(turn(&mut env.random, trade, minted));
            if trade.1 == Manner::Restful && env.random.one_in(2) {
                turns.push_back(Turn::Think(env.random.millis(1, 600)));
            }
        }
        Writer {
            index,
            end: Some(end),
            turns,
            unsent: Vec::new(),
            inbox: Vec::new(),
            pending: VecDeque::new(),
            answer: Answer::default(),
            block: Vec::new(),
            status: b'I',
            doubtful: 0,
            phase: Phase::Login,
            since: env.now,
            fates: BTreeMap::new(),
            ending: None,
        }
    }

    /// Since when it waits for an answer.
    pub fn waits_since(&self) -> Option<Instant> {
        let waits = matches!(self.phase, Phase::Waiting | Phase::Login) && self.ending.is_none();
        waits.then_some(self.since)
    }

    /// What it is doing, for the record.
    pub fn text(&self) -> String {
        format!("writer {}: {:?}, waits for {:?}", self.index, self.phase, self.pending)
    }

    /// Its time has come, or bytes.
    pub fn go_on(&mut self, env: &mut Env, timer: bool) {
        if self.ending.is_some() {
            return;
        }
        if timer && self.phase == Phase::Thinking {
            self.phase = Phase::Ready;
        }
        self.flush(env);
        self.listen(env);
        while self.ending.is_none() && self.phase == Phase::Ready {
            self.step(env);
        }
    }

    fn flush(&mut self, env: &mut Env) {
        let Some(end) = self.end else { return };
        if !self.unsent.is_empty()
            && let Ok(count) = env.send(end, &self.unsent)
        {
            self.unsent.drain(..count);
        }
    }

    fn step(&mut self, env: &mut Env) {
        self.since = env.now;
        if self.status == b'E' {
            return self.send(env, vec![(Request::Rollback, query("rollback"))]);
        }
        match self.turns.pop_front() {
            None => self.leave(env, "left".into()),
            Some(Turn::Think(time)) => {
                env.after(time, Event::Client(self.index));
                self.phase = Phase::Thinking;
            }
            Some(Turn::Send(requests)) => self.send(env, requests),
        }
    }

    fn send(&mut self, env: &mut Env, requests: Vec<(Request, Vec<u8>)>) {
        for (request, bytes) in requests {
            env.note(|| format!("writer {} sends {}", self.index, Messages(&bytes)));
            if let Request::Insert(id) = request {
                self.fates.insert(id, Fate::Unknown);
            }
            self.pending.push_back(request);
            self.unsent.extend_from_slice(&bytes);
        }
        self.flush(env);
        self.phase = Phase::Waiting;
    }

    fn leave(&mut self, env: &mut Env, ending: String) {
        env.note(|| format!("writer {} ends: {ending}", self.index));
        if let Some(end) = self.end.take() {
            env.close(end);
        }
        // A block whose commit was not sent cannot be committed.
        if !self.pending.contains(&Request::Commit) {
            self.settle(Fate::Refused);
        }
        self.ending = Some(ending);
    }

    fn listen(&mut self, env: &mut Env) {
        while let Some(end) = self.end {
            match env.recv(end, 4096) {
                Recv::Bytes(bytes) => self.inbox.extend_from_slice(&bytes),
                Recv::Blocked => return,
                Recv::Eof | Recv::Failed => return self.leave(env, "closed".into()),
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
        let field = |kind| {
            let text = read::field(body, kind).unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        };
        if tag == backend::NOTICE || tag == backend::PARAMETER_STATUS {
            return;
        }
        if tag == backend::ERROR && field(b'S') == "FATAL" {
            return self.leave(env, field(b'M'));
        }
        self.since = env.now;
        if self.phase == Phase::Login {
            if tag == backend::READY_FOR_QUERY {
                self.phase = Phase::Ready;
            }
            return;
        }
        match tag {
            backend::ERROR => {
                assert!(self.answer.error.is_none(), "writer {}: two errors", self.index);
                self.answer.error = Some((field(b'C'), field(b'M')));
            }
            backend::COMMAND_COMPLETE => {
                assert!(self.answer.tag.is_none(), "writer {}: two tags", self.index);
                let text = String::from_utf8_lossy(&body[..body.len() - 1]).into_owned();
                self.answer.tag = Some(text);
            }
            backend::DATA_ROW => {
                let row = read::data_row(body).next().flatten().unwrap_or_default();
                self.answer.row = Some(String::from_utf8_lossy(row).into_owned());
            }
            backend::READY_FOR_QUERY => {
                let answer = std::mem::take(&mut self.answer);
                let Some(request) = self.pending.pop_front() else {
                    panic!("writer {} is told that it may go on, unasked", self.index);
                };
                self.judge(request, &answer, body[0]);
                if self.pending.is_empty() {
                    self.phase = Phase::Ready;
                }
            }
            _ => {}
        }
    }

    fn settle(&mut self, fate: Fate) {
        for id in std::mem::take(&mut self.block) {
            self.fates.insert(id, fate);
        }
    }

    /// What an answer means for what was written.
    fn judge(&mut self, request: Request, answer: &Answer, status: u8) {
        let inside = self.status != b'I';
        self.status = status;
        let mut code = answer.error.as_ref().map(|(code, _)| code.as_str());
        if code == Some("08007") {
            // It is said once, of everything that was under way.
            self.doubtful = self.pending.len();
        } else if self.doubtful > 0 {
            self.doubtful -= 1;
            code = code.map(|_| "08007");
        }
        // Either there is an error, or the request's own answer.
        match (&request, code) {
            (Request::Insert(id), None) => {
                self.tagged(answer, "INSERT 0 1");
                if status == b'I' {
                    self.fates.insert(*id, Fate::Acknowledged);
                } else {
                    self.block.push(*id);
                }
            }
            (Request::Insert(id), Some("08007")) => {
                self.fates.insert(*id, Fate::Unknown);
                self.settle(Fate::Unknown);
            }
            (Request::Insert(id), Some(_)) => {
                // What had succeeded in the block is rolled back with it.
                self.fates.insert(*id, Fate::Refused);
                self.settle(Fate::Refused);
            }
            (Request::Begin, None) => self.tagged(answer, "BEGIN"),
            (Request::Commit, None) => {
                let committed = answer.tag.as_deref() == Some("COMMIT");
                if !committed {
                    self.tagged(answer, "ROLLBACK");
                }
                self.settle(if committed { Fate::Acknowledged } else { Fate::Refused });
            }
            (Request::Commit, Some("08007")) => self.settle(Fate::Unknown),
            (Request::Rollback, None) => {
                self.tagged(answer, "ROLLBACK");
                self.settle(Fate::Refused);
            }
            (Request::Begin | Request::Commit | Request::Rollback, Some(code)) => {
                let fate = if code == "08007" { Fate::Unknown } else { Fate::Refused };
                self.settle(fate);
            }
            (Request::Echo(mark), None) => {
                let row = answer.row.as_deref();
                assert_eq!(row, Some(mark.as_str()), "writer {} hears its row", self.index);
            }
            (Request::Echo(_), Some(_)) => {
                if inside {
                    self.settle(Fate::Refused);
                }
            }
        }
    }

    fn tagged(&self, answer: &Answer, tag: &str) {
        assert_eq!(answer.tag.as_deref(), Some(tag), "writer {} hears its tag", self.index);
    }
}
