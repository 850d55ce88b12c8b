//! Commands and what they do to clients and servers.

use std::io;

use switchyard_testkit::{Pooler, Raw, raw, wait_until};

use super::{row, rows, told};

fn client(pooler: &Pooler) -> io::Result<Raw> {
    Raw::connect(pooler.port, &[("user", "app"), ("database", "postgres")])
}

#[test]
fn pause_waits_for_transactions_and_cancel_undoes_it() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = crate::start("pool_mode = transaction\nworkers = 2")?;
    let mut busy = client(&pooler)?;
    busy.query("begin")?;
    let mut waiting = Raw::console(pooler.port, "postgres")?;
    let mut other = Raw::console(pooler.port, "postgres")?;
    for (command, state) in [("pause", "D paused|yes"), ("pause postgres", "D paused|no")] {
        waiting.ask(command)?;
        wait_until("pause", || pooler.log().is_ok_and(|log| log.contains("PAUSE")))?;
        wait_until("state", || told(&mut other, "show state").is_ok_and(|s| s.contains(state)))?;
        waiting.cancel()?;
        assert_eq!(raw::transcript(&waiting.answer()?), "C PAUSE\nZ I\n");
        assert!(told(&mut other, "show state")?.contains("D active|yes"));
        assert_eq!(row(&mut other, "show databases", "postgres|")?[15], "0");
    }
    waiting.ask("pause")?;
    wait_until("state", || {
        told(&mut other, "show state").is_ok_and(|state| state.contains("D paused|yes"))
    })?;
    let mut queued = client(&pooler)?;
    queued.ask("select 2")?;
    busy.query("commit")?;
    assert_eq!(raw::transcript(&waiting.answer()?), "C PAUSE\nZ I\n");
    assert!(rows(&mut other, "show servers")?.is_empty());
    assert_eq!(told(&mut other, "resume")?, "C RESUME\nZ I\n");
    assert!(raw::transcript(&queued.answer()?).contains("D 2\n"));
    // One who leaves while a command waits is gone at once.
    busy.query("begin")?;
    waiting.ask("pause postgres")?;
    wait_until("pause", || {
        row(&mut other, "show databases", "postgres|").is_ok_and(|row| row[15] == "1")
    })?;
    drop(waiting);
    wait_until("end of a console", || {
        rows(&mut other, "show clients")
            .is_ok_and(|rows| rows.iter().filter(|row| row.contains("|pgbouncer|")).count() == 1)
    })
}

#[test]
fn reconnect_renews_servers_and_wait_close_waits_for_it() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = crate::start("pool_mode = transaction\nworkers = 2")?;
    let mut busy = client(&pooler)?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let mut waiting = Raw::console(pooler.port, "postgres")?;
    let before = row(&mut console, "show servers", "S|")?[20].clone();
    assert_eq!(told(&mut console, "wait_close")?, "C WAIT_CLOSE\nZ I\n");
    busy.query("begin")?;
    assert_eq!(told(&mut console, "reconnect postgres")?, "C RECONNECT\nZ I\n");
    assert_eq!(row(&mut console, "show servers", "S|")?[13], "1", "close_needed");
    waiting.ask("wait_close postgres")?;
    wait_until("command", || {
        pooler.log().is_ok_and(|log| log.contains("LOG WAIT_CLOSE 'postgres' command issued"))
    })?;
    assert_eq!(told(&mut console, "wait_close unix")?, "C WAIT_CLOSE\nZ I\n");
    busy.query("commit")?;
    assert_eq!(raw::transcript(&waiting.answer()?), "C WAIT_CLOSE\nZ I\n");
    busy.query("select 1")?;
    let after = row(&mut console, "show servers", "S|")?;
    assert!(after[20] != before && after[13] == "0", "{after:?}");
    Ok(())
}

#[test]
fn kill_closes_everything_and_resume_undoes_it() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = crate::start("pool_mode = transaction\nworkers = 2")?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let mut clients = vec![client(&pooler)?, client(&pooler)?, client(&pooler)?];
    // One server is idle, one is in a transaction.
    clients[1].query("begin")?;
    clients[0].query("begin")?;
    clients[1].query("rollback")?;
    let before = row(&mut console, "show totals", "total_xact_count|")?;
    assert_eq!(told(&mut console, "kill postgres")?, "C KILL\nZ I\n");
    for client in &mut clients {
        let said = raw::transcript(&client.answer()?);
        assert_eq!(said, "E SFATAL C08P01 Mdatabase removed\n");
    }
    assert!(rows(&mut console, "show servers")?.is_empty());
    assert_eq!(pooler.log()?.matches("closing because: database removed").count(), 5);
    wait_until("end of the clients", || {
        row(&mut console, "show databases", "postgres|").is_ok_and(|row| row[14] == "0")
    })?;
    let found = row(&mut console, "show databases", "postgres|")?;
    assert_eq!(found[15], "1", "paused");
    // What was counted is not lost with the pools.
    assert_eq!(row(&mut console, "show totals", "total_xact_count|")?, before);
    assert_eq!(told(&mut console, "resume postgres")?, "C RESUME\nZ I\n");
    pooler.sql("app", "postgres", "select 1")?;
    assert_eq!(row(&mut console, "show stats_totals", "postgres|")?[2], "3");
    Ok(())
}

#[test]
fn kill_client_ends_one_client_and_its_server() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = crate::start("pool_mode = session\nworkers = 2")?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let mut victim = client(&pooler)?;
    victim.query("begin")?;
    let id = row(&mut console, "show clients", "C|app|")?[20].clone();
    for (command, text) in [
        ("kill_client x".to_owned(), "invalid client pointer supplied"),
        ("kill_client".to_owned(), "invalid client pointer supplied"),
        ("kill_client 4000000".to_owned(), "client not found"),
    ] {
        let said = told(&mut console, &command)?;
        assert_eq!(said, format!("E SERROR C08P01 M{text}\nZ I\n"));
    }
    assert_eq!(told(&mut console, &format!("kill_client {id}"))?, "C KILL_CLIENT\nZ I\n");
    let said = raw::transcript(&victim.answer()?);
    assert_eq!(said, "E SFATAL C08P01 Madmin forced disconnect\n");
    assert!(rows(&mut console, "show servers")?.is_empty());
    assert!(pooler.log()?.contains("closing because: admin forced disconnect"));
    Ok(())
}

#[test]
fn settings_change_until_the_next_reload() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let pooler = Pooler::start(crate::program(), "a = host=127.0.0.1 port=1", "")?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let said = told(&mut console, "set default_pool_size to 7")?;
    assert_eq!(said, "C SET default_pool_size=7\nZ I\n");
    let value = |console: &mut Raw| row(console, "show config", "default_pool_size|");
    assert_eq!(value(&mut console)?[1..], ["7", "20", "yes"]);
    assert_eq!(row(&mut console, "show databases", "a|")?[5], "7");
    assert_eq!(
        told(&mut console, "set default_pool_size = x")?,
        "E SERROR C08P01 MSET failed\nZ I\n"
    );
    assert_eq!(told(&mut console, "reload")?, "C RELOAD\nZ I\n");
    assert_eq!(value(&mut console)?[1], "20");
    std::fs::write(pooler.ini(), "[pgbouncer]\nnonsense = 1\n")?;
    let failed = "E SERROR CF0000 MRELOAD failed, see logs for additional details\nZ I\n";
    assert_eq!(told(&mut console, "reload")?, failed);
    assert!(pooler.log()?.contains("ERROR RELOAD Failed, see logs for more details"));
    Ok(())
}
