//! Drivers as their users have them. `cargo xtask test` installs them and says where.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use switchyard_testkit::{Pooler, Postgres, Rules, run};

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
