//! `switchyard test-hooks`: what the configured rules and functions say about statements, without a
//! server and without a pooler. With a file of cases, where they say something else than expected.

mod asker;
mod cases;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches, Parser};
use switchyard_config::Config;
use switchyard_core::hook::frame::{Block, Outcome, Verdict};
use switchyard_core::rules::{Place, Subject};

use crate::log::{Log, Stderr};
use crate::reload::{self, Occasion};
use crate::rules::{Decided, NativeRules};
use asker::Asker;
use cases::{Case, Expected};

/// Runs the configured rules and functions for statements, without a server.
///
/// A line of a file of cases holds user, SQL, expected key and expected text, separated by tabs or
/// as CSV. An empty field (or `-`) expects no key or the same text, a missing one expects nothing;
/// lines that begin with `#` are left out. The exit code is 1 if anything differs or fails.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// Login user of the statements.
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    user: String,
    /// Entry that the user logged in to.
    #[arg(long, value_name = "NAME", default_value = "")]
    database: String,
    /// Statements stand inside a transaction.
    #[arg(long)]
    in_transaction: bool,
    /// A file of cases.
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// Configuration file.
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    /// Statements.
    #[arg(value_name = "SQL")]
    statements: Vec<String>,
}

/// Name of the command.
pub const COMMAND: &str = "test-hooks";

/// Everything that decides.
struct Bench {
    config: Config,
    rules: NativeRules,
    asker: Option<Asker>,
}

/// What was said about a statement: by whom, and what.
struct Said {
    by: String,
    what: Result<Option<String>, String>,
}

impl Arguments {
    /// The arguments behind the command's name; otherwise everything has been said.
    pub fn read(words: &[String]) -> Result<Self, ExitCode> {
        let command = Arguments::command().name(COMMAND).bin_name(format!("switchyard {COMMAND}"));
        let name = [COMMAND.to_owned()];
        let found = command.try_get_matches_from(name.iter().chain(words));
        let arguments = found.and_then(|found| Arguments::from_arg_matches(&found));
        let arguments = arguments.map_err(|error| {
            // Its text is all that there is to say.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
        })?;
        if arguments.cases.is_none() && arguments.statements.is_empty() {
            eprintln!("{COMMAND}: neither SQL nor --cases");
            return Err(ExitCode::from(2));
        }
        Ok(arguments)
    }
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> ExitCode {
    match try_run(arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(text) => {
            eprintln!("{COMMAND}: {text}");
            ExitCode::from(2)
        }
    }
}

fn try_run(arguments: &Arguments) -> Result<usize, String> {
    let log = Arc::new(Log::new(Stderr::Show));
    let config = reload::read_config(&arguments.config, &log, Occasion::Reload)
        .map_err(|_| "cannot load config file")?;
    let cases = match &arguments.cases {
        Some(path) => cases::read(path)?,
        None => Vec::new(),
    };
    let rules = NativeRules::new(&config).map_err(|errors| errors.join("\n"))?;
    let asker = Asker::start(&config, &log)?;
    let mut bench = Bench { config, rules, asker };
    let mut wrong = 0;
    for sql in &arguments.statements {
        let [text, key] = bench.judge(arguments, &arguments.user, sql);
        wrong += usize::from(text.what.is_err() || key.what.is_err());
        println!("{}", one_line(sql));
        println!("  dbkey  {}", bench.describe_key(&key));
        println!("  text   {}", describe(&text, "unchanged"));
    }
    if arguments.cases.is_some() {
        let differing = cases.iter().filter(|case| !bench.passes(arguments, case)).count();
        println!("{} cases, {differing} differ", cases.len());
        wrong += differing;
    }
    if let Some(asker) = bench.asker {
        asker.end();
    }
    Ok(wrong)
}

impl Bench {
    /// What becomes of a statement's text, and its key.
    fn judge(&mut self, arguments: &Arguments, user: &str, sql: &str) -> [Said; 2] {
        let (place, block) = match arguments.in_transaction {
            true => (Place::Inside, Block::Inside),
            false => (Place::Outside, Block::Outside),
        };
        let (database, query) = (arguments.database.as_str(), sql.as_bytes());
        let native =
            self.rules.consider(&Subject { user: user.as_bytes(), database, query, place });
        let verdict = match (native.asked(), &mut self.asker) {
            (Some(asked), Some(asker)) => {
                asker.ask(user, native.text().unwrap_or(query), asked, block)
            }
            (Some(_), None) | (None, _) => Verdict { rewrite: Outcome::Off, route: Outcome::Off },
        };
        [
            said("rewrite_query", native.rewrite, verdict.rewrite),
            said("routing_rules", native.route, verdict.route),
        ]
    }

    fn describe_key(&self, key: &Said) -> String {
        let text = describe(key, "none");
        match &key.what {
            Ok(Some(name)) if !self.knows(name) => format!("{text}: no such database"),
            Ok(_) | Err(_) => text,
        }
    }

    fn knows(&self, key: &str) -> bool {
        let plain = key.split_once('@').map_or(key, |(database, _)| database);
        let databases = &self.config.databases;
        self.config.automatic.is_some()
            || databases.contains_key(key)
            || databases.get(plain).is_some_and(|entry| entry.topology_query.is_some())
    }

    /// Whether a case comes out as expected; what differs is printed.
    fn passes(&mut self, arguments: &Arguments, case: &Case) -> bool {
        let [text, key] = self.judge(arguments, &case.user, &case.sql);
        let mut lines = Vec::new();
        compare("dbkey", &case.key, "none", &key, &mut lines);
        let same = |expected: &String| *expected == case.sql;
        let expected = match &case.text {
            Expected::Text(text) if same(text) => &Expected::Nothing,
            expected => expected,
        };
        compare("text", expected, "unchanged", &text, &mut lines);
        if lines.is_empty() {
            return true;
        }
        println!("line {}: {}: {}", case.line, case.user, one_line(&case.sql));
        lines.iter().for_each(|line| println!("{line}"));
        false
    }
}

fn said(function: &str, rule: Option<Decided>, outcome: Outcome) -> Said {
    let (by, outcome) = match rule {
        Some(decided) => (format!("rule \"{}\"", decided.rule), decided.outcome),
        None => (function.to_owned(), outcome),
    };
    match outcome {
        Outcome::Off => Said { by: String::new(), what: Ok(None) },
        Outcome::Same | Outcome::None => Said { by, what: Ok(None) },
        Outcome::Given(text) => {
            Said { by, what: Ok(Some(String::from_utf8_lossy(&text).into_owned())) }
        }
        Outcome::Failed(trouble) => Said { by, what: Err(trouble.reason) },
    }
}

fn one_line(sql: &str) -> String {
    sql.replace('\n', "\\n").replace('\t', "\\t")
}

fn describe(said: &Said, nothing: &str) -> String {
    let by = if said.by.is_empty() { String::new() } else { format!("  ({})", said.by) };
    match &said.what {
        Ok(None) => format!("{nothing}{by}"),
        Ok(Some(text)) => format!("{}{by}", one_line(text)),
        Err(reason) => format!("failed: {reason}{by}"),
    }
}

/// Adds the lines of a difference, if there is one. A failure is one whatever was expected.
fn compare(name: &str, expected: &Expected, nothing: &str, found: &Said, lines: &mut Vec<String>) {
    let differs = match (expected, &found.what) {
        (_, Err(_)) => true,
        (Expected::Anything, Ok(_)) => false,
        (Expected::Nothing, Ok(found)) => found.is_some(),
        (Expected::Text(text), Ok(found)) => found.as_ref() != Some(text),
    };
    if !differs {
        return;
    }
    let wanted = match expected {
        Expected::Anything => "anything but a failure".into(),
        Expected::Nothing => nothing.to_owned(),
        Expected::Text(text) => one_line(text),
    };
    lines.push(format!("  {name:<6} - {wanted}"));
    lines.push(format!("         + {}", describe(found, nothing)));
}
