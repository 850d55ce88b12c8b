//! The end of a server connection: what it owes to the client that is linked to it.

use switchyard_wire::frame;

use super::{Group, Link, LinkedClient, Signal, Talk, WHOLE_MAX};
use crate::client::lost::{self, Owed};
use crate::client::session::Loyalty;
use crate::server::request::{self, Request, Turn};

impl Link {
    /// A client is linked that stays or leaves when this server is lost.
    pub fn begin(&mut self, loyalty: Loyalty) {
        self.loyalty = loyalty;
        self.talk = Talk::None;
        self.words = None;
    }

    /// Whether a FATAL is kept for the moment when the connection ends.
    pub(super) fn keeps(&self, signal: Option<Signal>, body: &[u8]) -> bool {
        self.loyalty == Loyalty::Stays
            && signal.is_some_and(|signal| signal.severity == b'F')
            && body.len() + frame::HEADER < WHOLE_MAX
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
        Some(Owed { words: self.words.take(), status: self.status, answers, group })
    }
}
