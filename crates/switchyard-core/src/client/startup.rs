//! The startup packet: what a client asks for, and whether it may ask for it.
//!
//! Not here: who the client is (`login`), whether its database exists. Texts are PgBouncer's.

use switchyard_wire::startup::{VERSION_3_0, VERSION_3_2, parameters};

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
    /// `options` as sent, for replication connections, whose server reads them.
    pub options: Vec<u8>,
    /// What both sides speak.
    pub version: Version,
    /// Options to be named in a NegotiateProtocolVersion, if one is due.
    pub negotiate: Option<Vec<Vec<u8>>>,
}

/// A version of the protocol that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 3.0: cancel keys have eight bytes.
    V3_0,
    /// 3.2: cancel keys have up to 256 bytes.
    V3_2,
}

impl Version {
    /// As NegotiateProtocolVersion names it.
    pub fn number(self) -> u32 {
        match self {
            Version::V3_0 => VERSION_3_0,
            Version::V3_2 => VERSION_3_2,
        }
    }
}

/// The newest version that is spoken.
const NEWEST: u32 = VERSION_3_2;

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

impl StartupRules<'_> {
    fn ignores(&self, word: &[u8]) -> bool {
        self.ignore.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(word))
    }
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
        options: Vec::new(),
        // 3.1 was never used; nothing in it differs from 3.0.
        version: if version >= VERSION_3_2 { Version::V3_2 } else { Version::V3_0 },
        negotiate: (version > NEWEST).then(Vec::new),
    };
    // Whether `options` are read here depends on it, wherever it stands.
    for (_, value) in pairs.iter().filter(|(name, _)| *name == b"replication") {
        request.replication = replication(value)?;
    }
    for &(name, value) in &pairs {
        match name {
            b"user" => request.user = text(value),
            b"database" => request.database = text(value),
            b"replication" => {}
            b"options" if request.replication != Replication::None => {
                request.options = value.into();
            }
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
    if rules.ignores(name) || (!place.is_empty() && rules.ignores(b"options")) {
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
    let mut words = words(value).into_iter();
    while let Some(word) = words.next() {
        let pair = if word == b"-c" {
            words.next().unwrap_or_default()
        } else if let Some(rest) = word.strip_prefix(b"-c").or(word.strip_prefix(b"--")) {
            rest.to_vec()
        } else {
            return refused_options(value, rules);
        };
        let Some(equals) = pair.iter().position(|byte| *byte == b'=') else {
            return refused_options(value, rules);
        };
        parameter(&pair[..equals], &pair[equals + 1..], rules, " in options", request)?;
    }
    Ok(())
}

/// Options that cannot be read, which is all right for those who drop them.
fn refused_options(value: &[u8], rules: StartupRules<'_>) -> Result<(), StartupError> {
    if rules.ignores(b"options") {
        return Ok(());
    }
    Err(StartupError {
        fatal: "unsupported options startup parameter: \
                only '-c config=val' and '--config=val' are allowed"
            .into(),
        warning: Some(format!("unsupported startup parameter: options={}", text(value))),
    })
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

fn replication(value: &[u8]) -> Result<Replication, StartupError> {
    if value == b"database" {
        return Ok(Replication::Logical);
    }
    let word = value.to_ascii_lowercase();
    let is = |whole: &[u8], min: usize| word.len() >= min && whole.starts_with(&word);
    if is(b"true", 1) || is(b"yes", 1) || is(b"on", 2) || word == b"1" {
        return Ok(Replication::Physical);
    }
    if is(b"false", 1) || is(b"no", 1) || is(b"off", 2) || word == b"0" {
        return Ok(Replication::None);
    }
    fatal(&format!("invalid value for parameter \"replication\": \"{}\"", text(value)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn fatal<T>(text: &str) -> Result<T, StartupError> {
    Err(StartupError { fatal: text.into(), warning: None })
}

#[cfg(test)]
mod tests;
