//! Why connections are closed, as the log says it: the reasons that no test of a feature meets,
//! because a model server, a message that no driver sends or a moment of bad luck has to bring
//! them about.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use switchyard_testkit::raw::transcript;
use switchyard_testkit::{Client, Model, Peer, Pooler, Postgres, Raw, freeze, signal, wait_until};
use switchyard_wire::build;
use switchyard_wire::startup::VERSION_3_0;

use super::{program, wanted};

fn startup(user: &str, database: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let pairs = [("user", user), ("database", database)];
    let pairs = pairs.into_iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    build::startup(&mut out, VERSION_3_0, pairs);
    out
}

fn closed(pooler: &Pooler, reason: &str) -> io::Result<()> {
    let line = format!("closing because: {reason} (age=");
    wait_until(&line, || pooler.log().is_ok_and(|log| log.contains(&line)))
}

#[test]
fn idle_servers_close_for_a_reason() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let postgres = Postgres::start("")?;
    let entry = format!("postgres = host=127.0.0.1 port={}", postgres.port);
    let use_once = |pooler: &Pooler| pooler.sql("postgres", "postgres", "select 1");
    let pooler = Pooler::start(program(), &entry, "pool_mode = transaction")?;
    use_once(&pooler)?;
    closed(&pooler, "client close request")?;
    pooler.console("pause postgres")?;
    closed(&pooler, "pause mode")?;
    pooler.console("resume postgres")?;
    use_once(&pooler)?;
    pooler.console("reconnect postgres")?;
    closed(&pooler, "obsolete connection")?;
    use_once(&pooler)?;
    pooler.console("set server_idle_timeout = '0.1'")?;
    closed(&pooler, "server idle timeout")
}

#[test]
fn a_login_to_a_server_ends_with_what_led_there() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let silent = Model::start(|peer| peer.message().map(drop))?;
    let entry = |host: &str| format!("db = host={host} port={}", silent.port);
    let pooler = Pooler::start(program(), &entry("127.0.0.1"), "server_login_retry = 60")?;
    let mut waiting = TcpStream::connect(("127.0.0.1", pooler.port))?;
    waiting.write_all(&startup("postgres", "db"))?;
    wait_until("login", || silent.accepted() == 1)?;
    let ini = fs::read_to_string(pooler.ini())?;
    fs::write(pooler.ini(), ini.replace(&entry("127.0.0.1"), &entry("127.0.0.2")))?;
    pooler.console("reload")?;
    closed(&pooler, "connect string changed")
}

#[test]
fn nobody_gets_in_during_an_end() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let postgres = Postgres::start("")?;
    let entry = format!("postgres = host=127.0.0.1 port={}", postgres.port);
    let pooler = Pooler::start(program(), &entry, "")?;
    let mut first = Client::connect(pooler.port, "postgres")?;
    first.run("select 1")?;
    signal(pooler.pid(), "TERM")?;
    wait_until("end of listening", || TcpStream::connect(("127.0.0.1", pooler.port)).is_err())?;
    let socket = pooler.ini().with_file_name(format!(".s.PGSQL.{}", pooler.port));
    let mut late = UnixStream::connect(socket)?;
    late.write_all(&startup("postgres", "postgres"))?;
    let mut answer = Vec::new();
    late.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.contains("SFATAL\0C08P01\0Mpooler is shutting down\0\0"), "{text:?}");
    closed(&pooler, "pooler is shutting down")?;
    first.run("select 1").map(drop)
}

#[test]
fn messages_that_cannot_be_read_cost_their_sender() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let model = Model::start(|peer| peer.welcome().and_then(|()| peer.serve("x")))?;
    let entry = format!("db = host=127.0.0.1 port={}", model.port);
    let pooler = Pooler::start(program(), &entry, "pool_mode = transaction")?;
    let user = [("user", "postgres"), ("database", "db")];
    for (tag, body, reason) in [
        ('P', &b"no end"[..], "broken Parse packet"),
        ('B', b"portal\0no end", "broken Bind packet"),
        ('D', b"Sno end", "broken Describe packet"),
        ('C', b"Sno end", "broken Close packet"),
    ] {
        let mut client = Raw::connect(pooler.port, &user)?;
        client.send(tag, body)?;
        let told = transcript(&client.answer()?);
        assert_eq!(told, format!("E SFATAL C08P01 M{reason}\n"));
        closed(&pooler, reason)?;
    }
    let settings = "auth_type = plain";
    let pooler = Pooler::start(program(), &entry, settings)?;
    let mut stream = TcpStream::connect(("127.0.0.1", pooler.port))?;
    stream.write_all(&startup("postgres", "db"))?;
    stream.write_all(b"p\0\0\0\x0ano end")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.contains("Mfailed to parse packet\0\0"), "{text:?}");
    closed(&pooler, "failed to parse packet")
}

#[test]
fn odd_answers_to_a_request_for_tls() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    for (answer, reason) in [
        (&b"X"[..], "bad sslreq answer"),
        (b"Sand more", "received unencrypted data after SSL response"),
        (b"Nand more", "received unencrypted data after SSL response"),
        (b"E", "bad sslreq answer"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let entry = format!("db = host=127.0.0.1 port={}", listener.local_addr()?.port());
        let pooler = Pooler::start(program(), &entry, "server_tls_sslmode = prefer")?;
        let mut client = TcpStream::connect(("127.0.0.1", pooler.port))?;
        client.write_all(&startup("postgres", "db"))?;
        let (mut server, _) = listener.accept()?;
        server.read_exact(&mut [0; 8])?;
        server.write_all(answer)?;
        closed(&pooler, reason)?;
    }
    Ok(())
}

/// A server whose first connection is reset between two moments of the pooler, which sleeps
/// meanwhile: what a client has sent before lies in front of the pooler then.
struct Unlucky {
    model: Model,
    now: Arc<AtomicBool>,
}

impl Unlucky {
    /// `script` plays the part of the first connection that comes before its end; `serve` all of
    /// any other one.
    fn start(
        first: impl Fn(&Peer) -> bool + Send + Sync + 'static,
        serve: impl Fn(&mut Peer, bool) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let now = Arc::new(AtomicBool::new(false));
        let (signal, met) = (Arc::clone(&now), AtomicBool::new(false));
        let model = Model::start(move |peer| {
            let doomed = first(peer) && !met.swap(true, Ordering::SeqCst);
            peer.welcome()?;
            serve(peer, doomed)?;
            if doomed {
                wait_until("the moment", || signal.load(Ordering::SeqCst))?;
                peer.reset()?;
            }
            Ok(())
        })?;
        Ok(Unlucky { model, now })
    }

    /// Lets the pooler sleep while this happens and the connection is reset after it.
    fn strike(&self, pooler: &Pooler, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let before = self.connections()?;
        freeze(pooler.pid())?;
        act()?;
        self.now.store(true, Ordering::SeqCst);
        wait_until("reset", || self.connections().is_ok_and(|count| count < before))?;
        signal(pooler.pid(), "CONT")
    }

    /// Connections that the model's side of holds open.
    fn connections(&self) -> io::Result<usize> {
        let end = format!(":{:04X}", self.model.port);
        let table = fs::read_to_string("/proc/net/tcp")?;
        let open = |line: &&str| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|local| local.ends_with(&end)) && words.nth(1) == Some("01")
        };
        Ok(table.lines().filter(open).count())
    }
}

/// Answers so many queries.
fn answer(peer: &mut Peer, count: usize) -> io::Result<()> {
    for _ in 0..count {
        peer.message()?;
        peer.row("x")?;
        peer.ready('I')?;
    }
    Ok(())
}

/// One connection answers so many queries and is lost, all others answer everything.
fn after(count: usize) -> io::Result<Unlucky> {
    Unlucky::start(
        |_| true,
        move |peer, doomed| if doomed { answer(peer, count) } else { peer.serve("y") },
    )
}

#[test]
fn queries_of_the_pooler_that_cannot_be_sent() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let user = [("user", "postgres"), ("database", "db")];
    // The reset query of a session that ends.
    let unlucky = after(1)?;
    let entry = format!("db = host=127.0.0.1 port={} pool_size=1", unlucky.model.port);
    let settings = "workers = 1\nserver_login_retry = 0.1";
    let pooler = Pooler::start(program(), &entry, settings)?;
    let mut client = Raw::connect(pooler.port, &user)?;
    client.query("select 1")?;
    unlucky.strike(&pooler, || client.send('X', b""))?;
    closed(&pooler, "reset query failed")?;
    // A check before the next use: the client waits for another server and sees nothing.
    let unlucky = after(1)?;
    let entry = format!("db = host=127.0.0.1 port={} pool_size=1", unlucky.model.port);
    let settings = "workers = 1\npool_mode = transaction\nserver_check_query = select 1\n\
        server_login_retry = 0.1";
    let pooler = Pooler::start(program(), &entry, settings)?;
    let mut client = Raw::connect(pooler.port, &user)?;
    client.query("select 1")?;
    pooler.console("set server_check_delay = 0")?;
    unlucky.strike(&pooler, || client.ask("select 2"))?;
    let told = transcript(&client.answer()?);
    assert!(told.contains('y') && !told.contains("FATAL"), "{told}");
    closed(&pooler, "test query failed")?;
    // A client's own.
    let unlucky = after(1)?;
    let entry = format!("db = host=127.0.0.1 port={} pool_size=1", unlucky.model.port);
    let pooler = Pooler::start(program(), &entry, "workers = 1")?;
    let mut client = Raw::connect(pooler.port, &user)?;
    client.query("select 1")?;
    unlucky.strike(&pooler, || client.ask("select 2"))?;
    let told = transcript(&client.answer()?);
    assert_eq!(told, "E SFATAL C08P01 Mserver connection closed\n");
    closed(&pooler, "server connection closed")
}

/// Answers one auth_query: everybody exists.
fn everybody(peer: &mut Peer) -> io::Result<()> {
    while peer.message()?.0 != 'S' {}
    peer.send('1', b"")?;
    peer.send('2', b"")?;
    let column = b"c\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
    peer.send('T', &[b"\0\x02", &column[..], column].concat())?;
    peer.send('D', b"\0\x02\0\0\0\x05guest\0\0\0\x01x")?;
    peer.send('C', b"SELECT 1\0")?;
    peer.ready('I')
}

#[test]
fn a_question_for_a_user_that_cannot_be_sent() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let asks =
        |peer: &Peer| peer.startup.iter().any(|(name, value)| name == "user" && value == "asker");
    let unlucky = Unlucky::start(
        asks,
        move |peer, doomed| {
            if doomed { everybody(peer) } else { peer.serve("y") }
        },
    )?;
    let entry = format!("db = host=127.0.0.1 port={}", unlucky.model.port);
    let settings = "workers = 1\nauth_user = asker\npool_mode = transaction";
    let pooler = Pooler::start(program(), &entry, settings)?;
    Raw::connect(pooler.port, &[("user", "guest"), ("database", "db")])?.query("select 1")?;
    let mut client = TcpStream::connect(("127.0.0.1", pooler.port))?;
    unlucky.strike(&pooler, || client.write_all(&startup("guest", "db")))?;
    closed(&pooler, "unable to send auth_query")?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(text.contains("SFATAL\0C08P01\0Munable to send auth_query\0\0"), "{text:?}");
    Ok(())
}
