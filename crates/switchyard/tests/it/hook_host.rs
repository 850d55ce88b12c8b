//! Functions that misbehave: their own calls suffer, nobody else does, and nothing gets past them.

use std::io;
use std::time::{Duration, Instant};

use switchyard_testkit::{Client, Messages, Pooler, Postgres, Rules, run, wait_until};

/// Each query names what its function does.
const WILD: &str = r#"
import atexit, os, re, subprocess, sys, time, threading, signal
calls = 0
leaked = []
def deep(n):
    return deep(n + 1)
def endless():
    # Holds the interpreter's lock: nothing in this process runs beside it.
    re.match(r'(a+)+$', 'a' * 40 + 'b')
def rewrite_query(username, query, in_transaction):
    global calls
    calls += 1
    if 'wild:' not in query:
        return query
    word = query.split('wild:')[1].split("'")[0]
    if word == 'raise': raise ValueError('on purpose')
    if word == 'exit': sys.exit(3)
    if word == 'os_exit': os._exit(3)
    if word == 'segfault':
        import ctypes
        ctypes.string_at(0)
    if word == 'deep': deep(0)
    if word == 'regex': endless()
    if word == 'sleep': time.sleep(60)
    if word == 'bytes': return b'select 1'
    if word == 'number': return 7
    if word == 'nul': return 'select 1\0'
    if word == 'surrogate': return "select '\ud800'"
    if word == 'huge': return "select '" + 'x' * 10_000_000 + "'"
    if word == 'close': os.closerange(3, 256)
    if word == 'fork' and os.fork() == 0: return query
    if word == 'print':
        for _ in range(20000): print('x' * 1000)
    if word == 'signals': signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if word == 'thread': threading.Thread(target=time.sleep, args=(600,)).start()
    if word == 'leak': leaked.append(bytearray(80 * 1024 * 1024))
    if word == 'interrupt': raise KeyboardInterrupt
    if word == 'pieces': leaked.append(bytearray(1024 * 1024))
    if word == 'child':
        assert subprocess.check_output(['echo', 'child']) == b'child\n'
    if word == 'orphan' and os.fork() == 0: time.sleep(600)
    if word == 'alarm': signal.alarm(1); time.sleep(60)
    if word == 'oversize': return "select '" + 'x' * 30_000_000 + "'"
    if word == 'handlers':
        for number in range(1, 65):
            try: signal.signal(number, lambda *_: None)
            except (OSError, ValueError): pass
    return query
"#;

fn server() -> io::Result<(Postgres, String)> {
    let server = Postgres::start("")?;
    server.sql("create role app login")?;
    let entry = format!("dev = host=127.0.0.1 port={} dbname=postgres", server.port);
    Ok((server, entry))
}

/// What queries name, and the error that SHOW HOOKS tells, if it is one.
const CASES: &[(&str, Option<&str>)] = &[
    ("raise", Some("ValueError: on purpose")),
    ("exit", Some("SystemExit: 3")),
    ("interrupt", Some("KeyboardInterrupt")),
    ("os_exit", Some("the interpreter ended: exit status: 3")),
    ("segfault", Some("the interpreter ended: signal: 11")),
    ("deep", Some("RecursionError")),
    ("regex", Some("TimeoutError: hook_timeout")),
    ("sleep", Some("TimeoutError: hook_timeout")),
    ("bytes", Some("TypeError: rewrite_query returned bytes")),
    ("number", Some("TypeError: rewrite_query returned int")),
    ("nul", Some("ValueError: rewrite_query returned a NUL")),
    ("surrogate", Some("UnicodeEncodeError")),
    ("alarm", Some("the interpreter ended: signal: 14")),
    ("oversize", Some("ValueError: rewrite_query returned more than max_packet_size")),
    ("huge", None),
    ("fork", None),
    ("print", None),
    ("signals", None),
    ("thread", None),
    ("child", None),
    ("orphan", None),
    ("handlers", None),
    ("leak", None),
];

#[test]
fn wild_functions_harm_their_own_call_only() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (_server, entry) = server()?;
    let rules = Rules::new(WILD)?;
    let settings = format!(
        "pool_mode = transaction\nworkers = 2\nhook_timeout = 6\nrewrite_on_error = error\n\
         hook_max_rss = 60MB\nmax_packet_size = 20000000\n{}",
        rules.settings(&["rewrite_query"])
    );
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    let mut client = Client::connect(pooler.port, "dev")?;
    let mut other = Client::connect(pooler.port, "dev")?;
    for &(word, error) in CASES {
        let answer = client.run(&format!("select 'wild:{word}'"));
        match error {
            Some(error) => {
                let text = answer.map_err(|error| error.to_string());
                assert_eq!(text, Err("58000 query rewrite failed".into()), "{word}");
                // The log has one line a second.
                let table = pooler.console("show hooks")?;
                assert!(table.contains(error), "{word}: {table}");
            }
            None => assert!(answer.is_ok(), "{word}: {answer:?} {}", pooler.log()?),
        }
        let found = other.run("select 1").map_err(|error| error.to_string());
        assert_eq!(found, Ok(vec!["1".into()]), "{word}: {}", pooler.log()?);
    }
    // Never so much at once that it would be noticed.
    for _ in 0..200 {
        let found = client.run("select 'wild:pieces'").map_err(|error| error.to_string());
        assert_eq!(found, Ok(vec!["wild:pieces".into()]), "{}", pooler.log()?);
    }
    // Its result may lie in the journal already, and counts then; either way there is an answer.
    match client.run("select 'wild:close'").map_err(|error| error.to_string()) {
        Ok(rows) => assert_eq!(rows, ["wild:close"]),
        Err(text) => assert_eq!(text, "58000 query rewrite failed"),
    }
    assert!(pooler.log()?.contains("rewrite_query failed: ValueError: on purpose"));
    wait_until("recycling", || {
        pooler.log().is_ok_and(|log| log.contains("(hook_max_rss), replacing it"))
    })?;
    let log = pooler.log()?;
    assert!(log.contains("lines were not logged") || log.matches("hook: xxx").count() <= 200);
    assert!(log.len() < 1_000_000, "{}", log.len());
    for _ in 0..50 {
        assert_eq!(client.run("select 2")?, ["2"]);
    }
    let table = pooler.console("show hooks")?;
    let row = table.lines().find(|row| row.starts_with("rewrite_query|")).unwrap_or_default();
    let fields: Vec<&str> = row.split('|').collect();
    assert_eq!(fields[2], "loaded", "{row}");
    assert!(fields[6].parse().is_ok_and(|calls: u64| calls > 80), "{row}");
    assert_eq!(fields[12], "2", "{row}");
    Ok(())
}

/// Guards that raise, hang, die or return nonsense at random: whatever they do, a query without
/// their mark must not arrive.
const GUARD: &str = r#"
import os, random, time
random.seed()
def rewrite_query(username, query, in_transaction):
    chance = random.random()
    if chance < 0.1: raise RuntimeError('no')
    if chance < 0.13: os._exit(1)
    if chance < 0.14: time.sleep(5)
    if chance < 0.2: return 7
    if chance < 0.24: return 'select \0'
    return query.replace('from secrets', "from secrets where owner = 'me'")
"#;

#[test]
fn a_guard_that_fails_lets_nothing_pass() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (server, entry) = server()?;
    server.sql(
        "create table secrets as select 'mine' as v, 'me' as owner \
                union all select 'theirs', 'them'",
    )?;
    let rules = Rules::new(GUARD)?;
    server.sql("alter system set log_statement = 'all'")?;
    server.sql("select pg_reload_conf()")?;
    for policy in ["error", "disconnect"] {
        let settings = format!(
            "pool_mode = transaction\nworkers = 2\nhook_timeout = 0.2\n\
             rewrite_on_error = {policy}\nhook_workers = 3\n{}",
            rules.settings(&["rewrite_query"])
        );
        let pooler = Pooler::start(super::program(), &entry, &settings)?;
        let port = pooler.port;
        let threads = (0..4).map(|_| {
            std::thread::spawn(move || -> io::Result<[usize; 2]> {
                let mut counts = [0, 0];
                let mut client = Client::connect(port, "dev")?;
                let sql = "select v from secrets";
                for number in 0..60 {
                    if !client.is_open() {
                        client = Client::connect(port, "dev")?;
                    }
                    let rows = if number % 2 == 0 {
                        client.run(sql).ok()
                    } else {
                        let group = Messages::new().parse("", sql).bind("").execute().sync();
                        let words =
                            client.exchange(&group, 1).unwrap_or_else(|_| vec!["E:".into()]);
                        let failed = words.iter().any(|word| word.starts_with("E:"));
                        if words.len() == 1 {
                            client = Client::connect(port, "dev")?;
                        }
                        let row = |word: &String| word.strip_prefix("D:").map(String::from);
                        (!failed).then(|| words.iter().filter_map(row).collect())
                    };
                    match rows {
                        Some(rows) => {
                            assert_eq!(rows, ["mine"]);
                            counts[0] += 1;
                        }
                        None => counts[1] += 1,
                    }
                }
                Ok(counts)
            })
        });
        let mut total = [0, 0];
        for thread in threads.collect::<Vec<_>>() {
            let counts = thread.join().map_err(|_| io::Error::other("unfiltered rows"))??;
            total = [total[0] + counts[0], total[1] + counts[1]];
        }
        assert!(total[0] > 5 && total[1] > 5, "{policy}: {total:?}");
    }
    // Not one arrived without its filter.
    let log = std::fs::read_to_string(server.socket_dir().join("log"))?;
    let arrived = log.lines().filter(|line| line.contains("select v from secrets"));
    let (filtered, bare): (Vec<_>, Vec<_>) = arrived.partition(|line| line.contains("where owner"));
    assert!(filtered.len() > 10, "{}", filtered.len());
    assert_eq!(bare, Vec::<&str>::new());
    Ok(())
}

#[test]
fn others_are_served_while_one_user_sleeps() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (_server, entry) = server()?;
    let rules = Rules::new(
        "import time\ndef routing_rules(username, query, in_transaction):\n\
         \x20   if username == 'app': time.sleep(0.3)\n    return None\n",
    )?;
    let settings = format!(
        "pool_mode = transaction\nworkers = 2\nhook_timeout = 5\n{}",
        rules.settings(&["routing_rules"])
    );
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    let mut sleepers = Vec::new();
    for _ in 0..12 {
        let mut session = pooler.session("app", "dev")?;
        sleepers.push(std::thread::spawn(move || {
            (0..4).try_for_each(|_| session.run("select 1").map(drop))
        }));
    }
    let mut client = Client::connect(pooler.port, "dev")?;
    // The first sleeping calls take every process by surprise; later ones do not.
    client.run("select 1")?;
    let mut times = Vec::new();
    while sleepers.iter().any(|sleeper| !sleeper.is_finished()) {
        let started = Instant::now();
        assert_eq!(client.run("select 1")?, ["1"]);
        times.push(started.elapsed());
    }
    for sleeper in sleepers {
        sleeper.join().map_err(|_| io::Error::other("a panic"))??;
    }
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    assert!(times.len() > 20, "{times:?}");
    assert!(median < Duration::from_millis(100), "{median:?} of {}", times.len());
    Ok(())
}

#[test]
fn pure_functions_are_asked_once_and_shadows_change_nothing() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (_server, entry) = server()?;
    let rules = Rules::new(
        "switchyard_pure = True\nswitchyard_shared_state = True\ncalls = 0\n\
         switchyard_keys = ['dev', 'nobody']\n\
         def rewrite_query(username, query, in_transaction):\n    global calls\n    calls += 1\n\
         \x20   return query.replace('CALLS', str(calls))\n",
    )?;
    let shadow = Rules::new(
        "import time\ndef rewrite_query(user, query):\n    if 'hang' in query: time.sleep(60)\n\
         \x20   return 'select 7'\n",
    )?;
    let settings = format!(
        "pool_mode = transaction\nworkers = 1\nhook_timeout = 0.5\n\
         hook_shadow_rewrite_query_py_module_file = {}\n{}",
        shadow.path().display(),
        rules.settings(&["rewrite_query"])
    );
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    let mut client = Client::connect(pooler.port, "dev")?;
    for _ in 0..5 {
        assert_eq!(client.run("select CALLS")?, ["1"]);
    }
    client.run("begin")?;
    assert_eq!(client.run("select CALLS")?, ["3"], "in_transaction is part of the question");
    client.run("commit")?;
    assert_eq!(client.run("select 'hang'")?, ["hang"]);
    let log = pooler.log()?;
    assert!(log.contains("switchyard_keys names unknown database \"nobody\""), "{log}");
    wait_until("difference", || {
        pooler.log().is_ok_and(|log| log.contains("hook shadow: rewrite_query: select 7 instead"))
    })?;
    // A stuck shadow is replaced, and calls are counted again.
    wait_until("another process", || {
        client.run("select 'again CALLS'").is_ok_and(|rows| rows != ["again CALLS"])
    })?;
    // A changed file starts afresh, and a module that asks for it gets the old globals.
    rules.write(
        "calls = 100\nswitchyard_shared_state = True\ndef switchyard_reload(old):\n\
         \x20   global calls\n    calls += old['calls']\n\
         def rewrite_query(username, query, in_transaction):\n\
         \x20   return query.replace('CALLS', str(calls))\n",
    )?;
    let reloaded = pooler.console("reload");
    assert!(reloaded.is_ok(), "{}", pooler.log()?);
    let calls = client.run("select CALLS")?;
    assert!(calls.first().and_then(|c| c.parse().ok()).is_some_and(|c: u32| c > 100), "{calls:?}");
    // Switched off on the console, on again, and not to something that cannot be loaded.
    pooler.console("set rewrite_query_py_module_file = 'not_enabled'")?;
    assert!(client.run("select CALLS").is_err());
    assert!(pooler.console("set rewrite_query_py_module_file = '/nowhere.py'").is_err());
    let path = rules.path().display().to_string();
    pooler.console(&format!("set rewrite_query_py_module_file = '{path}'"))?;
    assert!(client.run("select CALLS").is_ok());
    Ok(())
}

#[test]
fn a_function_may_ask_through_the_pooler() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (server, entry) = server()?;
    server.sql("create table keys as select 'asked'::text k")?;
    let rules = Rules::new(
        "import socket, struct, os\n\
         def ask(s):\n\
         \x20   body = b'\\0\\x03\\0\\0user\\0postgres\\0database\\0dev\\0\\0'\n\
         \x20   s.sendall(struct.pack('>I', len(body) + 4) + body)\n\
         \x20   sql = b'select k from keys\\0'\n\
         \x20   s.sendall(b'Q' + struct.pack('>I', len(sql) + 4) + sql)\n\
         \x20   data = b''\n\
         \x20   while data.count(b'Z\\0\\0\\0\\x05') < 2:\n\
         \x20       got = s.recv(65536)\n\
         \x20       if not got: raise EOFError(data)\n\
         \x20       data += got\n\
         \x20   return b'asked' in data\n\
         def rewrite_query(username, query, in_transaction):\n\
         \x20   port, path = int(os.environ['TEST_PORT']), os.environ['TEST_SOCKET']\n\
         \x20   if 'tcp' in query:\n\
         \x20       s = socket.create_connection(('127.0.0.1', port))\n\
         \x20   else:\n\
         \x20       s = socket.socket(socket.AF_UNIX); s.connect(path)\n\
         \x20   with s:\n        return \"select '%s'\" % ask(s)\n",
    )?;
    let source = std::fs::read_to_string(rules.path())?;
    let settings = format!(
        "pool_mode = transaction\nworkers = 1\nhook_workers = 1\nhook_workers_max = 1\n\
         hook_timeout = 5\nrewrite_on_error = error\n{}",
        rules.settings(&["rewrite_query"])
    );
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    let directory = pooler.ini().parent().map(|at| at.display().to_string()).unwrap_or_default();
    let path = format!("{directory}/.s.PGSQL.{}", pooler.port);
    let known = source
        .replace("int(os.environ['TEST_PORT'])", &pooler.port.to_string())
        .replace("os.environ['TEST_SOCKET']", &format!("'{path}'"));
    rules.write(&known)?;
    pooler.console("reload")?;
    let mut client = Client::connect(pooler.port, "dev")?;
    assert_eq!(client.run("select 'tcp'")?, ["True"], "{}", pooler.log()?);
    assert_eq!(client.run("select 'unix'")?, ["True"], "{}", pooler.log()?);
    Ok(())
}

#[test]
fn processes_end_with_the_pooler_and_run_what_they_registered() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (_server, entry) = server()?;
    let marks = tempfile::tempdir()?;
    let at = marks.path().display().to_string();
    run(std::process::Command::new("chmod").args(["a+rwx", &at]))?;
    let rules = Rules::new(&format!(
        "import atexit, os\nname = '{at}/%d' % os.getpid()\nopen(name, 'w').close()\n\
         atexit.register(lambda: os.rename(name, name + '.ended'))\n\
         def rewrite_query(u, q, t):\n    return q\n"
    ))?;
    let line = rules.settings(&["rewrite_query"]);
    let ended = |count: usize| {
        std::fs::read_dir(&at).is_ok_and(|files| {
            let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
            names.filter(|name| name.ends_with(".ended")).count() >= count
        })
    };
    let mut pooler = Pooler::start(super::program(), &entry, &format!("workers = 1\n{line}"))?;
    let mut client = Client::connect(pooler.port, "dev")?;
    client.run("select 1")?;
    wait_until("two processes", || std::fs::read_dir(&at).is_ok_and(|files| files.count() == 2))?;
    // The old processes end when the new ones have taken over.
    rules.write(&format!("{}\n# changed\n", std::fs::read_to_string(rules.path())?))?;
    pooler.console("reload")?;
    client.run("select 1")?;
    wait_until("the old processes' end", || ended(2))?;
    wait_until("two new ones", || std::fs::read_dir(&at).is_ok_and(|files| files.count() == 4))?;
    drop(client);
    // The answer may not come: the process ends.
    let _ = pooler.console("shutdown");
    wait_until("the pooler's end", || !pooler.is_running())?;
    assert!(ended(4), "atexit ran before the pooler ended");
    Ok(())
}

#[test]
fn a_module_that_hangs_at_import_is_given_up() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (_server, entry) = server()?;
    let good = "def rewrite_query(username, query):\n    return query.replace('OLD', 'new')\n";
    let rules = Rules::new(good)?;
    let settings =
        format!("pool_mode = transaction\nworkers = 1\n{}", rules.settings(&["rewrite_query"]));
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    let mut client = Client::connect(pooler.port, "dev")?;
    rules.write(&format!("import time\ntime.sleep(600)\n{good}"))?;
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| pooler.console("reload"));
        // Nobody else waits for it.
        let mut answers = 0;
        while !reload.is_finished() {
            assert_eq!(client.run("select 'OLD'")?, ["new"]);
            assert!(answers % 100 != 0 || pooler.console("show version").is_ok());
            answers += 1;
        }
        assert!(answers > 100, "{answers}");
        let told = reload.join().map_err(|_| io::Error::other("a panic"))?;
        assert!(told.is_err(), "{told:?}");
        io::Result::Ok(())
    })?;
    assert_eq!(client.run("select 'OLD'")?, ["new"]);
    let log = pooler.log()?;
    assert!(log.contains("hooks not loaded: the module was not loaded within 30 s"), "{log}");
    Ok(())
}
