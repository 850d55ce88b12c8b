//! Bytes made up by libFuzzer for every parser, a few seconds each. Needs cargo-fuzz and a nightly
//! compiler; the property tests of the crates are the same in small.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where cargo-fuzz is installed when the system has none.
const TOOLS: &str = "target/tools";

/// Where made-up bytes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seed {
    /// The same bytes every time, as far as the machine gets in the time.
    Fixed,
    /// Others every time.
    Fresh,
}

/// Runs every target for so many seconds.
pub(crate) fn run(root: &Path, seconds: u32, seed: Seed) -> Result<(), String> {
    let listed = cargo(root, &["list"]).output().map_err(|error| error.to_string())?;
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
        // For libFuzzer 0 means a seed of its own choice.
        let seed = format!("-seed={}", u32::from(seed == Seed::Fixed));
        let limits = [&time, &seed, "-timeout=10", "-verbosity=0"];
        let mut command = cargo(root, &[&["run", name, "--"][..], &limits[..]].concat());
        let passed = command.status().map_err(|error| error.to_string())?.success();
        if !passed {
            failed.push(name);
        }
    }
    println!("\n{} targets, failed: {}", names.lines().count(), failed.join(" "));
    if failed.is_empty() { Ok(()) } else { Err("some input breaks a parser".into()) }
}

/// Makes sure that there are a nightly compiler and cargo-fuzz, which is built if need be. The
/// error says what is missing.
pub(crate) fn prepare(root: &Path) -> Result<(), String> {
    let nightly = || quiet(Command::new("cargo").args(["+nightly", "--version"]));
    if !nightly() {
        println!("installing a nightly compiler");
        quiet(Command::new("rustup").args(["toolchain", "add", "nightly", "--profile", "minimal"]));
    }
    if !nightly() {
        return Err("there is no nightly compiler".into());
    }
    if quiet(&mut cargo(root, &["--version"])) {
        return Ok(());
    }
    println!("installing cargo-fuzz");
    let mut install = Command::new("cargo");
    install.args(["install", "--quiet", "--locked", "cargo-fuzz", "--root", TOOLS]);
    quiet(install.current_dir(root));
    let there = quiet(&mut cargo(root, &["--version"]));
    if there { Ok(()) } else { Err("cargo-fuzz cannot be installed".into()) }
}

/// A command of cargo-fuzz, wherever that is.
fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut path = OsString::from(root.join(TOOLS).join("bin"));
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz"]).args(arguments).current_dir(root).env("PATH", path);
    command.stdin(Stdio::null());
    command
}

fn quiet(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
