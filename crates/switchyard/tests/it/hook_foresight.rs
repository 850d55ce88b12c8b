//! What is known about transaction blocks while answers are still to come, and what happens when
//! it was wrong.

use std::io;

use switchyard_testkit::raw::transcript;
use switchyard_testkit::{Client, Messages, Pooler, Postgres, Raw, Rules};

/// A comment names the key; `ask` becomes the value of in_transaction.
const RULES: &str = r#"
import re
def rewrite_query(username, query, in_transaction):
    return query.replace("'ask'", "'%s'" % in_transaction)
def routing_rules(username, query, in_transaction):
    found = re.search(r'/\*to (\w+)\*/', query)
    return found[1] if found else None
"#;
const HERE: &str = "select current_database()";
const THERE: &str = "/*to k*/ select current_database()";
const ASK: &str = "select 'ask'";

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
         k = host=127.0.0.1 port={0} dbname=second\n",
        server.port
    );
    let settings = format!(
        "hook_timeout = 20\n{settings}\n{}",
        rules.settings(&["rewrite_query", "routing_rules"])
    );
    let pooler = Pooler::start(super::program(), &entries, &settings)?;
    Ok(Lab { server, _rules: rules, pooler })
}

fn exchange(client: &mut Client, messages: Messages, readies: usize) -> io::Result<String> {
    Ok(client.exchange(&messages, readies)?.join(" "))
}

#[test]
fn a_begin_that_was_prepared_before_opens_a_block() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for mode in ["transaction", "session"] {
        let lab = lab(&format!("pool_mode = {mode}"))?;
        let client = &mut Client::connect(lab.pooler.port, "dev")?;
        let prepared = Messages::new().parse("b", "begin").parse("c", "commit").sync();
        assert_eq!(exchange(client, prepared, 1)?, "1 1 Z:I");
        let run = |name: &str| Messages::new().bind(name).execute();
        // One group, as drivers send it that keep their BEGIN.
        let group = run("b").parse("", ASK).bind("").execute().sync();
        assert_eq!(exchange(client, group, 1)?, "2 C 1 2 D:True C Z:T", "{mode}");
        let group = run("c").parse("", ASK).bind("").execute().sync();
        assert_eq!(exchange(client, group, 1)?, "2 C 1 2 D:False C Z:I", "{mode}");
        let groups = run("b").sync().query(ASK.as_bytes());
        assert_eq!(exchange(client, groups, 2)?, "2 C Z:T T D:True C Z:T", "{mode}");
        let groups = run("c").sync().query(ASK.as_bytes());
        assert_eq!(exchange(client, groups, 2)?, "2 C Z:I T D:False C Z:I", "{mode}");
    }
    // The unnamed statement as well, as long as it is there.
    let lab = lab("pool_mode = session")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    assert_eq!(exchange(client, Messages::new().parse("", "begin").sync(), 1)?, "1 Z:I");
    let group = Messages::new().bind("").execute().parse("", ASK).bind("").execute().sync();
    assert_eq!(exchange(client, group, 1)?, "2 C 1 2 D:True C Z:T");
    Ok(())
}

/// What one message of another key is told behind messages that leave a block open, and how many
/// rows of the block are there in the end.
fn behind(lab: &Lab, opening: &[&str], last: Messages) -> io::Result<(String, String)> {
    lab.server.sql("drop table if exists t; create table t (x int)")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    let first = opening.iter().fold(Messages::new(), |all, sql| all.query(sql.as_bytes()));
    client.send(&[first.bytes(), last.bytes()].concat())?;
    client.receive(opening.len())?;
    let told = client.receive(1)?.join(" ");
    exchange(client, Messages::new().query(b"commit"), 1)?;
    Ok((told, lab.server.sql("select count(*) from t")?.trim().to_owned()))
}

/// A COPY into `t` with one row, sent before the server has asked for it.
fn copy(raw: &mut Raw, key: &str) -> io::Result<()> {
    raw.ask(&format!("/*to {key}*/ copy t from stdin"))?;
    raw.send('d', b"1\n")?;
    raw.send('c', b"")
}

#[test]
fn a_copy_whose_data_was_sent_is_a_whole_message() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for mode in ["transaction", "session", "statement"] {
        let lab = lab(&format!("pool_mode = {mode}"))?;
        let client = &mut Client::connect(lab.pooler.port, "dev")?;
        for key in ["dev", "k"] {
            client.run(&format!("/*to {key}*/ create table t (x int)"))?;
        }
        let raw = &mut Raw::connect(lab.pooler.port, &[("user", "postgres"), ("database", "dev")])?;
        for _ in 0..20 {
            for key in ["k", "dev", "k"] {
                copy(raw, key)?;
            }
            raw.ask("/*to dev*/ select current_database()")?;
            let told: Vec<String> =
                (0..4).map(|_| Ok(transcript(&raw.answer()?))).collect::<io::Result<_>>()?;
            assert!(told[..3].iter().all(|told| told.contains("COPY 1")), "{mode}: {told:?}");
            assert!(told[3].contains("D postgres"), "{mode}: {told:?}");
        }
        let count = |client: &mut Client, key: &str| {
            client.run(&format!("/*to {key}*/ select count(*) from t")).unwrap_or_default()
        };
        assert_eq!(
            (count(client, "k"), count(client, "dev")),
            (vec!["40".into()], vec!["20".into()])
        );
    }
    Ok(())
}

#[test]
fn a_block_that_no_word_told_is_kept_whole() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let opening = ["select 1; begin; insert into t values (1)"];
    let failed = ["begin; insert into t values (1)", "commit nonsense"];
    for mode in ["transaction", "session"] {
        for (policy, told, rows) in [
            ("stay", "T D:postgres C Z:T", "1"),
            ("error", "E:25001 cannot change server inside a transaction Z:E", "0"),
            ("switch", "E:40000 transaction rolled back: routed to another server Z:I", "0"),
        ] {
            let lab = lab(&format!("pool_mode = {mode}\nroute_in_transaction = {policy}"))?;
            let query = || Messages::new().query(THERE.as_bytes());
            let found = behind(&lab, &opening, query())?;
            assert_eq!(found, (told.to_owned(), rows.to_owned()), "{mode} {policy}");
            let group = Messages::new().parse("", THERE).bind("").execute().sync();
            let found = behind(&lab, &opening, group)?;
            let told = told.replace("T D", "1 2 D");
            assert_eq!(found, (told, rows.to_owned()), "{mode} {policy}");
            // A block that has failed refuses everything but its end.
            let (told, rows) = behind(&lab, &failed, query())?;
            assert!(told.starts_with("E:25P02") && rows == "0", "{mode} {policy}: {told}");
            // The end of a block belongs to it.
            let end = || Messages::new().query(b"/*to k*/ commit");
            assert_eq!(behind(&lab, &opening, end())?, ("C Z:I".to_owned(), "1".to_owned()));
            // A statement of another key stays or fails in the same way.
            let client = &mut Client::connect(lab.pooler.port, "dev")?;
            let words = exchange(client, Messages::new().parse("there", THERE).sync(), 1)?;
            assert_eq!(words, "1 Z:I", "{mode} {policy}");
            exchange(client, Messages::new().query(b"/*to dev*/ select 1"), 1)?;
            let bound = Messages::new().query(b"select 1; begin").bind("there").execute().sync();
            let words = exchange(client, bound, 2)?;
            // In session mode it lives on its own server.
            let stays = policy == "stay" && mode == "transaction";
            let told = if stays { "2 D:postgres C Z:T" } else { "E:25001 " };
            assert!(words.contains(told), "{mode} {policy}: {words}");
            exchange(client, Messages::new().query(b"rollback"), 1)?;
            assert_eq!(client.run(HERE).unwrap_or_default(), ["postgres"], "{mode} {policy}");
        }
    }
    Ok(())
}
