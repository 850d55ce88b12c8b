//! Processes that stand still or are killed, and clients that wait for a function: whose time runs
//! meanwhile, and who is served.

use std::io;

use switchyard_testkit::{Client, Pooler, Postgres, Rules, signal, wait_until};

const RULES: &str = r#"
import re, time
def rewrite_query(username, query, in_transaction):
    time.sleep(float(re.search(r'/\*sleep (.*?)\*/|$', query)[1] or 0))
    return query
def routing_rules(username, query, in_transaction):
    return "k" * 1000000 if "/*far*/" in query else None
"#;

struct Lab {
    _server: Postgres,
    _rules: Rules,
    pooler: Pooler,
}

fn lab(settings: &str) -> io::Result<Lab> {
    let server = Postgres::start("")?;
    let rules = Rules::new(RULES)?;
    let entry = format!("dev = host=127.0.0.1 port={} dbname=postgres", server.port);
    let settings = format!("{settings}\n{}", rules.settings(&["rewrite_query", "routing_rules"]));
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    Ok(Lab { _server: server, _rules: rules, pooler })
}

fn answer(client: &mut Client, sql: &str) -> String {
    client.run(sql).map_or_else(|error| error.to_string(), |rows| rows.join(" "))
}

#[test]
fn who_waits_for_a_function_is_not_idle() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for mode in ["transaction", "session"] {
        let limits = "idle_transaction_timeout = 1\nclient_idle_timeout = 1\nhook_timeout = 20";
        let lab = lab(&format!("pool_mode = {mode}\n{limits}"))?;
        let client = &mut Client::connect(lab.pooler.port, "dev")?;
        assert_eq!(answer(client, "/*sleep 2.5*/ select 1"), "1", "{mode}");
        assert_eq!(answer(client, "begin"), "");
        assert_eq!(answer(client, "/*sleep 2.5*/ select 2"), "2", "{mode}");
        wait_until("the end of its time", || {
            let log = lab.pooler.log().unwrap_or_default();
            log.contains("closing because: idle transaction timeout")
        })?;
    }
    Ok(())
}

#[test]
fn a_process_that_stands_still_is_replaced() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let one = "hook_workers = 1\nhook_workers_max = 1\nhook_timeout = 1\nrewrite_on_error = error";
    let lab = lab(one)?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    assert_eq!(answer(client, "select 1"), "1");
    let stopped = lab.pooler.children()?;
    stopped.iter().try_for_each(|pid| signal(*pid, "STOP"))?;
    // Its call fails, and those that follow are served by another.
    assert_eq!(answer(client, "select 2"), "58000 query rewrite failed");
    wait_until("another process", || answer(client, "select 3") == "3")?;
    assert!(lab.pooler.children()?.iter().all(|pid| !stopped.contains(pid)));
    Ok(())
}

#[test]
fn processes_that_are_killed_again_and_again_are_no_crash_loop() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("hook_workers = 2\nhook_timeout = 20\nrewrite_on_error = error")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    let mut failed = 0;
    for _ in 0..12 {
        // The oldest has served.
        let oldest = lab.pooler.children()?.into_iter().min();
        if let Some(pid) = oldest {
            // One that has just ended is as good.
            let _ = signal(pid, "KILL");
        }
        // Whoever comes next serves at once, though the one before it lived for a moment.
        wait_until("an answer", || {
            let served = answer(client, "select 1") == "1";
            failed += usize::from(!served);
            served
        })?;
    }
    assert!(failed < 12, "{failed}");
    Ok(())
}

#[test]
fn a_key_of_any_length_makes_a_short_line() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("verbose = 1\nhook_timeout = 20\nroute_unknown = error")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    let told = answer(client, "select 1 /*far*/");
    assert!(told.starts_with("3D000 routing_rules returned unknown database \"kkkk"), "{told}");
    assert!(told.len() < 300, "{}", told.len());
    let longest = lab.pooler.log()?.lines().map(str::len).max().unwrap_or(0);
    assert!(longest < 600, "{longest}");
    Ok(())
}
