//! Where a route leads: the target's user, limits and state count while a client is there.

use std::io;

use switchyard_testkit::{Client, Pooler, Postgres, Rules, wait_until};

/// The key stands in a comment; without one the function says None.
const BY_COMMENT: &str = r#"
import re
def routing_rules(username, query, in_transaction):
    found = re.search(r'/\*to (.*?)\*/', query)
    return found[1] if found else None
"#;

fn lab(entries: &str, settings: &str) -> io::Result<(Postgres, Rules, Pooler)> {
    let server = Postgres::start("")?;
    server.sql("create role forced login; create role app login")?;
    let rules = Rules::new(BY_COMMENT)?;
    let entries = entries.replace("SERVER", &format!("host=127.0.0.1 port={}", server.port));
    let settings = format!(
        "pool_mode = transaction\nhook_timeout = 20\n{settings}\n{}",
        rules.settings(&["routing_rules"])
    );
    let pooler = Pooler::start(super::program(), &entries, &settings)?;
    Ok((server, rules, pooler))
}

fn answer(client: &mut Client, sql: &str) -> String {
    client.run(sql).map_or_else(|error| error.to_string(), |rows| rows.join(" "))
}

#[test]
fn the_target_entry_counts() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (_server, _rules, pooler) = lab(
        "dev = SERVER dbname=postgres\n\
         k = SERVER dbname=postgres user=forced pool_size=1 query_wait_timeout=1 \
         connect_query='select set_config(''my.mark'', ''yes'', false)'\n\
         st = SERVER dbname=postgres pool_mode=statement\n\
         se = SERVER dbname=postgres pool_mode=session\n",
        "workers = 2",
    )?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    let who = "select current_user, current_setting('my.mark', true)";
    assert_eq!(answer(client, who), "postgres|");
    assert_eq!(answer(client, &format!("/*to k*/ {who}")), "forced|yes");
    assert_eq!(answer(client, who), "forced|yes", "None stays there");
    let clients = pooler.console("show clients")?;
    let row = clients.lines().find(|row| row.contains("|k|")).unwrap_or_default();
    assert!(row.starts_with("C|") && row.ends_with("|dev"), "{clients}");
    assert_eq!(answer(client, &format!("/*to dev*/ {who}")), "postgres|");

    // Its pool is as small as it says, and waits as long.
    assert_eq!(answer(client, "/*to k*/ begin"), "");
    let other = &mut Client::connect(pooler.port, "dev")?;
    assert!(answer(other, "/*to k*/ select 1").contains("query_wait_timeout"));
    assert_eq!(answer(client, "commit"), "");
    let other = &mut Client::connect(pooler.port, "dev")?;
    assert_eq!(answer(other, "/*to k*/ select 1"), "1");

    assert!(answer(other, "/*to st*/ begin").contains("transaction blocks not allowed"));
    assert_eq!(answer(client, "/*to se*/ set work_mem = '7MB'"), "");
    assert_eq!(answer(client, "show work_mem"), "7MB");
    assert_eq!(answer(client, "/*to dev*/ show work_mem"), "4MB");
    let left = &mut Client::connect(pooler.port, "se")?;
    assert_eq!(answer(left, "show work_mem"), "4MB", "nobody inherits what a session set");
    Ok(())
}

#[test]
fn the_state_of_the_target_counts() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (server, _rules, pooler) = lab(
        "dev = SERVER dbname=postgres\nk = SERVER dbname=postgres application_name=x\n\
         bad = SERVER dbname=missing\n* = SERVER\n",
        "workers = 2\nserver_login_retry = 0.1",
    )?;
    let base = "select current_database()";
    let client = &mut Client::connect(pooler.port, "dev")?;
    // An automatic entry is made, as for a login.
    assert_eq!(answer(client, &format!("/*to template1*/ {base}")), "template1");
    assert!(pooler.console("show databases")?.contains("template1|127.0.0.1|"));
    // The console is no target.
    assert_eq!(answer(client, &format!("/*to pgbouncer*/ {base}")), "template1");
    let unknown = |key: &str| format!("routing_rules returned unknown database \"{key}\"");
    assert!(pooler.log()?.contains(&unknown("pgbouncer")));
    // DISABLE: as if it were unknown.
    pooler.console("disable k")?;
    assert_eq!(answer(client, &format!("/*to k*/ {base}")), "template1");
    assert!(pooler.log()?.contains(&unknown("k")));
    pooler.console("enable k")?;
    assert_eq!(answer(client, &format!("/*to k*/ {base}")), "postgres");
    // PAUSE: waits there.
    answer(client, "/*to dev*/ select 1");
    pooler.console("pause k")?;
    let port = pooler.port;
    let waiting = std::thread::spawn(move || -> io::Result<String> {
        Ok(answer(&mut Client::connect(port, "dev")?, "/*to k*/ select 'waited'"))
    });
    wait_until("a waiting client", || {
        let pools = pooler.console("show pools").unwrap_or_default();
        pools.lines().any(|row| row.starts_with("k|postgres|0|1|"))
    })?;
    assert_eq!(answer(client, base), "postgres", "others are not held");
    pooler.console("resume k")?;
    assert_eq!(waiting.join().map_err(|_| io::Error::other("a panic"))??, "waited");
    // A login that fails is that of any client there; the route stays.
    let refused = answer(client, &format!("/*to bad*/ {base}"));
    assert!(refused.contains("database \"missing\" does not exist"), "{refused}");
    assert!(!client.is_open());
    server.sql("create database missing template template0")?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    wait_until("the new database", || {
        if !client.is_open() {
            *client = Client::connect(port, "dev").unwrap();
        }
        answer(client, &format!("/*to bad*/ {base}")) == "missing"
    })?;
    // KILL: closed.
    assert_eq!(answer(client, "/*to k*/ select 1"), "1");
    pooler.console("kill k")?;
    answer(client, "select 1");
    assert!(!client.is_open());
    Ok(())
}

#[test]
fn an_entry_that_goes_while_a_message_waits_ends_its_client() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (_server, _rules, pooler) = lab(
        "dev = SERVER dbname=postgres\nk = SERVER dbname=postgres pool_size=1\n",
        "workers = 2",
    )?;
    let holder = &mut Client::connect(pooler.port, "dev")?;
    assert_eq!(answer(holder, "/*to k*/ begin"), "");
    let port = pooler.port;
    let waiting = std::thread::spawn(move || -> io::Result<String> {
        Ok(answer(&mut Client::connect(port, "dev")?, "/*to k*/ select 'waited'"))
    });
    wait_until("a waiting client", || {
        let pools = pooler.console("show pools").unwrap_or_default();
        pools.lines().any(|row| row.starts_with("k|postgres|1|1|"))
    })?;
    let ini = std::fs::read_to_string(pooler.ini())?;
    let without = ini.lines().filter(|line| !line.starts_with("k = ")).collect::<Vec<_>>();
    std::fs::write(pooler.ini(), without.join("\n"))?;
    pooler.console("reload")?;
    let told = waiting.join().map_err(|_| io::Error::other("a panic"))??;
    assert!(told.contains("database removed"), "{told}");
    // Entries that a reload adds are found at once.
    std::fs::write(pooler.ini(), ini)?;
    pooler.console("reload")?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    assert_eq!(answer(client, "/*to k*/ select 1"), "1");
    Ok(())
}
