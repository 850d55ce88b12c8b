//! How the process ends: what is closed at once, what is waited for, what is left behind.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::net::Shutdown;
use switchyard_core::lifecycle::Phase;

use crate::listen;
use crate::shared::Shared;
use crate::worker::Message;
use crate::worker::message::Listeners;

/// What wakes the thread that serves signals without being one.
pub const NO_SIGNAL: i32 = 0;

/// What has to be closed or removed when the process ends.
#[derive(Debug, Default)]
pub struct Remains {
    files: Mutex<Vec<PathBuf>>,
    listeners: Mutex<Vec<OwnedFd>>,
    /// Wakes the thread that looks whether a shutdown has come to its end.
    watcher: OnceLock<Sender<i32>>,
}

impl Remains {
    /// Names a file that is removed at the end.
    pub fn add_file(&self, path: PathBuf) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    }

    /// Names the listeners that are shut when an end begins.
    pub fn set_listeners(&self, listeners: Vec<OwnedFd>) {
        *self.listeners.lock().unwrap_or_else(PoisonError::into_inner) = listeners;
    }

    /// Names who is woken when a shutdown begins, once.
    pub fn set_watcher(&self, watcher: Sender<i32>) {
        // A second call would be an error of the caller and changes nothing.
        let _ = self.watcher.set(watcher);
    }

    /// From here on nobody can connect, whatever their workers are doing.
    fn shut(&self) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        for listener in listeners.drain(..) {
            // It may have been shut before.
            let _ = rustix::net::shutdown(&listener, Shutdown::Read);
        }
    }

    fn remove(&self, keep: Option<PathBuf>) {
        for path in self.files.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if keep.as_ref() != Some(path) {
                // It may be gone already.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Shared {
    /// Begins a shutdown that waits.
    pub fn begin_end(&self, phase: Phase) {
        self.lifecycle().end(phase);
        self.remains.shut();
        if let Some(watcher) = self.remains.watcher.get() {
            // Without anybody there the process has ended.
            let _ = watcher.send(NO_SIGNAL);
        }
        self.broadcast(|| Message::StopListening(Listeners::Tcp));
        if phase == Phase::WaitForServers {
            self.apply_pauses();
            self.broadcast(|| Message::RefuseWaiting);
        }
    }

    /// Ends the process.
    pub fn exit(&self, code: i32) -> ! {
        if let Some(hooks) = self.hooks() {
            hooks.end();
        }
        // A suspended process leaves its socket's file to its successor.
        let keep = (self.phase() == Phase::Suspended)
            .then(|| listen::unix_path(&self.snapshot().config.settings))
            .flatten();
        self.remains.remove(keep.map(PathBuf::from));
        std::process::exit(code)
    }
}
