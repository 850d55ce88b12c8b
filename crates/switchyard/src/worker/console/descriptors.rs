//! Rows of SHOW FDS: the sockets of listeners, clients and servers, as another process would need
//! them to go on with them.
//!
//! Connections in TLS are left out, and those that are linked to one: what their keys have agreed
//! on stays in this process. Secrets are not shown.

use std::net::SocketAddr;

use switchyard_core::console::tables::Row;
use switchyard_core::params::Params;
use switchyard_io::{Peer, Remote};

use crate::tls::Transport;
use crate::worker::Worker;
use crate::worker::client::{Client, Stage};
use crate::worker::console::tables::text;
use crate::worker::server::{Server, Stage as ServerStage};

/// Tracked parameters in the order of the columns, as positions among those tracked.
const SHOWN: [usize; 4] = [
    switchyard_core::params::CLIENT_ENCODING,
    switchyard_core::params::STANDARD_CONFORMING_STRINGS,
    switchyard_core::params::DATE_STYLE,
    switchyard_core::params::TIME_ZONE,
];

/// Names of what sockets are for, in the order of their rows.
const TASKS: [&str; 3] = ["pooler", "client", "server"];

/// A socket and who uses it.
struct Descriptor<'a> {
    task: &'static str,
    number: i32,
    /// User and database.
    names: Option<(&'a str, &'a str)>,
    address: Option<SocketAddr>,
    /// Port of a unix socket.
    port: i64,
    key: &'a [u8],
    link: Option<&'a Transport>,
    params: Option<&'a Params>,
}

impl Descriptor<'_> {
    fn row(self) -> Row {
        let (user, database) = self.names.unzip();
        let (address, port) = match self.address {
            Some(address) => (address.ip().to_string(), i64::from(address.port())),
            None => ("unix".into(), self.port),
        };
        let key = self.key.first_chunk().map_or(0, |key| i64::from_be_bytes(*key));
        let mut row = vec![text(self.number), text(self.task)];
        row.extend([user.and_then(text), database.and_then(text), text(address), text(port)]);
        row.extend([text(key), text(self.link.map_or(0, |link| link.peek_socket().number()))]);
        row.extend(SHOWN.map(|index| {
            let value = self.params.and_then(|params| params.value(index));
            value.map(|value| String::from_utf8_lossy(value).into_owned())
        }));
        row.extend([None, None, None]);
        row
    }
}

/// Where a row comes: listeners first, then clients.
pub(super) fn rank(row: &Row) -> usize {
    let task = row.get(1).and_then(|task| task.as_deref());
    TASKS.iter().position(|name| Some(*name) == task).unwrap_or(TASKS.len())
}

impl Worker {
    pub(super) fn listener_descriptors(&self) -> Vec<(u64, Row)> {
        let port = self.snapshot.config.settings.listen_port;
        let row = |(number, address): (i32, Option<SocketAddr>)| {
            let (task, key) = (TASKS[0], &[][..]);
            let (names, link, params) = (None, None, None);
            let row = Descriptor { task, number, names, address, port, key, link, params }.row();
            (number as u64, row)
        };
        self.listening().map(row).collect()
    }

    /// A client in its session.
    pub(super) fn client_descriptor(&self, client: &Client) -> Option<Row> {
        let Stage::Session(session, _) = &client.stage else { return None };
        let server = client.server().and_then(|slot| self.servers.get(slot)?.here.as_ref());
        let link = server.map(|server| &server.stream);
        let place = client.place.as_ref()?;
        let identity = client.identity.as_ref()?;
        let address = match client.peer {
            Peer::Tcp(address) => Some(address),
            Peer::Unix { .. } => None,
        };
        let plain = client.stream.tls().is_none() && link.is_none_or(|link| link.tls().is_none());
        let descriptor = Descriptor {
            task: TASKS[1],
            number: client.stream.peek_socket().number(),
            names: Some((&identity.user, &place.pool.entry.name)),
            address,
            port: self.snapshot.config.settings.listen_port,
            key: &client.key,
            link,
            params: Some(session.params()),
        };
        plain.then(|| descriptor.row())
    }

    /// A server that is logged in.
    pub(super) fn server_descriptor(&self, server: &Server) -> Option<Row> {
        let ServerStage::Ready(ready, _) = &server.stage else { return None };
        let client = server.client().and_then(|key| self.clients.get(key));
        let link = client.map(|client| &client.stream);
        let plain = server.stream.tls().is_none() && link.is_none_or(|link| link.tls().is_none());
        let address = match server.remote {
            Remote::Tcp(address) => Some(address),
            Remote::Unix(_) => None,
        };
        let descriptor = Descriptor {
            task: TASKS[2],
            number: server.stream.peek_socket().number(),
            names: Some((&server.pool.user, &server.pool.entry.name)),
            address,
            port: i64::from(server.pool.entry.definition().port),
            key: &server.key,
            link,
            params: Some(ready.params()),
        };
        plain.then(|| descriptor.row())
    }
}
