//! SUSPEND and what ends it.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use switchyard_testkit::{Raw, raw, wait_until};

use super::told;

#[test]
fn a_suspended_pooler_rests_until_resume() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = crate::start("pool_mode = transaction\nworkers = 2")?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Raw::connect(pooler.port, &[("user", "app"), ("database", "postgres")])?);
    }
    clients[0].query("begin")?;
    told(&mut console, "pause nowhere")?;
    let refused = "E SERROR C08P01 Mcannot suspend with paused databases\nZ I\n";
    assert_eq!(told(&mut console, "suspend")?, refused);
    told(&mut console, "resume nowhere")?;
    assert_eq!(told(&mut console, "suspend")?, "C SUSPEND\nZ I\n");
    assert!(pooler.log()?.contains("LOG SUSPEND command issued"));
    let state = told(&mut console, "show state")?;
    assert!(state.contains("D suspended|yes") && state.contains("D active|no"), "{state}");
    for client in &mut clients {
        client.ask("select 1")?;
    }
    // The kernel takes the connection; nobody reads from it.
    let mut late = TcpStream::connect(("127.0.0.1", pooler.port))?;
    late.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f")?;
    // The console works on, and so many questions later nobody else was served.
    for _ in 0..20 {
        told(&mut console, "show clients")?;
    }
    assert_eq!(super::rows(&mut console, "show clients")?.len(), 5);
    let stats = super::row(&mut console, "show stats_totals", "postgres|")?;
    assert_eq!(stats[3], "1", "only BEGIN was seen");
    assert_eq!(told(&mut console, "resume")?, "C RESUME\nZ I\n");
    for client in &mut clients {
        assert!(raw::transcript(&client.answer()?).contains("D 1\n"));
    }
    let mut answer = [0; 1];
    late.read_exact(&mut answer)?;
    assert_eq!(&answer, b"N");
    Ok(())
}

#[test]
fn the_last_console_to_leave_resumes() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = crate::start("pool_mode = transaction")?;
    let mut client = Raw::connect(pooler.port, &[("user", "app"), ("database", "postgres")])?;
    let mut first = Raw::console(pooler.port, "postgres")?;
    let second = Raw::console(pooler.port, "postgres")?;
    told(&mut first, "suspend")?;
    drop(second);
    wait_until("end of a console", || {
        super::rows(&mut first, "show clients").is_ok_and(|rows| rows.len() == 2)
    })?;
    client.ask("select 1")?;
    assert!(told(&mut first, "show state")?.contains("D suspended|yes"));
    drop(first);
    assert!(raw::transcript(&client.answer()?).contains("D 1\n"));
    assert!(pooler.log()?.contains("LOG admin disappeared when suspended, doing RESUME"));
    Ok(())
}

#[test]
fn who_takes_nothing_is_closed_after_suspend_timeout() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = crate::start("pool_mode = transaction\nsuspend_timeout = 1")?;
    let mut client = Raw::connect(pooler.port, &[("user", "app"), ("database", "postgres")])?;
    client.ask("select repeat('x', 1000000) from generate_series(1, 100)")?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    // The system takes more and more as long as it finds room: full is what stays as it is.
    let mut seen = (String::new(), 0);
    wait_until("full socket", || {
        let rows = super::rows(&mut console, "show active_sockets").unwrap_or_default();
        let row = rows.iter().find(|row| row.starts_with("C|app|"));
        let remain = row.and_then(|row| row.split('|').nth(25)).unwrap_or("0").to_owned();
        let count = if remain != "0" && remain == seen.0 { seen.1 + 1 } else { 0 };
        seen = (remain, count);
        count == 50
    })?;
    assert_eq!(told(&mut console, "suspend")?, "C SUSPEND\nZ I\n");
    assert!(pooler.log()?.contains("closing because: suspend_timeout"));
    told(&mut console, "resume")?;
    pooler.sql("app", "postgres", "select 1")?;
    Ok(())
}
