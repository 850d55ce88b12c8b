//! Rows of SHOW CLUSTERS, NODES and SWITCHOVERS.

use std::time::{Instant, SystemTime};

use switchyard_core::console::Show;
use switchyard_core::console::tables::{Row, columns};
use switchyard_core::ids::LaneId;
use switchyard_core::switchover::snapshot::{Change, ClusterSnapshot, Kind};
use switchyard_core::switchover::view::{NodeState, Role};

use crate::cluster_settings::unmanaged;
use crate::log::time_text;
use crate::worker::Worker;

fn text(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

/// Time of day of a moment.
fn moment(now: Instant, at: Instant) -> String {
    let clock = SystemTime::now();
    match at.checked_duration_since(now) {
        Some(later) => time_text(clock + later),
        None => time_text(clock - now.saturating_duration_since(at)),
    }
}

/// A position as PostgreSQL writes it.
fn lsn(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xffff_ffff)
}

impl Worker {
    fn snapshots(&self) -> Vec<ClusterSnapshot> {
        self.shared.services().map_or(Vec::new(), |services| services.snapshots())
    }

    /// Clients in the queues of a database.
    fn waiting(&self, database: &str) -> usize {
        let pools = self.shared.known_entry(database).map_or(Vec::new(), |entry| entry.pools());
        pools.iter().map(|pool| pool.lock().machine.counts(self.now, None).waiting).sum()
    }

    pub(super) fn cluster_rows(&self) -> Vec<Row> {
        let now = Instant::now();
        let row = |cluster: ClusterSnapshot| {
            let writer = cluster.nodes.iter().find(|node| Some(node.view.id) == cluster.writer);
            let up = cluster.nodes.iter().filter(|node| node.view.state == NodeState::Up);
            let holding = cluster.held_since.is_some();
            let held = if holding { self.waiting(&cluster.database) } else { 0 };
            let done = |change: &&Change| {
                change.elected.is_some() && change.kind != Kind::Aborted && change.old != change.new
            };
            let last = cluster.changes.iter().rev().find(done);
            let stall = last.and_then(|change| Some((change.released?.0, change.began)));
            let changes = cluster.changes.iter().filter(done);
            let age = |at: Instant| now.saturating_duration_since(at);
            vec![
                text(&cluster.database),
                text(cluster.state),
                writer.map(|node| node.view.name.clone()),
                writer.map(|node| node.view.host.clone()),
                writer.map(|node| node.view.port.to_string()),
                cluster.writer_since.filter(|_| writer.is_some()).map(|at| moment(now, at)),
                cluster.system.map(|system| system.to_string()),
                cluster.timeline.map(|timeline| timeline.to_string()),
                text(cluster.nodes.len()),
                text(up.count()),
                text(held),
                cluster.held_since.map(|at| moment(now, at)),
                text(changes.count()),
                last.and_then(|change| Some(moment(now, change.elected?))),
                stall.map(|(end, start)| (end - start).as_millis().to_string()),
                cluster.topology_at.map(|at| age(at).as_secs().to_string()),
                cluster.error,
            ]
        };
        let unmanaged = unmanaged(&self.snapshot.config).map(|(database, error)| {
            let mut row = vec![text(database), text("unmanaged")];
            row.resize(columns(Show::Clusters).len() - 1, None);
            row.push(Some(error));
            row
        });
        let mut rows: Vec<Row> = self.snapshots().into_iter().map(row).chain(unmanaged).collect();
        rows.sort_by(|a, b| a[0].cmp(&b[0]));
        rows
    }

    pub(super) fn node_rows(&self) -> Vec<Row> {
        let now = Instant::now();
        let mut rows = Vec::new();
        for cluster in self.snapshots() {
            let entry = self.shared.known_entry(&cluster.database);
            let pools = entry.map_or(Vec::new(), |entry| entry.pools());
            for node in &cluster.nodes {
                let lane = Some(LaneId(node.view.id.0));
                let counts = pools.iter().map(|pool| pool.lock().machine.counts(now, lane));
                let (active, idle) = counts.fold((0, 0), |(active, idle), counts| {
                    (active + counts.busy, idle + counts.idle + counts.used)
                });
                let reader = node.view.role == Role::Reader;
                let age = node.answered_at.map(|at| now.saturating_duration_since(at));
                rows.push(vec![
                    text(&cluster.database),
                    text(&node.view.name),
                    text(&node.view.host),
                    text(node.view.port),
                    text(node.view.role.text()),
                    text(node.view.state.text()),
                    node.timeline.map(|timeline| timeline.to_string()),
                    node.lsn.map(lsn),
                    node.lag.filter(|_| reader).map(|lag| lag.to_string()),
                    node.round_trip.map(|took| took.as_millis().to_string()),
                    age.map(|age| age.as_millis().to_string()),
                    text(node.failures),
                    text(node.answer),
                    node.error.clone(),
                    text(active),
                    text(idle),
                    // A link holds one client and one server.
                    text(active),
                    node.up_since.map(|at| moment(now, at)),
                    node.failed_until.filter(|until| *until > now).map(|at| moment(now, at)),
                ]);
            }
        }
        rows
    }

    pub(super) fn switchover_rows(&self) -> Vec<Row> {
        let now = Instant::now();
        let clusters = self.snapshots();
        let mut all: Vec<(&String, &Change)> = clusters
            .iter()
            .flat_map(|cluster| cluster.changes.iter().map(|change| (&cluster.database, change)))
            .collect();
        all.sort_by_key(|(_, change)| std::cmp::Reverse(change.began));
        all.into_iter()
            .map(|(database, change)| self.switchover_row(now, database, change))
            .collect()
    }

    fn switchover_row(&self, now: Instant, database: &str, change: &Change) -> Row {
        let since =
            |at: Instant| at.saturating_duration_since(change.began).as_millis().to_string();
        let number = |value: Option<u32>| value.map(|value| value.to_string());
        let entry = self.shared.known_entry(database);
        let tally = entry.and_then(|entry| entry.meters.tally(change.id)).unwrap_or_default();
        let mut row = vec![
            text(change.id),
            text(database),
            text(change.kind.text()),
            text(&change.trigger),
            text(&change.old),
            Some(change.new.clone()).filter(|name| !name.is_empty()),
            number(change.timelines.0),
            number(change.timelines.1),
            text(moment(now, change.began)),
            text(since(change.detected)),
            change.elected.map(since),
            change.released.map(|(at, _)| since(at)),
        ];
        // The queue only grows while it is held: it is longest at the end.
        let numbers = [tally.held, tally.held, tally.errors, tally.disconnected, tally.timeouts];
        row.extend(numbers.map(text));
        match tally.stalls() {
            Some(stalls) => row.extend(stalls.map(text)),
            None => row.extend([None, None, None]),
        }
        let result = if change.result.is_empty() { "holding" } else { &change.result };
        row.push(text(result));
        row
    }
}
