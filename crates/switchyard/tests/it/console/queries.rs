//! What is a command and what is said to those that are none.

use std::io;
use std::path::Path;

use switchyard_testkit::{Pooler, Raw, raw};

use super::told;

/// Queries to which both have the same answer, with `~` between them.
const SAME: &str = r#"
; ~ ;; ~ show ~ show nope ~ show version;; ~ select 1 ~ show version x ~ show stats;show lists
set x=1 ~ set x = 1 ~ set x to 1 ~ set x to1 ~ set xto 1 ~ set verbose=1 ~ set verbose = -1
set verbose = '-1' ~ set verbose=1.5 ~ set verbose = 'a''b' ~ set pool_mode = foo
set "verbose" = 0 ~ set verbose = "0" ~ set client_encoding to 'x' ~ set timezone=gmt
set datestyle to 'ISO' ~ set DateStyle = 'a' ; ~ set a = 'x' y ~ set session characteristics
reload x ~ suspend x ~ shutdown foo ~ pause nope ~ pause a b ~ pause pgbouncer ~ resume
resume nope ~ resume a ~ disable ~ disable nope ~ disable pgbouncer ~ enable ~ enable nope
enable a ~ disable a ~ enable a ~ kill nope ~ kill pgbouncer ~ reconnect nope
reconnect pgbouncer ~ reconnect a ~ reconnect ~ wait_close nope ~ wait_close pgbouncer
wait_close a ~ wait_close ~ pause a ~ pause a ~ suspend ~ resume a ~ kill a ~ kill a ~ resume a
pause ~ pause ~ pause a ~ suspend ~ kill ~ kill a ~ resume ~ suspend ~ pause ~ resume
show 'version' ~ show version -- x ~ /* x */ show version ~ abcdefghijklmno ~ abcdefghijklmnop
pause "a" ~ resume "a" ~ show_x y ~ show version;x ~ pause é ~ set verbose ~ set verbose=
set verbose = '' ~ begin ~ show client_encoding ~ show timezone
show standard_conforming_strings ~ show default_transaction_isolation ~ show datestyle
select timezone ~ "show" timezone ~ reload ~ show dns_hosts ~ show dns_zones ~ set log_stats = 0

"#;

/// What PgBouncer 1.18 says otherwise, with the reason.
const OTHERWISE: &[(&str, &str, &str)] = &[
    // A value of any length is taken.
    (
        "set verbose = 'LONG'",
        "E SERROR C08P01 MSET failed\nZ I\n",
        "E SERROR C08P01 Mbad arguments\nZ I\n",
    ),
    // It names the wrong command.
    (
        "enable pgbouncer",
        "E SERROR C08P01 Mcannot enable admin db: pgbouncer\nZ I\n",
        "E SERROR C08P01 Mcannot disable admin db: pgbouncer\nZ I\n",
    ),
    // A key that is read at start only is not passed over in silence.
    (
        "set listen_port = 7",
        "N SNOTICE C00000 MSET ignored: listen_port is read at start only\nC SET listen_port=7\n\
         Z I\n",
        "C SET listen_port=7\nZ I\n",
    ),
];

fn start(program: &Path) -> io::Result<Pooler> {
    Pooler::start(program, "a = host=127.0.0.1 port=1", "stats_users = app")
}

#[test]
fn answers_and_log_are_those_of_pgbouncer() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let poolers = [start(crate::program())?, start(Path::new("/usr/sbin/pgbouncer"))?];
    let [mut ours, mut theirs] =
        [Raw::console(poolers[0].port, "postgres")?, Raw::console(poolers[1].port, "postgres")?];
    for word in [63, 64].map(|length| "w".repeat(length)) {
        for sql in [format!("pause {word}"), format!("set {word} = 1"), format!("pause \"{word}\"")]
        {
            assert_eq!(told(&mut ours, &sql)?, told(&mut theirs, &sql)?, "{sql}");
        }
    }
    let listed = SAME.lines().flat_map(|line| line.split(" ~ "));
    for sql in listed.chain(["", "  ", "SHOW\tTIMEZONE\r\n;"]) {
        assert_eq!(told(&mut ours, sql)?, told(&mut theirs, sql)?, "{sql}");
    }
    for (sql, ours_says, theirs_says) in OTHERWISE {
        let sql = sql.replace("LONG", &"1".repeat(300));
        assert_eq!(told(&mut ours, &sql)?, *ours_says);
        assert_eq!(told(&mut theirs, &sql)?, *theirs_says);
    }
    let lines = |pooler: &Pooler| -> io::Result<Vec<String>> {
        let log = pooler.log()?;
        let texts = log.lines().filter_map(|line| line.split_once("] ")).map(|(_, text)| text);
        let told = |text: &&str| {
            text.contains("command issued") || text.contains("pooler error") || is_bare(text)
        };
        let bare = |text: &str| match text.split_once("pooler error: ") {
            Some((_, error)) => format!("WARNING {error}"),
            None => text.to_owned(),
        };
        // What is listed as a difference.
        let other = |text: &String| {
            ["bad arguments", "SET failed", "able admin db"].iter().all(|part| !text.contains(part))
        };
        Ok(texts.filter(told).map(bare).filter(other).collect())
    };
    assert_eq!(lines(&poolers[0])?, lines(&poolers[1])?);
    Ok(())
}

/// Errors without a prefix, but for those that only one of the two explains.
fn is_bare(text: &str) -> bool {
    text.starts_with("ERROR ") && !text.contains("parameter")
}

#[test]
fn the_welcome_has_the_parameters_of_the_client() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let pooler = start(crate::program())?;
    let parameters =
        [("user", "app"), ("database", "pgbouncer"), ("application_name", "it"), ("TimeZone", "x")];
    let raw = Raw::connect(pooler.port, &parameters)?;
    let texts: Vec<String> = raw
        .greeting
        .iter()
        .filter(|(tag, _)| *tag == 'S')
        .map(|(_, body)| String::from_utf8_lossy(body).trim_end_matches('\0').replace('\0', "="))
        .collect();
    assert_eq!(
        texts,
        [
            "server_version=1.25.2/bouncer",
            "client_encoding=UTF8",
            "server_encoding=UTF8",
            "DateStyle=ISO",
            "TimeZone=GMT",
            "standard_conforming_strings=on",
            "is_superuser=on",
            "TimeZone=x",
            "application_name=it",
        ]
    );
    Ok(())
}

#[test]
fn stats_users_only_look() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let pooler = start(crate::program())?;
    let mut console = Raw::console(pooler.port, "app")?;
    let denied = "E SERROR C08P01 Madmin access needed\nZ I\n";
    for sql in [
        "set verbose = 1",
        "reload",
        "pause",
        "pause nope",
        "resume",
        "suspend",
        "reconnect",
        "disable",
        "enable a",
        "kill",
        "kill_client x",
        "wait_close",
        "shutdown",
        "shutdown wait_for_clients",
    ] {
        assert_eq!(told(&mut console, sql)?, denied, "{sql}");
    }
    assert_eq!(
        told(&mut console, "set timezone = 'x'")?,
        "N SNOTICE C00000 MSET ignored\nC SET\nZ I\n"
    );
    for sql in ["show version", "show stats", "select lists", "show clients"] {
        assert!(told(&mut console, sql)?.ends_with("C SHOW\nZ I\n"), "{sql}");
    }
    let invalid = "E SERROR C08P01 Minvalid command 'reload x', use SHOW HELP;\nZ I\n";
    assert_eq!(told(&mut console, "reload x")?, invalid);
    let other = Raw::console(pooler.port, "nobody")?;
    assert_eq!(raw::transcript(&other.greeting), "E SFATAL C08P01 Mnot allowed\n");
    Ok(())
}

#[test]
fn messages_that_a_console_does_not_know_end_it() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let pooler = start(crate::program())?;
    let mut console = Raw::console(pooler.port, "postgres")?;
    console.send('F', b"")?;
    let mut said = console.answer()?;
    said.extend(console.answer()?);
    assert_eq!(
        raw::transcript(&said),
        "E SERROR C08P01 Munsupported packet type for admin console: 70\nZ I\n\
         E SFATAL C08P01 Mbad packet\n"
    );
    let mut console = Raw::console(pooler.port, "postgres")?;
    console.send('Q', b"show version")?;
    let said = raw::transcript(&console.answer()?);
    assert_eq!(said, "E SFATAL C08P01 Mincomplete query\n");
    // A query may be as long as max_packet_size allows.
    let mut console = Raw::console(pooler.port, "postgres")?;
    let long = format!("show version{};", " ".repeat(3_000_000));
    assert!(told(&mut console, &long)?.ends_with("C SHOW\nZ I\n"));
    assert!(told(&mut console, "set max_packet_size = 4096")?.starts_with("C SET"));
    let said = told(&mut console, &long[..5000])?;
    assert!(said.starts_with("E SFATAL C08P01 Mbad packet header: '51"), "{said}");
    Ok(())
}
