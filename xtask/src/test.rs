//! Every check, one after the other; all run even if one fails.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{packages, tidy};

/// Where drivers are installed.
const DRIVERS: &str = "target/drivers";

/// Runs all checks and prints what it ran; the last line counts them.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    packages::postgres()?;
    packages::parser()?;
    packages::consoles()?;
    packages::drivers(&root.join(DRIVERS))?;
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
    outcomes.push(step(root, &["test", "--workspace", "--no-fail-fast"]));
    let failed = outcomes.iter().filter(|passed| !**passed).count();
    println!("\n{} passed, {failed} failed", outcomes.len() - failed);
    if failed == 0 { Ok(()) } else { Err("not everything passed".into()) }
}

fn step(root: &Path, arguments: &[&str]) -> bool {
    println!("== cargo {}", arguments.join(" "));
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(root).stdin(Stdio::null());
    command.env("SWITCHYARD_POSTGRES", "1").env("SWITCHYARD_DRIVERS", root.join(DRIVERS));
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("{command:?}: {error}");
            false
        }
    }
}
