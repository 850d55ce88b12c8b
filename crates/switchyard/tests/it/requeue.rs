//! A server that is lost between two moments: it looked well when it was given out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use switchyard_testkit::{Model, Pooler, signal, wait_until};
use switchyard_wire::startup::VERSION_3_0;

use crate::wanted;
use crate::wire::{Message::*, Wire, bytes};

#[test]
fn a_query_whose_parameters_cannot_be_set_goes_to_another_server() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let reset = Arc::new(AtomicBool::new(false));
    let wish = Arc::clone(&reset);
    let model = Model::start(move |peer| {
        peer.welcome()?;
        if peer.number > 0 {
            return peer.serve("second");
        }
        peer.message()?;
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
    signal(pooler.pid(), "STOP")?;
    two.send(&bytes(&[Query("select 2")]))?;
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
    assert_eq!(two.answers(1)?, "T <second> SELECT 1 ZI");
    let log = pooler.log()?;
    assert!(log.contains("closing because: var change failed (age="), "{log}");
    assert!(!log.contains("pooler error"), "{log}");
    Ok(())
}
