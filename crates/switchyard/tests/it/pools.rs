//! Sizes, limits and maintenance of pools.

use std::io;
use std::time::{Duration, Instant};

use switchyard_testkit::{Client, Pooler, Postgres, wait_until};

use crate::{start, wanted};

/// Server processes that clients can be linked to, but for the one that asks.
fn servers(postgres: &Postgres, user: &str) -> io::Result<usize> {
    let sql = format!(
        "select count(*) from pg_stat_activity where backend_type = 'client backend' \
         and pid <> pg_backend_pid() and usename like '{user}'"
    );
    Ok(postgres.sql(&sql)?.trim().parse().unwrap_or(usize::MAX))
}

fn logged(pooler: &Pooler, text: &str) -> io::Result<usize> {
    Ok(pooler.log()?.lines().filter(|line| line.contains(text)).count())
}

#[test]
fn pools_of_a_database_share_its_limit_and_idle_servers_make_way() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    for (workers, limit) in [(1, 1), (2, 3)] {
        let settings = format!(
            "pool_mode = transaction\nworkers = {workers}\nmax_db_connections = {limit}\n\
             default_pool_size = 3"
        );
        let (postgres, pooler) = start(&settings)?;
        // Each user in turn: the other's idle servers are closed for it.
        for _ in 0..2 {
            for user in ["app", "postgres"] {
                assert_eq!(pooler.sql(user, "postgres", "select current_user")?.trim(), user);
            }
        }
        if limit == 1 {
            assert_eq!(logged(&pooler, "closing because: evicted")?, 3);
        }
        // Both at once, and all are served within the limit.
        let started = Instant::now();
        let run = |user: &'static str| {
            let pooler = &pooler;
            move || {
                (0..30).try_for_each(|n| {
                    let row =
                        pooler.sql(user, "postgres", &format!("select {n}, pg_sleep(0.01)"))?;
                    assert!(row.starts_with(&n.to_string()), "{row}");
                    Ok::<(), io::Error>(())
                })
            }
        };
        let (postgres, most) = (
            &postgres,
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..3)
                    .flat_map(|_| ["app", "postgres"])
                    .map(|user| scope.spawn(run(user)))
                    .collect();
                let mut most = 0;
                while threads.iter().any(|thread| !thread.is_finished()) {
                    most = most.max(servers(&postgres, "%").unwrap_or(usize::MAX));
                }
                threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))?;
                Ok::<usize, io::Error>(most)
            })?,
        );
        let _ = postgres;
        // A server that was told to go may still be seen while its successor logs in, and the
        // asking connections of this test are seen by each other's successors.
        assert!(most <= limit * 2 + 1, "{most} servers in {:?}", started.elapsed());
        let row = pooler.console("show databases")?;
        let row =
            row.lines().find(|row| row.starts_with("postgres|")).unwrap_or_default().to_owned();
        assert!(row.contains(&format!("|{limit}|")), "{row}");
    }
    Ok(())
}

#[test]
fn databases_of_a_user_share_its_limit() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\n[users]\napp = max_user_connections=1";
    let (postgres, pooler) = start(settings)?;
    for database in ["postgres", "unix", "forced", "postgres"] {
        assert_eq!(pooler.sql("app", database, "select current_user")?.trim(), "app");
        assert_eq!(servers(&postgres, "app")?, 1, "{database}");
    }
    // Somebody else has no such limit.
    pooler.sql("postgres", "postgres", "select 1")?;
    assert_eq!(servers(&postgres, "app")?, 1);
    assert!(logged(&pooler, "closing because: evicted")? >= 3);
    Ok(())
}

#[test]
fn who_waits_for_longest_is_served_first_over_all_pools_of_a_limit() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\nworkers = 1\nmax_db_connections = 1";
    let (_postgres, pooler) = start(settings)?;
    let users = ["postgres", "app", "postgres"];
    let sessions: io::Result<Vec<_>> =
        users.into_iter().map(|user| pooler.session(user, "postgres")).collect();
    let mut sessions = sessions?;
    for session in &mut sessions {
        assert_eq!(session.run("select 1")?, "1");
    }
    let mut holder = pooler.session("app", "postgres")?;
    holder.run("begin")?;
    let waiting = |count: usize| {
        let rows = pooler.console("show pools").unwrap_or_default();
        let own = rows.lines().filter(|row| row.starts_with("postgres|"));
        let waiting = own.filter_map(|row| row.split('|').nth(3)?.parse::<usize>().ok());
        waiting.sum::<usize>() == count
    };
    let (told, order) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for (index, mut session) in sessions.into_iter().enumerate() {
            let told = told.clone();
            scope.spawn(move || {
                let row = session.run("select pg_sleep(0.2)");
                told.send((index, row.is_ok()))
            });
            wait_until("a waiter", || waiting(index + 1))?;
            // They differ in age by more than what a login is worth.
            let since = Instant::now();
            wait_until("its age", || since.elapsed() > Duration::from_millis(200))?;
        }
        holder.run("commit")?;
        let order: Vec<(usize, bool)> = order.iter().take(3).collect();
        assert_eq!(order, [(0, true), (1, true), (2, true)]);
        Ok(())
    })
}

#[test]
fn the_reserve_is_opened_for_those_who_wait_long() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\ndefault_pool_size = 1\nreserve_pool_size = 1\n\
                    reserve_pool_timeout = 0.5";
    let (postgres, pooler) = start(settings)?;
    let mut first = Client::connect(pooler.port, "postgres")?;
    first.run("begin")?;
    let mut second = Client::connect(pooler.port, "postgres")?;
    let started = Instant::now();
    second.run("begin")?;
    assert!(started.elapsed() > Duration::from_millis(450), "{:?}", started.elapsed());
    assert_eq!(servers(&postgres, "postgres")?, 2);
    assert_eq!(logged(&pooler, "WARNING C-")?, 1);
    assert_eq!(logged(&pooler, "taking connection from reserve_pool")?, 1);
    // There is one reserve server only.
    pooler.console("set query_wait_timeout = 1")?;
    let third = pooler.sql("postgres", "postgres", "select 1").map_err(|e| e.to_string());
    assert!(third.as_ref().is_err_and(|error| error.contains("query_wait_timeout")), "{third:?}");
    Ok(())
}

#[test]
fn a_minimum_is_kept_ready_always_for_forced_users_else_for_clients() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\nmin_pool_size = 3\nserver_idle_timeout = 1";
    let (postgres, pooler) = start(settings)?;
    wait_until("the forced user's minimum", || servers(&postgres, "app").is_ok_and(|n| n == 3))?;
    assert_eq!(servers(&postgres, "postgres")?, 0, "that pool has no client");
    {
        let _client = Client::connect(pooler.port, "postgres")?;
        wait_until("a minimum", || servers(&postgres, "postgres").is_ok_and(|n| n == 3))?;
        // Idleness does not take them.
        let since = Instant::now();
        wait_until("some idleness", || since.elapsed() > Duration::from_secs(2))?;
        assert_eq!(servers(&postgres, "postgres")?, 3);
    }
    assert_eq!(servers(&postgres, "app")?, 3);
    Ok(())
}

#[test]
fn pools_that_nobody_uses_are_freed() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = start("server_idle_timeout = 1\npool_idle_timeout = 1")?;
    assert_eq!(pooler.sql("postgres", "postgres", "select 7")?.trim(), "7");
    wait_until("the end of the pool", || {
        let text = "cleaning up idle pool for user postgres on db postgres because: \
                    pool idle timeout (age= ";
        logged(&pooler, text).is_ok_and(|count| count == 1)
    })?;
    let pools = pooler.console("show pools")?;
    assert!(!pools.contains("postgres|postgres|"), "{pools}");
    // What it did is not forgotten, and it comes back when it is needed.
    assert_eq!(pooler.sql("postgres", "postgres", "select 7")?.trim(), "7");
    let stats = pooler.console("show stats_totals")?;
    let row = stats.lines().find(|row| row.starts_with("postgres|")).unwrap_or_default();
    assert_eq!(row.split('|').nth(2), Some("2"), "{stats}");
    Ok(())
}

#[test]
fn a_smaller_size_closes_what_is_too_much() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (postgres, pooler) = start("pool_mode = transaction\ndefault_pool_size = 4")?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(pooler.port, "postgres")?;
        client.run("begin")?;
        clients.push(client);
    }
    clients[0].run("commit")?;
    pooler.console("set default_pool_size = 2")?;
    wait_until("the idle one's end", || servers(&postgres, "postgres").is_ok_and(|n| n == 3))?;
    for client in &mut clients[1..] {
        client.run("commit")?;
    }
    wait_until("the others' end", || servers(&postgres, "postgres").is_ok_and(|n| n == 2))?;
    assert_eq!(logged(&pooler, "closing because: too many servers in the pool")?, 2);
    pooler.console("set default_pool_size = 0")?;
    for client in &mut clients {
        client.run("begin")?;
    }
    assert_eq!(servers(&postgres, "postgres")?, 4, "0 is no limit");
    Ok(())
}

#[test]
fn servers_of_an_age_are_not_closed_at_once() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\ndefault_pool_size = 4\nserver_lifetime = 4";
    let (postgres, pooler) = start(settings)?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(pooler.port, "postgres")?;
        client.run("begin")?;
        clients.push(client);
    }
    for client in &mut clients {
        client.run("commit")?;
    }
    let closed = || logged(&pooler, "closing because: server lifetime over").unwrap_or(0);
    wait_until("the first", || closed() > 0)?;
    let first = Instant::now();
    assert_eq!(closed(), 1);
    wait_until("the last", || closed() == 4)?;
    assert!(first.elapsed() > Duration::from_millis(2500), "{:?}", first.elapsed());
    wait_until("their end", || servers(&postgres, "postgres").is_ok_and(|n| n == 0))?;
    Ok(())
}

#[test]
fn an_idle_server_that_says_good_bye_has_crashed() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (postgres, pooler) = start("pool_mode = transaction")?;
    let terminate = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'";
    for count in 1..=10 {
        pooler.sql("app", "postgres", "select 1")?;
        postgres.sql(terminate)?;
        let ends = "closing because: ";
        let closed = || logged(&pooler, &format!("app@127.0.0.1:{} {ends}", postgres.port));
        wait_until("its end", || closed().is_ok_and(|n| n == count))?;
    }
    assert_eq!(logged(&pooler, "closing because: server conn crashed?")?, 10);
    assert_eq!(logged(&pooler, "got dirty")?, 0);
    Ok(())
}

/// Three clients of as many workers, each of which has had a server of its own.
fn apart(order: &str) -> io::Result<(Postgres, Pooler, [Client; 3])> {
    let settings = format!("pool_mode = transaction\ndefault_pool_size = 3\nworkers = 3\n{order}");
    let (postgres, pooler) = start(&settings)?;
    let connect = || Client::connect(pooler.port, "postgres");
    let mut clients = [connect()?, connect()?, connect()?];
    clients.iter_mut().try_for_each(|client| client.run("begin").map(drop))?;
    clients.iter_mut().try_for_each(|client| client.run("commit").map(drop))?;
    Ok((postgres, pooler, clients))
}

/// The server that a client gets now, which is longer after the last one than what does not count.
fn server_of(client: &mut Client) -> io::Result<Vec<String>> {
    std::thread::sleep(Duration::from_millis(5));
    client.run("select pg_backend_pid()")
}

#[test]
fn servers_take_turns_wherever_they_are() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, _pooler, mut clients) = apart("server_round_robin = 1")?;
    for client in &mut clients {
        let seen: io::Result<Vec<_>> = (0..9).map(|_| server_of(client)).collect();
        let mut seen = seen?;
        assert_eq!(seen[..3], seen[3..6]);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 3, "all of them, in turn");
    }
    Ok(())
}

#[test]
fn the_server_that_was_used_last_is_used_first_wherever_it_is() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (_postgres, _pooler, mut clients) = apart("server_round_robin = 0")?;
    let first = server_of(&mut clients[0])?;
    for _ in 0..3 {
        for client in &mut clients {
            assert_eq!(server_of(client)?, first);
        }
    }
    Ok(())
}

#[test]
fn without_a_lifetime_each_server_is_used_once() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    for mode in ["transaction", "session"] {
        let settings = format!("pool_mode = {mode}\ndefault_pool_size = 1\nserver_lifetime = 0");
        let (_postgres, pooler) = start(&settings)?;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            seen.insert(pooler.sql("app", "postgres", "select pg_backend_pid()")?);
        }
        assert_eq!(seen.len(), 3, "{mode}");
    }
    Ok(())
}

#[test]
fn a_check_after_every_release_is_not_seen_by_clients() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let settings = "pool_mode = transaction\ndefault_pool_size = 1\nserver_check_delay = 0\n\
                    server_check_query = select 'checked'";
    let (postgres, pooler) = start(settings)?;
    postgres.sql("alter system set log_statement = 'all'")?;
    postgres.sql("select pg_reload_conf()")?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::connect(pooler.port, "postgres")?;
                    for n in 0..20 {
                        assert_eq!(client.run(&format!("select {n}"))?, [n.to_string()]);
                    }
                    Ok::<(), io::Error>(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    let log = std::fs::read_to_string(postgres.socket_dir().join("log"))?;
    let checks = log.lines().filter(|line| line.contains("select 'checked'")).count();
    assert!(checks >= 79, "each use but the first follows a check: {checks}");
    Ok(())
}

#[test]
fn automatic_databases_are_forgotten() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let postgres = Postgres::start("")?;
    let databases = format!("* = host=127.0.0.1 port={}", postgres.port);
    let settings = "server_idle_timeout = 1\nautodb_idle_timeout = 1";
    let pooler = Pooler::start(crate::program(), &databases, settings)?;
    assert_eq!(pooler.sql("postgres", "postgres", "select 1")?.trim(), "1");
    let text =
        "dropping database 'postgres' as it does not exist anymore or inactive auto-database";
    wait_until("its end", || logged(&pooler, text).is_ok_and(|count| count == 1))?;
    assert_eq!(pooler.sql("postgres", "postgres", "select 1")?.trim(), "1");
    Ok(())
}
