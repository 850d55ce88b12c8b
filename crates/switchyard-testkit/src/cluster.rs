//! Three servers of which one writes: streaming replication, commits that wait for one standby, and
//! the two ways in which the writer changes.

use std::io;
use std::time::Instant;

use crate::faults::first_commit;
use crate::{Postgres, wait_until};

/// A running cluster. The table `nodes` lists its nodes for a topology query.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) nodes: Vec<Postgres>,
    pub(crate) writer: usize,
}

/// A change of writer as seen on the servers themselves.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// Port of the writer before.
    pub old: u16,
    /// Port of the writer now.
    pub new: u16,
    /// When the old writer took no more writes.
    pub gone: Instant,
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

    /// Promotes a standby after the writer was stopped.
    pub fn fail_over_after_stop(&mut self) -> io::Result<Change> {
        self.promote(self.writer)
    }

    /// Promotes the standby that has received most, after the stream of the old writer has ended.
    fn promote(&mut self, old: usize) -> io::Result<Change> {
        let gone = Instant::now();
        // What still sends of a killed writer may give one of them more after we have compared.
        let streams = "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
        let rest: Vec<usize> = (0..self.nodes.len()).filter(|index| *index != old).collect();
        for index in &rest {
            let node = &self.nodes[*index];
            wait_until("end of the stream", || {
                node.sql(streams).is_ok_and(|text| text.trim() == "0")
            })?;
        }
        self.promote_best(old, &rest, gone)
    }

    /// Promotes the node of `rest` that has received most, after pointing the others to it.
    pub(crate) fn promote_best(
        &mut self,
        old: usize,
        rest: &[usize],
        gone: Instant,
    ) -> io::Result<Change> {
        let received = "select pg_last_wal_receive_lsn() - '0/0'::pg_lsn";
        let mut best = (0, old);
        for index in rest {
            let position = self.nodes[*index].sql(received)?.trim().parse::<u64>().unwrap_or(0);
            best = best.max((position, *index));
        }
        self.promote_this(old, best.1, rest, gone)
    }

    /// Promotes the node `new`, after pointing the others of `rest` to it.
    pub(crate) fn promote_this(
        &mut self,
        old: usize,
        new: usize,
        rest: &[usize],
        gone: Instant,
    ) -> io::Result<Change> {
        self.writer = new;
        let writer = self.writer();
        for index in rest.iter().filter(|index| **index != new) {
            self.nodes[*index].follow(writer)?;
        }
        let port = writer.port;
        let direct = first_commit(port);
        writer.promote()?;
        let accepted = direct.join().map_err(|_| io::Error::other("a panic"))??;
        Ok(Change { old: self.nodes[old].port, new: port, gone, accepted })
    }
}
