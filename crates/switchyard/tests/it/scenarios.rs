//! Work of every kind across a change of writer, and clusters that are not what they should be.

use std::io;
use std::time::{Duration, Instant};

use switchyard_testkit::raw::rows;
use switchyard_testkit::{
    Certificates, Change, Client, Cluster, KeyKind, Messages, Pooler, Postgres, Raw, Writers,
    wait_until,
};

const PORT: &str = "select inet_server_port()";

fn start(entry: &str, settings: &str) -> io::Result<Pooler> {
    let settings = format!("pool_mode = transaction\n{settings}");
    let pooler = Pooler::start(super::program(), entry, &settings)?;
    let readers = || pooler.log().is_ok_and(|log| log.matches("up as reader").count() > 1);
    wait_until("two standbys", readers)?;
    Ok(pooler)
}

fn state(pooler: &Pooler, wanted: &str) -> bool {
    pooler.console("show clusters").is_ok_and(|text| text.split('|').nth(1) == Some(wanted))
}

/// A part of a COPY from the client.
fn copy_data(text: &str) -> Vec<u8> {
    let mut bytes = vec![b'd'];
    bytes.extend_from_slice(&(text.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn statement(name: &str) -> Messages {
    Messages::new().bind(name).execute().sync()
}

#[test]
fn work_of_every_kind_crosses_a_planned_switchover() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    cluster.writer().sql("create table t (x int)")?;
    let settings = "promote_sql = 1\nmax_prepared_statements = 10";
    let pooler = start(&cluster.entry("app"), settings)?;
    let mut prepared = Client::connect(pooler.port, "app")?;
    prepared.exchange(&Messages::new().parse("p", PORT).sync(), 1)?;
    let mut block = Client::connect(pooler.port, "app")?;
    block.run("begin")?;
    block.run("insert into t values (1)")?;
    let mut copy = Client::connect(pooler.port, "app")?;
    copy.send(Messages::new().query(b"copy t from stdin").bytes())?;
    copy.send(&copy_data("2\n"))?;
    wait_until("two transactions", || {
        cluster
            .writer()
            .sql("select count(*) from pg_locks where relation = 't'::regclass")
            .is_ok_and(|text| text.trim().parse::<u32>().is_ok_and(|count| count > 1))
    })?;
    let target = cluster.nodes()[1].port;
    let command = format!("switchover app \"127.0.0.1:{target}\"");
    std::thread::scope(|scope| {
        let switching = scope.spawn(|| pooler.console(&command));
        wait_until("drain", || state(&pooler, "draining"))?;
        // Three groups at once wait for the new writer, and keep their order.
        let groups = [1, 2, 3].iter().fold(Messages::new(), |messages, number| {
            let sql = format!("select {number}, inet_server_port()");
            messages.parse("", &sql).bind("").execute().sync()
        });
        let mut pipeline = Client::connect(pooler.port, "app")?;
        pipeline.send(groups.bytes())?;
        prepared.send(statement("p").bytes())?;
        copy.send(&copy_data("3\n"))?;
        copy.send(b"c\0\0\0\x04")?;
        assert_eq!(copy.receive(1)?.last().map(String::as_str), Some("Z:I"));
        block.run("insert into t values (4)")?;
        block.run("commit")?;
        switching.join().map_err(|_| io::Error::other("a panic"))??;
        let answers = pipeline.receive(3)?;
        let found: Vec<&String> = answers.iter().filter(|word| word.starts_with("D:")).collect();
        let wanted = [1, 2, 3].map(|number| format!("D:{number}|{target}"));
        assert_eq!(found, wanted.iter().collect::<Vec<_>>());
        assert!(prepared.receive(1)?.contains(&format!("D:{target}")));
        assert_eq!(copy.run("select x from t order by 1")?, ["1", "2", "3", "4"]);
        Ok(())
    })
}

#[test]
fn work_of_every_kind_meets_a_failover() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    cluster.writer().sql("create table t (x int)")?;
    let pooler = start(&cluster.entry("app"), "max_prepared_statements = 10")?;
    let mut prepared = Client::connect(pooler.port, "app")?;
    prepared.exchange(&Messages::new().parse("p", PORT).sync(), 1)?;
    let mut copy = Client::connect(pooler.port, "app")?;
    copy.send(Messages::new().query(b"copy t from stdin").bytes())?;
    copy.send(&copy_data("2\n"))?;
    let mut pipeline = Client::connect(pooler.port, "app")?;
    let group = |sql: &str| Messages::new().parse("", sql).bind("").execute().sync();
    pipeline.send(group("select pg_sleep(600)").bytes())?;
    pipeline.send(group("insert into t values (5)").bytes())?;
    wait_until("work", || {
        cluster
            .writer()
            .sql("select count(*) from pg_stat_activity where wait_event = 'PgSleep'")
            .is_ok_and(|text| text.trim() == "1")
    })?;
    let change = cluster.fail_over()?;
    let told = pipeline.receive(2)?;
    let errors: Vec<&String> = told.iter().filter(|word| word.starts_with("E:")).collect();
    assert!(
        errors.len() == 2
            && errors.iter().all(|e| e.starts_with("E:0800") || e.starts_with("E:57P0")),
        "{told:?}"
    );
    // The rest of a COPY whose server is gone goes nowhere.
    copy.send(&copy_data("3\n"))?;
    copy.send(b"c\0\0\0\x04")?;
    let told = copy.receive(1)?;
    let errors = told.iter().filter(|word| word.starts_with("E:")).count();
    assert!(errors == 1 && told.last().is_some_and(|word| word == "Z:I"), "{told:?}");
    for client in [&mut copy, &mut pipeline] {
        assert_eq!(client.run(PORT)?, [change.new.to_string()]);
        assert_eq!(client.run("select count(*) from t")?, ["0"]);
    }
    let answer = prepared.exchange(&statement("p"), 1)?;
    assert!(answer.contains(&format!("D:{}", change.new)), "{answer:?}");
    Ok(())
}

#[test]
fn every_users_pool_follows_over_tls() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let certificates = Certificates::new()?;
    certificates.self_signed("server", KeyKind::Ecdsa)?;
    for node in cluster.nodes() {
        node.use_tls(&certificates, "server", None)?;
    }
    cluster.writer().sql("create role app login")?;
    let entry = format!(
        "app = host=127.0.0.1 port={} dbname=postgres probe_user=postgres \
         topology_query='select endpoint, port from nodes'",
        cluster.writer().port
    );
    let pooler = start(&entry, "server_tls_sslmode = require")?;
    let ask = "select current_user, inet_server_port(), ssl from pg_stat_ssl \
               where pid = pg_backend_pid()";
    let open = |user| Raw::connect(pooler.port, &[("user", user), ("database", "app")]);
    let mut users = [("postgres", open("postgres")?), ("app", open("app")?)];
    for (_, session) in &mut users {
        session.query("select 1")?;
    }
    let change = cluster.fail_over()?;
    for (user, session) in &mut users {
        assert_eq!(rows(&session.query(ask)?), [format!("{user}|{}|t", change.new)]);
    }
    Ok(())
}

#[test]
fn a_cancel_leaves_a_held_client_and_a_block_keeps_its_error() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let pooler = start(&cluster.entry("app"), "")?;
    let open = || Raw::connect(pooler.port, &[("user", "postgres"), ("database", "app")]);
    let (mut cancelled, mut patient) = (open()?, open()?);
    pooler.console("hold app")?;
    cancelled.ask("select 1")?;
    patient.ask(PORT)?;
    wait_until("two held clients", || {
        let row = pooler.console("show clusters");
        row.is_ok_and(|text| text.split('|').nth(10) == Some("2"))
    })?;
    // There is nothing to be cancelled at any server: nobody loses their place.
    cancelled.cancel()?;
    pooler.console("release app")?;
    for session in [&mut cancelled, &mut patient] {
        assert_eq!(session.answer()?.last().map(|(tag, _)| *tag), Some('Z'));
    }
    assert_eq!(rows(&patient.query(PORT)?), [cluster.writer().port.to_string()]);
    // Refused inside a block because the session wants it so.
    let mut block = Client::connect(pooler.port, "app")?;
    block.run("begin read only")?;
    block.run("select 1")?;
    let told = block.run("create table x (y int)").unwrap_err().to_string();
    assert!(told.starts_with("25006 "), "{told}");
    block.run("rollback")?;
    block.run("create table x (y int)")?;
    assert!(!pooler.log()?.contains("writer lost"));
    Ok(())
}

#[test]
fn two_promotions_at_once_serve_nobody_until_one_is_gone() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    // One of them may have been chosen before the other was seen. Strict fencing would not let that
    // other one follow on the same timeline.
    let pooler = start(&cluster.entry("app"), "writer_fencing = timeline")?;
    cluster.writer().kill()?;
    wait_until("hold", || state(&pooler, "holding"))?;
    let [_, one, other] = cluster.nodes() else { return Ok(()) };
    std::thread::scope(|scope| {
        let promotions = [one, other].map(|node| scope.spawn(|| node.promote()));
        promotions.map(|thread| thread.join().is_ok())
    });
    let line = "two writers in cluster \"app\": ";
    wait_until("split", || pooler.log().is_ok_and(|log| log.contains(line)))?;
    wait_until("split", || state(&pooler, "split"))?;
    let mut client = Client::connect(pooler.port, "app")?;
    let held = std::thread::spawn(move || client.run(PORT));
    let began = Instant::now();
    wait_until("some time", || began.elapsed() > Duration::from_millis(300))?;
    assert!(!held.is_finished(), "nobody knows which of them is the writer");
    one.stop("immediate")?;
    let port = held.join().map_err(|_| io::Error::other("a panic"))?;
    assert_eq!(port?, [other.port.to_string()]);
    Ok(())
}

#[test]
fn odd_lists_of_nodes_lead_to_the_same_writer() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let [writer, standby, _] = cluster.nodes() else { return Ok(()) };
    let foreign = Postgres::start("")?;
    let six = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut queries = vec![
        ("nulls", "select null endpoint, 5 port union all select endpoint, port from nodes".into()),
        ("twice", "select * from nodes union all select * from nodes".into()),
        ("one", "select '127.0.0.1:' || port from nodes".into()),
        ("three", "select 'n' || port as id, endpoint, port from nodes".into()),
        (
            "many",
            "select endpoint, port from nodes union all \
             select '127.0.0.9', p from generate_series(1, 1000) p"
                .to_owned(),
        ),
        (
            "label",
            format!(
                "select 'localhost' endpoint, {} port union all select * from nodes",
                standby.port
            ),
        ),
        ("foreign", format!("select * from nodes union all select '127.0.0.1', {}", foreign.port)),
    ];
    if six.lines().any(|line| line.ends_with(" lo")) {
        queries.push(("six", "select '::1' endpoint, port from nodes".into()));
    } else {
        println!("no IPv6 here: left out");
    }
    let entries: Vec<String> = queries
        .iter()
        .map(|(name, query)| {
            let query = query.replace('\'', "''");
            let host = if *name == "six" { "::1" } else { "127.0.0.1" };
            format!(
                "{name} = host={host} port={} dbname=postgres user=postgres \
                 topology_query='{query}'",
                writer.port
            )
        })
        .collect();
    let pooler = start(&entries.join("\n"), "")?;
    for (name, _) in &queries {
        let mut client = Client::connect(pooler.port, name)?;
        assert_eq!(client.run(PORT)?, [writer.port.to_string()], "{name}");
        wait_until("two readers", || {
            let nodes = pooler.console("show nodes").unwrap_or_default();
            let own = nodes.lines().filter(|line| line.starts_with(&format!("{name}|")));
            own.filter(|line| line.contains("|reader|up|")).count() == 2
        })?;
    }
    // The first label alone, as entries of their own had.
    let mut label = Client::connect(pooler.port, "localhost")?;
    assert_eq!(label.run(PORT)?, [standby.port.to_string()]);
    let mut named = Client::connect(pooler.port, &format!("three@n{}", standby.port))?;
    assert_eq!(named.run(PORT)?, [standby.port.to_string()]);
    wait_until("refusal", || {
        pooler.log().is_ok_and(|log| log.contains("belongs to another cluster"))
    })?;
    let mut any = Client::connect(pooler.port, "foreign@any")?;
    for _ in 0..30 {
        assert_ne!(any.run(PORT)?, [foreign.port.to_string()]);
    }
    let (before, began) = (pooler.cpu()?, Instant::now());
    wait_until("two seconds", || began.elapsed() > Duration::from_secs(2))?;
    let share = (pooler.cpu()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    // An unoptimised program that looks after eight clusters and a thousand dead nodes.
    assert!(share < 0.7, "{share}");
    Ok(())
}

#[test]
fn a_pooler_that_is_listed_as_a_node_is_not_its_own_writer() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    // A probe that asks the pooler for `postgres` is a client of this entry.
    let pooler = start(&cluster.entry("postgres"), "")?;
    let own = format!("insert into nodes values ('127.0.0.1', {})", pooler.port);
    cluster.writer().sql(&own)?;
    pooler.console("probe postgres")?;
    let row = format!("|127.0.0.1|{}|unknown|", pooler.port);
    wait_until("its own row", || {
        pooler.console("show nodes").is_ok_and(|text| text.contains(&row))
    })?;
    let mut client = Client::connect(pooler.port, "postgres")?;
    assert_eq!(client.run(PORT)?, [cluster.writer().port.to_string()]);
    let change = cluster.fail_over()?;
    assert_eq!(client.run(PORT)?, [change.new.to_string()]);
    assert!(pooler.console("show clusters")?.contains(&format!("|127.0.0.1|{}|", change.new)));
    assert!(pooler.console("show nodes")?.contains(&row));
    Ok(())
}

#[test]
fn a_node_that_denies_probes_is_named_and_left_alone() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    cluster.writer().sql("create role prober login")?;
    let denying = &cluster.nodes()[2];
    let file = denying.socket_dir().join("data/pg_hba.conf");
    let rest = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("host all prober 127.0.0.1/32 reject\n{rest}"))?;
    denying.sql("select pg_reload_conf()")?;
    cluster.writer().sql("grant select on nodes to prober")?;
    let entry = format!("{} probe_user=prober", cluster.entry("app"));
    let settings = "pool_mode = transaction";
    let pooler = Pooler::start(super::program(), &entry, settings)?;
    let row = format!("|127.0.0.1|{}|unknown|down|", denying.port);
    wait_until("a denial", || {
        let nodes = pooler.console("show nodes").unwrap_or_default();
        nodes.lines().any(|line| line.contains(&row) && line.contains("pg_hba.conf rejects"))
    })?;
    let mut client = Client::connect(pooler.port, "app")?;
    assert_eq!(client.run(PORT)?, [cluster.writer().port.to_string()]);
    // What the pooler may not see is not a writer, whatever the others say.
    let (old, denying) = (cluster.writer().port, denying.port);
    cluster.writer().kill()?;
    wait_until("hold", || state(&pooler, "holding"))?;
    cluster.nodes()[2].promote()?;
    let held = std::thread::spawn(move || client.run(PORT));
    let began = Instant::now();
    wait_until("some time", || began.elapsed() > Duration::from_millis(300))?;
    assert!(!held.is_finished(), "{denying}");
    cluster.revive(old)?;
    held.join().map_err(|_| io::Error::other("a panic"))??;
    Ok(())
}

#[test]
fn a_node_that_flaps_costs_nobody_else_anything() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let pooler = start(&cluster.entry("app"), "")?;
    let mut reader = Client::connect(pooler.port, "app@reader")?;
    let writers = Writers::start(&cluster, pooler.port, "app", 4)?;
    writers.run(200)?;
    let standby = &cluster.nodes()[1];
    let pause =
        |since: Instant| wait_until("a moment", || since.elapsed() > Duration::from_millis(200));
    for _ in 0..5 {
        standby.freeze()?;
        pause(Instant::now())?;
        reader.run("select 1").ok();
        standby.thaw()?;
        pause(Instant::now())?;
        reader.run("select 1").ok();
    }
    let gone = Instant::now();
    writers.run(200)?;
    let port = cluster.writer().port;
    let change = Change { old: port, new: port, gone, accepted: gone };
    let cost = writers.finish(&change)?;
    assert_eq!((cost.errors, cost.disconnects, cost.wrong), (0, 0, 0), "{:?}", cost.complaints);
    assert!(!pooler.log()?.contains("writer lost"));
    // The writer itself: held, never replaced by anybody, and nothing is lost.
    let writers = Writers::start(&cluster, pooler.port, "app", 4)?;
    writers.run(200)?;
    for _ in 0..5 {
        cluster.writer().freeze()?;
        pause(Instant::now())?;
        cluster.writer().thaw()?;
        pause(Instant::now())?;
    }
    let gone = Instant::now();
    writers.run(200)?;
    let cost = writers.finish(&Change { old: port, new: port, gone, accepted: gone })?;
    assert_eq!((cost.wrong, cost.lost, cost.doubled), (0, 0, 0), "{:?}", cost.complaints);
    assert!(pooler.console("show clusters")?.contains(&format!("|127.0.0.1|{port}|")));
    Ok(())
}
