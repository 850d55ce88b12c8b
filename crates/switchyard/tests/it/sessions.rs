//! Streams of clients that are logged in: statements, pipelines, COPY, parameters, bad input.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use switchyard_testkit::{Pooler, Postgres, wait_until};
use switchyard_wire::build;
use switchyard_wire::startup::{VERSION_3_0, VERSION_3_2};

use crate::wire::{Message::*, Wire, bytes};
use crate::{start, wanted};

/// One server for everybody, so that clients meet in it.
const ONE: &str = "pool_mode = transaction\ndefault_pool_size = 1\n";

pub(crate) fn with(settings: &str) -> io::Result<(Postgres, Pooler)> {
    start(&format!("{ONE}{settings}"))
}

/// A column of SHOW POOLS for the entry `postgres`.
fn pool_column(pooler: &Pooler, index: usize) -> io::Result<String> {
    let rows = pooler.console("show pools")?;
    let row = rows.lines().find(|row| row.starts_with("postgres|postgres|")).unwrap_or_default();
    Ok(row.split('|').nth(index).unwrap_or_default().into())
}

#[test]
fn statements_follow_their_clients_over_servers() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = with("max_prepared_statements = 2")?;
    let mut one = Wire::login(pooler.port, "postgres")?;
    let mut two = Wire::login(pooler.port, "postgres")?;
    let long = format!("select {}1", " ".repeat(200_000));
    let name = "n".repeat(64 * 1024);
    assert_eq!(one.ask(&[Parse("a", "select 1"), Sync])?, "1 ZI");
    assert_eq!(two.ask(&[Parse("a", "select 2"), Parse("b", &long), Sync])?, "1 1 ZI");
    assert_eq!(two.ask(&[Parse(&name, "select 4"), Bind(&name, &[]), Execute, Sync])?, {
        "1 2 <4> SELECT 1 ZI"
    });
    for _ in 0..3 {
        assert_eq!(one.ask(&[Bind("a", &[]), Execute, Sync])?, "2 <1> SELECT 1 ZI");
        assert_eq!(two.ask(&[Bind("a", &[]), Execute, Sync])?, "2 <2> SELECT 1 ZI");
        assert_eq!(two.ask(&[Bind("b", &[]), Execute, Sync])?, "2 <1> SELECT 1 ZI");
    }
    let prepared = one.ask(&[Query("select count(*) from pg_prepared_statements")])?;
    assert_eq!(prepared, "T <2> SELECT 1 ZI");
    // A limit that was lowered acts at the next insertion.
    pooler.console("set max_prepared_statements = 1")?;
    assert_eq!(one.ask(&[Parse("c", "select 3"), Bind("c", &[]), Execute, Sync])?, {
        "1 2 <3> SELECT 1 ZI"
    });
    let prepared = one.ask(&[Query("select count(*) from pg_prepared_statements")])?;
    assert_eq!(prepared, "T <1> SELECT 1 ZI");
    // A failed Parse leaves its name free; Close is local and never fails.
    assert_eq!(
        one.ask(&[Parse("d", "selec"), Sync])?,
        "42601 syntax error at or near \"selec\" ZI"
    );
    assert_eq!(one.ask(&[Parse("d", "select 5"), Close("d"), Close("x"), Sync])?, "1 3 3 ZI");
    assert_eq!(one.ask(&[Query("deallocate all")])?, "DEALLOCATE ALL ZI");
    assert_eq!(one.ask(&[Parse("a", "select 6"), Bind("a", &[]), Execute, Sync])?, {
        "1 2 <6> SELECT 1 ZI"
    });
    assert_eq!(two.ask(&[Bind("a", &[]), Execute, Sync])?, "2 <2> SELECT 1 ZI");
    let discard = [Parse("", "discard all"), Bind("", &[]), Execute, Sync];
    assert_eq!(two.ask(&discard)?, "1 2 DISCARD ALL ZI");
    assert_eq!(two.ask(&[Parse("a", "select 7"), Sync])?, "1 ZI");
    Ok(())
}

#[test]
fn statements_are_prepared_anew_when_their_result_has_changed() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    for (setting, later) in
        [(0, "0A000 cached plan must not change result type ZI"), (1, "2 <1,> SELECT 1 ZI")]
    {
        let (postgres, pooler) = with(&format!("prepared_statement_reprepare = {setting}"))?;
        postgres.sql("create table t as select 1 x")?;
        let mut client = Wire::login(pooler.port, "postgres")?;
        let run = [Bind("a", &[]), Execute, Sync];
        assert_eq!(client.ask(&[Parse("a", "select * from t"), Sync])?, "1 ZI");
        assert_eq!(client.ask(&run)?, "2 <1> SELECT 1 ZI");
        postgres.sql("alter table t add y int")?;
        assert_eq!(client.ask(&run)?, "0A000 cached plan must not change result type ZI");
        assert_eq!(client.ask(&run)?, later);
        if setting == 0 {
            pooler.console("reconnect")?;
            assert_eq!(client.ask(&run)?, "2 <1,> SELECT 1 ZI");
        }
    }
    Ok(())
}

#[test]
fn a_group_keeps_its_server_until_its_sync() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = with("")?;
    let mut one = Wire::login(pooler.port, "postgres")?;
    one.send(&bytes(&[Parse("", "select 1"), Flush]))?;
    assert_eq!(one.message()?.0, b'1');
    // Another client would have its unnamed statement put into the same server.
    let mut two = Wire::login(pooler.port, "postgres")?;
    two.send(&bytes(&[Parse("", "select 2"), Bind("", &[]), Execute, Sync]))?;
    wait_until("waiter", || pool_column(&pooler, 3).is_ok_and(|waiting| waiting == "1"))?;
    assert_eq!(one.ask(&[Bind("", &[]), Execute, Sync])?, "2 <1> SELECT 1 ZI");
    assert_eq!(two.answers(1)?, "1 2 <2> SELECT 1 ZI");
    Ok(())
}

#[test]
fn a_copy_that_fails_early_is_drained() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (postgres, pooler) = with("")?;
    postgres.sql("create table t (x int)")?;
    let mut client = Wire::login(pooler.port, "postgres")?;
    client.send(&bytes(&[Query("copy t from stdin"), CopyData("1\nx\n")]))?;
    let told = client.answers(1)?;
    assert!(told.starts_with("G 22P02 invalid input syntax") && told.ends_with("ZI"), "{told}");
    client.send(&bytes(&[CopyData("2\n")]))?;
    assert_eq!(pool_column(&pooler, 6)?, "1", "the link stays");
    client.send(&bytes(&[CopyDone]))?;
    wait_until("release", || pool_column(&pooler, 9).is_ok_and(|idle| idle == "1"))?;
    client.send(&bytes(&[CopyData("3\n"), CopyDone]))?;
    assert_eq!(client.ask(&[Query("select 1")])?, "T <1> SELECT 1 ZI");
    // All of it at once, and in the extended protocol with Syncs that the server ignores.
    client.send(&bytes(&[Query("copy t from stdin"), CopyData("4\n"), CopyDone]))?;
    assert_eq!(client.answers(1)?, "G COPY 1 ZI");
    let copy = [Parse("", "copy t from stdin"), Bind("", &[]), Execute, Sync];
    client.send(&bytes(&[&copy[..], &[CopyData("5\n"), CopyDone, Sync]].concat()))?;
    assert_eq!(client.answers(1)?, "1 2 G COPY 1 ZI");
    wait_until("release", || pool_column(&pooler, 9).is_ok_and(|idle| idle == "1"))?;
    assert_eq!(postgres.sql("select count(*) from t")?.trim(), "2");
    // It fails before it has read anything, so that it hears the Sync: nobody knows how many
    // answers are to come, and the server stays with this client.
    postgres.sql(
        "create function no() returns trigger language plpgsql as 'begin raise ''no''; end'; \
         create trigger no before insert on t execute function no()",
    )?;
    client.send(&bytes(&[&copy[..], &[CopyData("6\n"), CopyDone, Sync]].concat()))?;
    assert_eq!(client.answers(2)?, "1 2 G P0001 no ZI ZI");
    assert_eq!(pool_column(&pooler, 6)?, "1");
    drop(client);
    let mut next = Wire::login(pooler.port, "postgres")?;
    assert_eq!(next.ask(&[Query("select 1")])?, "T <1> SELECT 1 ZI");
    Ok(())
}

#[test]
fn long_pipelines_are_bounded_and_complete() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    const GROUPS: usize = 100_000;
    let (_postgres, pooler) = with("")?;
    for (sync, ready) in [(true, GROUPS), (false, 1)] {
        let mut client = Wire::login(pooler.port, "postgres")?;
        assert_eq!(client.ask(&[Parse("a", "select 1"), Sync])?, "1 ZI");
        let before = pooler.resident()?;
        let mut group = bytes(&[Bind("a", &[]), Execute]);
        if sync {
            group.extend(bytes(&[Sync]));
        }
        let mut writer = client.writer()?;
        let sender = std::thread::spawn(move || {
            let chunk = group.repeat(1000);
            for _ in 0..GROUPS / 1000 {
                writer.send(&chunk)?;
            }
            writer.send(&bytes(&[Sync]))
        });
        let (mut rows, mut seen) = (0, 0);
        let ready = if sync { ready + 1 } else { ready };
        while seen < ready {
            match client.message()?.0 {
                b'D' => rows += 1,
                b'Z' => seen += 1,
                _ => {}
            }
        }
        sender.join().map_err(|_| io::Error::other("a panic"))??;
        assert_eq!(rows, GROUPS);
        let grown = pooler.resident()?.saturating_sub(before);
        assert!(grown < 16 * 1024, "{grown} KiB");
    }
    Ok(())
}

#[test]
fn a_client_that_never_reads_hinders_nobody() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = start("pool_mode = transaction\ndefault_pool_size = 3")?;
    let before = pooler.resident()?;
    let mut rows = Wire::login(pooler.port, "postgres")?;
    rows.send(&bytes(&[Query("select repeat('x', 1000) from generate_series(1, 1000000)")]))?;
    // Answers that the pooler makes up are bounded as well.
    let mut closes = Wire::login(pooler.port, "postgres")?;
    closes.stream.set_write_timeout(Some(Duration::from_millis(300)))?;
    let chunk = bytes(&[Close("x")]).repeat(10_000);
    while closes.send(&chunk).is_ok() {}
    // A Bind of a few bytes that needs a long Parse each time.
    let mut swell = Wire::login(pooler.port, "postgres")?;
    pooler.console("set max_prepared_statements = 1")?;
    let long = format!("select 1 {}", " ".repeat(1_000_000));
    let longer = format!("{long} ");
    assert_eq!(swell.ask(&[Parse("a", &long), Parse("b", &longer), Sync])?, "1 1 ZI");
    let both = bytes(&[Bind("a", &[]), Bind("b", &[])]).repeat(20);
    swell.send(&both)?;
    swell.send(&bytes(&[Sync]))?;
    assert_eq!(swell.answers(1)?, format!("{}ZI", "2 ".repeat(40)));
    for _ in 0..20 {
        pooler.sql("postgres", "postgres", "select 1")?;
    }
    let grown = pooler.resident()?.saturating_sub(before);
    assert!(grown < 48 * 1024, "{grown} KiB");
    Ok(())
}

#[test]
fn huge_and_slow_messages_stream_through() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = with("")?;
    let mut client = Wire::login(pooler.port, "postgres")?;
    let before = pooler.resident()?;
    let value = "x".repeat(200 << 20);
    assert_eq!(client.ask(&[Parse("a", "select length($1::text)"), Sync])?, "1 ZI");
    let long = client.ask(&[Bind("a", &[&value]), Execute, Sync])?;
    assert_eq!(long, format!("2 <{}> SELECT 1 ZI", value.len()));
    drop(value);
    client.send(&bytes(&[Query("select repeat('x', 200 << 20)")]))?;
    let (mut row, mut total) = (vec![0; 1 << 20], 0);
    while total < 200 << 20 {
        total += client.stream.read(&mut row)?;
    }
    let grown = pooler.resident()?.saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB");
    let many = vec!["1"; 65_535];
    let mut client = Wire::login(pooler.port, "postgres")?;
    let places: Vec<String> = (1..=65_535).map(|place| format!("${place}")).collect();
    let sql = format!("select 1 where '1' in ({})", places.join(","));
    assert_eq!(client.ask(&[Parse("m", &sql), Bind("m", &many), Execute, Sync])?, {
        "1 2 <1> SELECT 1 ZI"
    });
    for byte in bytes(&[Bind("m", &["1"]), Sync]) {
        client.send(&[byte])?;
        if byte == b'm' {
            pooler.sql("postgres", "forced", "select 1")?;
        }
    }
    assert!(client.answers(1)?.starts_with("08P01 bind message supplies 1 parameters"));
    Ok(())
}

#[test]
fn messages_out_of_place_end_their_client() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = with("disable_pqexec = 1")?;
    for (sent, told) in [
        (&b"p\0\0\0\x05x"[..], "08P01 unknown pkt end"),
        (b"!\0\0\0\x04", "08P01 unknown pkt end"),
        (b"Q\0\0\0\x03", "08P01 bad packet header: '5100000003' end"),
        (b"D\0\0\0\x05S", "08P01 broken Describe packet end"),
        (b"Q\0\0\0\x0dselect 1\0", "08P01 PQexec disallowed end"),
        (b"X\0\0\0\x04", "end"),
    ] {
        let mut client = Wire::login(pooler.port, "postgres")?;
        client.send(sent)?;
        assert_eq!(client.answers(1)?, told);
    }
    let log = pooler.log()?;
    assert!(log.contains("unknown pkt from client: 33/0x21"));
    assert!(log.contains("client used \"Query\" packet type"));
    Ok(())
}

#[test]
fn parameters_are_canonical_and_never_leak() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = with("verbose = 1\nserver_round_robin = 1")?;
    let parameters =
        |zone: &'static str| [("user", "postgres"), ("database", "postgres"), ("TimeZone", zone)];
    let mut one = Wire::login_with(pooler.port, VERSION_3_0, &parameters("zulu"))?;
    let mut two = Wire::login(pooler.port, "postgres")?;
    let name = "ä'\\".repeat(15);
    two.ask(&[Query(&format!(
        "set application_name = E'{}'",
        name.replace('\\', "\\\\").replace('\'', "''")
    ))])?;
    let show = [Query("select current_setting('timezone'), current_setting('application_name')")];
    let plain = two.ask(&show)?;
    for _ in 0..3 {
        assert_eq!(one.ask(&show)?, "T <Zulu,> SELECT 1 ZI");
        assert_eq!(two.ask(&show)?, plain);
    }
    let log = pooler.log()?;
    assert!(log.contains("varcache_apply: SET TimeZone='zulu';"));
    assert_eq!(log.matches("setting TimeZone to its canonical version zulu -> Zulu").count(), 1);
    let mut bad = Wire::login_with(pooler.port, VERSION_3_0, &parameters("Nowhere/Land"))?;
    assert_eq!(bad.ask(&show)?, "08P01 invalid server parameter end");
    let log = pooler.log()?;
    let cause = "varcache_apply failed: ERROR: invalid value for parameter \"TimeZone\"";
    assert!(log.contains(cause) && log.contains("closing because: invalid server parameter"));
    assert_eq!(one.ask(&show)?, "T <Zulu,> SELECT 1 ZI");
    Ok(())
}

#[test]
fn untracked_parameters_are_told_pinned_or_taken_back() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    for policy in ["ignore", "warn", "pin", "reset"] {
        let (_postgres, pooler) =
            with(&format!("untracked_set = {policy}\nquery_wait_timeout = 1"))?;
        let mut one = Wire::login(pooler.port, "postgres")?;
        let mut two = Wire::login(pooler.port, "postgres")?;
        assert_eq!(
            one.ask(&[Query("set \"work_mem\" = '7MB'; set application_name = 'x'")])?,
            "SET SET ZI"
        );
        let found = two.ask(&[Query("show work_mem")])?;
        let expected = match policy {
            "pin" => "08P01 query_wait_timeout end",
            "reset" => "T <4MB> SHOW ZI",
            _ => "T <7MB> SHOW ZI",
        };
        assert_eq!(found, expected, "{policy}");
        assert_eq!(one.ask(&[Query("show application_name")])?, "T <x> SHOW ZI", "{policy}");
        let line = "untracked parameter \"work_mem\" set in a shared session";
        assert_eq!(pooler.log()?.contains(line), policy != "ignore");
        drop(one);
        if policy == "pin" {
            let mut next = Wire::login(pooler.port, "postgres")?;
            assert_eq!(next.ask(&[Query("show work_mem")])?, "T <4MB> SHOW ZI");
        }
    }
    Ok(())
}

#[test]
fn blocks_are_refused_in_statement_mode() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = start("pool_mode = statement")?;
    let mut client = Wire::login(pooler.port, "postgres")?;
    assert_eq!(client.ask(&[Query("select 1")])?, "T <1> SELECT 1 ZI");
    assert_eq!(client.ask(&[Query("begin")])?, {
        "08P01 transaction blocks not allowed in statement pooling mode end"
    });
    Ok(())
}

#[test]
fn queries_and_statements_are_counted() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = with("")?;
    let mut one = Wire::login(pooler.port, "postgres")?;
    let mut two = Wire::login(pooler.port, "postgres")?;
    one.ask(&[Query("begin")])?;
    two.send(&bytes(&[Query("select 1")]))?;
    wait_until("waiter", || pool_column(&pooler, 3).is_ok_and(|waiting| waiting == "1"))?;
    one.ask(&[Query("commit")])?;
    two.answers(1)?;
    one.ask(&[Parse("a", "select 1"), Bind("a", &[]), Execute, Sync])?;
    two.ask(&[
        Parse("b", "select 1"),
        Bind("b", &[]),
        Bind("b", &[]),
        Execute,
        Sync,
        Query("select 1"),
    ])?;
    let stats = pooler.console("show stats_totals")?;
    let row: Vec<&str> = stats
        .lines()
        .find(|row| row.starts_with("postgres|"))
        .unwrap_or_default()
        .split('|')
        .collect();
    // Three of one client, two of the other; a pipeline counts once.
    assert_eq!(row[1..4], ["4", "4", "5"], "assignments, transactions, queries: {stats}");
    assert_ne!(row[8], "0", "{stats}");
    assert_eq!(row[9..12], ["2", "1", "3"], "parses of clients and to servers, binds: {stats}");
    Ok(())
}

#[test]
fn cancels_hit_their_query_only() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (postgres, pooler) = start("pool_mode = transaction\ndefault_pool_size = 4\nworkers = 2")?;
    let login = |version| {
        Wire::login_with(pooler.port, version, &[("user", "postgres"), ("database", "postgres")])
    };
    let mut sleepers = Vec::new();
    for version in [VERSION_3_0, VERSION_3_2] {
        let mut client = login(version)?;
        client.send(&bytes(&[Query("select pg_sleep(600)")]))?;
        sleepers.push(client);
    }
    assert_eq!([sleepers[0].key.len(), sleepers[1].key.len()], [8, 36]);
    // What a server did last is told of idle ones as well.
    let running = "select count(*) from pg_stat_activity \
                   where state = 'active' and query ~ '^select pg_sleep'";
    wait_until("queries", || postgres.sql(running).is_ok_and(|count| count.trim() == "2"))?;
    let cancel = |key: &[u8]| {
        let mut wire = Wire::connect(pooler.port)?;
        let mut request = Vec::new();
        build::cancel_request(&mut request, key);
        wire.send(&request)?;
        Ok::<_, io::Error>(wire)
    };
    let ended = |mut wire: Wire| wire.stream.read(&mut [0; 1]).map(|count| assert_eq!(count, 0));
    // Keys that are not whole, and those of idle clients, hit nobody.
    let idle = login(VERSION_3_2)?;
    let long = sleepers[1].key.clone();
    let mut wrong = long.clone();
    wrong[20] ^= 1;
    for key in [&long[..8], &wrong, &long[..20], &idle.key] {
        ended(cancel(key)?)?;
    }
    assert_eq!(postgres.sql(running)?.trim(), "2");
    let log = pooler.log()?;
    for reason in ["failed cancel request", "bad cancel request", "cancel request for idle client"]
    {
        assert!(log.contains(reason), "{reason}");
    }
    // A hundred at once for one of them; when a canceller hears the end, it has happened.
    let cancels: io::Result<Vec<Wire>> = (0..100).map(|_| cancel(&sleepers[0].key)).collect();
    assert_eq!(sleepers[0].answers(1)?, "T 57014 canceling statement due to user request ZI");
    for _ in 0..20 {
        assert_eq!(sleepers[0].ask(&[Query("select 1")])?, "T <1> SELECT 1 ZI");
    }
    cancels?.into_iter().try_for_each(ended)?;
    assert_eq!(postgres.sql(running)?.trim(), "1");
    // Nobody has to stay for the answer.
    drop(cancel(&long)?);
    assert_eq!(sleepers[1].answers(1)?, "T 57014 canceling statement due to user request ZI");
    wait_until("the end of the request", || {
        let log = pooler.log().unwrap_or_default();
        let (sent, gone) = ("successfully sent cancel request", "client unexpected eof");
        log.lines().any(|line| line.contains(" S-0x") && line.contains(sent))
            && log.lines().any(|line| line.contains("/(nouser)@") && line.contains(gone))
    })?;
    wait_until("idle servers", || pool_column(&pooler, 8).is_ok_and(|count| count == "0"))?;
    Ok(())
}

/// A server that accepts connections, and says nothing to cancel requests.
#[test]
fn a_server_waits_for_the_cancels_under_way_to_it() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let postgres = Postgres::start("")?;
    let proxy = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let entry = format!("postgres = host=127.0.0.1 port={}", proxy.local_addr()?.port());
    let settings = "pool_mode = transaction\ndefault_pool_size = 1\ncancel_wait_timeout = 60";
    let pooler = Pooler::start(crate::program(), &entry, settings)?;
    let port = postgres.port;
    let (held_by, held) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in proxy.incoming() {
            let mut stream = stream?;
            let mut head = [0; 8];
            stream.read_exact(&mut head)?;
            if head[4..] == 80_877_102u32.to_be_bytes() {
                held_by.send(stream).map_err(io::Error::other)?;
                continue;
            }
            let mut server = TcpStream::connect(("127.0.0.1", port))?;
            io::Write::write_all(&mut server, &head)?;
            let (mut from, mut to) = (stream.try_clone()?, server.try_clone()?);
            std::thread::spawn(move || io::copy(&mut from, &mut to));
            std::thread::spawn(move || io::copy(&mut server, &mut stream));
        }
        Ok::<_, io::Error>(())
    });
    let mut one = Wire::login(pooler.port, "postgres")?;
    one.send(&bytes(&[Query("select pg_sleep(2)")]))?;
    wait_until("query", || pool_column(&pooler, 6).is_ok_and(|active| active == "1"))?;
    let mut request = Vec::new();
    build::cancel_request(&mut request, &one.key);
    // One is sent, one waits because there may be twice as many connections as servers. They may
    // be met by different workers: the second is only asked for when the first is on its way.
    let ask = || {
        let mut canceller = Wire::connect(pooler.port)?;
        canceller.send(&request)?;
        Ok::<_, io::Error>(canceller)
    };
    let mut cancellers = vec![ask()?];
    let connection = held.recv_timeout(Duration::from_secs(30)).map_err(io::Error::other)?;
    cancellers.push(ask()?);
    wait_until("cancel", || pool_column(&pooler, 5).is_ok_and(|waiting| waiting == "1"))?;
    assert_eq!(pool_column(&pooler, 4)?, "1", "sent");
    assert_eq!(one.answers(1)?, "T <> SELECT 1 ZI");
    wait_until("server", || pool_column(&pooler, 8).is_ok_and(|count| count == "1"))?;
    // The one that was not sent is dropped; the server is given to nobody.
    assert_eq!(cancellers.remove(1).answers(1)?, "end");
    let mut two = Wire::login(pooler.port, "postgres")?;
    two.send(&bytes(&[Query("select 1")]))?;
    wait_until("waiter", || pool_column(&pooler, 3).is_ok_and(|waiting| waiting == "1"))?;
    connection.shutdown(Shutdown::Both)?;
    assert_eq!(two.answers(1)?, "T <1> SELECT 1 ZI");
    assert_eq!(cancellers.remove(0).answers(1)?, "end");
    let log = pooler.log()?;
    assert!(log.contains("not sending cancel request for client that is now idle"));
    cancellers.push(one);
    two.finish()
}
