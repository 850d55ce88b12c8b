//! Programs that look at a console, as their users have them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use switchyard_testkit::{Pooler, Raw, programs, run, wait_until};

const ENTRY: &str = "a = host=127.0.0.1 port=1";

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers").join(name)
}

#[test]
fn check_postgres_and_the_exporter_of_debian_find_what_they_ask_for() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let pooler = Pooler::start(crate::program(), ENTRY, "")?;
    let port = pooler.port.to_string();
    let _client = Raw::console(pooler.port, "postgres")?;
    let check = |action: &str, limits: &[&str]| {
        let mut command = Command::new("/usr/bin/check_postgres");
        command.args(["--host=127.0.0.1", "--dbuser=postgres", "--dbname=pgbouncer"]);
        command.args([format!("--action={action}"), format!("--port={port}")]).args(limits);
        run(command.env("PGPASSWORD", "secret").current_dir("/tmp"))
    };
    for column in ["cl_active", "cl_waiting", "maxwait", "sv_active", "sv_idle", "sv_login"] {
        let said = check(&format!("pgb_pool_{column}"), &["-w", "80", "-c", "90"])?;
        let count = if column == "cl_active" { 2 } else { 0 };
        let wanted = format!("POSTGRES_PGB_POOL_{} OK", column.to_uppercase());
        assert!(said.starts_with(&wanted), "{said}");
        assert!(said.contains(&format!("pgbouncer={count};80;90")), "{said}");
    }
    let said = check("pgbouncer_backends", &["-w", "80", "-c", "90"])?;
    assert!(said.contains("2 of 100 connections (2%)"), "{said}");
    // Its collectors for STATS and DATABASES want columns that PgBouncer has not had for long.
    let python = script("with_exporter.py");
    run(Command::new("/usr/bin/python3").arg(python).arg(&port)).map(drop)
}

#[test]
fn psql_watches_a_table() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let pooler = Pooler::start(crate::program(), ENTRY, "")?;
    let port = pooler.port.to_string();
    let mut psql = Command::new(programs()?.join("psql"));
    psql.args(["-X", "-h", "127.0.0.1", "-U", "postgres", "-d", "pgbouncer", "-p", &port]);
    let output = tempfile::NamedTempFile::new()?;
    psql.stdin(Stdio::piped()).stdout(output.reopen()?).stderr(output.reopen()?);
    let mut psql = psql.spawn()?;
    if let Some(input) = &mut psql.stdin {
        input.write_all(b"show lists \\watch 0.01\n")?;
    }
    let text = || std::fs::read_to_string(output.path()).unwrap_or_default();
    let seen = wait_until("three tables", || text().matches(" login_clients").count() >= 3);
    psql.kill()?;
    psql.wait()?;
    seen
}

#[test]
fn drivers_read_the_console_in_their_own_protocol() -> io::Result<()> {
    let Some(drivers) = std::env::var_os("SWITCHYARD_DRIVERS").map(PathBuf::from) else {
        return Ok(());
    };
    let pooler = Pooler::start(crate::program(), ENTRY, "workers = 2")?;
    let port = pooler.port.to_string();
    let python = drivers.join("venv/bin/python");
    run(Command::new(python).arg(script("console.py")).arg(&port))?;
    let mut node = Command::new("node");
    node.env("NODE_PATH", drivers.join("node_modules"));
    run(node.arg(script("console.js")).arg(&port)).map(drop)
}
