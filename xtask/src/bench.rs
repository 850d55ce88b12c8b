//! Figures beside reference poolers, interleaved in one run: CPU microseconds per transaction from
//! the operating system's accounting of the process and its threads, CPU seconds per gigabyte,
//! resident memory. Ratios count; the machine's absolute figures do not travel.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use switchyard_testkit::{Client, Pooler, Postgres, programs};

use crate::packages;

mod crowd;
mod hooks;
mod logins;
mod patience;

/// What to measure.
#[derive(Clone)]
pub(crate) struct Plan {
    /// Names of scenarios; none means all.
    pub(crate) scenarios: Vec<String>,
    /// `NAME=PROGRAM`.
    pub(crate) poolers: Vec<String>,
    /// Of each run.
    pub(crate) seconds: u32,
    /// Interleaved runs.
    pub(crate) rounds: usize,
    /// Parts of the names of changes of writer; none means all.
    pub(crate) changes: Vec<String>,
}

/// A program under test.
struct Subject {
    name: String,
    program: PathBuf,
    /// Lines of the ini that only it understands.
    settings: &'static str,
}

const CLIENTS: u32 = 64;
const IDLE_CLIENTS: usize = 5000;
const REFERENCE: &str = "/usr/sbin/pgbouncer";
/// One gigabyte in rows of 1,000 bytes.
const COPY_OUT: &str = "copy (select repeat('x', 999) from generate_series(1, 1000000)) to stdout";
/// Runs the plan and prints one table.
pub(crate) fn run(root: &Path, plan: &Plan) -> Result<(), String> {
    packages::postgres()?;
    packages::parser()?;
    if plan.scenarios.iter().any(|scenario| scenario == "rivals") {
        packages::rivals()?;
    }
    let built = Command::new("cargo").args(["build", "--release"]).current_dir(root).status();
    if !built.is_ok_and(|status| status.success()) {
        return Err("the build failed".into());
    }
    let subjects = subjects(root, plan)?;
    measure(plan, &subjects).map_err(|error| error.to_string())
}

fn subjects(root: &Path, plan: &Plan) -> Result<Vec<Subject>, String> {
    let ours = root.join("target/release/switchyard");
    let mut subjects =
        vec![Subject { name: "switchyard".into(), program: ours, settings: "workers = 1" }];
    if Path::new(REFERENCE).exists() {
        let (name, program) = ("pgbouncer".into(), REFERENCE.into());
        subjects.push(Subject { name, program, settings: "" });
    } else {
        println!("{REFERENCE} is not installed: no reference");
    }
    for text in &plan.poolers {
        let (name, program) = text.split_once('=').ok_or("--pooler takes NAME=PROGRAM")?;
        let (name, program) = (name.into(), program.into());
        subjects.push(Subject { name, program, settings: "" });
    }
    Ok(subjects)
}

fn start(subject: &Subject, server: &Postgres, more: &str) -> io::Result<Pooler> {
    let databases = format!("postgres = host=127.0.0.1 port={}", server.port);
    let settings = format!(
        "pool_mode = transaction\ndefault_pool_size = 20\nmax_client_conn = 6000\n{}\n{more}",
        subject.settings
    );
    Pooler::start(&subject.program, &databases, &settings)
}

fn measure(plan: &Plan, subjects: &[Subject]) -> io::Result<()> {
    let wanted = |name: &str| {
        plan.scenarios.is_empty() || plan.scenarios.iter().any(|scenario| scenario == name)
    };
    let server = Postgres::start("")?;
    server.pgbench_tables(5)?;
    server.sql("create unlogged table sink (x text); create role app login")?;
    println!("| figure | pooler | median | ratio to {} |\n|---|---|---|---|", subjects[0].name);
    for mode in ["simple", "extended", "prepared"] {
        // Debian's pgbouncer does not follow prepared statements in transaction mode.
        let count = if mode == "prepared" { 1 } else { subjects.len() };
        if wanted(mode) {
            let figure = format!("CPU \u{b5}s per transaction, {mode}");
            compare(&figure, plan, &subjects[..count], |subject| {
                transactions(subject, &server, mode, plan.seconds, "")
            })?;
        }
    }
    let with = |name: &str, settings: &'static str| Subject {
        name: name.into(),
        program: subjects[0].program.clone(),
        settings,
    };
    if wanted("workers") {
        let pair = [with("one worker", "workers = 1"), with("two workers", "workers = 2")];
        compare("CPU \u{b5}s per transaction, simple", plan, &pair, |subject| {
            transactions(subject, &server, "simple", plan.seconds, "")
        })?;
    }
    if wanted("unix") {
        compare("CPU \u{b5}s per transaction, simple, unix socket", plan, subjects, |subject| {
            over_unix(subject, &server, plan.seconds)
        })?;
    }
    if wanted("hooks") {
        hooks::costs(plan, &subjects[0], &server)?;
    }
    logins::run(plan, subjects, &server, &wanted)?;
    if wanted("patience") {
        patience::alone(plan, &subjects[0], &server)?;
        patience::beside(plan, &subjects[0], &server)?;
        patience::deaths(plan, &subjects[0], &server)?;
    }
    if wanted("copy") {
        compare("CPU s per GB, COPY OUT", plan, subjects, |subject| copy_out(subject, &server))?;
        compare("CPU s per GB, COPY IN", plan, subjects, |subject| copy_in(subject, &server))?;
    }
    if wanted("switchover") {
        crate::switchover::run(&subjects[0].program, plan.rounds, &plan.changes)?;
    }
    if wanted("rivals") {
        crate::rivals::run(&subjects[0].program, plan.rounds)?;
    }
    if wanted("idle") {
        let once = Plan { rounds: 1, ..plan.clone() };
        compare("KiB per idle client", &once, subjects, |subject| idle(subject, &server))?;
    }
    if wanted("crowd") {
        crowd::run(plan, subjects, &server)?;
    }
    Ok(())
}

/// Runs the subjects in turn, round after round, and prints their medians.
fn compare(
    figure: &str,
    plan: &Plan,
    subjects: &[Subject],
    mut run: impl FnMut(&Subject) -> io::Result<f64>,
) -> io::Result<()> {
    let mut results = vec![Vec::new(); subjects.len()];
    for _ in 0..plan.rounds.max(1) {
        for (subject, results) in subjects.iter().zip(&mut results) {
            results.push(run(subject)?);
        }
    }
    let medians: Vec<f64> = results.iter_mut().map(|results| median(results)).collect();
    for (subject, value) in subjects.iter().zip(&medians) {
        println!("| {figure} | {} | {value:.2} | {:.2} |", subject.name, value / medians[0]);
    }
    Ok(())
}

fn median(results: &mut [f64]) -> f64 {
    results.sort_by(f64::total_cmp);
    results[results.len() / 2]
}

fn transactions(
    subject: &Subject,
    server: &Postgres,
    mode: &str,
    seconds: u32,
    more: &str,
) -> io::Result<f64> {
    let pooler = start(subject, server, more)?;
    pooler.pgbench(mode, CLIENTS, 1)?;
    let before = pooler.cpu()?;
    let count = pooler.pgbench(mode, CLIENTS, seconds)?;
    Ok((pooler.cpu()? - before).as_micros() as f64 / count.max(1) as f64)
}

fn over_unix(subject: &Subject, server: &Postgres, seconds: u32) -> io::Result<f64> {
    let pooler = start(subject, server, "")?;
    let ini = pooler.ini();
    let directory = ini.parent().unwrap_or(&ini).display().to_string();
    let (clients, seconds) = (CLIENTS.to_string(), seconds.to_string());
    let arguments = ["-h", &directory, "-S", "-c", &clients, "-T"];
    pooler.pgbench_with(&[&arguments[..], &["1"]].concat(), "prefer")?;
    let before = pooler.cpu()?;
    let count = pooler.pgbench_with(&[&arguments[..], &[&seconds]].concat(), "prefer")?;
    Ok((pooler.cpu()? - before).as_micros() as f64 / count.max(1) as f64)
}

fn psql(pooler: &Pooler, sql: &str) -> io::Result<Command> {
    let mut command = Command::new(programs()?.join("psql"));
    command.args(["-X", "-q", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres"]);
    command.args(["-p", &pooler.port.to_string(), "-c", sql]);
    command.stdout(Stdio::null());
    Ok(command)
}

fn copy_out(subject: &Subject, server: &Postgres) -> io::Result<f64> {
    let pooler = start(subject, server, "")?;
    let before = pooler.cpu()?;
    if !psql(&pooler, COPY_OUT)?.status()?.success() {
        return Err(io::Error::other("COPY OUT failed"));
    }
    Ok((pooler.cpu()? - before).as_secs_f64())
}

fn copy_in(subject: &Subject, server: &Postgres) -> io::Result<f64> {
    let pooler = start(subject, server, "")?;
    server.sql("truncate sink")?;
    let before = pooler.cpu()?;
    let mut child = psql(&pooler, "copy sink from stdin")?.stdin(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        let mut chunk = Vec::new();
        for _ in 0..1000 {
            chunk.extend_from_slice(&[b'x'; 999]);
            chunk.push(b'\n');
        }
        for _ in 0..1000 {
            input.write_all(&chunk)?;
        }
    }
    if !child.wait()?.success() {
        return Err(io::Error::other("COPY IN failed"));
    }
    let spent = (pooler.cpu()? - before).as_secs_f64();
    server.sql("truncate sink")?;
    println!("| resident MiB after COPY | {} | {} | |", subject.name, pooler.resident()? / 1024);
    Ok(spent)
}

fn idle(subject: &Subject, server: &Postgres) -> io::Result<f64> {
    let pooler = start(subject, server, "")?;
    pooler.sql("postgres", "postgres", "select 1")?;
    let before = pooler.resident()?;
    let mut clients = Vec::new();
    for _ in 0..IDLE_CLIENTS {
        clients.push(Client::connect(pooler.port, "postgres")?);
    }
    let after = pooler.resident()?;
    Ok((after.saturating_sub(before)) as f64 / clients.len() as f64)
}
