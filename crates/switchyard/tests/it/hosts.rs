//! Where servers are looked for: names of hosts and their addresses, lists of hosts, directories
//! of unix sockets.

use std::io;

use switchyard_testkit::{Client, Model, NameServer, Pooler, wait_until};

use super::{program, wanted};

/// Model servers on the same port of several addresses, each of which tells its own.
fn servers(addresses: &[&'static str]) -> io::Result<Vec<Model>> {
    let mut models: Vec<Model> = Vec::new();
    for address in addresses {
        let port = models.first().map_or(0, |model| model.port);
        models.push(Model::start_at(address, port, |peer| {
            peer.welcome()?;
            peer.serve(address)
        })?);
    }
    Ok(models)
}

fn start(names: &NameServer, entries: &str, port: u16, settings: &str) -> io::Result<Pooler> {
    let entries = entries.replace("PORT", &port.to_string());
    let settings = format!("workers = 1\n{}\n{settings}", names.setting());
    Pooler::start(program(), &entries, &settings)
}

/// The host that each of so many clients gets, who stay until all are there.
fn hosts(pooler: &Pooler, database: &str, count: usize) -> io::Result<Vec<String>> {
    let mut clients = Vec::new();
    let mut found = Vec::new();
    for _ in 0..count {
        let mut client = Client::connect(pooler.port, database)?;
        client.run("begin")?;
        found.extend(client.run("select host")?);
        clients.push(client);
    }
    Ok(found)
}

#[test]
fn addresses_of_a_name_take_turns_and_are_remembered() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let names = NameServer::start()?;
    names.set("db.test", &["127.0.0.1", "127.0.0.2"]);
    let models = servers(&["127.0.0.1", "127.0.0.2"])?;
    let pooler = start(&names, "db = host=db.test port=PORT", models[0].port, "")?;
    let mut found = hosts(&pooler, "db", 4)?;
    found.sort();
    assert_eq!(found, ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]);
    // One lookup, of both kinds of addresses.
    assert_eq!(names.asked("db.test"), 2);
    let row = pooler.console("show dns_hosts")?;
    let columns: Vec<&str> = row.trim().split('|').collect();
    assert!(columns[1].parse::<u32>().is_ok_and(|ttl| (1..=15).contains(&ttl)), "{row}");
    let mut addresses: Vec<&str> = columns[2].split(',').collect();
    addresses.sort_unstable();
    assert_eq!((columns[0], addresses), ("db.test", vec!["127.0.0.1:0", "127.0.0.2:0"]));
    assert!(pooler.console("show lists")?.contains("dns_names|1\ndns_zones|0\ndns_queries|0"));
    // An address where nobody listens is passed over.
    names.set("half.test", &["127.0.0.3", "127.0.0.2"]);
    let ini = std::fs::read_to_string(pooler.ini())?;
    let entry = format!("[databases]\nhalf = host=half.test port={}", models[0].port);
    std::fs::write(pooler.ini(), ini.replacen("[databases]", &entry, 1))?;
    pooler.console("reload")?;
    assert_eq!(hosts(&pooler, "half", 4)?, ["127.0.0.2"; 4]);
    Ok(())
}

#[test]
fn a_name_that_loses_an_address_gives_up_its_servers() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let names = NameServer::start()?;
    names.set("db.test", &["127.0.0.1"]);
    let models = servers(&["127.0.0.1", "127.0.0.2"])?;
    let entries = "db = host=db.test port=PORT\nother = host=127.0.0.1 port=PORT";
    let settings = "pool_mode = transaction\ndns_max_ttl = 0";
    let pooler = start(&names, entries, models[0].port, settings)?;
    let mut other = Client::connect(pooler.port, "other")?;
    let mut busy = Client::connect(pooler.port, "db")?;
    let mut idle = Client::connect(pooler.port, "db")?;
    assert_eq!(other.run("select 1")?, ["127.0.0.1"]);
    busy.run("begin")?;
    assert_eq!(idle.run("select 1")?, ["127.0.0.1"]);
    assert_eq!(busy.run("select 1")?, ["127.0.0.1"]);
    names.set("db.test", &["127.0.0.2"]);
    // A third connection asks anew; those to the old address go when they are free.
    idle.run("begin")?;
    let mut third = Client::connect(pooler.port, "db")?;
    assert_eq!(third.run("select 1")?, ["127.0.0.2"]);
    let reason = "closing because: database configuration changed";
    assert_eq!(busy.run("select 1")?, ["127.0.0.1"]);
    busy.run("commit")?;
    idle.run("commit")?;
    wait_until("end of the old servers", || {
        pooler.log().is_ok_and(|log| log.matches(reason).count() == 2)
    })?;
    assert_eq!(other.run("select 1")?, ["127.0.0.1"]);
    assert!(!pooler.log()?.contains(&format!("other/postgres@127.0.0.1:{reason}")));
    Ok(())
}

#[test]
fn names_that_do_not_resolve_delay_nobody_else() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let names = NameServer::start()?;
    names.keep_silent("silent.test");
    let models = servers(&["127.0.0.1"])?;
    let entries = "good = host=127.0.0.1 port=PORT\nsilent = host=silent.test port=PORT\n\
                   gone = host=gone.test port=PORT";
    let settings = "server_connect_timeout = 2\nquery_wait_timeout = 4\nserver_login_retry = 60";
    let pooler = start(&names, entries, models[0].port, settings)?;
    let port = pooler.port;
    let silent = std::thread::spawn(move || Client::connect(port, "silent").map(drop));
    wait_until("a lookup", || names.asked("silent.test") > 0)?;
    // The only worker serves others all the while.
    let mut good = Client::connect(pooler.port, "good")?;
    for _ in 0..100 {
        good.run("select 1")?;
    }
    assert!(!silent.is_finished());
    assert!(pooler.console("show pools")?.contains("silent|postgres|0|1|"));
    let gone = Client::connect(pooler.port, "gone").map(drop).map_err(|e| e.to_string());
    assert_eq!(gone, Err("08P01 query_wait_timeout".into()));
    let silent = silent.join().map_err(|_| io::Error::other("panic"))?;
    let silent = silent.map_err(|error| error.to_string());
    assert_eq!(silent, Err("08P01 query_wait_timeout".into()));
    let log = pooler.log()?;
    let lines = ["WARNING DNS lookup failed: gone.test: result=4\n", "gone/postgres@gone.test:"];
    let places: Vec<_> = lines.iter().map(|line| log.find(line)).collect();
    assert!(places[0].is_some() && places[0] < places[1], "{log}");
    assert!(log.contains("closing because: server DNS lookup failed (age=0s)"), "{log}");
    let line =
        format!("silent/postgres@silent.test:{} closing because: connect timeout", models[0].port);
    assert!(log.contains(&line), "{log}");
    assert!(pooler.console("show dns_hosts")?.contains("gone.test|"));
    Ok(())
}

#[test]
fn what_is_wrong_with_resolv_conf_is_told() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let mut command = std::process::Command::new(program());
    let directory = tempfile::tempdir()?;
    let ini = directory.path().join("x.ini");
    std::fs::write(
        &ini,
        "[databases]\n[pgbouncer]\nlisten_addr = 127.0.0.1\nresolv_conf = /none\n",
    )?;
    let output = command.arg("check").arg(&ini).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success());
    let line = "ERROR cannot use resolv_conf /none: No such file or directory";
    assert!(text.contains(line), "{text}");
    Ok(())
}

#[test]
fn lists_of_hosts_in_both_orders() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let names = NameServer::start()?;
    let models = servers(&["127.0.0.1", "127.0.0.2"])?;
    let entries = "turns = host=127.0.0.1,127.0.0.2 port=PORT\n\
                   stays = host=127.0.0.1,127.0.0.2 port=PORT load_balance_hosts=disable\n\
                   bad_first = host=127.0.0.3,127.0.0.2 port=PORT\n\
                   bad_stays = host=127.0.0.3,127.0.0.2 port=PORT load_balance_hosts=disable\n\
                   names = host=one.test,two.test port=PORT\n\
                   all_bad = host=127.0.0.3,127.0.0.4 port=PORT";
    names.set("one.test", &["127.0.0.1"]);
    names.set("two.test", &["127.0.0.2"]);
    let settings = "server_login_retry = 60\nquery_wait_timeout = 1";
    let pooler = start(&names, entries, models[0].port, settings)?;
    let (one, two) = ("127.0.0.1", "127.0.0.2");
    assert_eq!(hosts(&pooler, "turns", 4)?, [one, two, one, two]);
    assert_eq!(hosts(&pooler, "stays", 3)?, [one; 3]);
    assert_eq!(hosts(&pooler, "names", 4)?, [one, two, one, two]);
    // One that fails is passed over for server_login_retry; it delays nobody.
    assert_eq!(hosts(&pooler, "bad_first", 3)?, [two; 3]);
    assert_eq!(hosts(&pooler, "bad_stays", 3)?, [two; 3]);
    let log = pooler.log()?;
    for entry in ["bad_first", "bad_stays"] {
        let failed = format!(
            "{entry}/postgres@127.0.0.3:{} closing because: connect failed",
            models[0].port
        );
        assert_eq!(log.matches(&failed).count(), 1, "{entry} {log}");
    }
    // When all fail the pause is for all of them.
    let all = Client::connect(pooler.port, "all_bad").map(drop).map_err(|e| e.to_string());
    assert_eq!(all, Err("08P01 query_wait_timeout".into()));
    let log = pooler.log()?;
    assert_eq!(log.matches("closing because: connect failed").count(), 4, "{log}");
    assert_eq!(log.matches("all_bad/postgres@127.0.0.4").count(), 1, "{log}");
    Ok(())
}

#[test]
fn directories_of_unix_sockets() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let names = NameServer::start()?;
    let entries = "here = host=/nowhere/at/all port=PORT\nabstract = host=@nobody port=PORT\n\
                   long = host=/LONG port=PORT\nunset = port=PORT";
    let entries = entries.replace("LONG", &"x".repeat(200));
    let settings = "query_wait_timeout = 1\nunix_socket_dir =";
    let pooler = start(&names, &entries, 5432, settings)?;
    for database in ["here", "abstract", "long", "unset"] {
        let found = Client::connect(pooler.port, database).map(drop).map_err(|e| e.to_string());
        assert_eq!(found, Err("08P01 query_wait_timeout".into()), "{database}");
    }
    let log = pooler.log()?;
    for database in ["here", "abstract", "long"] {
        let line =
            format!("{database}/postgres@unix:5432 closing because: connect failed (age=0s)");
        assert!(log.contains(&line), "{log}");
    }
    assert!(log.contains("ERROR unix socket dir not configured: unset\n"), "{log}");
    assert!(log.contains("closing because: cannot connect (age=0s)"), "{log}");
    Ok(())
}
