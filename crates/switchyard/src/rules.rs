//! Native rules as the configuration has them, what the SQL parser tells them, and how often each
//! decided.

use std::sync::atomic::{AtomicU64, Ordering};

use switchyard_config::Config;
use switchyard_core::hook::frame::{Asked, Outcome, Trouble};
use switchyard_core::rules::{Decision, Facts, Rules, Section, Subject};

use crate::hooks::warnings::Warnings;

/// Rules of both sections.
#[derive(Debug, Default)]
pub struct NativeRules {
    /// `[rewrites]`.
    pub rewrites: Numbered,
    /// `[routes]`.
    pub routes: Numbered,
    /// Which warnings may be written.
    pub warnings: Warnings,
}

/// The rules of one section with their counters.
#[derive(Debug, Default)]
pub struct Numbered {
    texts: Vec<(String, String)>,
    rules: Rules,
    counts: Box<[AtomicU64]>,
}

/// What native rules have decided about a message; functions are asked for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Native {
    /// What becomes of the text.
    pub rewrite: Option<Decided>,
    /// Where the message goes.
    pub route: Option<Decided>,
}

/// A rule's decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Name of the rule.
    pub rule: String,
    /// What it said.
    pub outcome: Outcome,
}

impl Native {
    /// Whether no rule fits.
    #[inline]
    pub fn is_silent(&self) -> bool {
        self.rewrite.is_none() && self.route.is_none()
    }

    /// Which functions are left to ask.
    pub fn asked(&self) -> Option<Asked> {
        match (&self.rewrite, &self.route) {
            (None, None) => Some(Asked::Both),
            (Some(_), None) => Some(Asked::Route),
            (None, Some(_)) => Some(Asked::Rewrite),
            (Some(_), Some(_)) => None,
        }
    }

    /// The text after rewriting, if a rule has changed it.
    pub fn text(&self) -> Option<&[u8]> {
        match &self.rewrite.as_ref()?.outcome {
            Outcome::Given(text) => Some(text),
            Outcome::Off | Outcome::Same | Outcome::None | Outcome::Failed(_) => None,
        }
    }
}

impl Numbered {
    fn new(rules: Rules, texts: &[(String, String)]) -> Self {
        let counts = texts.iter().map(|_| AtomicU64::new(0)).collect();
        Numbered { texts: texts.to_vec(), rules, counts }
    }

    /// Name, text and number of decisions of each rule.
    pub fn rows(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        let counted = self.texts.iter().zip(&self.counts);
        counted.map(|((name, text), count)| {
            (name.as_str(), text.as_str(), count.load(Ordering::Relaxed))
        })
    }

    /// Keys that the rules name, each with its rule.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules.keys()
    }

    fn count(&self, decided: Option<&Decided>) {
        let index = decided.and_then(|d| self.texts.iter().position(|(name, _)| *name == d.rule));
        if let Some(count) = index.and_then(|index| self.counts.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl NativeRules {
    /// Compiles the rules of a configuration. All errors are found.
    pub fn new(config: &Config) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let mut compile = |section, texts: &[(String, String)]| match Rules::new(section, texts) {
            Ok(rules) => {
                errors.extend(rules.needs_parser().filter(|_| !HAS_PARSER).map(|rule| {
                    format!("rule \"{rule}\" needs the SQL parser, which this build is without")
                }));
                Numbered::new(rules, texts)
            }
            Err(found) => {
                errors.extend(found.iter().map(ToString::to_string));
                Numbered::default()
            }
        };
        let rewrites = compile(Section::Rewrites, &config.rewrites);
        let routes = compile(Section::Routes, &config.routes);
        let warnings = Warnings::default();
        if errors.is_empty() { Ok(NativeRules { rewrites, routes, warnings }) } else { Err(errors) }
    }

    /// Whether a configuration has the same rules.
    pub fn are_those_of(&self, config: &Config) -> bool {
        self.rewrites.texts == config.rewrites && self.routes.texts == config.routes
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rewrites.texts.is_empty() && self.routes.texts.is_empty()
    }

    /// What the rules say about a message, counted.
    pub fn judge(&self, subject: &Subject<'_>) -> Native {
        let native = self.consider(subject);
        self.rewrites.count(native.rewrite.as_ref());
        self.routes.count(native.route.as_ref());
        native
    }

    /// What the rules say about a message: first what its text becomes, then where that goes.
    pub fn consider(&self, subject: &Subject<'_>) -> Native {
        let mut rewrite = decided(self.rewrites.rules.rewrite(subject, &mut facts));
        if let Some(Decided { outcome, .. }) = &mut rewrite
            && *outcome == Outcome::Given(subject.query.to_vec())
        {
            *outcome = Outcome::Same;
        }
        let mut native = Native { rewrite, route: None };
        let query = native.text().unwrap_or(subject.query);
        let subject = Subject { query, ..*subject };
        native.route = decided(self.routes.rules.route(&subject, &mut facts));
        native
    }
}

fn decided(decision: Decision<'_>) -> Option<Decided> {
    let (rule, outcome) = match decision {
        Decision::None => return None,
        Decision::Some(rule, outcome) => (rule, Outcome::Given(outcome)),
        Decision::Failed(rule, why) => {
            (rule, Outcome::Failed(Trouble::new(&format!("rule \"{rule}\": {why}"))))
        }
    };
    Some(Decided { rule: rule.to_owned(), outcome })
}

/// Whether this build can look into statements.
pub const HAS_PARSER: bool = cfg!(feature = "sql-parser");

/// What the SQL parser says about a text. Bytes that are no UTF-8 cannot be part of a name that a
/// rule asks for.
#[cfg(feature = "sql-parser")]
pub fn facts(text: &[u8]) -> Result<Facts, String> {
    use switchyard_core::rules::Effect;

    let parsed = switchyard_sql::parse(&String::from_utf8_lossy(text))?;
    let effect = if parsed.is_read_only() { Effect::Reads } else { Effect::Writes };
    let tables = parsed.tables().into_iter().map(String::from).collect();
    let kinds = parsed.statements.into_iter().map(|statement| statement.kind).collect();
    Ok(Facts { kinds, tables, effect })
}

/// What the SQL parser says about a text: nothing in this build.
#[cfg(not(feature = "sql-parser"))]
pub fn facts(_text: &[u8]) -> Result<Facts, String> {
    Err("this build is without the SQL parser".into())
}
