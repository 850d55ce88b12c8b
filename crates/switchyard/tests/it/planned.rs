//! Switchovers that an operator wants: held, drained, promoted, released, or given up.

use std::io;
use std::time::{Duration, Instant};

use switchyard_testkit::{Change, Client, Cluster, Pooler, Writers, wait_until};

const WRITERS: usize = 8;

fn start(settings: &str) -> io::Result<(Cluster, Pooler)> {
    let cluster = Cluster::start()?;
    let pooler = Pooler::start(super::program(), &cluster.entry("app"), settings)?;
    let readers =
        || pooler.console("show nodes").is_ok_and(|text| text.matches("|reader|").count() > 1);
    wait_until("two standbys", readers)?;
    Ok((cluster, pooler))
}

fn console(pooler: &Pooler) -> io::Result<Client> {
    Client::connect(pooler.port, "pgbouncer")
}

fn told(client: &mut Client, command: &str) -> String {
    client.run(command).map_or_else(|error| error.to_string(), |rows| rows.join("\n"))
}

#[test]
fn a_planned_switchover_costs_nobody_an_error() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\npromote_sql = 1\nswitchover_record_dir = /tmp";
    let (mut cluster, pooler) = start(settings)?;
    let mut admin = console(&pooler)?;
    let writers = Writers::start(&cluster, pooler.port, "app", WRITERS)?;
    writers.run(500)?;
    let target = cluster.nodes()[1].port;
    let old = cluster.writer().port;
    assert_eq!(told(&mut admin, &format!("switchover app \"127.0.0.1:{target}\"")), "");
    let gone = Instant::now();
    // The third node goes with the new writer, whose commits wait for it.
    cluster.follow(target)?;
    let change = Change { old, new: target, gone, accepted: Instant::now() };
    writers.run(500)?;
    let cost = writers.finish(&change)?;
    assert_eq!((cost.errors, cost.disconnects, cost.wrong), (0, 0, 0), "{:?}", cost.complaints);
    assert_eq!((cost.lost, cost.doubled), (0, 0));
    let rows = pooler.console("show switchovers")?;
    let columns: Vec<&str> = rows.lines().next().unwrap_or_default().split('|').collect();
    assert_eq!((columns[2], columns[3]), ("planned", "SWITCHOVER"), "{rows}");
    assert_eq!((columns[14], columns[15], columns[16]), ("0", "0", "0"), "{rows}");
    assert!(columns[19].parse::<u64>().is_ok_and(|longest| longest < 3000), "{rows}");
    assert_eq!(columns[20], "ok", "{rows}");
    assert!(pooler.console("show clusters")?.contains(&format!("|127.0.0.1|{target}|")));
    Ok(())
}

#[test]
fn a_transaction_that_does_not_end_makes_it_fail() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\ndrain_timeout = 0.3\npromote_sql = 1";
    let (cluster, pooler) = start(settings)?;
    let mut admin = console(&pooler)?;
    let mut busy = Client::connect(pooler.port, "app")?;
    busy.run("begin")?;
    busy.run("select 1")?;
    let text = told(&mut admin, "switchover app");
    assert_eq!(text, "55000 switchover aborted: 1 transactions still running");
    busy.run("create table kept (x int)")?;
    busy.run("commit")?;
    let mut other = Client::connect(pooler.port, "app")?;
    assert_eq!(other.run("select inet_server_port()")?, [cluster.writer().port.to_string()]);
    assert!(pooler.console("show switchovers")?.contains("|aborted|"));
    for (command, wanted) in [
        ("switchover nowhere", "08P01 no such database: nowhere"),
        ("switchover app nobody", "55000 node \"nobody\" is not a healthy standby of \"app\""),
        ("switchover_abort app", "55000 no switchover in progress"),
        ("release app", "55000 database \"app\" is not on hold"),
    ] {
        assert_eq!(told(&mut admin, command), wanted);
    }
    // Its transactions are ended, if the operator says so.
    admin.run("set drain_action = kill")?;
    busy.run("begin")?;
    busy.run("select 1")?;
    assert_eq!(told(&mut admin, "switchover app"), "");
    assert!(told(&mut busy, "select 1").starts_with("08006 "));
    Ok(())
}

#[test]
fn a_hold_lasts_until_it_is_released_or_another_node_writes() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (mut cluster, pooler) = start("pool_mode = transaction")?;
    let mut admin = console(&pooler)?;
    let mut client = Client::connect(pooler.port, "app")?;
    let mut reader = Client::connect(pooler.port, "app@reader")?;
    for ending in ["release", "promotion"] {
        admin.run("hold app")?;
        assert_eq!(told(&mut admin, "hold app"), "55000 already holding");
        wait_until("holding", || {
            pooler.console("show clusters").is_ok_and(|text| text.starts_with("app|holding|"))
        })?;
        let held = std::thread::spawn(move || {
            let port = client.run("select inet_server_port()");
            (port, client)
        });
        wait_until("a waiting client", || {
            let row = pooler.console("show clusters");
            row.is_ok_and(|text| text.split('|').nth(10) == Some("1"))
        })?;
        reader.run("select 1")?;
        let writer = match ending {
            "release" => {
                admin.run("release app")?;
                cluster.writer().port
            }
            _ => cluster.switch_over()?.new,
        };
        let (port, back) = held.join().map_err(|_| io::Error::other("a panic"))?;
        client = back;
        assert_eq!(port?, [writer.to_string()]);
    }
    assert_eq!(told(&mut admin, "release app"), "55000 database \"app\" is not on hold");
    assert!(pooler.console("show clusters")?.starts_with("app|ok|"));
    Ok(())
}

#[test]
fn a_program_promotes_or_its_failure_is_told() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let failing = "promote_command = /bin/sh -c 'echo \"%n not today\" >&2; exit 3'";
    let (cluster, pooler) = start(&format!("pool_mode = transaction\n{failing}"))?;
    let mut admin = console(&pooler)?;
    let mut client = Client::connect(pooler.port, "app")?;
    let target = cluster.nodes()[1].port;
    let text = told(&mut admin, &format!("switchover app \"127.0.0.1:{target}\""));
    let wanted = format!("exit status: 3: 127.0.0.1:{target} not today");
    assert!(
        text.starts_with("55000 promotion failed: /bin/sh: ") && text.ends_with(&wanted),
        "{text}"
    );
    // Nobody was promoted: the old writer goes on.
    assert_eq!(client.run("select inet_server_port()")?, [cluster.writer().port.to_string()]);
    let psql = switchyard_testkit::programs()?.join("psql");
    let promoting = format!(
        "set promote_command = '{} -h %h -p %p -U postgres -c \"select pg_promote()\"'",
        psql.display()
    );
    admin.run(&promoting)?;
    assert_eq!(told(&mut admin, &format!("switchover app \"127.0.0.1:{target}\"")), "");
    assert_eq!(client.run("select inet_server_port()")?, [target.to_string()]);
    Ok(())
}

#[test]
fn an_abort_releases_on_the_old_writer() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for mode in ["transaction", "session"] {
        let (cluster, pooler) = start(&format!("pool_mode = {mode}"))?;
        let mut client = Client::connect(pooler.port, "app")?;
        client.run("select 1")?;
        let mut admin = console(&pooler)?;
        let waiting = std::thread::spawn(move || told(&mut admin, "switchover app"));
        wait_until("wait for a promotion", || {
            pooler
                .console("show switchovers")
                .is_ok_and(|text| text.contains("|waiting for promotion"))
        })?;
        let mut other = console(&pooler)?;
        assert_eq!(told(&mut other, "switchover app"), "55000 switchover already in progress");
        let began = Instant::now();
        let held = std::thread::spawn(move || client.run("select inet_server_port()"));
        wait_until("some time", || began.elapsed() > Duration::from_millis(200))?;
        assert!(!held.is_finished(), "nothing new reaches the old writer");
        other.run("switchover_abort app")?;
        let text = waiting.join().map_err(|_| io::Error::other("a panic"))?;
        assert_eq!(text, "55000 switchover aborted: operator");
        let port = held.join().map_err(|_| io::Error::other("a panic"))?;
        assert_eq!(port?, [cluster.writer().port.to_string()]);
    }
    Ok(())
}
