//! Signals, and the ends of shutdowns that wait.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;
use switchyard_core::lifecycle::Phase;

use crate::ending::NO_SIGNAL;
use crate::log::Level;
use crate::shared::Shared;

/// Signals that wait to be served.
#[derive(Debug)]
pub struct Caught {
    signals: Receiver<i32>,
    waker: Sender<i32>,
}

/// From now on signals wait to be served. Who is told that the process is up may send some at once.
pub fn catch() -> Result<Caught, String> {
    let all = [SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGPIPE];
    let mut signals = Signals::new(all).map_err(|error| format!("no signals: {error}"))?;
    let (waker, caught) = channel();
    let sender = waker.clone();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    });
    Ok(Caught { signals: caught, waker })
}

/// Serves signals in the calling thread until the process ends; looks every `interval` whether a
/// shutdown has come to its end.
pub fn serve(caught: &Caught, shared: &Arc<Shared>, interval: Duration) {
    // The console begins shutdowns as well.
    shared.remains.set_watcher(caught.waker.clone());
    loop {
        let ending = shared.lifecycle().is_ending();
        let wait = if ending { interval } else { Duration::from_secs(3600) };
        match caught.signals.recv_timeout(wait) {
            // The console has yet to answer whoever asked for it.
            Ok(NO_SIGNAL) => continue,
            Ok(signal) => act(shared, signal),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        end_if_done(shared);
    }
}

fn act(shared: &Arc<Shared>, signal: i32) {
    let log = |text: &str| shared.log.write(Level::Log, text);
    let ending = shared.lifecycle().is_ending();
    match signal {
        SIGHUP => {
            log("got SIGHUP, re-reading config");
            shared.reload();
        }
        SIGTERM if ending => {
            log("got SIGTERM while shutting down, fast exit");
            shared.exit(0);
        }
        SIGINT if ending => {
            log("got SIGINT while shutting down, fast exit");
            shared.exit(0);
        }
        SIGTERM | SIGINT if shared.phase() == Phase::Suspended => {
            let text = "suspend was in progress, going down immediately";
            shared.log.write(Level::Fatal, text);
            shared.exit(1);
        }
        SIGTERM => {
            log("got SIGTERM, shutting down, waiting for all clients disconnect");
            shared.begin_end(Phase::WaitForClients);
        }
        SIGINT => {
            log("got SIGINT, shutting down, waiting for all servers connections to be released");
            shared.begin_end(Phase::WaitForServers);
        }
        SIGQUIT => {
            log("got SIGQUIT, fast exit");
            shared.exit(0);
        }
        SIGUSR1 => {
            let paused = shared.lifecycle().pause();
            match paused {
                Ok(()) => log("got SIGUSR1, pausing all activity"),
                Err(_) => log("got SIGUSR1, but already paused/suspended"),
            }
            shared.apply_pauses();
        }
        SIGUSR2 => {
            let suspended = shared.phase() == Phase::Suspended;
            match shared.resume() {
                Ok(()) if suspended => log("got SIGUSR2, continuing from SUSPEND"),
                Ok(()) => log("got SIGUSR2, continuing from PAUSE"),
                Err(_) if ending => log("got SIGUSR2 while shutting down, ignoring"),
                Err(_) => log("got SIGUSR2, but not paused/suspended"),
            }
        }
        _ => {}
    }
}

fn end_if_done(shared: &Arc<Shared>) {
    match shared.phase() {
        Phase::WaitForClients if shared.clients() == 0 => {
            shared.log.write(Level::Log, "client connections dropped, exiting");
            shared.exit(0);
        }
        Phase::WaitForServers => {
            let busy = shared.pools().iter().any(|pool| !pool.lock().machine.is_empty());
            if !busy {
                shared.log.write(Level::Log, "server connections dropped, exiting");
                shared.exit(0);
            }
        }
        Phase::WaitForClients | Phase::Active | Phase::Paused | Phase::Suspended => {}
    }
}
