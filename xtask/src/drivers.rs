//! The test suites that drivers ship with their sources, directly and through the pooler in session
//! mode. Whatever fails through the pooler only, and for no known cause, is a failure.
//!
//! It takes some minutes and reads packages from PyPI and crates.io, so that it is no part of
//! `test`.

mod tokio;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use switchyard_testkit::{Pooler, Postgres};

use crate::packages;

/// A suite: package, version, and the environment that tells it where the server is.
struct Suite {
    package: &'static str,
    version: &'static str,
    /// What is installed to be tested.
    install: &'static str,
    database: &'static str,
    environment: fn(u16) -> Vec<(&'static str, String)>,
}

const SUITES: [Suite; 2] = [
    Suite {
        package: "psycopg2",
        version: "2.9.13",
        install: "psycopg2-binary",
        database: "psycopg2_test",
        environment: |port| {
            vec![
                ("PSYCOPG2_TESTDB_HOST", "127.0.0.1".into()),
                ("PSYCOPG2_TESTDB_PORT", port.to_string()),
                ("PSYCOPG2_TESTDB_USER", "postgres".into()),
            ]
        },
    },
    Suite {
        package: "asyncpg",
        version: "0.32.0",
        install: "asyncpg",
        database: "asyncpg_test",
        environment: |port| {
            vec![
                ("PGHOST", "127.0.0.1".into()),
                ("PGPORT", port.to_string()),
                ("PGUSER", "postgres".into()),
                ("PGDATABASE", "postgres".into()),
            ]
        },
    },
];

/// Parts of the names of tests that fail through any such pooler; docs/drivers.md names the causes.
const KNOWN: [&str; 15] = [
    "test_notify.py::NotifiesTests::test_notif",
    "test_notify.py::NotifiesTests::test_notify",
    "test_notify.py::NotifiesTests::test_many_notifies",
    "test_async.py::AsyncTests::test_notify",
    "::test_backend_pid",
    "::test_listen_",
    "::test_log_listener_",
    "::test_pool_min_size_restored_after_idle_connection_loss",
    "::test_get_settings_01",
    "::test_execute_script_interrupted_by_server",
    "::test_type_cache_invalidation_in_pool",
    "::test_executemany_server_failure_during_writes",
    // It fails directly as well, now and then.
    "::test_pool_config_persistence",
    // Notices of a server's login were for the pooler.
    "tokio-postgres::notices",
    // DROP DATABASE at its end finds a server of the pool.
    "test_introspection.py::TestIntrospection::",
];

/// Runs all suites and prints one line each.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    packages::postgres()?;
    packages::python()?;
    packages::headers()?;
    packages::parser()?;
    succeed(Command::new("cargo").args(["build", "-p", "switchyard"]).current_dir(root))?;
    let directory = root.join("target/suites");
    let python = prepare(&directory)?;
    let program = root.join("target/debug/switchyard");
    let mut unknown = 0;
    for suite in &SUITES {
        let at = directory.join(format!("{}-{}", suite.package, suite.version));
        let direct = attempt(suite, &at, &python, None)?;
        let pooled = attempt(suite, &at, &python, Some(&program))?;
        unknown += report(suite.package, suite.version, &direct, &pooled);
    }
    let project = tokio::prepare(&directory)?;
    let direct = tokio::attempt(&project, None)?;
    let pooled = tokio::attempt(&project, Some(&program))?;
    unknown += report(tokio::NAME, tokio::VERSION, &direct, &pooled);
    if unknown == 0 { Ok(()) } else { Err("drivers see a difference".into()) }
}

/// Prints what fails; answers how much of it has no known cause.
fn report(
    package: &str,
    version: &str,
    direct: &BTreeSet<String>,
    pooled: &BTreeSet<String>,
) -> usize {
    let only: Vec<&String> = pooled.difference(direct).collect();
    let known = |test: &&&String| KNOWN.iter().any(|part| test.contains(part));
    let news: Vec<&&String> = only.iter().filter(|test| !known(test)).collect();
    println!(
        "{package} {version}: {} fail directly, {} through the pooler only, {} of them for no \
         known cause",
        direct.len(),
        only.len(),
        news.len()
    );
    news.iter().for_each(|test| println!("  {test}"));
    news.len()
}

fn succeed(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

/// Gets the sources and what they need; answers the interpreter.
fn prepare(directory: &Path) -> Result<PathBuf, String> {
    let venv = directory.join("venv");
    let python = venv.join("bin/python");
    if !python.exists() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let pip = || {
        let mut command = Command::new(&python);
        command.args(["-m", "pip", "-q", "--disable-pip-version-check"]).current_dir(directory);
        command
    };
    succeed(pip().args(["install", "pytest==8.*", "uvloop==0.*", "distro==1.*"]))?;
    for suite in &SUITES {
        let (package, version) = (suite.package, suite.version);
        succeed(pip().arg("install").arg(format!("{}=={version}", suite.install)))?;
        if directory.join(format!("{package}-{version}")).exists() {
            continue;
        }
        let source = format!("{package}=={version}");
        succeed(pip().args(["download", "--no-deps", "--no-binary", package]).arg(source))?;
        let archive = format!("{package}-{version}.tar.gz");
        succeed(Command::new("tar").arg("xzf").arg(archive).current_dir(directory))?;
        // The tests are for what is installed, not for the sources beside them.
        let inside = directory.join(format!("{package}-{version}")).join(package);
        if inside.exists() {
            std::fs::remove_dir_all(&inside).map_err(|e| format!("{}: {e}", inside.display()))?;
        }
    }
    Ok(python)
}

/// The tests of a suite that fail, with a server of its own each time.
fn attempt(
    suite: &Suite,
    at: &Path,
    python: &Path,
    pooler: Option<&Path>,
) -> Result<BTreeSet<String>, String> {
    let text = |error: std::io::Error| error.to_string();
    let server = Postgres::start("").map_err(text)?;
    server.sql(&format!("create database {}", suite.database)).map_err(text)?;
    let entry = format!("* = host=127.0.0.1 port={}", server.port);
    let settings = "pool_mode = session\ndefault_pool_size = 100\nmax_client_conn = 1000";
    let pooler = pooler.map(|program| Pooler::start(program, &entry, settings)).transpose();
    let pooler = pooler.map_err(text)?;
    let port = pooler.as_ref().map_or(server.port, |pooler| pooler.port);
    let mut command = Command::new(python);
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", "--tb=no", "tests"]);
    let output = command.envs((suite.environment)(port)).current_dir(at).output().map_err(text)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !said.contains(" passed") {
        return Err(said);
    }
    let failed = said.lines().filter_map(|line| {
        let test = line.strip_prefix("FAILED ").or_else(|| line.strip_prefix("ERROR "))?;
        Some(test.split(" - ").next()?.to_owned())
    });
    let failed = failed.collect();
    drop(pooler);
    Ok(failed)
}
