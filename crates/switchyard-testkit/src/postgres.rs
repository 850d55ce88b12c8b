//! A PostgreSQL server in a temporary directory.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Certificates, Space, directory, free_port, run, unprivileged, wait_until};

/// A running server; the superuser is `postgres`, who needs no password on the loopback.
#[derive(Debug)]
pub struct Postgres {
    /// TCP port.
    pub port: u16,
    address: String,
    programs: PathBuf,
    directory: tempfile::TempDir,
    /// The command that it runs under.
    wrapper: Vec<String>,
}

/// The newest installed version's programs.
pub fn programs() -> io::Result<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|path| path.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "PostgreSQL"))
}

impl Postgres {
    /// Makes a cluster and starts it, with `hba` lines in front of trust for everybody.
    pub fn start(hba: &str) -> io::Result<Self> {
        Self::start_of(&programs()?, hba)
    }

    /// The same with the programs of this directory.
    pub fn start_of(programs: &Path, hba: &str) -> io::Result<Self> {
        let (directory, port) = (directory()?, free_port()?);
        let (address, programs) = ("127.0.0.1".into(), programs.to_owned());
        Postgres { port, address, programs, directory, wrapper: Vec::new() }.make(hba)
    }

    /// The same at an address of a namespace.
    pub fn start_in(space: &Space, address: &str) -> io::Result<Self> {
        let (port, directory) = (5432, directory()?);
        let (address, programs, wrapper) = (address.to_owned(), programs()?, space.wrapper());
        let hba = "host all all 10.0.0.0/8 trust\nhost replication all 10.0.0.0/8 trust";
        Postgres { port, address, programs, directory, wrapper }.make(hba)
    }

    fn make(self, hba: &str) -> io::Result<Self> {
        let server = self;
        let data = server.data();
        run(unprivileged(&server.programs.join("initdb"))
            .args(["-A", "trust", "-U", "postgres", "-N", "-D"])
            .arg(&data))?;
        let file = data.join("pg_hba.conf");
        let rest = std::fs::read_to_string(&file)?;
        std::fs::write(&file, format!("{hba}\n{rest}"))?;
        server.launch()?;
        Ok(server)
    }

    /// Makes pgbench's tables.
    pub fn pgbench_tables(&self, scale: u32) -> io::Result<()> {
        run(Command::new(programs()?.join("pgbench"))
            .args(["-i", "-q", "-h", "127.0.0.1", "-U", "postgres", "-s", &scale.to_string()])
            .args(["-p", &self.port.to_string(), "postgres"]))
        .map(drop)
    }

    /// A streaming standby of this server.
    pub fn standby(&self) -> io::Result<Self> {
        self.standby_at("127.0.0.1", free_port()?)
    }

    /// The same at another place.
    pub fn standby_at(&self, address: &str, port: u16) -> io::Result<Self> {
        let (address, programs, wrapper) =
            (address.to_owned(), self.programs.clone(), self.wrapper.clone());
        let server = Postgres { port, address, programs, directory: directory()?, wrapper };
        run(unprivileged(&self.programs.join("pg_basebackup"))
            .args(["-R", "-X", "stream", "-c", "fast", "-h", &self.address, "-U", "postgres"])
            .args(["-p", &self.port.to_string(), "-D"])
            .arg(server.data()))?;
        server.launch()?;
        Ok(server)
    }

    /// Makes this server, ended or a standby, a standby of `writer`.
    pub fn follow(&self, writer: &Postgres) -> io::Result<()> {
        let Postgres { address, port, .. } = writer;
        let conninfo = format!("host={address} port={port} user=postgres");
        let running = self.data().join("postmaster.pid").exists();
        if running {
            self.sql(&format!("alter system set primary_conninfo = '{conninfo}'"))?;
            return self.sql("select pg_reload_conf()").map(drop);
        }
        let (settings, signal) =
            (self.data().join("postgresql.auto.conf"), self.data().join("standby.signal"));
        let mut file = OpenOptions::new().append(true).open(settings)?;
        writeln!(file, "primary_conninfo = '{conninfo}'")?;
        run(unprivileged(Path::new("touch")).arg(signal))?;
        self.launch()
    }

    /// Makes a standby the writer.
    pub fn promote(&self) -> io::Result<()> {
        run(self.control()?.arg("promote")).map(drop)
    }

    /// Ends the postmaster with SIGKILL; its children follow by themselves.
    pub fn kill(&self) -> io::Result<()> {
        run(Command::new("kill").args(["-9", &self.pid()?])).map(drop)
    }

    /// Process id of the postmaster.
    pub fn pid(&self) -> io::Result<String> {
        let file = std::fs::read_to_string(self.data().join("postmaster.pid"))?;
        Ok(file.lines().next().unwrap_or_default().to_owned())
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn control(&self) -> io::Result<Command> {
        let inner = unprivileged(&self.programs.join("pg_ctl"));
        let mut command = match self.wrapper.split_first() {
            None => inner,
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(inner.get_program()).args(inner.get_args());
                command
            }
        };
        command.arg("-D").arg(self.data()).arg("-w").arg("-l").arg(self.log());
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// Starts it (again).
    pub fn launch(&self) -> io::Result<()> {
        let options = format!(
            "-p {} -k {} -c listen_addresses={} -c fsync=off -c max_connections=200 \
             -c wal_retrieve_retry_interval=100ms -c wal_keep_size=128MB",
            self.port,
            self.directory.path().display(),
            if self.address == "127.0.0.1" { "127.0.0.1,::1" } else { &self.address }
        );
        run(self.control()?.args(["-o", &options, "start"])).map(drop)
    }

    /// Turns TLS on with a certificate of this name, and clients' certificates by that authority.
    pub fn use_tls(
        &self,
        certificates: &Certificates,
        name: &str,
        authority: Option<&str>,
    ) -> io::Result<()> {
        let copy = |from: String, to: &str| {
            let mut install = unprivileged(Path::new("install"));
            let to = self.data().join(to);
            run(install.args(["-m", "600"]).arg(certificates.path(&from)).arg(to)).map(drop)
        };
        copy(format!("{name}.crt"), "server.crt")?;
        copy(format!("{name}.key"), "server.key")?;
        if let Some(authority) = authority {
            copy(format!("{authority}.crt"), "root.crt")?;
            self.sql("alter system set ssl_ca_file = 'root.crt'")?;
        }
        self.sql("alter system set ssl = on")?;
        self.sql("select pg_reload_conf()")?;
        wait_until("TLS", || self.sql("show ssl").is_ok_and(|on| on.trim() == "on"))
    }

    /// Ends it: `fast` or `immediate`.
    pub fn stop(&self, mode: &str) -> io::Result<()> {
        run(self.control()?.args(["-m", mode, "stop"])).map(drop)
    }

    /// Directory of its unix socket, its data and its log.
    pub fn socket_dir(&self) -> &Path {
        self.directory.path()
    }

    /// Runs SQL on the server itself.
    pub fn sql(&self, sql: &str) -> io::Result<String> {
        crate::pooler::psql(&self.address, self.port, "postgres", "postgres", sql)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // It may have been stopped already.
        let _ = self.stop("immediate");
    }
}
