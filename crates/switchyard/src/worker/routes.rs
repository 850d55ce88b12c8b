//! Where a client goes: the pools that its messages were routed to, and, in session mode, the
//! servers that it keeps there.
//!
//! A move takes place when nothing of the client is under way. In session mode the server it
//! leaves stays its own, so that what it made there is found again; all are given back at its end.

use std::sync::Arc;

use switchyard_core::client::routes::RouteId;
use switchyard_io::Key;

use crate::hooks::warnings::Topic;
use crate::worker::client::{Activity, Client, Place, Stage};
use crate::worker::close::Farewell;
use crate::worker::server::{Stage as ServerStage, Use};
use crate::worker::{Todo, Worker};

/// What a client that was routed away from its own database carries.
#[derive(Debug, Default)]
pub struct Routes {
    /// Where it goes once the refusal under way has been sent.
    pub later: Option<Place>,
    /// Pools by route, behind the one it logged in to.
    places: Vec<Place>,
    /// Servers that it has left and keeps, the oldest first.
    kept: Vec<(RouteId, Key)>,
}

impl Place {
    /// Whether both lead to the same servers.
    pub fn is(&self, other: &Place) -> bool {
        Arc::ptr_eq(&self.pool, &other.pool) && self.want == other.want
    }
}

impl Client {
    /// The number of a place among this client's routes.
    fn route_to(&mut self, place: &Place) -> RouteId {
        if self.home.as_ref().is_some_and(|home| home.is(place)) {
            return RouteId::default();
        }
        let places = &mut self.routes.get_or_insert_default().places;
        let known = places.iter().position(|known| known.is(place));
        let index = known.unwrap_or_else(|| {
            places.push(place.clone());
            places.len() - 1
        });
        RouteId(index as u32 + 1)
    }

    fn place_of(&self, route: RouteId) -> Option<Place> {
        match (route.0.checked_sub(1), &self.routes) {
            (None, _) => self.home.clone(),
            (Some(index), Some(routes)) => routes.places.get(index as usize).cloned(),
            (Some(_), None) => None,
        }
    }

    /// The statement of the next message belongs to `place`, though the message does not go there.
    pub(super) fn intend(&mut self, place: &Place) {
        let route = self.route_to(place);
        if let Stage::Session(session, _) = &mut self.stage {
            session.intend(Some(route));
        }
    }

    /// Messages go to `place` from now on.
    pub(super) fn turn(&mut self, place: Place) {
        let route = self.route_to(&place);
        self.place = Some(place);
        if let Stage::Session(session, _) = &mut self.stage {
            session.turn(route);
        }
    }
}

impl Worker {
    /// The next message of a client belongs to another of its routes. Answers whether it is there
    /// already.
    pub(super) fn follow(&mut self, key: Key, route: RouteId) -> bool {
        let place = self.clients.get(key).and_then(|client| client.place_of(route));
        let known = place.filter(|place| {
            let entry = self.shared.known_entry(&place.pool.entry.name);
            entry.is_some_and(|entry| Arc::ptr_eq(&entry, &place.pool.entry))
        });
        match known {
            Some(place) => self.move_to(key, place),
            None if self.snapshot.config.settings.prepared_statement_errors
                && route != RouteId::default() =>
            {
                // Its use is an error now like that of any other name that nobody prepared.
                let stage = self.clients.get_mut(key).map(|client| &mut client.stage);
                if let Some(Stage::Session(session, _)) = stage {
                    session.forget_route(route);
                }
                true
            }
            None => {
                let reason = "prepared statement did not exist";
                self.close_client(key, reason, Farewell::fatal());
                false
            }
        }
    }

    /// Sends a client's next messages to `place`: at once, or when the answers that it still waits
    /// for have come. Answers whether it is there.
    pub(super) fn move_to(&mut self, key: Key, place: Place) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        let Some(slot) = client.server() else {
            client.turn(place);
            return true;
        };
        client.moving = Some(place);
        let server = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut());
        if server.and_then(|server| server.link()).is_some_and(|link| link.is_free()) {
            self.give_back(slot);
        }
        self.clients.get(key).is_some_and(|client| client.moving.is_none())
    }

    /// A client that was to go elsewhere is inside a transaction block: what becomes of the message
    /// that it waits with is decided for a block.
    pub(super) fn remain(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Some(place) = client.moving.take() else { return };
        let Stage::Session(session, _) = &client.stage else { return };
        let text = session.passed_text(&client.input).map(<[u8]>::to_vec);
        if let Some(text) = text {
            let name = place.pool.entry.name.clone();
            if let Err(failure) = self.move_client(key, place, &name, &text) {
                let approval = self.policy(key, &failure);
                self.approve(key, approval, failure.then);
            }
        }
        self.todo.push_back(Todo::Client(key));
    }

    /// A message was sent where the client was although its statement belongs elsewhere.
    pub(super) fn note_stay(&mut self, key: Key, route: RouteId) {
        let Some(client) = self.clients.get(key) else { return };
        let name = |place: Option<Place>| {
            place.map(|place| place.pool.entry.name.clone()).unwrap_or_default()
        };
        let (there, here) = (name(client.place_of(route)), name(client.place.clone()));
        let line = format!(
            "prepared statement of \"{there}\" inside a transaction, staying on \"{here}\""
        );
        self.warn(key, Topic::Inside, &there, &line);
    }

    /// A client in session mode moves on: its free server stays its own.
    pub(super) fn keep(&mut self, slot: Key, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return self.release(slot) };
        let Stage::Session(session, activity) = &mut client.stage else { return };
        if session.is_inside_message() {
            return;
        }
        *activity = Activity::Idle;
        let route = session.route();
        let routes = client.routes.get_or_insert_default();
        routes.kept.push((route, slot));
        if let Some(place) = client.moving.take() {
            client.turn(place);
        }
        if let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) {
            server.set_use(Use::Kept(key));
        }
        self.todo.push_back(Todo::Client(key));
        let limit = usize::try_from(self.snapshot.config.settings.session_route_links);
        let limit = limit.unwrap_or(1).max(1);
        for slot in self.surplus(key, limit) {
            self.let_go(slot, key);
        }
    }

    /// Servers that a client keeps beyond what it may have, together with the one it goes to.
    fn surplus(&mut self, key: Key, limit: usize) -> Vec<Key> {
        let Some(client) = self.clients.get_mut(key) else { return Vec::new() };
        let Stage::Session(session, _) = &client.stage else { return Vec::new() };
        let next = session.route();
        let Some(routes) = &mut client.routes else { return Vec::new() };
        let others = routes.kept.iter().filter(|(route, _)| *route != next).count();
        let mut over = (others + 1).saturating_sub(limit);
        let oldest = routes.kept.extract_if(.., |(route, _)| {
            let goes = *route != next && over > 0;
            over -= usize::from(goes);
            goes
        });
        oldest.map(|(_, slot)| slot).collect()
    }

    /// A server that the client keeps on its current route.
    pub(super) fn kept_server(&mut self, key: Key) -> Option<Key> {
        let client = self.clients.get_mut(key)?;
        let Stage::Session(session, _) = &client.stage else { return None };
        let route = session.route();
        let routes = client.routes.as_mut()?;
        let index = routes.kept.iter().position(|(kept, _)| *kept == route)?;
        let (_, slot) = routes.kept.remove(index);
        let server = self.servers.get(slot)?.here.as_ref()?;
        matches!(server.stage, ServerStage::Ready(_, Use::Kept(owner)) if owner == key)
            .then_some(slot)
    }

    /// Gives back all servers that a client keeps.
    pub(super) fn let_all_go(&mut self, key: Key) {
        let routes = self.clients.get_mut(key).and_then(|client| client.routes.as_mut());
        let kept = routes.map(|routes| std::mem::take(&mut routes.kept)).unwrap_or_default();
        kept.into_iter().for_each(|(_, slot)| self.let_go(slot, key));
    }

    fn let_go(&mut self, slot: Key, key: Key) {
        let Some(server) = self.servers.get_mut(slot).and_then(|slot| slot.here.as_mut()) else {
            return;
        };
        let ServerStage::Ready(link, Use::Kept(owner)) = &server.stage else { return };
        if *owner != key {
            return;
        }
        if link.is_free() && server.output.is_empty() {
            server.set_use(Use::Idle);
            self.release(slot);
        } else {
            self.close_server(slot, "client disconnect while server was not ready");
        }
    }
}
