//! The demonstration: real servers, the pooler in front of them, and a tour of what it does, with
//! figures. Everything lives in temporary directories and ends with the program.

mod screen;
mod stage;
mod tour;

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::packages;
use screen::Screen;
use stage::Stage;
use tour::Step;

/// Builds, runs the tour and prints its summary.
pub(crate) fn run(root: &Path, keep: bool) -> Result<(), String> {
    let interrupted = watch().map_err(|error| error.to_string())?;
    packages::postgres()?;
    packages::parser()?;
    packages::python()?;
    println!("building");
    let built = Command::new("cargo").args(["build", "--release"]).current_dir(root).status();
    if !built.is_ok_and(|status| status.success()) {
        return Err("the build failed".into());
    }
    let mut screen = Screen::new(Arc::clone(&interrupted));
    let mut steps = Vec::new();
    let result = show(&root.join("target/release/switchyard"), &mut screen, &mut steps);
    if interrupted.load(Ordering::Relaxed) {
        return Err("\ninterrupted; everything is stopped and removed".into());
    }
    summary(&steps);
    let stage = result.map_err(|error| format!("the tour broke off: {error}"))?;
    if keep {
        stage.keep();
    }
    if steps.iter().all(|step| step.held) { Ok(()) } else { Err("not every step held".into()) }
}

/// A flag that Ctrl-C raises; a second Ctrl-C ends the program at once.
fn watch() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

fn show(program: &Path, screen: &mut Screen, steps: &mut Vec<Step>) -> io::Result<Stage> {
    let mut stage = Stage::set(program, screen)?;
    tour::run(&mut stage, screen, steps)?;
    Ok(stage)
}

fn summary(steps: &[Step]) {
    let width = steps.iter().map(|step| step.title.chars().count()).max().unwrap_or(0);
    println!("\nsummary");
    for Step { title, figures, held } in steps {
        let mark = if *held { "ok    " } else { "FAILED" };
        println!("  {mark}  {title:width$}  {figures}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs with the program of the development profile, which the checks build first.
    #[test]
    fn every_step_of_the_tour_holds() -> io::Result<()> {
        if std::env::var_os("SWITCHYARD_POSTGRES").is_none() {
            return Ok(());
        }
        let program = crate::root().join("target/debug/switchyard");
        let (mut screen, mut steps) = (Screen::new(Arc::default()), Vec::new());
        show(&program, &mut screen, &mut steps)?;
        for step in &steps {
            assert!(step.held, "{}: {}", step.title, step.figures);
        }
        assert_eq!(steps.len(), tour::STEPS);
        Ok(())
    }
}
