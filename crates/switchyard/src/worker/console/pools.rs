//! SHOW POOLS and SHOW LISTS, from what the workers counted.

use std::time::Instant;

use switchyard_config::value::Value as _;
use switchyard_core::console::tables::Row;

use crate::worker::Worker;
use crate::worker::console::CONSOLE;
use crate::worker::console::tables::text;

impl Worker {
    pub(super) fn pool_rows(&self, clients: &[Row]) -> Vec<Row> {
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

    pub(super) fn list_rows(&self, counts: &[Row]) -> Vec<Row> {
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
}
