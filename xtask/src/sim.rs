//! Worlds of the simulator, built with optimisation and all assertions.

use std::path::Path;
use std::process::{Command, Stdio};

/// Which worlds.
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) runs: u64,
    pub(crate) kind: Option<String>,
    pub(crate) trace: bool,
}

/// Runs the worlds of a plan.
pub(crate) fn run(root: &Path, plan: &Plan) -> Result<(), String> {
    let mut command = Command::new("cargo");
    command.args(["run", "--quiet", "--package", "switchyard-sim"]);
    // Assertions and checks of arithmetic are what the worlds are for.
    command.args(["--config", "profile.dev.opt-level=1", "--target-dir", "target/sim", "--"]);
    command.args(["--seed", &plan.seed.to_string(), "--runs", &plan.runs.to_string()]);
    if let Some(kind) = &plan.kind {
        command.args(["--kind", kind]);
    }
    if plan.trace {
        command.arg("--trace");
    }
    command.current_dir(root).stdin(Stdio::null());
    let passed = command.status().map_err(|error| error.to_string())?.success();
    if passed { Ok(()) } else { Err("a world is wrong".into()) }
}
