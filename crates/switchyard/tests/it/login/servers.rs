//! Logins at servers that ask for anything, answer anything, or break off, and what that means for
//! the clients that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use switchyard_testkit::{Client, Model, Peer, wait_until};

use super::*;

/// SCRAM secret for the password `secret`, of which no client has shown the keys.
const SCRAM: &str = "SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$\
    JwxmvMUn0UrPPuKzQ4lzbPfoz9BSzmsCgtpkSWTDYUY=:GfrGqF0EfvzAGbcfxMQWUM8Xd2q1YnVFwGFQ5Q4hNFU=";
const MD5: &str = "md514e61faf28f5eb8ae2b29e1d6d1b1b2b";

/// A pooler whose users have a plain, an MD5, a SCRAM and no secret, in front of a model server;
/// the database's name tells the model what to do.
fn pooler_of(model: &Model, settings: &str) -> io::Result<(Pooler, Files)> {
    let files = Files::new()?;
    let users = format!(
        "\"plain\" \"secret\"\n\"md5\" \"{MD5}\"\n\"scram\" \"{SCRAM}\"\n\"none\" \"\"\n\
         \"postgres\" \"secret\"\n"
    );
    let users = files.write("users", &users)?;
    let entries = format!(
        "forced = host=127.0.0.1 port={0} user=plain password={MD5} dbname=clear\n\
         * = host=127.0.0.1 port={0}",
        model.port
    );
    let settings = format!("auth_file = {users}\nserver_login_retry = 0.1\n{settings}");
    Ok((Pooler::start(program(), &entries, &settings)?, files))
}

fn parameter(peer: &Peer, name: &str) -> String {
    let found = peer.startup.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.clone()).unwrap_or_default()
}

/// Tells the pooler, and by that the client, what it has answered.
fn echo(peer: &mut Peer) -> io::Result<()> {
    let (tag, body) = peer.message()?;
    let text = String::from_utf8_lossy(&body).replace('\0', "|");
    let text = text.chars().filter(|c| !c.is_control()).collect::<String>();
    peer.error(&["SFATAL", "C28000", &format!("M{tag} {text}")])
}

fn question(peer: &mut Peer) -> io::Result<()> {
    match parameter(peer, "database").as_str() {
        "clear" => peer.ask(3, b"")?,
        "md5" => peer.ask(5, b"salt")?,
        "sasl" => peer.ask(10, b"OTHER\0SCRAM-SHA-256\0\0")?,
        "sasl_plus" => peer.ask(10, b"SCRAM-SHA-256-PLUS\0\0")?,
        "kerberos" => peer.ask(2, b"")?,
        other => return Err(io::Error::other(other.to_owned())),
    }
    echo(peer)
}

/// The FATAL that ends a login of this user.
fn end_of(pooler: &Pooler, user: &str, database: &str) -> io::Result<String> {
    let mut raw = Raw::start(pooler.port, &[("user", user), ("database", database)])?;
    Ok(raw.fatal())
}

#[test]
fn every_question_for_every_kind_of_secret() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let model = Model::start(question)?;
    let (pooler, _files) = pooler_of(&model, "query_wait_timeout = 1")?;
    let wrong = "08P01 server login failed: wrong password type";
    let timeout = "08P01 query_wait_timeout";
    let none = "08P01 server login failed: none of the server's SASL authentication mechanisms are \
                supported";
    let md5 = |stored: &str| {
        let response = switchyard_auth::md5::response(stored.as_bytes(), *b"salt");
        format!("28000 p {}|", String::from_utf8_lossy(&response))
    };
    let computed = switchyard_auth::md5::secret(b"plain", b"secret");
    let computed = String::from_utf8_lossy(&computed).into_owned();
    for (user, database, expected) in [
        ("plain", "clear", "28000 p secret|".to_owned()),
        ("md5", "clear", format!("28000 p {MD5}|")),
        ("scram", "clear", format!("28000 p {SCRAM}|")),
        ("none", "clear", "28000 p |".to_owned()),
        // The password of the entry, whoever comes.
        ("scram", "forced", format!("28000 p {MD5}|")),
        ("plain", "md5", md5(&computed)),
        ("md5", "md5", md5(MD5)),
        ("scram", "md5", wrong.to_owned()),
        ("none", "md5", wrong.to_owned()),
        ("md5", "sasl", wrong.to_owned()),
        ("scram", "sasl", wrong.to_owned()),
        ("none", "sasl", wrong.to_owned()),
        ("plain", "sasl_plus", none.to_owned()),
        // Not told to those who wait.
        ("plain", "kerberos", timeout.to_owned()),
    ] {
        assert_eq!(end_of(&pooler, user, database)?, expected, "{user} {database}");
    }
    let first = end_of(&pooler, "plain", "sasl")?;
    assert!(first.starts_with("28000 p SCRAM-SHA-256|"), "{first}");
    assert!(first.contains("n,,n=,r="), "{first}");
    let log = pooler.log()?;
    let scram = "cannot do SCRAM authentication: password is SCRAM secret but client \
                 authentication did not provide SCRAM keys";
    for line in [
        "ERROR S-",
        "cannot do MD5 authentication: wrong password type",
        "cannot do SCRAM authentication: wrong password type",
        scram,
        "unknown/unsupported auth method: 2",
        "closing because: failed to answer authreq (age=",
    ] {
        assert!(log.contains(line), "{line} {log}");
    }
    let told = |line: &&str| line.contains(" S-") && line.contains("closing because: server login");
    assert_eq!(log.lines().find(told), None, "what clients are told is no reason of a server");
    Ok(())
}

/// The SCRAM server of the model: `first` makes its first message of the client's nonce, `last` is
/// its last one.
fn scram(peer: &mut Peer, first: &str, last: &str) -> io::Result<()> {
    peer.ask(10, b"SCRAM-SHA-256\0\0")?;
    let (_, body) = peer.message()?;
    let text = String::from_utf8_lossy(&body).into_owned();
    let nonce = text.rsplit(",r=").next().unwrap_or_default().to_owned();
    peer.ask(11, first.replace("NONCE", &nonce).as_bytes())?;
    peer.message()?;
    peer.ask(12, last.as_bytes())?;
    peer.message().map(drop)
}

#[test]
fn nothing_in_place_of_a_scram_server_does_harm() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let salt = "s=c2FsdHNhbHRzYWx0";
    let long = "x".repeat(60_000);
    let firsts: Vec<(String, String)> = vec![
        (format!("r=NONCE{long},{salt},i=1"), String::new()),
        (format!("r=NONCEx,s={long},i=1"), String::new()),
        (format!("r=NONCEx,{salt},i=99999999999999999999"), String::new()),
        (format!("r=NONCEx,{salt},i=0"), String::new()),
        (format!("r=NONCEx,{salt},i=-1"), String::new()),
        (format!("r=NONCE,{salt},i=1"), String::new()),
        (format!("r=other,{salt},i=1"), String::new()),
        (format!("r=NONCEx,{salt}"), String::new()),
        ("r=NONCEx".into(), String::new()),
        (String::new(), String::new()),
        (long.clone(), String::new()),
        ("\u{1}\u{2},,,===".into(), String::new()),
        (format!("r=NONCEx,{salt},i=1"), "v=AAAA".into()),
        (format!("r=NONCEx,{salt},i=1"), format!("v={long}")),
        (format!("r=NONCEx,{salt},i=1"), "e=other-error".into()),
        (format!("r=NONCEx,{salt},i=1"), String::new()),
        (format!("r=NONCEx,{salt},i=1"), "v=".into()),
    ];
    let count = firsts.len();
    let model = Model::start(move |peer| {
        let index: usize = parameter(peer, "database").parse().unwrap_or(0);
        let (first, last) = firsts.get(index).cloned().unwrap_or_default();
        if index < count { scram(peer, &first, &last) } else { peer.ask(11, b"r=x") }
    })?;
    let settings = "query_wait_timeout = 1\nserver_connect_timeout = 5";
    let (mut pooler, _files) = pooler_of(&model, settings)?;
    for index in 0..=count {
        let found = end_of(&pooler, "plain", &index.to_string())?;
        let expected =
            ["08P01 query_wait_timeout", "08P01 server login failed: invalid server signature"];
        assert!(expected.contains(&found.as_str()), "{index} {found}");
    }
    assert!(pooler.is_running());
    Ok(())
}

#[test]
fn one_refused_login_tells_all_who_wait() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let model = Model::start(|peer| {
        peer.ask(3, b"")?;
        peer.message()?;
        // The test lets the login fail when all wait.
        let file = parameter(peer, "application_name");
        wait_until("the word", || Path::new(&file).exists())?;
        peer.error(&["SFATAL", "C28P01", "Mnot you"])
    })?;
    let files = Files::new()?;
    let word = files.0.path().join("word");
    let entry = format!(
        "db = host=127.0.0.1 port={} pool_size=1 user=app password=x application_name={}",
        model.port,
        word.display()
    );
    let pooler = Pooler::start(program(), &entry, "workers = 1\nserver_login_retry = 60")?;
    let waiting: Vec<_> = (0..5)
        .map(|_| Raw::start(pooler.port, &[("user", "app"), ("database", "db")]))
        .collect::<io::Result<_>>()?;
    wait_until("five who wait", || {
        pooler.console("show pools").is_ok_and(|rows| rows.contains("db|app|0|5|"))
    })?;
    std::fs::write(&word, "")?;
    for mut raw in waiting {
        assert_eq!(raw.fatal(), "28P01 not you");
    }
    assert_eq!(model.accepted(), 1);
    // The server's own line is the last.
    let all = || pooler.log().is_ok_and(|log| log.matches("not you").count() == 12);
    wait_until("the last line", all)?;
    let log = pooler.log()?;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("not you")).collect();
    assert_eq!(lines.len(), 12, "{log}");
    assert!(lines[0].ends_with("server login failed: FATAL not you"), "{log}");
    for pair in lines[1..11].chunks(2) {
        assert!(pair[0].contains(" C-") && pair[0].contains("closing because: not you (age="));
        assert!(pair[1].contains(" C-") && pair[1].ends_with("pooler error: not you"));
    }
    assert!(lines[11].contains(" S-") && lines[11].contains("closing because: not you (age="));
    Ok(())
}

#[test]
fn a_server_that_starts_up_is_waited_for() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let model = Model::start(|peer| match peer.number {
        0 => peer.error(&["SFATAL", "C57P03", "Mthe database system is starting up"]),
        _ => {
            peer.welcome()?;
            peer.serve("up")
        }
    })?;
    let (pooler, _files) = pooler_of(&model, "")?;
    let mut client = Client::connect(pooler.port, "db")?;
    assert_eq!(client.run("select 1")?, ["up"]);
    assert_eq!(model.accepted(), 2);
    let line = "server login failed: FATAL the database system is starting up";
    assert!(pooler.log()?.contains(line));
    Ok(())
}

#[test]
fn errors_of_logins_are_remembered_for_those_who_ask_meanwhile() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let model = Model::start(|peer| match peer.number {
        0 => {
            peer.welcome()?;
            peer.serve("first")
        }
        1 => peer.error(&["SFATAL", "C53300", "Mtoo many of you"]),
        _ => {
            peer.welcome()?;
            peer.serve("later")
        }
    })?;
    let files = Files::new()?;
    drop(files);
    let entry = format!("db = host=127.0.0.1 port={} pool_size=2", model.port);
    let settings = "pool_mode = transaction\nserver_login_retry = 60";
    let pooler = Pooler::start(program(), &entry, settings)?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Client::connect(pooler.port, "db")?);
    }
    assert_eq!(clients[0].run("select 1")?, ["first"]);
    pooler.console("reconnect")?;
    wait_until("end of the server", || {
        pooler.console("show servers").is_ok_and(|rows| !rows.contains("|db|"))
    })?;
    let mut ends = clients.drain(..3).map(|mut client| match client.run("select 1") {
        Ok(rows) => rows.concat(),
        Err(error) => error.to_string(),
    });
    assert_eq!(ends.next().as_deref(), Some("53300 too many of you"));
    let cached = "08P01 server login has been failing, cached error: too many of you \
                  (server_login_retry)";
    assert_eq!(ends.next().as_deref(), Some(cached));
    assert_eq!(ends.next().as_deref(), Some(cached));
    drop(ends);
    assert_eq!(model.accepted(), 2);
    // What has been failing is forgotten with a RECONNECT.
    pooler.console("reconnect")?;
    assert_eq!(clients[0].run("select 1")?, ["later"]);
    Ok(())
}

#[test]
fn errors_of_connect_query_are_told_and_nothing_more() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let model = Model::start(|peer| {
        peer.welcome()?;
        let (tag, body) = peer.message()?;
        assert_eq!((tag, &body[..]), ('Q', &b"select broken\0"[..]));
        peer.row("not for clients")?;
        peer.error(&["SERROR", "C42703", "Mno such thing"])?;
        peer.ready('I')?;
        peer.serve("fine")
    })?;
    let entry = format!("db = host=127.0.0.1 port={} connect_query='select broken'", model.port);
    let pooler = Pooler::start(program(), &entry, "")?;
    let mut client = Client::connect(pooler.port, "db")?;
    assert_eq!(client.run("select 1")?, ["fine"]);
    let line = "S: error while executing exec_on_query: ERROR: no such thing";
    assert!(pooler.log()?.contains(line));
    assert_eq!((model.accepted(), model.errors()), (1, vec![]));
    Ok(())
}

#[test]
fn servers_that_break_the_protocol_end_for_a_reason() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    // In a login, and in a session.
    const LOGIN: [(&str, &[u8]); 5] = [
        ("unknown pkt from server", b"y\0\0\0\x04"),
        ("bad pkt header", b"R\0\0\0\x03"),
        ("broken ParameterStatus packet", b"S\0\0\0\x08name"),
        ("bad cancel key", b"K\0\0\0\x08\0\0\0\x01"),
        ("failed to answer authreq", b"R\0\0\0\x06\0\0"),
    ];
    const SESSION: [(&str, &[u8]); 4] = [
        ("unknown pkt", b"y\0\0\0\x04"),
        ("bad pkt header", b"Z\0\0\0\x03"),
        ("broken ParameterStatus packet", b"S\0\0\0\x08name"),
        ("server conn crashed?", b""),
    ];
    let model = Model::start(|peer| {
        let database = parameter(peer, "database");
        let (when, index) = database.split_once('_').unwrap_or_default();
        let index: usize = index.parse().unwrap_or(0);
        if when == "login" {
            return peer.raw(LOGIN[index].1);
        }
        peer.welcome()?;
        peer.message()?;
        peer.raw(SESSION[index].1)?;
        peer.close()
    })?;
    let (mut pooler, _files) = pooler_of(&model, "query_wait_timeout = 1")?;
    for (index, (reason, _)) in LOGIN.into_iter().enumerate() {
        // Nobody has refused anything: who waits goes on waiting.
        let database = format!("login_{index}");
        assert_eq!(end_of(&pooler, "plain", &database)?, "08P01 query_wait_timeout", "{reason}");
        let line =
            format!("{database}/plain@127.0.0.1:{} closing because: {reason} (age", model.port);
        assert!(pooler.log()?.contains(&line), "{line} {}", pooler.log()?);
    }
    for (index, (reason, _)) in SESSION.into_iter().enumerate() {
        let database = format!("session_{index}");
        let mut client = Client::connect(pooler.port, &database)?;
        let end = client.run("select 1").map_err(|error| error.to_string());
        assert_eq!(end, Err(format!("08P01 {reason}")));
        let log = pooler.log()?;
        let line = |who: &str| log.find(&format!("{who}@127.0.0.1")).is_some();
        assert!(line(&format!("{database}/postgres")), "{log}");
        let at = |what: String| log.find(&what).unwrap_or_else(|| panic!("{what} {log}"));
        let place = format!("{database}/postgres@127.0.0.1:");
        let server = at(format!("{place}{} closing because: {reason} (age", model.port));
        let tail = &log[server + 1..];
        let client = tail.find(&format!("closing because: {reason} (age"));
        let error = tail.find(&format!("pooler error: {reason}"));
        assert!(client.is_some() && client < error, "{log}");
    }
    assert!(pooler.is_running());
    Ok(())
}

#[test]
fn what_an_idle_server_says_is_told_and_ends_it() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let released = Arc::new(AtomicBool::new(false));
    let go_on = Arc::clone(&released);
    let model = Model::start(move |peer| {
        peer.welcome()?;
        loop {
            let (tag, body) = peer.message()?;
            match (tag, body.first()) {
                ('Q', Some(b'p')) => {
                    peer.row("x")?;
                    peer.ready('I')?;
                    // It changes a parameter by itself, which is no harm.
                    peer.send('S', b"TimeZone\0GMT\0")?;
                }
                ('Q', Some(b'n')) => {
                    peer.row("x")?;
                    peer.ready('I')?;
                    // Together with the answer it would be for the client.
                    wait_until("release", || go_on.load(Ordering::SeqCst))?;
                    peer.send('N', b"SNOTICE\0C00000\0Mby the way\0\0")?;
                }
                ('Q', _) => {
                    peer.row(&peer.number.to_string())?;
                    peer.ready('I')?;
                }
                ('X', _) => return Ok(()),
                _ => {}
            }
        }
    })?;
    let entry = format!("db = host=127.0.0.1 port={} pool_size=1", model.port);
    let pooler = Pooler::start(program(), &entry, "pool_mode = transaction")?;
    let mut client = Client::connect(pooler.port, "db")?;
    client.run("parameter")?;
    assert_eq!(client.run("select 1")?, ["0"]);
    client.run("notice")?;
    wait_until("release", || {
        pooler.console("show servers").is_ok_and(|rows| rows.contains("|idle|"))
    })?;
    released.store(true, Ordering::SeqCst);
    let line = "got packet 'N' from server when not linked";
    wait_until("line", || pooler.log().is_ok_and(|log| log.contains(line)))?;
    assert_eq!(client.run("select 1")?, ["1"]);
    let log = pooler.log()?;
    assert!(log.contains("closing because: idle server got dirty (age="), "{log}");
    Ok(())
}

#[test]
fn a_server_that_asks_for_many_rounds_delays_nobody_else() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (asked, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (ask, answer) = (Arc::clone(&asked), Arc::clone(&answered));
    let model = Model::start(move |peer| {
        if parameter(peer, "database") == "good" {
            peer.welcome()?;
            return peer.serve("fine");
        }
        peer.ask(10, b"SCRAM-SHA-256\0\0")?;
        let (_, body) = peer.message()?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let nonce = text.rsplit(",r=").next().unwrap_or_default().to_owned();
        peer.ask(11, format!("r={nonce}x,s=c2FsdHNhbHRzYWx0,i=500000").as_bytes())?;
        ask.store(true, Ordering::SeqCst);
        peer.message()?;
        answer.store(true, Ordering::SeqCst);
        peer.error(&["SFATAL", "C28P01", "Mwrong after all"])
    })?;
    let settings = "workers = 1\nserver_connect_timeout = 300";
    let (pooler, _files) = pooler_of(&model, settings)?;
    let mut good = Client::connect(pooler.port, "good")?;
    let mut slow = Raw::start(pooler.port, &[("user", "plain"), ("database", "slow")])?;
    wait_until("the question", || asked.load(Ordering::SeqCst))?;
    assert_eq!(good.run("select 1")?, ["fine"]);
    assert_eq!(good.run("select 1")?, ["fine"]);
    assert!(!answered.load(Ordering::SeqCst), "the only worker has waited for the rounds");
    assert_eq!(slow.fatal(), "28P01 wrong after all");
    Ok(())
}

#[test]
fn a_real_server_with_many_rounds_lets_us_in() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let postgres = Postgres::start("host all app 127.0.0.1/32 scram-sha-256")?;
    let (salt, rounds) = (b"0123456789abcdef".to_vec(), 20_000);
    let stored = switchyard_auth::scram::keys(b"secret", &salt, rounds).stored(salt, rounds);
    let base64 = |bytes: &[u8]| {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("encode('\\x{digits}'::bytea, 'base64')")
    };
    postgres.sql(&format!(
        "do $$ begin execute format('create role app login password %L', \
         'SCRAM-SHA-256$' || {rounds} || ':' || {} || '$' || {} || ':' || {}); end $$",
        base64(&stored.salt),
        base64(&stored.stored_key),
        base64(&stored.server_key),
    ))?;
    let pooler = pooler(program(), &postgres, "db = SERVER dbname=postgres", "")?;
    let found = pooler.sql("app", "db", "select current_user")?;
    assert_eq!(found.trim(), "app");
    Ok(())
}
