//! Statements go where they were prepared, groups and transactions stay whole, and sessions find
//! again what they left.

use std::io;

use switchyard_testkit::{Client, Messages};

use super::hooks::{Lab, lab};

fn run(client: &mut Client, messages: Messages, readies: usize) -> io::Result<String> {
    Ok(client.exchange(&messages, readies)?.join(" "))
}

/// Prepares `a` where tablea is and `b` where tableb is.
fn prepare(client: &mut Client) -> io::Result<()> {
    let a = Messages::new().parse("a", "select v from tablea").sync();
    assert_eq!(run(client, a, 1)?, "1 Z:I");
    let b = Messages::new().parse("b", "select v from tableb").sync();
    assert_eq!(run(client, b, 1)?, "1 Z:I");
    Ok(())
}

fn execute(name: &str) -> Messages {
    Messages::new().bind(name).execute().sync()
}

#[test]
fn statements_run_where_they_were_prepared() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for settings in [
        "pool_mode = transaction",
        "pool_mode = transaction\nmax_prepared_statements = 0\n\
          default_pool_size = 1",
        "pool_mode = session",
        "pool_mode = statement",
    ] {
        let lab = lab(settings)?;
        let client = &mut Client::connect(lab.pooler.port, "dev")?;
        prepare(client)?;
        for _ in 0..2 {
            let found = run(client, execute("a"), 1)?;
            assert_eq!(found, "2 D:one C Z:I", "{settings}");
            assert_eq!(run(client, execute("b"), 1)?, "2 D:two C Z:I", "{settings}");
        }
        // A plain query elsewhere changes nothing for the statement, and None stays with it.
        assert_eq!(client.run("select v from tableb")?, ["two"]);
        assert_eq!(run(client, execute("a"), 1)?, "2 D:one C Z:I");
        assert_eq!(client.run("select v from other")?, ["one"]);
        let describe = Messages::new().describe("b").sync();
        assert_eq!(run(client, describe, 1)?, "t T Z:I");
        assert_eq!(client.run("select v from other")?, ["two"]);
        let close = Messages::new().close("a").sync();
        assert_eq!(run(client, close, 1)?, "3 Z:I");
        let again = Messages::new().parse("a", "select v from tableb").bind("a").execute().sync();
        assert_eq!(run(client, again, 1)?, "1 2 D:two C Z:I");
        // The unnamed statement until the next unnamed Parse; a session keeps it.
        let unnamed = Messages::new().parse("", "select v from tablea").bind("").execute().sync();
        assert_eq!(run(client, unnamed, 1)?, "1 2 D:one C Z:I");
    }
    Ok(())
}

#[test]
fn a_group_has_one_server_and_answers_keep_their_order() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("pool_mode = transaction")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    prepare(client)?;
    let mixed = Messages::new().bind("a").execute().bind("b").execute().sync();
    assert_eq!(run(client, mixed, 1)?, "2 D:one C 2 D:one C Z:I");
    let mixed = Messages::new()
        .parse("", "select v from tableb")
        .bind("")
        .execute()
        .parse("", "select v from tablea")
        .bind("")
        .execute()
        .sync();
    assert_eq!(run(client, mixed, 1)?, "1 2 D:two C 1 2 D:two C Z:I");
    let log = lab.pooler.log()?;
    assert!(log.contains("staying on \"dev.1\""), "{log}");
    assert!(log.contains("staying on \"dev.2\""), "{log}");
    let pipeline = Messages::new()
        .query(b"select v from tablea")
        .query(b"select v from tableb")
        .bind("a")
        .execute()
        .sync()
        .query(b"select v from tableb")
        .bind("b")
        .execute()
        .sync();
    assert_eq!(
        run(client, pipeline, 5)?,
        "T D:one C Z:I T D:two C Z:I 2 D:one C Z:I T D:two C Z:I 2 D:two C Z:I"
    );
    Ok(())
}

#[test]
fn a_transaction_keeps_its_server() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for policy in ["stay", "error", "switch"] {
        let lab = lab(&format!("pool_mode = transaction\nroute_in_transaction = {policy}"))?;
        let client = &mut Client::connect(lab.pooler.port, "dev")?;
        prepare(client)?;
        client.run("select v from tablea")?;
        client.run("begin")?;
        client.run("insert into tablea values ('in doubt')")?;
        let found = run(client, execute("b"), 1)?;
        if policy == "stay" {
            assert_eq!(found, "2 D:one C Z:T", "prepared again where the transaction is");
        } else {
            assert_eq!(found, "E:25001 cannot change server inside a transaction Z:E", "{policy}");
        }
        client.run("commit")?;
        let expected = if policy == "stay" { "2" } else { "1" };
        let count = lab.servers[0].sql("select count(*) from tablea")?;
        assert_eq!(count.trim(), expected, "{policy}");
        assert_eq!(run(client, execute("b"), 1)?, "2 D:two C Z:I");
    }
    Ok(())
}

/// Whatever a refused message stands behind in its group or block is undone.
fn nothing_is_committed(lab: &Lab, mode: &str) -> io::Result<()> {
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    client.run("select v from tablea")?;
    let insert = "insert into tablea values ('lost')";
    let refused = "E:58000 query rewrite failed";
    let group = Messages::new()
        .parse("", insert)
        .bind("")
        .execute()
        .parse("", "select 'no rewrite'")
        .bind("")
        .execute()
        .sync();
    assert_eq!(run(client, group, 1)?, format!("1 2 C {refused} Z:I"), "{mode}");
    let pipeline = Messages::new()
        .query(b"begin")
        .query(insert.as_bytes())
        .query(b"select 'no rewrite'")
        .query(b"commit");
    let found = run(client, pipeline, 4)?;
    assert_eq!(found, format!("C Z:T C Z:T {refused} Z:E C Z:I"), "{mode}");
    client.run("begin")?;
    client.run(insert)?;
    let group = Messages::new().parse("x", "select 'no rewrite'").bind("x").execute().sync();
    assert_eq!(run(client, group, 1)?, format!("{refused} Z:E"), "{mode}");
    client.run("commit")?;
    assert_eq!(client.run("select count(*) from tablea")?, ["1"], "{mode}");
    // Its own statement, outside of everything, harms nothing.
    assert_eq!(
        run(client, Messages::new().query(b"select 'no rewrite'"), 1)?,
        format!("{refused} Z:I")
    );
    Ok(())
}

#[test]
fn a_refused_message_undoes_its_transaction() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for mode in ["transaction", "session"] {
        let lab = lab(&format!("pool_mode = {mode}\nrewrite_on_error = error"))?;
        nothing_is_committed(&lab, mode)?;
    }
    Ok(())
}

#[test]
fn a_session_finds_what_it_left() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let lab = lab("pool_mode = session\nworkers = 2")?;
    {
        let client = &mut Client::connect(lab.pooler.port, "dev")?;
        client.run("select v from tablea")?;
        client.run("create temp table kept as select 'mine' as x; set work_mem = '3MB'")?;
        assert_eq!(client.run("select v from tableb")?, ["two"]);
        assert_eq!(client.run("show work_mem")?, ["4MB"]);
        assert_eq!(client.run("select v from tablea")?, ["one"]);
        assert_eq!(client.run("select x from kept")?, ["mine"]);
        assert_eq!(client.run("show work_mem")?, ["3MB"]);
    }
    // At its end everything is given back and reset.
    let client = &mut Client::connect(lab.pooler.port, "dev.1")?;
    assert!(client.run("select x from kept").is_err());
    assert_eq!(client.run("show work_mem")?, ["4MB"]);
    drop(lab);

    let lab = super::hooks::lab("pool_mode = session\nsession_route_links = 1")?;
    let client = &mut Client::connect(lab.pooler.port, "dev")?;
    client.run("select v from tablea")?;
    client.run("set work_mem = '3MB'")?;
    client.run("select v from tableb")?;
    client.run("select v from tablea")?;
    assert_eq!(client.run("show work_mem")?, ["4MB"]);
    Ok(())
}
