//! Native rules in front of two real servers, alone and before Python functions.

use std::io;

use switchyard_testkit::{Pooler, Postgres, Rules};

struct Lab {
    servers: [Postgres; 2],
    pooler: Pooler,
}

fn lab(settings: &str) -> io::Result<Lab> {
    let servers = [Postgres::start("")?, Postgres::start("")?];
    for (server, name) in servers.iter().zip(["one", "two"]) {
        server.sql(&format!(
            "create table tablea as select '{name}'::text v; create table tableb as table tablea; \
             create table other as table tablea"
        ))?;
    }
    let entry =
        |name: &str, port: u16| format!("{name} = host=127.0.0.1 port={port} dbname=postgres\n");
    let databases = [
        entry("dev", servers[0].port),
        entry("dev.1", servers[0].port),
        entry("dev.2", servers[1].port),
    ]
    .concat();
    let settings = format!("pool_mode = transaction\nverbose = 1\n{settings}");
    let pooler = Pooler::start(super::program(), &databases, &settings)?;
    Ok(Lab { servers, pooler })
}

/// Runs queries over one connection; answers the first column of the first row of each.
fn ask(lab: &Lab, queries: &[(&str, &str)]) -> io::Result<()> {
    let mut client = lab.pooler.session("postgres", "dev")?;
    for (sql, value) in queries {
        assert_eq!(client.run(sql)?.trim(), *value, "{sql}");
    }
    Ok(())
}

#[test]
fn regular_expressions_route_and_rewrite() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("workers = 2\n[routes]\n\
         a = query=.*tablea.* -> dev.1\nb = query=.*tableb.* -> dev.2\nlost = query=lost -> dev.9\n\
         [rewrites]\nsum = query='^select (\\w+) from facts;?$' -> select '$1 before'\n")?;
    ask(
        &lab,
        &[
            ("select v from tablea", "one"),
            ("select v from tableb", "two"),
            ("select v from other", "two"),
            ("select v from tablea", "one"),
            ("select it from facts", "it before"),
            ("select v || ' lost' from other", "one lost"),
        ],
    )?;
    let log = lab.pooler.log()?;
    for line in [
        "rule \"b\": \"dev.2\" (was \"dev.1\") for: select v from tableb",
        "rule \"sum\": select it from facts; -> select 'it before'",
        "WARNING C-",
        "rule \"lost\" returned unknown database \"dev.9\"",
    ] {
        assert!(log.contains(line), "{line}\n{log}");
    }
    Ok(())
}

#[test]
fn the_parser_tells_tables_kinds_and_reading() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("route_on_error = error\n[routes]\n\
         reads = read_only=1 in_transaction=0 -> dev.2\nwrites = -> dev.1\n\
         [rewrites]\nkind = kind=delete query='^delete' -> select 'no' where false and \n")?;
    ask(
        &lab,
        &[
            ("select v from other /* tablea */", "two"),
            ("with x as (insert into other select 'x' returning v) select v from x", "x"),
            ("select v from other for update limit 1", "one"),
            ("begin; select 1; commit", "1"),
        ],
    )?;
    assert_eq!(lab.servers[0].sql("select count(*) from other")?.trim(), "2");
    let long = format!("select '{}'", "x".repeat(70_000));
    let answer = lab.pooler.sql("postgres", "dev", &long).map_err(|error| error.to_string());
    assert!(answer.is_err_and(|error| error.contains("ERROR:  query routing failed")));
    assert!(lab.pooler.log()?.contains("rule \"reads\": text of 70009 bytes is too long"));
    Ok(())
}

#[test]
fn what_rules_do_not_decide_is_for_the_functions() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let functions = Rules::new(
        "def routing_rules(user, query, in_transaction):\n    return 'dev.2'\n\
         def rewrite_query(user, query, in_transaction):\n    \
         return query.replace('from table', 'from public.table')\n",
    )?;
    let names = ["routing_rules", "rewrite_query"];
    let settings = functions.settings(&names);
    let lab = lab(&format!(
        "{settings}\n[routes]\na = query=tablea -> dev.1\n\
         [rewrites]\nb = query='select v from other' -> select v || ' by rule' from other\n"
    ))?;
    ask(
        &lab,
        &[
            ("select v from tablea", "one"),
            ("select v from tableb", "two"),
            ("select v from other", "two by rule"),
        ],
    )?;
    let log = lab.pooler.log()?;
    assert!(log.contains("rewrite_query: select v from tablea; -> select v from public.tablea;"));
    assert!(!log.contains("routing_rules: \"dev.2\" (was \"dev\") for: select v from tablea"));
    for (sql, row) in [
        ("from tablea", "from public.tablea|dev.1|dev.1|127.0.0.1|rewrite_query; rule \"a\""),
        ("select 1", "select 1|dev.2|dev.2|127.0.0.1|rewrite_query: unchanged; routing_rules"),
        (
            "select v from other",
            "select v || '' by rule'' from other|dev.2|dev.2|127.0.0.1|rule \"b\"; routing_rules",
        ),
    ] {
        let sql = format!("explain route 'postgres', 'dev', '{sql}'");
        assert_eq!(lab.pooler.console(&sql)?.trim(), row.replace("''", "'"));
    }
    let hooks = lab.pooler.console("show hooks")?;
    assert!(hooks.contains("routes.a|query=tablea -> dev.1|loaded||0|0|1|1|"), "{hooks}");
    Ok(())
}

#[test]
fn broken_rules_start_nothing_and_change_nothing() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let broken = lab("[routes]\na = query=( -> x\nb = quary=a -> x\n");
    assert!(broken.is_err());
    let lab = lab("[routes]\nb = query=tableb -> dev.2\n")?;
    let ini = std::fs::read_to_string(lab.pooler.ini())?;
    std::fs::write(lab.pooler.ini(), format!("{ini}c = query=( -> x\n"))?;
    let answer = lab.pooler.console("reload").map_err(|error| error.to_string());
    assert!(answer.is_err_and(|error| error.contains("RELOAD failed")));
    assert!(lab.pooler.log()?.contains("invalid rule \"c\" in section \"routes\": "));
    ask(&lab, &[("select v from tableb", "two")])?;
    std::fs::write(lab.pooler.ini(), ini.replace("tableb -> dev.2", "tablea -> dev.2"))?;
    lab.pooler.console("reload")?;
    ask(&lab, &[("select v from tableb", "one"), ("select v from tablea", "two")])
}
