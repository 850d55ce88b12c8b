//! What a worker does when a cluster's nodes change their roles or an operator holds clients.

use std::sync::Arc;

use switchyard_config::PoolMode;
use switchyard_core::ids::LaneId;
use switchyard_core::pool::{self, OpenFailure};
use switchyard_core::switchover::view::View;
use switchyard_io::Key;

use crate::clusters::Census;
use crate::entries::Entry;
use crate::worker::server::{Server, Stage as ServerStage};
use crate::worker::{Todo, Worker};

impl Worker {
    /// A cluster was published anew.
    pub(super) fn view_changed(&mut self, entry: &Arc<Entry>) {
        self.fence(entry);
        self.look_at_doubts(entry);
        if !entry.view().is_holding() {
            self.go_on(entry);
        }
    }

    /// Servers of a node that is not the writer any more and answers nothing, or as a standby,
    /// cannot finish what clients sent there to write.
    fn fence(&mut self, entry: &Arc<Entry>) {
        let view = entry.view();
        let lost = |server: &Server| {
            let ours = Arc::ptr_eq(&server.pool.entry, entry);
            ours && !pool::serves(&view, server.lane, server.purpose)
        };
        for key in self.linked_servers(lost) {
            self.server_lost(key, "server conn crashed?");
        }
        self.stop_vain_openings(entry, &view);
    }

    /// Connections that are being opened to a node that answers nothing would take a place in the
    /// pool until they time out.
    fn stop_vain_openings(&mut self, entry: &Arc<Entry>, view: &View) {
        let vain = |server: &Server| {
            let opening = !matches!(server.stage, ServerStage::Ready(..) | ServerStage::Asked(_));
            let ours = Arc::ptr_eq(&server.pool.entry, entry);
            opening && ours && pool::is_vain(view, server.lane)
        };
        let servers = self.servers.iter().filter_map(|(key, slot)| {
            slot.here.as_ref().filter(|server| vain(server)).map(|_| key)
        });
        for key in servers.collect::<Vec<_>>() {
            self.open_failed(key, OpenFailure::connect("database configuration changed"));
        }
        self.stop_vain_naming(entry, view);
    }

    /// Closes the servers of a node that are linked to clients of an entry.
    pub(super) fn cut(&mut self, entry: &Arc<Entry>, lane: LaneId) {
        let ours = |server: &Server| Arc::ptr_eq(&server.pool.entry, entry) && server.lane == lane;
        for key in self.linked_servers(ours) {
            self.server_lost(key, "server conn crashed?");
        }
    }

    fn linked_servers(&self, wanted: impl Fn(&Server) -> bool) -> Vec<Key> {
        let servers = self.servers.iter().filter_map(|(key, slot)| {
            let server = slot.here.as_ref().filter(|server| wanted(server))?;
            server.client().map(|_| key)
        });
        servers.collect()
    }

    /// Counts the transactions of sessions on a writer.
    pub(super) fn take_census(&mut self, census: &Census) {
        let running = self.servers.iter().filter_map(|(_, slot)| slot.here.as_ref());
        let running = running.filter(|server| {
            let busy = match &server.stage {
                ServerStage::Ready(link, _) => server.client().is_some() && !link.is_free(),
                _ => false,
            };
            busy && server.pool.mode() == PoolMode::Session
                && server.lane == census.lane
                && server.pool.entry.name == census.database
        });
        census.add(&self.shared, running.count());
    }

    /// Clients in session mode that were kept from the writer may go on.
    pub(super) fn go_on(&mut self, entry: &Arc<Entry>) {
        let ours = |server: &Server| {
            Arc::ptr_eq(&server.pool.entry, entry) && server.pool.mode() == PoolMode::Session
        };
        let servers = self.linked_servers(ours);
        let clients = servers.into_iter().filter_map(|key| {
            self.servers.get(key).and_then(|slot| slot.here.as_ref()).and_then(|s| s.client())
        });
        let clients: Vec<Key> = clients.collect();
        self.todo.extend(clients.into_iter().map(Todo::Client));
    }
}
