//! The command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};

/// PostgreSQL connection pooler.
///
/// `switchyard check CONFIG_FILE` reports what is wrong with a file, what is ignored in it and what
/// works better than in PgBouncer, and ends. `switchyard test-hooks --help` tells how to run the
/// configured rules and functions without a server.
#[derive(Debug, Parser)]
#[command(disable_version_flag = true, args_override_self = true, infer_long_args = true)]
pub struct Arguments {
    /// Run in the background; needs a pidfile.
    #[arg(short, long)]
    pub daemon: bool,
    /// Nothing on stderr.
    #[arg(short, long)]
    pub quiet: bool,
    /// More lines in the log; may be repeated.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Show the version and end.
    #[arg(short = 'V', long)]
    pub version: bool,
    /// Become this user.
    #[arg(short, long, value_name = "NAME")]
    pub user: Option<String>,
    /// Set by a process that has started us for the background.
    #[arg(long, hide = true)]
    pub in_background: bool,
    /// Configuration file.
    #[arg(value_name = "CONFIG_FILE")]
    pub words: Vec<PathBuf>,
}

/// What the words ask for.
#[derive(Debug, PartialEq, Eq)]
pub enum Task {
    /// Work.
    Run(PathBuf),
    /// Report about a file.
    Check(PathBuf),
    /// Show the version.
    Version,
}

impl Arguments {
    /// The arguments of this process; otherwise everything has been said, and this is its result.
    pub fn read() -> Result<(Arguments, Task), ExitCode> {
        let name = std::env::args().next().unwrap_or_else(|| "switchyard".into());
        let command = Arguments::command().name("switchyard").bin_name(&name);
        let found = command.try_get_matches();
        let arguments = match found.and_then(|found| Arguments::from_arg_matches(&found)) {
            Ok(arguments) => arguments,
            Err(error) if !error.use_stderr() => {
                say(&error.to_string());
                return Err(ExitCode::SUCCESS);
            }
            Err(error) => return Err(refuse(&name, &complaint(&error))),
        };
        match arguments.task() {
            Some(task) => Ok((arguments, task)),
            None => Err(refuse(&name, "no configuration file specified")),
        }
    }

    /// `check` is a command only in front of a file: a file may be called so, too.
    fn task(&self) -> Option<Task> {
        match &self.words[..] {
            _ if self.version => Some(Task::Version),
            [path] => Some(Task::Run(path.clone())),
            [check, path] if check.as_os_str() == "check" => Some(Task::Check(path.clone())),
            _ => None,
        }
    }
}

/// Writes to standard output, of which the reader may have seen enough.
pub fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn refuse(name: &str, text: &str) -> ExitCode {
    eprintln!("{name}: {text}");
    eprintln!("Try \"{name} --help\" for more information.");
    ExitCode::FAILURE
}

/// The words of the C library for the mistakes that it knows.
fn complaint(error: &clap::Error) -> String {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.clone(),
        _ => String::new(),
    };
    let option = argument.split([' ', '=']).next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument if option.starts_with("--") => {
            format!("unrecognized option '{option}'")
        }
        ErrorKind::UnknownArgument => {
            format!("invalid option -- '{}'", option.trim_start_matches('-'))
        }
        ErrorKind::InvalidValue | ErrorKind::NoEquals => {
            format!("option '{option}' requires an argument")
        }
        _ => error.to_string().lines().next().unwrap_or_default().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &[&str]) -> Option<Task> {
        Arguments::try_parse_from([&["switchyard"], words].concat()).ok()?.task()
    }

    #[test]
    fn words_have_one_meaning() {
        assert_eq!(check(&["a.ini"]), Some(Task::Run("a.ini".into())));
        assert_eq!(check(&["a.ini", "-d", "-v", "-v"]), Some(Task::Run("a.ini".into())));
        assert_eq!(check(&["check"]), Some(Task::Run("check".into())));
        assert_eq!(check(&["check", "a.ini"]), Some(Task::Check("a.ini".into())));
        assert_eq!(check(&["check", "check"]), Some(Task::Check("check".into())));
        assert_eq!(check(&["-V"]), Some(Task::Version));
        // As getopt_long() has it: options may be repeated, and shortened.
        for words in
            [&["-q", "-q", "-d", "-d", "a.ini"][..], &["-dqvv", "--verb", "--qui", "a.ini"]]
        {
            assert_eq!(check(words), Some(Task::Run("a.ini".into())), "{words:?}");
        }
        let twice = ["switchyard", "-u", "a", "--user=b", "-uc", "a.ini"];
        let user = Arguments::try_parse_from(twice).ok().and_then(|found| found.user);
        assert_eq!(user.as_deref(), Some("c"));
        for wrong in [&[][..], &["a", "b"], &["check", "a", "b"], &["--nope", "a"]] {
            assert_eq!(check(wrong), None, "{wrong:?}");
        }
    }
}
