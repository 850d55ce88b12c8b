//! The user's Python functions in front of two real servers.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use switchyard_testkit::{Client, Pooler, Postgres, wait_until};

const ROUTES: &str = r#"
import re, time
routing = {r'.*tablea.*': 'dev.1', r'.*tableb.*': 'dev.2'}
def routing_rules(username, query, in_transaction):
    if 'sleep in the hook' in query:
        time.sleep(0.3)
    for expression, database in routing.items():
        if re.match(expression, query, re.DOTALL):
            return database
    if 'nowhere' in query:
        return 'dev.9'
    if 'raise' in query:
        raise ValueError('no route')
    return None
"#;

const REWRITES: &str = r#"
import re
def rewrite_query(username, query):
    if re.match(r'select .* from fact join dim', query):
        return "select 'joined before'"
    if 'no rewrite' in query:
        raise ValueError('no rewrite')
    return query
"#;

pub(super) struct Lab {
    pub(super) servers: [Postgres; 2],
    pub(super) pooler: Pooler,
    pub(super) directory: tempfile::TempDir,
}

pub(super) fn lab(settings: &str) -> io::Result<Lab> {
    let servers = [Postgres::start("")?, Postgres::start("")?];
    for (server, name) in servers.iter().zip(["one", "two"]) {
        server.sql(&format!(
            "create role app login; grant usage on schema public to app; \
             create table tablea as select '{name}'::text v; create table tableb as table tablea; \
             create table other as table tablea"
        ))?;
    }
    let directory = tempfile::tempdir()?;
    let at = directory.path().display().to_string();
    std::fs::write(directory.path().join("routes.py"), ROUTES)?;
    std::fs::write(directory.path().join("rewrites.py"), REWRITES)?;
    Command::new("chmod").args(["-R", "a+rX", &at]).status()?;
    let entry =
        |name: &str, port: u16| format!("{name} = host=127.0.0.1 port={port} dbname=postgres\n");
    let databases = [
        entry("dev", servers[0].port),
        entry("dev.1", servers[0].port),
        entry("dev.2", servers[1].port),
    ]
    .concat();
    // On a busy machine a call may wait for long.
    let settings = format!(
        "hook_timeout = 20\nrouting_rules_py_module_file = {at}/routes.py\n\
         rewrite_query_py_module_file = {at}/rewrites.py\n{settings}"
    );
    let pooler = Pooler::start(super::program(), &databases, &settings)?;
    Ok(Lab { servers, pooler, directory })
}

#[test]
fn routes_and_rewrites_as_published() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for mode in ["transaction", "session", "statement"] {
        let lab = lab(&format!("pool_mode = {mode}\nworkers = 2"))?;
        let mut client = lab.pooler.session("postgres", "dev")?;
        for (sql, value) in [
            ("select v from tablea", "one"),
            ("select v from tableb", "two"),
            ("select v from other", "two"),
            ("select v from tablea", "one"),
            ("select v from other", "one"),
            ("select 1 from fact join dim using (x)", "joined before"),
            ("select 'nowhere' || v from other", "nowhereone"),
            ("select 'raise' || v from other", "raiseone"),
        ] {
            assert_eq!(client.run(sql)?, value, "{mode}: {sql}");
        }
        let log = lab.pooler.log()?;
        assert!(log.contains("routing_rules returned unknown database \"dev.9\""), "{log}");
        if mode != "statement" {
            client.run("begin")?;
            assert_eq!(client.run("select v from tablea")?, "one");
            assert_eq!(client.run("select v from tableb")?, "one", "a transaction stays whole");
            client.run("commit")?;
            assert_eq!(client.run("select v from tableb")?, "two");
        }
        assert_eq!(lab.servers[1].sql("select count(*) from tableb")?.trim(), "1");
    }
    Ok(())
}

#[test]
fn a_slow_function_holds_up_its_own_user_only() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("pool_mode = transaction")?;
    let mut slow = lab.pooler.session("app", "dev")?;
    let mut fast = lab.pooler.session("postgres", "dev")?;
    // Only once does a slow user stand in front of others: from then on it is known.
    slow.run("select 'sleep in the hook'")?;
    let sleeper = std::thread::spawn(move || slow.run("select 'sleep in the hook'"));
    let started = Instant::now();
    for _ in 0..20 {
        assert_eq!(fast.run("select v from tablea")?, "one");
    }
    assert!(!sleeper.is_finished() || started.elapsed() > Duration::from_millis(250));
    sleeper.join().map_err(|_| io::Error::other("a panic"))??;
    Ok(())
}

#[test]
fn a_changed_module_is_swapped_and_a_broken_one_refused() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("pool_mode = transaction\nhook_timeout = 5")?;
    let mut client = lab.pooler.session("postgres", "dev")?;
    assert_eq!(client.run("select v from tablea")?, "one");
    let path = lab.directory.path().join("routes.py");
    std::fs::write(&path, "def routing_rules(:\n")?;
    assert!(lab.pooler.console("reload").is_err());
    let after = client.run("select v from tableb");
    assert!(after.is_ok(), "{}", lab.pooler.log()?);
    assert_eq!(after?, "two");
    let text = r#"
import os, time
def routing_rules(user, query, busy):
    if 'die' in query:
        os._exit(1)
    if 'hang' in query:
        time.sleep(60)
    return 'dev.1'
"#;
    std::fs::write(&path, text)?;
    lab.pooler.console("reload")?;
    assert_eq!(client.run("select v from tableb")?, "one");
    let died = client.run("select 'die'");
    assert!(died.is_ok(), "{}", lab.pooler.log()?);
    assert_eq!(died?, "die", "a crash passes by default");
    assert_eq!(client.run("select 'hang'")?, "hang", "so does a deadline");
    assert_eq!(client.run("select v from tableb")?, "one");
    wait_until("warning", || {
        lab.pooler.log().is_ok_and(|log| log.contains("routing_rules failed: "))
    })
}

fn refusal(client: &mut Client, sql: &str) -> String {
    client.run(sql).map_or_else(|error| error.to_string(), |rows| rows.join(" "))
}

#[test]
fn refused_statements_leave_their_client_connected() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("pool_mode = transaction\nrewrite_on_error = error\nroute_on_error = error\n\
                   route_unknown = error\nroute_in_transaction = error\nrewrite_query_tag = pid")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    assert_eq!(refusal(client, "select 'no rewrite'"), "58000 query rewrite failed");
    assert_eq!(refusal(client, "select 'raise'"), "58000 query routing failed");
    let unknown = "3D000 routing_rules returned unknown database \"dev.9\"";
    assert_eq!(refusal(client, "select 'nowhere'"), unknown);
    let tagged = client.run("select 1 from fact join dim using (x)")?;
    assert_eq!(tagged, ["joined before"]);

    client.run("select v from tablea")?;
    client.run("begin")?;
    client.run("insert into tablea values ('lost')")?;
    let text = refusal(client, "insert into tableb values ('lost')");
    assert_eq!(text, "25001 cannot change server inside a transaction");
    assert!(refusal(client, "select 1").starts_with("25P02 "));
    client.run("commit")?;
    assert_eq!(client.run("select count(*) from tablea")?, ["1"], "it was rolled back");
    assert_eq!(client.run("select count(*) from tableb")?, ["1"]);
    Ok(())
}

#[test]
fn a_route_may_end_a_transaction() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("pool_mode = transaction\nroute_in_transaction = switch")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    client.run("select v from tablea")?;
    client.run("begin")?;
    client.run("insert into tablea values ('lost')")?;
    let text = refusal(client, "insert into tableb values ('lost')");
    assert_eq!(text, "40000 transaction rolled back: routed to another server");
    assert_eq!(client.run("select v from other")?, ["two"], "later messages go there");
    assert_eq!(client.run("select count(*) from tablea")?, ["1"]);
    assert_eq!(client.run("select count(*) from tableb")?, ["1"]);
    Ok(())
}
