//! Every time limit: what its end looks like to the client, to the server and in the log.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use switchyard_testkit::{Pooler, Postgres, wait_until};
use switchyard_wire::build;

use crate::wanted;
use crate::wire::{Message::*, Wire, bytes};

/// All limits that a row of the table may set, off.
const OFF: [&str; 8] = [
    "client_login_timeout",
    "client_idle_timeout",
    "query_wait_timeout",
    "query_timeout",
    "idle_transaction_timeout",
    "transaction_timeout",
    "cancel_wait_timeout",
    "pause_stops_query_wait",
];
const SLEEP: &str = "select pg_sleep(600)";

struct Lab {
    postgres: Postgres,
    pooler: Pooler,
    /// A server that accepts and says nothing.
    mute: TcpListener,
}

impl Lab {
    fn new(settings: &str) -> io::Result<Self> {
        let postgres = Postgres::start("")?;
        postgres.sql("create role app login")?;
        let mute = TcpListener::bind(("127.0.0.1", 0))?;
        let entries = format!(
            "postgres = host=127.0.0.1 port={0}\n\
             session = host=127.0.0.1 port={0} dbname=postgres pool_mode=session\n\
             forced = host=127.0.0.1 port={0} dbname=postgres user=app\n\
             mute = host=127.0.0.1 port={1}",
            postgres.port,
            mute.local_addr()?.port()
        );
        let settings = format!("pool_mode = transaction\ndefault_pool_size = 1\n{settings}");
        let pooler = Pooler::start(crate::program(), &entries, &settings)?;
        let lab = Lab { postgres, pooler, mute };
        lab.set("")?;
        Ok(lab)
    }

    /// Turns all limits off but this one.
    fn set(&self, limit: &str) -> io::Result<()> {
        for name in OFF {
            self.pooler.console(&format!("set {name} = 0"))?;
        }
        if !limit.is_empty() {
            self.pooler.console(&format!("set {limit}"))?;
        }
        Ok(())
    }

    fn login(&self, database: &str) -> io::Result<Wire> {
        Wire::login(self.pooler.port, database)
    }

    /// A client that does not wait for its welcome.
    fn knock(&self, database: &str) -> io::Result<Wire> {
        let mut wire = Wire::connect(self.pooler.port)?;
        let mut startup = Vec::new();
        let parameters = [(&b"user"[..], &b"postgres"[..]), (b"database", database.as_bytes())];
        build::startup(&mut startup, 0x0003_0000, parameters.into_iter());
        wire.send(&startup)?;
        Ok(wire)
    }

    /// Whether the log has lines of this side with this text.
    fn logged(&self, side: char, text: &str) -> io::Result<usize> {
        let log = self.pooler.log()?;
        let own = |line: &&str| line.contains(&format!(" {side}-0x")) && line.contains(text);
        Ok(log.lines().filter(own).count())
    }

    /// What the client is told, and that the log says so of it, and of its server if that goes
    /// with it.
    fn ends(&self, client: &mut Wire, reason: &str, server: bool) -> io::Result<()> {
        let told = client.answers(usize::MAX)?;
        assert!(told.ends_with(&format!("08P01 {reason} end")), "{reason}: {told}");
        let line = format!("closing because: {reason} (age=");
        assert_eq!(self.logged('C', &line)?, 1, "{reason}");
        assert_eq!(self.logged('C', &format!("pooler error: {reason}"))?, 1, "{reason}");
        assert_eq!(self.logged('S', &line)?, usize::from(server), "{reason}");
        Ok(())
    }

    /// Queries that run on the server.
    fn running(&self) -> usize {
        let sql = "select count(*) from pg_stat_activity \
                   where state = 'active' and query like 'select pg_sleep%'";
        self.postgres.sql(sql).map_or(usize::MAX, |n| n.trim().parse().unwrap_or(usize::MAX))
    }
}

/// Lets a time pass that is the subject of a test.
fn pass(seconds: f64) {
    sleep(Duration::from_secs_f64(seconds));
}

#[test]
fn every_limit_of_a_client_without_a_server() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let lab = Lab::new("")?;
    lab.set("client_login_timeout = 1")?;
    // The kernel keeps connections to itself until their first byte.
    let mut silent = Wire::connect(lab.pooler.port)?;
    silent.send(&[0, 0])?;
    lab.ends(&mut silent, "client_login_timeout", false)?;
    let mut welcome = lab.knock("mute")?;
    lab.ends(&mut welcome, "client_login_timeout (server down)", false)?;

    lab.set("client_idle_timeout = 1")?;
    let started = Instant::now();
    let mut idle = lab.login("postgres")?;
    assert_eq!(idle.ask(&[Query("select 1")])?, "T <1> SELECT 1 ZI");
    lab.ends(&mut idle, "client_idle_timeout", false)?;
    assert!(started.elapsed() > Duration::from_secs(1), "{:?}", started.elapsed());

    lab.set("")?;
    let mut holder = lab.login("postgres")?;
    holder.ask(&[Query("begin")])?;
    // What is a query's time begins with the query, not with the connection.
    for (limit, reason) in
        [("query_wait_timeout = 1", "query_wait_timeout"), ("query_timeout = 1", "query_timeout")]
    {
        let mut waiter = lab.login("postgres")?;
        lab.set(limit)?;
        if limit.starts_with("query_timeout") {
            holder = lab.login("postgres")?;
            holder.ask(&[Query("begin")])?;
        }
        let started = Instant::now();
        waiter.send(&bytes(&[Query("select 1")]))?;
        lab.ends(&mut waiter, reason, false)?;
        assert!(started.elapsed() > Duration::from_secs(1), "{:?}", started.elapsed());
    }
    // The one in a transaction is none of that limit's business.
    assert_eq!(holder.ask(&[Query("commit")])?, "COMMIT ZI");
    Ok(())
}

#[test]
fn a_paused_pool_counts_for_waiting_unless_told_otherwise() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let lab = Lab::new("")?;
    lab.pooler.console("pause postgres")?;
    lab.set("query_wait_timeout = 1")?;
    let mut waiter = lab.knock("postgres")?;
    lab.ends(&mut waiter, "query_wait_timeout", false)?;
    // A login that waits is under both limits of waiting.
    lab.set("query_timeout = 1")?;
    let mut waiter = lab.knock("postgres")?;
    lab.ends(&mut waiter, "query_timeout", false)?;
    lab.set("query_wait_timeout = 1")?;
    lab.pooler.console("resume postgres")?;
    let mut waiter = lab.login("postgres")?;
    let mut other = lab.login("postgres")?;
    lab.pooler.console("pause postgres")?;
    lab.pooler.console("set pause_stops_query_wait = 1")?;
    waiter.send(&bytes(&[Query("select 1")]))?;
    pass(2.0);
    lab.pooler.console("resume postgres")?;
    assert_eq!(waiter.answers(1)?, "T <1> SELECT 1 ZI");
    // What is waited outside of pauses counts still.
    waiter.ask(&[Query("begin")])?;
    other.send(&bytes(&[Query("select 1")]))?;
    assert!(other.answers(1)?.contains("query_wait_timeout"));
    Ok(())
}

#[test]
fn every_limit_of_a_client_with_a_server() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let lab = Lab::new("")?;
    lab.set("query_timeout = 1")?;
    let mut client = lab.login("postgres")?;
    client.send(&bytes(&[Query(SLEEP)]))?;
    lab.ends(&mut client, "query timeout", true)?;
    // The server was asked to stop what it did: closing the connection does not.
    wait_until("the end of the query", || lab.running() == 0)?;
    assert!(lab.logged('S', "closing because: successfully sent cancel request")? >= 1);

    lab.set("idle_transaction_timeout = 1")?;
    let mut client = lab.login("postgres")?;
    assert_eq!(client.ask(&[Query("begin"), Query("select 1")])?, "BEGIN ZT T <1> SELECT 1 ZT");
    lab.ends(&mut client, "idle transaction timeout", true)?;
    // Long queries are not idleness.
    let mut client = lab.login("postgres")?;
    let long = [Query("begin"), Query("select pg_sleep(2)"), Query("commit")];
    assert_eq!(client.ask(&long)?, "BEGIN ZT T <> SELECT 1 ZT COMMIT ZI");

    lab.set("transaction_timeout = 1")?;
    let mut client = lab.login("postgres")?;
    client.send(&bytes(&[Query("begin"), Query("select 1"), Query(SLEEP)]))?;
    lab.ends(&mut client, "transaction timeout", true)?;
    wait_until("the end of the transaction", || lab.running() == 0)?;
    Ok(())
}

#[test]
fn idle_sessions_end_and_their_servers_stay() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let lab = Lab::new("")?;
    let mut busy = lab.login("session")?;
    assert_eq!(busy.ask(&[Query("begin")])?, "BEGIN ZT");
    lab.set("client_idle_timeout = 1")?;
    pass(2.0);
    assert_eq!(busy.ask(&[Query("commit")])?, "COMMIT ZI", "a transaction is not idleness");
    lab.ends(&mut busy, "client_idle_timeout", false)?;
    let mut next = lab.login("session")?;
    // A query that takes longer than the limit is not idleness either.
    assert_eq!(next.ask(&[Query("select pg_sleep(2)")])?, "T <> SELECT 1 ZI");
    assert_eq!(next.ask(&[Query("select 1")])?, "T <1> SELECT 1 ZI");
    assert_eq!(lab.logged('S', "new connection to server")?, 1);
    Ok(())
}

#[test]
fn limits_of_users_are_theirs_alone() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let users = "client_login_timeout = 0\nquery_wait_timeout = 0\n[users]\n\
                 postgres = client_idle_timeout=1\napp = query_timeout=1 query_wait_timeout=1";
    let lab = Lab::new(users)?;
    let app = || {
        Wire::login_with(lab.pooler.port, 0x0003_0000, &[("user", "app"), ("database", "postgres")])
    };
    // Of the login user.
    let mut other = app()?;
    let mut idle = lab.login("postgres")?;
    lab.ends(&mut idle, "client_idle_timeout", false)?;
    assert_eq!(other.ask(&[Query("select 1")])?, "T <1> SELECT 1 ZI");
    other.ask(&[Query("begin")])?;
    let mut waiter = app()?;
    waiter.send(&bytes(&[Query("select 1")]))?;
    lab.ends(&mut waiter, "query_wait_timeout", false)?;
    // Of the pool's user.
    let mut forced = lab.login("forced")?;
    forced.send(&bytes(&[Query(SLEEP)]))?;
    lab.ends(&mut forced, "query timeout", true)?;
    let mut own = lab.login("postgres")?;
    assert_eq!(own.ask(&[Query("select pg_sleep(2)")])?, "T <> SELECT 1 ZI");
    Ok(())
}

/// Passes connections on to a server, but keeps cancel requests for itself.
fn swallow_cancels(proxy: TcpListener, port: u16) -> JoinHandle<io::Result<()>> {
    spawn(move || {
        let mut kept = Vec::new();
        for stream in proxy.incoming() {
            let mut stream = stream?;
            let mut head = [0; 8];
            io::Read::read_exact(&mut stream, &mut head)?;
            if head[4..] == 80_877_102u32.to_be_bytes() {
                kept.push(stream);
                continue;
            }
            let mut server = TcpStream::connect(("127.0.0.1", port))?;
            io::Write::write_all(&mut server, &head)?;
            let (mut from, mut to) = (stream.try_clone()?, server.try_clone()?);
            spawn(move || io::copy(&mut from, &mut to));
            spawn(move || io::copy(&mut server, &mut stream));
        }
        Ok(())
    })
}

#[test]
fn cancel_requests_that_are_not_forwarded_are_given_up() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let postgres = Postgres::start("")?;
    let proxy = TcpListener::bind(("127.0.0.1", 0))?;
    let entry = format!("postgres = host=127.0.0.1 port={}", proxy.local_addr()?.port());
    let _swallower = swallow_cancels(proxy, postgres.port);
    let settings = "pool_mode = transaction\ndefault_pool_size = 1\ncancel_wait_timeout = 1";
    let pooler = Pooler::start(crate::program(), &entry, settings)?;
    let mut client = Wire::login(pooler.port, "postgres")?;
    client.send(&bytes(&[Query(SLEEP)]))?;
    let pool = || pooler.console("show pools").unwrap_or_default();
    wait_until("query", || pool().contains("postgres|postgres|1|0|0|0|1|"))?;
    let mut request = Vec::new();
    build::cancel_request(&mut request, &client.key);
    let cancel = || {
        let mut wire = Wire::connect(pooler.port)?;
        wire.send(&request)?;
        Ok::<_, io::Error>(wire)
    };
    // There is room for one.
    let _sent = cancel()?;
    wait_until("cancel", || pool().contains("postgres|postgres|1|0|1|0|1|1|"))?;
    assert_eq!(cancel()?.answers(1)?, "end");
    let log = pooler.log()?;
    assert_eq!(log.matches("closing because: cancel_wait_timeout (age=").count(), 1, "{log}");
    Ok(())
}

#[test]
fn servers_that_do_not_answer_are_given_up() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let lab = Lab::new("server_connect_timeout = 1\nserver_login_retry = 60")?;
    let mut waiting = lab.knock("mute")?;
    let (connection, _) = lab.mute.accept()?;
    let line = "closing because: connect timeout (age=";
    wait_until("the end of the attempt", || lab.logged('S', line).is_ok_and(|n| n >= 1))?;
    drop(connection);
    // The client goes on waiting for a better one.
    lab.set("client_login_timeout = 1")?;
    lab.ends(&mut waiting, "client_login_timeout (server down)", false)?;
    Ok(())
}
