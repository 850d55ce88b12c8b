//! Listening sockets and new connections. One worker accepts for all and places each connection
//! on the least loaded one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use switchyard_config::reason;
use switchyard_io::poller::Watch;
use switchyard_io::{Accepted, FailedStep, Listener, Queue, Stream};

use crate::listen;
use crate::log::Level;
use crate::worker::client::{Client, Seat};
use crate::worker::message::{Listeners, Message};
use crate::worker::{Source, Todo, Worker};

/// A listening socket of this worker.
#[derive(Debug)]
pub(super) struct Listening {
    listener: Option<Listener>,
    resume_at: Option<Instant>,
}

impl Listening {
    /// Listens from the worker's start on.
    pub(super) fn new(listener: Listener) -> Self {
        Listening { listener: Some(listener), resume_at: None }
    }
}

/// Pause after a failed accept, for example without free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(5);
/// Connections accepted in one turn.
const ACCEPTS_PER_TURN: usize = 64;

impl Worker {
    pub(super) fn start_listening(&mut self) {
        for (index, listening) in self.listeners.iter_mut().enumerate() {
            let token = Source::Listener(index).token();
            if let Some(listener) = &mut listening.listener
                && let Err(error) = self.poller.register_listener(listener, token)
            {
                let line = format!("cannot watch a listening socket: {error}");
                self.shared.log.write(Level::Error, &line);
            }
        }
    }

    pub(super) fn accept(&mut self, index: usize) {
        if self.rest.is_suspended() {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listening) = self.listeners.get_mut(index) else { return };
            let Some(listener) = &mut listening.listener else { return };
            match listener.accept() {
                Ok(Some(accepted)) => {
                    let queue = listener.queue();
                    self.place(accepted);
                    if queue == Queue::Empty {
                        return;
                    }
                }
                Ok(None) => return,
                // A shutdown has shut it from another thread.
                Err(_) if self.shared.lifecycle().is_ending() => {
                    listening.listener = None;
                    return;
                }
                Err(error) => {
                    let line = format!("accept() failed: {}", reason(&error));
                    self.shared.log.write(Level::Error, &line);
                    listening.resume_at = Some(self.now + ACCEPT_PAUSE);
                    // It cannot be watched meanwhile: what waits would be reported for ever.
                    let _ = self.poller.deregister_listener(listener);
                    return;
                }
            }
        }
        self.todo.push_back(Todo::Accept(index));
    }

    /// Goes on with listeners that were put aside.
    pub(super) fn resume_listening(&mut self) {
        for (index, listening) in self.listeners.iter_mut().enumerate() {
            let due = listening.resume_at.is_some_and(|at| at <= self.now);
            if let (true, Some(listener)) = (due, &mut listening.listener) {
                listening.resume_at = None;
                let token = Source::Listener(index).token();
                let _ = self.poller.register_listener(listener, token);
            }
        }
    }

    pub(super) fn stop_listening(&mut self, which: Listeners) {
        for listening in &mut self.listeners {
            let unix = matches!(listening.listener, Some(Listener::Unix(_)));
            if which == Listeners::All || !unix {
                listening.listener = None;
            }
        }
    }

    /// Descriptors and addresses of open listeners; a unix socket has no address.
    pub(super) fn listening(&self) -> impl Iterator<Item = (i32, Option<SocketAddr>)> {
        let open = self.listeners.iter().filter_map(|one| one.listener.as_ref());
        open.map(|listener| (listener.number(), listener.local_addr()))
    }

    /// Brings open listeners in line with the settings.
    pub(super) fn tune_listeners(&self) {
        let settings = &self.snapshot.config.settings;
        for listener in self.listeners.iter().filter_map(|one| one.listener.as_ref()) {
            listen::tune(listener, settings, &self.shared.log);
        }
    }

    /// Says which socket option could not be set.
    pub(super) fn warn_of_step(&self, stream: &Stream, failed: &FailedStep) {
        let (step, reason) = (failed.name, reason(&failed.error));
        let line = format!("{step}({}) failed: {reason}", stream.number());
        self.shared.log.write(Level::Warning, &line);
    }

    fn place(&mut self, accepted: Accepted) {
        let number = self.shared.number();
        let worker = self.shared.place_client();
        if worker == self.id {
            self.adopt(accepted, number);
        } else {
            self.send(worker, Message::Client(accepted, number));
        }
    }

    /// Makes an accepted connection a client of this worker.
    pub(super) fn adopt(&mut self, accepted: Accepted, number: u64) {
        let Accepted { stream, peer, inherited } = accepted;
        let options = &self.snapshot.sockets;
        if let Err(failed) = stream.set_rare_options(options, peer.address(), inherited) {
            self.warn_of_step(&stream, &failed);
            return self.shared.client_left(self.id, Seat::Taken);
        }
        let key = self.clients.insert(Box::new(Client::new(number, stream, peer, self.now)));
        let token = Source::Client(key).token();
        let Some(client) = self.clients.get_mut(key) else { return };
        if self.poller.register(client.stream.socket(), token, Watch::Input).is_err() {
            return self.forget_client(key);
        }
        if self.snapshot.config.settings.tcp_defer_accept && peer.address().is_some() {
            // Its first bytes are there already.
            client.unread.put_off();
            self.todo.push_back(Todo::Client(key));
        }
        self.look_later(key);
    }
}
