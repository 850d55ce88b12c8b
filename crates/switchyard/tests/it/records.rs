//! What outlasts a change of writer: the record of it, what the pooler remembers of the system, and
//! how far readers may be behind.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use switchyard_testkit::{Change, Client, Cluster, Pooler, Postgres, wait_until};

const PORT: &str = "select inet_server_port()";

fn start(entry: &str, settings: &str) -> io::Result<Pooler> {
    let settings = format!("pool_mode = transaction\n{settings}");
    let pooler = Pooler::start(super::program(), entry, &settings)?;
    let readers = || pooler.log().is_ok_and(|log| log.matches("up as reader").count() > 1);
    wait_until("two standbys", readers)?;
    Ok(pooler)
}

/// A directory that the pooler may write into.
pub(super) fn directory(name: &str) -> io::Result<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("switchyard-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
    Ok(path)
}

/// What a client's own clock says of its wait.
#[derive(Clone, Copy, Debug)]
struct Wait {
    stall: u64,
    served: SystemTime,
    /// How long the next statement took: what a way there and back costs at that moment.
    way: u64,
}

/// Stops the writer, lets clients ask one after the other, and promotes; answers what their clocks
/// say, shortest wait first.
fn change(cluster: &mut Cluster, pooler: &Pooler) -> io::Result<(Change, Vec<Wait>)> {
    let mut clients = Vec::new();
    for _ in 0..ASKERS {
        let mut client = Client::connect(pooler.port, "app")?;
        client.run(PORT)?;
        clients.push(client);
    }
    let holding = |pooler: &Pooler| {
        let row = pooler.console("show clusters").unwrap_or_default();
        let held: Option<usize> = row.split('|').nth(10).and_then(|cell| cell.parse().ok());
        row.contains("|holding|").then_some(held).flatten()
    };
    let old = cluster.nodes().iter().position(|node| node.port == cluster.writer().port);
    cluster.writer().stop("fast")?;
    wait_until("hold", || holding(pooler).is_some())?;
    let mut waiting = Vec::new();
    for (index, mut client) in clients.into_iter().enumerate() {
        waiting.push(std::thread::spawn(move || -> io::Result<(Vec<String>, Wait)> {
            let asked = Instant::now();
            let port = client.run(PORT)?;
            let (stall, served, again) = (asked.elapsed(), SystemTime::now(), Instant::now());
            client.run(PORT)?;
            let number = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            Ok((port, Wait { stall: number(stall), served, way: number(again.elapsed()) }))
        }));
        wait_until("a waiting client", || holding(pooler) == Some(index + 1))?;
    }
    let change = cluster.fail_over_after_stop()?;
    let mut waits = Vec::new();
    for thread in waiting {
        let (port, wait) = thread.join().map_err(|_| io::Error::other("a panic"))??;
        assert_eq!(port, [change.new.to_string()]);
        waits.push(wait);
    }
    waits.sort_by_key(|wait| wait.stall);
    if let Some(old) = old {
        cluster.nodes()[old].follow(cluster.writer())?;
    }
    Ok((change, waits))
}

/// The record of the last change.
fn record(directory: &std::path::Path, count: usize) -> io::Result<serde_json::Value> {
    let mut text = String::new();
    wait_until("a record", || {
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: Vec<_> = files.map(|file| file.path()).collect();
        names.sort();
        text = names.last().and_then(|f| std::fs::read_to_string(f).ok()).unwrap_or_default();
        names.len() == count && text.ends_with("}\n")
    })?;
    Ok(serde_json::from_str(&text)?)
}

/// By how many milliseconds the record and the clients' clocks differ, beyond the time that a way
/// there and back takes. What the pooler measures lies within what clients do.
fn apart(value: &serde_json::Value, waits: &[Wait]) -> u64 {
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(u64::MAX);
    let middle = waits[(waits.len() - 1) / 2].stall;
    let longest = waits[waits.len() - 1].stall;
    let mut differences = vec![
        (middle + SLACK).checked_sub(number(&value["stall_ms"]["p50"])),
        (longest + SLACK).checked_sub(number(&value["stall_ms"]["p99"])),
        (longest + SLACK).checked_sub(number(&value["stall_ms"]["max"])),
    ];
    let began = UNIX_EPOCH + Duration::from_millis(number(&value["started_unix_ms"]));
    let released = began + Duration::from_millis(number(&value["released_ms"]));
    for wait in waits {
        let seen = (wait.served + Duration::from_millis(SLACK)).duration_since(released);
        differences.push(seen.ok().and_then(|after| u64::try_from(after.as_millis()).ok()));
    }
    let least = differences.iter().all(Option::is_some);
    assert!(least, "the record tells of longer waits than clients: {value} {waits:?}");
    let most = differences.into_iter().flatten().max().unwrap_or(u64::MAX);
    let way = waits.iter().map(|wait| wait.way).max().unwrap_or_default();
    most.saturating_sub(SLACK + way)
}

#[test]
fn a_record_agrees_with_the_clocks_of_clients() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let records = directory("records")?;
    let settings = format!("switchover_record_dir = {}", records.display());
    let pooler = start(&cluster.entry("app"), &settings)?;
    let mut least = u64::MAX;
    for round in 1..=ROUNDS {
        let old = cluster.writer().port;
        let (change, waits) = change(&mut cluster, &pooler)?;
        let value = record(&records, round)?;
        let number = |key: &str| value[key].as_u64().unwrap_or(u64::MAX);
        assert_eq!(value["kind"], "failover");
        assert_eq!(value["old_writer"], format!("127.0.0.1:{old}"));
        assert_eq!(value["new_writer"], format!("127.0.0.1:{}", change.new));
        assert_eq!(number("new_timeline"), number("old_timeline") + 1);
        assert_eq!((number("held_clients"), number("timeouts")), (ASKERS as u64, 0));
        assert!(number("detected_ms") <= number("elected_ms"), "{value}");
        assert!(number("elected_ms") <= number("released_ms"), "{value}");
        assert!(value["journal"].as_array().is_some_and(|journal| journal.len() > 2), "{value}");
        least = least.min(apart(&value, &waits));
        if least <= CLOSE {
            break;
        }
    }
    std::fs::remove_dir_all(&records)?;
    assert!(least <= CLOSE, "{least} ms apart");
    Ok(())
}

/// Clients that wait.
const ASKERS: usize = 5;
/// Milliseconds that a record and a client's clock may be apart. A thread of a busy machine may
/// have to wait that long for its turn once, but not in every change.
const CLOSE: u64 = 10;
/// What rounding and the reading of two clocks one after the other may cost.
const SLACK: u64 = 2;
const ROUNDS: usize = 10;

#[test]
fn a_stale_writer_is_known_after_a_restart_of_the_pooler() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let place = directory("state")?;
    let file = place.join("state.json");
    let settings = format!("switchover_state_file = {}", file.display());
    let entry = cluster.entry("app");
    let pooler = start(&entry, &settings)?;
    let change = cluster.fail_over()?;
    let mut client = Client::connect(pooler.port, "app")?;
    assert_eq!(client.run(PORT)?, [change.new.to_string()]);
    wait_until("memory", || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        value["app"]["timeline"] == 2 && value["app"]["system_identifier"].is_string()
    })?;
    drop(pooler);
    // Everybody is gone, and only the old writer comes back.
    for node in cluster.nodes().iter().filter(|node| node.port != change.old) {
        node.stop("immediate")?;
    }
    cluster.revive(change.old)?;
    let settings = format!("pool_mode = transaction\n{settings}");
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    wait_until("refusal", || {
        pooler.log().is_ok_and(|log| log.contains("is a stale writer (timeline 1, expected"))
    })?;
    let port = pooler.port;
    let held = std::thread::spawn(move || Client::connect(port, "app")?.run(PORT));
    cluster.writer().launch()?;
    let served = held.join().map_err(|_| io::Error::other("a panic"))?;
    assert_eq!(served?, [change.new.to_string()]);
    std::fs::remove_dir_all(&place)
}

#[test]
fn readers_that_are_far_behind_are_not_used() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let pooler = start(&cluster.entry("app"), "reader_max_lag = 1000000")?;
    let [_, behind, good] = cluster.nodes() else { return Ok(()) };
    behind.sql("select pg_wal_replay_pause()")?;
    cluster
        .writer()
        .sql("create table t as select repeat('x', 900) from generate_series(1, 5000)")?;
    let mut reader = Client::connect(pooler.port, "app@reader!")?;
    let mut streak = 0;
    wait_until("the other reader alone", || {
        let here = reader.run(PORT).is_ok_and(|rows| rows == [good.port.to_string()]);
        streak = if here { streak + 1 } else { 0 };
        streak > 30
    })?;
    behind.sql("select pg_wal_replay_resume()")?;
    let mut found = std::collections::HashSet::new();
    wait_until("both readers", || {
        let mut clients = Vec::new();
        for _ in 0..4 {
            let Ok(mut client) = Client::connect(pooler.port, "app@reader!") else { return false };
            let started = client.run("begin").and_then(|_| client.run(PORT));
            found.extend(started.unwrap_or_default());
            clients.push(client);
        }
        found.contains(&behind.port.to_string())
    })
}

#[test]
fn another_system_takes_over_only_if_the_operator_says_so() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for accept in [false, true] {
        let (blue, green) = (Postgres::start("")?, Postgres::start("")?);
        for node in [&blue, &green] {
            node.sql(&format!(
                "create table nodes as select '127.0.0.1' endpoint, port \
                 from unnest(array[{}, {}]) port",
                blue.port, green.port
            ))?;
        }
        let entry = format!(
            "app = host=127.0.0.1 port={} dbname=postgres user=postgres \
             topology_query='select endpoint, port from nodes'",
            blue.port
        );
        let settings = format!("pool_mode = transaction\naccept_new_system = {}", u8::from(accept));
        let pooler = Pooler::start(super::program(), &entry, &settings)?;
        let mut client = Client::connect(pooler.port, "app")?;
        assert_eq!(client.run(PORT)?, [blue.port.to_string()]);
        blue.stop("immediate")?;
        let held = std::thread::spawn(move || client.run(PORT));
        if !accept {
            wait_until("refusal", || {
                pooler.log().is_ok_and(|log| log.contains("belongs to another cluster"))
            })?;
            assert!(!held.is_finished());
            blue.launch()?;
        }
        let port = held.join().map_err(|_| io::Error::other("a panic"))?;
        let wanted = if accept { green.port } else { blue.port };
        assert_eq!(port?, [wanted.to_string()], "{}", pooler.log()?);
    }
    Ok(())
}
