//! What outlasts a change of writer: the record of it, what the pooler remembers of the system, and
//! how far readers may be behind.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use switchyard_testkit::{Client, Cluster, Pooler, Postgres, wait_until};

const PORT: &str = "select inet_server_port()";

fn start(entry: &str, settings: &str) -> io::Result<Pooler> {
    let settings = format!("pool_mode = transaction\n{settings}");
    let pooler = Pooler::start(super::program(), entry, &settings)?;
    let readers = || pooler.log().is_ok_and(|log| log.matches("up as reader").count() > 1);
    wait_until("two standbys", readers)?;
    Ok(pooler)
}

/// A directory that the pooler may write into.
fn directory(name: &str) -> io::Result<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("switchyard-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
    Ok(path)
}

#[test]
fn a_record_agrees_with_a_client_s_clock() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let records = directory("records")?;
    let pooler =
        start(&cluster.entry("app"), &format!("switchover_record_dir = {}", records.display()))?;
    let mut client = Client::connect(pooler.port, "app")?;
    client.run("select 1")?;
    let old = cluster.writer().port;
    cluster.writer().kill()?;
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    let (asked, asked_at) = (Instant::now(), SystemTime::now());
    let held = std::thread::spawn(move || (client.run(PORT), Instant::now()));
    wait_until("a waiting client", || {
        let row = pooler.console("show clusters");
        row.is_ok_and(|text| text.split('|').nth(10) == Some("1"))
    })?;
    let change = cluster.fail_over_after_stop()?;
    let (port, served) = held.join().map_err(|_| io::Error::other("a panic"))?;
    assert_eq!(port?, [change.new.to_string()]);
    let stall = served - asked;
    let mut text = String::new();
    wait_until("a record", || {
        let mut files = std::fs::read_dir(&records).into_iter().flatten().flatten();
        let newest = files.find(|file| file.file_name().to_string_lossy().starts_with("app-"));
        text = newest.and_then(|f| std::fs::read_to_string(f.path()).ok()).unwrap_or_default();
        text.ends_with("}\n")
    })?;
    std::fs::remove_dir_all(&records)?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    let number = |key: &str| value[key].as_u64().unwrap_or(u64::MAX);
    assert_eq!(value["kind"], "failover");
    assert_eq!(value["old_writer"], format!("127.0.0.1:{old}"));
    assert_eq!(value["new_writer"], format!("127.0.0.1:{}", change.new));
    assert_eq!((number("old_timeline"), number("new_timeline")), (1, 2));
    assert_eq!((number("held_clients"), number("timeouts")), (1, 0));
    assert!(number("detected_ms") <= number("elected_ms"), "{text}");
    assert!(number("elected_ms") <= number("released_ms"), "{text}");
    // The client's own clock, but for the way there and back on a busy machine.
    let longest = value["stall_ms"]["max"].as_u64().unwrap_or(u64::MAX);
    let stall = u64::try_from(stall.as_millis()).unwrap_or(u64::MAX);
    assert!(longest <= stall && stall - longest <= CLOSE, "{longest} {stall} {text}");
    let began = UNIX_EPOCH + Duration::from_millis(number("started_unix_ms"));
    let released = began + Duration::from_millis(number("released_ms"));
    let seen = asked_at + (served - asked);
    let apart = seen.duration_since(released).unwrap_or_default();
    assert!(released <= seen + Duration::from_millis(1) && apart.as_millis() <= CLOSE.into());
    assert!(value["journal"].as_array().is_some_and(|journal| journal.len() > 2), "{text}");
    Ok(())
}

/// Milliseconds that two clocks may be apart. On a quiet machine it is less than ten; a thread of
/// a busy one may have to wait for its turn that much longer.
const CLOSE: u64 = 100;

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
