//! Whole files: what they mean and what is said about them.

use super::*;
use proptest::prelude::*;

fn check(text: &str) -> Loaded {
    let mut read = |path: &Path| match path.to_str() {
        Some("main.ini") => Ok(text.as_bytes().to_vec()),
        Some("more.ini") => Ok(b"c = host=::1 port=6000".to_vec()),
        Some("loop.ini") => Ok(b"%include loop.ini\n%include loop.ini\n".to_vec()),
        _ => Err(io::Error::from_raw_os_error(2)),
    };
    load(Path::new("main.ini"), &mut read)
}

/// Texts of one severity, first lines only.
fn texts(text: &str, severity: Severity) -> Vec<String> {
    let found = check(text).found.into_iter().filter(|one| one.severity == severity);
    found.map(|one| one.text).collect()
}

#[test]
fn a_whole_file() {
    let loaded = check(
        "[databases]\na = host=h,i user=u password='it''s'\n* = port=1\n\"x \"\"y\" =\n\
         %include more.ini\n'x=y' = dbname=z\n[users] u = pool_size=3\n[peers]\n1 = host=p\n\
         2= host=/q port=7 pool_size=8\n[routes]\nr = one\ns = two\nr = three\n\
         [rewrites]\nt = four\n[pgbouncer]\npool_mode = Transaction\nserver_lifetime = 2min\n\
         ; comment\n# comment\nadmin_users = a, b c\nserver_check_query = select ';#'\nio=epoll\n",
    );
    let config = loaded.config.expect("a valid file");
    assert_eq!(config.databases["a"].password.as_deref(), Some("it's"));
    assert_eq!(config.databases["a"].hosts, ["h", "i"]);
    assert_eq!(config.databases["c"].port, 6000);
    assert_eq!(config.databases["x \"y"].dbname, "x \"y");
    assert_eq!(config.databases["x=y"].dbname, "z");
    assert_eq!(config.automatic.as_deref(), Some("port=1"));
    assert_eq!(config.users["u"].pool_size, Some(3));
    assert_eq!(config.peers[&1], Peer { host: "p".into(), port: 6432, pool_size: None });
    assert_eq!(config.peers[&2], Peer { host: "/q".into(), port: 7, pool_size: Some(8) });
    let rules = [("r".to_string(), "three".to_string()), ("s".into(), "two".into())];
    assert_eq!(config.routes, rules);
    assert_eq!(config.rewrites, [("t".to_string(), "four".to_string())]);
    assert_eq!(config.settings.server_lifetime.as_secs(), 120);
    assert_eq!(config.settings.admin_users.list, ["a", "b", "c"]);
    assert_eq!(config.settings.server_check_query, "select ';#'");
}

#[test]
fn every_error_is_told_with_its_place() {
    let text = "x=1\n[pgbouncer]\nnope = 1\nmax_client_conn = many\n= 2\n[what]\na=1\n\
                [databases]\npgbouncer = host=h\nd = host=\ne = port=0 password=geheim\n\
                f = hist=1\n[users]\nu = a\nv = b=c\n[peers]\n0 = host=a\n3 = port=1\n\
                %include nofile\n%include\n%included x\n[broken\nkey\n";
    assert_eq!(
        texts(text, Severity::Error),
        [
            "load_init_file: value without section: x",
            "syntax error in configuration (main.ini:5)",
            "invalid section \"what\" in configuration (main.ini:6)",
            "could not load file \"nofile\": No such file or directory",
            "error processing include file in configuration (main.ini:19)",
            "syntax error in configuration (main.ini:20)",
            "syntax error in configuration (main.ini:21)",
            "syntax error in configuration (main.ini:22)",
            "syntax error in configuration (main.ini:23)",
            "unknown parameter: pgbouncer/nope",
            "invalid value \"many\" for parameter max_client_conn in configuration (main.ini:4)",
            "database name \"pgbouncer\" is reserved",
            "invalid value \"host=h\" for parameter pgbouncer in configuration (main.ini:9)",
            "syntax error in connection string",
            "invalid value \"host=\" for parameter d in configuration (main.ini:10)",
            "invalid port: 0",
            "invalid value \"port=0 password=***\" for parameter e in configuration (main.ini:11)",
            "unrecognized connection parameter: hist",
            "invalid value \"hist=1\" for parameter f in configuration (main.ini:12)",
            "syntax error in user settings",
            "invalid value \"a\" for parameter u in configuration (main.ini:14)",
            "unrecognized user parameter: b",
            "invalid value \"b=c\" for parameter v in configuration (main.ini:15)",
            "ids of peers must be a number larger than 0 and at most 65536",
            "invalid value \"host=a\" for parameter 0 in configuration (main.ini:17)",
            "host was not provided for peer 3",
            "invalid value \"port=1\" for parameter 3 in configuration (main.ini:18)",
        ]
    );
    let many = check(text).found.into_iter().find(|one| one.text.contains("many"));
    let shown = many.map(|one| one.to_string()).unwrap_or_default();
    assert_eq!(
        shown.lines().skip(1).collect::<Vec<_>>(),
        ["main.ini:4:19", "max_client_conn = many", "                  ^"]
    );
    let all: String = check(text).found.iter().map(ToString::to_string).collect();
    assert!(!all.contains("geheim"), "{all}");
}

#[test]
fn the_console_answers_no_auth_query() {
    assert_eq!(
        texts("[pgbouncer]\nauth_dbname = pgbouncer\n", Severity::Error),
        [
            "cannot use the reserved \"pgbouncer\" database as an auth_dbname",
            "invalid value \"pgbouncer\" for parameter auth_dbname in configuration (main.ini:2)",
        ]
    );
}

#[test]
fn the_main_section_is_needed_and_may_go_on() {
    let missing = ["load_init_file: main section missing from config file"];
    assert_eq!(texts("[databases]\n", Severity::Error), missing);
    let twice = "[pgbouncer]\nmax_client_conn = 7\n[users]\n[pgbouncer]\nlisten_port = 1\n";
    let text = ["section [pgbouncer] continues (main.ini:4)"];
    assert_eq!(texts(twice, Severity::Warning), text);
    let settings = check(twice).config.expect("a valid file").settings;
    assert_eq!((settings.max_client_conn, settings.listen_port), (7, 1));
}

#[test]
fn names_have_limits() {
    let (fits, user) = ("x".repeat(63), "u".repeat(127));
    let good = format!("[databases]\n{fits} =\n[users]\n{user} =\n[pgbouncer]\n");
    assert!(check(&good).config.is_some());
    let bad = format!("[pgbouncer]\n[databases]\n{fits}x =\n[users]\n{user}u =\n");
    assert_eq!(texts(&bad, Severity::Warning), [format!("too long db name: {fits}x")]);
    let errors = texts(&bad, Severity::Error);
    assert_eq!(errors[0], "cannot create database, no memory?");
    assert_eq!(errors[2], "username too long");
}

#[test]
fn garbage_behind_numbers_is_told() {
    let text = "[pgbouncer]\n[databases]\nd = pool_size=20, port=1x\n[users]\nu = pool_size=z\n";
    let config = check(text).config.expect("a valid file");
    assert_eq!(config.databases["d"].pool_size, Some(20));
    assert_eq!(
        texts(text, Severity::Warning),
        [
            "d: pool_size=20, is not a number, read as 20",
            "d: port=1x is not a number, read as 1",
            "u: pool_size=z is not a number, read as 0"
        ]
    );
}

#[test]
fn files_that_include_each_other_come_to_an_end() {
    let loaded = check("[pgbouncer]\n%include loop.ini\n");
    assert!(loaded.config.is_none());
    assert!(loaded.found.len() < 3000, "{}", loaded.found.len());
}

proptest! {
    #[test]
    fn no_text_panics(
        text in "(\\[pgbouncer\\]\n|\\[databases\\]\n|\\[peers\\]|[ -~é]{0,12}[=\n'\"]?){0,8}") {
        for one in check(&text).found {
            one.to_string();
        }
    }

    #[test]
    fn values_come_back_as_written(value in "[!-~é]([ -~é]{0,20}[!-~é])?", key in "[a-z]{1,9}") {
        let text = format!("[pgbouncer]\n[routes]\n '{key}' \t=  {value} \n");
        let config = check(&text).config.expect("a valid file");
        prop_assert_eq!(config.routes, vec![(key, value)]);
    }
}
