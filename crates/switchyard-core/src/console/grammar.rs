//! One command a query: `WORD [WORD]` or `SET WORD = VALUE`.

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
    /// SHUTDOWN.
    Shutdown(Shutdown),
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
    /// A parameter that drivers ask for: name and value.
    Parameter(&'static str, &'static str),
}

const PARAMETERS: [(&str, &str); 5] = [
    ("client_encoding", "UTF-8"),
    ("default_transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "GMT"),
];

const WORD_MAX: usize = 16;
const ARGUMENT_MAX: usize = 64;

/// Reads a query; the error is the text for the console.
pub fn parse(query: &str) -> Result<Command, String> {
    let invalid = || format!("invalid command '{query}', use SHOW HELP;");
    let text = query.trim().trim_end_matches(';').trim_end();
    let (word, rest) = word(text).ok_or_else(invalid)?;
    if word.len() >= WORD_MAX {
        return Err("bad arguments".into());
    }
    if word.eq_ignore_ascii_case("set") {
        return set(rest).ok_or_else(invalid);
    }
    let argument = match rest.trim() {
        "" => None,
        rest => match self::word(rest) {
            Some((argument, "")) => Some(argument),
            _ => return Err(invalid()),
        },
    };
    if argument.as_ref().is_some_and(|argument| argument.len() >= ARGUMENT_MAX) {
        return Err("bad arguments".into());
    }
    command(&word.to_ascii_lowercase(), argument).ok_or_else(invalid)
}

fn command(word: &str, argument: Option<String>) -> Option<Command> {
    Some(match (word, argument) {
        ("show" | "select", Some(object)) => Command::Show(show(&object.to_ascii_lowercase())?),
        ("reload", None) => Command::Reload,
        ("pause", database) => Command::Pause(database),
        ("resume", database) => Command::Resume(database),
        ("reconnect", database) => Command::Reconnect(database),
        ("disable", database) => Command::Disable(database),
        ("enable", database) => Command::Enable(database),
        ("kill", database) => Command::Kill(database),
        ("kill_client", client) => Command::KillClient(client.unwrap_or_default()),
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
    Some(match object {
        "help" => Show::Help,
        "version" => Show::Version,
        "state" => Show::State,
        "config" => Show::Config,
        "databases" => Show::Databases,
        "pools" => Show::Pools,
        "clients" => Show::Clients,
        "servers" => Show::Servers,
        "users" => Show::Users,
        "lists" => Show::Lists,
        "stats" => Show::Stats,
        "stats_totals" => Show::StatsTotals,
        "stats_averages" => Show::StatsAverages,
        "totals" => Show::Totals,
        "clusters" => Show::Clusters,
        "nodes" => Show::Nodes,
        "switchovers" => Show::Switchovers,
        _ => return None,
    })
}

/// `WORD (= | to) (WORD | 'text')`.
fn set(rest: &str) -> Option<Command> {
    let (key, rest) = word(rest.trim_start())?;
    let rest = rest.trim_start();
    let value = match rest.strip_prefix('=') {
        Some(value) => value,
        None => rest
            .get(..3)
            .filter(|to| to.trim_end().eq_ignore_ascii_case("to"))
            .map(|_| &rest[2..])?,
    };
    let value = value.trim();
    let value = match value.strip_prefix('\'') {
        Some(quoted) => quoted.strip_suffix('\'')?.replace("''", "'"),
        None => match word(value) {
            Some((value, "")) => value,
            _ => return None,
        },
    };
    let key = key.to_ascii_lowercase();
    let ignored = PARAMETERS.iter().any(|(name, _)| *name == key);
    Some(if ignored { Command::SetIgnored } else { Command::Set(key, value) })
}

/// A bare or quoted word and what follows it.
fn word(text: &str) -> Option<(String, &str)> {
    if let Some(mut rest) = text.strip_prefix('"') {
        let mut word = String::new();
        loop {
            let (part, tail) = rest.split_once('"')?;
            word.push_str(part);
            match tail.strip_prefix('"') {
                Some(tail) => {
                    word.push('"');
                    rest = tail;
                }
                None => return Some((word, tail.trim_start())),
            }
        }
    }
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = text.find(|c| !bare(c)).unwrap_or(text.len());
    (end > 0).then(|| (text[..end].into(), text[end..].trim_start()))
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
        let shutdown = Command::Shutdown(Shutdown::WaitForClients);
        assert_eq!(check("shutdown wait_for_clients"), Ok(shutdown));
        for wrong in ["", "nope", "show nope", "reload x", "set x = -1", "pause a b"] {
            let text = format!("invalid command '{wrong}', use SHOW HELP;");
            assert_eq!(check(wrong), Err(text));
        }
        assert_eq!(check("abcdefghijklmnopq"), Err("bad arguments".into()));
    }
}
