//! The keys that lead into a cluster: its writer, its readers, any node, one node; what is waited
//! for behind each of them, and who probes with which credentials.

use std::io;

use switchyard_testkit::{Client, Cluster, Pooler, wait_until};

const PORT: &str = "select inet_server_port()";

fn start(cluster: &Cluster, entries: &str, settings: &str) -> io::Result<Pooler> {
    let settings = format!("pool_mode = transaction\n{settings}");
    let entries = format!("{}\n{entries}", cluster.entry("app"));
    let pooler = Pooler::start(super::program(), &entries, &settings)?;
    let readers = || pooler.log().is_ok_and(|log| log.matches("up as reader").count() > 1);
    wait_until("two standbys", readers)?;
    Ok(pooler)
}

fn port(pooler: &Pooler, key: &str) -> io::Result<u16> {
    let rows = Client::connect(pooler.port, key)?.run(PORT)?;
    rows.concat().parse().map_err(io::Error::other)
}

#[test]
fn each_key_leads_where_it_says() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let [writer, one, two] = [0, 1, 2].map(|at| cluster.nodes()[at].port);
    // An entry that is spelled like a key wins.
    let own = format!(
        "\"app@any\" = host=127.0.0.1 port={two} dbname=postgres\n\
         named = host=127.0.0.1 port={writer} dbname=postgres user=postgres \
         topology_query='select ''n'' || port as id, endpoint, port from nodes'"
    );
    let pooler = start(&cluster, &own, "query_wait_timeout = 20")?;
    let ordinary = |key: &str| (0..4).map(|_| port(&pooler, key)).collect::<io::Result<Vec<_>>>();
    for key in ["app", "app@writer", "named@writer"] {
        assert_eq!(ordinary(key)?, [writer; 4], "{key}");
    }
    for key in ["app@reader", "app@reader!"] {
        assert!(ordinary(key)?.iter().all(|port| [one, two].contains(port)), "{key}");
    }
    assert_eq!(ordinary("app@any")?, [two; 4]);
    for at in [writer, one, two] {
        for key in [format!("app@127.0.0.1:{at}"), format!("named@n{at}")] {
            assert_eq!(port(&pooler, &key)?, at, "{key}");
        }
    }
    let told = Client::connect(pooler.port, "named@n0").map(drop).map_err(|e| e.to_string());
    assert!(told.is_err(), "{told:?}");
    let pools = pooler.console("show pools")?;
    assert!(pools.contains(&format!("named@n{one}|")) && pools.contains("named|"), "{pools}");

    // Without readers a reader's key leads to the writer, and the strict one waits.
    cluster.nodes()[1].stop("fast")?;
    cluster.nodes()[2].stop("fast")?;
    cluster.nodes()[0].sql("alter system set synchronous_standby_names = ''")?;
    cluster.nodes()[0].sql("select pg_reload_conf()")?;
    wait_until("two that are down", || {
        pooler.console("show nodes").is_ok_and(|t| t.matches("|unknown|down|").count() == 4)
    })?;
    assert_eq!(port(&pooler, "app@reader")?, writer);
    let (strict, node) = ("app@reader!", format!("app@127.0.0.1:{one}"));
    let held = [strict.to_owned(), node].map(|key| {
        let at = pooler.port;
        std::thread::spawn(move || Client::connect(at, &key)?.run(PORT))
    });
    wait_until("two that wait", || {
        let waiting = |row: &str| row.split('|').nth(3).and_then(|n| n.parse::<u32>().ok());
        let rows = pooler.console("show pools").unwrap_or_default();
        rows.lines().filter(|r| r.starts_with("app")).filter_map(waiting).sum::<u32>() == 2
    })?;
    cluster.nodes()[1].launch()?;
    for thread in held {
        let rows = thread.join().map_err(|_| io::Error::other("a panic"))??;
        assert_eq!(rows, [one.to_string()]);
    }

    // A reader that becomes the writer is led to by the writer's key.
    let mut reader = Client::connect(pooler.port, strict)?;
    reader.run("select 1")?;
    cluster.writer().kill()?;
    cluster.nodes()[1].promote()?;
    assert_eq!(port(&pooler, "app")?, one);
    Ok(())
}

#[test]
fn probes_have_credentials_and_a_database_of_their_own() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let writer = cluster.writer();
    writer.sql("create role watcher login password 'one' in role pg_monitor")?;
    writer.sql("create database lists")?;
    let port = writer.port;
    let entry = |password: &str| {
        format!(
            "app = host=127.0.0.1 port={port} dbname=postgres probe_user=watcher \
             probe_password={password} probe_dbname=lists topology_query='select * from \
             (values {}) as nodes (endpoint, port)'",
            cluster
                .nodes()
                .iter()
                .map(|node| format!("(''127.0.0.1'', {})", node.port))
                .collect::<Vec<_>>()
                .join(", ")
        )
    };
    let pooler = Pooler::start(super::program(), &entry("one"), "pool_mode = transaction")?;
    let readers = || pooler.log().is_ok_and(|log| log.matches("up as reader").count() > 1);
    wait_until("two standbys", readers)?;
    let probes = "select usename, datname, count(*) from pg_stat_activity \
                  where application_name = 'switchyard-probe' group by 1, 2";
    wait_until("a probe", || {
        writer.sql(probes).is_ok_and(|text| text.trim().starts_with("watcher|lists|"))
    })?;
    let mut client = Client::connect(pooler.port, "app")?;
    assert_eq!(client.run("select current_user || current_database()")?, ["postgrespostgres"]);
    let log = pooler.log()?;
    assert!(!log.contains("does not tell probes"), "pg_monitor is enough: {log}");

    // Other credentials: probes log in anew, and clients notice nothing.
    writer.sql("create role other login password 'two'")?;
    let ini = std::fs::read_to_string(pooler.ini())?;
    let ini = ini.replace(&entry("one"), &entry("two").replace("watcher", "other"));
    std::fs::write(pooler.ini(), ini)?;
    pooler.console("reload")?;
    wait_until("the other probe", || {
        writer
            .sql(probes)
            .is_ok_and(|text| text.contains("other|lists|") && !text.contains("watcher|lists|"))
    })?;
    assert_eq!(client.run("select 1")?, ["1"]);
    assert!(!pooler.log()?.contains("holding clients"));
    Ok(())
}
