//! What logins and TLS cost: CPU per connection by method and kind of certificate, CPU per
//! transaction over TLS, what a stream of new TLS logins adds to the latency of others, memory per
//! idle TLS client.

use std::io;
use std::process::{Child, Stdio};

use switchyard_testkit::{Certificates, KeyKind, Pooler, Postgres, wait_until};

use super::{Plan, Subject, compare, start};

/// New TLS logins a second beside the paced load.
const STORM: &str = "200";
/// Idle TLS clients.
const IDLE: usize = 1000;

/// Runs what is wanted of it.
pub(super) fn run(
    plan: &Plan,
    subjects: &[Subject],
    server: &Postgres,
    wanted: &dyn Fn(&str) -> bool,
) -> io::Result<()> {
    let certificates = Certificates::new()?;
    let (rsa, ecdsa) = (Offer::new(&certificates, "rsa")?, Offer::new(&certificates, "ecdsa")?);
    if wanted("logins") {
        for method in ["trust", "md5", "scram-sha-256"] {
            let settings = format!("auth_type = {method}");
            let figure = format!("CPU \u{b5}s per connection, {method}");
            compare(&figure, plan, subjects, |subject| {
                connections(subject, server, plan.seconds, &settings, "disable")
            })?;
        }
    }
    if wanted("tls-logins") {
        for (name, offer) in [("RSA-2048", &rsa), ("ECDSA P-256", &ecdsa)] {
            let figure = format!("CPU \u{b5}s per connection, TLS with {name}");
            compare(&figure, plan, subjects, |subject| {
                connections(subject, server, plan.seconds, &offer.0, "require")
            })?;
        }
    }
    if wanted("tls") {
        compare("CPU \u{b5}s per transaction, simple over TLS", plan, subjects, |subject| {
            let pooler = start(subject, server, &ecdsa.0)?;
            let seconds = plan.seconds.to_string();
            let load = |time| pooler.pgbench_with(&["-S", "-c", "64", "-T", time], "require");
            load("1")?;
            let before = pooler.cpu()?;
            let count = load(&seconds)?;
            Ok((pooler.cpu()? - before).as_micros() as f64 / count.max(1) as f64)
        })?;
    }
    if wanted("tls-storm") {
        storm(plan, subjects, server, &rsa)?;
    }
    if wanted("tls-idle") {
        let once = Plan { rounds: 1, ..plan.clone() };
        compare("KiB per idle TLS client", &once, subjects, |subject| {
            idle(subject, server, &certificates, &ecdsa)
        })?;
    }
    Ok(())
}

/// Settings that offer TLS with a certificate.
struct Offer(String);

impl Offer {
    fn new(certificates: &Certificates, name: &str) -> io::Result<Self> {
        let kind = if name == "rsa" { KeyKind::Rsa } else { KeyKind::Ecdsa };
        certificates.self_signed(name, kind)?;
        let file = |end: &str| certificates.text(&format!("{name}.{end}"));
        Ok(Offer(format!(
            "client_tls_sslmode = allow\nclient_tls_cert_file = {}\nclient_tls_key_file = {}",
            file("crt"),
            file("key")
        )))
    }
}

/// CPU of the pooler per connection that asks one thing.
fn connections(
    subject: &Subject,
    server: &Postgres,
    seconds: u32,
    settings: &str,
    sslmode: &str,
) -> io::Result<f64> {
    let pooler = start(subject, server, settings)?;
    let run = |seconds: &str| pooler.pgbench_with(&["-C", "-S", "-c", "8", "-T", seconds], sslmode);
    run("1")?;
    let before = pooler.cpu()?;
    let count = run(&seconds.to_string())?;
    Ok((pooler.cpu()? - before).as_micros() as f64 / count.max(1) as f64)
}

/// A command that is ended with its value.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn background(pooler: &Pooler, arguments: &[&str]) -> io::Result<Background> {
    let mut command = pooler.pgbench_command(arguments, "require")?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(Background)
}

/// The 99th percentile of a paced load, in milliseconds, delays of its schedule included.
fn paced(pooler: &Pooler, rate: u64, seconds: u32) -> io::Result<f64> {
    let directory = tempfile::tempdir()?;
    let prefix = directory.path().join("log").display().to_string();
    let (rate, seconds) = (rate.to_string(), seconds.to_string());
    let arguments = ["-S", "-c", "64", "-T", &seconds, "-R", &rate, "-l", "--log-prefix", &prefix];
    pooler.pgbench_with(&arguments, "disable")?;
    let mut latencies: Vec<u64> = Vec::new();
    for file in std::fs::read_dir(directory.path())? {
        let text = std::fs::read_to_string(file?.path())?;
        latencies.extend(text.lines().filter_map(|line| {
            line.split_whitespace().nth(2).and_then(|latency| latency.parse::<u64>().ok())
        }));
    }
    latencies.sort_unstable();
    let at = latencies.len() * 99 / 100;
    latencies
        .get(at)
        .map(|latency| *latency as f64 / 1000.0)
        .ok_or_else(|| io::Error::other("pgbench logged nothing"))
}

/// What new logins add to the latency of those who are there. The load is half of what the
/// slowest subject manages.
fn storm(plan: &Plan, subjects: &[Subject], server: &Postgres, offer: &Offer) -> io::Result<()> {
    let mut rate = u64::MAX;
    for subject in subjects {
        let pooler = start(subject, server, &offer.0)?;
        rate = rate.min(pooler.pgbench("simple", 64, plan.seconds)? / u64::from(plan.seconds) / 2);
    }
    println!("| paced transactions per second | all | {rate} | |");
    compare("p99 ms, paced load alone", plan, subjects, |subject| {
        let pooler = start(subject, server, &offer.0)?;
        paced(&pooler, rate, plan.seconds)
    })?;
    compare("p99 ms added by 200 TLS logins a second", plan, subjects, |subject| {
        let pooler = start(subject, server, &offer.0)?;
        let alone = paced(&pooler, rate, plan.seconds)?;
        let _logins = background(&pooler, &["-C", "-S", "-c", "8", "-R", STORM, "-T", "600"])?;
        Ok(paced(&pooler, rate, plan.seconds)? - alone)
    })
}

/// Resident memory per TLS client that has logged in and asks nothing.
fn idle(
    subject: &Subject,
    server: &Postgres,
    certificates: &Certificates,
    offer: &Offer,
) -> io::Result<f64> {
    let pooler = start(subject, server, &offer.0)?;
    pooler.sql("postgres", "postgres", "select 1")?;
    certificates.write("sleep.sql", "\\sleep 600 s\n")?;
    let before = pooler.resident()?;
    let (count, script) = (IDLE.to_string(), certificates.text("sleep.sql"));
    let _clients = background(&pooler, &["-c", &count, "-f", &script, "-T", "600"])?;
    wait_until("all clients", || {
        let clients = pooler.console("show clients").unwrap_or_default();
        clients.lines().filter(|line| line.contains("TLS")).count() >= IDLE
    })?;
    Ok(pooler.resident()?.saturating_sub(before) as f64 / IDLE as f64)
}
