//! A session whose server goes away while nothing is under way: what its messages have left there.

use switchyard_wire::tag::frontend;
use switchyard_wire::{frame, read};

use super::message::{Message, whole};
use super::terms::{Approval, Loyalty, Rules, Stop};
use super::{NAMES_MAX, Session};
use crate::client::traces::Traces;
use crate::server::duty::Unsent;
use crate::server::link::Link;
use crate::server::request::{HiddenQuery, Request};

/// How a session can do without its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Any other server will do.
    Free,
    /// It has left this there.
    Left(String),
    /// Something of it is under way.
    Busy,
}

/// Longest text that is looked at, in bytes.
const TEXT_MAX: usize = 64 * 1024;

impl Session {
    /// Whether the session can go on with another server; `unsent` tells whether something of it is
    /// on its way to this one.
    pub fn leaving(&self, link: &Link, unsent: Unsent) -> Leaving {
        if !link.is_free() || unsent == Unsent::Some || self.is_inside_message() {
            return Leaving::Busy;
        }
        match self.traces.left() {
            None => Leaving::Free,
            Some(what) => Leaving::Left(what.to_owned()),
        }
    }

    /// Nothing of `sent` has reached the server. If that was a whole query or a whole group behind
    /// the parameters that it needs, and all that is to be answered, another server may be asked:
    /// answers whether the session is as if it had sent nothing.
    pub fn takes_back(&mut self, link: &mut Link, sent: &[u8]) -> bool {
        let set = |request: &&Request| {
            let parameters =
                |q: &HiddenQuery| matches!(q, HiddenQuery::Parameters | HiddenQuery::Parameter(_));
            matches!(request, Request::Hidden(query) if parameters(query))
        };
        let requests = link.outstanding();
        let sets = requests.iter().take_while(set).count();
        let own = || requests.iter().skip(sets);
        let all = sets > 0 && own().filter(|r| r.is_asked_for()).count() == asked(sent);
        let ended = matches!(requests.last(), Some(Request::Query | Request::Sync));
        let repeatable = own().all(Request::is_repeatable);
        if !(all && ended && repeatable && link.loyalty() == Loyalty::Leaves) {
            return false;
        }
        link.withdraw(self.linked_client());
        self.part();
        self.settled();
        true
    }

    /// The session goes on with another server.
    pub fn move_on(&mut self) {
        self.part();
        self.settled();
        self.traces = Traces::default();
    }

    /// Looks at a message that goes to the server for what it leaves there.
    pub(super) fn look_for_traces(
        &mut self,
        m: &Message<'_>,
        rules: &Rules<'_>,
    ) -> Result<(), Stop> {
        match m.head.tag {
            frontend::QUERY | frontend::PARSE if m.head.len > TEXT_MAX => {
                self.traces.leave("a long statement");
            }
            frontend::QUERY => {
                let body = whole(m)?;
                let own = &body[..body.len().saturating_sub(1)];
                let text = rewritten(self.approval.as_ref()).unwrap_or(own);
                self.traces.query(text, rules.tracked);
            }
            frontend::PARSE => match read::parse(whole(m)?) {
                Some(parse) => {
                    let text = rewritten(self.approval.as_ref()).unwrap_or(parse.sql);
                    self.traces.parse(parse.name, text, rules.tracked);
                }
                None => self.traces.leave("a broken statement"),
            },
            frontend::BIND => {
                let there = m.there();
                match read::bind(m.body_there()) {
                    Some((_, statement, _)) => self.traces.bind(statement),
                    None if there == m.head.len || there > NAMES_MAX => {
                        self.traces.leave("a broken Bind");
                    }
                    None => return Err(Stop::More),
                }
            }
            frontend::FUNCTION_CALL => self.traces.leave("a function call"),
            _ => {}
        }
        Ok(())
    }
}

/// Messages that ask for an answer, if there are only whole ones; else more than there can be.
fn asked(mut sent: &[u8]) -> usize {
    let mut count = 0;
    while let Ok(Some((head, _, rest))) = frame::split(sent) {
        count += usize::from(head.tag != frontend::FLUSH);
        sent = rest;
    }
    if sent.is_empty() { count } else { usize::MAX }
}

fn rewritten(approval: Option<&Approval>) -> Option<&[u8]> {
    match approval {
        Some(Approval::Text(text)) => Some(text),
        Some(Approval::Unchanged | Approval::Refused(_)) | None => None,
    }
}
