//! Three servers of which one writes: streaming replication, commits that wait for one standby, and
//! the two ways in which the writer changes.

use std::io;
use std::time::Instant;

use crate::{Client, Postgres, wait_until};

/// A running cluster. The table `nodes` lists its nodes for a topology query.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Postgres>,
    writer: usize,
}

/// A change of writer as seen on the servers themselves.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// Port of the writer before.
    pub old: u16,
    /// Port of the writer now.
    pub new: u16,
    /// When the first commit made directly on the new writer was acknowledged.
    pub accepted: Instant,
}

impl Cluster {
    /// Starts a writer and two standbys.
    pub fn start() -> io::Result<Self> {
        let writer = Postgres::start("")?;
        let standbys = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(|| writer.standby()));
            threads.map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("panic"))))
        });
        let mut nodes = vec![writer];
        for standby in standbys {
            nodes.push(standby?);
        }
        let cluster = Cluster { nodes, writer: 0 };
        let ports: Vec<String> = cluster.nodes.iter().map(|node| node.port.to_string()).collect();
        cluster.writer().sql(&format!(
            "create table nodes as select '127.0.0.1' endpoint, port \
             from unnest(array[{}]) port; create table direct (x int)",
            ports.join(", ")
        ))?;
        for node in &cluster.nodes {
            node.sql("alter system set synchronous_standby_names = 'ANY 1 (*)'")?;
            node.sql("select pg_reload_conf()")?;
        }
        Ok(cluster)
    }

    /// All nodes, ended ones too.
    pub fn nodes(&self) -> &[Postgres] {
        &self.nodes
    }

    /// The node that writes.
    pub fn writer(&self) -> &Postgres {
        &self.nodes[self.writer]
    }

    /// A line of `[databases]`: the entry `name` follows the writer.
    pub fn entry(&self, name: &str) -> String {
        format!(
            "{name} = host=127.0.0.1 port={} dbname=postgres user=postgres pool_size=20 \
             topology_query='select endpoint, port from nodes'",
            self.writer().port
        )
    }

    /// Stops the writer in good order, promotes a standby, and takes the old writer back as one.
    pub fn switch_over(&mut self) -> io::Result<Change> {
        let old = self.writer;
        self.nodes[old].stop("fast")?;
        let change = self.promote(old)?;
        self.nodes[old].follow(self.writer())?;
        Ok(change)
    }

    /// Kills the writer's postmaster with SIGKILL and promotes a standby.
    pub fn fail_over(&mut self) -> io::Result<Change> {
        let old = self.writer;
        self.nodes[old].kill()?;
        self.promote(old)
    }

    /// Promotes the standby that has received most, after pointing the others to it.
    fn promote(&mut self, old: usize) -> io::Result<Change> {
        let received = "select pg_last_wal_receive_lsn() - '0/0'::pg_lsn";
        let mut best = (0, old);
        // What still sends of a killed writer may give one of them more after we have compared.
        let streams = "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
        for (_, node) in self.nodes.iter().enumerate().filter(|(index, _)| *index != old) {
            wait_until("end of the stream", || {
                node.sql(streams).is_ok_and(|text| text.trim() == "0")
            })?;
        }
        for (index, node) in self.nodes.iter().enumerate().filter(|(index, _)| *index != old) {
            let position = node.sql(received)?.trim().parse::<u64>().unwrap_or(0);
            best = best.max((position, index));
        }
        self.writer = best.1;
        let writer = self.writer();
        for (index, node) in self.nodes.iter().enumerate() {
            if index != old && index != self.writer {
                node.follow(writer)?;
            }
        }
        let port = writer.port;
        let direct = std::thread::spawn(move || -> io::Result<Instant> {
            let mut client = Client::connect(port, "postgres")?;
            while client.run("insert into direct values (1)").is_err() {}
            Ok(Instant::now())
        });
        writer.promote()?;
        let accepted = direct.join().map_err(|_| io::Error::other("a panic"))??;
        Ok(Change { old: self.nodes[old].port, new: port, accepted })
    }
}
