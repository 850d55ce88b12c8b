//! Nodes that do not answer, each for another reason: packets that nobody gets, processes that are
//! frozen, ports where nobody listens. In a network namespace with an address for each node.

use std::io;
use std::time::{Duration, Instant};

use switchyard_testkit::{Client, NameServer, Pooler, Postgres, Space, wait_until};

/// The machine may be busy; what waits for TCP takes longer than this by far.
const SOON: Duration = Duration::from_secs(5);
const ADDRESS: &str = "select host(inet_server_addr())";

fn space() -> Option<Space> {
    match Space::new() {
        Ok(space) => Some(space),
        Err(error) => {
            println!("no network namespace, left out: {error}");
            None
        }
    }
}

fn tells(pooler: &Pooler, address: &str, text: &str) -> io::Result<()> {
    wait_until(text, || {
        let nodes = pooler.console("show nodes").unwrap_or_default();
        let mut own = nodes.lines().filter(|line| line.contains(&format!("|{address}|5432|")));
        own.any(|line| line.contains("|unknown|") && line.contains(text))
    })
}

#[test]
fn a_writer_whose_packets_are_lost_is_given_up_and_told_from_others() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let Some(space) = space() else { return Ok(()) };
    let addresses = space.addresses();
    let [first, second, third] = &addresses[..] else { return Ok(()) };
    let writer = Postgres::start_in(&space, first)?;
    let (one, other) = (writer.standby_at(second, 5432)?, writer.standby_at(third, 5432)?);
    writer.sql(&format!(
        "create table nodes as select unnest(array['{first}', '{second}', '{third}']) endpoint; \
         create table t (x int)"
    ))?;
    let entry = format!(
        "app = host={first} dbname=postgres user=postgres \
         topology_query='select endpoint from nodes'"
    );
    let settings = "pool_mode = transaction\nquery_wait_timeout = 60";
    let pooler = Pooler::start(super::program(), &entry, settings)?;
    let readers = || pooler.log().is_ok_and(|log| log.matches("up as reader").count() == 2);
    wait_until("two standbys", readers)?;
    let (mut idle, mut busy) =
        (Client::connect(pooler.port, "app")?, Client::connect(pooler.port, "app")?);
    assert_eq!(idle.run(ADDRESS)?, [first.as_str()]);
    let running = std::thread::spawn(move || (busy.run("select pg_sleep(600)"), busy));
    wait_until("a running statement", || {
        let sql = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
        writer.sql(sql).is_ok_and(|text| text.trim() == "1")
    })?;

    space.swallow(first)?;
    let began = Instant::now();
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    let (result, mut busy) = running.join().map_err(|_| io::Error::other("a panic"))?;
    let told = result.unwrap_err().to_string();
    assert!(told.starts_with("08007 "), "{told}");
    let held = std::thread::spawn(move || (idle.run(ADDRESS), Instant::now(), idle));
    one.promote()?;
    let promoted = Instant::now();
    let (address, at, mut idle) = held.join().map_err(|_| io::Error::other("a panic"))?;
    assert_eq!(address?, [second.as_str()]);
    assert!(at.saturating_duration_since(promoted) < SOON);
    assert_eq!(busy.run(ADDRESS)?, [second.as_str()]);
    tells(&pooler, first, "the host does not answer")?;

    // A frozen server still accepts connections, and one that has ended refuses them.
    other.freeze()?;
    tells(&pooler, third, "connected, but the server does not answer")?;
    other.thaw()?;
    other.stop("immediate")?;
    tells(&pooler, third, "refused")?;

    // The old writer is back, and knows nothing of all this.
    space.pass()?;
    wait_until("fence", || {
        pooler.console("show nodes").is_ok_and(|text| text.contains("|unknown|fenced|"))
    })?;
    for _ in 0..20 {
        idle.run("insert into t values (1)")?;
        assert_eq!(idle.run(ADDRESS)?, [second.as_str()]);
    }
    assert_eq!(writer.sql("select count(*) from t")?.trim(), "0");
    Ok(())
}

#[test]
fn a_name_that_moves_leads_to_the_node_where_it_is() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let Some(space) = space() else { return Ok(()) };
    let addresses = space.addresses();
    let [first, second, _] = &addresses[..] else { return Ok(()) };
    let names = NameServer::start()?;
    names.set("one.test", &[first]);
    names.set("two.test", &[second]);
    let writer = Postgres::start_in(&space, first)?;
    let standby = writer.standby_at(second, 5432)?;
    let entry = "app = host=one.test dbname=postgres user=postgres topology_query='select \
                 unnest(array[''one.test'', ''two.test''])'";
    let settings = format!("pool_mode = transaction\ndns_max_ttl = 0\n{}", names.setting());
    let pooler = Pooler::start(super::program(), entry, &settings)?;
    let readers = || pooler.log().is_ok_and(|log| log.contains("up as reader"));
    wait_until("a standby", readers)?;
    let mut client = Client::connect(pooler.port, "app")?;
    assert_eq!(client.run(ADDRESS)?, [first.as_str()]);
    // The names change places with the roles.
    writer.kill()?;
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    names.set("one.test", &[second]);
    names.set("two.test", &[first]);
    standby.promote()?;
    assert_eq!(client.run(ADDRESS)?, [second.as_str()]);
    Ok(())
}
