//! A server that is lost between two moments: it looked well when it was given out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use switchyard_testkit::{Model, Peer, Pooler, freeze, signal, wait_until};
use switchyard_wire::startup::VERSION_3_0;

use crate::wanted;
use crate::wire::{Message, Message::*, Wire, bytes};

/// One row of one column in the extended protocol, up to ReadyForQuery.
fn answer_group(peer: &mut Peer, text: &str) -> io::Result<()> {
    loop {
        match peer.message()?.0 {
            'P' => peer.send('1', b"")?,
            'B' => peer.send('2', b"")?,
            'E' => {
                let len = (text.len() as u32).to_be_bytes();
                peer.send('D', &[&b"\0\x01"[..], &len, text.as_bytes()].concat())?;
                peer.send('C', b"SELECT 1\0")?;
            }
            'S' => return peer.ready('I'),
            _ => {}
        }
    }
}

/// A query is sent to a server that has just ended, behind the parameters that it needs.
fn check(messages: &[Message<'_>], answer: &str) -> io::Result<()> {
    let reset = Arc::new(AtomicBool::new(false));
    let wish = Arc::clone(&reset);
    let simple = matches!(messages, [Query(_)]);
    let model = Model::start(move |peer| {
        peer.welcome()?;
        if peer.number > 0 && simple {
            return peer.serve("second");
        }
        peer.message()?;
        if peer.number > 0 {
            // The parameters.
            peer.send('C', b"SET\0")?;
            peer.ready('I')?;
            return answer_group(peer, "second");
        }
        peer.row("first")?;
        peer.ready('I')?;
        wait_until("the wish", || wish.load(Ordering::SeqCst))?;
        peer.reset()
    })?;
    let entry = format!("db = host=127.0.0.1 port={} pool_size=1", model.port);
    let settings = "pool_mode = transaction\nworkers = 1\nserver_tls_sslmode = disable";
    let pooler = Pooler::start(crate::program(), &entry, settings)?;
    let login = |name| {
        let parameters = [("user", "postgres"), ("database", "db"), ("application_name", name)];
        Wire::login_with(pooler.port, VERSION_3_0, &parameters)
    };
    // The first client has no parameters to set.
    let (mut one, mut two) = (Wire::login(pooler.port, "db")?, login("two")?);
    assert_eq!(one.ask(&[Query("select 1")])?, "T <first> SELECT 1 ZI");
    wait_until("release", || {
        pooler.console("show servers").is_ok_and(|rows| rows.contains("|idle|"))
    })?;
    // The pooler finds the query before it finds the server's end.
    freeze(pooler.pid())?;
    two.send(&bytes(messages))?;
    reset.store(true, Ordering::SeqCst);
    let there = format!(":{:04X}", model.port);
    let connected = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let mut ends = || fields.next().is_some_and(|address| address.ends_with(&there));
        let (own, other) = (ends(), ends());
        (own || other) && fields.next() == Some("01")
    };
    let mut left = String::new();
    let ended = wait_until("the end of the server", || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        left = sockets.lines().filter(|line| connected(line)).collect();
        !sockets.is_empty() && left.is_empty()
    });
    assert!(ended.is_ok(), "{left} {:?} {}", model.errors(), pooler.log()?);
    signal(pooler.pid(), "CONT")?;
    assert_eq!(two.answers(1)?, answer);
    let log = pooler.log()?;
    assert!(log.contains("closing because: var change failed (age="), "{log}");
    assert!(!log.contains("pooler error"), "{log}");
    Ok(())
}

#[test]
fn a_query_whose_parameters_cannot_be_set_goes_to_another_server() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    check(&[Query("select 2")], "T <second> SELECT 1 ZI")
}

#[test]
fn so_does_a_group_with_a_statement_that_it_defines() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let group = [Parse("a", "select 2"), Bind("a", &[]), Execute, Sync];
    check(&group, "1 2 <second> SELECT 1 ZI")
}
