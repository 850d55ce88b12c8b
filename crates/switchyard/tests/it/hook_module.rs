//! `import switchyard` inside functions: what the pooler answers, and what it is told.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use switchyard_testkit::{Client, Cluster, Pooler, Postgres, Rules, run, wait_until};

/// Answers what it is asked for in the text of a query.
const MIRROR: &str = r#"
import threading, switchyard
at_import = sorted(switchyard.databases())
switchyard.counter('loads').inc()
seen = []
def watch():
    for _ in range(100):
        seen.append(switchyard.parse('select 1 from t').tables)
        switchyard.counter('watched').inc()
thread = threading.Thread(target=watch)
thread.start()
def found(sql):
    parsed = switchyard.parse(sql)
    if parsed.error:
        return 'error: ' + parsed.error
    return '; '.join('%s %s [%s] [%s]' % (
        one.kind, 'reads' if one.is_read_only else 'writes', ','.join(one.tables),
        ','.join(one.functions)) for one in parsed.statements)
def rewrite_query(username, query, in_transaction):
    if query.startswith('ask:'):
        return 'select $answer$%s$answer$' % (eval(query[4:]),)
    return 'select $answer$' + found(query) + '$answer$'
"#;

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python")
}

fn mirror() -> io::Result<(Postgres, Rules, Pooler)> {
    let server = Postgres::start("")?;
    let entries = format!(
        "dev = host=127.0.0.1 port={0} dbname=postgres\n\
         other = host=127.0.0.1,127.0.0.2 port={0} pool_mode=session",
        server.port
    );
    let rules = Rules::new(MIRROR)?;
    let settings = format!(
        "pool_mode = transaction\nworkers = 2\nhook_timeout = 20\nrewrite_on_error = error\n{}",
        rules.settings(&["rewrite_query"])
    );
    let pooler = Pooler::start(super::program(), &entries, &settings)?;
    Ok((server, rules, pooler))
}

#[test]
fn statements_are_parsed_by_the_pooler() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (_server, _rules, pooler) = mirror()?;
    let mut client = Client::connect(pooler.port, "dev")?;
    let lines = std::fs::read_to_string(package().join("tests/statements.txt"))?;
    for line in lines.lines().chain(lines.lines().take(5)) {
        let (sql, found) = line.split_once(" => ").unwrap_or((line, ""));
        let answer = client.run(sql).map_err(|error| error.to_string());
        assert_eq!(answer, Ok(vec![found.into()]), "{sql}: {}", pooler.log()?);
    }
    for (question, answer) in [
        (
            "switchyard.parse('select f() from a; insert into b select 1 from s.a').tables",
            "['a', 'b', 's.a']",
        ),
        ("switchyard.parse('').kind, switchyard.is_read_only('')", "(None, True)"),
        ("switchyard.is_read_only('selec'), switchyard.parse('selec').tables", "(False, [])"),
        ("switchyard.fingerprint('select 1') == switchyard.fingerprint('select  2')", "True"),
        ("switchyard.fingerprint('selec'), switchyard.fingerprint('x' * 99999)", "(None, None)"),
        ("switchyard.parse('select 1' + ' ' * 65536).error[:14]", "text of 65544 "),
        ("switchyard.parse('select ' + '(' * 30000 + '1' + ')' * 30000).tables", "[]"),
        ("switchyard.parse(chr(0xdce9) + 'select').kind", "None"),
        ("sorted({x for t in seen for x in t}) if thread.join() is None else 0", "['t']"),
        ("len(seen)", "100"),
    ] {
        let found = client.run(&format!("ask:{question}")).map_err(|error| error.to_string());
        assert_eq!(found, Ok(vec![answer.into()]), "{question}: {}", pooler.log()?);
    }
    Ok(())
}

#[test]
fn functions_see_entries_and_are_heard() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (server, _rules, pooler) = mirror()?;
    let mut client = Client::connect(pooler.port, "dev")?;
    let mut ask = |question: &str| {
        let found = client.run(&format!("ask:{question}"));
        found.inspect_err(|error| println!("{question}: {error} {:?}", pooler.log()))
    };
    assert_eq!(ask("at_import")?, ["['dev', 'other']"]);
    let port = server.port;
    let dev = format!(
        "[('dbname', 'postgres'), ('disabled', False), ('host', '127.0.0.1'), \
         ('pool_mode', 'transaction'), ('port', {port})]"
    );
    assert_eq!(ask("sorted(switchyard.databases()['dev'].items())")?, [dev]);
    let other = "switchyard.databases()['other']";
    let hosts = "127.0.0.1,127.0.0.2 other session False";
    let line = |name: &str| format!("%({name})s");
    let lines = ["host", "dbname", "pool_mode", "disabled"].map(line).join(" ");
    let question = format!("'{lines}' % {other}");
    assert_eq!(ask(&question)?, [hosts]);
    pooler.console("disable other")?;
    assert_eq!(ask(&question)?, [hosts.replace("False", "True")]);
    assert_eq!(ask("switchyard.cluster('dev'), switchyard.cluster('nobody')")?, ["(None, None)"]);

    for (level, text) in [("info", "LOG hook: first line"), ("warning", "WARNING hook: two lines")]
    {
        let said = text.split_once("hook: ").map_or("", |(_, said)| said).replace(' ', "\\n");
        ask(&format!("switchyard.log('{level}', '{said}')"))?;
        wait_until("line", || pooler.log().is_ok_and(|log| log.contains(text)))?;
    }
    ask("switchyard.log('debug', 'nobody asked')")?;
    for _ in 0..3 {
        ask("switchyard.counter('asked').inc(2)")?;
    }
    let row = |name: &str| {
        let table = pooler.console("show hooks").unwrap_or_default();
        let row = table.lines().find(|row| row.starts_with(name)).unwrap_or_default();
        row.split('|').nth(6).and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    wait_until("counters", || row("counters.asked|") == 6)?;
    // Each process counts its own, and the second one may still be starting.
    wait_until("two processes", || row("counters.loads|") >= 2)?;
    wait_until("threads' counters", || row("counters.watched|") == 100 * row("counters.loads|"))?;
    assert!(!pooler.log()?.contains("nobody asked"));
    // A child of a process is not the process.
    let child = "__import__('os').fork() or [switchyard.databases()]";
    assert!(ask(&format!("bool({child})"))?[0].starts_with("True"));
    assert_eq!(ask("len(switchyard.databases())")?, ["2"]);
    Ok(())
}

#[test]
fn functions_know_the_cluster() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let rules = Rules::new(
        "import switchyard\n\
         def routing_rules(username, query, in_transaction):\n\
         \x20   if 'tell' in query or in_transaction: return None\n\
         \x20   found = switchyard.cluster('app')\n\
         \x20   if found and found.readers and switchyard.is_read_only(query):\n\
         \x20       return 'app@reader'\n\
         \x20   return 'app@writer'\n\
         def rewrite_query(username, query, in_transaction):\n\
         \x20   if 'tell' not in query: return query\n\
         \x20   one = switchyard.cluster('app')\n\
         \x20   return \"select '%s %s %d %d'\" % (\n\
         \x20       one.state, one.writer, len(one.readers), len(one.lag_bytes))\n",
    )?;
    let settings =
        format!("pool_mode = transaction\n{}", rules.settings(&["rewrite_query", "routing_rules"]));
    let pooler = Pooler::start(super::program(), &cluster.entry("app"), &settings)?;
    let readers = cluster.nodes().len() - 1;
    wait_until("readers", || {
        pooler.log().is_ok_and(|log| log.matches("up as reader").count() == readers)
    })?;
    let mut client = Client::connect(pooler.port, "app")?;
    let told = client.run("tell")?.join("");
    assert!(told.starts_with("ok ") && told.contains(&format!(" {readers} ")), "{told}");
    assert!(!told.contains("None"), "{told}");
    let recovering = "select pg_is_in_recovery()";
    assert_eq!(client.run(recovering)?, ["t"]);
    assert_eq!(client.run(&format!("{recovering} from (select 1) x for update"))?, ["f"]);
    client.run("begin")?;
    client.run("commit")?;
    Ok(())
}

#[test]
fn the_package_works_without_a_pooler() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let tests = |python: &Path| {
        let mut command = Command::new(python);
        command.args(["-B", "-m", "unittest", "discover", "tests"]).current_dir(package());
        run(&mut command)
    };
    tests(Path::new("python3"))?;
    // There the parser is installed.
    if let Some(drivers) = std::env::var_os("SWITCHYARD_DRIVERS") {
        let python = PathBuf::from(drivers).join("venv/bin/python");
        run(Command::new(&python).args(["-c", "import pglast"]))?;
        tests(&python)?;
    }
    Ok(())
}
