//! `switchyard test-hooks`: rules and functions are run for statements without a server.

use std::io;

use switchyard_testkit::{Said, Workplace};

const RULES: &str = r#"
import os, time, switchyard
def rewrite_query(username, query, in_transaction):
    if 'raise' in query: raise ValueError('no')
    if 'die' in query: os._exit(3)
    if 'hang' in query: time.sleep(60)
    if 'long' in query: return 'select %d' % len(query)
    return query.replace('facts', 'facts_by_day')
def routing_rules(username, query):
    print('asked')
    if username == 'bob': return 'dev.2'
    if 'entries' in query: return ','.join(switchyard.databases())
    if 'nowhere' in query: return 'dev.9'
    return 'dev.1' if switchyard.parse(query).tables == ['facts_by_day'] else None
"#;

fn place() -> io::Result<Workplace> {
    let place = Workplace::new()?;
    place.write("rules.py", RULES)?;
    let rules = place.path("rules.py").display().to_string();
    place.ini(&format!(
        "hook_timeout = 0.5\nrouting_rules_py_module_file = {rules}\n\
         rewrite_query_py_module_file = {rules}\n\
         [databases]\ndev = host=127.0.0.1\ndev.1 = host=127.0.0.1\ndev.2 = host=127.0.0.1\n\
         [routes]\nblocks = in_transaction=1 -> dev\n[rewrites]\n\
         r = query='^rule (.*)$' -> ruled $1"
    ))?;
    Ok(place)
}

fn trial(place: &Workplace, words: &[&str]) -> io::Result<Said> {
    let mut command = place.command(super::program());
    command.arg("test-hooks").arg(place.path("pooler.ini")).args(words);
    place.run(&mut command)
}

#[test]
fn statements_are_judged_without_a_server() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let place = place()?;
    let found = trial(&place, &["select * from facts", "select 1", "rule x"])?;
    assert_eq!(
        found.stdout,
        "select * from facts\n  dbkey  dev.1  (routing_rules)\n  \
         text   select * from facts_by_day  (rewrite_query)\n\
         select 1\n  dbkey  none  (routing_rules)\n  text   unchanged  (rewrite_query)\n\
         rule x\n  dbkey  none  (routing_rules)\n  text   ruled x  (rule \"r\")\n",
        "{}",
        found.stderr
    );
    assert_eq!(found.code, Some(0));
    assert!(found.stderr.contains("LOG hook: asked"), "{}", found.stderr);
    let long = format!("select 'long{}'", "x".repeat(100_000));
    let found = trial(&place, &["--user", "bob", &long, "entries"])?;
    assert!(found.stdout.contains("  text   select 100013  (rewrite_query)\n"), "{found:?}");
    assert!(found.stdout.contains("dbkey  dev.2  (routing_rules)"), "{found:?}");
    let found = trial(&place, &["--in-transaction", "select * from facts", "entries"])?;
    assert!(found.stdout.contains("  dbkey  dev  (rule \"blocks\")\n"), "{found:?}");
    let found = trial(&place, &["entries", "nowhere"])?;
    assert!(found.stdout.contains("  dbkey  dev,dev.1,dev.2  (routing_rules): no such database"));
    assert!(found.stdout.contains("  dbkey  dev.9  (routing_rules): no such database\n"));
    assert_eq!(found.code, Some(0));
    Ok(())
}

#[test]
fn failures_are_told_one_by_one() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let place = place()?;
    let found = trial(&place, &["raise", "die", "hang", "select 1 from facts"])?;
    for text in [
        "raise\n  dbkey  none  (routing_rules)\n  text   failed: ValueError: no  (rewrite_query)\n",
        "  text   failed: the interpreter ended: exit status: 3  (rewrite_query)\n",
        "  text   failed: TimeoutError: hook_timeout  (rewrite_query)\n",
        "  text   select 1 from facts_by_day  (rewrite_query)\n",
    ] {
        assert!(found.stdout.contains(text), "{text}: {}", found.stdout);
    }
    assert_eq!(found.code, Some(1));
    place.write("rules.py", "def rewrite_query(:\n")?;
    let found = trial(&place, &["select 1"])?;
    assert_eq!(found.code, Some(2));
    assert!(found.stderr.contains("SyntaxError"), "{}", found.stderr);
    assert_eq!(trial(&place, &[])?.code, Some(2));
    Ok(())
}

#[test]
fn cases_show_what_differs() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let place = place()?;
    let cases = place.path("cases");
    let run = |text: &str| {
        place.write("cases", text)?;
        trial(&place, &["--cases", &cases.display().to_string()])
    };
    let good = "# user\tsql\tdbkey\ttext\n\
                app\tselect * from facts\tdev.1\tselect * from facts_by_day\n\
                bob\tselect 1\tdev.2\t\n\
                app,\"select 1, 2\",,\"select 1, 2\"\napp,select 1\n";
    let found = run(good)?;
    assert_eq!((found.code, found.stdout.as_str()), (Some(0), "4 cases, 0 differ\n"), "{found:?}");
    let found = run("app\tselect * from facts\tdev.2\tselect 1\nbob\tselect 1\t-\t\napp\traise\n")?;
    assert_eq!(
        found.stdout,
        "line 1: app: select * from facts\n  \
         dbkey  - dev.2\n         + dev.1  (routing_rules)\n  \
         text   - select 1\n         + select * from facts_by_day  (rewrite_query)\n\
         line 2: bob: select 1\n  dbkey  - none\n         + dev.2  (routing_rules)\n\
         line 3: app: raise\n  text   - anything but a failure\n         \
         + failed: ValueError: no  (rewrite_query)\n3 cases, 3 differ\n"
    );
    assert_eq!(found.code, Some(1));
    assert_eq!(run("app\n")?.code, Some(2));
    Ok(())
}
