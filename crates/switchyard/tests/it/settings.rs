//! Keys that no other topic has: what each does in a file, by SET, and after a RELOAD.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use switchyard_testkit::raw::transcript;
use switchyard_testkit::{Model, Pooler, Raw, wait_until};

use super::{program, start, wanted};

const USER: [(&str, &str); 2] = [("user", "postgres"), ("database", "postgres")];

/// A server that remembers what it is asked.
fn attentive() -> io::Result<(Model, impl Fn(&str) -> usize)> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let model = Model::start(move |peer| {
        peer.welcome()?;
        loop {
            let (_, body) = peer.message()?;
            let text = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned();
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            peer.row("x")?;
            peer.ready('I')?;
        }
    })?;
    let count = move |sql: &str| {
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|text| *text == sql).count()
    };
    Ok((model, count))
}

#[test]
fn what_is_told_about_connections_can_be_chosen() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let settings = "log_connections = 0\nlog_disconnections = 0\nlog_pooler_errors = 0";
    let (_postgres, pooler) = start(settings)?;
    let refused = || {
        let stranger = Raw::console(pooler.port, "app")?;
        assert_eq!(transcript(&stranger.greeting), "E SFATAL C08P01 Mnot allowed\n");
        pooler.log()
    };
    let lines = [
        (" login attempt: db=pgbouncer user=app", "log_connections"),
        (" closing because: not allowed (age=", "log_disconnections"),
        (" WARNING C-0x", "log_pooler_errors"),
    ];
    let log = refused()?;
    for (line, key) in lines {
        assert!(!log.contains(line), "{key} {log}");
    }
    for at in 0..lines.len() {
        pooler.console(&format!("set {} = 1", lines[at].1))?;
        let before = pooler.log()?.len();
        let log = refused()?.split_off(before);
        for (index, (line, key)) in lines.iter().enumerate() {
            assert_eq!(log.contains(line), index <= at, "{key} {log}");
        }
    }
    pooler.console("reload")?;
    let before = pooler.log()?.len();
    assert_eq!(refused()?.split_off(before), "");
    Ok(())
}

#[test]
fn everybody_who_is_welcome_reads_the_notice() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = start("login_notify_message = Mind the gap")?;
    let notice = "N SNOTICE C00000 MMind the gap\nZ I\n";
    let greetings = || {
        let (client, console) =
            (Raw::connect(pooler.port, &USER)?, Raw::console(pooler.port, "postgres")?);
        Ok::<_, io::Error>([client, console].map(|raw| transcript(&raw.greeting)))
    };
    assert!(greetings()?.iter().all(|text| text.ends_with(notice)), "{:?}", greetings()?);
    pooler.console("set login_notify_message = ''")?;
    assert!(greetings()?.iter().all(|text| !text.contains("N S")), "{:?}", greetings()?);
    Ok(())
}

#[test]
fn servers_are_reset_as_often_and_by_what_is_wanted() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (model, count) = attentive()?;
    let entry = format!("postgres = host=127.0.0.1 port={}", model.port);
    let pooler = Pooler::start(program(), &entry, "workers = 1\nserver_reset_query = wash")?;
    let run = || Raw::connect(pooler.port, &USER)?.query("select").map(drop);
    let reset = |sql: &str, times: usize| wait_until(sql, || count(sql) == times);
    run()?;
    reset("wash", 1)?;
    pooler.console("set server_reset_query = 'rinse'")?;
    run()?;
    reset("rinse", 1)?;
    pooler.console("set pool_mode = transaction")?;
    run()?;
    pooler.console("set server_reset_query_always = 1")?;
    run()?;
    reset("rinse", 2)?;
    pooler.console("set server_reset_query = ''")?;
    run()?;
    run()?;
    assert_eq!((count("wash"), count("rinse"), count("select")), (1, 2, 6));
    Ok(())
}

#[test]
fn sessions_part_early_with_servers_that_are_to_go() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = start("pool_mode = session")?;
    let session = || Raw::connect(pooler.port, &USER);
    let (mut busy, mut idle) = (session()?, session()?);
    busy.query("begin")?;
    idle.query("select 1")?;
    pooler.console("reconnect")?;
    idle.query("select 1")?;
    pooler.console("set server_fast_close = 1")?;
    let fatal = "E SFATAL C08P01 Mdatabase configuration changed\n";
    assert_eq!(transcript(&idle.answer()?), fatal);
    let told = transcript(&busy.query("select 1")?);
    assert!(told.ends_with("Z T\n"), "{told}");
    let told = [busy.query("commit")?, busy.answer()?].concat();
    assert_eq!(transcript(&told), format!("C COMMIT\nZ I\n{fatal}"));
    Ok(())
}

#[test]
fn failed_logins_are_tried_again_soon_if_asked_for() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let model = Model::start(|peer| match peer.number {
        0..3 => peer.error(&["SFATAL", "C53300", "Mtoo many"]),
        _ => peer.welcome().and_then(|()| peer.serve("x")),
    })?;
    let entry = format!("postgres = host=127.0.0.1 port={}", model.port);
    // A client that waited for the usual pause would be closed.
    let settings = "query_wait_timeout = 10";
    let pooler = Pooler::start(program(), &entry, settings)?;
    let refused = transcript(&Raw::connect(pooler.port, &USER)?.greeting);
    assert_eq!(refused, "E SFATAL C53300 Mtoo many\n");
    pooler.console("set server_login_backoff = 1")?;
    wait_until("a login", || {
        let client = Raw::connect(pooler.port, &USER);
        client.is_ok_and(|raw| transcript(&raw.greeting).ends_with("Z I\n"))
    })?;
    assert_eq!(model.accepted(), 4);
    Ok(())
}

/// Timers of TCP connections with this port at the near or at the far end: which one runs, and for
/// how many hundredths of a second (proc(5), `/proc/net/tcp`).
fn timers(port: u16, near: bool) -> io::Result<Vec<(u8, u64)>> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let end = format!(":{port:04X}");
    let timer = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (&address, &state) = (words.get(if near { 1 } else { 2 })?, words.get(3)?);
        let (kind, rest) = words.get(5)?.split_once(':')?;
        let found = (kind.parse().ok()?, u64::from_str_radix(rest, 16).ok()?);
        (address.ends_with(&end) && state == "01").then_some(found)
    };
    Ok(table.lines().filter_map(timer).collect())
}

#[test]
fn keepalives_reach_both_sides() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    const KEEPALIVE: u8 = 2;
    let (postgres, pooler) = start("tcp_keepidle = 77\ntcp_keepintvl = 7\ntcp_keepcnt = 3")?;
    let mut client = Raw::connect(pooler.port, &USER)?;
    client.query("select 1")?;
    let due = |port, near| {
        // The longest that any other setting of the system has is two hours.
        let fits = |(kind, rest): &(u8, u64)| *kind == KEEPALIVE && *rest <= 7_700;
        timers(port, near).is_ok_and(|found| !found.is_empty() && found.iter().all(fits))
    };
    wait_until("clients' sockets", || due(pooler.port, true))?;
    wait_until("servers' sockets", || due(postgres.port, false))?;
    drop(client);
    pooler.console("set tcp_keepalive = 0")?;
    pooler.console("reconnect")?;
    wait_until("end", || timers(postgres.port, false).is_ok_and(|found| found.is_empty()))?;
    let mut client = Raw::connect(pooler.port, &USER)?;
    client.query("select 1")?;
    let without = |port, near| {
        timers(port, near).is_ok_and(|found| !found.is_empty() && found.iter().all(|it| it.0 == 0))
    };
    wait_until("clients' sockets", || without(pooler.port, true))?;
    wait_until("servers' sockets", || without(postgres.port, false))
}
