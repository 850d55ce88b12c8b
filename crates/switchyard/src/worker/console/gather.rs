//! Answers that all workers add to. A worker describes its connections a few at a time, so that a
//! SHOW of many thousands does not hold up anybody's traffic.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use switchyard_core::console::Show;
use switchyard_core::console::tables::{self, Row, TableColumn};
use switchyard_core::ids::{LaneId, Ticket};
use switchyard_io::Key;

use crate::entries::Entry;
use crate::pools::SharedPool;
use crate::worker::client::Stage;
use crate::worker::console::descriptors;
use crate::worker::console::pools::{Parts, PeerTallies, Tally};
use crate::worker::message::Message;
use crate::worker::{Todo, Worker};

/// What all workers are asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// Rows of SHOW CLIENTS, SERVERS, SOCKETS, ACTIVE_SOCKETS or FDS.
    Connections(Show),
    /// Numbers for SHOW POOLS, PEER_POOLS, LISTS or MEM.
    Counts(Show),
    /// Close the client with this number.
    KillClient(u64),
    /// Close the clients and servers of these entries.
    Kill(Vec<Arc<Entry>>),
    /// Stop reading and send what is owed.
    Suspend,
}

/// Numbers of pools, by the address of each and the node that they are about; clients that are not
/// linked are at none.
pub(super) type Tallies = HashMap<(usize, Option<LaneId>), Tally, RandomState>;

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Rows, by the number of their connection.
    pub(super) rows: Vec<(u64, Row)>,
    pub(super) tallies: Tallies,
    pub(super) parts: Parts,
    /// By peer.
    pub(super) peers: PeerTallies,
    clients_killed: usize,
}

/// An answer that all workers add to.
#[derive(Debug)]
pub struct Gathering {
    /// The console that asked.
    pub console: Ticket,
    /// What it asked.
    pub question: Question,
    found: Mutex<Found>,
    left: AtomicUsize,
}

/// Connections described in one turn. A row costs about 2 µs.
const ROWS_PER_TURN: usize = 256;

/// What a worker still has to describe.
#[derive(Debug)]
pub(in crate::worker) struct Survey {
    gathering: Arc<Gathering>,
    clients: Vec<Key>,
    servers: Vec<Key>,
    cancels: Vec<Key>,
}

/// A table that is sent in parts.
#[derive(Debug)]
pub(in crate::worker) struct Answering {
    key: Key,
    columns: Vec<TableColumn>,
    rows: std::vec::IntoIter<Row>,
}

impl Gathering {
    /// For a console, from so many workers.
    pub fn new(console: Ticket, question: Question, workers: usize) -> Arc<Self> {
        let (found, left) = (Mutex::default(), AtomicUsize::new(workers));
        Arc::new(Gathering { console, question, found, left })
    }

    /// What was found.
    pub(super) fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker is done; answers whether it was the last.
    fn done(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether a client was found.
    pub(super) fn found(&self) -> bool {
        self.lock().clients_killed > 0
    }
}

/// Where a pool's numbers are.
pub(super) fn address(pool: &Arc<SharedPool>) -> usize {
    Arc::as_ptr(pool).addr()
}

impl Worker {
    pub(in crate::worker) fn gather(&mut self, gathering: &Arc<Gathering>) {
        match &gathering.question {
            Question::Connections(show) => {
                let (mut clients, mut servers, mut cancels) = (Vec::new(), Vec::new(), Vec::new());
                if *show != Show::Servers {
                    clients = self.clients.iter().map(|(key, _)| key).collect();
                }
                if *show != Show::Clients {
                    servers = self.servers.iter().map(|(key, _)| key).collect();
                }
                if *show == Show::Fds {
                    gathering.lock().rows.extend(self.listener_descriptors());
                } else if *show != Show::Clients {
                    cancels = self.cancels.iter().map(|(key, _)| key).collect();
                }
                let gathering = Arc::clone(gathering);
                self.surveys.push(Survey { gathering, clients, servers, cancels });
                return;
            }
            Question::Counts(_) => {
                let (tallies, parts, peers) = (self.tallies(), self.parts(), self.peer_tallies());
                let mut found = gathering.lock();
                for (pool, tally) in tallies {
                    found.tallies.entry(pool).or_default().add(&tally);
                }
                found.parts.add(&parts);
                for (id, tally) in peers {
                    found.peers.entry(id).or_default().add(tally);
                }
            }
            Question::KillClient(number) => {
                if self.kill_client(*number) {
                    gathering.lock().clients_killed += 1;
                }
            }
            Question::Kill(entries) => {
                entries.iter().for_each(|entry| self.kill(entry, "database removed"));
            }
            Question::Suspend => return self.suspend(gathering),
        }
        self.report(gathering);
    }

    /// Whether a turn of its own is needed for rows.
    pub(in crate::worker) fn has_rows_to_do(&self) -> bool {
        !self.surveys.is_empty() || !self.answering.is_empty()
    }

    /// Goes on with what has to be described.
    pub(in crate::worker) fn survey(&mut self) {
        for mut survey in std::mem::take(&mut self.surveys) {
            let Question::Connections(show) = survey.gathering.question else { continue };
            let mut rows = Vec::with_capacity(ROWS_PER_TURN);
            while rows.len() < ROWS_PER_TURN {
                if let Some(key) = survey.clients.pop() {
                    rows.extend(self.client_line(key, show));
                } else if let Some(key) = survey.servers.pop() {
                    rows.extend(self.server_line(key, show));
                } else if let Some(key) = survey.cancels.pop() {
                    rows.extend(self.cancel_line(key, show));
                } else {
                    break;
                }
            }
            survey.gathering.lock().rows.append(&mut rows);
            let left = survey.clients.len() + survey.servers.len() + survey.cancels.len();
            if left == 0 {
                self.report(&survey.gathering);
            } else {
                self.surveys.push(survey);
            }
        }
    }

    /// Answers a console whose rows are there; many rows go out over several turns.
    pub(super) fn answer_gathered(&mut self, key: Key, show: Show, rows: Vec<Row>) {
        let long = rows.len() > ROWS_PER_TURN;
        let columns = tables::columns(show);
        let mut out = Vec::new();
        let Some(console) = self.console(key) else { return };
        if !long || !console.conversation.takes_all() {
            console.wait = None;
            return self.answer(key, show, rows);
        }
        console.conversation.begin_rows(&columns, &mut out);
        self.say(key, &out);
        self.answering.push(Answering { key, columns, rows: rows.into_iter() });
    }

    /// Goes on with tables that are being sent.
    pub(in crate::worker) fn go_on_answering(&mut self) {
        for mut answering in std::mem::take(&mut self.answering) {
            let Answering { key, columns, rows } = &mut answering;
            let key = *key;
            let part: Vec<Row> = rows.by_ref().take(ROWS_PER_TURN).collect();
            let last = rows.len() == 0;
            let mut out = Vec::new();
            let Some(console) = self.console(key) else { continue };
            console.conversation.send_rows(columns, &part, &mut out);
            if last {
                console.conversation.end_rows(&mut out);
                console.wait = None;
                self.todo.push_back(Todo::Client(key));
            } else {
                self.answering.push(answering);
            }
            self.say(key, &out);
        }
    }

    /// Rows of a complete gathering, in order.
    pub(super) fn finish_rows(&self, show: Show, gathering: &Gathering) -> Vec<Row> {
        let mut found = std::mem::take(&mut *gathering.lock());
        match show {
            Show::Pools => self.pool_rows(&found.tallies),
            Show::Lists => self.list_rows(&found.parts),
            Show::Mem => self.memory_rows(&found.parts),
            Show::PeerPools => self.peer_pool_rows(&found.peers),
            Show::Fds => {
                found.rows.sort_by_key(|(number, row)| (descriptors::rank(row), *number));
                found.rows.into_iter().map(|(_, row)| row).collect()
            }
            _ => {
                // Clients first: their rows begin with C, those of servers with S.
                found.rows.sort_unstable_by(|(left, row), (right, other)| {
                    row.first().cmp(&other.first()).then(left.cmp(right))
                });
                found.rows.into_iter().map(|(_, row)| row).collect()
            }
        }
    }

    /// This worker has done its part of a gathering.
    pub(super) fn report(&self, gathering: &Arc<Gathering>) {
        if gathering.done() {
            let console = gathering.console;
            self.send(console.worker, Message::Gathered(console, Arc::clone(gathering)));
        }
    }

    fn parts(&self) -> Parts {
        let logging_in = |stage: &Stage| {
            matches!(stage, Stage::Start | Stage::Login(_) | Stage::AwaitingWelcome(_))
        };
        let logins = self.clients.iter().filter(|(_, client)| logging_in(&client.stage)).count();
        Parts {
            clients: self.clients.len() - logins,
            logins,
            buffers: self.spare.count(),
            cancels: self.cancels.len(),
        }
    }
}
