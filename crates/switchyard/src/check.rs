//! `switchyard check FILE`: everything that is worth knowing about a configuration before it is
//! used. Reads files, opens nothing else.

use std::path::Path;
use std::process::ExitCode;

use switchyard_auth::userlist;
use switchyard_config::{Config, Severity, load, reason};

use crate::listen;
use crate::services::names;

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
        println!("{} {}", word(*severity), text.replace('\n', "\n\t"));
    }
    let [errors, warnings, advice, ignored, better] = order.map(count);
    println!(
        "{}: {errors} errors, {warnings} warnings, {advice} pieces of advice, {ignored} ignored, \
         {better} better than PgBouncer",
        path.display()
    );
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

/// What only shows when other files and the system are looked at.
fn beyond(config: &Config) -> Vec<(Severity, String)> {
    let settings = &config.settings;
    let mut lines = Vec::new();
    let mut say = |severity, text: String| lines.push((severity, text));
    if let Some(file) = settings.auth_file.as_deref().filter(|file| !file.is_empty()) {
        match std::fs::read(file) {
            Ok(text) => {
                if let Some(error) = userlist::parse(&text).error {
                    say(Severity::Error, format!("{error}: {file}"));
                }
            }
            Err(error) => {
                let text = format!("could not open auth_file {file}: {}", reason(&error));
                say(Severity::Error, text);
            }
        }
    }
    for (key, file) in [
        ("auth_hba_file", settings.auth_hba_file.as_str()),
        ("client_tls_ca_file", &settings.client_tls_ca_file),
        ("client_tls_cert_file", &settings.client_tls_cert_file),
        ("client_tls_key_file", &settings.client_tls_key_file),
        ("server_tls_ca_file", &settings.server_tls_ca_file),
        ("server_tls_cert_file", &settings.server_tls_cert_file),
        ("server_tls_key_file", &settings.server_tls_key_file),
    ] {
        if let Some(Err(error)) = (!file.is_empty()).then(|| std::fs::metadata(file)) {
            say(Severity::Error, format!("{key} {file}: {}", reason(&error)));
        }
    }
    if let Err(text) = names::check(&settings.resolv_conf) {
        say(Severity::Error, text);
    }
    if u16::try_from(settings.listen_port).is_err() {
        say(Severity::Error, "listen_port is no port number".into());
    }
    match listen::unix_path(settings) {
        Some(path) if path.len() > UNIX_PATH_MAX => {
            say(Severity::Error, format!("{path} is longer than {UNIX_PATH_MAX} bytes"));
        }
        None if settings.listen_addr.list.is_empty() => {
            say(Severity::Error, "nowhere to listen on".into());
        }
        Some(_) | None => {}
    }
    lines
}
