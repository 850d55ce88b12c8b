//! The conversations of `transcripts/` with the core, in front of a model of PostgreSQL. The
//! integration tests hold the binary and Debian's pgbouncer to the same.

#![allow(clippy::panic)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use switchyard_core::client::replay::Keeping;
use switchyard_core::client::session::{Loyalty, Reprepare};
use switchyard_core::pool::{
    Failing, Limits, Minimum, Order, Reopen, Reserve, Retry, Standby, Want,
};
use switchyard_core::server::duty::{Reset, Tenure};
use switchyard_sim::Seed;
use switchyard_sim::env::{Env, Event};
use switchyard_sim::hooks::Hooks;
use switchyard_sim::net::{End, Owner, Recv};
use switchyard_sim::node::{Node, Position};
use switchyard_sim::pooler::{Pooler, Rules, Settings};
use switchyard_wire::frame;
use switchyard_wire::tag::backend;
use switchyard_wire::transcript::{self, Transcript, Turn};

/// Names under which the core is known.
const CORE: &str = "core";
/// A conversation that takes longer has come to a halt.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that says what it is told to.
struct Puppet {
    end: End,
    unsent: Vec<u8>,
    inbox: Vec<u8>,
    ended: bool,
}

/// The pooler, its server and its clients.
struct Stage {
    env: Env,
    pooler: Pooler,
    node: Node,
    puppets: Vec<Puppet>,
}

fn limits(size: usize) -> Limits {
    Limits {
        size,
        reserve: Reserve { size: 0, after: Duration::ZERO },
        minimum: Minimum::Attended(0),
        lifetime: Duration::from_secs(3600),
        idle_timeout: Duration::from_secs(600),
        check_delay: None,
        retry: Retry::Fixed(Duration::from_secs(15)),
        order: Order::Lifo,
        failing: Failing::Refuse,
        standby: Standby::Fixed(0),
        reopen: Reopen::Always,
        fairness: Duration::from_millis(1),
    }
}

impl Stage {
    fn new(seed: u64, lines: &[String]) -> Self {
        let mut env = Env::new(Seed::Number(seed), None);
        env.net.latency = 500;
        let (mut tenure, mut size, mut prepared) = (Tenure::Session, 20, 200);
        for line in lines {
            let (key, value) = line.split_once(" = ").expect("a setting");
            match (key, value) {
                ("pool_mode", "session") => tenure = Tenure::Session,
                ("pool_mode", "transaction") => tenure = Tenure::Transaction,
                ("pool_mode", "statement") => tenure = Tenure::Statement,
                ("default_pool_size", value) => size = value.parse().expect("a number"),
                ("max_prepared_statements", value) => prepared = value.parse().expect("a number"),
                // The simulator's sessions are under this rule always.
                ("prepared_statement_errors", "1") => {}
                other => panic!("the simulator does not know {other:?}"),
            }
        }
        if tenure == Tenure::Session {
            prepared = 0;
        }
        let settings = Settings {
            reset: Reset::Sessions,
            connect_timeout: Duration::from_secs(15),
            query_wait_timeout: Duration::from_secs(120),
            query_wait_notify: Duration::ZERO,
            cancel_wait_timeout: Duration::from_secs(10),
            reprepare: Reprepare::Off,
            outstanding_max: 8192,
            hooks: Hooks::Off,
        };
        let mut pooler = Pooler::new(settings, 2);
        let (loyalty, keeping) = (Loyalty::Leaves, Keeping::Off);
        let (database, limits) = ("postgres".to_owned(), limits(size));
        let rules = Rules { database, tenure, prepared, loyalty, keeping, limits: limits.clone() };
        pooler.add_pool("postgres", limits, rules);
        pooler.start(&mut env);
        Stage { env, pooler, node: Node::new(0, Position::Writer), puppets: Vec::new() }
    }

    /// A client that has been welcomed.
    fn enter(&mut self) -> usize {
        let index = self.puppets.len();
        let end = self.env.wire(Owner::Actor(index), Owner::Actor(index));
        let place = (0, Want::Writer);
        self.pooler.adopt(&mut self.env, index % 2, place, end.peer(), &[]);
        self.puppets.push(Puppet { end, unsent: Vec::new(), inbox: Vec::new(), ended: false });
        self.hear(index, Some(1));
        index
    }

    fn send(&mut self, index: usize, bytes: &[u8]) {
        self.puppets[index].unsent.extend_from_slice(bytes);
        self.move_bytes(index);
    }

    fn move_bytes(&mut self, index: usize) {
        let (puppet, env) = (&mut self.puppets[index], &mut self.env);
        if let Ok(count) = env.send(puppet.end, &puppet.unsent) {
            puppet.unsent.drain(..count);
        }
        while !puppet.ended {
            match env.recv(puppet.end, 4096) {
                Recv::Bytes(bytes) => puppet.inbox.extend_from_slice(&bytes),
                Recv::Blocked => return,
                Recv::Eof | Recv::Failed => puppet.ended = true,
            }
        }
    }

    /// What a client hears, up to so many ReadyForQuery or its end.
    fn hear(&mut self, index: usize, reach: Option<usize>) -> String {
        let deadline = self.env.age() + PATIENCE;
        let (mut words, mut seen) = (Vec::new(), 0);
        loop {
            while reach.is_none_or(|reach| seen < reach)
                && let Ok(Some((head, body, _))) = frame::split(&self.puppets[index].inbox)
            {
                seen += usize::from(head.tag == backend::READY_FOR_QUERY);
                words.extend(transcript::summary(head.tag, body));
                let length = head.len;
                self.puppets[index].inbox.drain(..length);
            }
            if reach.is_some_and(|reach| seen >= reach) {
                return words.join(" ");
            }
            if self.puppets[index].ended {
                words.push("end".into());
                return words.join(" ");
            }
            assert!(self.env.age() < deadline, "no answer behind {}", words.join(" "));
            self.happen();
        }
    }

    fn happen(&mut self) {
        let Some((at, event)) = self.env.calendar.take() else { panic!("nothing happens") };
        self.env.now = self.env.now.max(at);
        let env = &mut self.env;
        match event {
            Event::Wire(end) if env.arrive(end) => match env.net.owner(end) {
                Some(Owner::Actor(index)) => self.move_bytes(index),
                Some(Owner::Session(_, id)) => self.node.heard(env, id, end),
                Some(owner) => self.pooler.wire(env, end, owner),
                None => {}
            },
            Event::Inbox(w) => self.pooler.inbox(env, w),
            Event::Tick(w) => self.pooler.tick(env, w),
            _ => {}
        }
        self.pooler.check();
    }
}

fn check(name: &str, seed: u64, transcript: &Transcript) {
    let mut stage = Stage::new(seed, &transcript.settings);
    let mut clients: BTreeMap<&str, usize> = BTreeMap::new();
    for turn in &transcript.turns {
        let (Turn::Send(client, _) | Turn::Expect(client, _)) = turn;
        let index = *clients.entry(client).or_insert_with(|| stage.enter());
        match turn {
            Turn::Send(_, bytes) => stage.send(index, bytes),
            Turn::Expect(_, expected) => {
                let text = expected.of(CORE);
                let heard = stage.hear(index, transcript::reach(text));
                assert_eq!(heard, text, "{name}, line {}, seed {seed}", expected.line);
            }
        }
    }
}

#[test]
fn the_core_keeps_to_the_transcripts() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../transcripts");
    let mut seen = 0;
    for entry in directory.read_dir().expect("the transcripts") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a transcript");
        let transcript = Transcript::parse(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        if transcript.skipped(CORE).is_none() {
            seen += 1;
            (1..=20).for_each(|seed| check(&path.display().to_string(), seed, &transcript));
        }
    }
    assert!(seen >= 5, "only {seen} transcripts");
}
