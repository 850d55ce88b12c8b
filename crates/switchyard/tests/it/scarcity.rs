//! A disk without room and a process without descriptors: nothing ends that could have lived.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use switchyard_testkit::{Client, Pooler, Postgres, wait_until};

fn entry(server: &Postgres) -> String {
    format!("dev = host=127.0.0.1 port={} dbname=postgres", server.port)
}

#[test]
fn a_full_disk_costs_lines_only() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let server = Postgres::start("")?;
    let settings = "logfile = /dev/full\npool_mode = transaction";
    let mut pooler = Pooler::start(super::program(), &entry(&server), settings)?;
    for number in 0..20 {
        let mut client = Client::connect(pooler.port, "dev")?;
        assert_eq!(client.run(&format!("select {number}"))?, [number.to_string()]);
    }
    assert!(pooler.is_running());
    Ok(())
}

#[test]
fn without_descriptors_clients_wait_and_nobody_spins() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let server = Postgres::start("")?;
    // Deferred connections would stay in the kernel until they speak.
    let settings = "pool_mode = transaction\nmax_client_conn = 500\nworkers = 2\n\
                    tcp_defer_accept = 0";
    let limited = ["prlimit", "--nofile=64:64", "--"];
    let pooler = Pooler::start_under(&limited, super::program(), &entry(&server), settings)?;
    let mut first = Client::connect(pooler.port, "dev")?;
    assert_eq!(first.run("select 1")?, ["1"]);
    // More than it has descriptors for; the rest stays in the listener's queue.
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(TcpStream::connect(("127.0.0.1", pooler.port))?);
    }
    wait_until("a line about it", || {
        pooler.log().is_ok_and(|log| log.contains("accept() failed") || log.contains("descriptors"))
    })?;
    let before = pooler.cpu()?;
    for number in 0..1000 {
        assert_eq!(first.run(&format!("select {number}"))?, [number.to_string()]);
    }
    assert!(pooler.cpu()? - before < Duration::from_millis(500), "it spins");
    drop(crowd);
    let mut later = Client::connect(pooler.port, "dev")?;
    assert_eq!(later.run("select 2")?, ["2"]);
    Ok(())
}
