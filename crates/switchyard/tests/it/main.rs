//! The binary in front of a real PostgreSQL, seen from outside. `cargo xtask test` runs these; by
//! itself `cargo test` needs no PostgreSQL and leaves them out.

mod aws;
mod bounds;
mod clocks;
mod console;
mod cookbook;
mod detours;
mod drivers;
mod endurance;
mod failures;
mod holes;
mod homes;
mod hook_contract;
mod hook_fine;
mod hook_foresight;
mod hook_host;
mod hook_load;
mod hook_module;
mod hook_python;
mod hook_routes;
mod hook_rows;
mod hook_stuck;
mod hook_targets;
mod hook_trial;
mod hooks;
mod hosts;
mod keys;
mod login;
mod losses;
mod misuse;
mod patroni;
mod peers;
mod planned;
mod pools;
mod process;
mod reasons;
mod records;
mod relink;
mod reload;
mod requeue;
mod rules;
mod scarcity;
mod scenarios;
mod sessions;
mod settings;
mod switchover;
mod timeouts;
mod tls;
mod transcripts;
mod wire;

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use switchyard_testkit::{Pooler, Postgres, wait_until};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_switchyard"))
}

fn wanted() -> bool {
    std::env::var_os("SWITCHYARD_POSTGRES").is_some()
}

fn start(settings: &str) -> io::Result<(Postgres, Pooler)> {
    let hba = "host all md5user 127.0.0.1/32 md5\nhost all app 127.0.0.1/32 scram-sha-256";
    let postgres = Postgres::start(hba)?;
    postgres.sql("create role app login password 'secret'")?;
    let databases = format!(
        "postgres = host=127.0.0.1 port={0}\nforced = host=127.0.0.1 port={0} dbname=postgres \
         user=app password=secret\nunix = host={1} port={0} dbname=postgres\n\
         nowhere = host=127.0.0.1 port=1",
        postgres.port,
        postgres.socket_dir().display()
    );
    let pooler = Pooler::start(program(), &databases, settings)?;
    Ok((postgres, pooler))
}

#[test]
fn transactions_share_few_servers_in_every_protocol() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    for workers in [1, 2] {
        for size in [1, 2, 10] {
            let settings =
                format!("pool_mode = transaction\ndefault_pool_size = {size}\nworkers = {workers}");
            let (postgres, pooler) = start(&settings)?;
            postgres.sql(
                "create table pgbench_accounts as select i aid, 0 abalance \
                 from generate_series(1, 100000) i; \
                 alter table pgbench_accounts add primary key (aid); \
                 create table pgbench_branches as select 1 bid",
            )?;
            for mode in ["simple", "extended", "prepared"] {
                assert!(pooler.pgbench(mode, 30, 1)? > 30, "{mode} {workers} {size}");
            }
            let count = "select count(*) from pg_stat_activity \
                         where application_name = 'pgbench'";
            assert!(postgres.sql(count)?.trim().parse::<usize>().is_ok_and(|n| n <= size));
            let row = pooler.console("show pools")?;
            let ours = row.lines().find(|row| row.starts_with("postgres|")).unwrap_or_default();
            assert!(ours.starts_with("postgres|postgres|0|0|"), "{ours}");
        }
    }
    Ok(())
}

#[test]
fn passwords_are_checked_on_both_sides() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    for method in ["plain", "md5", "scram-sha-256"] {
        let (_postgres, pooler) = start(&format!("auth_type = {method}"))?;
        for database in ["postgres", "forced", "unix"] {
            let found = pooler.sql("app", database, "select current_user")?;
            assert_eq!(found.trim(), "app", "{method} {database}");
        }
        let wrong = pooler.sql("nobody", "postgres", "select 1").map_err(|e| e.to_string());
        let text = if method == "scram-sha-256" {
            "FATAL:  SASL authentication failed"
        } else {
            "FATAL:  password authentication failed"
        };
        assert!(wrong.as_ref().is_err_and(|error| error.contains(text)), "{wrong:?}");
        let wrong = pooler.sql("app", "unknown", "select 1").map_err(|e| e.to_string());
        let text = "FATAL:  no such database: unknown";
        assert!(wrong.is_err_and(|error| error.contains(text)));
        assert!(pooler.log()?.contains("pooler error: no such database: unknown"));
    }
    Ok(())
}

#[test]
fn sessions_are_reset_and_parameters_follow_their_client() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = start("default_pool_size = 1")?;
    let show = "show work_mem";
    let before = pooler.sql("postgres", "postgres", show)?;
    pooler.sql("postgres", "postgres", "set work_mem = '7MB'")?;
    assert_eq!(pooler.sql("postgres", "postgres", show)?, before);
    let (_postgres, pooler) = start("default_pool_size = 1\npool_mode = transaction")?;
    for name in ["one", "two", "it's"] {
        let sql = format!("set application_name = '{}'; ", name.replace('\'', "''"));
        pooler.sql("postgres", "postgres", &sql)?;
        let found = pooler.sql("postgres", "postgres", "show application_name")?;
        assert_eq!(found.trim(), "psql");
    }
    Ok(())
}

#[test]
fn copies_pass_both_ways() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (postgres, pooler) = start("pool_mode = transaction")?;
    postgres.sql("create table t (a int, b text)")?;
    let fill = "insert into t select i, repeat('x', 100) from generate_series(1, 50000) i";
    pooler.sql("postgres", "postgres", fill)?;
    let out = pooler.sql("postgres", "postgres", "copy t to stdout")?;
    assert_eq!(out.lines().count(), 50_000);
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &out)?;
    let copy = format!("\\copy t from '{}'", file.path().display());
    pooler.sql("postgres", "postgres", &copy)?;
    assert_eq!(pooler.sql("postgres", "postgres", "select count(*) from t")?.trim(), "100000");
    assert!(pooler.sql("postgres", "postgres", "copy nothing from stdin").is_err());
    Ok(())
}

#[test]
fn pause_resume_kill_and_reload() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = start("pool_mode = transaction\nquery_wait_timeout = 1")?;
    pooler.sql("postgres", "postgres", "select 1")?;
    pooler.console("pause")?;
    assert!(pooler.console("show state")?.contains("paused|yes"));
    let waited = pooler.sql("postgres", "postgres", "select 1").map_err(|e| e.to_string());
    assert!(waited.is_err_and(|error| error.contains("query_wait_timeout")));
    pooler.console("resume")?;
    pooler.sql("postgres", "postgres", "select 1")?;
    pooler.console("kill postgres")?;
    pooler.console("resume postgres")?;
    pooler.sql("postgres", "postgres", "select 1")?;
    pooler.console("disable postgres")?;
    assert!(pooler.sql("postgres", "postgres", "select 1").is_err());
    pooler.console("enable postgres")?;
    pooler.console("reconnect")?;
    pooler.sql("postgres", "postgres", "select 1")?;
    let ini = std::fs::read_to_string(pooler.ini())?;
    std::fs::write(pooler.ini(), format!("{ini}nonsense = 1\n"))?;
    assert!(pooler.console("reload").is_err());
    assert!(pooler.log()?.contains("unknown parameter: pgbouncer/nonsense"));
    std::fs::write(pooler.ini(), format!("{ini}default_pool_size = 7\n"))?;
    pooler.console("reload")?;
    assert!(pooler.console("show config")?.contains("default_pool_size|7|20|yes"));
    Ok(())
}

#[test]
fn a_server_that_dies_is_replaced() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (postgres, pooler) = start("pool_mode = transaction\nserver_login_retry = 0.2")?;
    pooler.sql("postgres", "postgres", "select 1")?;
    let killed =
        pooler.sql("postgres", "postgres", "select pg_terminate_backend(pg_backend_pid())");
    assert!(killed.is_err());
    pooler.sql("postgres", "postgres", "select 1")?;
    postgres.stop("immediate")?;
    postgres.launch()?;
    wait_until("answer", || pooler.sql("postgres", "postgres", "select 1").is_ok())?;
    assert!(pooler.log()?.contains("closing because: server conn crashed?"));
    Ok(())
}

#[test]
fn a_running_query_is_cancelled() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (postgres, pooler) = start("pool_mode = transaction")?;
    let port = pooler.port.to_string();
    let mut psql = Command::new("psql")
        .args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-d", "postgres"])
        .args(["-c", "select pg_sleep(600)"])
        .stderr(Stdio::piped())
        .spawn()?;
    let running = "select count(*) from pg_stat_activity where query = 'select pg_sleep(600)'";
    wait_until("query", || postgres.sql(running).is_ok_and(|count| count.trim() == "1"))?;
    Command::new("kill").args(["-INT", &psql.id().to_string()]).status()?;
    let output = psql.wait()?;
    assert!(!output.success());
    wait_until("cancel", || {
        postgres
            .sql(
                "select count(*) from pg_stat_activity \
                 where state = 'active' and query like '%600%'",
            )
            .is_ok_and(|count| count.trim() == "1" || count.trim() == "0")
    })?;
    assert!(pooler.log()?.contains("successfully sent cancel request"));
    Ok(())
}

#[test]
fn malformed_input_ends_only_its_own_connection() -> io::Result<()> {
    use std::io::{Read, Write};
    if !wanted() {
        return Ok(());
    }
    let (_postgres, mut pooler) = start("pool_mode = transaction")?;
    let startup = b"\0\0\0\x18\0\x03\0\0user\0postgres\0\0";
    let mut startup = startup.to_vec();
    let length = u32::try_from(startup.len()).map_err(io::Error::other)?;
    startup[..4].copy_from_slice(&length.to_be_bytes());
    for bad in [&b"\0\0\0\x03xxxxxxx"[..], b"GET / HTTP/1.1\r\n", b"p\0\0\0\x05x", &[0xff; 64]] {
        for login in [&b""[..], &startup] {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", pooler.port))?;
            stream.write_all(login)?;
            stream.write_all(bad)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            // How the connection ends does not matter, as long as it does.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    assert!(pooler.is_running());
    pooler.sql("postgres", "postgres", "select 1")?;
    Ok(())
}
