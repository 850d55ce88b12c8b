//! What the process does for its clusters: views go to pools and workers, signs of trouble go to
//! those who watch, transactions are counted, records and memories are written.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use switchyard_config::{PoolMode, reason};
use switchyard_core::ids::{LaneId, Ticket, WorkerId};
use switchyard_core::names::Terms;
use switchyard_core::pool::{self, LaneRole};
use switchyard_core::switchover::probe::SignalKind;
use switchyard_core::switchover::snapshot::Change;
use switchyard_core::switchover::view::{Gate, NodeId, View};

use crate::entries::Entry;
use crate::log::Level;
use crate::pools::SharedPool;
use crate::services::House;
use crate::shared::Shared;
use crate::worker::Message;

/// Transactions of sessions on the writer, which only their workers can count.
#[derive(Debug)]
pub struct Census {
    /// The entry's name.
    pub database: String,
    /// The writer.
    pub lane: LaneId,
    round: u64,
    left: AtomicUsize,
    running: AtomicUsize,
}

impl Census {
    /// A worker has counted; the last one tells.
    pub fn add(&self, shared: &Shared, running: usize) {
        self.running.fetch_add(running, Ordering::Relaxed);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(services) = shared.services()
        {
            services.running(&self.database, self.round, self.running.load(Ordering::Relaxed));
        }
    }
}

impl Shared {
    /// Something went wrong with a node that a pool uses.
    pub fn suspect(&self, pool: &SharedPool, lane: LaneId, kind: SignalKind) {
        if pool.entry.is_cluster() {
            self.doubt(&pool.entry, lane, kind);
        }
    }

    fn doubt(&self, entry: &Entry, lane: LaneId, kind: SignalKind) {
        let Some(services) = self.services() else { return };
        // A session that is read-only by its own will gives the same sign as a standby.
        if kind != SignalKind::ReadOnly {
            let now = Instant::now();
            for pool in entry.pools() {
                self.decide(&pool, |inner| inner.machine.suspect(now, lane));
            }
        }
        services.signal(&entry.name, Some(NodeId(lane.0)), kind);
    }

    /// An entry is no cluster any more: its pools lead to its own host, and nobody is held.
    pub fn make_ordinary(&self, entry: &Arc<Entry>) {
        entry.set_view(View::default());
        for pool in entry.pools() {
            pool.set_gate(Gate::Open);
            let lanes = [(LaneId(0), LaneRole::Writer)];
            self.decide(&pool, |inner| inner.machine.set_view(Instant::now(), &lanes));
        }
        self.broadcast(|| Message::Ordinary(Arc::clone(entry)));
    }

    fn state_file(&self) -> Option<PathBuf> {
        self.snapshot().config.settings.switchover_state_file.clone().map(PathBuf::from)
    }

    fn remembered(&self, path: &PathBuf) -> Map<String, Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn complain(&self, what: &str, path: &std::path::Path, error: &std::io::Error) {
        let line = format!("cannot write {what} {}: {}", path.display(), reason(error));
        self.log.write(Level::Error, &line);
    }
}

impl House for Shared {
    fn publish(&self, database: &str, view: &View) -> Option<usize> {
        // The last word about an entry that is no cluster any more comes too late.
        let entry = self.known_entry(database).filter(|entry| entry.is_cluster())?;
        let released = entry.view().is_holding() && !view.is_holding();
        let (now, lanes) = (Instant::now(), pool::roles(view));
        entry.set_view(view.clone());
        let pools = entry.pools();
        let waiting = pools.iter().map(|pool| pool.lock().machine.counts(now, None).waiting).sum();
        // Clients get servers from the next line on, and their waits count.
        entry.meters.publish(now, view, waiting);
        for pool in pools {
            pool.set_gate(view.gate);
            self.decide(&pool, |inner| inner.machine.set_view(now, &lanes));
        }
        self.broadcast(|| Message::View(Arc::clone(&entry)));
        released.then_some(waiting)
    }

    fn count(&self, database: &str, round: u64) -> Option<usize> {
        let entry = self.known_entry(database)?;
        let Some(writer) = entry.view().writer else { return Some(0) };
        let (now, lane) = (Instant::now(), LaneId(writer.0));
        let (sessions, others): (Vec<_>, Vec<_>) =
            entry.pools().into_iter().partition(|pool| pool.mode() == PoolMode::Session);
        let busy = others.iter().map(|pool| pool.lock().machine.counts(now, Some(lane)).busy).sum();
        let busy_sessions =
            sessions.iter().map(|pool| pool.lock().machine.counts(now, Some(lane)).busy);
        if busy_sessions.sum::<usize>() == 0 {
            return Some(busy);
        }
        let census = Arc::new(Census {
            database: database.into(),
            lane,
            round,
            left: AtomicUsize::new(self.workers().len()),
            running: AtomicUsize::new(busy),
        });
        self.broadcast(|| Message::Count(Arc::clone(&census)));
        None
    }

    fn cut(&self, database: &str, node: NodeId) {
        if let Some(entry) = self.known_entry(database) {
            self.broadcast(|| Message::Cut(Arc::clone(&entry), LaneId(node.0)));
        }
    }

    fn answer(&self, console: Ticket, result: Result<(), String>) {
        self.send(console.worker, Message::Answered(console, result));
    }

    fn record(&self, database: &str, change: &Change) {
        let directory = self.snapshot().config.settings.switchover_record_dir.clone();
        let Some(directory) = directory.map(PathBuf::from) else { return };
        let Some(entry) = self.known_entry(database) else { return };
        let began = SystemTime::now() - change.began.elapsed();
        let began = began.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let since = |at: Instant| at.saturating_duration_since(change.began).as_millis() as u64;
        let tally = entry.meters.tally(change.id).unwrap_or_default();
        let stalls =
            tally.stalls().map(|[p50, p99, max]| json!({"p50": p50, "p99": p99, "max": max}));
        let journal: Vec<Value> = change
            .journal
            .iter()
            .map(|(at, text)| json!({"ms": since(*at), "event": text}))
            .collect();
        let record = json!({
            "id": change.id,
            "database": database,
            "kind": change.kind.text(),
            "trigger": change.trigger,
            "old_writer": change.old,
            "new_writer": change.new,
            "old_timeline": change.timelines.0,
            "new_timeline": change.timelines.1,
            "started_unix_ms": began as u64,
            "detected_ms": since(change.detected),
            "elected_ms": change.elected.map(since),
            "released_ms": change.released.map(|(at, _)| since(at)),
            "held_clients": tally.held,
            "errors_in_flight": tally.errors,
            "disconnected": tally.disconnected,
            "timeouts": tally.timeouts,
            "stall_ms": stalls,
            "result": change.result,
            "journal": journal,
        });
        let file: String =
            database.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
        let path = directory.join(format!("{file}-{began}-{}.json", change.id));
        if let Err(error) = std::fs::write(&path, format!("{record:#}\n")) {
            self.complain("record", &path, &error);
        }
    }

    fn remember(&self, database: &str, system: Option<u64>, timeline: Option<u32>) {
        let Some(path) = self.state_file() else { return };
        let mut all = self.remembered(&path);
        let system = system.map(|system| system.to_string());
        all.insert(database.into(), json!({"system_identifier": system, "timeline": timeline}));
        let fresh = path.with_extension("new");
        let written = std::fs::write(&fresh, format!("{:#}\n", Value::Object(all)));
        if let Err(error) = written.and_then(|()| std::fs::rename(&fresh, &path)) {
            self.complain("switchover_state_file", &path, &error);
        }
    }

    fn name_terms(&self) -> Terms {
        let settings = &self.snapshot().config.settings;
        Terms { addresses: settings.dns_max_ttl, failure: settings.dns_nxdomain_ttl }
    }

    fn resolved(&self, worker: WorkerId, number: u64, addresses: Vec<SocketAddr>) {
        self.send(worker, Message::Resolved(number, addresses));
    }

    fn addresses_lost(&self, host: &str, lost: &[SocketAddr]) {
        // Nothing new goes to a node before it has answered at the address that it has now.
        for entry in self.entries().into_iter().filter(|entry| entry.is_cluster()) {
            for node in entry.view().nodes.iter().filter(|node| node.host == host) {
                self.doubt(&entry, LaneId(node.id.0), SignalKind::Moved);
            }
        }
        self.recycle_parked(host, lost);
        let (host, lost): (Arc<str>, Arc<[SocketAddr]>) = (host.into(), lost.into());
        self.broadcast(|| Message::AddressesLost(Arc::clone(&host), Arc::clone(&lost)));
    }

    fn recall(&self, database: &str) -> (Option<u64>, Option<u32>) {
        let Some(path) = self.state_file() else { return (None, None) };
        let all = self.remembered(&path);
        let known = |key: &str| all.get(database)?.get(key).cloned();
        let system = known("system_identifier").and_then(|v| v.as_str()?.parse().ok());
        let timeline = known("timeline").and_then(|v| u32::try_from(v.as_u64()?).ok());
        (system, timeline)
    }
}
