//! Every version of CPython that this machine has runs the same functions.

use std::io;
use std::path::Path;

use switchyard_testkit::{Client, Pooler, Postgres, Python, Rules, wait_until};

/// Versions that the pooler supports; those that are missing here are told.
const VERSIONS: [&str; 9] = ["3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14"];

const RULES: &str = r#"
import atexit, os, sys, threading, time
import switchyard

generation = 1

def rewrite_query(username, query, in_transaction):
    if 'version' in query: return "select '%d.%d'" % sys.version_info[:2]
    if 'raise' in query: raise ValueError('on purpose')
    if 'hang' in query: time.sleep(60)
    if 'die' in query: os._exit(3)
    if 'generation' in query: return 'select %d' % generation
    if 'tables' in query: return "select '%s'" % ','.join(switchyard.parse(query).tables)
    if 'entries' in query: return "select '%s'" % ','.join(switchyard.databases())
    if 'long' in query: return 'select %d' % len(query)
    if 'accent' in query: return query.replace('accent', 'caf\u00e9')
    return query

def routing_rules(username, query):
    return 'two' if 'two' in query else None
"#;

fn check(pooler: &Pooler, rules: &Rules, version: &str) -> io::Result<()> {
    let client = &mut Client::connect(pooler.port, "one")?;
    let mut answer =
        |sql: &str| client.run(sql).map_or_else(|error| error.to_string(), |rows| rows.join(" "));
    let refused = "58000 query rewrite failed";
    let long = format!("select 'long{}'", "x".repeat(200_000));
    for (sql, expected) in [
        ("select 'version'", version),
        ("select 'two' || current_database()", "twotemplate1"),
        ("select 'raise'", refused),
        ("select 'accent'", "caf\u{e9}"),
        ("select 1 as tables from a, b.c", "a,b.c"),
        ("select 'entries'", "one,two"),
        (long.as_str(), "200013"),
        ("select 'hang'", refused),
        ("select 'die'", refused),
        ("select 'generation'", "1"),
        ("select 'same'", "same"),
    ] {
        assert_eq!(answer(sql), expected, "{version}: {sql}: {}", pooler.log()?);
    }
    rules.write(&format!(
        "{RULES}\ndef switchyard_reload(old):\n    global generation\n    \
         generation = old['generation'] + 1\n"
    ))?;
    pooler.console("reload")?;
    assert_eq!(answer("select 'generation'"), "2", "{version}");
    assert!(pooler.log()?.contains("rewrite_query failed: ValueError: on purpose"), "{version}");
    Ok(())
}

#[test]
fn versions_of_cpython() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let server = Postgres::start("")?;
    let line = |name: &str, dbname: &str| {
        format!("{name} = host=127.0.0.1 port={} dbname={dbname}\n", server.port)
    };
    let entries = [line("one", "postgres"), line("two", "template1")].concat();
    let mut found = 0;
    for version in VERSIONS {
        let Some(python) = Python::find(version)? else {
            println!("left out: CPython {version} is not on this machine");
            continue;
        };
        found += 1;
        let copied = if python.is_copy() { " (a copy)" } else { "" };
        println!("CPython {version}{copied}");
        let rules = Rules::new(RULES)?;
        let settings = format!(
            "pool_mode = transaction\nrewrite_on_error = error\nhook_timeout = 2\nworkers = 2\n\
             hook_python = {}\n{}",
            python.path().display(),
            rules.settings(&["rewrite_query", "routing_rules"])
        );
        let mut pooler = Pooler::start(super::program(), &entries, &settings)?;
        check(&pooler, &rules, version)?;
        let _ = pooler.console("shutdown");
        wait_until("the end", || !pooler.is_running())?;
    }
    assert!(found > 0, "no version at all");
    Ok(())
}

#[test]
fn an_interpreter_that_is_none_is_fatal() -> io::Result<()> {
    let place = switchyard_testkit::Workplace::new()?;
    place.write("rules.py", "def rewrite_query(user, query):\n    return query\n")?;
    for (python, text) in [
        ("/nowhere/python3", "cannot start /nowhere/python3: No such file or directory"),
        ("/bin/false", "the interpreter ended while loading: exit status: 1"),
    ] {
        if !Path::new("/bin/false").exists() {
            return Ok(());
        }
        place.ini(&format!(
            "hook_python = {python}\nrewrite_query_py_module_file = {}\n[databases]\n",
            place.path("rules.py").display()
        ))?;
        let mut command = place.command(super::program());
        let said = place.run(command.arg(place.path("pooler.ini")))?;
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.stderr.contains("FATAL cannot load hooks: "), "{said:?}");
        assert!(said.stderr.contains(text), "{said:?}");
    }
    Ok(())
}
