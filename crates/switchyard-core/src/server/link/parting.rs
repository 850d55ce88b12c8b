//! The end of a server connection: what it owes to the client that is linked to it.

use switchyard_wire::tag::backend;
use switchyard_wire::{build, frame};

use super::{Group, Link, LinkedClient, Signal, Talk, WHOLE_MAX};
use crate::client::lost::{self, Owed};
use crate::client::session::Loyalty;
use crate::server::request::{self, Request, Turn};

impl Link {
    /// What becomes of the client when the server is lost, as it was when they were linked.
    #[inline]
    pub fn loyalty(&self) -> Loyalty {
        self.loyalty
    }

    /// A client is linked that stays or leaves when this server is lost.
    pub fn begin(&mut self, loyalty: Loyalty) {
        self.loyalty = loyalty;
        self.talk = Talk::None;
        self.words = None;
    }

    /// Whether a FATAL is kept for the moment when the connection ends.
    pub(super) fn keeps(&self, signal: Option<Signal>, body: &[u8]) -> bool {
        self.loyalty != Loyalty::Leaves
            && signal.is_some_and(|signal| signal.severity == b'F')
            && body.len() + frame::HEADER < WHOLE_MAX
    }

    /// Keeps a FATAL: as it is for a client that will be closed, else as an ERROR.
    pub(super) fn keep(&mut self, body: &[u8]) {
        self.words = Some(match self.loyalty {
            Loyalty::Stays | Loyalty::Leaves => lost::softened(body),
            Loyalty::Returns => {
                let mut words = Vec::new();
                build::message(&mut words, backend::ERROR, |out| out.extend_from_slice(body));
                words
            }
        });
    }

    /// The server's last words, if they were kept.
    pub fn last_words(&mut self) -> Option<Vec<u8>> {
        self.words.take()
    }

    /// Nothing of what is unanswered has reached the server: it counts as never asked.
    pub fn withdraw(&mut self, client: LinkedClient<'_>) {
        let requests = std::iter::from_fn(|| self.outstanding.pop()).collect();
        request::undo(requests, &mut self.statements, &mut Some(client.statements));
    }

    /// The connection has ended: what the client has to be told, or `None` if it has seen a part
    /// of a message and cannot be told anything.
    pub fn lose(&mut self, client: LinkedClient<'_>) -> Option<Owed> {
        if self.shows_part() {
            return None;
        }
        let (mut answers, mut group) = (0, lost::Group::Ended);
        let last = self.outstanding.last();
        if self.group != Group::Ended || !last.is_none_or(Request::ends_group) {
            group = lost::Group::Open;
        }
        let mut skipped = Vec::new();
        while let Some(request) = self.outstanding.pop_ready(&mut skipped) {
            answers += usize::from(!request.is_hidden_query());
        }
        let refused = |request: &&Request| matches!(request, Request::Refused(_, Turn::Ended));
        answers += skipped.iter().filter(refused).count();
        request::undo(skipped, &mut self.statements, &mut Some(client.statements));
        let told = if self.talk == Talk::Failed { lost::Told::Error } else { lost::Told::Nothing };
        Some(Owed { words: self.words.take(), status: self.status, answers, group, told })
    }
}
