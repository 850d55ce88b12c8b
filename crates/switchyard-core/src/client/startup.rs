//! The startup packet: what a client asks for, and whether it may ask for it.
//!
//! Not here: who the client is (`login`), whether its database exists. Texts are PgBouncer's.

use switchyard_wire::startup::{VERSION_3_0, parameters};

use crate::params::{APPLICATION_NAME, Params, Tracked};

/// What a startup packet asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartupRequest {
    /// Role name.
    pub user: String,
    /// Database name as asked for; the user's name if none was sent.
    pub database: String,
    /// Tracked parameters that the client set.
    pub params: Params,
    /// Kind of replication connection.
    pub replication: Replication,
    /// Options to be named in a NegotiateProtocolVersion, if one is due.
    pub negotiate: Option<Vec<Vec<u8>>>,
}

/// The startup parameter `replication`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// An ordinary connection.
    None,
    /// `database`.
    Logical,
    /// A true boolean.
    Physical,
}

impl Replication {
    /// Word in the `login attempt` line.
    pub fn word(self) -> &'static str {
        match self {
            Replication::None => "no",
            Replication::Logical => "database",
            Replication::Physical => "yes",
        }
    }
}

/// A startup packet that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartupError {
    /// Text of the FATAL.
    pub fatal: String,
    /// WARNING that comes before it.
    pub warning: Option<String>,
}

/// What is needed to judge a startup packet.
#[derive(Clone, Copy, Debug)]
pub struct StartupRules<'a> {
    /// Tracked parameter names.
    pub tracked: &'a Tracked,
    /// `ignore_startup_parameters`.
    pub ignore: &'a [String],
    /// ` - ADDR:PORT`, with application_name_add_host.
    pub suffix: Option<&'a str>,
}

/// Reads a startup packet's body.
pub fn read(
    version: u32,
    body: &[u8],
    rules: StartupRules<'_>,
) -> Result<StartupRequest, StartupError> {
    if version >> 16 == 2 {
        return fatal("old V2 protocol not supported");
    }
    let Some(pairs) = parameters(body) else {
        return fatal("invalid startup packet layout: expected terminator as last byte");
    };
    let mut request = StartupRequest {
        user: String::new(),
        database: String::new(),
        params: Params::unset(rules.tracked),
        replication: Replication::None,
        negotiate: (version != VERSION_3_0).then(Vec::new),
    };
    if let Some((_, value)) = pairs.iter().find(|(name, _)| *name == b"replication") {
        request.replication = replication(value);
    }
    for &(name, value) in &pairs {
        match name {
            b"user" => request.user = text(value),
            b"database" => request.database = text(value),
            b"replication" => {}
            b"options" => options(value, rules, &mut request)?,
            _ if name.starts_with(b"_pq_.") => {
                request.negotiate.get_or_insert_default().push(name.to_vec());
            }
            _ => parameter(name, value, rules, "", &mut request)?,
        }
    }
    if request.user.is_empty() {
        return fatal("no username supplied");
    }
    if request.database.is_empty() {
        request.database.clone_from(&request.user);
    }
    add_suffix(rules, &mut request);
    Ok(request)
}

fn add_suffix(rules: StartupRules<'_>, request: &mut StartupRequest) {
    let Some(suffix) = rules.suffix else { return };
    let mut name = request.params.value(APPLICATION_NAME).unwrap_or(b"app").to_vec();
    name.extend_from_slice(suffix.as_bytes());
    request.params.set(APPLICATION_NAME, &name);
}

fn parameter(
    name: &[u8],
    value: &[u8],
    rules: StartupRules<'_>,
    place: &str,
    request: &mut StartupRequest,
) -> Result<(), StartupError> {
    if let Some(index) = rules.tracked.index(name) {
        request.params.set(index, value);
        return Ok(());
    }
    let ignored =
        |word: &[u8]| rules.ignore.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(word));
    if ignored(name) || (!place.is_empty() && ignored(b"options")) {
        return Ok(());
    }
    let (name, value) = (text(name), text(value));
    Err(StartupError {
        fatal: format!("unsupported startup parameter{place}: {name}"),
        warning: Some(format!("unsupported startup parameter{place}: {name}={value}")),
    })
}

/// `-c name=value`, `-cname=value` and `--name=value`, words as in the `options` of libpq.
fn options(
    value: &[u8],
    rules: StartupRules<'_>,
    request: &mut StartupRequest,
) -> Result<(), StartupError> {
    let refused = "unsupported options startup parameter: \
                   only '-c config=val' and '--config=val' are allowed";
    let mut words = words(value).into_iter();
    while let Some(word) = words.next() {
        let pair = if word == b"-c" {
            words.next().unwrap_or_default()
        } else if let Some(rest) = word.strip_prefix(b"-c").or(word.strip_prefix(b"--")) {
            rest.to_vec()
        } else {
            return fatal(refused);
        };
        let Some(equals) = pair.iter().position(|byte| *byte == b'=') else {
            return fatal(refused);
        };
        parameter(&pair[..equals], &pair[equals + 1..], rules, " in options", request)?;
    }
    Ok(())
}

fn words(value: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = value.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => words.extend(word.take()),
            b'\\' => word.get_or_insert_default().extend(bytes.next()),
            _ => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    words
}

fn replication(value: &[u8]) -> Replication {
    let value = value.to_ascii_lowercase();
    let is = |word: &[u8], min: usize| value.len() >= min && word.starts_with(&value);
    if value == b"database" {
        Replication::Logical
    } else if is(b"true", 1) || is(b"yes", 1) || is(b"on", 2) || value == b"1" {
        Replication::Physical
    } else {
        Replication::None
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn fatal<T>(text: &str) -> Result<T, StartupError> {
    Err(StartupError { fatal: text.into(), warning: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[(&str, &str)], expected: Result<&str, &str>) {
        let mut body = Vec::new();
        for (name, value) in pairs {
            body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        }
        body.push(0);
        let tracked = Tracked::new(&[]);
        let ignore = ["extra_float_digits".to_string()];
        let rules = StartupRules { tracked: &tracked, ignore: &ignore, suffix: Some(" - here") };
        let found = read(VERSION_3_0, &body, rules).map(|request| {
            let name = request.params.value(APPLICATION_NAME).map(text).unwrap_or_default();
            format!("{}/{} {name} {:?}", request.database, request.user, request.replication)
        });
        assert_eq!(found.as_deref().map_err(|error| error.fatal.as_str()), expected);
    }

    #[test]
    fn packets() {
        check(&[("user", "u")], Ok("u/u app - here None"));
        check(&[("user", "u"), ("database", "d"), ("application_name", "x")], {
            Ok("d/u x - here None")
        });
        check(&[("user", "u"), ("replication", "on")], Ok("u/u app - here Physical"));
        check(&[("user", "u"), ("extra_float_digits", "3")], Ok("u/u app - here None"));
        check(&[("user", "u"), ("options", r"-c application_name=a\ b")], {
            Ok("u/u a b - here None")
        });
        check(&[("user", "u"), ("options", "--x=1")], {
            Err("unsupported startup parameter in options: x")
        });
        check(&[("user", "u"), ("geqo", "off")], Err("unsupported startup parameter: geqo"));
        check(&[("database", "d")], Err("no username supplied"));
        check(&[("user", "u"), ("options", "-d 5")], {
            Err("unsupported options startup parameter: \
                 only '-c config=val' and '--config=val' are allowed")
        });
    }
}
