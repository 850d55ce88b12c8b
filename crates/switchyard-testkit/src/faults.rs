//! What can happen to the writer of a cluster beside a switchover: it freezes, its sessions are
//! cut, it restarts, the role goes to another node and back, it comes back as it was.

use std::io;
use std::path::Path;
use std::time::Instant;

use crate::{Change, Client, Cluster, Postgres, run, unprivileged, wait_until};

impl Postgres {
    /// Stops all its processes without ending them: it neither answers nor closes anything.
    pub fn freeze(&self) -> io::Result<()> {
        self.signal_all("-STOP")
    }

    /// Undoes `freeze`.
    pub fn thaw(&self) -> io::Result<()> {
        self.signal_all("-CONT")
    }

    fn signal_all(&self, signal: &str) -> io::Result<()> {
        let postmaster = self.pid()?;
        let mut processes = vec![postmaster.clone()];
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?.path();
            let Ok(stat) = std::fs::read_to_string(entry.join("stat")) else { continue };
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
            if parent == Some(postmaster.as_str()) {
                processes.extend(stat.split_whitespace().next().map(str::to_owned));
            }
        }
        // A child may have ended in the meantime.
        let _ = run(unprivileged(Path::new("kill")).arg(signal).args(&processes));
        Ok(())
    }

    /// Ends all sessions of clients but the one that asks.
    pub fn cut(&self) -> io::Result<()> {
        let clients = "backend_type = 'client backend' and pid <> pg_backend_pid()";
        let sql = format!(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where {clients}"
        );
        self.sql(&sql).map(drop)
    }
}

impl Cluster {
    /// Freezes the writer, gives the pooler `pause` to notice, promotes a standby.
    pub fn freeze_over(&mut self) -> io::Result<Change> {
        let old = self.writer;
        self.nodes[old].freeze()?;
        let gone = Instant::now();
        let rest: Vec<usize> = (0..self.nodes.len()).filter(|index| *index != old).collect();
        wait_until("loss of the writer", || gone.elapsed() > LOSS)?;
        self.promote_best(old, &rest, gone)
    }

    /// Cuts all sessions on the writer once.
    pub fn cut(&mut self) -> io::Result<Change> {
        let gone = Instant::now();
        self.writer().cut()?;
        let accepted = Instant::now();
        let port = self.writer().port;
        Ok(Change { old: port, new: port, gone, accepted })
    }

    /// Restarts the writer where it is.
    pub fn restart(&mut self) -> io::Result<Change> {
        let writer = self.writer();
        writer.stop("immediate")?;
        let (gone, port) = (Instant::now(), writer.port);
        let direct = first_commit(port);
        writer.launch()?;
        let accepted = direct.join().map_err(|_| io::Error::other("a panic"))??;
        Ok(Change { old: port, new: port, gone, accepted })
    }

    /// Ends the nodes at these places of the list and starts them again at other ports, which the
    /// table `nodes` lists then in place of the old ones.
    pub fn move_nodes(&mut self, places: &[usize]) -> io::Result<()> {
        for place in places {
            self.nodes[*place].stop("immediate")?;
        }
        let mut moved = Vec::new();
        for place in places {
            let node = &mut self.nodes[*place];
            let old = std::mem::replace(&mut node.port, crate::free_port()?);
            moved.push((old, node.port));
            node.launch()?;
        }
        for place in (0..self.nodes.len()).filter(|place| *place != self.writer) {
            self.nodes[place].follow(self.writer())?;
        }
        for (old, new) in moved {
            self.writer().sql(&format!("update nodes set port = {new} where port = {old}"))?;
        }
        Ok(())
    }

    /// Stops the writer in good order and promotes the standby with this port.
    pub fn switch_to(&mut self, port: u16) -> io::Result<Change> {
        let old = self.writer;
        let Some(new) = self.nodes.iter().position(|node| node.port == port) else {
            return Err(io::Error::other("no such node"));
        };
        // A writer that is stopped sends the rest to whoever is connected; one that is not would
        // lack what others have acknowledged.
        let streams = "select count(*) from pg_stat_wal_receiver where status = 'streaming'";
        wait_until("stream to the next writer", || {
            self.nodes[new].sql(streams).is_ok_and(|text| text.trim() == "1")
        })?;
        self.nodes[old].stop("fast")?;
        let gone = Instant::now();
        wait_until("end of the stream", || {
            self.nodes[new].sql(streams).is_ok_and(|text| text.trim() == "0")
        })?;
        let rest: Vec<usize> = (0..self.nodes.len()).filter(|index| *index != old).collect();
        let change = self.promote_this(old, new, &rest, gone)?;
        self.nodes[old].follow(self.writer())?;
        Ok(change)
    }

    /// Lets `promote` make the first standby that runs, whose port it is given, the writer. No
    /// commit waits for a standby: nobody has told the third node whom to follow.
    pub fn hand_over(&mut self, promote: impl FnOnce(u16) -> io::Result<()>) -> io::Result<Change> {
        let runs = |index: &usize| self.nodes[*index].sql("select 1").is_ok();
        let others = (0..self.nodes.len()).filter(|index| *index != self.writer);
        let target = others.clone().find(runs).unwrap_or(0);
        for node in others.filter(runs).chain([self.writer]).map(|index| &self.nodes[index]) {
            node.sql("alter system set synchronous_standby_names = ''")?;
            node.sql("select pg_reload_conf()")?;
        }
        let (old, gone) = (self.writer().port, Instant::now());
        let port = self.nodes[target].port;
        let direct = first_commit(port);
        promote(port)?;
        let accepted = direct.join().map_err(|_| io::Error::other("a panic"))??;
        self.writer = target;
        Ok(Change { old, new: port, gone, accepted })
    }

    /// The node with this port was promoted by others: the rest follows it, but for the old writer,
    /// which is stopped.
    pub fn follow(&mut self, port: u16) -> io::Result<()> {
        let old = self.writer;
        let Some(new) = self.nodes.iter().position(|node| node.port == port) else {
            return Err(io::Error::other("no such node"));
        };
        self.writer = new;
        for index in (0..self.nodes.len()).filter(|index| *index != old && *index != new) {
            self.nodes[index].follow(self.writer())?;
        }
        self.nodes[old].stop("immediate")
    }

    /// Starts the node with this port, which has ended, as the writer that it was.
    pub fn revive(&self, port: u16) -> io::Result<()> {
        let node = self.nodes.iter().find(|node| node.port == port);
        // Its last children may still be on their way out.
        wait_until("start", || node.is_none_or(|node| node.launch().is_ok()))
    }
}

/// Writes directly until it succeeds once.
pub fn first_commit(port: u16) -> std::thread::JoinHandle<io::Result<Instant>> {
    std::thread::spawn(move || {
        loop {
            let Ok(mut client) = Client::connect(port, "postgres") else { continue };
            while client.is_open() {
                if client.run("insert into direct values (1)").is_ok() {
                    return Ok(Instant::now());
                }
            }
        }
    })
}

/// Time between the loss of a frozen writer and the promotion of its successor.
const LOSS: std::time::Duration = std::time::Duration::from_millis(600);
