//! Startup packets and what is made of them.

use proptest::prelude::*;
use switchyard_wire::build;
use switchyard_wire::startup::{First, STARTUP_MAX, VERSION_3_0, first};

use super::*;

fn packet(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in pairs {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    body
}

fn answer(
    version: u32,
    body: &[u8],
    ignore: &str,
    suffix: Option<&str>,
) -> Result<StartupRequest, StartupError> {
    let tracked = Tracked::new(&["search_path".into()]);
    let ignore: Vec<String> = ignore.split(' ').map(String::from).collect();
    read(version, body, StartupRules { tracked: &tracked, ignore: &ignore, suffix })
}

fn check(pairs: &[(&str, &str)], expected: Result<&str, &str>) {
    let body = packet(pairs);
    let found = answer(VERSION_3_0, &body, "extra_float_digits", Some(" - here"));
    let found = found.map(|request| {
        let name = request.params.value(APPLICATION_NAME).map(text).unwrap_or_default();
        format!("{}/{} {name} {:?}", request.database, request.user, request.replication)
    });
    assert_eq!(found.as_deref().map_err(|error| error.fatal.as_str()), expected);
}

#[test]
fn packets() {
    check(&[("user", "u")], Ok("u/u app - here None"));
    check(&[("user", "u"), ("database", "")], Ok("u/u app - here None"));
    check(&[("user", "u"), ("database", "d"), ("application_name", "x")], {
        Ok("d/u x - here None")
    });
    check(&[("user", "u"), ("extra_float_digits", "3")], Ok("u/u app - here None"));
    check(&[("user", "u"), ("geqo", "off")], Err("unsupported startup parameter: geqo"));
    check(&[("database", "d")], Err("no username supplied"));
    check(&[("user", ""), ("database", "d")], Err("no username supplied"));
}

#[test]
fn replication_words() {
    for (word, expected) in [
        ("database", "Logical"),
        ("on", "Physical"),
        ("YES", "Physical"),
        ("t", "Physical"),
        ("1", "Physical"),
        ("of", "None"),
        ("n", "None"),
        ("0", "None"),
    ] {
        check(&[("user", "u"), ("replication", word)], Ok(&format!("u/u app - here {expected}")));
    }
    for word in ["o", "maybe", "", "2"] {
        let text = format!("invalid value for parameter \"replication\": \"{word}\"");
        check(&[("user", "u"), ("replication", word)], Err(&text));
    }
}

#[test]
fn options_are_words_of_settings() {
    let refused = "unsupported options startup parameter: \
                   only '-c config=val' and '--config=val' are allowed";
    let name = |options| [("user", "u"), ("options", options)];
    check(&name(r"-c application_name=a\ b"), Ok("u/u a b - here None"));
    check(&name(r"--application_name=a -capplication_name=b\\c"), Ok(r"u/u b\c - here None"));
    check(&name(r" -c  extra_float_digits=1  "), Ok("u/u app - here None"));
    check(&name("--x=1"), Err("unsupported startup parameter in options: x"));
    for bad in ["-d 5", "-c", "-c x", "--x", "x=1"] {
        check(&name(bad), Err(refused));
    }
    let packet = packet(&name("-x -c geqo=off"));
    assert!(answer(VERSION_3_0, &packet, "options", None).is_ok());
    let error = answer(VERSION_3_0, &packet, "", None).expect_err("an unknown form");
    let warning = "unsupported startup parameter: options=-x -c geqo=off";
    assert_eq!(error.warning.as_deref(), Some(warning));
}

#[test]
fn options_of_replication_connections_pass_unread() {
    let body = packet(&[("options", "-x y"), ("user", "u"), ("replication", "database")]);
    let request = answer(VERSION_3_0, &body, "", None).expect("a startup packet");
    assert_eq!(request.options, b"-x y");
}

#[test]
fn versions() {
    let plain = packet(&[("user", "u")]);
    let asking = packet(&[("user", "u"), ("_pq_.x", "1"), ("_pq_.y", "")]);
    let check = |version, body: &[u8], expected| {
        let request = answer(version, body, "", None).expect("a startup packet");
        let names = request
            .negotiate
            .map(|names| names.iter().map(|name| text(name)).collect::<Vec<_>>().join(" "));
        assert_eq!((request.version, names.as_deref()), expected);
    };
    check(VERSION_3_0, &plain, (Version::V3_0, None));
    check(VERSION_3_0 + 1, &plain, (Version::V3_0, None));
    check(VERSION_3_2, &plain, (Version::V3_2, None));
    check(VERSION_3_2 + 1, &plain, (Version::V3_2, Some("")));
    check(VERSION_3_0 + 0xffff, &asking, (Version::V3_2, Some("_pq_.x _pq_.y")));
    check(VERSION_3_0, &asking, (Version::V3_0, Some("_pq_.x _pq_.y")));
    let old = answer(2 << 16, &plain, "", None).expect_err("an old version");
    assert_eq!(old.fatal, "old V2 protocol not supported");
}

#[test]
fn broken_layouts() {
    let text = "invalid startup packet layout: expected terminator as last byte";
    for body in [&b""[..], b"user\0u\0", b"user\0u\0\0x", b"user\0u", b"user\0", b"\0\0"] {
        let error = answer(VERSION_3_0, body, "", None).expect_err("a broken layout");
        assert_eq!(error.fatal, text, "{body:?}");
    }
}

#[test]
fn the_largest_packet_in_pieces_of_one_byte() {
    let value = vec![b'x'; STARTUP_MAX - 34];
    let mut bytes = Vec::new();
    let pairs = [(&b"user"[..], &b"u"[..]), (b"application_name", &value)];
    build::startup(&mut bytes, VERSION_3_0, pairs.into_iter());
    assert_eq!(bytes.len(), STARTUP_MAX);
    for end in 0..bytes.len() {
        assert_eq!(first(&bytes[..end]), First::More);
    }
    let First::Startup(version, body, _) = first(&bytes) else { panic!("a startup packet") };
    let request = answer(version, body, "", None).expect("a startup packet");
    assert_eq!(request.params.value(APPLICATION_NAME), Some(&value[..]));
    bytes[..4].copy_from_slice(&(STARTUP_MAX as u32 + 1).to_be_bytes());
    assert!(matches!(first(&bytes), First::Bad(_)));
}

proptest! {
    #[test]
    fn no_body_panics(version: u32, body in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = answer(version, &body, "options", Some("x"));
    }

    #[test]
    fn no_options_panic(options in "[-c=\\\\ a]{0,20}") {
        let _ = answer(VERSION_3_0, &packet(&[("user", "u"), ("options", &options)]), "", None);
    }
}
