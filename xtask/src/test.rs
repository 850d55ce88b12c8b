//! Every check, one after the other; all run even if one fails.
//!
//! Integration tests start servers and clients by the hundred, on whatever machine there is. One
//! that fails gets a second run by itself; only what fails again counts, and both are printed.

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::fuzz::{self, Seed};
use crate::{packages, tidy};

/// Where drivers are installed.
const DRIVERS: &str = "target/drivers";
/// Suites that start servers and clients.
const SUITES: [&str; 2] = ["-p switchyard --test it", "-p xtask --bin xtask"];

/// Seconds for each target of the fuzzer.
const FUZZ_SECONDS: u32 = 10;

/// Runs all checks and prints what it ran; the last line counts them.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    packages::postgres()?;
    packages::parser()?;
    packages::consoles()?;
    packages::drivers(&root.join(DRIVERS))?;
    packages::extras(&root.join(DRIVERS));
    let mut outcomes = Vec::new();
    for arguments in [
        &["fmt", "--all", "--check"][..],
        &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        &["build", "--workspace"],
    ] {
        outcomes.push(step(root, arguments));
    }
    println!("== tidy");
    let tidy = tidy::run(root);
    if let Err(text) = &tidy {
        println!("{text}");
    }
    outcomes.push(tidy.is_ok());
    if Command::new("cargo").args(["deny", "--version"]).output().is_ok_and(|o| o.status.success())
    {
        outcomes.push(step(root, &["deny", "check", "bans", "licenses", "sources"]));
    } else {
        println!("== cargo deny is not installed: left out");
    }
    outcomes.push(tests(root));
    match fuzz::prepare(root) {
        Ok(()) => outcomes.push(fuzzed(root)),
        Err(text) => println!("== {text}: fuzzing is left out"),
    }
    let failed = outcomes.iter().filter(|passed| !**passed).count();
    println!("\n{} passed, {failed} failed", outcomes.len() - failed);
    if failed == 0 { Ok(()) } else { Err("not everything passed".into()) }
}

fn step(root: &Path, arguments: &[&str]) -> bool {
    println!("== cargo {}", arguments.join(" "));
    let mut command = cargo(root, arguments);
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("{command:?}: {error}");
            false
        }
    }
}

/// Made-up bytes for every parser.
fn fuzzed(root: &Path) -> bool {
    println!("== cargo xtask fuzz {FUZZ_SECONDS}");
    let result = fuzz::run(root, FUZZ_SECONDS, Seed::Fixed);
    if let Err(text) = &result {
        println!("{text}");
    }
    result.is_ok()
}

fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(root).stdin(Stdio::null());
    command.env("SWITCHYARD_POSTGRES", "1").env("SWITCHYARD_DRIVERS", root.join(DRIVERS));
    command
}

/// All tests; those with servers that fail are run again, one at a time.
fn tests(root: &Path) -> bool {
    let arguments = ["test", "--workspace", "--no-fail-fast"];
    println!("== cargo {}", arguments.join(" "));
    let failures = match watched(cargo(root, &arguments)) {
        Ok(failures) => failures,
        Err(error) => {
            println!("cargo test: {error}");
            return false;
        }
    };
    match failures {
        Failures::None => true,
        Failures::Integration(suites, names) => {
            println!("{} failed beside all the others:\n  {}", names.len(), names.join("\n  "));
            let passes = |suite: &String| {
                let suite = suite.split(' ');
                let mut again: Vec<&str> = ["test"].into_iter().chain(suite).collect();
                again.extend(["--", "--test-threads=1", "--exact"]);
                again.extend(names.iter().map(String::as_str));
                step(root, &again)
            };
            suites.iter().all(passes)
        }
        Failures::Others => false,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Failures {
    None,
    /// Only such as start servers: their suites, and their names.
    Integration(Vec<String>, Vec<String>),
    Others,
}

/// Runs tests, prints what they print, and tells what failed.
fn watched(mut command: Command) -> io::Result<Failures> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // The command holds the writing ends: without it the last line is followed by the end.
    drop(command);
    let lines = BufReader::new(reader).lines().map_while(Result::ok);
    let found = failures(lines.inspect(|line| println!("{line}")));
    match (child.wait()?.success(), found) {
        (true, _) => Ok(Failures::None),
        (false, Failures::None) => Ok(Failures::Others),
        (false, found) => Ok(found),
    }
}

fn failures(lines: impl Iterator<Item = String>) -> Failures {
    let (mut names, mut suites, mut others, mut listing) = (Vec::new(), Vec::new(), 0, false);
    for line in lines {
        match line.strip_prefix("    ") {
            Some(name) if listing => names.push(name.to_string()),
            _ => listing = line == "failures:",
        }
        if let Some(suite) = line.strip_prefix("error: test failed, to rerun pass ") {
            let suite = suite.trim_matches('`').to_string();
            others += usize::from(!SUITES.contains(&suite.as_str()));
            suites.push(suite);
        }
        others += usize::from(line.starts_with("error: could not compile"));
    }
    match (others, names.is_empty()) {
        (0, true) => Failures::None,
        (0, false) => Failures::Integration(suites, names),
        _ => Failures::Others,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Failures {
        failures(text.lines().map(String::from))
    }

    #[test]
    fn only_integration_tests_are_run_again() {
        assert_eq!(of("test a::b ... ok\ntest result: ok. 1 passed"), Failures::None);
        let suite = "test pools::two ... FAILED\n\nfailures:\n\n---- pools::two stdout ----\n\
                     \x20   no name\n\nfailures:\n    pools::two\n\ntest result: FAILED.\n\
                     error: test failed, to rerun pass `-p switchyard --test it`\n";
        let found = Failures::Integration(vec![SUITES[0].into()], vec!["pools::two".into()]);
        assert_eq!(of(suite), found);
        let other = "failures:\n    queue\n\n\
                     error: test failed, to rerun pass `-p switchyard-core --lib`\n";
        assert_eq!(of(other), Failures::Others);
        assert_eq!(of(&format!("{suite}{other}")), Failures::Others);
        assert_eq!(of("error: could not compile `x`"), Failures::Others);
    }
}
