//! First bytes, startup packets and SASL messages, good and bad.

use super::*;
use switchyard_testkit::wait_until;

const APP: [(&str, &str); 2] = [("user", "app"), ("database", "postgres")];

/// What a client sends, piece by piece; the next piece follows an answer to the last.
fn conversations() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let hello = startup(VERSION_3_0, &APP);
    let ssl = [&8u32.to_be_bytes()[..], &80_877_103u32.to_be_bytes()].concat();
    let gss = [&8u32.to_be_bytes()[..], &80_877_104u32.to_be_bytes()].concat();
    let after = |bytes: &[u8]| vec![hello.clone(), bytes.to_vec()];
    let one = |bytes: &[u8]| vec![bytes.to_vec()];
    let behind = |bytes: &[u8]| vec![[bytes, b"x"].concat()];
    let unnamed = |pairs| vec![startup(VERSION_3_0, pairs)];
    vec![
        ("a query first", one(b"Q\0\0\0\x0dselect 1\0")),
        ("a password first", one(b"p\0\0\0\x06x\0")),
        ("high bytes", one(&[0xff; 64])),
        ("zeroes", one(&[0; 64])),
        ("a length of three", one(b"\0\0\0\x03xxxxxxx")),
        ("version 2", vec![startup(2 << 16, &APP)]),
        ("version 4", vec![startup(4 << 16, &APP)]),
        ("no user", unnamed(&[("database", "postgres")])),
        ("an empty user", unnamed(&[("user", ""), ("database", "postgres")])),
        ("an unknown parameter", unnamed(&[("user", "app"), ("geqo", "off")])),
        ("a startup packet twice", vec![[&hello[..], &hello].concat()]),
        ("another startup packet", after(&hello)),
        ("bytes behind an SSLRequest", behind(&ssl)),
        ("bytes behind a GSSENCRequest", behind(&gss)),
        ("requests for encryption", vec![ssl.clone(), ssl, gss, hello.clone(), password(b"x")]),
        ("an empty password", after(&password(b""))),
        ("a wrong password", after(&password(b"md5x"))),
        ("a query in place of a password", after(b"Q\0\0\0\x0dselect 1\0")),
        ("a good-bye in place of a password", after(b"X\0\0\0\x04")),
        ("a length of three in a login", after(b"p\0\0\0\x03")),
        ("a cancel request of nobody", one(b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x01")),
    ]
}

/// Bytes up to the end of the connection, with the salt of an MD5 request blanked.
fn talk(port: u16, pieces: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    let mut raw = Raw::open(port)?;
    let mut answers = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        raw.send(piece)?;
        if index + 1 < pieces.len() {
            let mut some = [0; 4096];
            let count = raw.0.read(&mut some)?;
            answers.extend_from_slice(&some[..count]);
        }
    }
    answers.extend(raw.rest());
    let salt = answers.windows(9).position(|part| part == b"R\0\0\0\x0c\0\0\0\x05");
    if let Some(at) = salt {
        answers[at + 9..at + 13].fill(0);
    }
    Ok(answers)
}

#[test]
fn first_bytes_are_answered_as_pgbouncer_does() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let postgres = Postgres::start("")?;
    let start = |program: &Path| {
        pooler(program, &postgres, "postgres = SERVER", "auth_type = md5\nclient_login_timeout = 5")
    };
    let (mut ours, theirs) = (start(program())?, start(Path::new("/usr/sbin/pgbouncer"))?);
    for (name, pieces) in conversations() {
        let (our, their) = (talk(ours.port, &pieces)?, talk(theirs.port, &pieces)?);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(text(&our), text(&their), "{name}");
    }
    // The causes in the log are the same, too, in the same order.
    let causes = |pooler: &Pooler| -> io::Result<Vec<String>> {
        let log = pooler.log()?;
        let cause = |line: &str| {
            let cause = line.split_once("closing because: ").or(line.split_once("pooler error: "));
            cause.map(|(_, text)| text.split(" (age=").next().unwrap_or_default().to_owned())
        };
        Ok(log.lines().filter_map(cause).collect())
    };
    assert_eq!(causes(&ours)?, causes(&theirs)?);
    assert!(ours.is_running());
    Ok(())
}

#[test]
fn startup_packets_of_every_size_and_version() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let long = "x".repeat(65_530);
    let files = Files::new()?;
    let users = files.write("users", &format!("\"app\" \"{long}\"\n\"postgres\" \"s\"\n"))?;
    let settings = format!("auth_type = plain\nauth_file = {users}\napplication_name_add_host = 1");
    let (_postgres, pooler) = stage("postgres = SERVER user=postgres", &settings)?;
    // 64 KiB in pieces of one byte, then the longest password in two.
    let mut pairs = vec![("user", "app"), ("database", "postgres")];
    let name = "n".repeat(65_536 - startup(VERSION_3_0, &pairs).len() - 18);
    pairs.push(("application_name", &name));
    let bytes = startup(VERSION_3_0, &pairs);
    assert_eq!(bytes.len(), 65_536);
    let mut raw = Raw::open(pooler.port)?;
    for byte in &bytes {
        raw.send(&[*byte])?;
    }
    assert_eq!(raw.message()?, (b'R', vec![0, 0, 0, 3]));
    let answer = password(long.as_bytes());
    raw.send(&answer[..40_000])?;
    raw.send(&answer[40_000..])?;
    let welcome = raw.welcome()?;
    let named = welcome.iter().any(|(tag, body)| {
        *tag == b'S' && body.starts_with(b"application_name\0nnn") && body.len() > 65_000
    });
    assert!(named);
    let mut raw = Raw::start(pooler.port, &APP)?;
    raw.message()?;
    raw.send(&password(format!("{long}x").as_bytes()))?;
    assert_eq!(raw.fatal(), "08P01 password authentication failed");
    for (version, extra, expected) in [
        (0, None, None),
        (1, None, None),
        (2, None, None),
        (3, None, Some(&b"\0\x03\0\x02\0\0\0\0"[..])),
        // A version above the one asked for would end libpq's login.
        (0, Some(("_pq_.x", "1")), Some(b"\0\x03\0\0\0\0\0\x01_pq_.x\0")),
        (9999, Some(("_pq_.x", "1")), Some(b"\0\x03\0\x02\0\0\0\x01_pq_.x\0")),
    ] {
        let pairs: Vec<_> = APP.into_iter().chain(extra).collect();
        let mut raw = Raw::open(pooler.port)?;
        raw.send(&startup(VERSION_3_0 + version, &pairs))?;
        if let Some(expected) = expected {
            assert_eq!(raw.message()?, (b'v', expected.to_vec()));
        }
        assert_eq!(raw.message()?, (b'R', vec![0, 0, 0, 3]), "{version}");
        raw.send(&answer)?;
        assert_eq!(raw.welcome()?.iter().filter(|(tag, _)| *tag == b'v').count(), 0);
    }
    Ok(())
}

#[test]
fn options_and_parameters_follow_the_settings() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let settings = "ignore_startup_parameters = extra_float_digits";
    let (_postgres, pooler) = stage("postgres = SERVER", settings)?;
    let show = |options: &str, sql: &str| {
        let words = format!("user=postgres dbname=postgres options='{options}'");
        psql(pooler.port, &words, "", sql)
    };
    let style = show(r"-c DateStyle=SQL,\\ DMY", "show datestyle");
    assert_eq!(style, Ok("SQL, DMY".into()));
    let options = "--extra_float_digits=3 -cTimeZone=UTC -c IntervalStyle=iso_8601";
    let found = show(options, "select current_setting('timezone'), interval '1 day'");
    assert_eq!(found, Ok("UTC|P1D".into()));
    refused(show("-c geqo=off", ""), "unsupported startup parameter in options: geqo");
    refused(show("-d 5", ""), "only '-c config=val' and '--config=val' are allowed");
    assert!(pooler.log()?.contains("unsupported startup parameter in options: geqo=off"));
    Ok(())
}

#[test]
fn parameters_that_mean_the_same_are_reported_as_the_server_spells_them() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) = stage("postgres = SERVER", "verbose = 1\npool_mode = transaction")?;
    for (sent, reported) in [("'utf-8'", "UTF8"), ("latin1", "latin1"), ("utf8", "UTF8")] {
        let names = [("user", "postgres"), ("database", "postgres"), ("client_encoding", sent)];
        let mut client = switchyard_testkit::Raw::connect(pooler.port, &names)?;
        let status = format!("client_encoding\0{reported}\0");
        let told = |(tag, body): &(char, Vec<u8>)| *tag == 'S' && body == status.as_bytes();
        assert_eq!(client.greeting.iter().filter(|message| told(message)).count(), 1, "{sent}");
        let answer = client.query("show client_encoding")?;
        let found = switchyard_testkit::raw::rows(&answer);
        assert_eq!(found, [reported.to_uppercase()], "{sent}");
    }
    assert_eq!(pooler.log()?.matches("SET client_encoding=").count(), 2, "there and back");
    Ok(())
}

#[test]
fn oversized_and_malformed_sasl_messages_end_one_login() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, mut pooler) =
        stage("postgres = SERVER", "auth_type = scram-sha-256\nscram_iterations = 10")?;
    let failed = "08P01 SASL authentication failed";
    let ask = |message: &[u8]| -> io::Result<Raw> {
        let mut raw = Raw::start(pooler.port, &APP)?;
        assert_eq!(raw.message()?.0, b'R');
        raw.send(message)?;
        Ok(raw)
    };
    for len in [-1, 0, 3, 1000, i32::MAX] {
        let body = [b"SCRAM-SHA-256\0", &len.to_be_bytes()[..], b"n,,n=,r=abc"].concat();
        let message = [b"p", &(body.len() as u32 + 4).to_be_bytes()[..], &body].concat();
        assert_eq!(ask(&message)?.fatal(), failed, "{len}");
    }
    assert_eq!(ask(&sasl_initial(b"n,,n=,r="))?.fatal(), failed);
    let text = "08P01 bad packet header: '70000f4240534352'";
    assert_eq!(ask(b"p\0\x0f\x42\x40SCRAM-SHA-256\0")?.fatal(), text);
    // A nonce of 60,000 characters is answered, and so is a proof of as many.
    let nonce = "a".repeat(60_000);
    let mut raw = ask(&sasl_initial(format!("n,,n=,r={nonce}").as_bytes()))?;
    let (tag, body) = raw.message()?;
    assert_eq!((tag, body.starts_with(b"\0\0\0\x0br=aaaa")), (b'R', true));
    let mut last = Vec::new();
    let message = format!("c=biws,r={nonce},p={nonce}");
    build::sasl_response(&mut last, message.as_bytes());
    raw.send(&last)?;
    assert_eq!(raw.fatal(), failed);
    let log = pooler.log()?;
    for line in [
        "malformed SCRAM message (attribute \"r\" expected)",
        "malformed SCRAM message (malformed proof in client-final-message)",
    ] {
        assert!(log.contains(line), "{line}");
    }
    assert!(pooler.is_running());
    assert_eq!(psql(pooler.port, "user=app dbname=postgres", "secret", "select 1"), {
        Ok("1".into())
    });
    Ok(())
}

#[test]
fn nobody_can_tell_by_asking_which_users_exist() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (_postgres, pooler) =
        stage("postgres = SERVER", "auth_type = scram-sha-256\nscram_iterations = 77")?;
    let salt = |user: &str| -> io::Result<String> {
        let mut raw = Raw::start(pooler.port, &[("user", user), ("database", "postgres")])?;
        raw.message()?;
        raw.send(&sasl_initial(b"n,,n=,r=abc"))?;
        let text = String::from_utf8_lossy(&raw.message()?.1).into_owned();
        Ok(text.split(",s=").nth(1).unwrap_or_default().to_owned())
    };
    let (known, unknown) = (salt("app")?, salt("nobody")?);
    assert_eq!((salt("app")?, salt("nobody")?), (known.clone(), unknown.clone()));
    assert_ne!(salt("somebody")?, unknown);
    assert_eq!(known.len(), unknown.len());
    assert!(known.ends_with(",i=77") && unknown.ends_with(",i=77"), "{known} {unknown}");
    wait_until("line", || pooler.log().is_ok_and(|log| log.contains("no such user: nobody")))?;
    Ok(())
}
