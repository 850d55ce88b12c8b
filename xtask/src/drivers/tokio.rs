//! tokio-postgres' own tests, from its crate. They have the server's port in their text.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use switchyard_testkit::{Pooler, Postgres};

use super::succeed;

pub(super) const NAME: &str = "tokio-postgres";
pub(super) const VERSION: &str = "0.7.18";

/// The port that its tests expect.
const PORT: &str = "5433";

/// Who logs in how, in the form of both HBA files.
const METHODS: &str = "host all pass_user all password\nhost all md5_user all md5\n\
                       host all scram_user all scram-sha-256\n";

const ROLES: &str = "create role pass_user login password 'password'; \
                     create role scram_user login password 'password'; \
                     set password_encryption = 'md5'; \
                     create role md5_user login password 'password'; \
                     create role ssl_user login; \
                     create extension hstore; create extension citext; create extension ltree";

/// Gets the sources; answers where they are.
pub(super) fn prepare(directory: &Path) -> Result<PathBuf, String> {
    let project = directory.join(NAME);
    let sources = project.join("vendor").join(NAME);
    if sources.join("tests").exists() {
        return Ok(project);
    }
    write(&project.join("src/lib.rs"), "")?;
    let manifest = format!(
        "[package]\nname = \"suite\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\
         [dependencies]\n{NAME} = \"={VERSION}\"\n[workspace]\n"
    );
    write(&project.join("Cargo.toml"), &manifest)?;
    succeed(Command::new("cargo").args(["vendor", "--quiet", "vendor"]).current_dir(&project))?;
    // It is tested by itself.
    let manifest = sources.join("Cargo.toml");
    let own = fs::read_to_string(&manifest).map_err(|error| error.to_string())?;
    write(&manifest, &format!("{own}\n[workspace]\n"))?;
    Ok(project)
}

/// The tests that fail.
pub(super) fn attempt(project: &Path, pooler: Option<&Path>) -> Result<BTreeSet<String>, String> {
    let text = |error: std::io::Error| error.to_string();
    let server = Postgres::start(METHODS).map_err(text)?;
    server.sql(ROLES).map_err(text)?;
    let pooler = pooler.map(|program| start(project, program, &server)).transpose()?;
    let port = pooler.as_ref().map_or(server.port, |pooler| pooler.port);
    let sources = project.join("vendor").join(NAME);
    let at = project.join("attempt");
    if at.exists() {
        fs::remove_dir_all(&at).map_err(text)?;
    }
    succeed(Command::new("cp").arg("-r").arg(&sources).arg(&at))?;
    for file in ["main.rs", "runtime.rs", "parse.rs"] {
        let file = at.join("tests/test").join(file);
        let own = fs::read_to_string(&file).map_err(text)?;
        write(&file, &own.replace(PORT, &port.to_string()))?;
    }
    let mut command = Command::new("cargo");
    command.args(["test", "--test", "test", "--no-fail-fast"]).current_dir(&at);
    command.env("CARGO_TARGET_DIR", project.join("target"));
    let output = command.output().map_err(text)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !said.contains(" passed;") {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let failed = said.lines().filter_map(|line| {
        let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        Some(format!("{NAME}::{name}"))
    });
    Ok(failed.collect())
}

fn start(project: &Path, program: &Path, server: &Postgres) -> Result<Pooler, String> {
    let (rules, users) = (project.join("hba"), project.join("users"));
    write(&rules, &format!("{METHODS}host all all all trust\nlocal all all trust\n"))?;
    let names = ["postgres", "pass_user", "md5_user", "scram_user", "ssl_user"];
    let lines = names.map(|name| format!("\"{name}\" \"password\"\n"));
    write(&users, &lines.concat())?;
    let settings = format!(
        "pool_mode = session\ndefault_pool_size = 100\nmax_client_conn = 1000\n\
         auth_type = hba\nauth_hba_file = {}\nauth_file = {}\nauth_error_codes = 1",
        rules.display(),
        users.display()
    );
    let entry = format!("* = host=127.0.0.1 port={}", server.port);
    Pooler::start(program, &entry, &settings).map_err(|error| error.to_string())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let told = |error: std::io::Error| format!("{}: {error}", path.display());
    path.parent().map_or(Ok(()), fs::create_dir_all).map_err(told)?;
    fs::write(path, text).map_err(told)
}
