//! Messages of every kind while functions route: what in_transaction is, where each message goes,
//! and what follows the client.

use std::io;
use std::process::Command;

use switchyard_testkit::raw::{rows, transcript};
use switchyard_testkit::{Client, Messages, Pooler, Postgres, Raw, Rules, signal, wait_until};

/// A comment names the key; `ask` becomes the value of in_transaction.
const RULES: &str = r#"
import re, sys
def rewrite_query(username, query, in_transaction):
    query = query.replace("'ask'", "'%s'" % in_transaction)
    return query.replace("'stdin'", repr(sys.stdin.read()))
def routing_rules(username, query, in_transaction):
    found = re.search(r'/\*to (\w+)\*/', query)
    return found[1] if found else None
"#;

struct Lab {
    server: Postgres,
    _rules: Rules,
    pooler: Pooler,
}

fn lab(settings: &str) -> io::Result<Lab> {
    let server = Postgres::start("")?;
    server.sql("create database second")?;
    let rules = Rules::new(RULES)?;
    let entries = format!(
        "dev = host=127.0.0.1 port={0} dbname=postgres\n\
         k = host=127.0.0.1 port={0} dbname=second max_db_client_connections=1\n",
        server.port
    );
    let mode = if settings.contains("pool_mode") { "" } else { "pool_mode = transaction" };
    let settings = format!(
        "{mode}\nhook_timeout = 20\nworkers = 2\n{settings}\n{}",
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
const THERE: &str = "/*to k*/ select current_database()";

#[test]
fn in_transaction_is_true_inside_blocks_only() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    // Each pipeline starts and ends outside; `ask` shows what its function was told.
    for (pipeline, told) in [
        ("select 'ask'", "False"),
        ("begin|select 'ask'|commit|select 'ask'", "True False"),
        ("/* x */ -- y\n  Start Transaction|select 'ask'|END|select 'ask'", "True False"),
        ("begin|savepoint a|rollback to a|select 'ask'|rollback|select 'ask'", "True False"),
        ("begin|commit and chain|select 'ask'|abort|select 'ask'", "True False"),
        ("begin|rollback and chain|select 'ask'|commit and no chain|select 'ask'", "True False"),
        ("select 'ask'|select 'ask'", "False False"),
        ("begin|savepoint a|release a|select 'ask'|commit", "True"),
    ] {
        let parts: Vec<&str> = pipeline.split('|').collect();
        let messages = parts.iter().fold(Messages::new(), |all, part| all.query(part.as_bytes()));
        let words = client.exchange(&messages, parts.len())?;
        let rows: Vec<&str> = words.iter().filter_map(|word| word.strip_prefix("D:")).collect();
        assert_eq!(rows.join(" "), told, "pipelined: {pipeline}");
        for answered in [false, true] {
            let mut rows = Vec::new();
            for part in &parts {
                let messages = if answered {
                    Messages::new().query(part.as_bytes())
                } else {
                    Messages::new().parse("", part).bind("").execute().sync()
                };
                let words = client.exchange(&messages, 1)?;
                rows.extend(words.iter().filter_map(|w| Some(w.strip_prefix("D:")?.to_owned())));
            }
            assert_eq!(rows.join(" "), told, "answered: {pipeline}");
        }
    }
    // Several statements in one message are one call.
    assert_eq!(answer(client, "begin; select 'ask'"), "False");
    answer(client, "commit");
    // A failed block is one; several Parses before a Sync are not.
    answer(client, "begin");
    answer(client, "select 1 / 0");
    let words = client.exchange(&Messages::new().query(b"select 'ask'"), 1)?.join(" ");
    assert!(words.starts_with("E:25P02") && words.ends_with("Z:E"), "{words}");
    answer(client, "rollback");
    let group = Messages::new()
        .parse("", "select 'ask'")
        .bind("")
        .execute()
        .parse("", "select 'ask'")
        .bind("")
        .execute()
        .sync();
    let words = client.exchange(&group, 1)?.join(" ");
    assert_eq!(words, "1 2 D:False C 1 2 D:False C Z:I");
    let group = Messages::new()
        .parse("", "begin")
        .bind("")
        .execute()
        .parse("", "select 'ask'")
        .bind("")
        .execute()
        .sync();
    let words = client.exchange(&group, 1)?.join(" ");
    assert_eq!(words, "1 2 C 1 2 D:True C Z:T");
    answer(client, "rollback");
    assert_eq!(answer(client, "select 'stdin' || 1"), "1");
    Ok(())
}

/// Parse, Bind and Execute of a named statement and portal.
fn portal(raw: &mut Raw, name: &str, sql: &str) -> io::Result<()> {
    raw.send('P', format!("{name}\0{sql}\0\0\0").as_bytes())?;
    raw.send('B', format!("{name}\0{name}\0\0\0\0\0\0\0").as_bytes())
}

#[test]
fn messages_follow_their_statement() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for mode in ["transaction", "session"] {
        let lab = lab(&format!("pool_mode = {mode}"))?;
        let login = [("user", "postgres"), ("database", "dev")];
        let raw = &mut Raw::connect(lab.pooler.port, &login)?;
        // Portals inherit the key of their statement, Flush follows.
        portal(raw, "p", THERE)?;
        raw.send('D', b"Pp\0")?;
        raw.send('H', b"")?;
        let mut tags = String::new();
        while !tags.ends_with('T') {
            tags.push(raw.message()?.map_or('T', |(tag, _)| tag));
        }
        assert_eq!(tags, "12T", "{mode}");
        raw.send('E', b"p\0\0\0\0\0")?;
        raw.send('C', b"Pp\0")?;
        raw.send('S', b"")?;
        assert_eq!(transcript(&raw.answer()?), "D second\nC SELECT 1\n3 \nZ I\n", "{mode}");
        // A FunctionCall follows the current route: current_database().
        let call = [&861u32.to_be_bytes()[..], &[0; 6]].concat();
        for (sql, name) in [("/*to dev*/ select 1", "postgres"), ("/*to k*/ select 1", "second")] {
            raw.query(sql)?;
            raw.send('F', &call)?;
            let found = transcript(&raw.answer()?);
            assert!(found.contains(name), "{mode}: {found}");
        }
        // COPY data are no messages for functions, and stay.
        raw.query("/*to dev*/ create table if not exists t (v text)")?;
        raw.ask("copy t from stdin")?;
        while raw.message()?.is_some_and(|(tag, _)| tag != 'G') {}
        raw.send('d', b"/*to k*/\n")?;
        raw.send('d', b"'ask'\n")?;
        raw.send('c', b"")?;
        assert!(transcript(&raw.answer()?).contains("COPY 2"), "{mode}");
        assert_eq!(rows(&raw.query("select v from t order by v")?).join(" "), "'ask' /*to k*/");
        raw.query("drop table t")?;
        // SQL's own PREPARE and EXECUTE are queries like others.
        if mode == "session" {
            raw.query("/*to k*/ prepare own as select current_database()")?;
            assert_eq!(rows(&raw.query("/*to k*/ execute own")?), ["second"]);
            raw.query("/*to dev*/ select 1")?;
            assert!(transcript(&raw.query("/*to dev*/ execute own")?).contains("26000"));
        }
    }
    Ok(())
}

#[test]
fn a_cancel_finds_its_query_on_any_route() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for mode in ["transaction", "session"] {
        let lab = lab(&format!("pool_mode = {mode}"))?;
        let login = [("user", "postgres"), ("database", "dev")];
        let raw = &mut Raw::connect(lab.pooler.port, &login)?;
        raw.query("select 1")?;
        raw.ask("/*to k*/ select pg_sleep(600)")?;
        wait_until("the query", || {
            let sql = "select count(*) from pg_stat_activity \
                       where state = 'active' and datname = 'second'";
            lab.server.sql(sql).is_ok_and(|count| count.trim() == "1")
        })?;
        raw.cancel()?;
        let found = transcript(&raw.answer()?);
        assert!(found.contains("57014") && found.ends_with("Z I\n"), "{mode}: {found}");
        assert_eq!(rows(&raw.query(HERE)?), ["second"]);
    }
    Ok(())
}

#[test]
fn what_follows_a_client_and_what_stays() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("")?;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(Client::connect(lab.pooler.port, "dev")?);
    }
    let [first, second] = &mut clients[..] else { return Ok(()) };
    // Tracked parameters move; limits of clients are the login entry's.
    answer(first, "set timezone = 'Asia/Tokyo'; set application_name = 'moving'");
    assert_eq!(answer(first, "/*to k*/ show timezone"), "Asia/Tokyo");
    assert_eq!(answer(first, "/*to k*/ show application_name"), "moving");
    assert_eq!(answer(second, THERE), "second");
    assert_eq!(
        answer(second, "/*to k*/ show timezone"),
        answer(second, "/*to dev*/ show timezone")
    );
    assert_eq!(answer(first, "/*to dev*/ show timezone"), "Asia/Tokyo");
    // Queries count where they ran, logins where they came.
    let before = lab.pooler.console("show totals")?;
    for _ in 0..5 {
        answer(first, THERE);
    }
    let column = |table: &str, database: &str, index: usize| -> u64 {
        let row = table.lines().find(|row| row.starts_with(&format!("{database}|")));
        row.and_then(|row| row.split('|').nth(index)?.parse().ok()).unwrap_or(0)
    };
    let stats = |database: &str, index: usize| {
        column(&lab.pooler.console("show stats").unwrap_or_default(), database, index)
    };
    // total_query_count.
    wait_until("counted queries", || stats("k", 3) >= 9)?;
    assert!(!before.is_empty());
    // A limit of the target for clients would have refused the second one's login there.
    let direct = Client::connect(lab.pooler.port, "k")?;
    drop(direct);
    Ok(())
}

#[test]
fn blocks_stay_whole_in_session_mode_too() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for (policy, told, rows) in [
        ("stay", "postgres", "1"),
        ("error", "25001 cannot change server inside a transaction", "0"),
        ("switch", "40000 transaction rolled back: routed to another server", "0"),
    ] {
        for mode in ["session", "transaction"] {
            let lab = lab(&format!("pool_mode = {mode}\nroute_in_transaction = {policy}"))?;
            lab.server.sql("create table t (x int)")?;
            let client = &mut Client::connect(lab.pooler.port, "dev")?;
            answer(client, "begin");
            answer(client, "insert into t values (1)");
            assert_eq!(answer(client, THERE), told, "{policy} {mode}");
            answer(client, if policy == "switch" { "select 1" } else { "commit" });
            let after = if policy == "switch" { "second" } else { "postgres" };
            assert_eq!(answer(client, HERE), after, "{policy} {mode}");
            assert_eq!(lab.server.sql("select count(*) from t")?.trim(), rows, "{policy} {mode}");
            // The same in a pipeline, of which nothing was answered yet.
            answer(client, "/*to dev*/ truncate t");
            let pipeline = Messages::new()
                .query(b"begin")
                .query(b"insert into t values (1)")
                .query(THERE.as_bytes())
                .query(b"commit");
            let words = client.exchange(&pipeline, 4)?.join(" ");
            let counted = lab.server.sql("select count(*) from t")?;
            assert_eq!(counted.trim(), rows, "{policy} {mode}: {words}");
        }
    }
    Ok(())
}

#[test]
fn a_statement_of_an_entry_that_is_gone() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for (settings, told) in
        [("prepared_statement_errors = 1", "E:26000 "), ("", "prepared statement did not exist")]
    {
        let lab = lab(settings)?;
        let client = &mut Client::connect(lab.pooler.port, "dev")?;
        let words = client.exchange(&Messages::new().parse("there", THERE).sync(), 1)?.join(" ");
        assert_eq!(words, "1 Z:I");
        assert_eq!(answer(client, "/*to dev*/ select 1"), "1");
        let ini = std::fs::read_to_string(lab.pooler.ini())?;
        let kept = ini.lines().filter(|line| !line.starts_with("k = ")).collect::<Vec<_>>();
        std::fs::write(lab.pooler.ini(), kept.join("\n"))?;
        lab.pooler.console("reload")?;
        let group = Messages::new().bind("there").execute().sync();
        client.send(group.bytes())?;
        let words = client.receive(1).map_or_else(|error| error.to_string(), |w| w.join(" "));
        let log = lab.pooler.log()?;
        assert!(words.contains(told) || log.contains(told), "{settings}: {words}\n{log}");
    }
    Ok(())
}

#[test]
fn statements_keep_their_key_when_functions_are_turned_off() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    let run = |client: &mut Client, name: &str| {
        exchange(client, Messages::new().bind(name).execute().sync())
    };
    assert_eq!(exchange(client, Messages::new().parse("here", HERE).sync())?, "1 Z:I");
    assert_eq!(exchange(client, Messages::new().parse("there", THERE).sync())?, "1 Z:I");
    assert_eq!(answer(client, "/*to dev*/ select 1"), "1");
    let ini = std::fs::read_to_string(lab.pooler.ini())?;
    let plain = ini.lines().filter(|line| !line.contains("_py_module_file"));
    std::fs::write(lab.pooler.ini(), plain.collect::<Vec<_>>().join("\n"))?;
    lab.pooler.console("reload")?;
    assert_eq!(answer(client, THERE), "postgres");
    assert_eq!(exchange(client, Messages::new().parse("later", THERE).sync())?, "1 Z:I");
    for (name, place) in
        [("there", "second"), ("here", "postgres"), ("there", "second"), ("later", "postgres")]
    {
        assert_eq!(run(client, name)?, format!("2 D:{place} C Z:I"), "{name}");
    }
    Ok(())
}

#[test]
fn a_block_ends_where_it_is_whatever_was_prepared_where() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for policy in ["stay", "error", "switch"] {
        let lab = lab(&format!("route_in_transaction = {policy}"))?;
        let client = &mut Client::connect(lab.pooler.port, "dev")?;
        let run = |client: &mut Client, name: &str| {
            exchange(client, Messages::new().bind(name).execute().sync())
        };
        // Drivers prepare these once and use them wherever their transactions are.
        let prepared = Messages::new().parse("b", "begin").parse("c", "commit").sync();
        assert_eq!(exchange(client, prepared)?, "1 1 Z:I");
        assert_eq!(answer(client, THERE), "second");
        assert_eq!(answer(client, "begin"), "");
        assert_eq!(run(client, "c")?, "2 C Z:I", "{policy}");
        assert_eq!(answer(client, HERE), "second", "{policy}");
        assert_eq!(run(client, "b")?, "2 C Z:T", "{policy}");
        assert_eq!(answer(client, HERE), "postgres", "a BEGIN goes where it was prepared");
        assert_eq!(run(client, "c")?, "2 C Z:I", "{policy}");
    }
    Ok(())
}

#[test]
fn a_statement_that_a_group_held_here_lives_where_it_was_sent() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    // Two Parses of one group, whose server is that of the first.
    let group = Messages::new().parse("here", HERE).parse("there", THERE).bind("there").execute();
    assert_eq!(exchange(client, group.sync())?, "1 1 2 D:postgres C Z:I");
    for (name, place) in [("there", "second"), ("here", "postgres"), ("there", "second")] {
        let words = exchange(client, Messages::new().bind(name).execute().sync())?;
        assert_eq!(words, format!("2 D:{place} C Z:I"), "{name}");
    }
    Ok(())
}

#[test]
fn a_text_that_is_too_long_for_functions_fails() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("rewrite_on_error = error\nhook_max_query_size = 100kB")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    let sql = |len: usize| format!("select length('{}')", "x".repeat(len));
    assert_eq!(answer(client, &sql(90_000)), "90000");
    assert_eq!(answer(client, &sql(110_000)), "58000 query rewrite failed");
    assert!(lab.pooler.log()?.contains("ValueError: hook_max_query_size exceeded"));
    Ok(())
}

/// Processes whose parent is this one, whoever has adopted them since.
fn hook_processes(script: &str) -> usize {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(script)).count()
}

#[test]
fn processes_survive_signals_but_not_their_pooler() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut lab = lab("")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    assert_eq!(answer(client, "select 'ask'"), "False");
    // The script is passed the pooler's process id.
    let script = format!("main()\n\0{}\0", lab.pooler.pid());
    wait_until("two processes", || hook_processes(&script) == 2)?;
    // What a terminal sends to the pooler's group does not reach them.
    let group = format!("-{}", lab.pooler.pid());
    run_kill(&["-HUP", "--", &group])?;
    wait_until("a reload", || lab.pooler.log().is_ok_and(|log| log.contains("got SIGHUP")))?;
    assert_eq!(hook_processes(&script), 2);
    assert_eq!(answer(client, "select 'ask'"), "False");
    signal(lab.pooler.pid(), "KILL")?;
    wait_until("the pooler's end", || !lab.pooler.is_running())?;
    wait_until("the processes' end", || hook_processes(&script) == 0)
}

fn run_kill(words: &[&str]) -> io::Result<()> {
    switchyard_testkit::run(Command::new("kill").args(words)).map(drop)
}
