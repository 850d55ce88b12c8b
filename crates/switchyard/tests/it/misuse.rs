//! Names of prepared statements that are defined twice or not at all.

use std::io;

use switchyard_wire::startup::VERSION_3_0;

use crate::sessions::with;
use crate::wanted;
use crate::wire::{Message::*, Wire};

#[test]
fn misused_names_close_the_client_and_keep_the_server() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (postgres, pooler) = with("")?;
    let pid = || {
        postgres.sql(
            "select pid from pg_stat_activity where backend_type = 'client backend' \
             and pid <> pg_backend_pid() order by 1",
        )
    };
    pooler.sql("postgres", "postgres", "select 1")?;
    let before = pid()?;
    let mut client = Wire::login_with(
        pooler.port,
        VERSION_3_0,
        &[("user", "postgres"), ("database", "postgres"), ("application_name", "other")],
    )?;
    assert_eq!(client.ask(&[Bind("nothing", &[]), Sync])?, {
        "08P01 prepared statement did not exist end"
    });
    let mut client = Wire::login(pooler.port, "postgres")?;
    assert_eq!(client.ask(&[Parse("a", "select 1"), Sync])?, "1 ZI");
    assert_eq!(client.ask(&[Parse("a", "select 1"), Sync])?, {
        "08P01 prepared statement name is already in use end"
    });
    assert_eq!(pid()?, before);
    let log = pooler.log()?;
    assert!(log.contains("ERROR C-") && log.contains("prepared statement 'nothing' not found"));
    assert!(log.contains("prepared statement 'a' was already prepared"));
    Ok(())
}

#[test]
fn a_name_whose_definition_fails_may_be_defined_behind_it() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = with("")?;
    let mut client = Wire::login(pooler.port, "postgres")?;
    let failed = "42601 syntax error at or near \"selec\" ZI";
    for _ in 0..2 {
        // The server skips the second one.
        let twice = [Parse("a", "selec 1"), Parse("a", "select 1"), Bind("a", &[]), Sync];
        assert_eq!(client.ask(&twice)?, failed);
    }
    // It does not skip what comes in another group.
    let groups =
        [Parse("a", "selec 1"), Parse("a", "select 1"), Sync, Parse("a", "select 2"), Sync];
    assert_eq!(client.ask(&groups)?, format!("{failed} 1 ZI"));
    assert_eq!(client.ask(&[Bind("a", &[]), Execute, Sync])?, "2 <2> SELECT 1 ZI");
    // A name that was not free after all.
    let twice = [Parse("b", "select 3"), Parse("b", "select 4"), Bind("b", &[]), Execute, Sync];
    assert_eq!(client.ask(&twice)?, "1 08P01 prepared statement name is already in use end");
    let log = pooler.log()?;
    assert!(
        log.contains("ERROR C-") && log.contains("prepared statement 'b' was already prepared")
    );
    assert!(log.contains("closing because: client disconnect while server was not ready"), "{log}");
    Ok(())
}

#[test]
fn misused_names_are_errors_if_wanted() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (postgres, pooler) = with("prepared_statement_errors = 1")?;
    postgres.sql("create table t (x int)")?;
    let mut client = Wire::login(pooler.port, "postgres")?;
    let missing = "26000 prepared statement \"x\" does not exist";
    assert_eq!(client.ask(&[Bind("x", &["1"]), Execute, Sync])?, format!("{missing} ZI"));
    assert_eq!(client.ask(&[Describe("x"), Sync])?, format!("{missing} ZI"));
    let twice = [Parse("a", "select 1"), Parse("a", "select 1"), Sync];
    assert_eq!(client.ask(&twice)?, "1 42P05 prepared statement \"a\" already exists ZI");
    // What came before in the group is rolled back, as a server does it.
    let insert = [Parse("", "insert into t values (1)"), Bind("", &[]), Execute];
    let group = [&insert[..], &[Bind("x", &[]), Execute, Sync]].concat();
    assert_eq!(client.ask(&group)?, format!("1 2 INSERT 0 1 {missing} ZI"));
    assert_eq!(
        client.ask(&[Query("begin"), Bind("x", &[]), Sync])?,
        format!("BEGIN ZT {missing} ZE")
    );
    assert_eq!(client.ask(&[Query("rollback")])?, "ROLLBACK ZI");
    assert_eq!(postgres.sql("select count(*) from t")?.trim(), "0");
    Ok(())
}
