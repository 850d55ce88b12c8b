//! Tracked parameters: what a client wants and what a server has, and the SET between them.
//!
//! Sets of values are shared until somebody changes one, so that the usual comparison, client
//! against server, is one pointer. Invariant: no client sees another's value, because a link is
//! used only after `difference` found nothing or its SET was answered.

use std::sync::Arc;

/// The names that are tracked, in a fixed order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    names: Vec<String>,
}

/// Always tracked; PgBouncer's fixed list.
const STANDARD: [&str; 5] =
    ["DateStyle", "client_encoding", "TimeZone", "standard_conforming_strings", "application_name"];

/// Position of `DateStyle` among the tracked names.
pub const DATE_STYLE: usize = 0;
/// Position of `TimeZone` among the tracked names.
pub const TIME_ZONE: usize = 2;
/// Position of `standard_conforming_strings` among the tracked names.
pub const STANDARD_CONFORMING_STRINGS: usize = 3;
/// Position of `application_name` among the tracked names.
pub const APPLICATION_NAME: usize = 4;
/// Position of `client_encoding` among the tracked names.
pub const CLIENT_ENCODING: usize = 1;

impl Tracked {
    /// The standard names and `extra` ones.
    pub fn new(extra: &[String]) -> Self {
        let mut names: Vec<String> = STANDARD.map(String::from).to_vec();
        for name in extra {
            if !names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                names.push(name.clone());
            }
        }
        Tracked { names }
    }

    /// Position of a name, compared without case.
    pub fn index(&self, name: &[u8]) -> Option<usize> {
        self.names.iter().position(|known| known.as_bytes().eq_ignore_ascii_case(name))
    }

    /// Name at a position.
    pub fn name(&self, index: usize) -> &str {
        &self.names[index]
    }

    /// All names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

type Values = Vec<Option<Arc<[u8]>>>;

/// Values of the tracked parameters of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params(Arc<Values>);

impl Params {
    /// No value known for any of `tracked`.
    pub fn unset(tracked: &Tracked) -> Self {
        Params(Arc::new(vec![None; tracked.names.len()]))
    }

    /// The value at a position.
    pub fn value(&self, index: usize) -> Option<&[u8]> {
        self.0.get(index)?.as_deref()
    }

    /// Sets the value at a position.
    pub fn set(&mut self, index: usize, value: &[u8]) {
        if self.value(index) != Some(value) {
            self.put(index, value.into());
        }
    }

    fn put(&mut self, index: usize, value: Arc<[u8]>) {
        if let Some(slot) = Arc::make_mut(&mut self.0).get_mut(index) {
            *slot = Some(value);
        }
    }

    /// Fills what is unset from `defaults`.
    pub fn fill(&mut self, defaults: &Params) {
        for (index, value) in defaults.0.iter().enumerate() {
            if let (None, Some(value)) = (self.value(index), value) {
                self.put(index, Arc::clone(value));
            }
        }
        if self == defaults {
            self.0 = Arc::clone(&defaults.0);
        }
    }

    /// Takes over the spelling of the server for each value that means the same there, as the
    /// server itself would report it.
    pub fn respell(&mut self, tracked: &Tracked, server: &Params) {
        for (index, name) in tracked.names.iter().enumerate() {
            let Some(Some(new)) = server.0.get(index) else { continue };
            if self.value(index).is_some_and(|own| *own != **new && equal(index, name, own, new)) {
                self.put(index, Arc::clone(new));
            }
        }
        if *self == *server {
            self.0 = Arc::clone(&server.0);
        }
    }

    /// Takes over the spelling of the server for each value of the client's that was set there;
    /// answers positions and old values of what changed.
    pub fn adopt(&mut self, server: &Params) -> Vec<(usize, Box<[u8]>)> {
        let mut changes = Vec::new();
        for (index, value) in server.0.iter().enumerate() {
            if let (Some(old), Some(new)) = (self.value(index), value)
                && *old != **new
            {
                changes.push((index, old.into()));
                self.put(index, Arc::clone(new));
            }
        }
        if *self == *server {
            self.0 = Arc::clone(&server.0);
        }
        changes
    }

    /// Shares the values with `other`, which has the same ones, so that comparing them is cheap.
    /// Of the two the one at the lower address is kept: after a few meetings all connections
    /// with the same values share one, whoever meets whom.
    fn unify(&mut self, other: &mut Params) {
        if Arc::as_ptr(&other.0) < Arc::as_ptr(&self.0) {
            self.0 = Arc::clone(&other.0);
        } else {
            other.0 = Arc::clone(&self.0);
        }
    }
}

/// The statement that brings a server to the client's values, `SET a='x';SET b='y';`, or `None`
/// if nothing differs. Values that a client never had are left as they are, and so are those of
/// parameters that the server does not report: nobody could say who else has to be protected.
pub fn difference(tracked: &Tracked, client: &mut Params, server: &mut Params) -> Option<Vec<u8>> {
    if Arc::ptr_eq(&client.0, &server.0) {
        return None;
    }
    let mut sql = Vec::new();
    for (_, name, wanted) in differing(tracked, client, server) {
        assignment(&mut sql, name, wanted);
    }
    if sql.is_empty() {
        if *client == *server {
            server.unify(client);
        }
        return None;
    }
    Some(sql)
}

/// The same, each by itself with its position: for servers that may refuse some of them.
pub fn differences(tracked: &Tracked, client: &Params, server: &Params) -> Vec<(usize, Vec<u8>)> {
    if Arc::ptr_eq(&client.0, &server.0) {
        return Vec::new();
    }
    let each = differing(tracked, client, server).map(|(index, name, wanted)| {
        let mut sql = Vec::new();
        assignment(&mut sql, name, wanted);
        (index, sql)
    });
    each.collect()
}

fn differing<'a>(
    tracked: &'a Tracked,
    client: &'a Params,
    server: &'a Params,
) -> impl Iterator<Item = (usize, &'a str, &'a [u8])> {
    tracked.names.iter().enumerate().filter_map(|(index, name)| {
        let (wanted, has) = (client.value(index)?, server.value(index)?);
        let unset = wanted.is_empty() && index != APPLICATION_NAME;
        (!unset && !equal(index, name, wanted, has)).then_some((index, name.as_str(), wanted))
    })
}

/// The standard names and IntervalStyle have values whose case means nothing, but for
/// `application_name`.
fn equal<'a>(index: usize, name: &str, wanted: &'a [u8], has: &'a [u8]) -> bool {
    if std::ptr::eq(wanted, has) {
        return true;
    }
    if index == CLIENT_ENCODING {
        // The server leaves everything else out of such names, too.
        let letters = |name: &'a [u8]| name.iter().filter(|byte| byte.is_ascii_alphanumeric());
        let folded = |name| letters(name).map(u8::to_ascii_lowercase);
        // A name without any letter is none; it equals only itself.
        return wanted == has
            || (letters(wanted).next().is_some() && folded(wanted).eq(folded(has)));
    }
    let words = index < STANDARD.len() || name.eq_ignore_ascii_case("IntervalStyle");
    if words && index != APPLICATION_NAME {
        wanted.eq_ignore_ascii_case(has)
    } else {
        wanted == has
    }
}

fn assignment(sql: &mut Vec<u8>, name: &str, value: &[u8]) {
    sql.extend_from_slice(b"SET ");
    sql.extend_from_slice(name.as_bytes());
    sql.push(b'=');
    // A search_path is reported as a list that is quoted already.
    if name.eq_ignore_ascii_case("search_path") {
        sql.extend_from_slice(if value == b"\"\"" { b"''" } else { value });
    } else {
        literal(sql, value);
    }
    sql.push(b';');
}

/// Appends a string literal ("String Constants"); backslashes need the escape form.
pub fn literal(sql: &mut Vec<u8>, value: &[u8]) {
    if value.contains(&b'\\') {
        sql.push(b'E');
    }
    sql.push(b'\'');
    for &byte in value {
        if byte == b'\'' || byte == b'\\' {
            sql.push(byte);
        }
        sql.push(byte);
    }
    sql.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(tracked: &Tracked, pairs: &[(&str, &str)]) -> Params {
        let mut params = Params::unset(tracked);
        for (name, value) in pairs {
            params.set(tracked.index(name.as_bytes()).expect("a tracked name"), value.as_bytes());
        }
        params
    }

    fn check(client: &[(&str, &str)], server: &[(&str, &str)], sql: Option<&str>) {
        let tracked = Tracked::new(&["search_path".into()]);
        let mut server = params(&tracked, server);
        let found = difference(&tracked, &mut params(&tracked, client), &mut server);
        assert_eq!(found.map(|sql| String::from_utf8_lossy(&sql).into_owned()).as_deref(), sql);
    }

    #[test]
    fn differences() {
        check(&[("timezone", "utc")], &[("TimeZone", "UTC")], None);
        check(&[("client_encoding", "'utf-8'")], &[("client_encoding", "UTF8")], None);
        check(&[("client_encoding", "LATIN1")], &[("client_encoding", "LATIN-10")], {
            Some("SET client_encoding='LATIN1';")
        });
        check(&[("application_name", "A")], &[("application_name", "a")], {
            Some("SET application_name='A';")
        });
        let name = [("application_name", "")];
        check(&[("application_name", "it's")], &name, Some("SET application_name='it''s';"));
        check(&[("application_name", r"a\b")], &name, Some(r"SET application_name=E'a\\b';"));
        check(&name, &[("application_name", "x")], Some("SET application_name='';"));
        let path = [("search_path", "\"$user\", public")];
        check(&path, &[("search_path", "x")], Some("SET search_path=\"$user\", public;"));
        check(&[("search_path", "\"\"")], &path, Some("SET search_path='';"));
        check(&[("search_path", "\"A\"")], &[("search_path", "\"a\"")], {
            Some("SET search_path=\"A\";")
        });
        check(&path, &[], None);
        check(&[("DateStyle", "")], &[("DateStyle", "ISO, MDY")], None);
        let long = "x".repeat(70_000);
        let set = format!("SET application_name='{long}';");
        check(&[("application_name", &long)], &name, Some(&set));
        check(&[], &[("TimeZone", "UTC")], None);
    }

    #[test]
    fn the_spelling_of_the_server_is_adopted() {
        let tracked = Tracked::new(&[]);
        let mut client = params(&tracked, &[("TimeZone", "zulu"), ("DateStyle", "ISO")]);
        let server = params(
            &tracked,
            &[("TimeZone", "Zulu"), ("DateStyle", "ISO"), ("application_name", "somebody else")],
        );
        assert_eq!(client.adopt(&server), [(2, b"zulu".as_slice().into())]);
        assert_eq!(client.value(2), Some(&b"Zulu"[..]));
        assert_eq!(client.value(APPLICATION_NAME), None);
    }

    #[test]
    fn what_means_the_same_is_reported_as_the_server_spells_it() {
        let tracked = Tracked::new(&[]);
        let server = params(&tracked, &[("client_encoding", "UTF8"), ("TimeZone", "Zulu")]);
        let check = |encoding: &str, zone: &str, expected: [&str; 2]| {
            let sent = [("client_encoding", encoding), ("TimeZone", zone)];
            let mut client = params(&tracked, &sent);
            client.respell(&tracked, &server);
            let found = [CLIENT_ENCODING, TIME_ZONE].map(|index| client.value(index));
            assert_eq!(found, expected.map(|text| Some(text.as_bytes())));
        };
        check("'utf-8'", "zulu", ["UTF8", "Zulu"]);
        check("latin1", "Etc/Zulu", ["latin1", "Etc/Zulu"]);
        let mut named = params(&tracked, &[("application_name", "a")]);
        named.respell(&tracked, &params(&tracked, &[("application_name", "A")]));
        assert_eq!(named.value(APPLICATION_NAME), Some(&b"a"[..]));
    }

    #[test]
    fn equal_sets_become_one() {
        let tracked = Tracked::new(&[]);
        let mut clients = [(); 3].map(|()| params(&tracked, &[("TimeZone", "UTC")]));
        let mut servers = [(); 2].map(|()| params(&tracked, &[("TimeZone", "UTC")]));
        for _ in 0..2 {
            for client in &mut clients {
                for server in &mut servers {
                    assert_eq!(difference(&tracked, client, server), None);
                }
            }
        }
        let shared = |params: &Params| Arc::ptr_eq(&params.0, &servers[0].0);
        assert!(clients.iter().chain(&servers).all(shared));
    }
}
