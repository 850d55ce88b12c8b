//! The first bytes of a connection: requests for encryption and cancels, then the startup packet.

use std::sync::Arc;

use switchyard_core::client::startup::{self, StartupRules};
use switchyard_io::{Key, Peer};
use switchyard_wire::build;
use switchyard_wire::startup::{First, first};

use crate::log::Level;
use crate::worker::client::Seat;
use crate::worker::close::Farewell;
use crate::worker::console::CONSOLE;
use crate::worker::secure::HELLO;
use crate::worker::{Todo, Worker};

impl Worker {
    /// Bytes before the startup packet is known; answers how many were used.
    pub(in crate::worker) fn start_bytes(&mut self, key: Key, data: &[u8]) -> usize {
        let fatal = |worker: &mut Worker, text: &str| {
            worker.close_client(key, text, Farewell::fatal());
            data.len()
        };
        if data.first() == Some(&HELLO) && self.greeting(key, data) {
            return data.len();
        }
        match first(data) {
            First::More => 0,
            First::Ssl(len) if data.len() > len => {
                fatal(self, "received unencrypted data after SSL request")
            }
            First::Gss(len) if data.len() > len => {
                fatal(self, "received unencrypted data after GSSAPI encryption request")
            }
            First::Ssl(len) => {
                self.ssl_request(key);
                len
            }
            First::Gss(len) => {
                self.say(key, b"N");
                len
            }
            First::Cancel(cancel_key) => {
                self.cancel_request(key, cancel_key);
                data.len()
            }
            First::Startup(..) | First::Password | First::Typed | First::Bad(_)
                if self.lacks_tls(key) =>
            {
                fatal(self, "SSL required")
            }
            First::Startup(version, body, len) => {
                self.startup(key, version, body);
                if len < data.len() {
                    self.todo.push_back(Todo::Client(key));
                }
                len
            }
            First::Password => fatal(self, "client password pkt before startup packet"),
            First::Typed => {
                self.close_client(key, "bad packet", Farewell::Silent);
                data.len()
            }
            First::Bad(head) => {
                let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
                fatal(self, &format!("bad packet header: '{hex}'"))
            }
        }
    }

    fn startup(&mut self, key: Key, version: u32, body: &[u8]) {
        let snapshot = Arc::clone(&self.snapshot);
        let settings = &snapshot.config.settings;
        let Some(client) = self.clients.get(key) else { return };
        let suffix = settings.application_name_add_host.then(|| match client.peer {
            Peer::Tcp(address) => format!(" - {address}"),
            Peer::Unix { pid, .. } => {
                let name = rustix::system::uname();
                let host = name.nodename().to_string_lossy();
                format!(" - unix({pid}@{host}):{}", settings.listen_port)
            }
        });
        let rules = StartupRules {
            tracked: &snapshot.tracked,
            ignore: &settings.ignore_startup_parameters.list,
            suffix: suffix.as_deref(),
        };
        let request = match startup::read(version, body, rules) {
            Ok(request) => request,
            Err(error) => {
                if let Some(warning) = &error.warning {
                    self.log_client(key, Level::Warning, warning);
                }
                return self.close_client(key, &error.fatal, Farewell::fatal());
            }
        };
        let console = request.database == CONSOLE;
        let limit = usize::try_from(settings.max_client_conn).unwrap_or(0);
        if !console && self.shared.is_one_too_many(limit) {
            if let Some(client) = self.clients.get_mut(key) {
                client.seat = Seat::Refused;
            }
            let text = "no more connections allowed (max_client_conn)";
            return self.close_client(key, text, Farewell::fatal());
        }
        if let Some(options) = &request.negotiate {
            let mut bytes = Vec::new();
            // Clients refuse a version above the one that they have asked for.
            build::negotiate_protocol(&mut bytes, request.version.number(), options);
            self.say(key, &bytes);
        }
        self.identify(key, request);
    }
}
