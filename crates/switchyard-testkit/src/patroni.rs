//! A cluster of PostgreSQL servers that Patroni looks after, with an etcd of its own. Needs the
//! packages `patroni`, `etcd-server` and `curl`.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::{Client, directory, free_port, postgres, run, unprivileged, wait_until};

/// A running cluster.
#[derive(Debug)]
pub struct Patroni {
    members: Vec<Member>,
    etcd: Child,
    directory: tempfile::TempDir,
}

/// One server and the Patroni beside it.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// PostgreSQL's port on 127.0.0.1.
    pub port: u16,
    /// Port of Patroni's REST interface.
    pub rest: u16,
    agent: Child,
}

/// Programs that have to be there, with their packages.
pub const PROGRAMS: [(&str, &str); 3] =
    [("/usr/bin/patroni", "patroni"), ("/usr/bin/etcd", "etcd-server"), ("/usr/bin/curl", "curl")];

fn spawn(mut command: Command, log: &Path) -> io::Result<Child> {
    let output = File::create(log)?;
    let errors = output.try_clone()?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn()
}

impl Patroni {
    /// Starts a leader and two replicas, one of which follows synchronously.
    pub fn start() -> io::Result<Self> {
        let directory = directory()?;
        let (client, peer) = (free_port()?, free_port()?);
        let mut command = unprivileged(Path::new("/usr/bin/etcd"));
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        command.arg("--data-dir").arg(directory.path().join("etcd"));
        command.args(["--listen-client-urls", &url(client), "--advertise-client-urls"]);
        command.args([&url(client), "--listen-peer-urls", &url(peer)]);
        let etcd = spawn(command, &directory.path().join("etcd.log"))?;
        let mut cluster = Patroni { members: Vec::new(), etcd, directory };
        wait_until("etcd", || std::net::TcpStream::connect(("127.0.0.1", client)).is_ok())?;
        for name in ["n1", "n2", "n3"] {
            let member = cluster.member(name, client)?;
            cluster.members.push(member);
            // Whoever comes first is the leader.
            wait_until("a leader", || cluster.leader().is_some())?;
        }
        let streaming = || {
            let leader = cluster.leader();
            leader.is_some_and(|leader| {
                let sql = "select count(*) || '|' || count(*) filter (where sync_state = 'sync') \
                           from pg_stat_replication where state = 'streaming'";
                leader.ask(sql).is_ok_and(|rows| rows == ["2|1"])
            })
        };
        wait_until("two replicas", streaming)?;
        let leader = cluster.leader().ok_or_else(|| io::Error::other("no leader"))?;
        leader.ask("create table nodes (id text, endpoint text, port int)")?;
        leader.ask("create table direct (x int)")?;
        for Member { name, port, .. } in &cluster.members {
            leader.ask(&format!("insert into nodes values ('{name}', '127.0.0.1', {port})"))?;
        }
        Ok(cluster)
    }

    fn member(&self, name: &str, etcd: u16) -> io::Result<Member> {
        let (port, rest) = (free_port()?, free_port()?);
        let at = self.directory.path().display();
        let text = format!(
            "scope: lab\nname: {name}\n\
             restapi:\n  listen: 127.0.0.1:{rest}\n  connect_address: 127.0.0.1:{rest}\n\
             etcd3:\n  host: 127.0.0.1:{etcd}\n\
             bootstrap:\n  dcs:\n    ttl: 20\n    loop_wait: 1\n    retry_timeout: 3\n    \
             master_start_timeout: 0\n    synchronous_mode: true\n    postgresql:\n      \
             use_pg_rewind: true\n      parameters:\n        wal_log_hints: 'on'\n        \
             fsync: 'off'\n        max_connections: 100\n        wal_keep_size: 128MB\n  \
             initdb:\n  - encoding: UTF8\n  pg_hba:\n  - host all all 127.0.0.1/32 trust\n  \
             - host replication all 127.0.0.1/32 trust\n\
             postgresql:\n  listen: 127.0.0.1:{port}\n  connect_address: 127.0.0.1:{port}\n  \
             data_dir: {at}/{name}\n  bin_dir: {}\n  pgpass: {at}/{name}.pass\n  \
             authentication:\n    superuser:\n      username: postgres\n    replication:\n      \
             username: postgres\n    rewind:\n      username: postgres\n  parameters:\n    \
             unix_socket_directories: {at}\n",
            postgres::programs()?.display()
        );
        let file = self.directory.path().join(format!("{name}.yml"));
        std::fs::write(&file, text)?;
        let mut command = unprivileged(Path::new("/usr/bin/patroni"));
        command.arg(&file);
        let agent = spawn(command, &self.directory.path().join(format!("{name}.log")))?;
        Ok(Member { name: name.into(), port, rest, agent })
    }

    /// All members.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member that writes.
    pub fn leader(&self) -> Option<&Member> {
        let writes = |member: &&Member| {
            member.ask("select pg_is_in_recovery()").is_ok_and(|rows| rows == ["f"])
        };
        self.members.iter().find(writes)
    }

    /// Waits until everybody follows one leader, one of them synchronously.
    pub fn settle(&self) -> io::Result<&Member> {
        let sql = "select count(*) || '|' || count(*) filter (where sync_state = 'sync') \
                   from pg_stat_replication where state = 'streaming'";
        let whole = || {
            self.leader().is_some_and(|leader| leader.ask(sql).is_ok_and(|rows| rows == ["2|1"]))
        };
        wait_until("two replicas", whole)?;
        self.leader().ok_or_else(|| io::Error::other("no leader"))
    }

    /// The replica to which Patroni hands the role over: it has to know it as synchronous.
    pub fn candidate(&self) -> io::Result<&Member> {
        let url = format!("http://127.0.0.1:{}/cluster", self.members[0].rest);
        let mut found = None;
        wait_until("a synchronous replica", || {
            let text = run(Command::new("/usr/bin/curl").args(["-s", &url])).unwrap_or_default();
            let synchronous = text.split('{').find(|part| part.contains("\"sync_standby\""));
            found = self.members.iter().find(|member| {
                let name = format!("\"name\": \"{}\"", member.name);
                synchronous.is_some_and(|part| part.contains(&name))
            });
            found.is_some()
        })?;
        found.ok_or_else(|| io::Error::other("no synchronous replica"))
    }

    /// A line of `[databases]` that follows the leader.
    pub fn entry(&self, name: &str) -> String {
        format!(
            "{name} = host=127.0.0.1 port={} dbname=postgres user=postgres pool_size=20 \
             topology_query='select id, endpoint, port from nodes'",
            self.members[0].port
        )
    }

    /// A `promote_command`: a wish to a Patroni's REST interface, which answers when it is done.
    pub fn promote_command(&self) -> String {
        format!(
            "promote_command = /usr/bin/curl -s --fail-with-body -o /dev/stderr -X POST \
             -d '{{\"leader\":\"%o\",\
             \"candidate\":\"%n\"}}' http://127.0.0.1:{}/switchover",
            self.members[2].rest
        )
    }

    /// The REST interfaces of all members, as `patroni_url` of an entry.
    pub fn urls(&self) -> String {
        let url = |member: &Member| format!("http://127.0.0.1:{}", member.rest);
        let urls: Vec<String> = self.members.iter().map(url).collect();
        format!("patroni_url='{}'", urls.join(","))
    }

    /// Asks a Patroni to hand the role over.
    pub fn hand_over(&self, from: &Member, to: &Member) -> io::Result<()> {
        let body = format!("{{\"leader\":\"{}\",\"candidate\":\"{}\"}}", from.name, to.name);
        let url = format!("http://127.0.0.1:{}/switchover", to.rest);
        run(Command::new("/usr/bin/curl").args([
            "-s",
            "--fail-with-body",
            "-X",
            "POST",
            "-d",
            &body,
            &url,
        ]))
        .map(drop)
    }

    /// Kills a member's postmaster.
    pub fn kill(&self, member: &Member) -> io::Result<()> {
        let file = self.directory.path().join(&member.name).join("postmaster.pid");
        let text = std::fs::read_to_string(file)?;
        let pid = text.lines().next().unwrap_or_default();
        run(Command::new("kill").args(["-9", pid])).map(drop)
    }
}

impl Member {
    /// Runs SQL on it.
    pub fn ask(&self, sql: &str) -> io::Result<Vec<String>> {
        Client::connect(self.port, "postgres")?.run(sql)
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        for member in &mut self.members {
            // Patroni stops its server when it is asked to end.
            let _ = run(Command::new("kill").arg(member.agent.id().to_string()));
        }
        for member in &mut self.members {
            let _ = member.agent.wait();
        }
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}
