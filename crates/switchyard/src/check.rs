//! `switchyard check FILE`: everything that is worth knowing about a configuration before it is
//! used. Reads files, opens nothing else.

use std::path::Path;
use std::process::ExitCode;

use switchyard_config::{AuthType, Config, Severity, load, reason};

use crate::access::Access;
use crate::arguments::say;
use crate::log::{Level, Log, Stderr};
use crate::rules::NativeRules;
use crate::services::names;
use crate::{cluster_settings, listen, reload};

/// Longest path of a unix socket, in bytes.
const UNIX_PATH_MAX: usize = 107;

/// Reports about a file on stdout; errors make the exit code 1.
pub fn run(path: &Path) -> ExitCode {
    let loaded = load(path, &mut |path| std::fs::read(path));
    let mut lines: Vec<(Severity, String)> =
        loaded.found.iter().map(|one| (one.severity, one.to_string())).collect();
    if let Some(config) = &loaded.config {
        lines.extend(beyond(config));
    }
    let count = |severity| lines.iter().filter(|(one, _)| *one == severity).count();
    let order =
        [Severity::Error, Severity::Warning, Severity::Advice, Severity::Ignored, Severity::Better];
    for (severity, text) in
        order.iter().flat_map(|wanted| lines.iter().filter(move |(severity, _)| severity == wanted))
    {
        say(&format!("{} {}\n", word(*severity), text.replace('\n', "\n\t")));
    }
    let [errors, warnings, advice, ignored, better] = order.map(count);
    say(&format!(
        "{}: {errors} errors, {warnings} warnings, {advice} pieces of advice, {ignored} ignored, \
         {better} better than PgBouncer\n",
        path.display()
    ));
    if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "ERROR",
        Severity::Warning => "WARNING",
        Severity::Advice => "ADVICE",
        Severity::Ignored => "IGNORED",
        Severity::Better => "BETTER",
    }
}

/// What only shows when other files and the system are looked at: the same steps as at start.
fn beyond(config: &Config) -> Vec<(Severity, String)> {
    let log = Log::new(Stderr::Quiet);
    let mut config = config.clone();
    let rules = NativeRules::new(&config);
    rules.err().iter().flatten().for_each(|error| log.write(Level::Error, error));
    cluster_settings::complete(&mut config, &log);
    // A line that says nothing is an error here, even where it would be passed over.
    config.settings.auth_hba_strict = true;
    if let Err(text) = Access::load(&config, &Access::default(), &log) {
        log.write(Level::Error, &text);
    }
    if reload::load_tls(&config, &log).is_some() {
        missing_files(&config, &log);
    }
    if let Err(text) = names::check(&config.settings.resolv_conf) {
        log.write(Level::Error, &text);
    }
    sockets(&config, &log);
    let severity = |level| match level {
        Level::Fatal | Level::Error => Severity::Error,
        Level::Warning => Severity::Warning,
        Level::Log | Level::Debug | Level::Noise => Severity::Advice,
    };
    log.take_early().into_iter().map(|(level, text)| (severity(level), text)).collect()
}

/// Files that are named and not read with these settings.
fn missing_files(config: &Config, log: &Log) {
    let settings = &config.settings;
    let hba = if settings.auth_type == AuthType::Hba { "" } else { &settings.auth_hba_file };
    for (key, file) in [
        ("auth_hba_file", hba),
        ("client_tls_ca_file", &settings.client_tls_ca_file),
        ("client_tls_cert_file", &settings.client_tls_cert_file),
        ("client_tls_key_file", &settings.client_tls_key_file),
        ("server_tls_ca_file", &settings.server_tls_ca_file),
        ("server_tls_cert_file", &settings.server_tls_cert_file),
        ("server_tls_key_file", &settings.server_tls_key_file),
    ] {
        if let Some(Err(error)) = (!file.is_empty()).then(|| std::fs::metadata(file)) {
            log.write(Level::Error, &format!("{key} {file}: {}", reason(&error)));
        }
    }
}

fn sockets(config: &Config, log: &Log) {
    let settings = &config.settings;
    if u16::try_from(settings.listen_port).is_err() {
        log.write(Level::Error, "listen_port is no port number");
    }
    match listen::unix_path(settings) {
        Some(path) if path.len() > UNIX_PATH_MAX => {
            log.write(Level::Error, &format!("{path} is longer than {UNIX_PATH_MAX} bytes"));
        }
        None if settings.listen_addr.list.is_empty() => {
            log.write(Level::Error, "nowhere to listen on");
        }
        Some(_) | None => {}
    }
}
