//! All automation of the project. `test` is what continuous integration runs; `tidy` are the
//! checks of our own conventions that no lint knows.

mod bench;
mod demo;
mod drivers;
mod fuzz;
mod lab;
mod packages;
mod rivals;
mod sim;
mod switchover;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Automation of Switchyard.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Starts real servers and the pooler and shows what it does, with figures.
    Demo {
        /// Leaves everything running and tells how to use it.
        #[arg(long)]
        keep: bool,
    },
    /// Runs every check: format, lints, tidy, all tests with a real PostgreSQL.
    Test,
    /// Checks conventions.
    Tidy,
    /// Runs the core with made-up clients and servers, from seeds; a failure prints its seed and
    /// what has happened.
    Sim {
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many worlds of each kind.
        #[arg(long, default_value_t = 1)]
        runs: u64,
        /// Only this kind of world: crowd, hooks, cluster or sessions.
        #[arg(long)]
        kind: Option<String>,
        /// Shows what happens in every world.
        #[arg(long)]
        trace: bool,
    },
    /// Feeds every parser with made-up bytes; needs cargo-fuzz and a nightly compiler.
    Fuzz {
        /// Seconds of each target.
        #[arg(default_value_t = 10)]
        seconds: u32,
    },
    /// Runs the test suites of drivers directly and through the pooler, and compares.
    Drivers,
    /// Puts the pooler in front of servers that an orchestrator looks after, and shows what its
    /// changes of writer cost.
    Lab {
        /// Which orchestrator.
        #[arg(value_parser = ["patroni"])]
        orchestrator: String,
        /// Changes of each kind.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// Measures CPU time and memory beside Debian's pgbouncer and other poolers.
    Bench {
        /// Only these: simple, extended, prepared, unix, workers, copy, idle, hooks,
        /// patience, switchover, rivals, crowd, logins, tls-logins, tls, tls-storm, tls-idle.
        scenarios: Vec<String>,
        /// Another pooler that reads a pgbouncer.ini, as NAME=PROGRAM.
        #[arg(long)]
        pooler: Vec<String>,
        /// Seconds of each run.
        #[arg(long, default_value_t = 4)]
        seconds: u32,
        /// Interleaved runs, of which the median counts.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Of `switchover`, only changes whose name has this in it.
        #[arg(long)]
        change: Vec<String>,
    },
}

/// The directory of the workspace.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.to_path_buf(), Path::to_path_buf)
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Demo { keep } => demo::run(&root(), keep),
        Task::Test => test::run(&root()),
        Task::Tidy => tidy::run(&root()),
        Task::Sim { seed, runs, kind, trace } => {
            sim::run(&root(), &sim::Plan { seed, runs, kind, trace })
        }
        Task::Fuzz { seconds } => fuzz::run(&root(), seconds, fuzz::Seed::Fresh),
        Task::Drivers => drivers::run(&root()),
        Task::Lab { rounds, .. } => lab::patroni(&root(), rounds),
        Task::Bench { scenarios, pooler, seconds, rounds, change } => {
            let plan = bench::Plan { scenarios, poolers: pooler, seconds, rounds, changes: change };
            bench::run(&root(), &plan)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}
