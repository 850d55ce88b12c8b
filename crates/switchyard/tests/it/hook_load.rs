//! Functions under load: reloads and dying processes, and what their clients notice.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use switchyard_testkit::{Client, Messages, Pooler, Postgres, Rules, signal, wait_until};

/// Clients that ask all the time.
struct Crowd {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<io::Result<Vec<String>>>>,
}

/// Errors of one client; every other query is a group of the extended protocol.
fn ask(
    port: u16,
    query: &str,
    stop: &AtomicBool,
    answered: &AtomicUsize,
) -> io::Result<Vec<String>> {
    let mut client = Client::connect(port, "dev")?;
    let mut errors = Vec::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let error = if number % 2 == 0 {
            client.run(query).err().map(|error| error.to_string())
        } else {
            let group = Messages::new().parse("", query).bind("").execute().sync();
            client.exchange(&group, 1)?.into_iter().find(|word| word.starts_with("E:"))
        };
        match error {
            Some(error) => errors.push(error),
            None => drop(answered.fetch_add(1, Ordering::Relaxed)),
        }
    }
    Ok(errors)
}

impl Crowd {
    fn start(port: u16, clients: usize, query: &'static str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..clients).map(|_| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            std::thread::spawn(move || ask(port, query, &stop, &answered))
        });
        let threads = threads.collect();
        Crowd { stop, answered, threads }
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// All errors.
    fn end(self) -> io::Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut errors = Vec::new();
        for thread in self.threads {
            errors.extend(thread.join().map_err(|_| io::Error::other("a panic"))??);
        }
        Ok(errors)
    }
}

fn pooler(rules: &Rules, functions: &[&str], settings: &str) -> io::Result<(Postgres, Pooler)> {
    let server = Postgres::start("")?;
    let entry = format!("dev = host=127.0.0.1 port={} dbname=postgres", server.port);
    let settings = format!(
        "pool_mode = transaction\nworkers = 2\nrewrite_on_error = error\nroute_on_error = error\n\
         hook_timeout = 20\n{settings}\n{}",
        rules.settings(functions)
    );
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    Ok((server, pooler))
}

#[test]
fn a_hundred_reloads_lose_nothing() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let module = |generation: usize| {
        format!(
            "def rewrite_query(username, query, in_transaction):\n\
             \x20   return query.replace('GENERATION', '{generation}')\n\
             def routing_rules(username, query):\n    return 'dev'\n"
        )
    };
    let rules = Rules::new(&module(0))?;
    let (_server, pooler) = pooler(&rules, &["rewrite_query", "routing_rules"], "")?;
    let crowd = Crowd::start(pooler.port, 6, "select GENERATION");
    let mut console = pooler.session("postgres", "pgbouncer")?;
    let mut client = Client::connect(pooler.port, "dev")?;
    for generation in 1..=100 {
        let before = crowd.answered();
        rules.write(&module(generation))?;
        console.run("reload")?;
        let found = client.run("select GENERATION").map_err(|error| error.to_string());
        assert_eq!(found, Ok(vec![generation.to_string()]), "{}", pooler.log()?);
        if generation % 10 == 0 {
            wait_until("answers", || crowd.answered() > before)?;
        }
    }
    let answered = crowd.answered();
    assert_eq!(crowd.end()?, Vec::<String>::new(), "{}", pooler.log()?);
    assert!(answered > 500, "{answered}");
    let table = pooler.console("show hooks")?;
    assert!(table.lines().all(|row| row.split('|').nth(11) == Some("0")), "{table}");
    // All those of before have ended.
    wait_until("the end of old processes", || children(&pooler).is_ok_and(|all| all.len() <= 8))?;
    Ok(())
}

/// Processes that the pooler has started.
fn children(pooler: &Pooler) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<u32>() else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent == Some(&pooler.pid().to_string()) {
            found.push(pid);
        }
    }
    Ok(found)
}

#[test]
fn a_process_that_dies_takes_one_call_with_it() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let rules = Rules::new(
        "import time\ndef rewrite_query(username, query, in_transaction):\n\
         \x20   time.sleep(0.0005)\n    return query + ' + 1'\n",
    )?;
    let (_server, pooler) = pooler(&rules, &["rewrite_query"], "hook_workers = 2")?;
    let crowd = Crowd::start(pooler.port, 8, "select 1");
    let mut kills = 0;
    for _ in 0..10 {
        let before = crowd.answered();
        wait_until("answers", || crowd.answered() > before + 20)?;
        if let Some(pid) = children(&pooler)?.get(kills % 2).or(children(&pooler)?.first()) {
            signal(*pid, "SEGV")?;
            kills += 1;
        }
        std::thread::park_timeout(Duration::from_millis(300));
    }
    let before = crowd.answered();
    wait_until("answers", || crowd.answered() > before + 20)?;
    let errors = crowd.end()?;
    assert!(errors.len() <= kills, "{kills}: {errors:?}");
    assert!(errors.iter().all(|error| error.contains("58000 query rewrite failed")), "{errors:?}");
    assert!(kills >= 8, "{kills}");
    let table = pooler.console("show hooks")?;
    assert!(errors.is_empty() || table.contains("the interpreter ended: signal: 11"), "{table}");
    assert!(pooler.log()?.contains("ended: signal: 11"));
    Ok(())
}

#[test]
fn a_module_that_always_dies_fails_its_calls_and_can_be_replaced() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let rules = Rules::new(
        "import os\ndef rewrite_query(username, query, in_transaction):\n    os._exit(7)\n",
    )?;
    let (_server, pooler) = pooler(&rules, &["rewrite_query"], "hook_timeout = 1")?;
    let mut client = Client::connect(pooler.port, "dev")?;
    for _ in 0..20 {
        let told = client.run("select 1").map_err(|error| error.to_string());
        assert_eq!(told, Err("58000 query rewrite failed".into()));
    }
    let log = pooler.log()?;
    let lines = log.matches("ended: exit status: 7").count();
    assert!((1..40).contains(&lines), "{lines}: {log}");
    rules.write("def rewrite_query(username, query):\n    return query + ' + 1'\n")?;
    pooler.console("reload")?;
    wait_until("another module", || client.run("select 1").is_ok_and(|rows| rows == ["2"]))?;
    // An interpreter that is none is refused, and the one of before goes on.
    let ini = std::fs::read_to_string(pooler.ini())?;
    std::fs::write(pooler.ini(), format!("{ini}hook_python = /nowhere/python3\n"))?;
    assert!(pooler.console("reload").is_err());
    wait_until("the module of before", || client.run("select 1").is_ok_and(|rows| rows == ["2"]))
}
