//! Clients that share servers, against a naive account of what each of them has set: whoever is
//! linked finds its own values, whatever bytes they consist of, and leaves no others behind.

use std::collections::BTreeMap;

use proptest::prelude::*;
use switchyard_core::params::{Params, Tracked, difference};

const NAMES: [&str; 6] =
    ["DateStyle", "client_encoding", "TimeZone", "application_name", "search_path", "role_of_mine"];

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    /// This client is linked to that server.
    Link(usize, usize),
    /// The client that is linked last sets a parameter there.
    Set(usize, Vec<u8>),
}

/// A server as PostgreSQL would be: it runs SQL, and settles on a spelling.
#[derive(Clone, Debug, Default)]
struct Server(BTreeMap<String, Vec<u8>>);

impl Server {
    fn set(&mut self, name: &str, value: &[u8]) {
        let value = if name == "TimeZone" { value.to_ascii_uppercase() } else { value.to_vec() };
        self.0.insert(name.to_owned(), value);
    }

    /// Runs `SET name=value;` again and again; the only forms are literals, with and without `E`,
    /// and lists of names for search_path.
    fn run(&mut self, mut sql: &[u8]) {
        while !sql.is_empty() {
            let rest = sql.strip_prefix(b"SET ").expect("a SET");
            let equals = rest.iter().position(|b| *b == b'=').expect("an equals sign");
            let name = String::from_utf8(rest[..equals].to_vec()).expect("a name");
            let (value, rest) = literal(&rest[equals + 1..]);
            self.set(&name, &value);
            sql = rest.strip_prefix(b";").expect("a semicolon");
        }
    }
}

/// A literal and what follows ("String Constants"), or anything up to a semicolon.
fn literal(sql: &[u8]) -> (Vec<u8>, &[u8]) {
    let (escapes, body) = match sql {
        [b'E', b'\'', rest @ ..] => (true, rest),
        [b'\'', rest @ ..] => (false, rest),
        _ => {
            let end = sql.iter().position(|b| *b == b';').expect("a semicolon");
            return (sql[..end].to_vec(), &sql[end..]);
        }
    };
    let (mut value, mut at) = (Vec::new(), 0);
    loop {
        match (body[at], body.get(at + 1)) {
            (b'\'', Some(b'\'')) => at += 1,
            (b'\'', _) => return (value, &body[at + 1..]),
            (b'\\', Some(_)) if escapes => at += 1,
            _ => {}
        }
        value.push(body[at]);
        at += 1;
    }
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        3 => prop::sample::select(&b"'\\;E= aZ"[..]),
        1 => 1u8..=255,
    ];
    prop::collection::vec(byte, 0..6)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..3usize, 0..2usize).prop_map(|(client, server)| Step::Link(client, server)),
        3 => (0..NAMES.len(), value()).prop_map(|(name, value)| Step::Set(name, value)),
    ];
    prop::collection::vec(step, 1..40)
}

/// The server reports all it has.
fn report(tracked: &Tracked, server: &Server, params: &mut [&mut Params]) {
    for (name, value) in &server.0 {
        let index = tracked.index(name.as_bytes()).expect("a tracked name");
        params.iter_mut().for_each(|params| params.set(index, value));
    }
}

fn same(name: &str, a: &[u8], b: &[u8]) -> bool {
    if name == "client_encoding" {
        let letters = |value: &[u8]| -> Vec<u8> {
            let letters = value.iter().filter(|byte| byte.is_ascii_alphanumeric());
            letters.map(u8::to_ascii_lowercase).collect()
        };
        return a == b || (!letters(a).is_empty() && letters(a) == letters(b));
    }
    let words = ["DateStyle", "TimeZone"].contains(&name);
    if words { a.eq_ignore_ascii_case(b) } else { a == b }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn everybody_finds_what_it_has_set(steps in steps()) {
        let tracked = Tracked::new(&["search_path".into(), "role_of_mine".into()]);
        let unset = Params::unset(&tracked);
        let mut fresh = Server::default();
        NAMES.iter().for_each(|name| fresh.set(name, b"default"));
        let mut servers = [fresh.clone(), fresh];
        let mut known = [unset.clone(), unset.clone()];
        for (server, known) in servers.iter().zip(&mut known) {
            report(&tracked, server, &mut [known]);
        }
        // Every client is welcomed with a server's values.
        let mut clients = [known[0].clone(), known[0].clone(), known[0].clone()];
        let mut account: Vec<BTreeMap<String, Vec<u8>>> = vec![servers[0].0.clone(); 3];
        let mut linked = None;
        for step in steps {
            match step {
                Step::Link(client, at) => {
                    let (own, has) = (&mut clients[client], &mut known[at]);
                    if let Some(sql) = difference(&tracked, own, has) {
                        servers[at].run(&sql);
                        report(&tracked, &servers[at], &mut [has]);
                        own.adopt(has);
                        prop_assert_eq!(difference(&tracked, own, has), None);
                    }
                    for (name, wanted) in &account[client] {
                        let unset = wanted.is_empty() && name != "application_name";
                        let found = &servers[at].0[name];
                        prop_assert!(unset || same(name, wanted, found), "{name}: {found:?}");
                    }
                    linked = Some((client, at));
                }
                Step::Set(name, value) => {
                    let Some((client, at)) = linked else { continue };
                    // PostgreSQL reports a search_path as a list of quoted names.
                    let list = NAMES[name] == "search_path";
                    let value = if list { b"\"a\", b".to_vec() } else { value };
                    servers[at].set(NAMES[name], &value);
                    let (own, server) = (&mut clients[client], &mut known[at]);
                    report(&tracked, &servers[at], &mut [own, server]);
                    account[client].insert(NAMES[name].into(), value);
                }
            }
        }
    }
}
