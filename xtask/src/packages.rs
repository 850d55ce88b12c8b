//! Programs of the system that tests need, installed through its package manager when missing.

use std::path::Path;
use std::process::Command;

/// Makes sure that PostgreSQL's server programs are there.
pub(crate) fn postgres() -> Result<(), String> {
    if switchyard_testkit::programs().is_ok() {
        return Ok(());
    }
    install(&["postgresql", "postgresql-contrib"])?;
    switchyard_testkit::programs().map(drop).map_err(|_| "PostgreSQL is not installed".into())
}

/// Makes sure that Python is there, which runs the hooks.
pub(crate) fn python() -> Result<(), String> {
    if runs("python3") { Ok(()) } else { install(&["python3"]) }
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn install(names: &[&str]) -> Result<(), String> {
    let wanted = names.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(format!("please install with your package manager: {wanted}"));
    }
    let root = rustix::process::geteuid().is_root();
    if !root && !Path::new("/usr/bin/sudo").exists() {
        return Err(format!("please install as root: apt-get install {wanted}"));
    }
    println!("installing {wanted}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new(if root { "apt-get" } else { "sudo" });
        if !root {
            command.arg("apt-get");
        }
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{command:?}: {status}")),
            Err(error) => Err(format!("{command:?}: {error}")),
        }
    };
    apt(&["-q", "update"])?;
    let mut arguments = vec!["-q", "-y", "--no-install-recommends", "install"];
    arguments.extend(names);
    apt(&arguments)
}
