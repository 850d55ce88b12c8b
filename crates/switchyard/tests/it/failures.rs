//! Every way in which a cluster loses its writer, under clients that write without a pause and
//! clients that are silent: who is told what, how long it takes, and which rows are there.

use std::io;
use std::time::{Duration, Instant};

use switchyard_testkit::{Change, Client, Cluster, Cost, Pooler, Writers, wait_until};

const WRITERS: usize = 8;
const IDLE: usize = 12;
/// The machine that runs this may be busy; what is stuck takes longer than this by far.
const SOON: Duration = Duration::from_secs(3);

fn start(settings: &str) -> io::Result<(Cluster, Pooler)> {
    let cluster = Cluster::start()?;
    let settings = format!("pool_mode = transaction\n{settings}");
    let pooler = Pooler::start(super::program(), &cluster.entry("app"), &settings)?;
    let readers =
        || pooler.console("show nodes").is_ok_and(|text| text.matches("|reader|").count() > 1);
    wait_until("two standbys", readers)?;
    Ok((cluster, pooler))
}

/// Changes the writer under load and looks at what it cost.
fn survive(
    cluster: &mut Cluster,
    pooler: &Pooler,
    change: impl FnOnce(&mut Cluster) -> io::Result<Change>,
) -> io::Result<(Change, Cost)> {
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(Client::connect(pooler.port, "app")?);
    }
    let writers = Writers::start(cluster, pooler.port, "app", WRITERS)?;
    writers.run(500)?;
    let change = change(cluster)?;
    writers.run(100)?;
    let cost = writers.finish(&change)?;
    for client in &mut idle {
        client.run("select 1")?;
    }
    let complaints = &cost.complaints;
    assert_eq!((cost.disconnects, cost.wrong, cost.lost), (0, 0, 0), "{complaints:?}");
    assert_eq!((cost.doubled, cost.stale), (0, 0), "{complaints:?}");
    // One for each client whose statement was under way when a server went.
    let losses = pooler.log()?.matches("holding clients").count().max(1);
    assert!(cost.errors <= WRITERS * losses, "{complaints:?}");
    assert_eq!(cost.stalls.len(), WRITERS);
    let last = cost.stalls.last().copied().unwrap_or_default();
    assert!(last < SOON, "{last:?} {}", pooler.log()?);
    Ok((change, cost))
}

#[test]
fn a_frozen_writer_is_given_up_after_two_missed_probes() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (mut cluster, pooler) = start("")?;
    let (change, _) = survive(&mut cluster, &pooler, Cluster::freeze_over)?;
    let log = pooler.log()?;
    assert!(log.contains("writer lost (no answer in time), holding clients"), "{log}");
    // It wakes up as the writer that it was.
    let old = cluster.nodes().iter().find(|node| node.port == change.old);
    let Some(old) = old else { return Ok(()) };
    old.thaw()?;
    wait_until("fence", || {
        pooler.console("show nodes").is_ok_and(|text| text.contains("|unknown|fenced|"))
    })?;
    let mut client = Client::connect(pooler.port, "app")?;
    let mut reader = Client::connect(pooler.port, "app@any")?;
    for _ in 0..50 {
        assert_eq!(client.run("select inet_server_port()")?, [change.new.to_string()]);
        assert_ne!(reader.run("select inet_server_port()")?, [change.old.to_string()]);
    }
    Ok(())
}

#[test]
fn sessions_that_are_cut_make_no_switchover() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (mut cluster, pooler) = start("")?;
    survive(&mut cluster, &pooler, Cluster::cut)?;
    assert_eq!(pooler.console("show switchovers")?.matches("|failover|").count(), 0);
    // Without the probes' own sessions it is not even a hold.
    let (mut cluster, pooler) = start("")?;
    survive(&mut cluster, &pooler, |cluster| {
        let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                   where backend_type = 'client backend' and pid <> pg_backend_pid() \
                   and application_name <> 'switchyard-probe'";
        let gone = Instant::now();
        cluster.writer().sql(sql)?;
        let port = cluster.writer().port;
        Ok(Change { old: port, new: port, gone, accepted: Instant::now() })
    })?;
    let log = pooler.log()?;
    assert!(!log.contains("holding clients"), "{log}");
    Ok(())
}

#[test]
fn a_writer_that_restarts_is_the_writer_again() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (mut cluster, pooler) = start("")?;
    survive(&mut cluster, &pooler, Cluster::restart)?;
    let changes = pooler.console("show switchovers")?;
    assert!(changes.contains("|restart|"), "{changes}");
    Ok(())
}

#[test]
fn the_role_goes_to_another_node_and_back() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (mut cluster, pooler) = start("")?;
    let (change, _) = survive(&mut cluster, &pooler, |cluster| {
        let first = cluster.switch_over()?;
        cluster.switch_to(first.old)
    })?;
    let mut client = Client::connect(pooler.port, "app")?;
    assert_eq!(client.run("select inet_server_port()")?, [change.new.to_string()]);
    assert_eq!(pooler.console("show switchovers")?.matches("|failover|").count(), 2);
    Ok(())
}

#[test]
fn an_old_writer_that_comes_back_gets_nothing() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (mut cluster, pooler) = start("")?;
    let writers = Writers::start(&cluster, pooler.port, "app", WRITERS)?;
    writers.run(500)?;
    let change = cluster.fail_over()?;
    cluster.revive(change.old)?;
    writers.run(2000)?;
    wait_until("fence", || {
        pooler.console("show nodes").is_ok_and(|text| text.contains("|unknown|fenced|"))
    })?;
    writers.run(1000)?;
    let cost = writers.finish(&change)?;
    assert_eq!((cost.lost, cost.wrong, cost.doubled, cost.stale), (0, 0, 0, 0), "{cost:?}");
    Ok(())
}

#[test]
fn clients_wait_while_all_nodes_are_down() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (cluster, pooler) = start("query_wait_timeout = 60")?;
    let mut held = Client::connect(pooler.port, "app")?;
    for node in cluster.nodes() {
        node.stop("immediate")?;
    }
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    let (before, began) = (pooler.cpu()?, Instant::now());
    let held = std::thread::spawn(move || held.run("select pg_is_in_recovery()"));
    let mut late = Client::connect(pooler.port, "app")?;
    wait_until("three seconds", || began.elapsed() > Duration::from_secs(3))?;
    let share = (pooler.cpu()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    // An unoptimised program on a machine that does other things as well.
    assert!(share < 0.25, "{share}");
    for node in cluster.nodes() {
        node.launch()?;
    }
    let held = held.join().map_err(|_| io::Error::other("a panic"))?;
    assert_eq!(held?, ["f"]);
    assert_eq!(late.run("select pg_is_in_recovery()")?, ["f"]);
    Ok(())
}

#[test]
fn a_first_statement_goes_to_the_writer_when_its_node_is_read_only() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let role = "select case when pg_is_in_recovery() then 'on' \
                else current_setting('default_transaction_read_only') end";
    let entry = format!("{} recovery_query='{}'", cluster.entry("app"), role.replace('\'', "''"));
    // Nobody but a client's statement finds out soon.
    let settings = "pool_mode = transaction\npolling_frequency = 30";
    let pooler = Pooler::start(super::program(), &entry, settings)?;
    let readers = || pooler.log().is_ok_and(|log| log.matches("up as reader").count() == 2);
    wait_until("two standbys", readers)?;
    let mut client = Client::connect(pooler.port, "app")?;
    client.run("create table t (x int)")?;
    let old = cluster.writer().port;
    cluster.writer().sql("alter system set default_transaction_read_only = on")?;
    cluster.writer().sql("select pg_reload_conf()")?;
    wait_until("reload", || {
        cluster.writer().sql("show default_transaction_read_only").is_ok_and(|t| t.trim() == "on")
    })?;
    let writing = std::thread::spawn(move || {
        client.run("insert into t values (1) returning inet_server_port()")
    });
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    let change = cluster.switch_over()?;
    let port = writing.join().map_err(|_| io::Error::other("a panic"))?;
    assert_eq!(port.ok(), Some(vec![change.new.to_string()]), "{}", pooler.log()?);
    assert_ne!(change.new, old);
    Ok(())
}

#[test]
fn a_read_only_writer_s_refusal_is_its_client_s_answer() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (cluster, pooler) = start("")?;
    cluster.writer().sql("create table t (x int)")?;
    let mut client = Client::connect(pooler.port, "app")?;
    client.run("select 1")?;
    cluster.writer().sql("alter system set default_transaction_read_only = on")?;
    cluster.writer().sql("select pg_reload_conf()")?;
    wait_until("reload", || {
        cluster.writer().sql("show default_transaction_read_only").is_ok_and(|t| t.trim() == "on")
    })?;
    for _ in 0..3 {
        let told = client.run("insert into t values (1)").unwrap_err().to_string();
        assert!(told.starts_with("25006 "), "{told}");
        assert_eq!(client.run("select 1")?, ["1"]);
    }
    assert!(!pooler.log()?.contains("holding clients"));
    Ok(())
}

#[test]
fn a_cluster_is_found_through_a_standby_and_past_a_host_that_refuses() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let standby = cluster.nodes().iter().find(|node| node.port != cluster.writer().port);
    let port = standby.map_or(0, |node| node.port);
    let entry = format!(
        "app = host=127.0.0.2,127.0.0.1 port={port} dbname=postgres user=postgres \
         topology_query='select endpoint, port from nodes'\n\
         nobody = host=127.0.0.1 port={port} dbname=postgres topology_query='select 1'"
    );
    let pooler = Pooler::start(super::program(), &entry, "pool_mode = transaction")?;
    let mut client = Client::connect(pooler.port, "app")?;
    let writer = cluster.writer().port.to_string();
    assert_eq!(client.run("select inet_server_port()")?, [writer]);
    let mut ordinary = Client::connect(pooler.port, "nobody")?;
    assert_eq!(ordinary.run("select inet_server_port()")?, [port.to_string()]);
    let line = "topology_query of database \"nobody\" needs user= or probe_user";
    // At start it is told before the log file is known.
    pooler.console("reload")?;
    assert!(pooler.log()?.contains(line));
    let rows = pooler.console("show clusters")?;
    let nobody = rows.lines().find(|row| row.starts_with("nobody|")).unwrap_or_default();
    assert!(nobody.starts_with("nobody|unmanaged|||") && nobody.ends_with(line), "{rows}");
    assert!(rows.starts_with("app|ok|"), "{rows}");
    Ok(())
}

#[test]
fn a_cluster_that_fails_leaves_another_alone() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (mut one, other) = (Cluster::start()?, Cluster::start()?);
    let entries = format!("{}\n{}", one.entry("one"), other.entry("other"));
    let pooler = Pooler::start(super::program(), &entries, "pool_mode = transaction")?;
    wait_until("four standbys", || {
        pooler.log().is_ok_and(|log| log.matches("up as reader").count() == 4)
    })?;
    let writers = Writers::start(&other, pooler.port, "other", 4)?;
    writers.run(200)?;
    let mut held = Client::connect(pooler.port, "one")?;
    held.run("select 1")?;
    one.writer().stop("immediate")?;
    wait_until("hold", || {
        pooler.log().is_ok_and(|log| log.contains("cluster \"one\": writer lost"))
    })?;
    let gone = Instant::now();
    writers.run(500)?;
    one.fail_over_after_stop()?;
    held.run("select 1")?;
    writers.run(200)?;
    let port = other.writer().port;
    let cost = writers.finish(&Change { old: port, new: port, gone, accepted: Instant::now() })?;
    assert_eq!((cost.errors, cost.disconnects, cost.lost), (0, 0, 0), "{:?}", cost.complaints);
    assert!(!pooler.log()?.contains("cluster \"other\": writer lost"));
    Ok(())
}
