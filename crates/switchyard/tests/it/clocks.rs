//! A wall clock that is set while the pooler runs: nobody is given up, held or forgotten because of
//! it, and what is written down agrees with the clock of the moment.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use switchyard_testkit::{Client, Cluster, Pooler, Wall, wait_until};

const PORT: &str = "select inet_server_port()";
const DAY: i64 = 86_400;
/// Longer than the time between two looks at those who wait.
const LOOK: Duration = Duration::from_secs(1);

/// The only record in a directory.
fn record(directory: &std::path::Path) -> io::Result<serde_json::Value> {
    let mut text = String::new();
    wait_until("a record", || {
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names: Vec<_> = files.map(|file| file.path()).collect();
        text = names.last().and_then(|f| std::fs::read_to_string(f).ok()).unwrap_or_default();
        names.len() == 1 && text.ends_with("}\n")
    })?;
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn a_clock_that_is_set_during_a_hold_gives_nobody_up() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let Some(wall) = Wall::new()? else {
        eprintln!("libfaketime is not installed: left out");
        return Ok(());
    };
    let records = super::records::directory("clocks")?;
    let settings = format!(
        "pool_mode = transaction\nquery_wait_timeout = 60\nclient_idle_timeout = 120\n\
         switchover_record_dir = {}",
        records.display()
    );
    let mut cluster = Cluster::start()?;
    let wrapper = wall.wrapper();
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let pooler = Pooler::start_under(&wrapper, super::program(), &cluster.entry("app"), &settings)?;
    let readers =
        || pooler.console("show nodes").is_ok_and(|text| text.matches("|reader|").count() > 1);
    wait_until("two standbys", readers)?;
    let (mut idle, mut held) =
        (Client::connect(pooler.port, "app")?, Client::connect(pooler.port, "app")?);
    let old = cluster.writer().port.to_string();
    for days in [-20, 10, 0] {
        wall.set(days * DAY)?;
        assert_eq!(held.run(PORT)?.concat(), old, "{days}");
    }
    assert!(!pooler.log()?.contains("holding clients"), "{}", pooler.log()?);

    cluster.writer().kill()?;
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    let held = std::thread::spawn(move || held.run(PORT));
    let waits =
        || pooler.console("show clusters").is_ok_and(|text| text.split('|').nth(10) == Some("1"));
    for days in [10, -20] {
        wall.set(days * DAY)?;
        wait_until("a client that waits", waits)?;
        let began = Instant::now();
        wait_until("a look at all who wait", || began.elapsed() > LOOK)?;
        assert!(!held.is_finished(), "{days}");
    }
    let new = cluster.fail_over_after_stop()?.new.to_string();
    assert_eq!(held.join().map_err(|_| io::Error::other("a panic"))??.concat(), new);
    assert_eq!(idle.run(PORT)?.concat(), new);

    let record = record(&records)?;
    let number = |key: &str| record[key].as_i64().unwrap_or(i64::MAX);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let clock = i64::try_from(now).unwrap_or(0) - 20 * DAY;
    let started = number("started_unix_ms") / 1000;
    assert!((clock - 60..=clock).contains(&started), "{started} {clock}");
    let order = [0, number("detected_ms"), number("elected_ms"), number("released_ms"), 60_000];
    assert!(order.is_sorted(), "{record:#}");
    let day = |text: &str| text.chars().take(10).collect::<String>();
    let log = pooler.log()?;
    let rows = pooler.console("show switchovers")?;
    let shown = rows.split('|').nth(8).map(day).unwrap_or_default();
    let logged = log.lines().last().map(day).unwrap_or_default();
    assert_eq!(shown, logged, "{rows} {log}");
    std::fs::remove_dir_all(records)
}
