//! Bytes made up by libFuzzer for every parser, a few seconds each. Needs cargo-fuzz and a nightly
//! compiler; the property tests of the crates are the same in small.

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs every target for so many seconds.
pub(crate) fn run(root: &Path, seconds: u32) -> Result<(), String> {
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new("cargo");
        command.arg("+nightly").arg("fuzz").args(arguments).current_dir(root);
        command.stdin(Stdio::null());
        command
    };
    let listed = cargo(&["list"]).output().map_err(|error| error.to_string())?;
    if !listed.status.success() {
        let text = String::from_utf8_lossy(&listed.stderr);
        return Err(format!(
            "{text}fuzzing needs `cargo install cargo-fuzz` and `rustup toolchain add nightly`"
        ));
    }
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut failed = Vec::new();
    for name in names.lines().map(str::trim) {
        println!("== {name}");
        let time = format!("-max_total_time={seconds}");
        let mut command = cargo(&["run", name, "--", &time, "-timeout=10", "-verbosity=0"]);
        let passed = command.status().map_err(|error| error.to_string())?.success();
        if !passed {
            failed.push(name);
        }
    }
    println!("\n{} targets, failed: {}", names.lines().count(), failed.join(" "));
    if failed.is_empty() { Ok(()) } else { Err("some input breaks a parser".into()) }
}
