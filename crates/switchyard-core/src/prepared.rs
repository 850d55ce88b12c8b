//! Named prepared statements across servers: what a client's name means, and which statements a
//! server has.
//!
//! The same text and parameter types are one server-side statement, whoever prepared it.
//! Invariant: a server-side name stands for one text for the life of the process.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use foldhash::fast::RandomState;

/// Which statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatementId(u64);

/// A statement that some client has prepared.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    id: StatementId,
    name: Box<[u8]>,
    sql: Box<[u8]>,
    types: Box<[u8]>,
}

impl Statement {
    /// Its identity.
    pub fn id(&self) -> StatementId {
        self.id
    }

    /// Its name on servers.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Query text.
    pub fn sql(&self) -> &[u8] {
        &self.sql
    }

    /// Count and object ids of the parameter types, as the client sent them.
    pub fn types(&self) -> &[u8] {
        &self.types
    }
}

/// Hash of text and types, and a number that tells apart those with the same hash.
type Hash = (u64, u32);

/// All statements that any client has a name for. They own their texts; here are only hashes.
#[derive(Debug, Default)]
struct Texts {
    by_hash: HashMap<Hash, Weak<Statement>, RandomState>,
    hasher: RandomState,
    minted: u64,
}

/// The registry shared by all workers. Its lock is taken at each Parse of a named statement.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Texts>>);

/// Entries beyond which the registry looks for statements that nobody uses.
const SWEEP_MIN: usize = 1024;

impl Registry {
    /// The statement with this text and these types.
    pub fn intern(&self, sql: &[u8], types: &[u8]) -> Arc<Statement> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).intern(sql, types)
    }
}

impl Texts {
    fn intern(&mut self, sql: &[u8], types: &[u8]) -> Arc<Statement> {
        let mut place = (self.hasher.hash_one((sql, types)), 0);
        while let Some(known) = self.by_hash.get(&place) {
            match known.upgrade() {
                Some(known) if *known.sql == *sql && *known.types == *types => return known,
                Some(_) => place.1 += 1,
                // Its place may be part of a chain, so it is taken over rather than passed by.
                None => break,
            }
        }
        self.minted += 1;
        let name = format!("SWITCHYARD_{}", self.minted).into_bytes().into_boxed_slice();
        let (sql, types) = (sql.into(), types.into());
        let statement = Arc::new(Statement { id: StatementId(self.minted), name, sql, types });
        if self.by_hash.len() >= SWEEP_MIN && self.by_hash.len() == self.by_hash.capacity() {
            self.by_hash.retain(|_, statement| statement.strong_count() > 0);
        }
        self.by_hash.insert(place, Arc::downgrade(&statement));
        statement
    }
}

/// The names of one client. Empty until the first named Parse.
#[derive(Debug, Default)]
pub struct ClientStatements(Option<Box<ByName>>);

type ByName = HashMap<Box<[u8]>, Arc<Statement>, RandomState>;

impl ClientStatements {
    /// The statement behind a name.
    pub fn statement(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.0.as_ref()?.get(name)
    }

    /// Defines a name.
    pub fn define(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.0.get_or_insert_default().insert(name.into(), statement);
    }

    /// Forgets a name; answers what it stood for.
    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        self.0.as_mut()?.remove(name)
    }

    /// Forgets all names.
    pub fn clear(&mut self) {
        self.0 = None;
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |names| names.len())
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The statements that one server connection has, least recently used first out.
///
/// What was sent may still be skipped because of an error before it. Within its group that does not
/// matter, because what comes later is skipped as well; a later group has to take care.
#[derive(Debug, Default)]
pub struct ServerStatements {
    known: HashMap<StatementId, Known, RandomState>,
    closing: usize,
    clock: u64,
    group: u64,
}

#[derive(Debug)]
struct Known {
    statement: Arc<Statement>,
    used: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The server has said that it has it.
    Confirmed,
    /// It has it, but the types of its result have changed.
    Outdated,
    /// This Parse of it was sent in this group.
    Sent(Change, u64, Place),
    /// This Close of it was sent, or nobody knows whether it is there.
    Closing(Change),
}

/// Whether the server had a statement that is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Was {
    /// It had, unless its Parse is skipped as well.
    Present,
    /// Nobody knows: it is closed to be sure.
    Unknown,
}

impl State {
    fn is_closing(self) -> bool {
        matches!(self, State::Closing(_))
    }
}

/// One Parse or Close among all that were sent to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change(u64);

/// A Close that has to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closing {
    /// What is closed.
    pub statement: Arc<Statement>,
    /// Whether it was there.
    pub was: Was,
    /// Which Close.
    pub change: Change,
}

/// A statement was added.
#[derive(Debug)]
pub struct Added {
    /// Its Parse.
    pub parse: Change,
    /// Those that have to be closed.
    pub evicted: Vec<Closing>,
}

/// Where in its group a Parse was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In front of everything else, so that nothing makes the server skip it.
    First,
    /// Behind something that may fail.
    Later,
}

/// Whether a server has a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It does not.
    Absent,
    /// It has.
    Usable,
    /// It has, unless the statement itself is wrong.
    Likely,
    /// Nobody knows yet.
    Doubtful,
    /// It has, but the types of its result have changed since, so that it fails.
    Outdated,
}

impl ServerStatements {
    /// Marks a statement as used; answers whether the server has it.
    #[inline]
    pub fn touch(&mut self, statement: &Statement) -> Presence {
        self.clock += 1;
        let Some(known) = self.known.get_mut(&statement.id) else { return Presence::Absent };
        known.used = self.clock;
        match known.state {
            State::Confirmed => Presence::Usable,
            State::Outdated => Presence::Outdated,
            State::Sent(_, group, _) if group == self.group => Presence::Usable,
            State::Sent(_, _, Place::First) => Presence::Likely,
            State::Sent(_, _, Place::Later) | State::Closing(_) => Presence::Doubtful,
        }
    }

    /// Adds a statement whose Parse is sent. Those that are beyond `limit` have to be closed.
    pub fn add(&mut self, statement: Arc<Statement>, place: Place, limit: usize) -> Added {
        let id = statement.id;
        self.clock += 1;
        let parse = Change(self.clock);
        self.set(statement, State::Sent(parse, self.group, place));
        let mut evicted = Vec::new();
        while self.len() > limit.max(1) {
            let others = self.known.iter_mut().map(|(_, known)| known);
            let others = others.filter(|known| known.statement.id != id);
            let present = others.filter(|known| !known.state.is_closing());
            let Some(oldest) = present.min_by_key(|known| known.used) else { break };
            let was = match oldest.state {
                State::Sent(_, group, _) if group != self.group => Was::Unknown,
                State::Sent(..) | State::Confirmed | State::Outdated | State::Closing(_) => {
                    Was::Present
                }
            };
            self.clock += 1;
            let change = Change(self.clock);
            oldest.state = State::Closing(change);
            evicted.push(Closing { statement: Arc::clone(&oldest.statement), was, change });
            self.closing += 1;
        }
        Added { parse, evicted }
    }

    /// The group ends: what is sent from here on is not skipped with it.
    #[inline]
    pub fn end_group(&mut self) {
        self.group += 1;
    }

    /// The server has prepared a statement. What was sent for it later still counts.
    pub fn confirm(&mut self, id: StatementId, parse: Change) {
        if let Some(known) = self.known.get_mut(&id)
            && matches!(known.state, State::Sent(sent, ..) if sent == parse)
        {
            known.state = State::Confirmed;
        }
    }

    /// A statement is closed before it is prepared again.
    pub fn close(&mut self, statement: &Arc<Statement>, was: Was) -> Closing {
        self.clock += 1;
        let change = Change(self.clock);
        self.closes(Arc::clone(statement), change);
        Closing { statement: Arc::clone(statement), was, change }
    }

    /// A Close has not been answered yet.
    pub fn closes(&mut self, statement: Arc<Statement>, change: Change) {
        self.set(statement, State::Closing(change));
    }

    /// Nobody knows whether the server has a statement.
    pub fn doubt(&mut self, statement: Arc<Statement>) {
        self.clock += 1;
        self.set(statement, State::Closing(Change(self.clock)));
    }

    /// The server has closed a statement. What was sent for it later still counts.
    pub fn closed(&mut self, statement: &Statement, change: Change) {
        let known = self.known.get(&statement.id);
        if known.is_some_and(|known| known.state == State::Closing(change)) {
            self.remove(statement);
        }
    }

    /// The server has a statement, whatever the limit is.
    pub fn put_back(&mut self, statement: Arc<Statement>) {
        self.set(statement, State::Confirmed);
    }

    /// A statement's Parse has not been answered yet.
    pub fn awaits(&mut self, statement: Arc<Statement>, parse: Change) {
        // Its group is over, as far as anybody remembers.
        self.set(statement, State::Sent(parse, self.group.wrapping_sub(1), Place::Later));
    }

    /// The server's plan for a statement fails from now on.
    pub fn outdate(&mut self, id: StatementId) {
        if let Some(known) = self.known.get_mut(&id)
            && known.state == State::Confirmed
        {
            known.state = State::Outdated;
        }
    }

    /// The server does not have a statement after all.
    pub fn remove(&mut self, statement: &Statement) {
        let removed = self.known.remove(&statement.id);
        self.closing -= usize::from(removed.is_some_and(|known| known.state.is_closing()));
    }

    /// The server forgot everything.
    pub fn clear(&mut self) {
        self.known.clear();
        self.closing = 0;
    }

    /// Number of statements.
    pub fn len(&self) -> usize {
        self.known.len() - self.closing
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of statements that are being closed, or of which nobody knows.
    pub fn closing(&self) -> usize {
        self.closing
    }

    fn set(&mut self, statement: Arc<Statement>, state: State) {
        self.clock += 1;
        self.closing += usize::from(state.is_closing());
        let known = Known { used: self.clock, state, statement };
        let before = self.known.insert(known.statement.id, known);
        self.closing -= usize::from(before.is_some_and(|known| known.state.is_closing()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_is_one_statement_while_anybody_uses_it() {
        let registry = Registry::default();
        let a = registry.intern(b"select 1", &[0, 0]);
        let b = registry.intern(b"select 1", &[0, 0]);
        assert!(Arc::ptr_eq(&a, &b));
        assert_ne!(a.name(), registry.intern(b"select 1", &[0, 1, 0, 0, 0, 23]).name());
    }

    #[test]
    fn the_least_recently_used_statement_goes_first() {
        let registry = Registry::default();
        let [a, b, c] = [b"a", b"b", b"c"].map(|sql| registry.intern(sql, &[0, 0]));
        let mut server = ServerStatements::default();
        assert!(server.add(Arc::clone(&a), Place::First, 2).evicted.is_empty());
        assert!(server.add(Arc::clone(&b), Place::Later, 2).evicted.is_empty());
        assert_eq!(server.touch(&a), Presence::Usable);
        let evicted = server.add(c, Place::Later, 2).evicted;
        assert_eq!((&evicted[0].statement, evicted.len()), (&b, 1));
        assert_eq!(server.touch(&b), Presence::Doubtful);
        server.closed(&b, evicted[0].change);
        assert_eq!(server.touch(&b), Presence::Absent);
        assert_eq!(server.len(), 2);
    }

    #[test]
    fn what_was_sent_is_sure_only_within_its_group() {
        let registry = Registry::default();
        let [a, b] = [b"a", b"b"].map(|sql| registry.intern(sql, &[0, 0]));
        let mut server = ServerStatements::default();
        server.add(Arc::clone(&a), Place::First, 2);
        let old = server.add(Arc::clone(&b), Place::Later, 2).parse;
        let parse = server.add(Arc::clone(&b), Place::Later, 2).parse;
        assert_eq!([server.touch(&a), server.touch(&b)], [Presence::Usable; 2]);
        server.end_group();
        assert_eq!(server.touch(&a), Presence::Likely);
        assert_eq!(server.touch(&b), Presence::Doubtful);
        server.confirm(b.id(), old);
        assert_eq!(server.touch(&b), Presence::Doubtful);
        server.confirm(b.id(), parse);
        assert_eq!(server.touch(&b), Presence::Usable);
        server.outdate(b.id());
        assert_eq!(server.touch(&b), Presence::Outdated);
        server.close(&b, Was::Present);
        assert_eq!((server.touch(&b), server.len()), (Presence::Doubtful, 1));
        server.put_back(Arc::clone(&b));
        assert_eq!((server.touch(&b), server.len()), (Presence::Usable, 2));
    }

    #[test]
    fn a_lower_limit_acts_at_the_next_insertion() {
        let registry = Registry::default();
        let mut server = ServerStatements::default();
        let statements: Vec<_> = (0..5u8).map(|n| registry.intern(&[b'a' + n], &[0, 0])).collect();
        for statement in &statements[..4] {
            assert!(server.add(Arc::clone(statement), Place::First, 4).evicted.is_empty());
        }
        let added = server.add(Arc::clone(&statements[4]), Place::First, 2);
        let evicted: Vec<_> = added.evicted.into_iter().map(|closing| closing.statement).collect();
        assert_eq!(evicted, statements[..3]);
    }
}
