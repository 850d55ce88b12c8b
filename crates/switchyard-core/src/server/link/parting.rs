//! The end of a server connection: what it owes to the client that is linked to it.

use switchyard_wire::frame;

use super::{Group, Link, LinkedClient, Show, Signal, WHOLE_MAX, unregister};
use crate::client::lost::{self, Owed};
use crate::client::session::Loyalty;

impl Link {
    /// Whether the linked client stays when this server is lost.
    pub fn set_loyalty(&mut self, loyalty: Loyalty) {
        self.loyalty = loyalty;
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
        if self.partial.left > 0 && self.partial.show == Show::Yes {
            return None;
        }
        let (mut answers, mut group) = (0, lost::Group::Ended);
        if self.group == Group::Skipping {
            group = lost::Group::Open;
        }
        let mut rest = Vec::new();
        while let Some(request) = self.outstanding.pop_ready(|skipped| rest.push(skipped)) {
            answers += usize::from(!request.is_hidden_query());
            rest.drain(..).for_each(|skipped| {
                unregister(&mut self.statements, Some(client.statements), skipped);
            });
        }
        if !rest.is_empty() {
            group = lost::Group::Open;
        }
        rest.into_iter().for_each(|skipped| {
            unregister(&mut self.statements, Some(client.statements), skipped);
        });
        Some(Owed { words: self.words.take(), status: self.status, answers, group })
    }
}
