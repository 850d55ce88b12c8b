//! What is not as it seems: a server that is reached in two ways, and time that has jumped because
//! the pooler was stopped.

use std::io;
use std::time::{Duration, Instant};

use switchyard_testkit::{Client, Cluster, Pooler, freeze, signal, wait_until};

const PORT: &str = "select inet_server_port()";
/// How long the pooler is stopped: longer than any deadline of its probes.
const STOPPED: Duration = Duration::from_secs(2);

fn start(entry: &str, settings: &str) -> io::Result<Pooler> {
    let settings = format!("pool_mode = transaction\n{settings}");
    let pooler = Pooler::start(super::program(), entry, &settings)?;
    let readers = || pooler.log().is_ok_and(|log| log.matches("up as reader").count() > 1);
    wait_until("two standbys", readers)?;
    Ok(pooler)
}

#[test]
fn a_writer_that_is_listed_in_two_ways_is_one() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let pooler =
        start(&cluster.entry("app"), "topology_refresh = 0\ntopology_removal_delay = 0.1")?;
    let mut client = Client::connect(pooler.port, "app")?;
    let old = cluster.writer().port;
    assert_eq!(client.run(PORT)?, [old.to_string()]);
    // It is listed by its socket beside its address, and then by its socket alone.
    let directory = cluster.writer().socket_dir().display().to_string();
    let both = format!("insert into nodes values ('{directory}', {old})");
    cluster.writer().sql(&both)?;
    pooler.console("probe app")?;
    wait_until("a warning", || {
        let text = format!("node {directory}:{old} is the same server as another node");
        pooler.log().is_ok_and(|log| log.contains(&text))
    })?;
    cluster
        .writer()
        .sql(&format!("delete from nodes where endpoint = '127.0.0.1' and port = {old}"))?;
    pooler.console("probe app")?;
    wait_until("the other way", || {
        let nodes = pooler.console("show nodes").unwrap_or_default();
        nodes.lines().any(|line| line.contains(&format!("|127.0.0.1|{old}|writer|removed|")))
    })?;
    assert_eq!(client.run(PORT)?, [old.to_string()], "who writes stays");
    assert!(!pooler.log()?.contains("holding clients"), "{}", pooler.log()?);
    let change = cluster.fail_over()?;
    assert_eq!(client.run(PORT)?, [change.new.to_string()]);
    assert!(!pooler.log()?.contains("two writers"));
    Ok(())
}

/// The pooler stands still for a while; to it the clock jumps.
fn stand_still(pooler: &Pooler, meanwhile: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    freeze(pooler.pid())?;
    let began = Instant::now();
    let result = meanwhile();
    let rest = wait_until("time", || began.elapsed() > STOPPED);
    signal(pooler.pid(), "CONT")?;
    result.and(rest)
}

#[test]
fn a_pooler_that_was_stopped_at_rest_goes_on() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let pooler = start(&cluster.entry("app"), "")?;
    let writer = cluster.writer().port;
    let (mut idle, mut block) =
        (Client::connect(pooler.port, "app")?, Client::connect(pooler.port, "app")?);
    let mut busy = Client::connect(pooler.port, "app")?;
    assert_eq!(idle.run(PORT)?, [writer.to_string()]);
    block.run("begin")?;
    block.run("create table kept (x int)")?;
    let running = std::thread::spawn(move || busy.run("select pg_sleep(1), 7"));
    wait_until("a running statement", || {
        let sql = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
        cluster.writer().sql(sql).is_ok_and(|text| text.trim() == "1")
    })?;
    for _ in 0..2 {
        stand_still(&pooler, || Ok(()))?;
        assert_eq!(idle.run(PORT)?, [writer.to_string()]);
    }
    let row = running.join().map_err(|_| io::Error::other("a panic"))??;
    assert_eq!(row, ["|7"]);
    block.run("commit")?;
    assert_eq!(cluster.writer().sql("select count(*) from kept")?.trim(), "0");
    assert!(pooler.console("show clusters")?.starts_with(&format!("app|ok|127.0.0.1:{writer}|")));
    Ok(())
}

#[test]
fn a_pooler_that_was_stopped_during_a_hold_finds_the_writer_of_now() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let pooler = start(&cluster.entry("app"), "query_wait_timeout = 60")?;
    let mut client = Client::connect(pooler.port, "app")?;
    client.run("select 1")?;
    cluster.writer().kill()?;
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    let held = std::thread::spawn(move || (client.run(PORT), client));
    wait_until("a waiting client", || {
        pooler.console("show clusters").is_ok_and(|text| text.split('|').nth(10) == Some("1"))
    })?;
    let mut change = None;
    stand_still(&pooler, || {
        change = Some(cluster.fail_over_after_stop()?);
        Ok(())
    })?;
    let new = change.map_or(0, |change| change.new);
    let (port, mut client) = held.join().map_err(|_| io::Error::other("a panic"))?;
    assert_eq!(port?, [new.to_string()]);
    // An operator's hold outlasts it as well, and a limit that has passed meanwhile has passed.
    let mut admin = Client::connect(pooler.port, "pgbouncer")?;
    admin.run("hold app")?;
    admin.run("set query_wait_timeout = 1")?;
    let late = std::thread::spawn(move || client.run(PORT));
    wait_until("a waiting client", || {
        pooler.console("show clusters").is_ok_and(|text| text.split('|').nth(10) == Some("1"))
    })?;
    stand_still(&pooler, || Ok(()))?;
    let told = late.join().map_err(|_| io::Error::other("a panic"))?;
    let told = told.map_or_else(|error| error.to_string(), |rows| rows.join(" "));
    assert!(told.contains("query_wait_timeout"), "{told}");
    assert!(pooler.console("show clusters")?.starts_with("app|holding|"));
    admin.run("release app")?;
    assert_eq!(Client::connect(pooler.port, "app")?.run(PORT)?, [new.to_string()]);
    Ok(())
}

/// Waits until so many clients of `app` wait.
fn waits(pooler: &Pooler, count: &str) -> io::Result<()> {
    wait_until("waiting clients", || {
        pooler.console("show clusters").is_ok_and(|text| text.split('|').nth(10) == Some(count))
    })
}

type Asked = std::thread::JoinHandle<(io::Result<Vec<String>>, Client)>;

fn ask(mut client: Client) -> Asked {
    std::thread::spawn(move || (client.run(PORT), client))
}

fn told(asked: Asked) -> io::Result<(String, Client)> {
    let (result, client) = asked.join().map_err(|_| io::Error::other("a panic"))?;
    Ok((result.map_or_else(|error| error.to_string(), |rows| rows.join(" ")), client))
}

#[test]
fn holds_outlast_reloads_and_pauses_and_end_with_the_entry_or_the_process() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let pooler = start(&cluster.entry("app"), "query_wait_timeout = 60")?;
    let mut client = Client::connect(pooler.port, "app")?;
    client.run("select 1")?;
    let mut admin = Client::connect(pooler.port, "pgbouncer")?;
    let old = cluster.writer().port;
    cluster.writer().kill()?;
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    let held = ask(client);
    waits(&pooler, "1")?;
    admin.run("reload")?;
    signal(pooler.pid(), "HUP")?;
    wait_until("SIGHUP", || pooler.log().is_ok_and(|log| log.contains("got SIGHUP")))?;
    admin.run("pause app")?;
    let new = cluster.fail_over_after_stop()?.new.to_string();
    wait_until("election", || pooler.log().is_ok_and(|log| log.contains("released")))?;
    assert!(!held.is_finished(), "it is paused");
    admin.run("hold app")?;
    admin.run("resume app")?;
    waits(&pooler, "1")?;
    assert!(!held.is_finished(), "it is held");
    admin.run("release app")?;
    let (text, client) = told(held)?;
    assert_eq!(text, new);
    admin.run("reload")?;
    assert!(pooler.console("show clusters")?.starts_with(&format!("app|ok|127.0.0.1:{new}|")));

    // Without the query it is an ordinary entry, which leads to its host.
    let ini = std::fs::read_to_string(pooler.ini())?;
    let ini = ini.replace(&format!(" port={old} "), &format!(" port={new} "));
    let line = ini.lines().find(|line| line.starts_with("app ")).unwrap_or_default();
    let ordinary = format!("app = host=127.0.0.1 port={new} dbname=postgres user=postgres");
    let ordinary = ini.replace(line, &ordinary);
    std::fs::write(pooler.ini(), &ordinary)?;
    admin.run("hold app")?;
    let held = ask(client);
    waits(&pooler, "1")?;
    admin.run("reload")?;
    let (text, client) = told(held)?;
    assert_eq!(text, new);
    assert_eq!(pooler.console("show clusters")?, "");

    // And with it again a cluster, whose clients are told when the entry goes, or the process.
    std::fs::write(pooler.ini(), &ini)?;
    admin.run("reload")?;
    wait_until("a writer", || {
        let text = pooler.console("show clusters").unwrap_or_default();
        text.starts_with(&format!("app|ok|127.0.0.1:{new}|"))
    })?;
    admin.run("hold app")?;
    let held = ask(client);
    waits(&pooler, "1")?;
    std::fs::write(pooler.ini(), ini.replace(line, "other = host=127.0.0.1"))?;
    admin.run("reload")?;
    let (text, _) = told(held)?;
    assert!(text.contains("database removed"), "{text}");
    std::fs::write(pooler.ini(), &ini)?;
    admin.run("reload")?;
    let mut client = Client::connect(pooler.port, "app")?;
    assert_eq!(client.run(PORT)?, [new]);
    admin.run("hold app")?;
    let held = ask(client);
    waits(&pooler, "1")?;
    admin.run("shutdown wait_for_servers")?;
    let (text, _) = told(held)?;
    assert!(text.contains("server shutting down"), "{text}");
    Ok(())
}
