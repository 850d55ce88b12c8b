//! TLS with clients and servers: real PostgreSQL, psql, openssl's s_client, certificates as
//! operators make them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use switchyard_testkit::{Certificates, KeyKind, Pooler, Postgres, programs, run, wait_until};

use super::{program, wanted};

/// Runs SQL through psql with these words of a connection string.
fn psql(pooler: &Pooler, words: &str, sql: &str) -> io::Result<String> {
    let conninfo = format!("host=127.0.0.1 port={} dbname=postgres {words}", pooler.port);
    let mut command = Command::new(programs()?.join("psql"));
    command.env("PGPASSWORD", "secret").env("HOME", "/nonexistent");
    run(command.args(["-X", "-A", "-t", &conninfo, "-c", sql])).map(|text| text.trim().to_owned())
}

fn fails(result: io::Result<String>, text: &str) {
    let error = result.map_err(|error| error.to_string());
    assert!(error.as_ref().is_err_and(|error| error.contains(text)), "{text}: {error:?}");
}

struct Stage {
    certificates: Certificates,
    postgres: Postgres,
    databases: String,
}

fn stage() -> io::Result<Stage> {
    let certificates = Certificates::new()?;
    certificates.authority("root")?;
    certificates.issue("root", "server", "localhost", None)?;
    certificates.issue("root", "app", "app", None)?;
    let postgres = Postgres::start("")?;
    postgres.sql("create role app login password 'secret'")?;
    let databases = format!(
        "postgres = host=127.0.0.1 port={0}\nnamed = host=localhost port={0} dbname=postgres\n\
         unix = host={1} port={0} dbname=postgres",
        postgres.port,
        postgres.socket_dir().display()
    );
    Ok(Stage { certificates, postgres, databases })
}

impl Stage {
    fn pooler(&self, settings: &str) -> io::Result<Pooler> {
        Pooler::start(program(), &self.databases, settings)
    }

    fn client_side(&self, mode: &str, name: &str) -> String {
        format!(
            "client_tls_sslmode = {mode}\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\n\
             client_tls_ca_file = {}\nserver_tls_sslmode = disable\n",
            self.certificates.text(&format!("{name}.crt")),
            self.certificates.text(&format!("{name}.key")),
            self.certificates.text("root.crt"),
        )
    }
}

#[test]
fn clients_get_tls_as_they_and_the_settings_want() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let stage = stage()?;
    stage.certificates.self_signed("ec", KeyKind::Ecdsa)?;
    stage.certificates.self_signed("rsa", KeyKind::Rsa)?;
    let big = "select string_agg(i::text, ' ') from generate_series(1, 300000) i";
    for name in ["server", "ec", "rsa"] {
        let pooler = stage.pooler(&stage.client_side("prefer", name))?;
        let plain = psql(&pooler, "user=app sslmode=disable", big)?;
        assert!(plain.len() > 1_900_000);
        assert!(psql(&pooler, "user=app sslmode=require", big)? == plain);
        let versions = ["TLSv1.2", "TLSv1.3"];
        for version in versions {
            let words = format!(
                "user=app sslmode=require ssl_min_protocol_version={version} \
                 ssl_max_protocol_version={version}"
            );
            assert!(psql(&pooler, &words, big)? == plain, "{name} {version}");
        }
        let log = pooler.log()?;
        assert!(log.contains(" tls=no "), "{log}");
        assert!(log.contains(" tls=TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH=X25519 "), "{log}");
        let kind = if name == "ec" { "ECDSA" } else { "RSA" };
        let old = format!(" tls=TLSv1.2/ECDHE-{kind}-AES256-GCM-SHA384/ECDH=X25519 ");
        assert!(log.contains(&old), "{log}");
    }
    let pooler = stage.pooler(&stage.client_side("require", "server"))?;
    fails(psql(&pooler, "user=app sslmode=disable", "select 1"), "FATAL:  SSL required");
    let root = stage.certificates.text("root.crt");
    let verified = format!("user=app sslmode=verify-full sslrootcert={root} host=localhost");
    let found = psql(&pooler, &format!("{verified} hostaddr=127.0.0.1"), "select 1")?;
    assert_eq!(found, "1");
    let words = "user=postgres dbname=pgbouncer sslmode=require";
    let rows = psql(&pooler, words, "show clients")?;
    assert!(rows.contains("|TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH=X25519|"), "{rows}");
    let socket = pooler.ini();
    let directory = socket.parent().unwrap_or(&socket).display();
    let found = psql(&pooler, &format!("user=app host={directory} sslmode=prefer"), "select 1")?;
    assert_eq!(found, "1");
    Ok(())
}

#[test]
fn clients_show_certificates() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let stage = stage()?;
    let certificates = &stage.certificates;
    assert!(certificates.show("app")?.contains("Version: 1 "));
    certificates.issue("root", "modern", "app", Some("extendedKeyUsage=clientAuth"))?;
    certificates.issue("root", "wrong", "app", Some("extendedKeyUsage=serverAuth"))?;
    certificates.self_signed("stranger", KeyKind::Rsa)?;
    for mode in ["verify-ca", "verify-full"] {
        let pooler = stage.pooler(&stage.client_side(mode, "server"))?;
        let with = |name: &str| {
            let (crt, key) = (format!("{name}.crt"), format!("{name}.key"));
            let words = format!(
                "user=app sslmode=require sslcert={} sslkey={}",
                certificates.text(&crt),
                certificates.text(&key)
            );
            psql(&pooler, &words, "select current_user")
        };
        assert_eq!(with("app")?, "app");
        assert_eq!(with("modern")?, "app");
        fails(with("stranger"), "alert unknown ca");
        fails(with("wrong"), "alert");
        fails(psql(&pooler, "user=app sslmode=require", "select 1"), "certificate required");
        let log = pooler.log()?;
        let line = "WARNING C-";
        assert!(log.contains(line), "{log}");
        assert!(log.contains("TLS handshake error: handshake failed: certificate verify failed"));
    }
    Ok(())
}

#[test]
fn a_certificate_logs_its_user_in() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let stage = stage()?;
    let names = "subjectAltName=DNS:other,DNS:app";
    stage.certificates.issue("root", "named", "nobody", Some(names))?;
    stage.certificates.issue("root", "wrong", "app", Some("subjectAltName=DNS:postgres"))?;
    let pooler =
        stage.pooler(&format!("{}auth_type = cert", stage.client_side("verify-full", "server")))?;
    let with = |name: &str, user: &str| {
        let (crt, key) = (format!("{name}.crt"), format!("{name}.key"));
        let (crt, key) = (stage.certificates.text(&crt), stage.certificates.text(&key));
        let words = format!("user={user} sslmode=require sslcert={crt} sslkey={key}");
        psql(&pooler, &words, "select current_user")
    };
    // A name of version 1, which stands in the subject only, and names of version 3.
    assert_eq!(with("app", "app")?, "app");
    assert_eq!(with("named", "app")?, "app");
    fails(with("app", "postgres"), "certificate authentication failed");
    fails(with("wrong", "app"), "certificate authentication failed");
    assert!(pooler.log()?.contains("TLS certificate name mismatch"));
    Ok(())
}

#[test]
fn scram_is_bound_to_the_connection() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let certificates = Certificates::new()?;
    certificates.self_signed("rsa", KeyKind::Rsa)?;
    certificates.self_signed("ecdsa", KeyKind::Ecdsa)?;
    let postgres = Postgres::start("hostssl all app 127.0.0.1/32 scram-sha-256")?;
    postgres.sql("create role app login password 'secret'")?;
    let databases = format!("postgres = host=127.0.0.1 port={}", postgres.port);
    for name in ["rsa", "ecdsa"] {
        postgres.use_tls(&certificates, name, None)?;
        let settings = format!(
            "auth_type = scram-sha-256\nserver_tls_sslmode = require\n\
             client_tls_sslmode = allow\nclient_tls_cert_file = {}\nclient_tls_key_file = {}",
            certificates.text(&format!("{name}.crt")),
            certificates.text(&format!("{name}.key"))
        );
        let pooler = Pooler::start(program(), &databases, &settings)?;
        for binding in ["require", "prefer", "disable"] {
            let words = format!("user=app sslmode=require channel_binding={binding}");
            assert_eq!(psql(&pooler, &words, "select current_user")?, "app", "{binding}");
        }
        let plain = "user=app sslmode=disable channel_binding=prefer";
        assert_eq!(psql(&pooler, plain, "select 1")?, "1");
        let plain = "user=app sslmode=disable channel_binding=require";
        fails(psql(&pooler, plain, "select 1"), "channel binding");
    }
    Ok(())
}

#[test]
fn servers_are_asked_for_tls() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let stage = stage()?;
    let question = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let plain = stage.pooler("")?;
    assert_eq!(psql(&plain, "user=app", question)?, "f");
    let strict = stage.pooler("server_tls_sslmode = require\nserver_login_retry = 0")?;
    let mut waiting = strict.session("app", "postgres")?;
    wait_until("refusal", || strict.log().is_ok_and(|log| log.contains("server refused SSL")))?;
    assert_eq!(psql(&plain, "user=app dbname=unix", question)?, "f");
    stage.postgres.use_tls(&stage.certificates, "server", Some("root"))?;
    assert_eq!(waiting.run(question)?, "t");
    let log = strict.log()?;
    assert!(log.contains("SSL established: TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH="), "{log}");
    let rows = strict.console("show servers")?;
    assert!(rows.contains("|TLSv1.3/TLS_AES_256_GCM_SHA384/ECDH="), "{rows}");
    let root = stage.certificates.text("root.crt");
    let ca =
        stage.pooler(&format!("server_tls_sslmode = verify-ca\nserver_tls_ca_file = {root}"))?;
    assert_eq!(psql(&ca, "user=app", question)?, "t");
    let settings = format!(
        "server_tls_sslmode = verify-full\nserver_tls_ca_file = {root}\nserver_login_retry = 0\n\
         client_login_timeout = 2\nserver_tls_cert_file = {}\nserver_tls_key_file = {}",
        stage.certificates.text("app.crt"),
        stage.certificates.text("app.key"),
    );
    let full = stage.pooler(&settings)?;
    assert_eq!(psql(&full, "user=app dbname=named", question)?, "t");
    let subject = "select client_dn from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(psql(&full, "user=app dbname=named", subject)?, "/CN=app");
    fails(psql(&full, "user=app", question), "client_login_timeout (server down)");
    let line = "TLS handshake error: handshake failed: certificate verify failed: \
                name \"127.0.0.1\" not present in server certificate";
    assert!(full.log()?.contains(line), "{}", full.log()?);
    // Another authority, and the server's own certificate as the authority.
    stage.certificates.self_signed("localhost", KeyKind::Rsa)?;
    let own = stage.certificates.text("localhost.crt");
    let settings = format!(
        "server_tls_sslmode = verify-full\nserver_tls_ca_file = {own}\nserver_login_retry = 0\n\
         client_login_timeout = 2"
    );
    let other = stage.pooler(&settings)?;
    fails(psql(&other, "user=app dbname=named", question), "client_login_timeout (server down)");
    assert!(other.log()?.contains("certificate verify failed"));
    stage.postgres.use_tls(&stage.certificates, "localhost", None)?;
    let found = || psql(&other, "user=app dbname=named", question).is_ok_and(|found| found == "t");
    wait_until("the new certificate", found)
}

#[test]
fn cancels_travel_encrypted() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let stage = stage()?;
    stage.postgres.use_tls(&stage.certificates, "server", None)?;
    stage.postgres.sql("alter system set log_connections = on")?;
    let settings = format!(
        "{}\nserver_tls_sslmode = require",
        stage.client_side("require", "server").replace("server_tls_sslmode = disable\n", "")
    );
    let pooler = stage.pooler(&settings)?;
    let mut slow = Command::new(programs()?.join("psql"));
    let conninfo =
        format!("host=127.0.0.1 port={} dbname=postgres user=app sslmode=require", pooler.port);
    let mut child = slow.args(["-X", &conninfo, "-c", "select pg_sleep(60)"]).spawn()?;
    let running = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)' \
                   and state = 'active' and usename = 'app'";
    wait_until("the query", || stage.postgres.sql(running).is_ok_and(|n| n.trim() == "1"))?;
    // psql sends a cancel request when it is interrupted; that of version 15 is not encrypted.
    run(Command::new("kill").args(["-INT", &child.id().to_string()]))?;
    let status = child.wait()?;
    assert!(!status.success());
    assert_eq!(stage.postgres.sql(running)?.trim(), "0");
    let sent = || pooler.log().is_ok_and(|log| log.contains("successfully sent cancel request"));
    wait_until("the end of the cancel", sent)
}

#[test]
fn settings_change_while_running() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let stage = stage()?;
    stage.postgres.use_tls(&stage.certificates, "server", None)?;
    let pooler = stage.pooler("client_tls_sslmode = disable\npool_mode = transaction")?;
    fails(psql(&pooler, "user=app sslmode=require", "select 1"), "server does not support SSL");
    let mut session = pooler.session("app", "postgres")?;
    let pid = session.run("select pg_backend_pid()")?;
    let notice = "TLS settings could not be applied, still using old configuration";
    let console = |sql: &str| {
        let mut command = Command::new(programs()?.join("psql"));
        let conninfo =
            format!("host=127.0.0.1 port={} dbname=pgbouncer user=postgres", pooler.port);
        let output = command.args(["-X", &conninfo, "-c", sql]).output()?;
        let both = [output.stdout, output.stderr].concat();
        io::Result::Ok(String::from_utf8_lossy(&both).into_owned())
    };
    let said = console("set client_tls_sslmode = 'require'")?;
    assert!(said.contains(notice) && said.contains("SET"), "{said}");
    let line = "ERROR To allow TLS connections from clients, client_tls_key_file and \
                client_tls_cert_file must be set.";
    assert!(pooler.log()?.contains(line));
    assert_eq!(psql(&pooler, "user=app sslmode=disable", "select 1")?, "1");
    // The file is read again: everything about clients changes, servers stay.
    let ini = std::fs::read_to_string(pooler.ini())?;
    let clients =
        stage.client_side("require", "server").replace("server_tls_sslmode = disable", "");
    std::fs::write(pooler.ini(), ini.replace("client_tls_sslmode = disable\n", &clients))?;
    assert!(!console("reload")?.contains("RELOAD failed"));
    assert_eq!(psql(&pooler, "user=app sslmode=require", "select 1")?, "1");
    assert_eq!(session.run("select pg_backend_pid()")?, pid);
    fails(psql(&pooler, "user=app sslmode=disable", "select 1"), "SSL required");
    let secure = |sql: &str| psql(&pooler, "user=postgres dbname=pgbouncer sslmode=require", sql);
    // A change of the servers' side gives new ones, an unusable one does not.
    secure("set server_tls_sslmode = 'require'")?;
    let ssl = "select pid from pg_stat_ssl where ssl and pid = pg_backend_pid()";
    let mut second = String::new();
    wait_until("an encrypted server", || {
        second = session.run(ssl).unwrap_or_default();
        !second.is_empty()
    })?;
    assert_ne!(second, pid);
    secure("set server_tls_ciphers = 'nonsense'")?;
    assert!(pooler.log()?.contains("ERROR invalid server_tls_ciphers: nonsense"));
    assert_eq!(session.run(ssl)?, second);
    std::fs::remove_file(stage.certificates.path("server.key"))?;
    fails(secure("reload"), "RELOAD failed, see logs for additional details");
    let log = pooler.log()?;
    assert!(
        log.contains("ERROR TLS configuration could not be reloaded, keeping old configuration")
    );
    assert!(log.contains("ERROR TLS setup failed: client_tls_key_file"), "{log}");
    assert_eq!(psql(&pooler, "user=app sslmode=require", "select 1")?, "1");
    Ok(())
}

#[test]
fn new_contents_of_files_count_when_asked_for() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let stage = stage()?;
    stage.postgres.use_tls(&stage.certificates, "server", None)?;
    stage.certificates.self_signed("other", KeyKind::Rsa)?;
    for asked in [false, true] {
        let root = stage.certificates.text("root.crt");
        let settings = format!(
            "pool_mode = transaction\nserver_tls_sslmode = verify-ca\nserver_tls_ca_file = {root}\n\
             tls_reload_contents = {}",
            u8::from(asked)
        );
        let pooler = stage.pooler(&settings)?;
        let mut session = pooler.session("app", "postgres")?;
        let pid = session.run("select pg_backend_pid()")?;
        pooler.console("reload")?;
        assert_eq!(session.run("select pg_backend_pid()")?, pid);
        let old = std::fs::read_to_string(&root)?;
        let more = std::fs::read_to_string(stage.certificates.path("other.crt"))?;
        std::fs::write(&root, format!("{old}{more}"))?;
        pooler.console("reload")?;
        assert_eq!(session.run("select pg_backend_pid()")? != pid, asked);
    }
    Ok(())
}

#[test]
fn bad_settings_end_the_start() -> io::Result<()> {
    let certificates = Certificates::new()?;
    certificates.write("a.ini", "[databases]\n[pgbouncer]\nclient_tls_sslmode = allow\n")?;
    let output = Command::new(program()).arg(certificates.path("a.ini")).output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("ERROR To allow TLS connections from clients"), "{errors}");
    assert!(errors.contains("FATAL TLS setup failed"), "{errors}");
    Ok(())
}

/// An SSLRequest.
const REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];

/// Sends bytes and answers all that comes back up to the end.
fn say(port: u16, pieces: &[&[u8]]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let mut answer = Vec::new();
    for piece in pieces {
        if stream.write_all(piece).is_err() {
            break;
        }
        if *piece == REQUEST {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            answer.push(byte[0]);
        }
    }
    // The other side may have reset the connection.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut answer);
    Ok(answer)
}

#[test]
fn nothing_in_place_of_a_handshake_does_harm() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let stage = stage()?;
    let pooler = stage.pooler(&stage.client_side("prefer", "server"))?;
    let port = pooler.port;
    // A request with bytes behind it is refused in the clear.
    let behind = [REQUEST, &[0; 4]].concat();
    let answer = say(port, &[&behind])?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("received unencrypted data after SSL request"), "{answer}");
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize
    };
    let hello: &[u8] = &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    for round in 0..200 {
        let junk: Vec<u8> = (0..random() % 600).map(|_| random() as u8).collect();
        let mut greeting = hello.to_vec();
        greeting.extend_from_slice(&junk);
        if round % 2 == 0 {
            let index = random() % greeting.len();
            greeting[index] ^= 1 << (random() % 8);
        }
        match round % 4 {
            0 => assert_eq!(say(port, &[REQUEST, &greeting])?.first(), Some(&b'S')),
            1 => drop(say(port, &[&greeting])?),
            2 => drop(say(port, &[REQUEST, &junk])?),
            _ => drop(say(port, &[&[0x16], &junk])?),
        }
    }
    assert_eq!(psql(&pooler, "user=app sslmode=require", "select 1")?, "1");
    wait_until("the end of all of them", || {
        pooler.console("show clients").is_ok_and(|rows| rows.lines().count() == 1)
    })
}

#[test]
fn openssl_greets_at_once() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let stage = stage()?;
    let pooler = stage.pooler(&stage.client_side("require", "server"))?;
    let at = format!("127.0.0.1:{}", pooler.port);
    let talk = |arguments: &[&str], input: &[u8]| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &at]).args(arguments);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::null()).spawn()?;
        // It stays open: at its end the program may leave before it has sent anything.
        let mut stdin = child.stdin.take();
        stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(input))?;
        let output = child.wait_with_output()?;
        drop(stdin);
        io::Result::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let shown = talk(&["-alpn", "postgresql"], b"Q\n")?;
    assert!(shown.contains("ALPN protocol: postgresql"), "{shown}");
    let shown = talk(&["-alpn", "http/1.1"], b"Q\n")?;
    assert!(shown.contains("no peer certificate available"), "{shown}");
    let shown = talk(&["-starttls", "postgres"], b"Q\n")?;
    assert!(shown.contains("Cipher is TLS_AES_256_GCM_SHA384"), "{shown}");
    talk(&["-alpn", "postgresql", "-quiet"], REQUEST)?;
    let inside =
        || pooler.log().is_ok_and(|log| log.contains("closing because: SSL req inside SSL"));
    wait_until("the refusal", inside)
}

#[test]
fn a_cluster_is_watched_and_followed_encrypted() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let certificates = Certificates::new()?;
    certificates.authority("root")?;
    certificates.issue("root", "node", "elsewhere", Some("subjectAltName=IP:127.0.0.1"))?;
    let first = Postgres::start("")?;
    // The standby begins as a copy, certificate and settings included.
    first.use_tls(&certificates, "node", None)?;
    let second = first.standby()?;
    first.sql(&format!(
        "create table nodes (endpoint text, port int); \
         insert into nodes values ('127.0.0.1', {}), ('127.0.0.1', {})",
        first.port, second.port
    ))?;
    let databases = format!(
        "app = host=127.0.0.1 port={} dbname=postgres user=postgres \
         topology_query='select endpoint, port from nodes'",
        first.port
    );
    let settings = format!(
        "pool_mode = transaction\nserver_tls_sslmode = verify-full\nserver_tls_ca_file = {}",
        certificates.text("root.crt")
    );
    let pooler = Pooler::start(program(), &databases, &settings)?;
    wait_until("a reader", || pooler.log().is_ok_and(|log| log.contains("up as reader")))?;
    let probes = "select bool_and(ssl), count(*) from pg_stat_ssl join pg_stat_activity \
                  using (pid) where application_name = 'switchyard-probe'";
    // One for the questions, one for the list of nodes.
    for node in [&first, &second] {
        let both = || node.sql(probes).is_ok_and(|row| ["t|1", "t|2"].contains(&row.trim()));
        wait_until("probes", both)?;
    }
    let mut session = pooler.session("postgres", "app")?;
    let here = "select inet_server_port(), ssl from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(session.run(here)?, format!("{}|t", first.port));
    first.stop("immediate")?;
    second.promote()?;
    let mut found = String::new();
    wait_until("the new writer", || {
        found = session.run(here).unwrap_or_default();
        !found.is_empty()
    })?;
    assert_eq!(found, format!("{}|t", second.port));
    Ok(())
}

#[test]
fn a_current_libpq_begins_both_ways() -> io::Result<()> {
    let Some(drivers) = std::env::var_os("SWITCHYARD_DRIVERS") else { return Ok(()) };
    let stage = stage()?;
    stage.certificates.issue("root", "node", "x", Some("subjectAltName=DNS:localhost"))?;
    let settings = format!("{}auth_type = scram-sha-256", stage.client_side("require", "node"));
    let pooler = stage.pooler(&settings)?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/drivers/tls_with_psycopg3.py");
    let python = std::path::Path::new(&drivers).join("venv/bin/python");
    let mut command = Command::new(python);
    command.arg(script).arg(pooler.port.to_string()).arg(stage.certificates.path("root.crt"));
    run(&mut command).map(drop)
}
