//! Named prepared statements across servers: what a client's name means, and which statements a
//! server has.
//!
//! The same text and parameter types are one server-side statement, whoever prepared it.
//! Invariant: a server-side name stands for one text for the life of the process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use foldhash::fast::RandomState;

/// A statement that some client has prepared.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    id: u64,
    name: Box<[u8]>,
    sql: Box<[u8]>,
    types: Box<[u8]>,
}

impl Statement {
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

type Text = (Box<[u8]>, Box<[u8]>);

/// All statements that any client has a name for.
#[derive(Debug, Default)]
struct Known {
    by_text: HashMap<Text, Weak<Statement>, RandomState>,
    minted: u64,
}

/// The registry shared by all workers. Its lock is taken at each Parse of a named statement.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Known>>);

/// Entries beyond which the registry looks for statements that nobody uses.
const SWEEP_MIN: usize = 1024;

impl Registry {
    /// The statement with this text and these types.
    pub fn intern(&self, sql: &[u8], types: &[u8]) -> Arc<Statement> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text: Text = (sql.into(), types.into());
        if let Some(statement) = known.by_text.get(&text).and_then(Weak::upgrade) {
            return statement;
        }
        known.minted += 1;
        let id = known.minted;
        let name = format!("SWITCHYARD_{id}").into_bytes().into_boxed_slice();
        let statement = Statement { id, name, sql: text.0.clone(), types: text.1.clone() };
        let statement = Arc::new(statement);
        if known.by_text.len() >= SWEEP_MIN && known.by_text.len() == known.by_text.capacity() {
            known.by_text.retain(|_, statement| statement.strong_count() > 0);
        }
        known.by_text.insert(text, Arc::downgrade(&statement));
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

    /// Forgets a name.
    pub fn remove(&mut self, name: &[u8]) {
        if let Some(names) = &mut self.0 {
            names.remove(name);
        }
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
#[derive(Debug, Default)]
pub struct ServerStatements {
    present: HashMap<u64, Present, RandomState>,
    clock: u64,
}

#[derive(Debug)]
struct Present {
    statement: Arc<Statement>,
    used: u64,
}

impl ServerStatements {
    /// Marks a statement as used; answers whether the server has it.
    pub fn touch(&mut self, statement: &Statement) -> bool {
        self.clock += 1;
        match self.present.get_mut(&statement.id) {
            Some(present) => {
                present.used = self.clock;
                true
            }
            None => false,
        }
    }

    /// Adds a statement; answers those that have to be closed to stay within `limit`.
    pub fn add(&mut self, statement: Arc<Statement>, limit: usize) -> Vec<Arc<Statement>> {
        self.clock += 1;
        let id = statement.id;
        self.present.insert(id, Present { statement, used: self.clock });
        let mut evicted = Vec::new();
        while self.present.len() > limit.max(1) {
            let oldest = self.present.iter().filter(|(key, _)| **key != id);
            let Some(oldest) = oldest.min_by_key(|(_, present)| present.used).map(|(key, _)| *key)
            else {
                break;
            };
            evicted.extend(self.present.remove(&oldest).map(|present| present.statement));
        }
        evicted
    }

    /// The server does not have a statement after all.
    pub fn remove(&mut self, statement: &Statement) {
        self.present.remove(&statement.id);
    }

    /// The server forgot everything.
    pub fn clear(&mut self) {
        self.present.clear();
    }

    /// Number of statements.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
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
        assert!(server.add(Arc::clone(&a), 2).is_empty());
        assert!(server.add(Arc::clone(&b), 2).is_empty());
        assert!(server.touch(&a));
        assert_eq!(server.add(c, 2), [Arc::clone(&b)]);
        assert!(!server.touch(&b));
        assert_eq!(server.len(), 2);
    }
}
