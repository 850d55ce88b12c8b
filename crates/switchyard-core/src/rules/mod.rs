//! Native rules: where a message goes and what its text becomes, decided in the loop from the
//! sections `[routes]` and `[rewrites]`. Rules are asked in their order and the first that fits
//! decides; what none decides goes to the user's functions.
//!
//! Not here: the SQL parser. A rule that asks for tables, kinds or reading gets [`Facts`] from
//! whoever has one, at most once a message. Where they cannot be had the rule has failed, and the
//! shell applies its policy: a rule never fits by accident.

mod grammar;

use regex::bytes::{Regex, RegexSet};

pub use grammar::RuleError;

/// Whether a message stands inside a transaction block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It does.
    Inside,
    /// It does not.
    Outside,
}

/// Whether a message only reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does.
    Reads,
    /// It may write.
    Writes,
}

/// What the SQL parser says about a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Kinds of the statements, in lower case.
    pub kinds: Vec<String>,
    /// Tables, with their schema where it was written.
    pub tables: Vec<String>,
    /// Whether all statements only read.
    pub effect: Effect,
}

/// What rules look at.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Login user.
    pub user: &'a [u8],
    /// The database the client logged in to.
    pub database: &'a str,
    /// Text of the message.
    pub query: &'a [u8],
    /// Where it stands.
    pub place: Place,
}

/// A rule of `[routes]` or `[rewrites]`.
#[derive(Clone, Debug)]
struct Rule {
    name: String,
    conditions: Vec<Condition>,
    query: Option<Regex>,
    outcome: String,
}

/// What has to hold besides the regular expression for the text; cheap ones first.
#[derive(Clone, Debug)]
enum Condition {
    Place(Place),
    Database(String),
    User(Regex),
    Kinds(Vec<String>),
    Tables(Vec<Table>),
    Effect(Effect),
}

/// A table in a rule: without a schema it fits in any.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    schema: Option<String>,
    name: String,
}

/// What the rules say about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Nothing: it is for the functions to say.
    None,
    /// This rule's outcome: a key, or the text after rewriting.
    Some(&'a str, Vec<u8>),
    /// This rule could not be judged; why.
    Failed(&'a str, String),
}

/// Finds out about a text, if there is a parser.
pub type Ask<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Facts, String>;

/// The rules of one section.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    /// All regular expressions for the text in one, in the order of `queries`.
    set: Option<RegexSet>,
    /// Index in `set` of each rule's expression.
    queries: Vec<Option<usize>>,
}

/// Which section rules are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// `[routes]`.
    Routes,
    /// `[rewrites]`.
    Rewrites,
}

impl Rules {
    /// Compiles the rules of a section, given as names and texts. All errors are found.
    pub fn new(section: Section, texts: &[(String, String)]) -> Result<Rules, Vec<RuleError>> {
        let mut rules = Rules::default();
        let mut errors = Vec::new();
        let mut patterns = Vec::new();
        for (name, text) in texts {
            match grammar::rule(section, name, text) {
                Ok(rule) => {
                    rules.queries.push(rule.query.as_ref().map(|query| {
                        patterns.push(query.as_str().to_owned());
                        patterns.len() - 1
                    }));
                    rules.rules.push(rule);
                }
                Err(cause) => errors.push(RuleError { section, rule: name.clone(), cause }),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        // One pass over the text finds all expressions that fit; each alone was valid, so that
        // only their common size can be too much. Then they are asked one by one.
        if patterns.len() > 1 {
            rules.set = RegexSet::new(&patterns).ok();
        }
        Ok(rules)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a rule needs to know what the SQL parser says.
    pub fn needs_parser(&self) -> Option<&str> {
        let needs = |condition: &Condition| match condition {
            Condition::Kinds(_) | Condition::Tables(_) | Condition::Effect(_) => true,
            Condition::Place(_) | Condition::Database(_) | Condition::User(_) => false,
        };
        let rule = self.rules.iter().find(|rule| rule.conditions.iter().any(needs))?;
        Some(&rule.name)
    }

    /// Keys that rules of `[routes]` name, each with its rule.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules.iter().map(|rule| (rule.name.as_str(), rule.outcome.as_str()))
    }

    /// Where a message goes, by `[routes]`.
    pub fn route(&self, subject: &Subject<'_>, ask: Ask<'_>) -> Decision<'_> {
        self.decide(subject, ask, |rule| rule.outcome.clone().into_bytes())
    }

    /// What a text becomes, by `[rewrites]`: every match of the rule's expression is replaced.
    pub fn rewrite(&self, subject: &Subject<'_>, ask: Ask<'_>) -> Decision<'_> {
        self.decide(subject, ask, |rule| match &rule.query {
            Some(query) => query.replace_all(subject.query, rule.outcome.as_bytes()).into_owned(),
            None => rule.outcome.clone().into_bytes(),
        })
    }

    fn decide(
        &self,
        subject: &Subject<'_>,
        ask: Ask<'_>,
        outcome: impl FnOnce(&Rule) -> Vec<u8>,
    ) -> Decision<'_> {
        if self.rules.is_empty() {
            return Decision::None;
        }
        // Most messages fit no rule, which is found out faster than which rules fit.
        let all_look = self.queries.iter().all(Option::is_some);
        if let Some(set) = self.set.as_ref().filter(|_| all_look)
            && !set.is_match(subject.query)
        {
            return Decision::None;
        }
        let matches = self.set.as_ref().map(|set| set.matches(subject.query));
        let mut facts: Option<Result<Facts, String>> = None;
        for (rule, index) in self.rules.iter().zip(&self.queries) {
            let fits = match (index, &matches, &rule.query) {
                (Some(index), Some(matches), _) => matches.matched(*index),
                (_, _, Some(query)) => query.is_match(subject.query),
                (_, _, None) => true,
            };
            if !fits {
                continue;
            }
            let mut know = || facts.get_or_insert_with(|| ask(subject.query)).clone();
            match rule.holds(subject, &mut know) {
                Ok(true) => return Decision::Some(&rule.name, outcome(rule)),
                Ok(false) => {}
                Err(cause) => return Decision::Failed(&rule.name, cause),
            }
        }
        Decision::None
    }
}

impl Rule {
    fn holds(
        &self,
        subject: &Subject<'_>,
        know: &mut dyn FnMut() -> Result<Facts, String>,
    ) -> Result<bool, String> {
        for condition in &self.conditions {
            let holds = match condition {
                Condition::Place(place) => subject.place == *place,
                Condition::Database(name) => subject.database == name,
                Condition::User(user) => user.is_match(subject.user),
                Condition::Kinds(kinds) => {
                    let found = know()?.kinds;
                    !found.is_empty() && found.iter().all(|kind| kinds.contains(kind))
                }
                Condition::Tables(tables) => {
                    let found = know()?.tables;
                    found.iter().any(|found| tables.iter().any(|table| table.fits(found)))
                }
                Condition::Effect(effect) => know()?.effect == *effect,
            };
            if !holds {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Table {
    /// Whether a table of a statement is meant.
    fn fits(&self, found: &str) -> bool {
        let (schema, name) = match found.rsplit_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, found),
        };
        self.name == name && (self.schema.is_none() || self.schema.as_deref() == schema)
    }
}

#[cfg(test)]
mod tests;
