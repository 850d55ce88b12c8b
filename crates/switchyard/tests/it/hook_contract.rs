//! The published contract of the functions: what they are called with, and what their answers do.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use switchyard_testkit::{Client, Messages, Pooler, Postgres, Rules, wait_until};

/// A server as old as Redshift: few parameters, no DISCARD, some SETs refused. Answers every other
/// query with its own name.
fn old_relative(mut stream: TcpStream) -> io::Result<()> {
    fn message(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
        out.push(tag);
        out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(body);
    }
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let mut startup = vec![0; u32::from_be_bytes(len) as usize - 4];
    stream.read_exact(&mut startup)?;
    if startup.starts_with(&80_877_103_u32.to_be_bytes()) {
        stream.write_all(b"N")?;
        return old_relative(stream);
    }
    let mut out = Vec::new();
    message(&mut out, b'R', &[0; 4]);
    for pair in [
        "server_version\x008.0.2\0",
        "client_encoding\0UNICODE\0",
        "TimeZone\0UTC\0",
        "application_name\0\0",
    ] {
        message(&mut out, b'S', pair.as_bytes());
    }
    message(&mut out, b'K', &[0, 0, 0, 1, 0, 0, 0, 2]);
    message(&mut out, b'Z', b"I");
    stream.write_all(&out)?;
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let [tag, len @ ..] = head;
        let mut body = vec![0; u32::from_be_bytes(len) as usize - 4];
        stream.read_exact(&mut body)?;
        if tag != b'Q' {
            return Ok(());
        }
        let sql = String::from_utf8_lossy(&body).to_ascii_lowercase();
        let mut out = Vec::new();
        if sql.starts_with("discard") || sql.starts_with("set timezone") {
            message(&mut out, b'E', b"SERROR\0C42704\0Mnot on this server\0\0");
        } else if sql.starts_with("set") {
            message(&mut out, b'C', b"SET\0");
        } else {
            message(&mut out, b'T', b"\0\x01v\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
            message(&mut out, b'D', b"\0\x01\0\0\0\x08redshift");
            message(&mut out, b'C', b"SELECT 1\0");
        }
        message(&mut out, b'Z', b"I");
        stream.write_all(&out)?;
    }
}

#[test]
fn an_old_relative_serves_beside_postgresql() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let server = Postgres::start("")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || old_relative(stream));
        }
    });
    let rules = Rules::new(
        "def routing_rules(username, query, in_transaction):\n\
         \x20   return 'old' if 'spectrum' in query else 'dev'\n",
    )?;
    let entries = format!(
        "dev = host=127.0.0.1 port={} dbname=postgres\nold = host=127.0.0.1 port={port}",
        server.port
    );
    for mode in ["transaction", "session"] {
        let rules_lines = rules.settings(&["routing_rules"]);
        let settings = format!("pool_mode = {mode}\nhook_timeout = 20\n{rules_lines}");
        let pooler = Pooler::start(super::program(), &entries, &settings)?;
        for _ in 0..2 {
            let mut client = Client::connect(pooler.port, "dev")?;
            client.run("set timezone = 'Europe/Paris'; set application_name = 'both'")?;
            for _ in 0..3 {
                let found = client.run("select * from spectrum").map_err(|e| e.to_string());
                assert_eq!(found, Ok(vec!["redshift".into()]), "{mode}: {}", pooler.log()?);
                assert_eq!(client.run("show timezone")?, ["Europe/Paris"], "{mode}");
                assert_eq!(client.run("show application_name")?, ["both"], "{mode}");
            }
        }
        let log = pooler.log()?;
        let refused = log.matches("parameter TimeZone refused, left as it is").count();
        assert!((1..=2).contains(&refused), "{mode}: {refused}\n{log}");
        assert!(!log.contains("invalid server parameter"), "{log}");
    }
    Ok(())
}

/// Writes down what it is called with.
const SCRIBE: &str = r#"
import json
def note(name, args):
    with open(FILE, 'a') as out:
        out.write(json.dumps([name] + list(args)) + '\n')
def rewrite_query(username, query, in_transaction):
    note('rewrite', (username, query[:60], in_transaction))
    return query.replace('OLD', 'new') if 'OLD' in query else query
def routing_rules(*args):
    note('route', (args[0], args[1][:60], args[2]))
"#;

fn scribe(marks: &tempfile::TempDir) -> io::Result<(Rules, std::path::PathBuf)> {
    Command::new("chmod").arg("a+rwx").arg(marks.path()).status()?;
    let file = marks.path().join("calls");
    let rules = Rules::new(&format!("FILE = '{}'\n{SCRIBE}", file.display()))?;
    Ok((rules, file))
}

#[test]
fn each_message_is_judged_once_with_what_is_true_then() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let server = Postgres::start("")?;
    let entry = format!("dev = host=127.0.0.1 port={} dbname=postgres", server.port);
    let marks = tempfile::tempdir()?;
    let (rules, file) = scribe(&marks)?;
    let settings = format!(
        "pool_mode = transaction\ndefault_pool_size = 1\nworkers = 1\npkt_buf = 4096\n\
         client_idle_timeout = 0\nhook_timeout = 20\n{}",
        rules.settings(&["rewrite_query", "routing_rules"])
    );
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    let mut first = Client::connect(pooler.port, "dev")?;
    let mut second = Client::connect(pooler.port, "dev")?;
    // One server: the second client's message waits until the first one's transaction ends.
    first.run("begin")?;
    second.send(Messages::new().query(b"select 'waits'").bytes())?;
    wait_until("the second client's call", || {
        std::fs::read_to_string(&file).is_ok_and(|calls| calls.contains("waits"))
    })?;
    first.run("select 'inside'")?;
    first.run("commit")?;
    assert_eq!(second.receive(1)?.join(" "), "T D:waits C Z:I");
    let pipeline = Messages::new()
        .query(b"select 'p0'")
        .query(b"/* c */ begin")
        .query(b"select 'p1'")
        .query(b"commit")
        .query(b"select 'p2'")
        .parse("", "select 'p3'")
        .parse("x", "select 'p4'")
        .sync();
    first.exchange(&pipeline, 6)?;
    // A megabyte, much of it byte by byte, is rewritten once.
    let long = format!("select length('{}') as OLD", "x".repeat(1_000_000));
    let message = Messages::new().query(long.as_bytes());
    let (slow, rest) = message.bytes().split_at(2000);
    for byte in slow {
        first.send(std::slice::from_ref(byte))?;
    }
    rest.chunks(10_007).try_for_each(|chunk| first.send(chunk))?;
    assert_eq!(first.receive(1)?.join(" "), "T D:1000000 C Z:I");
    let calls = std::fs::read_to_string(&file)?;
    let about = |word: &str| -> Vec<&str> {
        let lines = calls.lines().filter(|line| line.contains(word));
        lines.map(|line| if line.ends_with("true]") { "true" } else { "false" }).collect()
    };
    for (word, inside) in [
        ("\"begin\"", "false"),
        ("waits", "false"),
        ("inside", "true"),
        ("p0", "false"),
        ("/* c */ begin", "false"),
        ("p1", "true"),
        ("p2", "false"),
        ("p3", "false"),
        ("p4", "false"),
        ("length", "false"),
    ] {
        assert_eq!(about(word), [inside, inside], "{word}: {calls}");
    }
    Ok(())
}

#[test]
fn bytes_of_any_encoding_arrive_as_they_were() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let server = Postgres::start("")?;
    let entry = format!("dev = host=127.0.0.1 port={} dbname=postgres", server.port);
    let marks = tempfile::tempdir()?;
    let (rules, _) = scribe(&marks)?;
    let settings = format!(
        "pool_mode = transaction\nhook_timeout = 20\n{}",
        rules.settings(&["rewrite_query", "routing_rules"])
    );
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    let mut client = Client::connect(pooler.port, "dev")?;
    client.run("set client_encoding = 'LATIN1'")?;
    for text in [
        &b"select encode(convert_to('\xe9', 'LATIN1'), 'hex')"[..],
        b"select encode(convert_to('\xe9', 'LATIN1'), 'hex') as OLD",
    ] {
        let words = client.exchange(&Messages::new().query(text), 1)?.join(" ");
        assert_eq!(words, "T D:e9 C Z:I");
    }
    // Bytes that are no text in the client's encoding reach the server, which is the one to refuse.
    client.run("set client_encoding = 'UTF8'")?;
    for text in [&b"select '\xff\xfe'"[..], b"select '\xff\xfe' as OLD"] {
        let words = client.exchange(&Messages::new().query(text), 1)?.join(" ");
        assert!(words.starts_with("E:22021 "), "{words}");
    }
    Ok(())
}

/// Whether a pooler with this module starts; else its log.
fn starts(module: &str) -> io::Result<Result<(), String>> {
    let rules = Rules::new(module)?;
    let directory = tempfile::tempdir()?;
    let at = directory.path().display();
    let log = directory.path().join("log");
    let text = format!(
        "[databases]\n[pgbouncer]\nunix_socket_dir = {at}\nlogfile = {at}/log\nauth_type = any\n\
         user = postgres\n{}",
        rules.settings(&["rewrite_query"])
    );
    std::fs::write(directory.path().join("pooler.ini"), text)?;
    Command::new("chmod").arg("a+rwx").arg(directory.path()).status()?;
    let mut child = Command::new(super::program())
        .arg("-q")
        .arg(directory.path().join("pooler.ini"))
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    let waited = wait_until("start or end", || {
        read().contains("process up") || matches!(child.try_wait(), Ok(Some(_)))
    });
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
    waited?;
    let text = read();
    Ok(if text.contains("process up") { Ok(()) } else { Err(text) })
}

#[test]
fn modules_that_cannot_run_are_refused_with_pythons_words() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    for good in [
        "def rewrite_query(u, q, t): return q",
        "def rewrite_query(u, q): return q",
        "def rewrite_query(*args): return args[1]",
        "def rewrite_query(u, q, t, more=1): return q",
        "class Rule:\n    def __call__(self, u, q, t): return q\nrewrite_query = Rule()",
    ] {
        assert_eq!(starts(good)?, Ok(()), "{good}");
    }
    for (bad, words) in [
        ("def rewrite_query(u): return u", "takes neither 3 nor 2 arguments"),
        ("def rewrite_query(a, b, c, d): return a", "takes neither 3 nor 2 arguments"),
        ("rewrite_query = 7", "is not callable"),
        ("def routing_rules(u, q, t): return None", "no function rewrite_query"),
        ("async def rewrite_query(u, q, t): return q", "is async or a generator"),
        ("def rewrite_query(u, q, t): yield q", "is async or a generator"),
        ("raise RuntimeError('not today')", "RuntimeError: not today"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def rewrite_query(:", "SyntaxError"),
        ("import sys; sys.exit(4)", "SystemExit: 4"),
        ("import os; os._exit(4)", "ended while loading: exit status: 4"),
    ] {
        let text = starts(bad)?;
        assert!(
            text.as_ref().is_err_and(|text| {
                text.contains("FATAL cannot load hooks: ") && text.contains(words)
            }),
            "{bad}: {text:?}"
        );
    }
    Ok(())
}
