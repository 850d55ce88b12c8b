//! Runs worlds from seeds and shows what happened in the one that is wrong.

use std::process::ExitCode;

use clap::Parser;
use switchyard_sim::{Kind, Seed, Trace, run};

/// Made-up worlds around the core.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many worlds of each kind.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Only this kind: crowd, hooks, cluster or sessions.
    #[arg(long)]
    kind: Option<String>,
    /// Shows what happened in every world.
    #[arg(long)]
    trace: bool,
}

const KINDS: [(&str, Kind); 4] = [
    ("crowd", Kind::Crowd),
    ("hooks", Kind::Hooks),
    ("cluster", Kind::Cluster),
    ("sessions", Kind::Sessions),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|_| {}));
    for (name, kind) in KINDS {
        if arguments.kind.as_ref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        for seed in arguments.seed..arguments.seed + arguments.runs {
            let trace = Trace::default();
            let outcome = run(kind, Seed::Number(seed), arguments.trace.then_some(&trace));
            match outcome {
                Ok(text) if arguments.trace || arguments.runs == 1 => {
                    trace.lines().iter().for_each(|line| println!("{line}"));
                    println!("{name} {seed}: {text}");
                }
                Ok(_) => {}
                Err(text) => {
                    let _ = run(kind, Seed::Number(seed), Some(&trace));
                    trace.lines().iter().for_each(|line| println!("{line}"));
                    println!("{name} {seed}: {text}");
                    return ExitCode::FAILURE;
                }
            }
        }
        println!("{name}: {} worlds are well", arguments.runs);
    }
    ExitCode::SUCCESS
}
