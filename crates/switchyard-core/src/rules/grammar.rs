//! The grammar of a rule: `key=value … -> OUTCOME`, with values and quotes as in connection
//! strings. Names of tables fold case as in SQL.

use std::fmt;

use regex::bytes::Regex;

use super::{Condition, Effect, Place, Rule, Section, Table};

/// A rule that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    /// Section it stands in.
    pub section: Section,
    /// Name of the rule.
    pub rule: String,
    /// What is wrong with it.
    pub cause: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let section = match self.section {
            Section::Routes => "routes",
            Section::Rewrites => "rewrites",
        };
        write!(f, "invalid rule \"{}\" in section \"{section}\": {}", self.rule, self.cause)
    }
}

/// Reads one rule.
pub(super) fn rule(section: Section, name: &str, text: &str) -> Result<Rule, String> {
    let (left, right) = split(text).ok_or("there is no \" -> \"")?;
    let mut rule = Rule {
        name: name.into(),
        conditions: Vec::new(),
        query: None,
        outcome: unquote(right.trim())?,
    };
    let mut rest = left.trim();
    while !rest.is_empty() {
        let (key, value, tail) = pair(rest)?;
        rest = tail.trim_start();
        match key {
            "query" if rule.query.is_some() => return Err("query= stands twice".into()),
            "query" => rule.query = Some(regex(&value)?),
            _ => rule.conditions.push(condition(key, &value)?),
        }
    }
    // The parser is asked last: it costs most.
    rule.conditions.sort_by_key(|condition| match condition {
        Condition::Place(_) => 0,
        Condition::Database(_) => 1,
        Condition::User(_) => 2,
        Condition::Kinds(_) | Condition::Tables(_) | Condition::Effect(_) => 3,
    });
    match (section, &rule.query) {
        (Section::Routes, _) if rule.outcome.is_empty() => Err("there is no key".into()),
        (Section::Routes, _) => Ok(rule),
        (Section::Rewrites, None) => Err("a rewrite needs query=".into()),
        (Section::Rewrites, Some(query)) => {
            references(query, &rule.outcome)?;
            Ok(rule)
        }
    }
}

fn condition(key: &str, value: &str) -> Result<Condition, String> {
    let truth = || match value {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        other => Err(format!("{key}= takes 0 or 1, not \"{other}\"")),
    };
    Ok(match key {
        "user" => Condition::User(regex(value)?),
        "database" => Condition::Database(value.into()),
        "in_transaction" => Condition::Place(if truth()? { Place::Inside } else { Place::Outside }),
        "read_only" => Condition::Effect(if truth()? { Effect::Reads } else { Effect::Writes }),
        "kind" => {
            let kinds = value.split(['|', ',']).map(|kind| kind.trim().to_ascii_lowercase());
            Condition::Kinds(kinds.collect())
        }
        "table" => {
            let tables: Option<Vec<Table>> = value.split([',', '|']).map(table).collect();
            Condition::Tables(tables.ok_or_else(|| format!("\"{value}\" is no list of tables"))?)
        }
        other => return Err(format!("unknown condition \"{other}\"")),
    })
}

fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| {
        let text = error.to_string();
        text.lines().last().unwrap_or_default().to_owned()
    })
}

/// Every `$1` and `${name}` of a rewrite must exist, or it would silently be empty.
fn references(query: &Regex, outcome: &str) -> Result<(), String> {
    let bytes = outcome.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'$' {
            at += 1;
            continue;
        }
        if bytes.get(at + 1) == Some(&b'$') {
            at += 2;
            continue;
        }
        let rest = &outcome[at + 1..];
        let name = match rest.strip_prefix('{') {
            Some(rest) => rest.split('}').next().unwrap_or_default(),
            None => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                &rest[..end.unwrap_or(rest.len())]
            }
        };
        let known = match name.parse::<usize>() {
            Ok(number) => number < query.captures_len(),
            Err(_) => query.capture_names().flatten().any(|known| known == name),
        };
        if !known {
            return Err(format!(
                "there is no group \"{name}\"; write ${{1}}x for group 1 before an x, and $$ for \
                 a dollar"
            ));
        }
        at += 1 + name.len();
    }
    Ok(())
}

/// A name as SQL reads it: folded to lower case unless it stands in double quotes.
fn table(text: &str) -> Option<Table> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let (part, tail) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (part, tail) = quoted.split_once('"')?;
                (part.to_owned(), tail)
            }
            None => {
                let (part, tail) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
                (part.to_lowercase(), tail)
            }
        };
        if part.is_empty() {
            return None;
        }
        parts.push(part);
        match tail.strip_prefix('.') {
            Some(tail) => rest = tail,
            None if tail.is_empty() => break,
            None => return None,
        }
    }
    let name = parts.pop()?;
    let schema = parts.pop();
    parts.is_empty().then_some(Table { schema, name })
}

/// Splits at the first ` -> ` outside quotes; a rule without conditions begins with it.
fn split(text: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    for (at, letter) in text.char_indices() {
        if letter == '\'' {
            quoted = !quoted;
        }
        let before = at == 0 || text[..at].ends_with([' ', '\t']);
        if !quoted && before && text[at..].starts_with("->") {
            let rest = &text[at + 2..];
            if rest.is_empty() || rest.starts_with([' ', '\t']) {
                return Some((&text[..at], rest));
            }
        }
    }
    None
}

/// Reads `key=value` or `key='value'`; answers what follows.
fn pair(text: &str) -> Result<(&str, String, &str), String> {
    let (key, rest) = text.split_once('=').ok_or_else(|| format!("\"{text}\" has no value"))?;
    let rest = rest.trim_start();
    let Some(mut quoted) = rest.strip_prefix('\'') else {
        let end = rest.find([' ', '\t']).unwrap_or(rest.len());
        if end == 0 {
            return Err(format!("{}= has no value", key.trim()));
        }
        return Ok((key.trim(), rest[..end].into(), &rest[end..]));
    };
    let mut value = String::new();
    loop {
        let (part, tail) = quoted.split_once('\'').ok_or("a quote is not closed")?;
        value.push_str(part);
        match tail.strip_prefix('\'') {
            Some(tail) => {
                value.push('\'');
                quoted = tail;
            }
            None => return Ok((key.trim(), value, tail)),
        }
    }
}

/// What stands behind the arrow: as it is, or in single quotes.
fn unquote(text: &str) -> Result<String, String> {
    if !text.starts_with('\'') {
        return Ok(text.into());
    }
    let padded = format!("outcome={text}");
    let (_, value, rest) = pair(&padded)?;
    if rest.trim().is_empty() { Ok(value) } else { Ok(text.into()) }
}
