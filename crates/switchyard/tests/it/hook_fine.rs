//! The fine print of the functions' contract, row by row.

use std::io;
use std::process::Command;

use switchyard_testkit::{Client, Messages, Pooler, Postgres, Rules, Workplace, wait_until};

/// A query says what the functions return.
const ECHO: &str = r#"
import re, time
def value(name, query):
    found = re.search(r'/\*%s:(.*?)\*/' % name, query, re.DOTALL)
    return eval(found[1]) if found else query if name == 'text' else None
def rewrite_query(username, query, in_transaction):
    return value('text', query)
def routing_rules(username, query, in_transaction):
    return value('key', query)
"#;

struct Lab {
    server: Postgres,
    _rules: Rules,
    pooler: Pooler,
}

fn lab(settings: &str) -> io::Result<Lab> {
    let server = Postgres::start("")?;
    server.sql("create database second")?;
    let rules = Rules::new(ECHO)?;
    let entries = format!(
        "dev = host=127.0.0.1 port={0} dbname=postgres\nsecond = host=127.0.0.1 port={0}\n\
         third = host=127.0.0.1 port={0} dbname=template1\n",
        server.port
    );
    let settings = format!(
        "pool_mode = transaction\nhook_timeout = 20\nworkers = 2\n{settings}\n{}",
        rules.settings(&["rewrite_query", "routing_rules"])
    );
    let pooler = Pooler::start(super::program(), &entries, &settings)?;
    Ok(Lab { server, _rules: rules, pooler })
}

fn answer(client: &mut Client, sql: &str) -> String {
    client.run(sql).map_or_else(|error| error.to_string(), |rows| rows.join(" "))
}

fn exchange(client: &mut Client, messages: Messages) -> io::Result<String> {
    Ok(client.exchange(&messages, 1)?.join(" "))
}

const HERE: &str = "select current_database()";

#[test]
fn results_of_rewrite_query() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("rewrite_on_error = error\nmax_packet_size = 1000000\nrewrite_query_tag = pid")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    let refused = "58000 query rewrite failed";
    let tag = format!("rewritten_pid='{:05}'*/", lab.pooler.pid());
    let shown = "select query from pg_stat_activity where pid = pg_backend_pid()";
    for (result, found) in [
        ("None", "1"),
        ("b\"select 2\"", refused),
        ("7", refused),
        ("[]", refused),
        ("True", refused),
        ("\"select 2\" + chr(0)", refused),
        ("\"select '\" + chr(0xd800) + \"'\"", refused),
        ("\"select '\" + \"x\" * 1000000 + \"'\"", refused),
        ("\"select 3\"", "3"),
        ("1 / 0", refused),
        ("exec(\"raise SystemExit\")", refused),
        ("exec(\"raise KeyboardInterrupt\")", refused),
        ("type(\"Text\", (str,), {})(\"select 4\")", "4"),
    ] {
        assert_eq!(answer(client, &format!("select 1 /*text:{result}*/")), found, "{result}");
    }
    // An empty text is an empty query.
    let empty = exchange(client, Messages::new().query(b"select 1 /*text:''*/"))?;
    assert!(empty == "I Z:I" || empty == "C Z:I", "{empty}");
    // Only changed texts are tagged, behind a comment inside of it.
    assert_eq!(answer(client, shown), shown);
    let changed = format!("select 1 /*text:\"{shown}\"*/");
    assert_eq!(answer(client, &changed), format!("{shown}/*{tag}"));
    let changed =
        format!("select 1 /*text:\"{shown} /* mine */\"*/").replace("*/\"*/", "*\" + \"/\"*/");
    assert_eq!(answer(client, &changed), format!("{shown} /* mine ,{tag}"));
    // A Parse keeps everything else.
    let group = Messages::new()
        .parse("name", "select $1 /*text:\"select 'x' || 'y'\"*/")
        .describe("name")
        .sync();
    assert_eq!(exchange(client, group)?, "1 t T Z:I");
    let group = Messages::new().bind("name").execute().sync();
    assert_eq!(exchange(client, group)?, "2 D:xy C Z:I");
    // In the extended protocol the rest up to Sync is left out.
    let group = Messages::new()
        .parse("", "select 1 /*text:7*/")
        .bind("")
        .execute()
        .parse("", "select 2")
        .bind("")
        .execute()
        .sync();
    assert_eq!(exchange(client, group)?, format!("E:{refused} Z:I"));
    assert_eq!(answer(client, "select 5"), "5");
    Ok(())
}

#[test]
fn results_of_routing_rules() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("route_on_error = error\nroute_none = default")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    let refused = "58000 query routing failed";
    for (key, found) in [
        ("'second'", "second"),
        ("None", "postgres"),
        ("'third'", "template1"),
        ("'nobody'", "template1"),
        ("'Third'", "template1"),
        ("' third'", "template1"),
        ("'pgbouncer'", "template1"),
        ("''", refused),
        ("b'second'", refused),
        ("5", refused),
        ("1 / 0", refused),
        ("'third' + chr(0)", refused),
        ("'third' + chr(0xd800)", refused),
        ("'dev@reader'", "template1"),
        ("'third'", "template1"),
        ("'dev'", "postgres"),
    ] {
        assert_eq!(answer(client, &format!("{HERE} /*key:{key}*/")), found, "{key}");
    }
    assert_eq!(answer(client, HERE), "postgres", "None is where the client logged in");
    // Inside a block None asks for nothing.
    answer(client, "begin /*key:'second'*/");
    assert_eq!(answer(client, HERE), "second");
    answer(client, "commit");
    assert_eq!(answer(client, HERE), "postgres");
    assert!(!lab.pooler.log()?.contains("inside a transaction"));
    let log = lab.pooler.log()?;
    for key in ["nobody", "Third", " third", "pgbouncer", "dev@reader"] {
        assert!(log.contains(&format!("returned unknown database \"{key}\"")), "{key}: {log}");
    }
    let group = Messages::new().parse("", "select 1 /*key:5*/").bind("").execute().sync();
    assert_eq!(exchange(client, group)?, format!("E:{refused} Z:I"));
    Ok(())
}

#[test]
fn failures_pass_or_end_the_client() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let passing = lab("verbose = 1")?;
    let client = &mut Client::connect(passing.pooler.port, "dev")?;
    for result in ["/*text:1 / 0*/", "/*key:1 / 0*/", "/*text:7*/", "/*key:''*/"] {
        assert_eq!(answer(client, &format!("select 1 {result}")), "1", "{result}");
    }
    let log = passing.pooler.log()?;
    for text in [
        "WARNING C-",
        "rewrite_query failed: ZeroDivisionError: division by zero",
        "routing_rules failed: ZeroDivisionError: division by zero",
        "DEBUG C-",
        "rewrite_query: Traceback (most recent call last):",
    ] {
        assert!(log.contains(text), "{text}: {log}");
    }
    for _ in 0..100 {
        answer(client, "select 1 /*text:1 / 0*/");
    }
    let lines = passing.pooler.log()?.matches("rewrite_query failed: ").count();
    assert!(lines < 60, "{lines}");
    wait_until("the number of those left out", || {
        answer(client, "select 1 /*text:1 / 0*/");
        passing.pooler.log().is_ok_and(|log| log.contains(" more were not logged)"))
    })?;
    drop(passing);
    for (settings, result, text) in [
        ("rewrite_on_error = disconnect", "text:1 / 0", "query rewrite failed"),
        ("rewrite_query_disconnect_on_failure = 1", "text:7", "query rewrite failed"),
        (
            "rewrite_query_disconnect_on_failure = yes",
            "text:exec('import sys; sys.exit()')",
            "query rewrite failed",
        ),
        ("route_on_error = disconnect", "key:5", "query routing failed"),
    ] {
        let lab = lab(settings)?;
        for extended in [false, true] {
            let client = &mut Client::connect(lab.pooler.port, "dev")?;
            assert_eq!(answer(client, "select 1"), "1");
            let sql = format!("insert into nothing values (1) /*{result}*/");
            let told = if extended {
                let group = Messages::new().parse("", &sql).bind("").execute().sync();
                client.send(group.bytes())?;
                let told = client.receive(1);
                told.map_or_else(|error| error.to_string(), |words| words.join(" "))
            } else {
                answer(client, &sql)
            };
            assert!(told.contains(text) || extended, "{settings}: {told}");
            assert!(client.run("select 1").is_err(), "{settings}");
        }
        let log = std::fs::read_to_string(lab.server.socket_dir().join("log"))?;
        assert!(!log.contains("insert into nothing"), "{log}");
        assert!(lab.pooler.log()?.contains(&format!("closing because: {text}")));
    }
    Ok(())
}

#[test]
fn words_of_settings() -> io::Result<()> {
    let place = Workplace::new()?;
    for (line, good) in [
        ("rewrite_query_disconnect_on_failure = off", true),
        ("rewrite_query_disconnect_on_failure = true", true),
        ("rewrite_query_disconnect_on_failure = maybe", false),
        ("rewrite_query_disconnect_on_failure = 1", true),
        ("rewrite_query_disconnect_on_failure = 2", false),
        ("rewrite_query_disconnect_on_failure = -1", false),
        ("rewrite_on_error = fail", false),
        ("route_none = default", true),
        ("route_none = none", false),
        ("route_unknown = error", true),
        ("route_in_transaction = switch", true),
        ("route_in_transaction = leave", false),
        ("rewrite_query_tag = pid", true),
        ("rewrite_query_tag = yes", false),
        ("hook_timeout = 0", true),
        ("hook_max_rss = 512MB", true),
        ("hook_max_query_size = 16MB", true),
        ("hook_workers = many", false),
    ] {
        place.ini(&format!("{line}\n[databases]\n"))?;
        let mut command = place.command(super::program());
        let said = place.run(command.arg("check").arg(place.path("pooler.ini")))?;
        assert_eq!(said.code == Some(0), good, "{line}: {said:?}");
    }
    Ok(())
}

#[test]
fn evidence_stands_in_the_log() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("verbose = 1")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    answer(client, "select 1 /*key:'second'*/");
    answer(client, "select\n2");
    answer(client, "select 3 /*text:'select 4'*/");
    answer(client, "alter role postgres password 'hidden' /*key:'dev'*/");
    answer(client, &format!("select '{}'", "y".repeat(500)));
    let log = lab.pooler.log()?;
    for text in [
        "routing_rules: \"second\" (was \"dev\") for: select 1 /*key:'second'*/",
        "routing_rules: None, staying on \"second\" for: select 2",
        "rewrite_query: select 3 /*text:'select 4'*/ -> select 4",
    ] {
        assert!(log.contains(text), "{text}: {log}");
    }
    assert!(!log.contains("hidden"), "{log}");
    assert!(!log.contains(&"y".repeat(200)), "{log}");
    Ok(())
}

#[test]
fn the_console_explains_and_counts() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("")?;
    let explain = |sql: &str| {
        lab.pooler
            .console(&format!("explain route 'postgres', 'dev', '{}'", sql.replace('\'', "''")))
    };
    let host = "127.0.0.1";
    let plain = "rewrite_query: unchanged; routing_rules: unchanged";
    assert_eq!(explain("select 1")?.trim(), format!("select 1||dev|{host}|{plain}"));
    let found = explain("select 1 /*key:'second'*/")?;
    assert!(found.contains("|second|second|127.0.0.1|"), "{found}");
    let found = explain("select 1 /*key:'x'*/")?;
    assert!(found.contains("|x|x||") && found.contains("unknown database \"x\""), "{found}");
    let found = explain("select 1 /*text:1 / 0*/")?;
    assert!(found.contains("rewrite_query failed: ZeroDivisionError: division by zero"), "{found}");

    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    for sql in [
        "select 1",
        "select 1 /*text:None*/",
        "select 1 /*text:'select 2'*/",
        "select 1 /*text:7*/",
        "select 1 /*key:'second'*/",
        "select 1 /*key:'second'*/",
        "select 1 /*key:'nobody'*/",
        "begin",
        "select 1 /*key:'dev'*/",
        "commit",
    ] {
        answer(client, sql);
    }
    let table = lab.pooler.console("show hooks")?;
    let row = |name: &str| -> Vec<String> {
        let row = table.lines().find(|row| row.starts_with(name)).unwrap_or_default();
        row.split('|').map(String::from).collect()
    };
    let (rewrite, route) = (row("rewrite_query|"), row("routing_rules|"));
    // changed, identical, none, unknown_key, errors, timeouts, ignored_in_transaction.
    assert_eq!(rewrite[2], "loaded");
    assert_eq!((rewrite[4].as_str(), rewrite[5].as_str()), ("3", "2"), "{table}");
    assert_eq!(rewrite[7..14].join(" "), "1 7 1 0 1 0 0", "{table}");
    assert_eq!(route[7..14].join(" "), "1 1 6 1 0 0 1", "{table}");
    assert_eq!(rewrite[16], "TypeError: rewrite_query returned int");
    assert_eq!(route[16], "");
    Ok(())
}

#[test]
fn functions_see_the_name_that_a_client_sent() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let server = Postgres::start("")?;
    let rules = Rules::new("def rewrite_query(user, query):\n    return f\"select '{user}'\"\n")?;
    let entry = format!("dev = host=127.0.0.1 port={} dbname=postgres user=postgres", server.port);
    for (method, user) in [("trust", "app"), ("any", "whoever"), ("any", "postgres")] {
        let settings = format!("auth_type = {method}\n{}", rules.settings(&["rewrite_query"]));
        let pooler = Pooler::start(super::program(), &entry, &settings)?;
        assert_eq!(pooler.sql(user, "dev", "select 1")?.trim(), user, "{method}");
    }
    Ok(())
}

#[test]
fn modules_are_found_where_they_are() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let server = Postgres::start("")?;
    let place = Workplace::new()?;
    for directory in ["one", "two"] {
        std::fs::create_dir(place.path(directory))?;
    }
    // The same base name in two directories, each with a neighbour; one relative, one in HOME.
    place.write(
        "one/rules.py",
        "import first\nloads = []\ndef rewrite_query(user, query):\n    \
                 print('printed', query)\n    return query.replace('ONE', first.VALUE)\n",
    )?;
    place.write("one/first.py", "VALUE = '1'\n")?;
    place.write(
        "two/rules.py",
        "import second\ndef routing_rules(user, query):\n    \
                 return second.KEY if '1' in query else None\n",
    )?;
    place.write("two/second.py", "KEY = 'other'\n")?;
    Command::new("chmod").args(["-R", "a+rX"]).arg(place.path("")).status()?;
    place.ini(&format!(
        "rewrite_query_py_module_file = one/rules.py\n\
         routing_rules_py_module_file = ~/two/rules.py\n\
         [databases]\ndev = host=127.0.0.1 port={0} dbname=postgres\n\
         other = host=127.0.0.1 port={0} dbname=template1",
        server.port
    ))?;
    let mut command = place.command(super::program());
    command.env("HOME", place.path("")).current_dir(place.path(""));
    command.arg("-q").arg(place.path("pooler.ini"));
    let _running = place.start(&mut command)?;
    wait_until("pooler", || Client::connect(place.port, "dev").is_ok())?;
    let client = &mut Client::connect(place.port, "dev")?;
    assert_eq!(answer(client, "select ONE, current_database()"), "1|template1");
    wait_until("the printed line", || {
        place.read("log").contains("LOG hook: printed select ONE, current_database()")
    })?;
    Ok(())
}

#[test]
fn a_reload_swaps_both_modules_or_none() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let server = Postgres::start("")?;
    let entry = format!("dev = host=127.0.0.1 port={} dbname=postgres", server.port);
    let rewrite = |text: &str| {
        format!(
            "calls = 0\ndef rewrite_query(u, q):\n    global calls\n    \
                                        calls += 1\n    return \"select '{text} %d'\" % calls\n"
        )
    };
    let route = "def routing_rules(u, q):\n    return None\n";
    let (first, second) = (Rules::new(&rewrite("old"))?, Rules::new(route)?);
    let settings = format!(
        "pool_mode = transaction\nhook_timeout = 20\nhook_workers = 1\nhook_workers_max = 1\n{}{}",
        first.settings(&["rewrite_query"]),
        second.settings(&["routing_rules"])
    );
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    let client = &mut Client::connect(pooler.port, "dev")?;
    assert_eq!(answer(client, "x"), "old 1");
    // state, loaded_at, arity, workers.
    let loaded = pooler.console("show hooks")?;
    let row: Vec<&str> = loaded.lines().next().unwrap_or_default().split('|').collect();
    assert_eq!((row[2], row[4], row[5]), ("loaded", "2", "1"), "{loaded}");
    pooler.console("reload")?;
    assert_eq!(answer(client, "x"), "old 2", "globals of an unchanged file persist");
    first.write(&rewrite("new"))?;
    second.write("def routing_rules(u, q:\n")?;
    assert!(pooler.console("reload").is_err());
    assert!(pooler.log()?.contains("hooks not loaded: SyntaxError"), "{}", pooler.log()?);
    assert_eq!(answer(client, "x"), "old 3");
    second.write(route)?;
    pooler.console("reload")?;
    assert_eq!(answer(client, "x"), "new 1");
    std::fs::remove_file(second.path())?;
    assert!(pooler.console("reload").is_err());
    assert_eq!(answer(client, "x"), "new 2");
    second.write(route)?;
    pooler.console("reload")?;
    // Off for the next message.
    let ini = std::fs::read_to_string(pooler.ini())?;
    let path = first.path().display().to_string();
    std::fs::write(pooler.ini(), ini.replace(&path, "not_enabled"))?;
    pooler.console("reload")?;
    assert_eq!(answer(client, "select 'plain'"), "plain");
    let table = pooler.console("show hooks")?;
    assert!(
        table.contains("rewrite_query||off|") || table.contains("rewrite_query|not_enabled|off|")
    );
    Ok(())
}
