//! The program: command line, start-up order, signals.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use switchyard::access::Access;
use switchyard::arguments::{Arguments, Task, say};
use switchyard::log::{Level, Log, Stderr};
use switchyard::reload::{self, Occasion};
use switchyard::services::{House, Services};
use switchyard::shared::Shared;
use switchyard::tls::Setup;
use switchyard::worker::console::program;
use switchyard::worker::{Message, Seat, Worker};
use switchyard::{check, listen, options, process, signals, trial};
use switchyard_config::Config;
use switchyard_core::ids::WorkerId;

/// Users that need no entry: the console's own.
const CONSOLE_USERS: usize = 1;

/// Libraries of `--version` and the line that tells that we are up.
const LIBRARIES: [&str; 3] = ["libevent none (epoll)", "adns: getaddrinfo", "tls: rustls"];

fn main() -> ExitCode {
    let words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> = words.collect();
    if let Some((trial::COMMAND, rest @ [_, ..])) =
        words.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        return trial::Arguments::read(rest).map_or_else(|code| code, |found| trial::run(&found));
    }
    let (arguments, task) = match Arguments::read() {
        Ok(found) => found,
        Err(result) => return result,
    };
    let path = match task {
        Task::Run(path) => path,
        Task::Check(path) => return check::run(&path),
        Task::Version => {
            say(&format!("{}\n{}\n", program(), LIBRARIES.join("\n")));
            return ExitCode::SUCCESS;
        }
    };
    if arguments.daemon && !arguments.in_background {
        return process::start_in_background();
    }
    let log = Arc::new(Log::new(if arguments.quiet { Stderr::Quiet } else { Stderr::Show }));
    log.set_base(arguments.verbose);
    match start(&path, &arguments, &log) {
        Ok(never) => match never {},
        Err(text) => {
            log.write(Level::Fatal, &text);
            ExitCode::FAILURE
        }
    }
}

/// No value: a successful start does not come back.
enum Never {}

/// Everything before the first socket: the file, the user, and that we are alone.
fn prepare(
    path: &Path,
    arguments: &Arguments,
    log: &Arc<Log>,
) -> Result<(Config, Arc<Setup>), String> {
    let read = reload::read_config(path, log, Occasion::Start);
    let tls = read.as_ref().ok().map(|config| reload::load_tls(config, log));
    let settings = read.as_ref().map_or_else(|settings| &**settings, |config| &config.settings);
    let user = arguments.user.as_ref().or(settings.user.as_ref());
    let user = process::become_user(user.map(String::as_str));
    // The log file is opened with the first line, by the user who has to open it again later.
    reload::apply_log(log, settings);
    let config = read.map_err(|_| "cannot load config file")?;
    let tls = tls.flatten().ok_or("TLS setup failed")?;
    user?;
    process::name(&config.settings);
    listen::check_unix(&config.settings)?;
    process::check_pidfile(&config.settings.pidfile, log)?;
    if arguments.in_background {
        if config.settings.pidfile.is_empty() {
            return Err("daemon needs pidfile configured".into());
        }
        process::leave_session()?;
    }
    Ok((config, tls))
}

fn start(path: &Path, arguments: &Arguments, log: &Arc<Log>) -> Result<Never, String> {
    let (config, tls) = prepare(path, arguments, log)?;
    let mut mock_key = [0; 16];
    getrandom::fill(&mut mock_key).map_err(|error| format!("no randomness: {error}"))?;
    let workers = match usize::try_from(config.settings.workers).unwrap_or(0) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let pidfile = config.settings.pidfile.clone();
    let access = Access::load(&config, &Access::default(), log)?;
    let snapshot = options::snapshot(config, access, tls, mock_key);
    process::note_descriptors(
        &snapshot.config,
        snapshot.access.users.names().count() + CONSOLE_USERS,
        log,
    );
    let opened = listen::open(&snapshot.config.settings, log)?;
    let shared = Arc::new(Shared::new(Arc::clone(log), snapshot, workers));
    shared.remains.set_listeners(opened.handles());
    opened.files.iter().for_each(|file| shared.remains.add_file(file.clone()));
    let seats: std::io::Result<Vec<_>> = (0..workers).map(|_| Seat::new()).collect();
    let seats = seats.map_err(|error| format!("cannot make a poll: {error}"))?;
    let (seats, handles): (Vec<_>, Vec<_>) = seats.into_iter().unzip();
    shared.attach(handles);
    let house: Arc<dyn House> = Arc::<Shared>::clone(&shared);
    let resolv_conf = shared.snapshot().config.settings.resolv_conf.clone();
    let services = Services::start(house, Arc::clone(log), &resolv_conf)?;
    shared.serve(services);
    shared.set_rules(&shared.snapshot().config);
    let loaded = shared.load_hooks(&shared.snapshot().config);
    let loaded = loaded.map_err(|text| format!("cannot load hooks: {text}"))?;
    reload::define_entries(&shared);
    reload::check_keys(&shared, loaded);
    let mut listeners = Some(opened.listeners);
    for (index, seat) in seats.into_iter().enumerate() {
        let id = WorkerId(index as u16);
        let (shared, listeners) = (Arc::clone(&shared), listeners.take().unwrap_or_default());
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || Worker::new(id, seat, shared, listeners).run())
            .map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    let caught = signals::catch()?;
    process::write_pidfile(&pidfile)?;
    shared.remains.add_file(PathBuf::from(pidfile));
    let libraries = LIBRARIES.join(", ");
    log.write(Level::Log, &format!("process up: {}, {libraries}", program()));
    shared.broadcast(|| Message::Settings);
    if arguments.in_background {
        process::settle_in_background(log)?;
    }
    signals::serve(&caught, &shared, Duration::from_millis(100));
    Err("signals cannot be received any more".into())
}
