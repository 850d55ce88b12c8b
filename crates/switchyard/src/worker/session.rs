//! A client's bytes in its session: what the session says about them is done, and counted.

use switchyard_config::PoolMode;
use switchyard_config::value::{RouteInTransaction, UntrackedSet};
use switchyard_core::client::replay::Keeping;
use switchyard_core::client::session::{
    self, Counted, Detour, Hooking, Misuse, Refusal, Reprepare, Rules, Simple, Stop, Tracking,
    Untracked,
};
use switchyard_core::pool::Want;
use switchyard_core::server::duty;
use switchyard_core::server::link::{Received, Status, Told};
use switchyard_core::server::request::HiddenQuery;
use switchyard_io::Key;

use crate::log::Level;
use crate::pools::{SharedPool, Stats};
use crate::snapshot::Snapshot;
use crate::worker::Worker;
use crate::worker::checkout::Outcome;
use crate::worker::client::{Activity, Client, Stage};
use crate::worker::close::Farewell;
use crate::worker::hooking::{Asked, Asking};
use crate::worker::relay::{OUTSTANDING_MAX, Passed};
use crate::worker::server::Stage as ServerStage;

/// The client's part of a transaction or query begins, unless it is under way.
fn begin(client: &mut Client, stats: &Stats, now: std::time::Instant) {
    if client.query_since.is_none() {
        client.query_since = Some(now);
        Stats::add(&stats.queries, 1);
    }
    if client.xact_since.is_none() {
        client.xact_since = Some(now);
        Stats::add(&stats.xacts, 1);
    }
}

fn tracking(pool: &SharedPool) -> Tracking {
    match pool.prepared_max() {
        0 => Tracking::Off,
        limit => Tracking::On(limit),
    }
}

fn untracked(snapshot: &Snapshot, pool: &SharedPool) -> Untracked {
    if pool.mode() == PoolMode::Session {
        return Untracked::Ignore;
    }
    match snapshot.config.settings.untracked_set {
        UntrackedSet::Ignore => Untracked::Ignore,
        UntrackedSet::Warn => Untracked::Warn,
        UntrackedSet::Pin => Untracked::Pin,
        UntrackedSet::Reset => Untracked::Reset,
    }
}

impl Worker {
    pub(super) fn session_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let mut used = 0;
        loop {
            let (count, stop) = self.advance(key, &data[used..]);
            let here = used..used + count;
            let passed = match self.flow.is_empty() {
                true => Passed::On,
                false => self.pass_to_server(key, &data[here]),
            };
            match passed {
                Passed::On => used += count,
                Passed::Lost => return data.len(),
                Passed::Back => match self.checkout(key) {
                    Outcome::Linked => continue,
                    Outcome::Waiting => return used,
                    Outcome::Gone => return data.len(),
                },
            }
            if let Some(route) = self.flow.stayed.take() {
                self.note_stay(key, route);
            }
            if let Some(routes) = self.clients.get_mut(key).and_then(|c| c.routes.as_mut())
                && routes.later.is_some()
            {
                self.move_later(key);
            }
            match stop {
                Stop::More => {
                    self.look_at_free(key);
                    return used;
                }
                Stop::Full if count > 0 && self.may_go_on(key) => {}
                Stop::Full => return used,
                Stop::NeedServer => match self.start_query(key) {
                    Outcome::Linked => {}
                    Outcome::Waiting => return used,
                    Outcome::Gone => return data.len(),
                },
                Stop::Ask(text) => {
                    let text = text.start - count..text.end - count;
                    if self.ask_hooks(key, &data[used..], text) == Asked::Waiting {
                        return used;
                    }
                }
                Stop::Move(route) => {
                    if !self.follow(key, route) {
                        return used;
                    }
                }
                Stop::Terminate => {
                    self.close_client(key, "client close request", Farewell::Silent);
                    return data.len();
                }
                Stop::Close(refusal) => {
                    self.turn_out(key, &refusal);
                    return data.len();
                }
            }
        }
    }

    /// The next message needs a server: from here on the query's time runs.
    fn start_query(&mut self, key: Key) -> Outcome {
        if let Some(client) = self.clients.get_mut(key)
            && let Some(place) = client.place.clone()
        {
            begin(client, &place.pool.stats[usize::from(self.id.0)], self.now);
        }
        self.checkout(key)
    }

    /// Whether more of a client's messages may be passed on after its turn was full.
    fn may_go_on(&self, key: Key) -> bool {
        self.clients.get(key).is_some_and(|client| Self::may_read(client, &self.servers))
    }

    /// What the client has sent may leave its server without anything to answer, as the end of a
    /// COPY that has failed does.
    fn look_at_free(&mut self, key: Key) {
        let Some(slot) = self.clients.get(key).and_then(|client| client.server()) else { return };
        let server = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut());
        if server.and_then(|server| server.link()).is_some_and(|link| link.is_free()) {
            self.give_back(slot);
        }
    }

    /// Runs the session over `data`; output is collected in `flow`.
    fn advance(&mut self, key: Key, data: &[u8]) -> (usize, Stop) {
        let Some(client) = self.clients.get_mut(key) else { return (0, Stop::More) };
        let Stage::Session(session, activity) = &mut client.stage else { return (0, Stop::More) };
        let Some(place) = &client.place else { return (0, Stop::More) };
        let settings = &self.snapshot.config.settings;
        let rules = Rules {
            tracking: tracking(&place.pool),
            hooking: match client.asking {
                Asking::Never => Hooking::Off,
                _ if self.hooks.current().is_none() && self.rules.is_none() => Hooking::Off,
                Asking::Unknown | Asking::No | Asking::Asked(..) => Hooking::On,
            },
            detour: match settings.route_in_transaction {
                RouteInTransaction::Stay => Detour::Stays,
                RouteInTransaction::Error | RouteInTransaction::Switch => Detour::Fails,
            },
            loyalty: place.pool.loyalty(),
            keeping: if place.want == Want::Writer { place.pool.keeping() } else { Keeping::Off },
            misuse: if settings.prepared_statement_errors { Misuse::Fails } else { Misuse::Closes },
            reprepare: match settings.prepared_statement_reprepare {
                true => Reprepare::On,
                false => Reprepare::Off,
            },
            simple: if settings.disable_pqexec { Simple::Refused } else { Simple::Allowed },
            untracked: untracked(&self.snapshot, &place.pool),
            tracked: &self.snapshot.tracked,
            message_max: settings.max_packet_size as usize,
            registry: &self.shared.registry,
            outstanding_max: OUTSTANDING_MAX,
        };
        let link = match activity {
            Activity::Linked(slot) => {
                let slot = self.servers.get_mut(*slot).and_then(|slot| slot.here.as_mut());
                slot.and_then(|server| server.link())
            }
            Activity::Idle | Activity::Waiting => None,
        };
        let linked = link.is_some();
        let (count, stop) = session.advance(link, data, &mut self.flow, &rules);
        if linked && count > 0 {
            let pool = std::sync::Arc::clone(&place.pool);
            let stats = &pool.stats[usize::from(self.id.0)];
            Stats::add(&stats.received, count as u64);
            begin(client, stats, self.now);
            let counted = std::mem::take(&mut self.flow.counted);
            if counted != Counted::default() {
                Stats::add(&stats.client_parses, counted.client_parses.into());
                Stats::add(&stats.server_parses, counted.server_parses.into());
                Stats::add(&stats.binds, counted.binds.into());
            }
            if let Some(name) = self.flow.assigned.take() {
                let line = format!("untracked parameter \"{name}\" set in a shared session");
                self.log_client(key, Level::Warning, &line);
            }
        }
        (count, stop)
    }

    /// What was received from a server makes it impossible to go on.
    pub(super) fn cannot_go_on(&mut self, key: Key, client: Option<Key>, received: &Received) {
        let taken = received.told.iter().find_map(|told| match told {
            Told::Taken(name) => Some(session::taken(name)),
            Told::Failed(..) | Told::LastWords(..) | Told::Canonical(..) => None,
        });
        match (taken, client) {
            (Some(refusal), Some(client)) => self.turn_out(client, &refusal),
            _ => self.server_broke(key, received.failure.unwrap_or("unknown pkt from server")),
        }
    }

    /// Closes a client for what it has sent.
    fn turn_out(&mut self, key: Key, refusal: &Refusal) {
        if let Some(cause) = &refusal.cause {
            self.log_client(key, Level::Error, cause);
        }
        self.close_client(key, &refusal.reason, Farewell::fatal());
    }

    /// Lines about answers that the client does not see.
    pub(super) fn tell(&self, key: Key, client: Option<Key>, received: &Received) {
        let Some(server) = self.servers.get(key).and_then(|slot| slot.here.as_ref()) else {
            return;
        };
        for told in &received.told {
            match told {
                Told::LastWords(..) | Told::Taken(_) => {}
                Told::Failed(query, severity, text) => {
                    let note = match query {
                        HiddenQuery::Parameters => "varcache_apply failed",
                        HiddenQuery::Parameter(index) => {
                            let name = self.snapshot.tracked.name(*index);
                            let prefix = server.prefix();
                            let line =
                                format!("{prefix} parameter {name} refused, left as it is: {text}");
                            self.shared.log.write(Level::Warning, &line);
                            continue;
                        }
                        HiddenQuery::Connect => "S: error while executing exec_on_query",
                        HiddenQuery::Reset
                        | HiddenQuery::Check
                        | HiddenQuery::Instead
                        | HiddenQuery::Begin
                        | HiddenQuery::Rollback
                        | HiddenQuery::Forget => continue,
                    };
                    let line = format!("{} {note}: {severity}: {text}", server.prefix());
                    self.shared.log.write(Level::Error, &line);
                }
                Told::Canonical(index, old) => {
                    let Some(client) = client.filter(|_| self.shared.log.enabled(Level::Debug))
                    else {
                        continue;
                    };
                    let ServerStage::Ready(link, _) = &server.stage else { continue };
                    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                    let new = text(link.params().value(*index).unwrap_or_default());
                    let name = self.snapshot.tracked.name(*index);
                    let old = text(old);
                    let line = format!(
                        "varcache_set_canonical: setting {name} to its canonical version \
                         {old} -> {new}"
                    );
                    self.log_client(client, Level::Debug, &line);
                }
            }
        }
    }

    /// Clocks and modes that depend on ReadyForQuery.
    pub(super) fn note_progress(&mut self, client_key: Key, key: Key, received: &Received) {
        if received.ready == 0 {
            return;
        }
        let Some(client) = self.clients.get_mut(client_key) else { return };
        let Some(server) = self.servers.get_mut(key).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let ServerStage::Ready(link, _) = &server.stage else { return };
        if !link.is_quiet() {
            return;
        }
        let status = link.status();
        if let Stage::Session(session, _) = &mut client.stage {
            session.settled();
        }
        let Some(place) = &client.place else { return };
        let forbidden = duty::forbids(place.pool.tenure(), status);
        self.end_query(client_key, status);
        if let Some(text) = forbidden {
            self.close_both(client_key, key, text);
        }
    }

    /// Everything was answered: the query's time ends, and outside a block the transaction's.
    pub(super) fn end_query(&mut self, key: Key, status: Status) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Some(place) = &client.place else { return };
        let stats = &place.pool.stats[usize::from(self.id.0)];
        let since =
            |at: std::time::Instant| self.now.saturating_duration_since(at).as_micros() as u64;
        let query = client.query_since.take().map(|begun| (begun, since(begun)));
        if let Some((_, time)) = query {
            Stats::add(&stats.query_time, time);
        }
        if status == Status::Idle
            && let Some(begun) = client.xact_since.take()
        {
            // Most transactions are one query.
            let time = query.filter(|(at, _)| *at == begun).map(|(_, time)| time);
            Stats::add(&stats.xact_time, time.unwrap_or_else(|| since(begun)));
        }
    }
}
