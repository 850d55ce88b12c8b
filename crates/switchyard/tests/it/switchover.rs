//! A cluster of real servers that loses its writer.

use std::io;
use std::time::{Duration, Instant};

use switchyard_testkit::{Client, Pooler, Postgres, wait_until};

/// A writer with its nodes listed in a table, two standbys, and the pooler in front.
fn cluster(settings: &str) -> io::Result<([Postgres; 3], Pooler)> {
    let first = Postgres::start("")?;
    let (second, third) = (first.standby()?, first.standby()?);
    first.sql(&format!(
        "create table nodes (endpoint text, port int); create table t (x int); \
         insert into nodes values ('127.0.0.1', {}), ('127.0.0.1', {}), ('127.0.0.1', {})",
        first.port, second.port, third.port
    ))?;
    let databases = format!(
        "app = host=127.0.0.1 port={} dbname=postgres user=postgres \
         topology_query='select endpoint, port from nodes'",
        first.port
    );
    let pooler = Pooler::start(super::program(), &databases, settings)?;
    wait_until("readers", || {
        pooler.log().is_ok_and(|log| log.matches("up as reader").count() == 2)
    })?;
    Ok(([first, second, third], pooler))
}

const PORT: &str = "select inet_server_port()";

#[test]
fn an_idle_client_goes_on_with_the_new_writer() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let ([first, second, third], pooler) = cluster("pool_mode = transaction")?;
    let mut writer = pooler.session("postgres", "app")?;
    let mut reader = pooler.session("postgres", "app@reader")?;
    assert_eq!(writer.run(PORT)?, first.port.to_string());
    let read = reader.run(PORT)?;
    assert!(read == second.port.to_string() || read == third.port.to_string(), "{read}");

    first.kill()?;
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    let held = std::thread::spawn(move || {
        let port = writer.run(PORT);
        (port, Instant::now(), writer)
    });
    let mut held_too = pooler.session("postgres", "app")?;
    second.promote()?;
    let (port, _, mut writer) = held.join().map_err(|_| io::Error::other("a panic"))?;
    assert_eq!(port?, second.port.to_string());
    assert_eq!(held_too.run(PORT)?, second.port.to_string());
    writer.run("insert into t values (1)")?;
    assert_eq!(writer.run("select count(*) from t")?, "1");
    assert_eq!(reader.run(PORT)?, third.port.to_string());

    let row = pooler.console("show clusters")?;
    assert!(row.starts_with("app|ok|"), "{row}");
    assert_eq!(pooler.console("show nodes")?.lines().count(), 3);
    // A pool to a standby has a row of its own, with its linked client.
    reader.run("begin")?;
    let pools = pooler.console("show pools")?;
    let linked = |row: &&str| row.starts_with("app@") && row.contains("|postgres|1|0|0|0|1|");
    assert_eq!(pools.lines().filter(linked).count(), 1, "{pools}");
    assert_eq!(pools.lines().filter(|row| row.starts_with("app|")).count(), 1, "{pools}");
    reader.run("commit")?;
    let changes = pooler.console("show switchovers")?;
    assert!(changes.contains("|failover|") && changes.lines().count() == 1, "{changes}");

    pooler.console("reload")?;
    assert_eq!(writer.run(PORT)?, second.port.to_string());
    let log = pooler.log()?;
    assert!(log.contains("released "), "{log}");
    assert!(log.contains(&format!("(127.0.0.1:{}), timeline 2, after", second.port)), "{log}");
    Ok(())
}

#[test]
fn a_restart_in_place_is_waited_for() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let ([first, ..], pooler) = cluster("pool_mode = transaction")?;
    let mut client = pooler.session("postgres", "app")?;
    assert_eq!(client.run(PORT)?, first.port.to_string());
    first.stop("fast")?;
    let started = Instant::now();
    let waiting = std::thread::spawn(move || client.run(PORT));
    first.launch()?;
    let port = waiting.join().map_err(|_| io::Error::other("a panic"))?;
    assert_eq!(port?, first.port.to_string());
    assert!(started.elapsed() < Duration::from_secs(20));
    Ok(())
}

#[test]
fn a_client_in_a_transaction_stays_and_is_told_once() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let ([first, second, _third], pooler) = cluster("pool_mode = transaction")?;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(Client::connect(pooler.port, "app")?);
    }
    let [writing, begun] = &mut clients[..] else { return Ok(()) };
    writing.run("begin")?;
    writing.run("insert into t values (1)")?;
    begun.run("begin")?;

    first.kill()?;
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    let told = |client: &mut Client, sql: &str| client.run(sql).unwrap_err().to_string();
    let text = told(writing, "insert into t values (2)");
    // The server's own last words, where it had time for any.
    assert!(["08006", "57P01"].iter().any(|code| text.starts_with(code)), "{text}");
    assert!(told(writing, "insert into t values (3)").starts_with("25P02 "));
    writing.run("rollback")?;

    second.promote()?;
    // Nothing had followed its BEGIN, so that its block is begun again.
    assert_eq!(begun.run("select now() = statement_timestamp()")?, ["f"]);
    begun.run("insert into t values (4)")?;
    begun.run("commit")?;
    assert_eq!(writing.run("select x, inet_server_port() from t")?, [format!("4|{}", second.port)]);
    Ok(())
}
