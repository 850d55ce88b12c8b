//! auth_query in all its combinations.

use std::io::BufRead;
use std::net::TcpListener;

use switchyard_testkit::wait_until;

use super::*;

const ROLES: &str = "create role asker login; create role found login password 'secret'; \
    create role gone login password 'secret' valid until '2001-01-01'; \
    create role bare login; grant pg_read_all_settings to asker; \
    create function ask(name text) returns table (u name, s text) language sql \
    security definer set search_path = pg_catalog as $$ select rolname, case when rolvaliduntil \
    < now() then null else rolpassword end from pg_authid where rolname = $1 $$; \
    create database other";

fn asked(entries: &str, settings: &str) -> io::Result<(Postgres, Pooler)> {
    let postgres = Postgres::start("host all found 127.0.0.1/32 scram-sha-256")?;
    postgres.sql("set password_encryption = 'scram-sha-256'")?;
    for sql in ROLES.split_inclusive("; ") {
        let whole = sql.trim().trim_end_matches(';');
        if !whole.starts_with("create function") {
            postgres.sql(whole)?;
        }
    }
    let at = ROLES.find("create function").unwrap_or(0);
    let end = ROLES.find("create database").unwrap_or(ROLES.len());
    postgres.sql(&ROLES[at..end])?;
    let pooler = pooler(program(), &postgres, entries, settings)?;
    Ok((postgres, pooler))
}

#[test]
fn users_are_looked_up_where_the_settings_say() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let entries = "own = SERVER dbname=postgres auth_user=asker\n\
        elsewhere = SERVER dbname=other auth_user=asker auth_dbname=own\n\
        star = SERVER dbname=other auth_user=asker auth_dbname=postgres\n\
        * = SERVER\n\
        console = SERVER dbname=postgres auth_user=asker auth_dbname=pgbouncer\n\
        three = SERVER dbname=postgres auth_user=asker auth_query='select 1, 2, $1::text'\n\
        null = SERVER dbname=postgres auth_user=asker auth_query='select null, $1::text'\n\
        denied = SERVER dbname=postgres auth_user=asker auth_query='select 1/0, $1::text'\n\
        other_user = SERVER dbname=postgres auth_user=asker \
        auth_query='select ''found''::text, s from ask(''found'') where $1 <> ''x'''\n\
        nowhere = SERVER dbname=postgres";
    let settings = "auth_type = scram-sha-256\nauth_query = select u, s from ask($1)\n\
        pool_mode = transaction\nserver_reset_query_always = 0";
    let (postgres, pooler) = asked(entries, settings)?;
    let port = pooler.port;
    let user = |database: &str, user: &str, password: &str| {
        let words = format!("user={user} dbname={database}");
        psql(port, &words, password, "select current_user || ' ' || current_database()")
    };
    for _ in 0..2 {
        assert_eq!(user("own", "found", "secret"), Ok("found postgres".into()));
        assert_eq!(user("elsewhere", "found", "secret"), Ok("found other".into()));
        assert_eq!(user("star", "found", "secret"), Ok("found other".into()));
        assert_eq!(user("other_user", "alias", "secret"), Ok("found postgres".into()));
        for database in ["own", "elsewhere", "nowhere", "nonexistent"] {
            refused(user(database, "found", "wrong"), "SASL authentication failed");
            refused(user(database, "gone", "secret"), "SASL authentication failed");
            refused(user(database, "bare", "secret"), "SASL authentication failed");
            refused(user(database, "missing", "secret"), "SASL authentication failed");
        }
        refused(user("nowhere", "found", "secret"), "SASL authentication failed");
        let asked = "select count(*) from pg_stat_activity where usename = 'asker'";
        let asked: usize = postgres.sql(asked)?.trim().parse().map_err(io::Error::other)?;
        assert!((1..=6).contains(&asked), "few servers serve all questions: {asked}");
        pooler.console("reconnect").map(drop).or_else(|error| {
            if error.to_string().contains("SASL") { Ok(()) } else { Err(error) }
        })?;
    }
    refused(user("three", "found", "secret"), "expected 2 columns from auth_query, not 3");
    refused(user("null", "found", "secret"), "auth_query response contained null user name");
    refused(user("denied", "found", "secret"), "bouncer config error");
    refused(user("console", "found", "secret"), "bouncer config error");
    let log = pooler.log()?;
    for line in [
        "ERROR S: error in auth_query: ERROR: division by zero",
        "closing because: error response from auth_query",
        "cannot use the reserved \"pgbouncer\" database as an auth_dbname",
        "registered new auto-database: postgres",
        "login failed: db=own",
        "no such user: missing",
    ] {
        assert!(log.contains(line), "{line}");
    }
    Ok(())
}

#[test]
fn methods_that_ask_in_the_clear_tell_that_there_is_no_such_user() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let settings = "auth_type = plain\nauth_user = asker\nauth_query = select u, s from ask($1)\n\
                    auth_dbname = missing\nauth_error_codes = 1";
    let entries = "own = SERVER dbname=postgres auth_dbname=own\nlost = SERVER dbname=postgres";
    let (_postgres, pooler) = asked(entries, settings)?;
    let user = |database: &str, user: &str, password: &str| {
        let words = format!("user={user} dbname={database}");
        psql(pooler.port, &words, password, "select current_user")
    };
    refused(user("own", "missing", "secret"), "no such user");
    refused(user("own", "gone", "secret"), "password authentication failed");
    // The server wants SCRAM, for which a verifier without a client's keys does not do.
    refused(user("own", "found", "secret"), "server login failed: wrong password type");
    refused(user("lost", "found", "secret"), "bouncer config error");
    assert!(pooler.log()?.contains("authentication database \"missing\" is not configured."));
    pooler.console("disable own").or_else(|_| {
        psql(
            pooler.port,
            "user=postgres \
        dbname=pgbouncer",
            "secret",
            "disable own",
        )
        .map_err(io::Error::other)
    })?;
    refused(user("own", "found", "secret"), "authentication database \"own\" is disabled");
    let mut raw = Raw::start(pooler.port, &[("user", "postgres"), ("database", "lost")])?;
    raw.message()?;
    raw.send(&password(b"wrong"))?;
    assert_eq!(raw.fatal(), "28P01 password authentication failed");
    Ok(())
}

#[test]
fn passwords_expire_for_the_usual_question() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let settings = "auth_type = scram-sha-256\nauth_user = postgres\npool_mode = transaction";
    let (postgres, pooler) = asked("own = SERVER dbname=postgres", settings)?;
    let user = |user: &str| {
        psql(pooler.port, &format!("user={user} dbname=own"), "secret", "select current_user")
    };
    for valid_until in ["infinity", "2001-01-01", "2100-01-01"] {
        postgres.sql(&format!("alter role found valid until '{valid_until}'"))?;
        match valid_until {
            "2001-01-01" => refused(user("found"), "SASL authentication failed"),
            _ => assert_eq!(user("found"), Ok("found".into()), "{valid_until}"),
        }
    }
    postgres.sql("alter role found nologin")?;
    refused(user("found"), "SASL authentication failed");
    Ok(())
}

/// A client's startup parameters must not act on the query that looks its user up.
#[test]
fn nothing_of_a_client_is_set_where_its_user_is_looked_up() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let entries = "own = SERVER dbname=postgres auth_user=asker auth_query='select name::text, \
        secret::text from seen($1)'";
    let settings = "auth_type = trust\npool_mode = transaction\n\
                    track_extra_parameters = search_path, IntervalStyle";
    let (postgres, pooler) = asked(entries, settings)?;
    postgres.sql("create table paths (path text, app text); grant all on paths to asker")?;
    postgres.sql(
        "create function seen(name text) returns table (name text, secret text) language sql as \
         $$ insert into public.paths values (current_setting('search_path'), \
         current_setting('application_name')); select name, 'x' $$",
    )?;
    postgres.sql("create schema evil; grant usage on schema evil to public")?;
    let mut raw = Raw::start(
        pooler.port,
        &[
            ("user", "found"),
            ("database", "own"),
            ("application_name", "evil"),
            ("options", "-c search_path=evil"),
        ],
    )?;
    // Its own login at the server may fail; its user was looked up all the same.
    let _ = raw.welcome();
    let seen = postgres.sql("select * from paths")?;
    assert_eq!(seen.trim(), "\"$user\", public|");
    assert_eq!(postgres.sql("select count(*) from paths")?.trim(), "1");
    Ok(())
}

/// A server that accepts a login's first packet and answers with `answer`.
fn strange_server(answer: &'static [u8]) -> io::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = io::BufReader::new(stream);
            // The startup packet ends with two zeroes behind the last name's value.
            let mut packet = Vec::new();
            let _ =
                reader.read_until(b'\0', &mut packet).and_then(|_| reader.fill_buf().map(|_| ()));
            let _ = reader.get_mut().write_all(answer);
        }
    });
    Ok(port)
}

#[test]
fn an_error_without_sqlstate_is_told_as_a_protocol_violation() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let bare = strange_server(b"E\0\0\0\x0eSFATAL\0M?\0\0")?;
    let empty = strange_server(b"E\0\0\0\x05\0")?;
    let entries = format!(
        "bare = host=127.0.0.1 port={bare}\nempty = host=127.0.0.1 port={empty} auth_user=u"
    );
    let settings = "server_tls_sslmode = disable\nserver_login_retry = 0.1";
    let mut pooler = Pooler::start(program(), &entries, settings)?;
    for (user, database, text) in
        [("app", "bare", "08P01 ?"), ("app", "empty", "08P01 "), ("nobody", "empty", "08P01 ")]
    {
        let mut raw = Raw::start(pooler.port, &[("user", user), ("database", database)])?;
        assert_eq!(raw.fatal(), text, "{user} {database}");
    }
    assert!(pooler.is_running());
    Ok(())
}

#[test]
fn lookups_wait_for_the_first_server_and_are_told_of_later_failures() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let settings = "auth_type = scram-sha-256\nauth_query = select u, s from ask($1)\n\
        client_login_timeout = 1\nserver_login_retry = 1\npool_mode = transaction";
    let (postgres, pooler) = asked("own = SERVER dbname=postgres auth_user=asker", settings)?;
    let login = || psql(pooler.port, "user=found dbname=own", "secret", "select 1");
    postgres.stop("fast")?;
    for _ in 0..2 {
        assert!(login().is_err_and(|text| text.contains("client_login_timeout")));
    }
    postgres.launch()?;
    // What failed before is no reason to send this one away.
    assert_eq!(login(), Ok("1".into()));
    postgres.stop("fast")?;
    let refused = "server login has been failing, cached error: connect failed";
    wait_until("the cached error", || login().is_err_and(|text| text.contains(refused)))?;
    Ok(())
}
