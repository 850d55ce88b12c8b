//! From a connection's first byte to its welcome: raw sockets and psql, beside Debian's pgbouncer
//! where it does the same.

mod first;
mod limits;
mod lookup;
mod rules;
mod servers;

use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use switchyard_testkit::{Pooler, Postgres, programs, run};
use switchyard_wire::build;
use switchyard_wire::startup::VERSION_3_0;

use super::program;

/// Files that the pooler reads.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("switchyard").tempdir()?;
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        Ok(Files(directory))
    }

    /// Writes a file; answers its path.
    fn write(&self, name: &str, text: &str) -> io::Result<String> {
        let path = self.0.path().join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        Ok(path.display().to_string())
    }
}

/// A connection whose every byte we see.
struct Raw(TcpStream);

impl Raw {
    fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Raw(stream))
    }

    /// A connection that has sent a startup packet with these parameters.
    fn start(port: u16, pairs: &[(&str, &str)]) -> io::Result<Self> {
        let mut raw = Raw::open(port)?;
        raw.send(&startup(VERSION_3_0, pairs))?;
        Ok(raw)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// The next message: its type and its body.
    fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.0.read_exact(&mut head)?;
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; len - 4];
        self.0.read_exact(&mut body)?;
        Ok((head[0], body))
    }

    /// Everything up to the end of the connection.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset counts as an end: what came before it is there.
        let _ = self.0.read_to_end(&mut rest);
        rest
    }

    /// Messages up to the welcome's end.
    fn welcome(&mut self) -> io::Result<Vec<(u8, Vec<u8>)>> {
        let mut messages = Vec::new();
        loop {
            let message = self.message()?;
            let last = message.0 == b'Z';
            if message.0 == b'E' {
                return Err(io::Error::other(String::from_utf8_lossy(&message.1).into_owned()));
            }
            messages.push(message);
            if last {
                return Ok(messages);
            }
        }
    }

    /// SQLSTATE and text of the FATAL that ends the connection.
    fn fatal(&mut self) -> String {
        let rest = self.rest();
        let at = rest.windows(7).position(|part| part == b"SFATAL\0").map(|at| at + 7);
        let text = String::from_utf8_lossy(&rest[at.unwrap_or(rest.len())..]).into_owned();
        let mut fields = text.split('\0');
        let code = fields.next().unwrap_or_default().trim_start_matches('C').to_owned();
        format!("{code} {}", fields.next().unwrap_or_default().trim_start_matches('M'))
    }
}

fn startup(version: u32, pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    let pairs = pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    build::startup(&mut out, version, pairs);
    out
}

fn password(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    build::password(&mut out, text);
    out
}

fn sasl_initial(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    build::sasl_initial(&mut out, "SCRAM-SHA-256", data);
    out
}

/// Runs psql with these words of a connection string and this password.
fn psql(port: u16, words: &str, password: &str, sql: &str) -> Result<String, String> {
    let mut command = Command::new(programs().map_err(|e| e.to_string())?.join("psql"));
    command.env("PGPASSWORD", password).env("HOME", "/nonexistent");
    let words =
        if words.contains("host=") { words.into() } else { format!("host=127.0.0.1 {words}") };
    let conninfo = format!("port={port} {words}");
    let result = run(command.args(["-X", "-q", "-A", "-t", &conninfo, "-c", sql]));
    result.map(|text| text.trim().to_owned()).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(result: Result<String, String>, text: &str) {
    assert!(result.as_ref().is_err_and(|error| error.contains(text)), "{text}: {result:?}");
}

/// A server with the role `app` and a pooler in front of it, whose entries these are.
fn stage(entries: &str, settings: &str) -> io::Result<(Postgres, Pooler)> {
    let postgres = Postgres::start("host all app 127.0.0.1/32 scram-sha-256")?;
    postgres.sql("create role app login password 'secret'")?;
    let pooler = pooler(program(), &postgres, entries, settings)?;
    Ok((postgres, pooler))
}

fn pooler(
    program: &Path,
    postgres: &Postgres,
    entries: &str,
    settings: &str,
) -> io::Result<Pooler> {
    let server = format!("host=127.0.0.1 port={}", postgres.port);
    Pooler::start(program, &entries.replace("SERVER", &server), settings)
}
