//! Rows of SHOW: what one thread can tell, and what all workers have to add to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use switchyard_config::database::Database;
use switchyard_config::value::Value as _;
use switchyard_core::console::Show;
use switchyard_core::console::tables::{Row, TOTALS_NAMES};
use switchyard_core::ids::Ticket;
use switchyard_core::lifecycle::Phase;
use switchyard_core::params::APPLICATION_NAME;
use switchyard_io::{Peer, Remote};

use crate::entries::Admission;
use crate::log::time_text;
use crate::worker::Worker;
use crate::worker::admin::{CONSOLE, program};
use crate::worker::client::{Activity, Client, Stage};
use crate::worker::server::{Server, Stage as ServerStage, Use, pointer};

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

fn text(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

/// Tables that one thread can tell.
impl Worker {
    pub(super) fn rows(&self, show: Show) -> Vec<Row> {
        let settings = &self.snapshot.config.settings;
        match show {
            Show::Version => vec![vec![Some(program())]],
            Show::State => {
                let paused = matches!(self.shared.phase(), Phase::Paused | Phase::WaitForServers);
                let word = |yes: bool| text(if yes { "yes" } else { "no" });
                vec![
                    vec![text("active"), word(!paused)],
                    vec![text("paused"), word(paused)],
                    vec![text("suspended"), word(false)],
                ]
            }
            Show::Config => settings
                .rows()
                .into_iter()
                .map(|row| {
                    let changeable = if row.changeable { "yes" } else { "no" };
                    vec![text(row.key), row.value, row.default.map(String::from), text(changeable)]
                })
                .collect(),
            Show::Databases => self.database_rows(),
            Show::Users => self.user_rows(),
            Show::Clusters => self.cluster_rows(),
            Show::Nodes => self.node_rows(),
            Show::Switchovers => self.switchover_rows(),
            Show::Stats | Show::StatsTotals | Show::StatsAverages | Show::Totals => {
                self.stats_rows(show)
            }
            Show::Parameter(_, value) => vec![vec![text(value)]],
            Show::Help | Show::Pools | Show::Clients | Show::Servers | Show::Lists => Vec::new(),
        }
    }

    fn database_rows(&self) -> Vec<Row> {
        let settings = &self.snapshot.config.settings;
        let mut rows: Vec<Row> = Vec::new();
        for entry in self.shared.entries() {
            let Database { hosts, port, dbname, user, .. } = &*entry.definition();
            let definition = entry.definition();
            let servers: usize = entry.pools().iter().map(|p| p.lock().machine.len()).sum();
            let own = |own: Option<i64>, global: i64| text(own.unwrap_or(global));
            let balance = (hosts.len() > 1).then(|| definition.load_balance_hosts.show());
            let paused = self.shared.lifecycle().is_paused_alone(&entry.name);
            let disabled = entry.admission() == Admission::Disabled;
            rows.push(vec![
                text(&entry.name),
                (!hosts.is_empty()).then(|| hosts.join(",")),
                text(port),
                text(dbname),
                user.clone(),
                own(definition.pool_size, settings.default_pool_size),
                own(definition.min_pool_size, settings.min_pool_size),
                own(definition.reserve_pool_size, settings.reserve_pool_size),
                text(definition.server_lifetime(settings).as_secs()),
                definition.pool_mode.and_then(|mode| mode.show()),
                balance.flatten(),
                own(definition.max_db_connections, settings.max_db_connections),
                text(servers),
                text(definition.client_limit(settings)),
                text(entry.clients.load(Ordering::Relaxed)),
                text(u8::from(paused)),
                text(u8::from(disabled)),
            ]);
        }
        let mut console = vec![text(CONSOLE), None, text(settings.listen_port), text(CONSOLE)];
        console.extend([text(CONSOLE), text(2), text(0), text(0), text(3600), text("statement")]);
        console.extend([None, text(0), text(0), text(0), text(0), text(0), text(0)]);
        rows.push(console);
        rows.sort_by(|a, b| a[0].cmp(&b[0]));
        rows
    }

    fn user_rows(&self) -> Vec<Row> {
        let config = &self.snapshot.config;
        let mut names: Vec<String> = self.snapshot.users.keys().cloned().collect();
        names.extend(config.users.keys().cloned());
        names.extend(config.databases.values().filter_map(|database| database.user.clone()));
        names.push(CONSOLE.into());
        names.sort_unstable();
        names.dedup();
        let pools = self.shared.pools();
        let row = |name: String| {
            let own = config.users.get(&name);
            let wide = |size: Option<i64>| text(size.map_or(String::new(), |n| format!("{n:>9}")));
            let servers = pools.iter().filter(|pool| pool.user == name);
            let servers: usize = servers.map(|pool| pool.lock().machine.len()).sum();
            let limit = |own: Option<i64>, global: i64| text(own.unwrap_or(global));
            vec![
                text(&name),
                wide(own.and_then(|user| user.pool_size)),
                wide(own.and_then(|user| user.reserve_pool_size)),
                own.and_then(|user| user.pool_mode).and_then(|mode| mode.show()),
                limit(
                    own.and_then(|user| user.max_user_connections),
                    config.settings.max_user_connections,
                ),
                text(servers),
                limit(
                    own.and_then(|user| user.max_user_client_connections),
                    config.settings.max_user_client_connections,
                ),
                text(self.shared.user_clients(&name)),
            ]
        };
        names.into_iter().map(row).collect()
    }

    fn stats_rows(&self, show: Show) -> Vec<Row> {
        let mut sums = [[0u64; 12]; 2];
        let mut rows = Vec::new();
        for (name, totals) in self.shared.totals() {
            let averages = self.shared.averages(&name, &totals);
            for index in 0..totals.len() {
                sums[0][index] += totals[index];
                sums[1][index] += averages[index];
            }
            let mut row = vec![text(&name)];
            if show != Show::StatsAverages {
                row.extend(totals.iter().map(text));
            }
            if show != Show::StatsTotals {
                row.extend(averages.iter().map(text));
            }
            rows.push(row);
        }
        if show != Show::Totals {
            return rows;
        }
        let prefixed = |prefix: &'static str, values: [u64; 12]| {
            TOTALS_NAMES
                .iter()
                .zip(values)
                .map(move |(name, value)| vec![text(format!("{prefix}_{name}")), text(value)])
        };
        prefixed("total", sums[0]).chain(prefixed("avg", sums[1])).collect()
    }
}

/// Tables that all workers add to.
impl Worker {
    pub(super) fn gather(&mut self, gathering: &Arc<Gathering>) {
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
    pub(super) fn finish_rows(&self, gathering: &Gathering) -> Vec<Row> {
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

    fn pool_rows(&self, clients: &[Row]) -> Vec<Row> {
        let now = Instant::now();
        let mut rows = Vec::new();
        for pool in self.shared.pools() {
            let (name, user) = (text(&pool.entry.name), text(&pool.user));
            let ours = clients.iter().filter(|row| row[0] == name && row[1] == user);
            let (waiting, active): (Vec<&Row>, Vec<&Row>) =
                ours.partition(|row| row[2].as_deref() == Some("1"));
            let counts = pool.lock().machine.counts(now, None);
            let wait = pool.oldest_wait().map(|since| now.saturating_duration_since(since));
            let wait = wait.unwrap_or_default();
            let definition = pool.entry.definition();
            let balance = definition.load_balance_hosts.show();
            let mut row = vec![name, user, text(active.len()), text(waiting.len())];
            row.extend([text(0), text(0), text(counts.busy), text(0), text(0)]);
            row.extend([counts.idle, counts.used, counts.testing, counts.opening].map(text));
            row.extend([text(wait.as_secs()), text(wait.subsec_micros())]);
            row.push(pool.mode().show());
            row.push(if definition.hosts.len() > 1 { balance } else { None });
            rows.push(row);
        }
        let mut console = vec![text(CONSOLE), text(CONSOLE), text(self.shared.consoles())];
        console.extend(std::iter::repeat_n(text(0), 12));
        console.extend([text("statement"), None]);
        rows.push(console);
        rows.sort();
        rows
    }

    fn list_rows(&self, counts: &[Row]) -> Vec<Row> {
        let sum = |index: usize| {
            let parse = |row: &Row| row[index].as_ref()?.parse::<usize>().ok();
            counts.iter().filter_map(parse).sum::<usize>()
        };
        let pools = self.shared.pools();
        let now = Instant::now();
        let counted: Vec<_> = pools.iter().map(|p| p.lock().machine.counts(now, None)).collect();
        let free: usize = counted.iter().map(|c| c.idle + c.used).sum();
        let used: usize = counted.iter().map(|c| c.busy + c.testing + c.opening).sum();
        [
            ("databases", self.shared.entries().len() + 1),
            ("users", self.user_rows().len()),
            ("peers", 0),
            ("pools", pools.len() + 1),
            ("peer_pools", 0),
            ("free_clients", 0),
            ("used_clients", sum(0)),
            ("login_clients", sum(1)),
            ("free_servers", free),
            ("used_servers", used),
            ("dns_names", 0),
            ("dns_zones", 0),
            ("dns_queries", 0),
            ("dns_pending", 0),
        ]
        .map(|(name, count)| vec![text(name), text(count)])
        .to_vec()
    }

    fn client_row(&self, client: &Client) -> Option<Row> {
        let state = client_state(client)?;
        let now = self.now;
        let port = self.snapshot.config.settings.listen_port;
        let (addr, remote_port) = match client.peer {
            Peer::Tcp(address) => (address.ip().to_string(), i64::from(address.port())),
            Peer::Unix { .. } => ("unix".into(), port),
        };
        let (local, local_port) = match client.stream.local_addr() {
            Some(address) => (address.ip().to_string(), i64::from(address.port())),
            None => ("unix".into(), port),
        };
        let pid = if let Peer::Unix { pid, .. } = client.peer { pid } else { 0 };
        let identity = client.identity.as_ref();
        let database = client.place.as_ref().map(|place| place.pool.entry.name.clone());
        let database = database.or(identity.map(|identity| identity.database.clone()));
        let link = client.server().and_then(|slot| self.servers.get(slot)?.here.as_ref());
        let wait = client.query_since.map(|at| now.saturating_duration_since(at));
        let wait = wait.unwrap_or_default();
        let (name, statements) = match &client.stage {
            Stage::Session(session, _) => {
                let name = session.params().value(APPLICATION_NAME).unwrap_or_default();
                (String::from_utf8_lossy(name).into_owned(), session.statements())
            }
            _ => (String::new(), 0),
        };
        Some(vec![
            text("C"),
            text(identity.map_or("(nouser)", |identity| &identity.user)),
            text(database.unwrap_or_else(|| "(nodb)".into())),
            text("none"),
            text(state),
            text(addr),
            text(remote_port),
            text(local),
            text(local_port),
            text(time_text(client.time_of(client.connected, now))),
            text(time_text(client.time_of(client.active, now))),
            text(wait.as_secs()),
            text(wait.subsec_micros()),
            text(0),
            text(format!("{:#x}", pointer(client.number))),
            text(link.map_or(String::new(), |server| format!("{:#x}", pointer(server.number)))),
            text(pid),
            text(""),
            text(name),
            text(statements),
            text(client.number),
        ])
    }

    /// Servers that are here, and parked ones whose home this is.
    fn server_rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for (_, slot) in self.servers.iter() {
            if let Some(server) = &slot.here {
                rows.push(self.server_row(server));
                continue;
            }
            let inner = slot.pool.lock();
            if let Some(server) = inner.parked.get(&slot.id).filter(|s| s.home == self.id) {
                let stale = inner.machine.is_stale(slot.id);
                let counted = inner.machine.is_used(self.now, slot.id);
                rows.push(self.row_of(server, if counted { "used" } else { "idle" }, stale));
            }
        }
        rows
    }

    fn server_row(&self, server: &Server) -> Row {
        let state = match &server.stage {
            ServerStage::Connecting(_) | ServerStage::Login(_) | ServerStage::Between => "new",
            ServerStage::Ready(_, Use::Idle) => "idle",
            ServerStage::Ready(_, Use::Linked(_)) => "active",
            ServerStage::Ready(_, Use::Testing) => "tested",
            ServerStage::Ready(_, Use::BeingCanceled) => "being_canceled",
        };
        let stale = server.pool.lock().machine.is_stale(server.id);
        self.row_of(server, state, stale)
    }

    fn row_of(&self, server: &Server, state: &str, stale: bool) -> Row {
        let definition = server.pool.entry.definition();
        let (addr, port) = match &server.remote {
            Remote::Tcp(address) => (address.ip().to_string(), address.port()),
            Remote::Unix(_) => ("unix".into(), definition.port),
        };
        let (local, local_port) = match server.local {
            Some(address) => (address.ip().to_string(), address.port()),
            None => ("unix".into(), definition.port),
        };
        let client = server.client().and_then(|key| self.clients.get(key));
        let heard = SystemTime::now() - Instant::now().saturating_duration_since(server.heard);
        let (name, statements) = match &server.stage {
            ServerStage::Ready(link, _) => {
                let name = link.params().value(APPLICATION_NAME).unwrap_or_default();
                (String::from_utf8_lossy(name).into_owned(), link.statements())
            }
            _ => (String::new(), 0),
        };
        vec![
            text("S"),
            text(&server.pool.user),
            text(&server.pool.entry.name),
            text("none"),
            text(state),
            text(addr),
            text(port),
            text(local),
            text(local_port),
            text(time_text(server.started_at)),
            text(time_text(heard)),
            text(0),
            text(0),
            text(u8::from(stale)),
            text(format!("{:#x}", pointer(server.number))),
            text(client.map_or(String::new(), |c| format!("{:#x}", pointer(c.number)))),
            text(server.pid),
            text(""),
            text(name),
            text(statements),
            text(server.number),
        ]
    }
}

/// State in SHOW CLIENTS; `None` for those that do not appear.
fn client_state(client: &Client) -> Option<&'static str> {
    match &client.stage {
        Stage::Session(_, Activity::Linked(_)) => Some("active"),
        Stage::Session(_, Activity::Idle) | Stage::Console(_) => Some("idle"),
        Stage::Session(_, Activity::Waiting) | Stage::AwaitingWelcome(_) => Some("waiting"),
        Stage::Cancel => Some("active_cancel_req"),
        Stage::Start | Stage::Login(_) | Stage::Leaving => None,
    }
}
