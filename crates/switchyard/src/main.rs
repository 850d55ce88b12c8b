//! The program: command line, start-up order, signals.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use switchyard::access::Access;
use switchyard::log::{Level, Log, Stderr};
use switchyard::reload::{self, Occasion};
use switchyard::services::Services;
use switchyard::shared::Shared;
use switchyard::worker::console::program;
use switchyard::worker::{Message, Seat, Worker};
use switchyard::{listen, options, signals};
use switchyard_core::ids::WorkerId;
use switchyard_core::switchover::view::View;

/// PostgreSQL connection pooler.
#[derive(Debug, Parser)]
#[command(name = "switchyard", disable_version_flag = true)]
struct Arguments {
    /// Nothing on stderr.
    #[arg(short, long)]
    quiet: bool,
    /// More lines in the log; may be repeated.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Show the version and end.
    #[arg(short = 'V', long)]
    version: bool,
    /// Become this user.
    #[arg(short, long, value_name = "NAME")]
    user: Option<String>,
    /// Configuration file.
    #[arg(value_name = "CONFIG_FILE")]
    config: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprint!("{error}\nTry \"switchyard --help\" for more information.\n");
            return ExitCode::FAILURE;
        }
    };
    if arguments.version {
        println!("{}", program());
        return ExitCode::SUCCESS;
    }
    let [path] = &arguments.config[..] else {
        eprintln!("switchyard: no configuration file specified");
        eprintln!("Try \"switchyard --help\" for more information.");
        return ExitCode::FAILURE;
    };
    let log = Arc::new(Log::new(if arguments.quiet { Stderr::Quiet } else { Stderr::Show }));
    log.set_verbose(arguments.verbose);
    match start(path, &arguments, &log) {
        Ok(never) => match never {},
        Err(text) => {
            log.write(Level::Fatal, &text);
            ExitCode::FAILURE
        }
    }
}

/// No value: a successful start does not come back.
enum Never {}

fn start(path: &std::path::Path, arguments: &Arguments, log: &Arc<Log>) -> Result<Never, String> {
    let config =
        reload::read_config(path, log, Occasion::Start).ok_or("cannot load config file")?;
    reload::apply_log(log, &config);
    let tls = reload::load_tls(&config, log).ok_or("TLS setup failed")?;
    let user = arguments.user.clone().or(config.settings.user.clone());
    listen::become_user(user.as_deref())?;
    let mut mock_key = [0; 16];
    getrandom::fill(&mut mock_key).map_err(|error| format!("no randomness: {error}"))?;
    listen::check_pidfile(&config.settings, log)?;
    let (listeners, files) = listen::open(&config.settings, log)?;
    let expected = config.settings.max_client_conn + listen::server_slots(&config) + 10;
    listen::note_descriptors(expected, config.settings.max_client_conn, log);
    let workers = match usize::try_from(config.settings.workers).unwrap_or(0) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let pidfile = config.settings.pidfile.clone();
    let access = Access::load(&config, &Access::default(), log)?;
    let snapshot = options::snapshot(config, access, tls, mock_key);
    let shared = Arc::new(Shared::new(Arc::clone(log), snapshot, workers));
    files.into_iter().for_each(|file| shared.remove_at_exit(file));
    let seats: std::io::Result<Vec<_>> = (0..workers).map(|_| Seat::new()).collect();
    let seats = seats.map_err(|error| format!("cannot make a poll: {error}"))?;
    let (seats, handles): (Vec<_>, Vec<_>) = seats.into_iter().unzip();
    shared.attach(handles);
    let publisher = Arc::clone(&shared);
    let publish = move |database: &str, view: &View| publisher.publish(database, view);
    let services = Services::start(Box::new(publish), Arc::clone(log))
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    shared.serve(services);
    let settings = shared.snapshot().config.settings.clone();
    shared.load_hooks(&settings).map_err(|text| format!("cannot load hooks: {text}"))?;
    reload::define_entries(&shared);
    let mut listeners = Some(listeners);
    for (index, seat) in seats.into_iter().enumerate() {
        let id = WorkerId(index as u16);
        let (shared, listeners) = (Arc::clone(&shared), listeners.take().unwrap_or_default());
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || Worker::new(id, seat, shared, listeners).run())
            .map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    if !pidfile.is_empty() {
        listen::write_pidfile(&pidfile)?;
        shared.remove_at_exit(PathBuf::from(pidfile));
    }
    log.write(Level::Log, &format!("process up: {}, {workers} workers", program()));
    shared.broadcast(|| Message::Settings);
    signals::serve(&shared, Duration::from_millis(100))?;
    Err("signals cannot be received any more".into())
}
