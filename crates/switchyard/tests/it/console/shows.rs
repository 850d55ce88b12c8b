//! Columns and values of SHOW.

use std::io;

use switchyard_testkit::{Pooler, Raw, raw, wait_until};

use super::{row, rows, told};

/// Columns in their order; types: t text, i int4, l int8, n numeric.
const COLUMNS: &[(&str, &str)] = &[
    ("version", "version:t"),
    ("state", "key:t value:t"),
    ("config", "key:t value:t default:t changeable:t"),
    (
        "databases",
        "name:t host:t port:i database:t force_user:t pool_size:i min_pool_size:i \
         reserve_pool_size:i server_lifetime:i pool_mode:t load_balance_hosts:t max_connections:i \
         current_connections:i max_client_connections:i current_client_connections:i paused:i \
         disabled:i",
    ),
    (
        "pools",
        "database:t user:t cl_active:i cl_waiting:i cl_active_cancel_req:i \
         cl_waiting_cancel_req:i sv_active:i sv_active_cancel:i sv_being_canceled:i sv_idle:i \
         sv_used:i sv_tested:i sv_login:i maxwait:i maxwait_us:i pool_mode:t load_balance_hosts:t",
    ),
    ("peers", "peer_id:i host:t port:i pool_size:i"),
    (
        "peer_pools",
        "peer_id:i cl_active_cancel_req:i cl_waiting_cancel_req:i sv_active_cancel:i sv_login:i",
    ),
    ("servers", CONNECTIONS),
    (
        "users",
        "name:t pool_size:t reserve_pool_size:t pool_mode:t max_user_connections:i \
         current_connections:i max_user_client_connections:i current_client_connections:i",
    ),
    ("lists", "list:t items:i"),
    (
        "stats",
        "database:t total_server_assignment_count:n total_xact_count:n total_query_count:n \
         total_received:n total_sent:n total_xact_time:n total_query_time:n total_wait_time:n \
         total_client_parse_count:n total_server_parse_count:n total_bind_count:n \
         total_client_login_count:n avg_server_assignment_count:n avg_xact_count:n \
         avg_query_count:n avg_recv:n avg_sent:n avg_xact_time:n avg_query_time:n avg_wait_time:n \
         avg_client_parse_count:n avg_server_parse_count:n avg_bind_count:n \
         avg_client_login_count:n",
    ),
    (
        "stats_totals",
        "database:t server_assignment_count:n xact_count:n query_count:n bytes_received:n \
         bytes_sent:n xact_time:n query_time:n wait_time:n client_parse_count:n \
         server_parse_count:n bind_count:n client_login_count:n",
    ),
    (
        "stats_averages",
        "database:t server_assignment_count:n xact_count:n query_count:n bytes_received:n \
         bytes_sent:n xact_time:n query_time:n wait_time:n avg_client_parse_count:n \
         avg_server_parse_count:n avg_bind_count:n avg_client_login_count:n",
    ),
    ("totals", "name:t value:n"),
    ("mem", "name:t size:i used:i free:i memtotal:i"),
    (
        "fds",
        "fd:i task:t user:t database:t addr:t port:i cancel:l link:i client_encoding:t \
         std_strings:t datestyle:t timezone:t password:t scram_client_key:b scram_server_key:b",
    ),
    ("dns_hosts", "hostname:t ttl:l addrs:t"),
    ("dns_zones", "zonename:t serial:l count:i"),
];

const CONNECTIONS: &str = "type:t user:t database:t replication:t state:t addr:t port:i \
     local_addr:t local_port:i connect_time:t request_time:t wait:i wait_us:i close_needed:i \
     ptr:t link:t remote_pid:i tls:t application_name:t prepared_statements:i id:i";

const BUFFERS: &str = "recv_pos:i pkt_pos:i pkt_remain:i send_pos:i send_remain:i pkt_avail:i \
     send_avail:i";

#[test]
fn columns_are_those_that_consumers_read_by_position() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let pooler = Pooler::start(crate::program(), "a = host=127.0.0.1 port=1", "")?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let sockets = format!("{CONNECTIONS} {BUFFERS}");
    let clients = format!("{CONNECTIONS} login_database:t");
    let tables = COLUMNS.iter().copied().chain([("clients", &*clients)]);
    for (name, columns) in tables.chain([("sockets", &*sockets), ("active_sockets", &*sockets)]) {
        let said = told(&mut console, &format!("show {name}"))?;
        let found = said.lines().next().unwrap_or_default();
        let typed = columns.split_whitespace().map(|column| {
            let (name, kind) = column.split_once(':').unwrap_or((column, ""));
            let oid = match kind {
                "t" => 25,
                "i" => 23,
                "l" => 20,
                "b" => 17,
                _ => 1700,
            };
            format!(" {name}:{oid}")
        });
        assert_eq!(found, format!("T{}", typed.collect::<String>()), "{name}");
        assert!(said.ends_with("C SHOW\nZ I\n"), "{name}: {said}");
    }
    Ok(())
}

#[test]
fn rows_describe_what_is_configured() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let databases = "\
        plain = host=127.0.0.1 port=7\n\
        full = host=a,b port=8 dbname=other user=app pool_size=3 min_pool_size=1 reserve_pool=2 \
        server_lifetime=60 pool_mode=statement load_balance_hosts=disable max_db_connections=9 \
        max_db_client_connections=99\n\
        * = host=127.0.0.1 port=1\n\
        [users]\napp = pool_size=4 pool_mode=session max_user_client_connections=6\n\
        [peers]\n2 = host=/tmp\n1 = host=peer port=9 pool_size=5";
    let settings = "max_db_connections = 11\nmax_user_connections = 12\nauth_user = looker";
    let pooler = Pooler::start(crate::program(), databases, settings)?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let port = pooler.port;
    assert_eq!(
        rows(&mut console, "show databases")?,
        [
            "full|a,b|8|other|app|3|1|2|60|statement|disable|9|0|99|0|0|0".to_owned(),
            format!(
                "pgbouncer|NULL|{port}|pgbouncer|pgbouncer|2|0|0|3600|statement|NULL|11|0|0|1|0|0"
            ),
            "plain|127.0.0.1|7|plain|NULL|20|0|0|3600|NULL|NULL|11|0|0|0|0|0".to_owned(),
        ]
    );
    assert_eq!(
        rows(&mut console, "show users")?,
        [
            "app|        4||session|12|0|6|0",
            "looker|||NULL|12|0|0|0",
            "pgbouncer|||NULL|12|0|0|0",
            "postgres|||NULL|12|0|0|1",
        ]
    );
    assert_eq!(rows(&mut console, "show peers")?, ["1|peer|9|5", "2|/tmp|6432|20"]);
    assert!(rows(&mut console, "show peer_pools")?.is_empty());
    // An automatic entry appears with what is done to it.
    assert_eq!(told(&mut console, "pause auto")?, "C PAUSE\nZ I\n");
    assert!(pooler.log()?.contains("registered new auto-database: auto"));
    assert_eq!(row(&mut console, "show databases", "auto|")?[15], "1");
    assert_eq!(told(&mut console, "resume auto")?, "C RESUME\nZ I\n");
    assert_eq!(row(&mut console, "show databases", "auto|")?, [""]);
    let lists = rows(&mut console, "show lists")?;
    let names: Vec<&str> = lists.iter().filter_map(|row| Some(row.split_once('|')?.0)).collect();
    assert_eq!(
        names.join(" "),
        "databases users peers pools peer_pools free_clients used_clients login_clients \
         free_servers used_servers dns_names dns_zones dns_queries dns_pending"
    );
    assert!(lists.contains(&"peers|2".into()) && lists.contains(&"used_clients|1".into()));
    Ok(())
}

#[test]
fn connections_are_shown_in_their_states() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\ndefault_pool_size = 1\nworkers = 2";
    let (_postgres, pooler) = crate::start(settings)?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let names = [("user", "app"), ("database", "postgres"), ("application_name", "one")];
    let mut one = Raw::connect(pooler.port, &names)?;
    let mut two = Raw::connect(pooler.port, &[("user", "app"), ("database", "postgres")])?;
    let pools = |count: &mut Raw| row(count, "show pools", "postgres|app|");
    assert_eq!(pools(&mut console)?[2..13].join(" "), "2 0 0 0 0 0 0 1 0 0 0");
    one.query("begin")?;
    two.ask("select 1")?;
    wait_until("waiting client", || pools(&mut console).is_ok_and(|row| row[3] == "1"))?;
    let found = pools(&mut console)?;
    assert_eq!(found[2..13].join(" "), "1 1 0 0 1 0 0 0 0 0 0");
    assert!(found[13] != "0" || found[14] != "0", "{found:?}");
    assert_eq!(found[15..].join(" "), "transaction NULL");

    let clients = rows(&mut console, "show clients")?;
    let split = |row: &String| row.split('|').map(String::from).collect::<Vec<_>>();
    let clients: Vec<Vec<String>> = clients.iter().map(split).collect();
    let states: Vec<String> = clients.iter().map(|c| c[..5].join(" ")).collect();
    assert_eq!(
        states,
        [
            "C postgres pgbouncer none idle",
            "C app postgres none active",
            "C app postgres none waiting"
        ]
    );
    assert_eq!(clients[1][18], "one");
    assert_eq!(clients.iter().map(|c| &*c[8]).collect::<Vec<_>>(), [&*pooler.port.to_string(); 3]);
    let servers = rows(&mut console, "show servers")?;
    let servers: Vec<Vec<String>> = servers.iter().map(split).collect();
    assert_eq!(servers.len(), 1);
    assert_eq!(servers[0][..5].join(" "), "S app postgres none active");
    assert_eq!((&servers[0][15], &clients[1][15]), (&clients[1][14], &servers[0][14]));
    assert_eq!((&*clients[2][15], &*servers[0][18]), ("", "one"));
    let mut ids: Vec<u64> = [&clients[..], &servers[..]]
        .concat()
        .iter()
        .filter_map(|row| row[20].parse().ok())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    let sockets = rows(&mut console, "show sockets")?;
    let states: Vec<&str> = sockets.iter().filter_map(|row| row.split('|').nth(4)).collect();
    assert_eq!(states, ["cl_active", "cl_active", "cl_waiting", "sv_active"]);
    let waiting = rows(&mut console, "show active_sockets")?;
    assert_eq!(waiting.len(), 1, "the query that waits: {waiting:?}");
    one.query("commit")?;
    two.answer()?;
    wait_until("idle", || pools(&mut console).is_ok_and(|row| row[2..4] == ["2", "0"]))?;
    assert_eq!(row(&mut console, "show servers", "S|")?[4], "idle");
    Ok(())
}

#[test]
fn descriptors_are_shown_with_who_uses_them() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\nworkers = 2\nstats_users = app";
    let (postgres, pooler) = crate::start(settings)?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let names = [("user", "app"), ("database", "forced"), ("TimeZone", "Zulu")];
    let mut one = Raw::connect(pooler.port, &names)?;
    one.query("begin")?;
    // Connected and parked.
    let mut two = Raw::connect(pooler.port, &[("user", "app"), ("database", "postgres")])?;
    two.query("select 1")?;
    wait_until("parking", || {
        rows(&mut console, "show pools").is_ok_and(|rows| {
            rows.iter().any(|row| row.starts_with("postgres|app|1|0|0|0|0|0|0|1|"))
        })
    })?;
    let found = rows(&mut console, "show fds")?;
    let found: Vec<Vec<&str>> = found.iter().map(|row| row.split('|').collect()).collect();
    let column = |index: usize| found.iter().map(|row| row[index]).collect::<Vec<_>>();
    let tasks = ["pooler", "pooler", "client", "client", "server", "server"];
    assert_eq!(column(1), tasks);
    assert_eq!(column(2), ["NULL", "NULL", "app", "app", "app", "app"]);
    assert_eq!(column(3)[2..], ["forced", "postgres", "forced", "postgres"]);
    let port = pooler.port.to_string();
    let mut listeners = found[..2].iter().map(|row| (row[4], row[5])).collect::<Vec<_>>();
    listeners.sort_unstable();
    assert_eq!(listeners, [("127.0.0.1", &*port), ("unix", &*port)]);
    assert_eq!(column(5)[4..], [&*postgres.port.to_string(); 2]);
    for descriptor in column(0) {
        let link = format!("/proc/{}/fd/{descriptor}", pooler.pid());
        assert!(std::fs::read_link(link)?.to_string_lossy().starts_with("socket:"));
    }
    // Who is linked shows the other side.
    let (client, server) = (&found[2], &found[4]);
    assert_eq!((client[7], server[7]), (server[0], client[0]));
    assert_eq!(column(7).iter().filter(|link| **link == "0").count(), 4);
    assert_eq!(client[8..12], ["UTF8", "on", "ISO, MDY", "Zulu"]);
    assert_eq!(server[8..12], client[8..12]);
    assert!(found[2..].iter().all(|row| row[6] != "0"), "keys are known");
    assert!(found.iter().all(|row| row[12..] == ["NULL"; 3]), "secrets are not");
    let mut visitor = Raw::console(pooler.port, "app")?;
    assert!(told(&mut visitor, "show fds")?.contains("admin access needed"));
    Ok(())
}

#[test]
fn a_login_that_waits_is_counted_with_its_time() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = crate::start("")?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    told(&mut console, "pause forced")?;
    let port = pooler.port;
    let login = std::thread::spawn(move || {
        Raw::connect(port, &[("user", "app"), ("database", "forced")]).map(|raw| raw.greeting.len())
    });
    wait_until("a login that waits", || {
        let row = row(&mut console, "show pools", "forced|app|").unwrap_or_default();
        row.len() > 14 && row[2..4] == ["0", "1"] && row[14] != "0"
    })?;
    assert_eq!(row(&mut console, "show clients", "C|app|forced|")?[4], "waiting");
    told(&mut console, "resume forced")?;
    assert!(login.join().is_ok_and(|greeting| greeting.is_ok_and(|count| count > 5)));
    Ok(())
}

#[test]
fn a_cancel_request_is_shown_on_its_way() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    // A server that takes connections and answers nothing to a cancel request: the real one is
    // stopped while the request is under way.
    let (postgres, pooler) = crate::start("pool_mode = transaction\nworkers = 2")?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    let mut client = Raw::connect(pooler.port, &[("user", "app"), ("database", "postgres")])?;
    client.ask("select pg_sleep(600)")?;
    let running = "select count(*) from pg_stat_activity where query like '%sleep(600)'";
    wait_until("query", || postgres.sql(running).is_ok_and(|count| count.trim() == "1"))?;
    let postmaster = postgres.pid()?;
    let signal = |name: &str| {
        switchyard_testkit::run(std::process::Command::new("kill").args([name, &postmaster]))
    };
    signal("-STOP")?;
    let (asked, cancelled) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| asked.send(client.cancel()));
        let shown = wait_until("cancel request", || {
            let pool = row(&mut console, "show pools", "postgres|app|").unwrap_or_default();
            pool.get(2..9).is_some_and(|part| part.join(" ") == "1 0 1 0 1 1 0")
        });
        let clients = row(&mut console, "show clients", "C|(nouser)|");
        let servers = rows(&mut console, "show servers");
        signal("-CONT")?;
        shown?;
        let (clients, servers) = (clients?, servers?);
        assert_eq!(clients[..5].join(" "), "C (nouser) postgres none active_cancel_req");
        let carrier = servers.iter().find(|row| row.contains("|postgres|none|active_cancel|"));
        let carrier: Vec<_> = carrier.map_or_else(Vec::new, |row| row.split('|').collect());
        // Each shows the other.
        assert_eq!(carrier.get(14..16), Some(&[&*clients[15], &*clients[14]][..]), "{servers:?}");
        cancelled.recv().map_err(io::Error::other)?
    })?;
    assert!(raw::transcript(&client.answer()?).contains("canceling statement due to user request"));
    wait_until("end of the request", || {
        let pool = row(&mut console, "show pools", "postgres|app|").unwrap_or_default();
        pool.get(2..10).is_some_and(|part| part.join(" ") == "1 0 0 0 0 0 0 1")
    })
}

#[test]
fn users_met_through_auth_query_are_shown_and_strangers_are_not() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (postgres, pooler) = crate::start("auth_type = md5\nauth_user = postgres")?;
    postgres.sql("create role outsider login password 'secret'")?;
    assert_eq!(pooler.sql("outsider", "postgres", "select current_user")?.trim(), "outsider");
    assert!(pooler.sql("stranger", "postgres", "select 1").is_err());
    let users = pooler.console("show users")?;
    let names: Vec<&str> = users.lines().filter_map(|row| Some(row.split_once('|')?.0)).collect();
    assert_eq!(names, ["app", "outsider", "pgbouncer", "postgres"]);
    Ok(())
}

#[test]
fn a_long_table_comes_in_parts_and_whole() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let entry = "a = host=127.0.0.1 port=1";
    let pooler = Pooler::start(crate::program(), entry, "workers = 2")?;
    let mut consoles = Vec::new();
    for _ in 0..600 {
        consoles.push(Raw::console(pooler.port, "postgres")?);
    }
    let console = &mut consoles[0];
    let rows = rows(console, "show clients")?;
    let id = |row: &String| row.split('|').nth(20).and_then(|id| id.parse::<u64>().ok());
    // The very first connection was the test's own look whether the pooler is up.
    assert_eq!(rows.iter().filter_map(id).collect::<Vec<_>>(), (2..=601).collect::<Vec<_>>());
    // In the extended protocol, as a whole and a hundred at a time; what follows waits its turn.
    for limit in [0u32, 100] {
        console.send('P', b"\0show clients\0\0\0")?;
        console.send('B', b"\0\0\0\0\0\0\0\0")?;
        for _ in 0..if limit == 0 { 1 } else { 7 } {
            console.send('E', &[&b"\0"[..], &limit.to_be_bytes()].concat())?;
        }
        console.send('S', b"")?;
        let said = console.answer()?;
        assert_eq!(raw::rows(&said).len(), 600, "{limit}");
        let tags: String = said.iter().map(|(tag, _)| *tag).filter(|tag| *tag != 'D').collect();
        assert_eq!(tags, if limit == 0 { "12CZ" } else { "12ssssssCZ" });
    }
    Ok(())
}
