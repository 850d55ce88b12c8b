//! Every example of the cookbook, in front of real servers.

use std::io;
use std::path::{Path, PathBuf};

use switchyard_testkit::{Client, Cluster, Pooler, Postgres, Rules, Session, Venv, wait_until};

fn shelf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cookbook")
}

fn example(name: &str) -> io::Result<String> {
    std::fs::read_to_string(shelf().join(format!("{name}.py")))
}

/// A pooler with an example for a function.
fn serve(
    source: &str,
    function: &str,
    entries: &str,
    settings: &str,
) -> io::Result<(Rules, Pooler)> {
    let rules = Rules::new(source)?;
    let names = (0..10).map(|number| format!("user{number}"));
    let names = names.chain(["postgres", "bob", "loader", "tester"].map(String::from));
    let users = rules.path().with_file_name("users");
    std::fs::write(&users, names.map(|name| format!("\"{name}\" \"\"\n")).collect::<String>())?;
    let settings = format!(
        "pool_mode = transaction\nhook_timeout = 20\nauth_file = {}\n{settings}\n{}",
        users.display(),
        rules.settings(&[function])
    );
    let pooler = Pooler::start(super::program(), entries, &settings)?;
    Ok((rules, pooler))
}

/// What a query answers: its rows, or its error.
fn answer(client: &mut Client, sql: &str) -> String {
    client.run(sql).map_or_else(|error| error.to_string(), |rows| rows.join(" "))
}

fn entry(name: &str, server: &Postgres) -> String {
    format!("{name} = host=127.0.0.1 port={} dbname=postgres\n", server.port)
}

#[test]
fn the_book_shows_the_files() -> io::Result<()> {
    let book = std::fs::read_to_string(shelf().join("README.md"))?;
    let mut count = 0;
    for file in std::fs::read_dir(shelf())? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "py") {
            let text = std::fs::read_to_string(&path)?;
            assert!(book.contains(&format!("```python\n{text}```\n")), "{}", path.display());
            count += 1;
        }
    }
    assert_eq!(count, 13);
    Ok(())
}

/// Two servers that tell them apart: table `who` on both, others on one of them only.
fn servers() -> io::Result<[Postgres; 2]> {
    let servers = [Postgres::start("")?, Postgres::start("")?];
    for (server, name) in servers.iter().zip(["one", "two"]) {
        server.sql(&format!("create table who as select '{name}'::text name"))?;
    }
    servers[0].sql("create table orders as select 1 id; create table lineitem as select 1 id")?;
    servers[1].sql("create table clicks as select 2 id; create table everything (x int)")?;
    Ok(servers)
}

#[test]
fn routes() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let servers = servers()?;
    let [one, two] = &servers;
    let who = "select name from who";
    let routing = "routing_rules";

    let entries = [entry("dev", one), entry("dev.1", one), entry("dev.2", two)].concat();
    let (_rules, pooler) = serve(&example("two_clusters_by_table")?, routing, &entries, "")?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    for (sql, rows) in [
        ("select * from orders", "1"),
        (who, "one"),
        ("select * from Clicks where id > 1", "2"),
        (who, "two"),
        ("select * from orders o join lineitem l using (id)", "1"),
        ("select 1 as clicks_a_day", "1"),
        (who, "one"),
    ] {
        assert_eq!(answer(client, sql), rows, "{sql}");
    }

    let entries = [entry("app", one), entry("app.a", one), entry("app.b", two)].concat();
    let (_rules, pooler) = serve(&example("ab_by_user")?, routing, &entries, "")?;
    let found = |user: &str| Session::open(pooler.port, user, "app")?.run(who);
    let users: Vec<String> = (0..10).map(|number| format!("user{number}")).collect();
    for server in &servers {
        server.sql("create role tester superuser login")?;
        users.iter().try_for_each(|user| {
            server.sql(&format!("create role {user} superuser login")).map(drop)
        })?;
    }
    assert_eq!(found("tester")?, "two");
    let first: io::Result<Vec<String>> = users.iter().map(|user| found(user)).collect();
    let again: io::Result<Vec<String>> = users.iter().map(|user| found(user)).collect();
    let first = first?;
    assert_eq!(first, again?);
    let moved = first.iter().filter(|name| *name == "two").count();
    assert!((1..=5).contains(&moved), "{first:?}");

    let all = ["dev", "dev.1"].map(|name| entry(name, one));
    let entries = [all.concat(), entry("dev.2", two), entry("dev.all", two)].concat();
    let (_rules, pooler) = serve(&example("catalog_queries")?, routing, &entries, "")?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    let exists = "select count(*) from pg_class where relname = 'everything'";
    assert_eq!(answer(client, exists), "1", "the server with all objects");
    assert_eq!(answer(client, "select * from orders"), "1");
    assert_eq!(answer(client, "select * from clicks"), "2");
    assert_eq!(answer(client, who), "one");
    let described = Session::open(pooler.port, "postgres", "dev")?.run("\\d everything")?;
    assert!(described.contains("integer"), "{described}");
    let schema = "select count(*) from information_schema.tables where table_name = 'everything'";
    assert_eq!(answer(client, schema), "1");
    Ok(())
}

/// An example for rewrite_query in front of a server.
fn rewriting(server: &Postgres, name: &str, settings: &str) -> io::Result<(Rules, Pooler)> {
    serve(&example(name)?, "rewrite_query", &entry("dev", server), settings)
}

#[test]
fn rewrites() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let server = Postgres::start("")?;
    server.sql(
        "create table sales as select 'north' region, 3 amount; create schema sales; \
         create table sales.t as select 7 x; \
         create table sales_by_region as select 'summary' region, 5 amount, 9 entries; \
         create table orders as select * from (values ('bob', 1), ('eve', 2)) v (owner, id); \
         create table payments as table orders; \
         create table events as select current_date as day, 4 as hits; \
         create role bob superuser login; create role loader superuser login",
    )?;
    summaries(&server)?;
    filtered_rows(&server)?;
    renamed_schemas(&server)?;
    long_scans(&server)?;
    credentials(&server)?;
    metrics(&server)?;
    Ok(())
}

fn summaries(server: &Postgres) -> io::Result<()> {
    let (_rules, pooler) = rewriting(server, "preaggregated", "")?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    assert_eq!(
        answer(client, "SELECT region, sum( amount )\nfrom sales group by region"),
        "summary|5"
    );
    assert_eq!(answer(client, "select count(*) from sales"), "9");
    assert_eq!(answer(client, "select count(*) from sales where amount > 3"), "0");
    Ok(())
}

fn filtered_rows(server: &Postgres) -> io::Result<()> {
    let (_rules, pooler) = rewriting(server, "row_filters", "rewrite_on_error = error")?;
    let mut bob = Session::open(pooler.port, "bob", "dev")?;
    for (sql, rows) in [
        ("select id from orders", "1"),
        ("with x as (select id from orders) select * from x, payments p", "1|bob|1"),
        ("select count(*) from (table orders) a, orders b", "1"),
        ("(select id from orders) union all (select id from payments)", "1\n1"),
        ("/* with */ select 1", "1"),
    ] {
        assert_eq!(bob.run(sql)?, rows, "{sql}");
    }
    for sql in [
        "select id from public.orders",
        "select id from orders, public.payments",
        "update orders set id = 3",
        "insert into x select * from orders",
        "select 1\\; select id from orders",
        "select id into y from orders",
        "select id from orders for update",
        "copy orders to stdout",
        "explain select id from orders",
        "declare c cursor for select id from orders",
        "prepare p as select id from orders",
        "create view v as select * from orders",
        "do 'begin perform 1; end'",
        "select nonsense from from orders",
    ] {
        assert_eq!(bob.run(sql)?, "", "{sql}");
    }
    let admin = &mut Client::connect(pooler.port, "dev")?;
    assert_eq!(answer(admin, "select id from public.orders"), "1 2");
    assert!(pooler.log()?.contains("rewrite_query failed: PermissionError: only plain SELECTs"));
    let passed = server.sql("select count(*) from orders where id = 3")?;
    assert_eq!(passed.trim(), "0");
    Ok(())
}

fn renamed_schemas(server: &Postgres) -> io::Result<()> {
    let (_rules, pooler) = rewriting(server, "renamed_schemas", "")?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    let sql = "select x, 'legacy.t', $$legacy.t$$, E'\\'legacy.t' /* legacy.t */ from LEGACY . t";
    assert_eq!(answer(client, sql), "7|legacy.t|legacy.t|'legacy.t");
    assert_eq!(answer(client, "select legacy.t.x from legacy.t -- legacy.t"), "7");
    Ok(())
}

fn long_scans(server: &Postgres) -> io::Result<()> {
    let (_rules, pooler) = rewriting(server, "block_long_scans", "")?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    let warning = "events: please ask for at most 30 days";
    let today = server.sql("select current_date")?.trim().to_owned();
    for (condition, rows) in [
        (format!("day >= '{today}'"), "4"),
        (format!("day between '{today}' and date '{today}'"), "4"),
        ("day >= '2020-01-01'".into(), warning),
        ("day >= '2020-01-01' and day < '2020-01-30'".into(), ""),
        ("day between '2020-01-01' and '2020-03-01'".into(), warning),
        ("hits > 3".into(), warning),
    ] {
        let sql = format!("select hits from events where {condition}");
        assert_eq!(answer(client, &sql), rows, "{sql}");
    }
    assert_eq!(answer(client, "insert into events values ('2020-01-01', 1)"), "");
    Ok(())
}

fn credentials(server: &Postgres) -> io::Result<()> {
    // Not a word of S3 in this server, which writes down what it was asked for.
    let (_rules, pooler) = rewriting(server, "copy_credentials", "rewrite_on_error = error")?;
    let copy = "copy orders from 's3://bucket/orders'";
    let loader = Session::open(pooler.port, "loader", "dev");
    assert_eq!(loader?.run(&format!("{copy};"))?, "");
    let log = std::fs::read_to_string(server.socket_dir().join("log"))?;
    let asked = format!("{copy} iam_role 'arn:aws:iam::123456789012:role/load'");
    assert!(log.contains(&asked), "{log}");
    let client = &mut Client::connect(pooler.port, "dev")?;
    assert_eq!(answer(client, copy), "58000 query rewrite failed");
    assert_eq!(answer(client, "select 's3://'"), "s3://");
    Ok(())
}

fn metrics(server: &Postgres) -> io::Result<()> {
    let (_rules, pooler) = rewriting(server, "publish_metrics", "")?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    for sql in ["select 1", "select 2", "insert into orders values ('x', 4)", "selec", "commit"] {
        let _ = client.run(sql);
    }
    for (counter, count) in [
        ("statements.select", 2),
        ("statements.insert", 1),
        ("writes.orders", 1),
        ("syntax_errors", 1),
    ] {
        let row = format!("counters.{counter}||counted||0|0|{count}|");
        wait_until(&row, || pooler.console("show hooks").is_ok_and(|table| table.contains(&row)))?;
    }
    Ok(())
}

#[test]
fn clusters() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    cluster.writer().sql("create table t (x int)")?;
    let port = "select inet_server_port()";
    let writer = cluster.writer().port.to_string();
    for name in ["read_write_split", "balance_by_state"] {
        let (_rules, pooler) =
            serve(&example(name)?, "routing_rules", &cluster.entry("app"), "workers = 2")?;
        wait_until("readers", || {
            pooler.log().is_ok_and(|log| log.matches("up as reader").count() == 2)
        })?;
        let client = &mut Client::connect(pooler.port, "app")?;
        wait_until("a reader", || answer(client, port) != writer)?;
        for _ in 0..10 {
            assert_ne!(answer(client, port), writer, "{name}");
        }
        assert_eq!(answer(client, &format!("{port} from (select 1) x for update")), writer);
        assert_eq!(answer(client, "insert into t values (1)"), "");
        assert_eq!(answer(client, "begin"), "");
        assert_eq!(answer(client, port), writer, "a block stays where it began");
        assert_eq!(answer(client, "insert into t values (1)"), "");
        assert_eq!(answer(client, "commit"), "");
        if name == "read_write_split" {
            assert_eq!(answer(client, "begin transaction read only"), "");
            assert_ne!(answer(client, port), writer);
            assert_eq!(answer(client, "commit"), "");
        }
    }
    Ok(())
}

#[test]
fn modules_with_packages_of_their_own() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let Some(venv) = Venv::new(&["psycopg[binary]==3.*", "boto3"])? else { return Ok(()) };
    let servers = servers()?;
    let [one, two] = &servers;
    one.sql(
        "create table captured (username text, query text); \
         create table routes as select 'clicks'::text tablename, 'dev.2'::text dbkey",
    )?;
    let here = format!("port={} dbname", one.port);
    let python = format!("hook_python = {}", venv.path().display());
    let entries = [entry("dev", one), entry("dev.2", two)].concat();

    let source = example("capture_writes")?.replace("port=5432 dbname", &here);
    let (_rules, pooler) = serve(&source, "rewrite_query", &entries, &python)?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    for sql in ["insert into orders values (2)", "select * from orders", "update orders set id = 3"]
    {
        client.run(sql)?;
    }
    let captured = || one.sql("select query from captured order by query");
    wait_until("two statements", || captured().is_ok_and(|rows| rows.lines().count() == 2))?;
    assert_eq!(captured()?.trim(), "insert into orders values (2)\nupdate orders set id = 3");
    let source = example("routing_table")?.replace("port=5432 dbname", &here);
    let settings = format!("{python}\nroute_on_error = error");
    let (_rules, pooler) = serve(&source, "routing_rules", &entries, &settings)?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    wait_until("routes", || answer(client, "select * from clicks") == "2")?;
    assert_eq!(answer(client, "select name from who"), "two");
    one.sql("create table clicks as select 1 id; update routes set dbkey = 'dev'")?;
    wait_until("other routes", || answer(client, "select * from clicks") == "1")?;

    // Any other package of the environment.
    let source = "import boto3\nclient = boto3.client('s3', region_name='eu-west-1')\n\
                  def rewrite_query(u, q, t):\n    return \"select '%s'\" % \
                  client.meta.region_name\n";
    let (_rules, pooler) = serve(source, "rewrite_query", &entries, &python)?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    assert_eq!(answer(client, "select 1"), "eu-west-1");
    let refused = Rules::new("import nothing_like_this\ndef rewrite_query(u, q):\n    return q\n")?;
    let path = refused.path().display().to_string();
    let set = format!("set rewrite_query_py_module_file = '{path}'");
    assert!(pooler.console(&set).is_err());
    assert!(pooler.log()?.contains("ModuleNotFoundError: No module named 'nothing_like_this'"));
    Ok(())
}
