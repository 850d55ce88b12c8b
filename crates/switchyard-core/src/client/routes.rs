//! Which of its routes a client's prepared statements belong to.
//!
//! A route is a pool that the shell has numbered for this client; 0 is the one it logged in to. A
//! statement belongs to the route that was current at its Parse, whatever came between. Portals
//! live in one transaction, and so on one server: they need no account.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// A route of one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RouteId(pub u32);

/// Names remembered for one client.
const NAMES_MAX: usize = 100_000;

type ByName = HashMap<Box<[u8]>, RouteId, RandomState>;

/// The routes of a client's statements.
#[derive(Debug, Default)]
pub struct StatementRoutes {
    current: RouteId,
    unnamed: RouteId,
    intended: Option<RouteId>,
    named: Option<Box<ByName>>,
}

impl StatementRoutes {
    /// Where messages go now.
    pub fn current(&self) -> RouteId {
        self.current
    }

    /// Whether everything goes to one place, as without functions or rules that route.
    pub fn is_plain(&self) -> bool {
        let home = RouteId::default();
        self.named.is_none() && self.current == home && self.unnamed == home
    }

    /// Messages go there from now on.
    pub fn turn(&mut self, to: RouteId) {
        self.current = to;
    }

    /// Where the statement of the next Parse belongs although its group or transaction keeps that
    /// Parse here.
    pub fn intend(&mut self, route: Option<RouteId>) {
        self.intended = route;
    }

    /// A Parse of this name, which can be prepared anywhere, goes where messages go now; its
    /// statement belongs where it was intended to be.
    pub fn define_anywhere(&mut self, name: &[u8]) {
        match self.intended.take() {
            Some(route) if !name.is_empty() && route != self.current => {
                let current = std::mem::replace(&mut self.current, route);
                self.define(name);
                // At home there may be nothing to remember, but for this name.
                self.current = current;
            }
            Some(_) | None => self.define(name),
        }
    }

    /// A Parse of this name goes where messages go now.
    pub fn define(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.unnamed = self.current;
            return;
        }
        // As long as everything goes to one place there is nothing to remember.
        if self.named.is_none() && self.current == RouteId::default() {
            return;
        }
        let named = self.named.get_or_insert_default();
        if named.len() < NAMES_MAX || named.contains_key(name) {
            named.insert(name.into(), self.current);
        }
    }

    /// A statement was closed.
    pub fn remove(&mut self, name: &[u8]) {
        if let Some(named) = &mut self.named {
            named.remove(name);
        }
    }

    /// A route leads nowhere any more: its statements are gone. Answers their names.
    pub fn forget(&mut self, route: RouteId) -> Vec<Box<[u8]>> {
        if self.unnamed == route {
            self.unnamed = self.current;
        }
        let mut gone = Vec::new();
        if let Some(named) = &mut self.named {
            named.retain(|name, there| {
                if *there == route {
                    gone.push(name.clone());
                }
                *there != route
            });
        }
        gone
    }

    /// Where a statement belongs, if that is not where messages go now.
    pub fn elsewhere(&self, name: &[u8]) -> Option<RouteId> {
        let route = if name.is_empty() {
            self.unnamed
        } else {
            let known = self.named.as_ref().and_then(|named| named.get(name).copied());
            known.unwrap_or_default()
        };
        (route != self.current).then_some(route)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_stay_where_they_were_prepared() {
        let mut routes = StatementRoutes::default();
        assert!(routes.is_plain());
        routes.define(b"home");
        assert!(routes.is_plain());
        routes.define(b"");
        assert_eq!(routes.elsewhere(b"home"), None);
        routes.turn(RouteId(1));
        routes.define(b"there");
        assert_eq!(routes.elsewhere(b"there"), None);
        assert_eq!(routes.elsewhere(b"home"), Some(RouteId(0)));
        assert_eq!(routes.elsewhere(b""), Some(RouteId(0)));
        routes.define(b"");
        assert_eq!(routes.elsewhere(b""), None);
        routes.turn(RouteId(0));
        assert!(!routes.is_plain());
        assert_eq!(routes.elsewhere(b"there"), Some(RouteId(1)));
        routes.intend(Some(RouteId(2)));
        routes.define_anywhere(b"intended");
        routes.define_anywhere(b"here");
        assert_eq!(routes.elsewhere(b"intended"), Some(RouteId(2)));
        assert_eq!(routes.elsewhere(b"here"), None);
        assert_eq!(routes.forget(RouteId(1)), [Box::from(&b"there"[..])]);
        assert_eq!(routes.elsewhere(b"there"), None);
        assert_eq!(routes.elsewhere(b""), None);
        routes.remove(b"there");
        routes.define(b"there");
        assert_eq!(routes.elsewhere(b"there"), None);
    }
}
