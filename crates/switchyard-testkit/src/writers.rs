//! Clients that write through a pooler without a pause, and what a change of writer costs them:
//! how long each was held, what failed, and which acknowledged rows are missing.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Change, Client, Cluster, wait_until};

/// What one client saw.
#[derive(Debug, Default)]
struct Account {
    /// What was acknowledged: its number, by which server, and when.
    acknowledged: Vec<(u64, u16, Instant)>,
    errors: usize,
    disconnects: usize,
    wrong: usize,
    complaints: Vec<String>,
}

impl Account {
    /// When the new writer first acknowledged something after the old one had gone.
    fn first(&self, change: &Change) -> Option<Instant> {
        let new = |ack: &&(u64, u16, Instant)| ack.1 == change.new && ack.2 > change.gone;
        self.acknowledged.iter().find(new).map(|ack| ack.2)
    }
}

/// A running load. It writes into the table `writes` of the cluster.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    accounts: Vec<Arc<Mutex<Account>>>,
    threads: Vec<JoinHandle<()>>,
}

/// What a change of writer cost.
#[derive(Debug, Default)]
pub struct Cost {
    /// From the first direct commit on the new writer to each client's first own, in order.
    pub stalls: Vec<Duration>,
    /// Statements that failed while the connection lived.
    pub errors: usize,
    /// Connections lost.
    pub disconnects: usize,
    /// Answers that belong to another statement.
    pub wrong: usize,
    /// Acknowledged rows that are not there.
    pub lost: usize,
    /// Rows that the old writer acknowledged after the new one had accepted writes.
    pub stale: usize,
    /// Rows that are there twice.
    pub doubled: usize,
    /// All acknowledged rows.
    pub acknowledged: usize,
    /// Each text that clients were told, once.
    pub complaints: Vec<String>,
}

impl Cost {
    /// Stall of the first, the median and the last client, in milliseconds.
    pub fn milliseconds(&self) -> [f64; 3] {
        let last = self.stalls.len().saturating_sub(1);
        [0, self.stalls.len() / 2, last].map(|index| {
            self.stalls.get(index).map_or(f64::INFINITY, |stall| stall.as_secs_f64() * 1000.0)
        })
    }
}

impl Writers {
    /// Starts `clients` writers on a database of a pooler in front of the cluster.
    pub fn start(cluster: &Cluster, port: u16, database: &str, clients: usize) -> io::Result<Self> {
        Self::begin(cluster.writer().port, port, database, clients)
    }

    /// The same in front of the server that writes now at `direct`.
    pub fn begin(direct: u16, port: u16, database: &str, clients: usize) -> io::Result<Self> {
        let mut server = Client::connect(direct, "postgres")?;
        server.run("drop table if exists writes")?;
        server.run("create table writes (client int, number bigint)")?;
        let mut writers = Writers {
            stop: Arc::default(),
            count: Arc::default(),
            accounts: Vec::new(),
            threads: Vec::new(),
        };
        for client in 0..clients {
            let account = Arc::new(Mutex::new(Account::default()));
            let (stop, count) = (Arc::clone(&writers.stop), Arc::clone(&writers.count));
            let (own, database) = (Arc::clone(&account), database.to_owned());
            writers.accounts.push(account);
            writers.threads.push(std::thread::spawn(move || {
                write(&own, client, port, &database, &stop, &count);
            }));
        }
        Ok(writers)
    }

    /// Waits until the clients together have written `rows` rows from now.
    pub fn run(&self, rows: u64) -> io::Result<()> {
        let goal = self.count.load(Ordering::Relaxed) + rows;
        wait_until("progress of the writers", || self.count.load(Ordering::Relaxed) >= goal)
    }

    /// Waits until every client has written on the new writer, ends the load and counts.
    pub fn finish(mut self, change: &Change) -> io::Result<Cost> {
        let there = |account: &Arc<Mutex<Account>>| {
            account.lock().is_ok_and(|account| account.first(change).is_some())
        };
        let all = wait_until("write of every client", || self.accounts.iter().all(there));
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| io::Error::other("a panic"))?;
        }
        all?;
        let mut rows: HashMap<(usize, u64), usize> = HashMap::new();
        let mut direct = Client::connect(change.new, "postgres")?;
        for row in direct.run("select client, number from writes")? {
            let (client, number) = row.split_once('|').unwrap_or_default();
            let key = (client.parse().unwrap_or(usize::MAX), number.parse().unwrap_or(0));
            *rows.entry(key).or_default() += 1;
        }
        let mut cost =
            Cost { doubled: rows.values().filter(|n| **n > 1).count(), ..Cost::default() };
        for (client, account) in self.accounts.iter().enumerate() {
            let Ok(account) = account.lock() else { continue };
            let missing = |ack: &&(u64, u16, Instant)| !rows.contains_key(&(client, ack.0));
            cost.lost += account.acknowledged.iter().filter(missing).count();
            cost.acknowledged += account.acknowledged.len();
            cost.errors += account.errors;
            cost.disconnects += account.disconnects;
            cost.wrong += account.wrong;
            for text in &account.complaints {
                if !cost.complaints.contains(text) {
                    cost.complaints.push(text.clone());
                }
            }
            let stale = |ack: &&(u64, u16, Instant)| {
                change.old != change.new && ack.1 == change.old && ack.2 > change.accepted
            };
            cost.stale += account.acknowledged.iter().filter(stale).count();
            if let Some(first) = account.first(change) {
                cost.stalls.push(first.saturating_duration_since(change.accepted));
            }
        }
        cost.stalls.sort();
        Ok(cost)
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write(
    account: &Mutex<Account>,
    client: usize,
    port: u16,
    database: &str,
    stop: &AtomicBool,
    count: &AtomicU64,
) {
    let (mut connection, mut number) = (None, 0);
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let sql = format!(
            "insert into writes values ({client}, {number}) \
             returning client, number, inet_server_port()"
        );
        let result = match &mut connection {
            None => {
                connection = Client::connect(port, database).ok();
                continue;
            }
            Some(open) => open.run(&sql),
        };
        let now = Instant::now();
        let Ok(mut account) = account.lock() else { return };
        match result {
            Ok(rows) => {
                let answer = rows.first().map_or("", String::as_str);
                match answer.strip_prefix(&format!("{client}|{number}|")).map(str::parse) {
                    Some(Ok(server)) => {
                        account.acknowledged.push((number, server, now));
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => account.wrong += 1,
                }
            }
            Err(error) => {
                account.complaints.push(error.to_string());
                if error.kind() == io::ErrorKind::Other {
                    account.errors += 1;
                } else {
                    account.disconnects += 1;
                    connection = None;
                }
            }
        }
    }
}
