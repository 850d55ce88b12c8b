//! Lines, what they fit, and what is said about bad ones.

use core::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> (Rules, Quality, Vec<String>) {
    let mut warnings = Vec::new();
    let maps = IdentMaps::parse("known sys all", &mut warnings);
    let mut files = |name: &str| match name {
        "names" => Ok(b"a, \"b c\" ignored\n# nothing\n@more\n".to_vec()),
        "more" => Ok(b"d".to_vec()),
        "loop" => Ok(b"@loop".to_vec()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    let mut source = Source { file: "hba", maps: &maps, read: &mut files };
    let (rules, quality) = Rules::parse(text, &mut source, &mut warnings);
    (rules, quality, warnings)
}

/// Number and method of the rule that decides about `DATABASE USER TRANSPORT`.
fn decide(rules: &Rules, who: &str) -> String {
    let words: Vec<&str> = who.split(' ').collect();
    let [database, user, transport] = words[..] else { return "?".into() };
    let (transport, purpose) = match transport.split_once('!') {
        Some((transport, _)) => (transport, Purpose::PhysicalReplication),
        None => (transport, Purpose::Session),
    };
    let transport = match transport.split_once('+') {
        Some((ip, _)) => Transport::Tls(ip.parse().expect("an address")),
        None if transport == "local" => Transport::Local,
        None => Transport::Plain(transport.parse().expect("an address")),
    };
    match rules.find(&Applicant { transport, database, user, purpose }) {
        Some(rule) => format!("{} {:?}", rule.line, rule.method),
        None => "none".into(),
    }
}

#[test]
fn the_first_line_that_fits_decides() {
    let (rules, quality, warnings) = read(
        "# comment\n\
         local all root peer map=known # more\n\
         host sameuser all 10.0.0.0/8 md5\n\
         hostssl db,\"all\" \"u\"\"x\" , v ::/0 cert\n\
         hostnossl db v all password\n\
         host @names all 127.0.0.1 255.255.255.255 scram-sha-256\n\
         host replication,all r 127.0.0.1/32 reject\n\
         host all r 0.0.0.0/0 trust\n\
         host all l all ldap ldapserver=\"x y\" ldapport=1\n",
    );
    assert_eq!((quality, warnings), (Quality::Whole, vec![]));
    for (who, expected) in [
        ("db root local", "2 Peer"),
        ("db other local", "none"),
        ("u u 10.1.2.3", "3 Md5"),
        ("u u 11.1.2.3", "none"),
        ("db v ::1+tls", "4 Cert"),
        ("all u\"x ::1+tls", "4 Cert"),
        ("any v ::1+tls", "none"),
        ("db v ::1", "5 Password"),
        ("b c 127.0.0.1", "none"),
        ("d x 127.0.0.1", "6 Scram"),
        ("d x 127.0.0.2", "none"),
        ("x r 127.0.0.1!physical", "7 Reject"),
        ("x r 127.0.0.2!physical", "none"),
        ("x r 127.0.0.2", "8 Trust"),
        ("x r local", "none"),
        ("x l 1.2.3.4+tls", "9 Ldap"),
    ] {
        assert_eq!(decide(&rules, who), expected, "{who}");
    }
    let who = Applicant {
        transport: Transport::Plain(Ipv4Addr::LOCALHOST.into()),
        database: "b c",
        user: "x",
        purpose: Purpose::Session,
    };
    assert_eq!(rules.find(&who).map(|rule| rule.line), Some(6));
}

/// Expects one bad line and what is said about it.
fn refuse(line: &str, expected: &[&str]) {
    let (rules, quality, warnings) = read(line);
    assert_eq!((rules, quality), (Rules::default(), Quality::Lacking), "{line}");
    let (last, causes) = warnings.split_last().expect("a warning");
    assert_eq!(last, "could not parse hba config line 1");
    assert_eq!(causes, expected, "{line}");
}

#[test]
fn bad_lines_are_told_and_left_out() {
    refuse("hostx all all 127.0.0.1/32 md5", &["hba line 1: unknown type"]);
    refuse("\"host\" all all 127.0.0.1/32 md5", &["hba line 1: unknown type"]);
    refuse("host", &[]);
    refuse("host all", &[]);
    refuse("host all,,b a 127.0.0.1/32 md5", &[]);
    refuse("host ,b a 127.0.0.1/32 md5", &[]);
    refuse("host all \"a", &[]);
    refuse("host all +a 127.0.0.1/32 md5", &[]);
    refuse("host samerole a 127.0.0.1/32 md5", &["samerole is not supported"]);
    refuse("host all samegroup 127.0.0.1/32 md5", &["samegroup is not supported"]);
    refuse("host @loop all 127.0.0.1/32 md5", &[]);
    refuse("host @none all all md5", &["hba line 1: could not open none: entity not found"]);
    refuse("host all all", &["hba line 1: did not find address - 4 - 'all'"]);
    refuse("host all all md5", &["hba line 1: failed to parse address - md5"]);
    refuse("host all all samenet md5", &["hba line 1: failed to parse address - samenet"]);
    refuse("host all all 127.0.0.1", &["hba line 1: did not find mask"]);
    refuse("host all all 127.0.0.1/33 md5", &["hba line 1: invalid mask"]);
    refuse("host all all ::1/129 md5", &["hba line 1: invalid mask"]);
    refuse("host all all 127.0.0.1/x md5", &["hba line 1: invalid mask"]);
    refuse("host all all 127.0.0.1 255.0 md5", &["hba line 1: failed to parse mask: 255.0"]);
    refuse("host all all ::1 255.0.0.0 md5", &["hba line 1: failed to parse mask: 255.0.0.0"]);
    refuse("host all all ::1/128", &["hba line 1: unsupported method: buf=::1"]);
    refuse("host all all ::1/128 pam", &["hba line 1: unsupported method: buf=pam"]);
    refuse("local all all", &["hba line 1: unsupported method: buf=all"]);
    refuse("host all all all \"md5\"", &["hba line 1: unsupported method: buf=md5"]);
    refuse("host all all all md5 x=y", &["hba line 1: unsupported parameters"]);
    refuse("local all all peer map=known more", &["hba line 1: unsupported parameters"]);
    refuse(
        "local all all peer map=x",
        &["hba line 1: Ident map x is not found in ident config file"],
    );
    refuse(
        "local all all peer mop=x",
        &["hba line 1: Ident map mop=x is malformed. It is not in map=value format."],
    );
}

#[test]
fn bits_outside_the_mask_are_told_and_fit_nobody() {
    let (rules, quality, warnings) =
        read("host all all 10.1.1.1/8 trust\nhost all all ::1 ffff:: md5");
    assert_eq!(quality, Quality::Whole);
    assert_eq!(
        warnings,
        [
            "address does not match mask in hba line #1: 10.1.1.1 / 255.0.0.0",
            "address does not match mask in hba line #2: ::1 / ffff::",
        ]
    );
    assert_eq!(decide(&rules, "a b 10.1.1.1"), "none");
}

proptest! {
    #[test]
    fn no_text_panics(
        text in "((host|local|all|@names|@loop|map=|::1/|1.2.3.4|[a-z\"#,é /]{0,4})[ \n]?){0,9}") {
        read(&text);
    }

    #[test]
    fn a_mask_of_bits_keeps_the_leading_ones(ip: u32, other: u32, bits in 0u32..=32) {
        let net = ip & u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        let (rules, ..) = read(&format!("host all all {}/{bits} trust", Ipv4Addr::from(net)));
        let fits = |ip: u32| decide(&rules, &format!("d u {}", Ipv4Addr::from(ip))) != "none";
        prop_assert!(fits(ip));
        let same = (ip ^ other).leading_zeros() >= bits;
        prop_assert_eq!(fits(other), same);
    }
}
