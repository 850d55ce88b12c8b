//! One command a query: `WORD [WORD]` or `SET WORD = VALUE`.

use crate::console::explain::{self, ExplainRoute};
use crate::switchover::planned as cluster;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// SHOW.
    Show(Show),
    /// SET of a setting.
    Set(String, String),
    /// SET of a parameter that drivers set at once; nothing happens.
    SetIgnored,
    /// RELOAD.
    Reload,
    /// PAUSE, of all or one.
    Pause(Option<String>),
    /// RESUME.
    Resume(Option<String>),
    /// RECONNECT.
    Reconnect(Option<String>),
    /// DISABLE.
    Disable(Option<String>),
    /// ENABLE.
    Enable(Option<String>),
    /// KILL.
    Kill(Option<String>),
    /// KILL_CLIENT.
    KillClient(String),
    /// SUSPEND.
    Suspend,
    /// WAIT_CLOSE.
    WaitClose(Option<String>),
    /// PROBE, HOLD, RELEASE, SWITCHOVER, SWITCHOVER_ABORT of a cluster.
    Cluster(String, cluster::Command),
    /// SHUTDOWN.
    Shutdown(Shutdown),
    /// EXPLAIN ROUTE.
    ExplainRoute(ExplainRoute),
}

/// How to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// At once.
    Now,
    /// When all clients are gone.
    WaitForClients,
    /// When all servers are free.
    WaitForServers,
}

/// What SHOW shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// HELP.
    Help,
    /// VERSION.
    Version,
    /// STATE.
    State,
    /// CONFIG.
    Config,
    /// DATABASES.
    Databases,
    /// POOLS.
    Pools,
    /// CLIENTS.
    Clients,
    /// SERVERS.
    Servers,
    /// USERS.
    Users,
    /// LISTS.
    Lists,
    /// PEERS.
    Peers,
    /// PEER_POOLS.
    PeerPools,
    /// SOCKETS.
    Sockets,
    /// ACTIVE_SOCKETS.
    ActiveSockets,
    /// FDS.
    Fds,
    /// MEM.
    Mem,
    /// DNS_HOSTS.
    DnsHosts,
    /// DNS_ZONES.
    DnsZones,
    /// STATS.
    Stats,
    /// STATS_TOTALS.
    StatsTotals,
    /// STATS_AVERAGES.
    StatsAverages,
    /// TOTALS.
    Totals,
    /// CLUSTERS.
    Clusters,
    /// NODES.
    Nodes,
    /// SWITCHOVERS.
    Switchovers,
    /// The Python functions.
    Hooks,
    /// A parameter that drivers ask for: name and value.
    Parameter(&'static str, &'static str),
}

/// Objects of SHOW by name.
const OBJECTS: &[(&str, Show)] = &[
    ("active_sockets", Show::ActiveSockets),
    ("clients", Show::Clients),
    ("clusters", Show::Clusters),
    ("config", Show::Config),
    ("databases", Show::Databases),
    ("dns_hosts", Show::DnsHosts),
    ("dns_zones", Show::DnsZones),
    ("fds", Show::Fds),
    ("help", Show::Help),
    ("hooks", Show::Hooks),
    ("lists", Show::Lists),
    ("mem", Show::Mem),
    ("nodes", Show::Nodes),
    ("peer_pools", Show::PeerPools),
    ("peers", Show::Peers),
    ("pools", Show::Pools),
    ("servers", Show::Servers),
    ("sockets", Show::Sockets),
    ("state", Show::State),
    ("stats", Show::Stats),
    ("stats_averages", Show::StatsAverages),
    ("stats_totals", Show::StatsTotals),
    ("switchovers", Show::Switchovers),
    ("totals", Show::Totals),
    ("users", Show::Users),
    ("version", Show::Version),
];

/// Parameters that drivers ask for or set at once.
const PARAMETERS: [(&str, &str); 5] = [
    ("client_encoding", "UTF-8"),
    ("default_transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "GMT"),
];

/// Longest command word, longest argument and key, in bytes with their quotes, plus one.
const WORD_MAX: usize = 16;
const ARGUMENT_MAX: usize = 64;

/// Reads a query; the error is the text for the console.
pub fn parse(query: &str) -> Result<Command, String> {
    let invalid = || format!("invalid command '{query}', use SHOW HELP;");
    if let Some(question) = explain::parse(query) {
        return Ok(Command::ExplainRoute(question));
    }
    let text = skip_blanks(query);
    let Some((verb, rest)) = word(text) else { return Err(invalid()) };
    if let Some(command) = two_words(&verb.text, rest) {
        return command;
    }
    let gap = skip_blanks(rest);
    let (argument, rest) = match word(gap) {
        Some((argument, rest)) => (Some(argument), rest),
        None => (None, gap),
    };
    if is_end(rest) {
        let long = argument.as_ref().is_some_and(|argument| argument.len >= ARGUMENT_MAX);
        if verb.len >= WORD_MAX || long {
            return Err("bad arguments".into());
        }
        let argument = argument.map(|word| word.text);
        return command(&verb.text.to_ascii_lowercase(), argument).ok_or_else(invalid);
    }
    let setting = assignment(gap).ok_or_else(invalid)?;
    if verb.len >= WORD_MAX || setting.key.len >= ARGUMENT_MAX {
        return Err("bad arguments".into());
    }
    let set = verb.text.eq_ignore_ascii_case("set");
    set.then(|| set_command(setting)).ok_or_else(invalid)
}

/// SWITCHOVER, which may name a node as well, and SWITCHOVER_ABORT, whose word is longer than any
/// of PgBouncer's.
fn two_words(verb: &str, rest: &str) -> Option<Result<Command, String>> {
    let verb = verb.to_ascii_lowercase();
    let (database, rest) = word(skip_blanks(rest))?;
    let (node, rest) = match word(skip_blanks(rest)) {
        Some((node, rest)) => (Some(node), rest),
        None => (None, rest),
    };
    let command = match (verb.as_str(), &node) {
        ("switchover", _) => cluster::Command::Switchover(node.as_ref().map(|n| n.text.clone())),
        ("switchover_abort", None) => cluster::Command::Abort,
        _ => return None,
    };
    if !is_end(rest) {
        return None;
    }
    if database.len >= ARGUMENT_MAX || node.is_some_and(|node| node.len >= ARGUMENT_MAX) {
        return Some(Err("bad arguments".into()));
    }
    Some(Ok(Command::Cluster(database.text, command)))
}

fn command(word: &str, argument: Option<String>) -> Option<Command> {
    Some(match (word, argument) {
        ("show" | "select", Some(object)) => Command::Show(show(&object.to_ascii_lowercase())?),
        ("reload", None) => Command::Reload,
        ("suspend", None) => Command::Suspend,
        ("pause", database) => Command::Pause(database),
        ("resume", database) => Command::Resume(database),
        ("reconnect", database) => Command::Reconnect(database),
        ("disable", database) => Command::Disable(database),
        ("enable", database) => Command::Enable(database),
        ("kill", database) => Command::Kill(database),
        ("kill_client", client) => Command::KillClient(client.unwrap_or_default()),
        ("wait_close", database) => Command::WaitClose(database),
        ("probe", Some(database)) => Command::Cluster(database, cluster::Command::Probe),
        ("hold", Some(database)) => Command::Cluster(database, cluster::Command::Hold),
        ("release", Some(database)) => Command::Cluster(database, cluster::Command::Release),
        ("shutdown", None) => Command::Shutdown(Shutdown::Now),
        ("shutdown", Some(mode)) => match mode.to_ascii_lowercase().as_str() {
            "wait_for_clients" => Command::Shutdown(Shutdown::WaitForClients),
            "wait_for_servers" => Command::Shutdown(Shutdown::WaitForServers),
            _ => return None,
        },
        _ => return None,
    })
}

fn show(object: &str) -> Option<Show> {
    if let Some((name, value)) = PARAMETERS.iter().find(|(name, _)| *name == object) {
        return Some(Show::Parameter(name, value));
    }
    OBJECTS.iter().find(|(name, _)| *name == object).map(|(_, show)| *show)
}

fn set_command(setting: Setting) -> Command {
    let key = setting.key.text.to_ascii_lowercase();
    let ignored = PARAMETERS.iter().any(|(name, _)| *name == key);
    if ignored { Command::SetIgnored } else { Command::Set(key, setting.value) }
}

/// Both sides of an assignment.
struct Setting {
    key: Word,
    value: String,
}

/// `WORD (= | to) (WORD | 'text')` up to the end. The blanks around `to` may be missing: what
/// cannot be read as a key and `to` is tried with a shorter key.
fn assignment(text: &str) -> Option<Setting> {
    let (key, rest) = word(text)?;
    let after = skip_blanks(rest);
    let to = |rest: &str| {
        let word = rest.get(..2).filter(|to| to.eq_ignore_ascii_case("to"));
        word.and_then(|_| value(&rest[2..]))
    };
    let found = after.strip_prefix('=').and_then(value).or_else(|| to(after));
    if let Some(value) = found {
        return Some(Setting { key, value });
    }
    let bare = !text.starts_with('"');
    (1..key.text.len()).rev().filter(|_| bare).find_map(|end| {
        let value = to(&text[end..])?;
        Some(Setting { key: Word { text: text[..end].into(), len: end }, value })
    })
}

/// `WORD` or `'text'`, up to the end.
fn value(text: &str) -> Option<String> {
    let text = skip_blanks(text);
    let (value, rest) = match text.strip_prefix('\'') {
        Some(quoted) => quoted_by('\'', quoted)?,
        None => word(text).map(|(word, rest)| (word.text, rest))?,
    };
    is_end(rest).then_some(value)
}

/// A word without its quotes, and its length with them.
struct Word {
    text: String,
    len: usize,
}

/// A bare or quoted word and what follows it.
fn word(text: &str) -> Option<(Word, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let (word, rest) = quoted_by('"', quoted)?;
        return Some((Word { text: word, len: text.len() - rest.len() }, rest));
    }
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = text.find(|c| !bare(c)).unwrap_or(text.len());
    (end > 0).then(|| (Word { text: text[..end].into(), len: end }, &text[end..]))
}

/// The rest of a text in quotes, where two quotes stand for one, and what follows it.
fn quoted_by(quote: char, mut rest: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    loop {
        let (part, tail) = rest.split_once(quote)?;
        text.push_str(part);
        match tail.strip_prefix(quote) {
            Some(tail) => {
                text.push(quote);
                rest = tail;
            }
            None => return Some((text, tail)),
        }
    }
}

fn skip_blanks(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\r', '\n'])
}

fn is_end(rest: &str) -> bool {
    let rest = skip_blanks(rest);
    skip_blanks(rest.strip_prefix(';').unwrap_or(rest)).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let check = |text: &str| parse(text);
        assert_eq!(check(" show  Version ;"), Ok(Command::Show(Show::Version)));
        assert_eq!(check("select pools"), Ok(Command::Show(Show::Pools)));
        assert_eq!(check("PAUSE \"a\"\"b\";"), Ok(Command::Pause(Some("a\"b".into()))));
        assert_eq!(check("set x = 'it''s'"), Ok(Command::Set("x".into(), "it's".into())));
        assert_eq!(check("SET X to 5;"), Ok(Command::Set("x".into(), "5".into())));
        assert_eq!(check("set timezone to 'x'"), Ok(Command::SetIgnored));
        for (name, show) in OBJECTS {
            assert_eq!(check(&format!("show {name}")), Ok(Command::Show(*show)));
        }
        let shutdown = Command::Shutdown(Shutdown::WaitForClients);
        assert_eq!(check("shutdown wait_for_clients"), Ok(shutdown));
        for wrong in [
            "",
            " ",
            ";",
            ";;",
            "nope",
            "show",
            "show nope",
            "show version;;",
            "reload x",
            "suspend x",
            "set x = -1",
            "set x=1.5",
            "set x = 'a' b",
            "set x",
            "set x=",
            "pause a b",
            "pause \u{e9}",
            "show 'version'",
            "show version -- x",
            "show version;x",
            "begin",
            "abcdefghijklmno",
            "pause \"a",
            "shutdown foo",
        ] {
            let text = format!("invalid command '{wrong}', use SHOW HELP;");
            assert_eq!(check(wrong), Err(text));
        }
    }

    #[test]
    fn blanks_may_be_missing_where_nothing_is_ambiguous() {
        let set = |value: &str| Ok(Command::Set("x".into(), value.into()));
        for text in ["set x=1", "set x = 1", "set x to 1", "set x to1", "set xto 1", "SET x TO'1'"]
        {
            assert_eq!(parse(text), set("1"), "{text}");
        }
        assert_eq!(parse("set \"x\" = \"1\" ;\r\n"), set("1"));
        assert_eq!(parse("set x = ''"), set(""));
        assert_eq!(parse("\"show\"\tversion"), Ok(Command::Show(Show::Version)));
        assert_eq!(parse("pause\"a\""), Ok(Command::Pause(Some("a".into()))));
    }

    #[test]
    fn lengths_count_quotes() {
        let too_long = Err("bad arguments".to_owned());
        let word = |len: usize| "a".repeat(len);
        assert_eq!(parse(&word(16)), too_long);
        assert!(parse(&format!("pause {}", word(63))).is_ok());
        assert_eq!(parse(&format!("pause {}", word(64))), too_long);
        assert!(parse(&format!("pause \"{}\"", word(61))).is_ok());
        assert_eq!(parse(&format!("pause \"{}\"", word(62))), too_long);
        assert!(parse(&format!("set {} = 1", word(63))).is_ok());
        assert_eq!(parse(&format!("set {} = 1", word(64))), too_long);
        let long = word(100_000);
        assert_eq!(parse(&format!("set a = '{long}'")), Ok(Command::Set("a".into(), long)));
    }
}
