//! Limits of clients: exact, and free again when clients have gone.

use super::*;
use switchyard_testkit::wait_until;

fn hello(port: u16, user: &str, database: &str) -> io::Result<Raw> {
    let mut raw = Raw::start(port, &[("user", user), ("database", database)])?;
    raw.welcome()?;
    Ok(raw)
}

#[track_caller]
fn full(port: u16, user: &str, database: &str, text: &str) {
    let error = hello(port, user, database).err().map(|error| error.to_string());
    assert!(error.as_ref().is_some_and(|error| error.contains(text)), "{text}: {error:?}");
}

#[test]
fn limits_of_clients_are_exact_and_never_leak() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let entries = "small = SERVER dbname=postgres max_db_client_connections=2\n\
                   postgres = SERVER\nbroken = SERVER dbname=nonexistent";
    let settings = "max_client_conn = 8\nmax_user_client_connections = 3\nadmin_users = postgres\n\
                    server_login_retry = 0.1\nworkers = 2\n\
                    [users]\nsecond = max_user_connections=9";
    let files = Files::new()?;
    let users =
        files.write("users", "\"postgres\" \"s\"\n\"app\" \"secret\"\n\"second\" \"s\"\n")?;
    let (postgres, pooler) = stage(entries, &format!("auth_file = {users}\n{settings}"))?;
    postgres.sql("create role second login")?;
    let port = pooler.port;
    for _ in 0..3 {
        let held = [hello(port, "app", "small")?, hello(port, "second", "small")?];
        full(port, "app", "small", "client connections exceeded (max_db_client_connections)");
        let admin = hello(port, "postgres", "small")?;
        let more = [hello(port, "app", "postgres")?, hello(port, "app", "postgres")?];
        let text = "client connections exceeded (max_user_client_connections)";
        full(port, "app", "postgres", text);
        let rest = [
            hello(port, "postgres", "postgres")?,
            hello(port, "postgres", "postgres")?,
            hello(port, "postgres", "postgres")?,
        ];
        full(port, "second", "postgres", "no more connections allowed (max_client_conn)");
        let console = pooler.console("show databases");
        assert!(console.is_ok(), "the console is not limited: {console:?}");
        drop((held, admin, more, rest));
        // Logins that fail at the server count no longer either.
        for _ in 0..4 {
            full(port, "second", "broken", "database \"nonexistent\" does not exist");
        }
        wait_until("empty entry", || {
            pooler.console("show clients").is_ok_and(|rows| rows.lines().count() == 1)
        })?;
    }
    Ok(())
}

#[test]
fn of_clients_that_come_at_once_as_many_as_fit_get_in() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let settings = "max_db_client_connections = 5\nworkers = 2\nadmin_users = nobody";
    let (_postgres, pooler) = stage("postgres = SERVER", settings)?;
    for _ in 0..3 {
        let connect = || hello(pooler.port, "postgres", "postgres").ok();
        let held: Vec<Raw> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20).map(|_| scope.spawn(connect)).collect();
            threads.into_iter().filter_map(|thread| thread.join().ok().flatten()).collect()
        });
        assert_eq!(held.len(), 5);
        drop(held);
        wait_until("room", || hello(pooler.port, "postgres", "postgres").is_ok())?;
        wait_until("five", || {
            (0..5).map(|_| hello(pooler.port, "postgres", "postgres")).all(|one| one.is_ok())
        })?;
    }
    Ok(())
}
