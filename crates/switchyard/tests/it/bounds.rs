//! Peers that send too much, too little or nothing: they get what they are owed, nobody else waits
//! for them, and memory stays bounded.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use switchyard_testkit::{Pooler, Postgres, wait_until};

use crate::wanted;
use crate::wire::{Message::*, Wire, bytes};

const KIB: u64 = 1024;

fn lab(settings: &str) -> io::Result<(Postgres, TcpListener, Pooler)> {
    let postgres = Postgres::start("")?;
    let mute = TcpListener::bind(("127.0.0.1", 0))?;
    let entries = format!(
        "postgres = host=127.0.0.1 port={}\nmute = host=127.0.0.1 port={}",
        postgres.port,
        mute.local_addr()?.port()
    );
    let settings = format!("pool_mode = transaction\n{settings}");
    let pooler = Pooler::start(crate::program(), &entries, &settings)?;
    Ok((postgres, mute, pooler))
}

fn others_work(pooler: &Pooler) -> io::Result<()> {
    let mut other = Wire::login(pooler.port, "postgres")?;
    for _ in 0..10 {
        assert_eq!(other.ask(&[Query("select 1")])?, "T <1> SELECT 1 ZI");
    }
    Ok(())
}

#[test]
fn names_of_any_length_are_names() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, _mute, pooler) = lab("default_pool_size = 2")?;
    let (one, two) = ("n".repeat(64 << 10), format!("{}m", "n".repeat(64 << 10)));
    let mut client = Wire::login(pooler.port, "postgres")?;
    let parses = [Parse(&one, "select 1"), Parse(&two, "select 2"), Sync];
    assert_eq!(client.ask(&parses)?, "1 1 ZI");
    // Another server, which has neither.
    let mut holder = Wire::login(pooler.port, "postgres")?;
    holder.ask(&[Query("begin")])?;
    for _ in 0..2 {
        let binds = [Bind(&one, &[]), Execute, Bind(&two, &[]), Execute, Sync];
        assert_eq!(client.ask(&binds)?, "2 <1> SELECT 1 2 <2> SELECT 1 ZI");
    }
    assert_eq!(client.ask(&[Close(&one), Sync])?, "3 ZI");
    assert!(client.ask(&[Bind(&one, &[]), Sync])?.contains("prepared statement did not exist"));
    // A name without an end is no name: memory for it is bounded.
    let before = pooler.resident()?;
    let mut endless = Wire::login(pooler.port, "postgres")?;
    endless.send(b"B\x3f\xff\xff\xff\0")?;
    let chunk = vec![b'n'; 1 << 20];
    let mut refused = false;
    for _ in 0..64 {
        refused = refused || endless.send(&chunk).is_err();
    }
    let told = endless.answers(1).unwrap_or_default();
    assert!(refused || told.contains("end"), "{told}");
    let grown = pooler.resident()?.saturating_sub(before);
    assert!(grown < 16 * KIB, "{grown} KiB");
    others_work(&pooler)
}

#[test]
fn a_gigabyte_that_is_promised_costs_what_has_come() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, _mute, pooler) = lab("default_pool_size = 5")?;
    let before = pooler.resident()?;
    let mut clients = Vec::new();
    for head in [&b"Q\x3f\xff\0\0select '"[..], b"B\x3f\xff\0\0\0\0\0\0\0\x01\x3f\0\0\0"] {
        let mut client = Wire::login(pooler.port, "postgres")?;
        assert_eq!(client.ask(&[Parse("", "select $1::text"), Sync])?, "1 ZI");
        client.send(head)?;
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..32 {
            client.send(&chunk)?;
        }
        clients.push(client);
    }
    let grown = pooler.resident()?.saturating_sub(before);
    assert!(grown < 8 * KIB, "{grown} KiB");
    others_work(&pooler)?;
    // Their servers end with them: half a message is with each.
    drop(clients);
    wait_until("the end of both servers", || {
        let text = "client disconnect before everything was sent to the server";
        pooler.log().is_ok_and(|log| log.matches(text).count() == 2)
    })
}

#[test]
fn a_million_messages_in_a_row_are_answered() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, _mute, pooler) = lab("")?;
    let before = pooler.resident()?;
    let mut client = Wire::login(pooler.port, "postgres")?;
    let mut writer = client.writer()?;
    let sender = std::thread::spawn(move || {
        let chunk = bytes(&[Close("x")]).repeat(10_000);
        (0..100).try_for_each(|_| writer.send(&chunk))?;
        writer.send(&bytes(&[Sync]))
    });
    let mut closed = 0;
    while client.message()?.0 == b'3' {
        closed += 1;
    }
    sender.join().map_err(|_| io::Error::other("a panic"))??;
    assert_eq!(closed, 1_000_000);
    let grown = pooler.resident()?.saturating_sub(before);
    assert!(grown < 16 * KIB, "{grown} KiB");
    Ok(())
}

#[test]
fn servers_that_say_nothing_hold_up_their_own_clients_only() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let settings = "default_pool_size = 3\nserver_connect_timeout = 600\nworkers = 2";
    let (_postgres, mute, pooler) = lab(settings)?;
    others_work(&pooler)?;
    let before = pooler.resident()?;
    let startup = b"\0\0\0\x25\0\x03\0\0user\0postgres\0database\0mute\0\0";
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(("127.0.0.1", pooler.port))?;
        io::Write::write_all(&mut stream, &startup[..])?;
        waiting.push(stream);
    }
    // Servers that accept and never answer; those in the listener's queue are not even accepted.
    let (connection, _) = mute.accept()?;
    wait_until("waiting logins", || {
        pooler.console("show pools").is_ok_and(|pools| pools.contains("mute|postgres|0|50|"))
    })?;
    let started = Instant::now();
    others_work(&pooler)?;
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let grown = pooler.resident()?.saturating_sub(before);
    assert!(grown < 4 * KIB, "{grown} KiB");
    // Nothing of them stays.
    drop((waiting, connection));
    wait_until("the end of the logins", || {
        pooler.console("show pools").is_ok_and(|pools| pools.contains("mute|postgres|0|0|"))
    })
}

#[test]
fn who_does_not_read_its_last_bytes_goes_without_them() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, _mute, pooler) = lab("default_pool_size = 1\nquery_timeout = 1")?;
    let mut client = Wire::login(pooler.port, "postgres")?;
    client.send(&bytes(&[Query("select repeat('x', 1000) from generate_series(1, 1000000)")]))?;
    wait_until("its end", || {
        pooler.log().is_ok_and(|log| log.contains("closing because: query timeout"))
    })?;
    // It keeps nothing from others, and is not counted for ever.
    wait_until("its connection's end", || {
        let rows = pooler.console("show databases").unwrap_or_default();
        let row = rows.lines().find(|row| row.starts_with("postgres|")).unwrap_or_default();
        row.split('|').nth(14) == Some("0")
    })?;
    others_work(&pooler)
}
