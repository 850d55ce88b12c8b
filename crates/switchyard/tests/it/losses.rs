//! What happens when one side of a link goes: what a client is told of its server's end, and what
//! becomes of the server of a client that leaves.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use switchyard_testkit::raw::transcript;
use switchyard_testkit::{Client, Model, Pooler, Postgres, Raw, freeze, signal, wait_until};

use super::{program, wanted};

/// A server that ends as it is asked to.
fn mortal() -> io::Result<Model> {
    Model::start(|peer| {
        peer.welcome()?;
        loop {
            let (tag, body) = peer.message()?;
            match (tag, &body[..]) {
                ('Q', b"shutdown\0") => {
                    peer.error(&["SFATAL", "C57P01", "Mterminating connection"])?;
                    return peer.close();
                }
                ('Q', b"crash\0") => {
                    peer.error(&["SPANIC", "CXX000", "Mout of luck"])?;
                    return peer.close();
                }
                ('Q', b"reset\0") => return peer.reset(),
                ('Q', _) => return peer.close(),
                _ => {}
            }
        }
    })
}

/// What a client of a server that ends reads.
fn told(pooler: &Pooler, way: &str) -> io::Result<String> {
    let mut client = Raw::connect(pooler.port, &[("user", "postgres"), ("database", "db")])?;
    Ok(transcript(&client.query(way)?))
}

#[test]
fn the_end_of_a_server_is_explained_if_asked_for() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let model = mortal()?;
    let entry = format!("db = host=127.0.0.1 port={}", model.port);
    let crashed = "E SFATAL C08P01 Mserver conn crashed?\n";
    let bare = Pooler::start(program(), &entry, "")?;
    let words = "E SFATAL C57P01 Mterminating connection\n";
    assert_eq!(told(&bare, "shutdown")?, format!("{words}{crashed}"));
    for way in ["silence", "reset"] {
        assert_eq!(told(&bare, way)?, crashed);
    }
    let open = Pooler::start(program(), &entry, "server_error_detail = 1")?;
    let said = "The server said: ";
    for (way, words, code, detail) in [
        ("shutdown", words, "57P01", format!("{said}terminating connection (57P01).")),
        ("crash", "E SPANIC CXX000 Mout of luck\n", "08006", format!("{said}out of luck (XX000).")),
        ("silence", "", "08006", "The server has closed the connection without a word.".into()),
        (
            "reset",
            "",
            "08006",
            "The connection to the server failed: Connection reset by peer.".into(),
        ),
    ] {
        let fatal = format!("E SFATAL C{code} Mserver conn crashed? D{detail}\n");
        assert_eq!(told(&open, way)?, format!("{words}{fatal}"), "{way}");
    }
    assert!(!open.log()?.contains("without a word"), "the log keeps its texts");
    Ok(())
}

#[test]
fn a_server_that_takes_no_bytes_is_told_from_one_that_ends() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let model = Model::start(|peer| {
        peer.welcome()?;
        peer.message()?;
        peer.error(&["SPANIC", "CXX000", "Mout of luck"])
        // What was not read makes the end a reset.
    })?;
    let entry = format!("db = host=127.0.0.1 port={}", model.port);
    let pooler = Pooler::start(program(), &entry, "server_login_retry = 0")?;
    let words = "E SPANIC CXX000 Mout of luck\n";
    let fatal = |text: &str| format!("{words}E SFATAL C08P01 M{text}\n");
    let (crashed, closed) = (fatal("server conn crashed?"), fatal("server connection closed"));
    let rest = vec![b'x'; 8 << 20];
    // Whether the end is met by reading or by writing is chance.
    wait_until("a write that fails", || {
        let parameters = [("user", "postgres"), ("database", "db")];
        let Ok(mut client) = Raw::connect(pooler.port, &parameters) else { return false };
        let sent = client.send('H', b"").and_then(|()| client.send('Q', &rest));
        let told = client.answer().map(|messages| transcript(&messages)).unwrap_or_default();
        assert!(told == crashed || told == closed, "{sent:?} {told}");
        told == closed
    })?;
    let log = pooler.log()?;
    for whose in ["S-0x", "C-0x"] {
        let told = |line: &str| line.contains(whose) && line.contains(": server connection closed");
        assert!(log.lines().any(told), "{whose} {log}");
    }
    Ok(())
}

#[test]
fn a_server_that_still_owes_queries_is_closed_for_that() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let model = Model::start(|peer| {
        peer.welcome()?;
        while peer.message()?.1 != b"last\0" {}
        peer.row("first")?;
        peer.ready('I')?;
        peer.message().map(drop)
    })?;
    let entry = format!("db = host=127.0.0.1 port={}", model.port);
    let pooler = Pooler::start(program(), &entry, "pool_mode = transaction")?;
    for (queries, reason) in [
        (&["first", "last"][..], "client disconnected with query in progress"),
        (&["first", "second", "last"], "client disconnected with queries in progress"),
    ] {
        let mut client = Raw::connect(pooler.port, &[("user", "postgres"), ("database", "db")])?;
        queries.iter().try_for_each(|query| client.ask(query))?;
        client.answer()?;
        drop(client);
        let line = format!("closing because: {reason} (age=");
        wait_until(reason, || pooler.log().is_ok_and(|log| log.contains(&line)))?;
    }
    Ok(())
}

#[test]
fn a_transaction_that_was_left_is_rolled_back_if_asked_for() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let postgres = Postgres::start("")?;
    postgres.sql("create table t (a int)")?;
    let entry = format!("db = host=127.0.0.1 port={} dbname=postgres pool_size=1", postgres.port);
    let leave = |pooler: &Pooler, sql: &[&str]| -> io::Result<String> {
        let mut client = Client::connect(pooler.port, "db")?;
        let pid = client.run("select pg_backend_pid()")?.concat();
        for sql in sql {
            // Some of it fails on purpose.
            let _ = client.run(sql);
        }
        Ok(pid)
    };
    let reason = "closing because: client disconnect while server was not ready";
    for mode in ["transaction", "session"] {
        let settings = format!("pool_mode = {mode}\nserver_rollback_on_disconnect = 1");
        let pooler = Pooler::start(program(), &entry, &settings)?;
        let insert = ["set work_mem = '7MB'", "begin", "insert into t values (1)"];
        let mut pids = vec![leave(&pooler, &insert)?];
        pids.push(leave(&pooler, &["begin", "insert into t values (1)", "nonsense"])?);
        let mut client = Client::connect(pooler.port, "db")?;
        assert_eq!(client.run("select count(*) from t")?, ["0"]);
        pids.extend(client.run("select pg_backend_pid()")?);
        pids.dedup();
        assert_eq!(pids.len(), 1, "{mode} {pids:?}");
        if mode == "session" {
            assert_eq!(client.run("show work_mem")?, ["4MB"]);
        }
        drop(client);
        assert!(!pooler.log()?.contains(reason));
        // Who leaves in the middle of a statement still costs the server.
        let mut busy = Raw::connect(pooler.port, &[("user", "postgres"), ("database", "db")])?;
        busy.ask("select pg_sleep(60)")?;
        let running = "select count(*) from pg_stat_activity where query ~ 'sleep' \
                       and state = 'active' and pid <> pg_backend_pid()";
        wait_until("query", || postgres.sql(running).is_ok_and(|count| count.trim() == "1"))?;
        drop(busy);
        wait_until("end of the server", || pooler.log().is_ok_and(|log| log.contains(reason)))?;
        postgres.cut()?;
    }
    let pooler = Pooler::start(program(), &entry, "pool_mode = transaction")?;
    leave(&pooler, &["begin"])?;
    wait_until("end of the server", || pooler.log().is_ok_and(|log| log.contains(reason)))
}

#[test]
fn a_statement_that_was_cut_short_is_not_completed_by_the_good_bye() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let model = Model::start(move |peer| {
        peer.welcome()?;
        loop {
            let (tag, body) = peer.message()?;
            if tag == 'Q' {
                ear.lock().unwrap_or_else(PoisonError::into_inner).push(body);
                peer.row("x")?;
                peer.ready('I')?;
            }
        }
    })?;
    let entry = format!("db = host=127.0.0.1 port={}", model.port);
    let pooler = Pooler::start(program(), &entry, "")?;
    let sql = b"drop table users_old\0";
    // With two bytes missing the good-bye would be a name's end, with five a whole message.
    for missing in 1..=6 {
        let mut client = Raw::connect(pooler.port, &[("user", "postgres"), ("database", "db")])?;
        client.query("select 1")?;
        let ended = model.errors().len();
        let mut bytes = vec![b'Q'];
        bytes.extend_from_slice(&(sql.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(&sql[..sql.len() - missing]);
        client.raw(&bytes)?;
        drop(client);
        wait_until("the server's end", || model.errors().len() > ended)?;
    }
    let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(heard.iter().all(|body| body == b"select 1\0"), "{heard:?}");
    Ok(())
}

/// What a client reads whose server answers its first question and ends at once, after these last
/// words or, if it asks a second one, without any; and the log.
fn answered_at_the_end(words: &'static [&'static str]) -> io::Result<(String, String)> {
    let flag = || Arc::new(AtomicBool::new(false));
    let (asked, wish, gone) = (flag(), flag(), flag());
    let (heard, wished, left) = (Arc::clone(&asked), Arc::clone(&wish), Arc::clone(&gone));
    let model = Model::start(move |peer| {
        peer.welcome()?;
        if peer.number > 0 {
            return peer.serve("second");
        }
        peer.message()?;
        heard.store(true, Ordering::SeqCst);
        wait_until("the wish", || wished.load(Ordering::SeqCst))?;
        peer.row("first")?;
        peer.ready('I')?;
        if !words.is_empty() {
            peer.error(words)?;
        }
        peer.close()?;
        left.store(true, Ordering::SeqCst);
        Ok(())
    })?;
    let entry = format!("db = host=127.0.0.1 port={} pool_size=1", model.port);
    let settings = "pool_mode = transaction\nworkers = 1\nserver_tls_sslmode = disable";
    let pooler = Pooler::start(program(), &entry, settings)?;
    let mut client = Raw::connect(pooler.port, &[("user", "postgres"), ("database", "db")])?;
    client.ask("select 1")?;
    wait_until("the question", || asked.load(Ordering::SeqCst))?;
    // The pooler finds the answer and the end of its server together.
    freeze(pooler.pid())?;
    wish.store(true, Ordering::SeqCst);
    let ended = wait_until("the end of the server", || gone.load(Ordering::SeqCst));
    signal(pooler.pid(), "CONT")?;
    ended?;
    let first = client.answer()?;
    let second = if words.is_empty() { client.query("select 2") } else { client.answer() }?;
    Ok((transcript(&[first, second].concat()), pooler.log()?))
}

#[test]
fn an_answer_that_comes_with_its_server_s_end_is_all_that_its_client_sees() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (read, log) = answered_at_the_end(&[])?;
    let rows: Vec<&str> = read.lines().filter(|line| line.starts_with(['D', 'E', 'Z'])).collect();
    assert_eq!(rows, ["D first", "Z I", "D second", "Z I"]);
    assert!(log.contains("closing because: server conn crashed? (age="), "{log}");
    assert!(!log.contains("pooler error"), "{log}");
    Ok(())
}

#[test]
fn whoever_reads_the_last_words_of_a_server_is_closed() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (read, log) = answered_at_the_end(&["SFATAL", "C57P01", "Mterminating connection"])?;
    let rows: Vec<&str> = read.lines().filter(|line| line.starts_with(['D', 'E', 'Z'])).collect();
    let end = "E SFATAL C08P01 Mserver conn crashed?";
    assert_eq!(rows, ["D first", "Z I", "E SFATAL C57P01 Mterminating connection", end]);
    assert!(log.contains("pooler error: server conn crashed?"), "{log}");
    Ok(())
}
