//! Several poolers that pass each other's cancel requests on.

use std::io::{self, Read};
use std::net::TcpListener;

use switchyard_testkit::{Pooler, Postgres, Raw, wait_until};
use switchyard_wire::build;
use switchyard_wire::startup::{VERSION_3_0, VERSION_3_2};

use crate::wanted;
use crate::wire::{Message::Query, Wire, bytes};

const SLEEP: &[crate::wire::Message<'static>] = &[Query("select pg_sleep(600)")];
const CANCELLED: &str = "T 57014 canceling statement due to user request ZI";

fn start(postgres: &Postgres, id: u16) -> io::Result<Pooler> {
    let entry = format!("postgres = host=127.0.0.1 port={}", postgres.port);
    let settings = format!("pool_mode = transaction\npeer_id = {id}\nworkers = 2");
    Pooler::start(crate::program(), &entry, &settings)
}

/// Names the peers of a pooler anew.
fn introduce(pooler: &Pooler, peers: &str) -> io::Result<()> {
    let ini = std::fs::read_to_string(pooler.ini())?;
    let own = ini.split("[peers]").next().unwrap_or_default();
    std::fs::write(pooler.ini(), format!("{own}[peers]\n{peers}\n"))?;
    pooler.console("reload").map(drop)
}

fn login(pooler: &Pooler, version: u32) -> io::Result<Wire> {
    let names = [("user", "postgres"), ("database", "postgres")];
    Wire::login_with(pooler.port, version, &names)
}

fn cancel(port: u16, key: &[u8]) -> io::Result<Wire> {
    let mut wire = Wire::connect(port)?;
    let mut request = Vec::new();
    build::cancel_request(&mut request, key);
    wire.send(&request)?;
    Ok(wire)
}

/// Waits for the end of a canceller's connection.
fn ended(mut wire: Wire) -> io::Result<()> {
    wire.stream.read(&mut [0; 1]).map(|count| assert_eq!(count, 0))
}

fn logged(pooler: &Pooler, text: &str) -> io::Result<usize> {
    Ok(pooler.log()?.lines().filter(|line| line.contains(text)).count())
}

#[test]
fn a_cancel_request_finds_its_client_behind_any_peer() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let postgres = Postgres::start("")?;
    let poolers = [start(&postgres, 1)?, start(&postgres, 300)?];
    let [one, other] = &poolers;
    let directory = other.ini().parent().map(|path| path.display().to_string());
    let hosts = ["127.0.0.1", "localhost", &directory.unwrap_or_default()];
    introduce(other, &format!("1 = host=127.0.0.1 port={}", one.port))?;
    for (round, host) in hosts.into_iter().enumerate() {
        introduce(one, &format!("1 = host=own\n300 = host={host} port={}", other.port))?;
        for version in [VERSION_3_0, VERSION_3_2] {
            for (owner, asked) in [(one, other), (other, one)] {
                let mut client = login(owner, version)?;
                client.send(&bytes(SLEEP))?;
                let running = "select count(*) from pg_stat_activity \
                               where state = 'active' and query = 'select pg_sleep(600)'";
                wait_until("query", || postgres.sql(running).is_ok_and(|n| n.trim() == "1"))?;
                ended(cancel(asked.port, &client.key)?)?;
                // Whoever hears the end knows that it has happened.
                assert_eq!(postgres.sql(running)?.trim(), "0", "{host}");
                assert_eq!(client.answers(1)?, CANCELLED);
            }
        }
        let sent = "successfully sent cancel request";
        let peer = format!("peer-1@127.0.0.1:{} closing because: {sent}", one.port);
        assert_eq!(logged(other, &peer)?, 2 * (round + 1));
    }
    assert_eq!(other.console("show peer_pools")?.trim(), "1|0|0|0|0");
    assert_eq!(one.console("show peer_pools")?.trim(), "300|0|0|0|0");
    assert!(one.console("show lists")?.contains("peer_pools|1"));
    // A key of one's own needs no peer.
    let mut client = login(one, VERSION_3_0)?;
    assert_eq!((client.key[1], client.key[2], client.key[7] & 3), (1, 0, 3));
    client.send(&bytes(SLEEP))?;
    wait_until("query", || {
        postgres
            .sql("select count(*) from pg_stat_activity where state = 'active'")
            .is_ok_and(|count| count.trim() == "2")
    })?;
    client.key[7] &= !3;
    ended(cancel(one.port, &client.key)?)?;
    assert_eq!(client.answers(1)?, CANCELLED);
    Ok(())
}

#[test]
fn requests_that_cannot_be_passed_on_end_for_a_reason() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let postgres = Postgres::start("")?;
    let pooler = start(&postgres, 1)?;
    // One peer is this pooler by mistake, one says nothing, and one is not there.
    let silent = TcpListener::bind(("127.0.0.1", 0))?;
    introduce(
        &pooler,
        &format!(
            "5 = host=127.0.0.1 port={}\n6 = host=127.0.0.1 port={} pool_size=1\n\
         7 = host=127.0.0.1 port=1\n8 = host=nowhere.invalid",
            pooler.port,
            silent.local_addr()?.port()
        ),
    )?;
    let key = |peer: u8| [1, peer, 0, 9, 9, 9, 9, 3];
    for (peer, count, reason) in [
        (5, 1, "failed to forward cancel request because its TTL was exhausted"),
        (5, 3, "closing because: successfully sent cancel request (age=0s)"),
        (9, 1, "could not find peer to forward request to"),
        (1, 1, "closing because: failed cancel request"),
    ] {
        if count == 1 {
            ended(cancel(pooler.port, &key(peer))?)?;
        }
        wait_until(reason, || logged(&pooler, reason).is_ok_and(|found| found >= count))?;
    }
    for (peer, reason) in [(7, "failed cancel request"), (8, "server DNS lookup failed")] {
        ended(cancel(pooler.port, &key(peer))?)?;
        assert!(logged(&pooler, "/(nouser)@")? > 0);
        wait_until(reason, || logged(&pooler, reason).is_ok_and(|found| found > 0))?;
    }
    // One request at a time, the others wait.
    let waiting = [cancel(pooler.port, &key(6))?, cancel(pooler.port, &key(6))?];
    wait_until("requests under way", || {
        pooler.console("show peer_pools").is_ok_and(|rows| rows.contains("\n6|1|1|1|0"))
    })?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let servers = switchyard_testkit::raw::rows(&console.query("show servers")?);
    let port = silent.local_addr()?.port();
    let row = format!("S|(nouser)|(nodb)|none|active_cancel|127.0.0.1|{port}|127.0.0.1|");
    assert_eq!(servers.iter().filter(|line| line.starts_with(&row)).count(), 1, "{servers:?}");
    introduce(&pooler, "")?;
    waiting.into_iter().try_for_each(ended)?;
    assert_eq!(logged(&pooler, "closing because: peer removed")?, 3, "two clients, one server");
    assert_eq!(logged(&pooler, "dropping peer 6 as it does not exist anymore")?, 1);
    assert_eq!(pooler.console("show peer_pools")?.trim(), "");
    Ok(())
}
