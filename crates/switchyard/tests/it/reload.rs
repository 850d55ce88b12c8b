//! Reload under clients: entries that come, change and go, values that go back to their defaults,
//! files with errors, and the ends that wait for servers.

use std::io;

use switchyard_testkit::{Postgres, Running, Session, Workplace, wait_until};

use super::{program, wanted};

struct Lab {
    server: Postgres,
    place: Workplace,
    pooler: Running,
}

const PID: &str = "select pg_backend_pid()";

fn lab(databases: &str, settings: &str) -> io::Result<Lab> {
    let server = Postgres::start("")?;
    server.sql("create role app superuser login password 'secret'")?;
    server.sql("create database other")?;
    let place = Workplace::new()?;
    write(&place, &server, databases, settings)?;
    let pooler = place.up(program())?;
    Ok(Lab { server, place, pooler })
}

/// Writes the file; `@` in databases stands for the way to the server.
fn write(place: &Workplace, server: &Postgres, databases: &str, settings: &str) -> io::Result<()> {
    let way = format!("host=127.0.0.1 port={}", server.port);
    place.ini(&format!("{settings}\n[databases]\n{}", databases.replace('@', &way)))?;
    place.write("users", "\"postgres\" \"secret\"\n\"app\" \"secret\"\n")
}

impl Lab {
    fn session(&self, database: &str) -> io::Result<Session> {
        Session::open(self.place.port, "postgres", database)
    }

    /// Answer of a console command; an error's answer is empty.
    fn console(&self, command: &str) -> io::Result<String> {
        self.session("pgbouncer")?.run(command)
    }

    fn reload(&self, databases: &str, settings: &str) -> io::Result<()> {
        write(&self.place, &self.server, databases, settings)?;
        self.console("reload").map(drop)
    }

    fn log(&self) -> String {
        self.place.read("log")
    }

    fn config(&self, key: &str) -> io::Result<String> {
        let rows = self.console("show config")?;
        let start = format!("{key}|");
        Ok(rows.lines().find(|row| row.starts_with(&start)).unwrap_or_default().into())
    }
}

#[test]
fn entries_come_change_and_go() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let mode = "pool_mode = transaction\nworkers = 2";
    let lab = lab("one = @ dbname=postgres\ntwo = @ dbname=postgres", mode)?;
    let (mut one, mut two) = (lab.session("one")?, lab.session("two")?);
    let before = one.run(PID)?;
    two.run(PID)?;
    // An entry goes, another comes, and the third is left alone.
    lab.reload("one = @ dbname=postgres\nthree = @ dbname=other", mode)?;
    assert!(two.run(PID).is_err());
    let log = lab.log();
    assert!(log.contains(
        "WARNING dropping database 'two' as it does not exist anymore or inactive auto-database\n"
    ));
    assert!(log.contains(" closing because: database removed (age="), "{log}");
    assert!(log.contains(" pooler error: database removed\n"), "{log}");
    assert_eq!(one.run(PID)?, before, "unchanged entries keep their servers");
    assert_eq!(lab.session("three")?.run("select current_database()")?, "other");
    // Another database: the transaction finishes where it began.
    one.run("begin")?;
    assert_eq!(one.run(PID)?, before);
    lab.reload("one = @ dbname=other", mode)?;
    assert_eq!(one.run(PID)?, before);
    one.run("commit")?;
    assert_eq!(one.run("select current_database()")?, "other");
    wait_until("the old server's end", || {
        lab.log().contains("closing because: database configuration changed (age=")
    })?;
    // Limits act at once and close nothing.
    let pid = one.run(PID)?;
    lab.reload("one = @ dbname=other pool_size=3 max_db_connections=9 query_wait_timeout=7", mode)?;
    assert_eq!(one.run(PID)?, pid);
    let row = lab.console("show databases")?;
    assert!(row.contains("|other||3|"), "{row}");
    Ok(())
}

#[test]
fn a_forced_user_comes_changes_and_goes() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let mode = "pool_mode = transaction\nworkers = 2\ndefault_pool_size = 1";
    let lab = lab("d = @ dbname=postgres", mode)?;
    let mut client = lab.session("d")?;
    let who = "select current_user";
    assert_eq!(client.run(who)?, "postgres");
    lab.reload("d = @ dbname=postgres user=app password=secret", mode)?;
    assert_eq!(client.run(who)?, "app");
    assert_eq!(lab.session("d")?.run(who)?, "app");
    lab.reload("d = @ dbname=postgres", mode)?;
    assert_eq!(client.run(who)?, "postgres");
    assert_eq!(lab.session("d")?.run(who)?, "postgres");
    assert!(!lab.log().contains("losing forced user"));
    // A client that waits for a server goes on with the right one.
    let mut busy = lab.session("d")?;
    busy.run("begin")?;
    let port = lab.place.port;
    let waiting = std::thread::spawn(move || -> io::Result<String> {
        Session::open(port, "postgres", "d")?.run(who)
    });
    wait_until("a waiting client", || {
        let rows = lab.console("show pools").unwrap_or_default();
        let row = rows.lines().find(|row| row.starts_with("d|postgres|")).unwrap_or_default();
        row.split('|').nth(3) == Some("1")
    })?;
    lab.reload("d = @ dbname=postgres user=app password=secret", mode)?;
    let found = waiting.join().map_err(|_| io::Error::other("panicked"))??;
    assert_eq!(found, "app");
    busy.run("commit")?;
    assert_eq!(busy.run(who)?, "app");
    Ok(())
}

#[test]
fn automatic_entries_follow_their_line() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let mode = "pool_mode = transaction";
    let lab = lab("* = @\nfixed = @ dbname=postgres", mode)?;
    let mut client = lab.session("other")?;
    assert_eq!(client.run("select current_database()")?, "other");
    let line = " registered new auto-database: other\n";
    let log = lab.log();
    assert!(log.lines().any(|l| format!("{l}\n").ends_with(line) && l.contains(" C-0x")), "{log}");
    let before = client.run(PID)?;
    // Nothing changed: nothing happens. A change: other servers.
    lab.reload("* = @\nfixed = @ dbname=postgres", mode)?;
    assert_eq!(client.run(PID)?, before);
    lab.reload("* = @ connect_query='set work_mem=\\'7MB\\''", mode)?;
    assert_ne!(client.run(PID)?, before);
    assert_eq!(client.run("show work_mem")?, "7MB");
    assert!(lab.log().contains("dropping database 'fixed'"), "a declared one goes");
    // Its own line takes over; then that line goes, and the entry with it.
    lab.reload("* = @\nother = @ dbname=postgres", mode)?;
    assert_eq!(client.run("select current_database()")?, "postgres");
    lab.reload("* = @", mode)?;
    assert!(client.run(PID).is_err());
    // Unused ones are forgotten, paused ones are not.
    lab.session("postgres")?.run(PID)?;
    lab.session("template1")?.run(PID)?;
    lab.console("pause template1")?;
    lab.reload(
        "* = @",
        "pool_mode = transaction\nserver_idle_timeout = 0.1\n\
                         autodb_idle_timeout = 0.1",
    )?;
    let dropped = "WARNING dropping database 'postgres' as it does not exist anymore";
    wait_until("an end of the unused entry", || lab.log().contains(dropped))?;
    assert!(!lab.log().contains("dropping database 'template1'"));
    Ok(())
}

#[test]
fn values_go_back_and_broken_files_change_nothing() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let settings = "default_pool_size = 7\nmax_client_conn = 50\nauth_user = x\nverbose = 1\n\
                    unix_socket_mode = 0700";
    let lab = lab("d = @ dbname=postgres", settings)?;
    assert_eq!(lab.config("default_pool_size")?, "default_pool_size|7|20|yes");
    assert_eq!(lab.config("auth_user")?, "auth_user|x||yes");
    assert_eq!(lab.config("unix_socket_mode")?, "unix_socket_mode|448|0777|no");
    assert_eq!(lab.config("verbose")?, "verbose|1||yes");
    assert_eq!(lab.config("polling_frequency")?, "polling_frequency|0.1|.1|yes");
    // Runtime changes last until the next reload; what cannot change is ignored.
    lab.console("set default_pool_size = 9")?;
    assert_eq!(lab.config("default_pool_size")?, "default_pool_size|9|20|yes");
    write(&lab.place, &lab.server, "e = @\nf = nonsense", "default_pool_size = 8\nnope = 1")?;
    let mut admin = lab.session("pgbouncer")?;
    admin.run("reload")?;
    let log = lab.log();
    for line in [
        "ERROR unknown parameter: pgbouncer/nope\n",
        "ERROR syntax error in connection string\n",
        "WARNING config file loading failed\n",
        "ERROR RELOAD Failed, see logs for more details\n",
        " pooler error: RELOAD failed, see logs for additional details\n",
    ] {
        assert!(log.contains(line), "{line}{log}");
    }
    assert_eq!(lab.config("default_pool_size")?, "default_pool_size|9|20|yes");
    assert_eq!(lab.session("d")?.run("select 1")?, "1");
    lab.reload("d = @ dbname=postgres", "listen_backlog = 5\nunix_socket_dir = /nowhere")?;
    assert_eq!(lab.config("default_pool_size")?, "default_pool_size|20|20|yes");
    assert_eq!(lab.config("auth_user")?, "auth_user|||yes");
    assert_eq!(lab.config("verbose")?, "verbose|0||yes");
    assert_eq!(lab.config("listen_backlog")?, "listen_backlog|128|128|no");
    assert_eq!(lab.config("unix_socket_mode")?, "unix_socket_mode|448|0777|no");
    Ok(())
}

#[test]
fn overrides_of_users_act_and_are_unset_again() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let base = "pool_mode = transaction\n[users]\n";
    let lab = lab("d = @ dbname=postgres", &format!("{base}postgres = pool_mode=session"))?;
    let mut client = lab.session("d")?;
    let set = "set work_mem = '7MB'";
    client.run(set)?;
    let modes = |lab: &Lab| lab.console("show pools").unwrap_or_default();
    assert!(modes(&lab).lines().any(|row| row.starts_with("d|") && row.contains("|session")));
    lab.reload("d = @ dbname=postgres", base)?;
    assert!(modes(&lab).lines().any(|row| row.starts_with("d|") && row.contains("|transaction")));
    lab.reload("d = @ dbname=postgres", &format!("{base}postgres = idle_transaction_timeout=1"))?;
    client.run("begin")?;
    wait_until("the timeout", || {
        lab.log().contains("closing because: idle transaction timeout (age=")
    })
}

#[test]
fn an_end_that_waits_for_servers() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let signal = "got SIGINT, shutting down, waiting for all servers connections to be released";
    for text in [signal, "SHUTDOWN WAIT_FOR_SERVERS command issued"] {
        let settings = "pool_mode = transaction\nworkers = 2\ndefault_pool_size = 1";
        let mut lab = lab("d = @ dbname=postgres", settings)?;
        let (mut busy, mut idle) = (lab.session("d")?, lab.session("d")?);
        idle.run(PID)?;
        busy.run("begin")?;
        if text == signal {
            lab.pooler.signal("INT")?;
        } else {
            lab.console("shutdown wait_for_servers")?;
        }
        wait_until("a line", || lab.log().contains(&format!("LOG {text}\n")))?;
        // Who would have to wait is told to go, at once and later.
        assert!(idle.run(PID).is_err());
        assert!(lab.log().contains(" closing because: server shutting down (age="));
        assert!(lab.pooler.is_running(), "a transaction is waited for");
        assert_eq!(busy.run("select 1")?, "1");
        busy.run("commit")?;
        assert_eq!(lab.pooler.wait()?.code(), Some(0));
        assert!(lab.log().ends_with("LOG server connections dropped, exiting\n"), "{}", lab.log());
    }
    Ok(())
}

#[test]
fn an_end_that_waits_for_clients_lets_them_work() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let signal = "got SIGTERM, shutting down, waiting for all clients disconnect";
    for text in [signal, "SHUTDOWN WAIT_FOR_CLIENTS command issued"] {
        let mut lab = lab("d = @ dbname=postgres", "pool_mode = transaction\nworkers = 2")?;
        let mut client = lab.session("d")?;
        client.run(PID)?;
        if text == signal {
            lab.pooler.signal("TERM")?;
        } else {
            lab.console("shutdown wait_for_clients")?;
        }
        wait_until("a line", || lab.log().contains(&format!("LOG {text}\n")))?;
        for _ in 0..100 {
            assert_eq!(client.run("select 1")?, "1");
        }
        drop(client);
        assert_eq!(lab.pooler.wait()?.code(), Some(0));
        assert!(lab.log().ends_with("LOG client connections dropped, exiting\n"), "{}", lab.log());
    }
    Ok(())
}

#[test]
fn a_set_and_a_reload_at_the_same_time_do_not_undo_each_other() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let lab = lab("db = @ dbname=postgres", "")?;
    let many: String = (0..50_000).map(|n| format!("\"user{n}\" \"secret{n}\"\n")).collect();
    lab.place.write("many", &format!("\"postgres\" \"secret\"\n{many}"))?;
    for round in 1..=10 {
        let mut console = lab.session("pgbouncer")?;
        // Reading that many users takes longer than the reload.
        let set = std::thread::spawn(move || console.run("set auth_file = 'many'"));
        lab.reload(
            &format!("db{round} = @ dbname=postgres"),
            &format!("max_client_conn = 5{round}"),
        )?;
        set.join().map_err(|_| io::Error::other("a panic"))??;
        assert_eq!(lab.config("max_client_conn")?, format!("max_client_conn|5{round}|100|yes"));
        let names = lab.console("show databases")?;
        assert!(names.contains(&format!("db{round}|")), "{round} {names}");
    }
    Ok(())
}
