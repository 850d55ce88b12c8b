//! Rows of SHOW CLIENTS and SHOW SERVERS.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use switchyard_core::console::Show;
use switchyard_core::console::tables::Row;
use switchyard_core::params::APPLICATION_NAME;
use switchyard_io::{Key, Peer, Remote};

use crate::log::time_text;
use crate::worker::Worker;
use crate::worker::cancel_request::{Outgoing, Progress};
use crate::worker::client::{Activity, Client, Stage};
use crate::worker::console::tables::text;
use crate::worker::server::{Server, Stage as ServerStage, Use, pointer};

impl Worker {
    /// What SHOW CLIENTS, SOCKETS or FDS says of a client, if anything.
    pub(super) fn client_line(&self, key: Key, show: Show) -> Option<(u64, Row)> {
        let client = self.clients.get(key)?;
        if show == Show::Fds {
            return Some((client.number, self.client_descriptor(client)?));
        }
        let state = match show {
            Show::Clients => client_state(client)?,
            _ => client_socket(client)?,
        };
        let mut row = self.client_row(client, state);
        extend(&mut row, show, client.input.len(), client.output.len());
        if show == Show::Clients {
            row.push(text(client.identity.as_ref().map_or("", |identity| &identity.database)));
        }
        let shown =
            show != Show::ActiveSockets || !(client.input.is_empty() && client.output.is_empty());
        shown.then_some((client.number, row))
    }

    fn client_row(&self, client: &Client, state: &str) -> Row {
        let now = self.now;
        let port = self.snapshot.config.settings.listen_port;
        let (addr, remote_port) = match client.peer {
            Peer::Tcp(address) => (address.ip().to_string(), i64::from(address.port())),
            Peer::Unix { .. } => ("unix".into(), port),
        };
        let (local, local_port) = match client.stream.peek_socket().local_addr() {
            Some(address) => (address.ip().to_string(), i64::from(address.port())),
            None => ("unix".into(), port),
        };
        let pid = if let Peer::Unix { pid, .. } = client.peer { pid } else { 0 };
        let identity = client.identity.as_ref();
        let database = client.place.as_ref().map(|place| place.pool.entry.name.clone());
        let database = database.or(identity.map(|identity| identity.database.clone()));
        let link = match client.stage {
            Stage::Cancel(carrier) => carrier,
            _ => client
                .server()
                .and_then(|slot| self.servers.get(slot)?.here.as_ref())
                .map(|server| server.number),
        };
        let wait = client.query_since.map(|at| now.saturating_duration_since(at));
        let wait = wait.unwrap_or_default();
        let (name, statements) = match &client.stage {
            Stage::Session(session, _) => {
                let name = session.params().value(APPLICATION_NAME).unwrap_or_default();
                (String::from_utf8_lossy(name).into_owned(), session.statements())
            }
            Stage::Console(console) => (console.application_name(), 0),
            _ => (String::new(), 0),
        };
        vec![
            text("C"),
            text(identity.map_or("(nouser)", |identity| &identity.user)),
            text(database.unwrap_or_else(|| "(nodb)".into())),
            text("none"),
            text(state),
            text(addr),
            text(remote_port),
            text(local),
            text(local_port),
            text(time_text(client.time_of(client.connected, now))),
            text(time_text(client.time_of(client.active, now))),
            text(wait.as_secs()),
            text(wait.subsec_micros()),
            text(0),
            text(format!("{:#x}", pointer(client.number))),
            text(link.map_or(String::new(), |number| format!("{:#x}", pointer(number)))),
            text(pid),
            text(client.stream.tls_info()),
            text(name),
            text(statements),
            text(client.number),
        ]
    }

    /// What SHOW SERVERS, SOCKETS or FDS says of a server that is here, or parked with its home
    /// here.
    pub(super) fn server_line(&self, key: Key, show: Show) -> Option<(u64, Row)> {
        let slot = self.servers.get(key)?;
        let inner = slot.pool.lock();
        if show == Show::Fds {
            let parked = || inner.parking.server(slot.id).filter(|s| s.home == self.id);
            let server = slot.here.as_ref().or_else(parked)?;
            return Some((server.number, self.server_descriptor(server)?));
        }
        let stale = inner.machine.is_stale(slot.id);
        let (server, state) = match &slot.here {
            Some(server) => (server, server_state(server)),
            None => {
                let server = inner.parking.server(slot.id).filter(|s| s.home == self.id)?;
                let used = inner.machine.is_used(self.now, slot.id);
                (server, if used { "used" } else { "idle" })
            }
        };
        let state = if show == Show::Servers { state } else { server_socket(state) };
        let mut row = self.row_of(server, state, stale);
        extend(&mut row, show, server.input.len(), server.output.len());
        let shown =
            show != Show::ActiveSockets || !(server.input.is_empty() && server.output.is_empty());
        shown.then_some((server.number, row))
    }

    /// What SHOW SERVERS says of a connection that carries a cancel request.
    pub(super) fn cancel_line(&self, key: Key, show: Show) -> Option<(u64, Row)> {
        let outgoing = self.cancels.get(key)?;
        let carrier = outgoing.remote()?;
        let Some(slot) = outgoing.slot() else {
            let mut row = self.peer_row(outgoing, carrier, show);
            extend(&mut row, show, 0, 0);
            return (show != Show::ActiveSockets).then(|| (outgoing.number(), row));
        };
        let slot = self.servers.get(slot)?;
        let server = slot.here.as_ref()?;
        let number = outgoing.number();
        let address = |number: u64| text(format!("{:#x}", pointer(number)));
        let mut row = self.row_of(server, "", false);
        let state = cancel_state(outgoing.progress(), show);
        let at = SystemTime::now() - self.now.saturating_duration_since(outgoing.started());
        let (local, port) = match outgoing.local() {
            Some(address) => (text(address.ip()), text(address.port())),
            None => (row[7].clone(), row[8].clone()),
        };
        let changed = [
            (4, text(state)),
            (7, local),
            (8, port),
            (9, text(time_text(at))),
            (10, text(time_text(at))),
            (14, address(number)),
            (15, outgoing.linked().map_or(text(""), address)),
            (16, text(0)),
            (17, text(outgoing.tls())),
            (18, text("")),
            (19, text(0)),
            (20, text(number)),
        ];
        changed.into_iter().for_each(|(index, value)| row[index] = value);
        extend(&mut row, show, 0, 0);
        (show != Show::ActiveSockets).then_some((number, row))
    }

    /// The same of one to a peer.
    fn peer_row(&self, outgoing: &Outgoing, remote: &Remote, show: Show) -> Row {
        let unix_port = outgoing.peer().and_then(|id| self.snapshot.config.peers.get(&id));
        let unix_port = unix_port.map_or(0, |peer| peer.port);
        let place = |address: Option<SocketAddr>| match address {
            Some(address) => [text(address.ip()), text(address.port())],
            None => [text("unix"), text(unix_port)],
        };
        let remote = match remote {
            Remote::Tcp(address) => Some(*address),
            Remote::Unix(_) => None,
        };
        let at = SystemTime::now() - self.now.saturating_duration_since(outgoing.started());
        let address = |number: u64| text(format!("{:#x}", pointer(number)));
        let mut row = ["S", "(nouser)", "(nodb)", "none"].map(text).to_vec();
        row.push(text(cancel_state(outgoing.progress(), show)));
        row.extend(place(remote));
        row.extend(place(outgoing.local()));
        row.extend([text(time_text(at)), text(time_text(at))]);
        row.extend([0; 3].map(text));
        row.push(address(outgoing.number()));
        row.push(outgoing.linked().map_or(text(""), address));
        row.extend(["0", "", "", "0"].map(text));
        row.push(text(outgoing.number()));
        row
    }

    fn row_of(&self, server: &Server, state: &str, stale: bool) -> Row {
        let definition = server.pool.entry.definition();
        let (addr, port) = match &server.remote {
            Remote::Tcp(address) => (address.ip().to_string(), address.port()),
            Remote::Unix(_) => ("unix".into(), definition.port),
        };
        let (local, local_port) = match server.local {
            Some(address) => (address.ip().to_string(), address.port()),
            None => ("unix".into(), definition.port),
        };
        let client = server.client().and_then(|key| self.clients.get(key));
        let heard = SystemTime::now() - Instant::now().saturating_duration_since(server.heard);
        let (name, statements) = match &server.stage {
            ServerStage::Ready(link, _) => {
                let name = link.params().value(APPLICATION_NAME).unwrap_or_default();
                (String::from_utf8_lossy(name).into_owned(), link.statements())
            }
            _ => (String::new(), 0),
        };
        vec![
            text("S"),
            text(&server.pool.user),
            text(&server.pool.entry.name),
            text("none"),
            text(state),
            text(addr),
            text(port),
            text(local),
            text(local_port),
            text(time_text(server.started_at)),
            text(time_text(heard)),
            text(0),
            text(0),
            text(u8::from(stale)),
            text(format!("{:#x}", pointer(server.number))),
            text(client.map_or(String::new(), |c| format!("{:#x}", pointer(c.number)))),
            text(server.pid),
            text(server.stream.tls_info()),
            text(name),
            text(statements),
            text(server.number),
        ]
    }
}

/// State of a connection that carries a cancel request.
fn cancel_state(progress: Progress, show: Show) -> &'static str {
    match (progress, show) {
        (Progress::Sent, _) => "active_cancel",
        (_, Show::Servers) => "new",
        (_, _) => "sv_login",
    }
}

/// State in SHOW CLIENTS; `None` for those that do not appear.
fn client_state(client: &Client) -> Option<&'static str> {
    match &client.stage {
        Stage::Session(_, Activity::Linked(_)) => Some("active"),
        Stage::Session(_, Activity::Idle) | Stage::Console(_) => Some("idle"),
        Stage::Session(_, Activity::Waiting) | Stage::AwaitingWelcome(_) => Some("waiting"),
        Stage::Cancel(None) => Some("waiting_cancel_req"),
        Stage::Cancel(Some(_)) => Some("active_cancel_req"),
        Stage::Start | Stage::Login(_) | Stage::Leaving => None,
    }
}

/// The same in SHOW SOCKETS, which shows clients that log in as well.
fn client_socket(client: &Client) -> Option<&'static str> {
    match &client.stage {
        Stage::Session(_, Activity::Linked(_) | Activity::Idle) | Stage::Console(_) => {
            Some("cl_active")
        }
        Stage::Session(_, Activity::Waiting) | Stage::AwaitingWelcome(_) => Some("cl_waiting"),
        Stage::Cancel(_) => client_state(client),
        Stage::Leaving => None,
        Stage::Start | Stage::Login(_) => Some("cl_login"),
    }
}

/// State in SHOW SERVERS.
fn server_state(server: &Server) -> &'static str {
    match &server.stage {
        ServerStage::Connecting(..)
        | ServerStage::Securing(_)
        | ServerStage::Login(_)
        | ServerStage::Between => "new",
        ServerStage::Ready(_, Use::Idle) => "idle",
        ServerStage::Ready(_, Use::Linked(_) | Use::Kept(_)) | ServerStage::Asked(_) => "active",
        ServerStage::Ready(_, Use::Testing | Use::RollingBack) => "tested",
        ServerStage::Ready(_, Use::BeingCanceled) => "being_canceled",
    }
}

/// The same in SHOW SOCKETS.
fn server_socket(state: &str) -> &'static str {
    match state {
        "new" => "sv_login",
        "idle" => "sv_idle",
        "used" => "sv_used",
        "tested" => "sv_tested",
        _ => "sv_active",
    }
}

/// Adds what SHOW SOCKETS has to say about bytes that wait: those that were read and not used, and
/// those that could not be sent.
fn extend(row: &mut Row, show: Show, input: usize, output: usize) {
    if matches!(show, Show::Sockets | Show::ActiveSockets) {
        row.extend([input, 0, 0, 0, output, input, output].map(text));
    }
}
