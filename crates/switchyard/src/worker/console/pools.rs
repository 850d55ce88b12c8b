//! SHOW POOLS, PEER_POOLS, LISTS and MEM, from what the workers counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use switchyard_config::value::Value as _;
use switchyard_core::console::tables::Row;
use switchyard_core::ids::LaneId;
use switchyard_core::pool::Counts;

use crate::entries::Entry;
use crate::pools::SharedPool;
use crate::worker::Worker;
use crate::worker::buffer::SPARE_SIZE;
use crate::worker::cancel_request::Progress;
use crate::worker::client::{Activity, Client, Stage};
use crate::worker::console::CONSOLE;
use crate::worker::console::gather::{Tallies, address};
use crate::worker::console::tables::text;
use crate::worker::server::{Server, Stage as ServerStage, Use};

/// What workers know of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    active: usize,
    waiting: usize,
    /// Cancel requests on their way to the server, and those without a connection yet.
    cancels_active: usize,
    cancels_waiting: usize,
    being_canceled: usize,
    /// Running a reset or check query.
    testing: usize,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Tally) {
        self.active += other.active;
        self.waiting += other.waiting;
        self.cancels_active += other.cancels_active;
        self.cancels_waiting += other.cancels_waiting;
        self.being_canceled += other.being_canceled;
        self.testing += other.testing;
    }

    fn remove(&mut self, part: &Tally) {
        self.active -= part.active;
        self.waiting -= part.waiting;
        self.cancels_active -= part.cancels_active;
        self.cancels_waiting -= part.cancels_waiting;
        self.being_canceled -= part.being_canceled;
        self.testing -= part.testing;
    }
}

/// Cancel requests for clients of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PeerTally {
    /// With the peer.
    sent: usize,
    /// Without a connection.
    waiting: usize,
    /// On a connection that is being made.
    opening: usize,
}

/// By id of the peer.
pub(super) type PeerTallies = BTreeMap<u32, PeerTally>;

impl PeerTally {
    pub(super) fn add(&mut self, other: PeerTally) {
        self.sent += other.sent;
        self.waiting += other.waiting;
        self.opening += other.opening;
    }
}

/// What workers hold.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts {
    /// Clients that are logged in, and cancel requests.
    pub(super) clients: usize,
    /// Clients that are not.
    pub(super) logins: usize,
    /// Spare buffers.
    pub(super) buffers: usize,
    /// Connections that carry cancel requests.
    pub(super) cancels: usize,
}

impl Parts {
    pub(super) fn add(&mut self, other: &Parts) {
        self.clients += other.clients;
        self.logins += other.logins;
        self.buffers += other.buffers;
        self.cancels += other.cancels;
    }
}

/// Nodes of a pool with rows of their own: all but the writer.
fn other_nodes(pool: &SharedPool) -> Vec<(String, LaneId)> {
    if !pool.entry.is_cluster() {
        return Vec::new();
    }
    let view = pool.entry.view();
    let others = view.nodes.iter().filter(|node| Some(node.id) != view.writer);
    others.map(|node| (node.name.clone(), LaneId(node.id.0))).collect()
}

fn less(all: Counts, part: Counts) -> Counts {
    Counts {
        busy: all.busy.saturating_sub(part.busy),
        idle: all.idle.saturating_sub(part.idle),
        used: all.used.saturating_sub(part.used),
        testing: all.testing.saturating_sub(part.testing),
        opening: all.opening.saturating_sub(part.opening),
        waiting: all.waiting,
    }
}

fn pool_row(pool: &SharedPool, name: &str, tally: &Tally, counts: Counts, wait: Duration) -> Row {
    let owned = (counts.busy + counts.testing).saturating_sub(tally.being_canceled);
    let definition = pool.entry.definition();
    let balance = definition.load_balance_hosts.show();
    let mut row = vec![text(name), text(&pool.user)];
    row.extend([tally.active, tally.waiting].map(text));
    row.extend([tally.cancels_active, tally.cancels_waiting].map(text));
    row.push(text(owned.saturating_sub(tally.testing)));
    row.extend([tally.cancels_active, tally.being_canceled].map(text));
    row.extend([counts.idle, counts.used, tally.testing].map(text));
    row.push(text(counts.opening + tally.cancels_waiting));
    row.extend([text(wait.as_secs()), text(wait.subsec_micros())]);
    row.push(pool.mode().show());
    row.push(if definition.hosts.len() > 1 { balance } else { None });
    row
}

impl Worker {
    pub(super) fn tallies(&self) -> Tallies {
        let mut tallies = Tallies::default();
        for (_, client) in self.clients.iter() {
            let Some(place) = &client.place else { continue };
            let linked = client.server().and_then(|slot| self.servers.get(slot)?.here.as_ref());
            let lane = linked.map(|server| server.lane);
            let tally: &mut Tally = tallies.entry((address(&place.pool), lane)).or_default();
            match &client.stage {
                Stage::Session(_, Activity::Waiting) | Stage::AwaitingWelcome(_) => {
                    tally.waiting += 1;
                }
                Stage::Session(_, Activity::Idle | Activity::Linked(_)) => tally.active += 1,
                Stage::Start
                | Stage::Login(_)
                | Stage::Console(_)
                | Stage::Cancel(_)
                | Stage::Leaving => {}
            }
        }
        for (_, slot) in self.servers.iter() {
            let Some(server) = &slot.here else { continue };
            let tally = tallies.entry((address(&slot.pool), Some(server.lane))).or_default();
            match server.stage {
                ServerStage::Ready(_, Use::Testing | Use::RollingBack) => tally.testing += 1,
                ServerStage::Ready(_, Use::BeingCanceled) => tally.being_canceled += 1,
                _ => {}
            }
        }
        for (_, outgoing) in self.cancels.iter() {
            let slot = outgoing.slot().and_then(|slot| self.servers.get(slot));
            let Some(slot) = slot else { continue };
            let lane = slot.here.as_ref().map(|server| server.lane);
            let tally = tallies.entry((address(&slot.pool), lane)).or_default();
            match outgoing.progress() {
                Progress::Waiting
                | Progress::Naming
                | Progress::Connecting
                | Progress::Asked
                | Progress::Shaking => tally.cancels_waiting += 1,
                Progress::Sent => tally.cancels_active += 1,
            }
        }
        tallies
    }

    pub(super) fn pool_rows(&self, tallies: &Tallies) -> Vec<Row> {
        let now = Instant::now();
        let mut rows = Vec::new();
        for pool in self.shared.pools() {
            let own = |lane: Option<LaneId>| {
                tallies.get(&(address(&pool), lane)).copied().unwrap_or_default()
            };
            let mut whole = Tally::default();
            let of_pool = tallies.iter().filter(|((at, _), _)| *at == address(&pool));
            of_pool.for_each(|(_, tally)| whole.add(tally));
            let mut counts = pool.lock().machine.counts(now, None);
            for (node, lane) in other_nodes(&pool) {
                let (tally, here) = (own(Some(lane)), pool.lock().machine.counts(now, Some(lane)));
                let here = Counts { waiting: 0, ..here };
                if tally == Tally::default() && here == Counts::default() {
                    continue;
                }
                whole.remove(&tally);
                counts = less(counts, here);
                let name = format!("{}@{node}", pool.entry.name);
                rows.push(pool_row(&pool, &name, &tally, here, Duration::ZERO));
            }
            let wait = pool.oldest_wait().map(|since| now.saturating_duration_since(since));
            let wait = wait.unwrap_or_default();
            rows.push(pool_row(&pool, &pool.entry.name, &whole, counts, wait));
        }
        let mut console = vec![text(CONSOLE), text(CONSOLE), text(self.shared.consoles())];
        console.extend(std::iter::repeat_n(text(0), 12));
        console.extend([text("statement"), None]);
        rows.push(console);
        rows.sort();
        rows
    }

    pub(super) fn peer_tallies(&self) -> PeerTallies {
        let mut tallies = PeerTallies::new();
        for (_, outgoing) in self.cancels.iter() {
            let Some(id) = outgoing.peer() else { continue };
            let tally = tallies.entry(id).or_default();
            match outgoing.progress() {
                Progress::Waiting => tally.waiting += 1,
                Progress::Sent => tally.sent += 1,
                Progress::Naming | Progress::Connecting | Progress::Asked | Progress::Shaking => {
                    tally.opening += 1
                }
            }
        }
        tallies
    }

    pub(super) fn peer_pool_rows(&self, tallies: &PeerTallies) -> Vec<Row> {
        let row = |id: u32| {
            let tally = tallies.get(&id).copied().unwrap_or_default();
            let PeerTally { sent, waiting, opening } = tally;
            let mut row = vec![text(id)];
            row.extend([sent, waiting + opening, sent, opening].map(text));
            row
        };
        self.shared.peers.ids().into_iter().map(row).collect()
    }

    pub(super) fn list_rows(&self, parts: &Parts) -> Vec<Row> {
        let pools = self.shared.pools();
        let now = Instant::now();
        let counted: Vec<_> = pools.iter().map(|p| p.lock().machine.counts(now, None)).collect();
        let free: usize = counted.iter().map(|c| c.idle + c.used).sum();
        let used: usize = counted.iter().map(|c| c.busy + c.testing + c.opening).sum();
        let names = self.shared.services().map(|services| services.names().counts());
        let (names, lookups) = names.unwrap_or_default();
        [
            ("databases", self.shared.entries().len() + 1),
            ("users", self.user_rows().len()),
            ("peers", self.snapshot.config.peers.len()),
            ("pools", pools.len() + 1),
            ("peer_pools", self.shared.peers.ids().len()),
            ("free_clients", 0),
            ("used_clients", parts.clients),
            ("login_clients", parts.logins),
            ("free_servers", free),
            ("used_servers", used + parts.cancels),
            ("dns_names", names),
            ("dns_zones", 0),
            ("dns_queries", lookups),
            ("dns_pending", 0),
        ]
        .map(|(name, count)| vec![text(name), text(count)])
        .to_vec()
    }

    /// Sizes are those of the fixed parts; what hangs on them is not counted.
    pub(super) fn memory_rows(&self, parts: &Parts) -> Vec<Row> {
        let pools = self.shared.pools();
        let servers: usize = pools.iter().map(|pool| pool.lock().machine.len()).sum();
        let row = |(name, size, used, free): (&str, usize, usize, usize)| {
            let numbers = [size, used, free, size * (used + free)];
            std::iter::once(text(name)).chain(numbers.map(text)).collect()
        };
        [
            ("db_cache", size_of::<Entry>(), self.shared.entries().len(), 0),
            ("pool_cache", size_of::<SharedPool>(), pools.len(), 0),
            ("server_cache", size_of::<Server>(), servers, 0),
            ("client_cache", size_of::<Client>(), parts.clients + parts.logins, 0),
            ("iobuf_cache", SPARE_SIZE, 0, parts.buffers),
        ]
        .map(row)
        .to_vec()
    }
}
