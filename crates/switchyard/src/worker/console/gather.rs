//! Answers that all workers add to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use switchyard_core::console::Show;
use switchyard_core::console::tables::Row;
use switchyard_core::ids::Ticket;

use crate::worker::Worker;
use crate::worker::client::{Client, Stage};
use crate::worker::console::connections::client_state;
use crate::worker::console::tables::text;
use crate::worker::message::Message;

/// What is gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Rows of SHOW CLIENTS.
    Clients,
    /// Rows of SHOW SERVERS.
    Servers,
    /// Database, user and state of clients, for SHOW POOLS.
    Pools,
    /// Counts of clients, for SHOW LISTS.
    Lists,
    /// Whether a client was found.
    Kill,
}

/// An answer that all workers add to.
#[derive(Debug)]
pub struct Gathering {
    /// The console that asked.
    pub console: Ticket,
    which: Which,
    rows: Mutex<Vec<Row>>,
    left: AtomicUsize,
}

impl Gathering {
    /// For a console, from so many workers.
    pub fn new(console: Ticket, which: Which, workers: usize) -> Arc<Self> {
        let (rows, left) = (Mutex::new(Vec::new()), AtomicUsize::new(workers));
        Arc::new(Gathering { console, which, rows, left })
    }

    /// Adds a worker's rows.
    pub fn add(&self, rows: Vec<Row>) {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).extend(rows);
    }

    /// A worker is done; answers whether it was the last.
    pub fn done(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Whether anything was found.
    pub fn found(&self) -> bool {
        !self.take().is_empty()
    }

    /// The table that is asked for.
    pub fn show(&self) -> Option<Show> {
        match self.which {
            Which::Clients => Some(Show::Clients),
            Which::Servers => Some(Show::Servers),
            Which::Pools => Some(Show::Pools),
            Which::Lists => Some(Show::Lists),
            Which::Kill => None,
        }
    }

    fn take(&self) -> Vec<Row> {
        std::mem::take(&mut self.rows.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tables that all workers add to.
impl Worker {
    pub(in crate::worker) fn gather(&mut self, gathering: &Arc<Gathering>) {
        let rows = match gathering.which {
            Which::Clients => self.clients.iter().filter_map(|(_, c)| self.client_row(c)).collect(),
            Which::Servers => self.server_rows(),
            Which::Pools => {
                let row = |client: &Client| {
                    let place = client.place.as_ref()?;
                    let state = client_state(client)?;
                    let waiting = u8::from(state == "waiting");
                    Some(vec![text(&place.pool.entry.name), text(&place.pool.user), text(waiting)])
                };
                self.clients.iter().filter_map(|(_, client)| row(client)).collect()
            }
            Which::Lists => {
                let login =
                    |client: &Client| matches!(client.stage, Stage::Start | Stage::Login(_));
                let logging_in = self.clients.iter().filter(|(_, c)| login(c)).count();
                vec![vec![text(self.clients.len() - logging_in), text(logging_in)]]
            }
            Which::Kill => Vec::new(),
        };
        gathering.add(rows);
        self.report(gathering);
    }

    /// Rows of a complete gathering, in order.
    pub(in crate::worker) fn finish_rows(&self, gathering: &Gathering) -> Vec<Row> {
        let mut rows = gathering.take();
        match gathering.which {
            Which::Clients | Which::Servers | Which::Kill => {
                let number = |row: &Row| row.last().cloned().flatten()?.parse::<u64>().ok();
                rows.sort_by_key(number);
                rows
            }
            Which::Pools => self.pool_rows(&rows),
            Which::Lists => self.list_rows(&rows),
        }
    }

    /// This worker has done its part of a gathering.
    pub(in crate::worker) fn report(&self, gathering: &Arc<Gathering>) {
        if gathering.done() {
            let console = gathering.console;
            self.send(console.worker, Message::Gathered(console, Arc::clone(gathering)));
        }
    }
}
