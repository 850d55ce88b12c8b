//! Tables that one thread can tell.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use switchyard_config::database::Database;
use switchyard_config::value::Value as _;
use switchyard_core::console::Show;
use switchyard_core::console::tables::Row;
use switchyard_core::lifecycle::Phase;
use switchyard_core::names::NameRow;

use crate::entries::Admission;
use crate::worker::Worker;
use crate::worker::console::{CONSOLE, program};

/// A value.
pub(in crate::worker) fn text(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

/// Tables that one thread can tell.
impl Worker {
    pub(in crate::worker) fn rows(&self, show: Show) -> Vec<Row> {
        let settings = &self.snapshot.config.settings;
        match show {
            Show::Version => vec![vec![Some(program())]],
            Show::State => {
                let state = match self.shared.phase() {
                    Phase::Active | Phase::WaitForClients => "active",
                    Phase::Paused | Phase::WaitForServers => "paused",
                    Phase::Suspended => "suspended",
                };
                let word = |name| text(if name == state { "yes" } else { "no" });
                ["active", "paused", "suspended"].map(|name| vec![text(name), word(name)]).to_vec()
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
            Show::Hooks => self.hook_rows(),
            Show::Peers => self.peer_rows(),
            Show::Stats | Show::StatsTotals | Show::StatsAverages => self.stats_rows(show),
            Show::Totals => self.totals_rows(),
            Show::Parameter(_, value) => vec![vec![text(value)]],
            Show::DnsHosts => self.name_rows(),
            // Zones of names are not asked about: there is nothing to show.
            Show::DnsZones => Vec::new(),
            Show::Help
            | Show::Pools
            | Show::Clients
            | Show::Servers
            | Show::Sockets
            | Show::ActiveSockets
            | Show::Fds
            | Show::Lists
            | Show::PeerPools
            | Show::Mem => Vec::new(),
        }
    }

    fn name_rows(&self) -> Vec<Row> {
        let names = self.shared.services().map(|services| services.names().rows());
        let row = |name: NameRow<SocketAddr>| {
            let addresses: Vec<_> = name.addresses.iter().map(SocketAddr::to_string).collect();
            vec![text(&name.host), text(name.left.as_secs()), text(addresses.join(","))]
        };
        names.unwrap_or_default().into_iter().map(row).collect()
    }

    fn database_rows(&self) -> Vec<Row> {
        let settings = &self.snapshot.config.settings;
        let mut rows: Vec<Row> = Vec::new();
        for entry in self.shared.entries() {
            let Database { hosts, port, dbname, user, .. } = &*entry.definition();
            let definition = entry.definition();
            let servers: usize = entry.pools().iter().map(|p| p.lock().machine.len()).sum();
            let overrides = self.snapshot.overrides(&definition, "");
            let own = |own: Option<i64>, global: i64| text(own.unwrap_or(global));
            let balance = (hosts.len() > 1).then(|| definition.load_balance_hosts.show());
            let paused = self.shared.lifecycle().is_paused_alone(&entry.name);
            let disabled = entry.admission() == Admission::Disabled;
            let clients = entry.clients.load(Ordering::Relaxed);
            let automatic = !self.snapshot.config.databases.contains_key(&entry.name);
            if automatic && servers == 0 && clients == 0 && !paused && !disabled {
                continue;
            }
            rows.push(vec![
                text(&entry.name),
                (!hosts.is_empty()).then(|| hosts.join(",")),
                text(port),
                text(dbname),
                user.clone(),
                own(definition.pool_size, settings.default_pool_size),
                own(definition.min_pool_size, settings.min_pool_size),
                own(definition.reserve_pool_size, settings.reserve_pool_size),
                text(overrides.server_lifetime().as_secs()),
                definition.pool_mode.and_then(|mode| mode.show()),
                balance.flatten(),
                text(overrides.max_db_connections()),
                text(servers),
                text(overrides.max_db_client_connections()),
                text(clients),
                text(u8::from(paused)),
                text(u8::from(disabled)),
            ]);
        }
        let mut console = vec![text(CONSOLE), None, text(settings.listen_port), text(CONSOLE)];
        console.extend([text(CONSOLE), text(2), text(settings.min_pool_size)]);
        console
            .extend([text(settings.reserve_pool_size), text(settings.server_lifetime.as_secs())]);
        console.extend([text("statement"), None, text(settings.max_db_connections), text(0)]);
        console.extend([text(settings.max_db_client_connections), text(self.shared.consoles())]);
        console.extend([text(0), text(0)]);
        rows.push(console);
        rows.sort_by(|a, b| a[0].cmp(&b[0]));
        rows
    }

    pub(in crate::worker) fn user_rows(&self) -> Vec<Row> {
        let config = &self.snapshot.config;
        let mut names: Vec<String> = self.snapshot.access.users.names().cloned().collect();
        names.extend(config.users.keys().cloned());
        names.extend(config.databases.values().filter_map(|database| database.user.clone()));
        names.extend(config.databases.values().filter_map(|database| database.auth_user.clone()));
        names.extend(config.settings.auth_user.clone().filter(|user| !user.is_empty()));
        names.push(CONSOLE.into());
        // Users that no file knows have pools once they are logged in.
        let pools = self.shared.pools();
        names.extend(pools.iter().map(|pool| pool.user.clone()));
        names.sort_unstable();
        names.dedup();
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

    fn peer_rows(&self) -> Vec<Row> {
        let config = &self.snapshot.config;
        let size = config.settings.default_pool_size;
        let peers = config.peers.iter().map(|(id, peer)| {
            let size = peer.pool_size.unwrap_or(size);
            vec![text(id), text(&peer.host), text(peer.port), text(size)]
        });
        peers.collect()
    }
}
