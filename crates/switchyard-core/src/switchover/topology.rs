//! The result of a topology query as a list of named nodes.
//!
//! Not here: when the query runs, and what becomes of nodes that come or go (`discovery`).

use std::collections::HashMap;

/// Where a node listens. Two nodes are the same when these are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Host name, address, or a socket directory that starts with `/`.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Endpoint {
    /// Reads `name`, `name:port`, `IPv4[:port]`, `[IPv6]:port`, `IPv6` or `/socketdir`; the port
    /// is `port`, else the one in the text, else `default`.
    pub fn parse(text: &str, port: Option<u16>, default: u16) -> Option<Self> {
        let text = text.trim();
        let (host, own) = split_port(text)?;
        let fits = !host.is_empty() && host.len() <= HOST_MAX;
        let fits = fits && !host.chars().any(|c| c.is_whitespace() || c.is_control());
        let endpoint = Endpoint { host: host.to_owned(), port: port.or(own).unwrap_or(default) };
        (fits && endpoint.port != 0).then_some(endpoint)
    }

    /// The first label of a host name; addresses and directories have none.
    pub(super) fn label(&self) -> Option<&str> {
        let is_name = !self.host.starts_with('/')
            && !self.host.contains(':')
            && self.host.parse::<core::net::IpAddr>().is_err();
        is_name.then(|| self.host.split('.').next()).flatten().filter(|label| !label.is_empty())
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') && !self.host.starts_with('/') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, tail) = rest.split_once(']')?;
        return match tail.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None => tail.is_empty().then_some((host, None)),
        };
    }
    if text.starts_with('/') {
        return Some((text, None));
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => Some((host, Some(port.parse().ok()?))),
        Some(_) | None => Some((text, None)),
    }
}

/// One row of a topology query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopologyRow {
    /// Where the node listens; NULL rows are skipped.
    pub endpoint: Option<String>,
    /// Port column.
    pub port: Option<String>,
    /// The node's own name.
    pub id: Option<String>,
    /// A hint at its role.
    pub role: Option<String>,
}

/// Sorts the columns of a result into rows: by name where names are known, else by position.
pub fn rows(columns: &[String], values: Vec<Vec<Option<String>>>) -> Vec<TopologyRow> {
    let find = |names: &[&str]| {
        columns.iter().position(|c| names.iter().any(|name| c.eq_ignore_ascii_case(name)))
    };
    let mut endpoint = find(&["endpoint", "host", "hostname", "node", "address"]);
    let mut port = find(&["port"]);
    let mut id = find(&["id", "name", "node_id"]);
    let role = find(&["role"]);
    if endpoint.is_none() {
        (id, endpoint, port) = match columns.len() {
            0 => (None, None, None),
            1 => (None, Some(0), None),
            2 => (None, Some(0), Some(1)),
            _ => (Some(0), Some(1), Some(2)),
        };
    }
    let row = |mut values: Vec<Option<String>>| {
        let mut take = |at: Option<usize>| values.get_mut(at?).and_then(Option::take);
        TopologyRow { endpoint: take(endpoint), port: take(port), id: take(id), role: take(role) }
    };
    values.into_iter().map(row).collect()
}

/// A node of the list, with its name inside the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its name.
    pub name: String,
    /// What the row says of its role.
    pub hint: Hint,
}

/// The role that a row hints at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Nothing.
    None,
    /// It should be the writer.
    Writer,
    /// It should not.
    Other,
}

impl Hint {
    fn of(role: Option<&str>) -> Self {
        match role.map(|text| text.trim().to_ascii_lowercase()).as_deref() {
            None | Some("") => Hint::None,
            Some("writer" | "primary" | "master" | "leader" | "source") => Hint::Writer,
            Some(_) => Hint::Other,
        }
    }
}

/// The nodes of a result, and a text for each row that had to be ignored.
pub fn listed(rows: &[TopologyRow], default_port: u16) -> (Vec<Listed>, Vec<String>) {
    let mut found: Vec<(Endpoint, &TopologyRow)> = Vec::new();
    let mut ignored = Vec::new();
    for row in rows {
        let Some(text) = row.endpoint.as_deref().filter(|text| !text.trim().is_empty()) else {
            ignored.push("row without endpoint".to_owned());
            continue;
        };
        let port = row.port.as_deref().map(str::trim).filter(|text| !text.is_empty());
        let parsed = match port.map(str::parse) {
            None => Endpoint::parse(text, None, default_port),
            Some(Ok(port)) => Endpoint::parse(text, Some(port), default_port),
            Some(Err(_)) => None,
        };
        match parsed {
            None => ignored.push(format!("endpoint \"{text}\" port \"{}\"", port.unwrap_or(""))),
            Some(endpoint) if found.iter().any(|(known, _)| *known == endpoint) => {}
            Some(_) if found.len() == NODES_MAX => ignored.push(format!("more than {NODES_MAX}")),
            Some(endpoint) => found.push((endpoint, row)),
        }
    }
    let (ids, labels) = (count(found.iter().map(id)), count(found.iter().map(|f| f.0.label())));
    let name = |item: &(Endpoint, &TopologyRow)| {
        let unique = |text: &str, all: &HashMap<String, usize>| all.get(text) == Some(&1);
        let named = id(item).filter(|text| unique(text, &ids));
        named.or_else(|| item.0.label().filter(|text| unique(text, &labels))).map(str::to_owned)
    };
    let node = |item: (Endpoint, &TopologyRow)| Listed {
        name: name(&item).unwrap_or_else(|| item.0.to_string()),
        hint: Hint::of(item.1.role.as_deref()),
        endpoint: item.0,
    };
    (found.into_iter().map(node).collect(), ignored)
}

fn id<'a>(item: &(Endpoint, &'a TopologyRow)) -> Option<&'a str> {
    let fits = |text: &&str| !text.is_empty() && !text.chars().any(char::is_whitespace);
    item.1.id.as_deref().filter(fits)
}

fn count<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    texts.flatten().for_each(|text| *counts.entry(text.to_owned()).or_insert(0) += 1);
    counts
}

/// Most nodes of one cluster.
pub const NODES_MAX: usize = 64;
/// Longest host name or directory in bytes.
const HOST_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &str, lines: &[&str]) -> String {
        let columns: Vec<_> = columns.split('|').map(str::to_owned).collect();
        let cell = |text: &str| (text != "NULL").then(|| text.to_owned());
        let values = lines.iter().map(|line| line.split('|').map(cell).collect()).collect();
        let (nodes, ignored) = listed(&rows(&columns, values), 5432);
        let nodes = nodes.iter().map(|node| format!("{}={}", node.name, node.endpoint));
        nodes.chain(ignored.iter().map(|text| format!("!{text}"))).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn results_become_named_nodes() {
        for (columns, lines, wanted) in [
            (
                "x",
                &["a.example.com", "b.example.com:5433"][..],
                "a=a.example.com:5432 b=b.example.com:5433",
            ),
            (
                "x|y",
                &["127.0.0.1|5001", "127.0.0.1|5002"],
                "127.0.0.1:5001=127.0.0.1:5001 127.0.0.1:5002=127.0.0.1:5002",
            ),
            ("i|e|p", &["n1|10.0.0.1|5432", "n2|::1|5432"], "n1=10.0.0.1:5432 n2=[::1]:5432"),
            ("PORT|Endpoint|ID", &["1|a|x", "2|a|x"], "a:1=a:1 a:2=a:2"),
            ("endpoint|port", &["a.x|1", "a.y|NULL", "a.x|1"], "a.x:1=a.x:1 a.y:5432=a.y:5432"),
            ("host|id", &["a|n 1", "NULL|n2", "b|n2"], "a=a:5432 n2=b:5432 !row without endpoint"),
            (
                "x",
                &["[::1]:5433", "/run/pg", "c:"],
                "[::1]:5433=[::1]:5433 /run/pg:5432=/run/pg:5432 !endpoint \"c:\" port \"\"",
            ),
            ("x|y", &["a|x"], "!endpoint \"a\" port \"x\""),
        ] {
            assert_eq!(table(columns, lines), wanted, "{columns} {lines:?}");
        }
    }
}
