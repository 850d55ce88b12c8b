//! Nodes that come back at other addresses, with the data and the timeline that they had: one of
//! them, or all.

use std::io;
use std::net::TcpListener;

use switchyard_testkit::{
    Change, Client, Cluster, Forward, Pooler, Writers, free_port, wait_until,
};

const PORT: &str = "select inet_server_port()";

fn start(cluster: &Cluster, entry: &str) -> io::Result<Pooler> {
    let settings = "pool_mode = transaction\nquery_wait_timeout = 60";
    let pooler = Pooler::start(super::program(), entry, settings)?;
    let readers =
        || pooler.console("show nodes").is_ok_and(|text| text.matches("|reader|").count() > 1);
    wait_until("two standbys", readers)?;
    let mut client = Client::connect(pooler.port, "app")?;
    assert_eq!(client.run(PORT)?, [cluster.writer().port.to_string()]);
    Ok(pooler)
}

#[test]
fn a_writer_that_comes_back_at_another_address_is_the_writer_again() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let pooler = start(&cluster, &cluster.entry("app"))?;
    let writers = Writers::start(&cluster, pooler.port, "app", 4)?;
    writers.run(200)?;
    let old = cluster.writer().port;
    let gone = std::time::Instant::now();
    cluster.move_nodes(&[0])?;
    let new = cluster.writer().port;
    let accepted = std::time::Instant::now();
    writers.run(200)?;
    let cost = writers.finish(&Change { old, new, gone, accepted })?;
    let complaints = &cost.complaints;
    assert_eq!((cost.disconnects, cost.wrong, cost.lost), (0, 0, 0), "{complaints:?}");
    assert_eq!((cost.doubled, cost.stale), (0, 0), "{complaints:?}");
    let mut client = Client::connect(pooler.port, "app")?;
    assert_eq!(client.run(PORT)?, [new.to_string()]);
    let log = pooler.log()?;
    assert!(log.contains("the writer goes on at another address on its timeline"), "{log}");
    Ok(())
}

#[test]
fn nodes_that_have_all_moved_are_found_through_the_entry_s_own_host() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let alias = free_port()?;
    let forward = Forward::new(TcpListener::bind(("127.0.0.1", alias))?, cluster.writer().port);
    let entry = format!(
        "app = host=127.0.0.1 port={alias} dbname=postgres user=postgres \
         topology_query='select endpoint, port from nodes'"
    );
    let pooler = start(&cluster, &entry)?;
    let mut idle = Client::connect(pooler.port, "app")?;
    idle.run("select 1")?;
    cluster.move_nodes(&[0, 1, 2])?;
    // The alias leads to a standby.
    forward.lead(cluster.nodes()[1].port);
    assert_eq!(idle.run(PORT)?, [cluster.writer().port.to_string()], "{}", pooler.log()?);
    let nodes = pooler.console("show nodes")?;
    assert!(!nodes.contains(&format!("|{alias}|")), "an alias is no node: {nodes}");
    Ok(())
}
