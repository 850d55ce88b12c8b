//! Messages to a worker from other threads: a short lock around a vector, and one wake-up for
//! however many messages are waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mio::Waker;

/// The receiving end's shared part.
#[derive(Debug)]
struct Shared<M> {
    messages: Mutex<Vec<M>>,
    pending: AtomicBool,
    waker: Waker,
}

/// The end that a worker reads.
#[derive(Debug)]
pub struct Inbox<M> {
    shared: Arc<Shared<M>>,
}

/// The end that other threads hold.
#[derive(Debug)]
pub struct Sender<M> {
    shared: Arc<Shared<M>>,
}

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Sender { shared: Arc::clone(&self.shared) }
    }
}

impl<M> Inbox<M> {
    /// An inbox whose arrivals wake `waker`'s poll.
    pub fn new(waker: Waker) -> Self {
        let messages = Mutex::new(Vec::new());
        Inbox { shared: Arc::new(Shared { messages, pending: AtomicBool::new(false), waker }) }
    }

    /// A sending end.
    pub fn sender(&self) -> Sender<M> {
        Sender { shared: Arc::clone(&self.shared) }
    }

    /// Moves all waiting messages, oldest first, to the end of `into`.
    pub fn drain(&self, into: &mut Vec<M>) {
        // Cleared before the lock is taken: a message sent from here on wakes the poll again.
        self.shared.pending.store(false, Ordering::SeqCst);
        into.append(&mut self.shared.messages.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl<M> Sender<M> {
    /// Delivers a message and wakes the worker, unless a wake-up is already under way.
    pub fn send(&self, message: M) {
        self.shared.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        if !self.shared.pending.swap(true, Ordering::SeqCst) {
            // Failure means that the worker's poll is gone, and with it everything it served.
            let _ = self.shared.waker.wake();
        }
    }
}
