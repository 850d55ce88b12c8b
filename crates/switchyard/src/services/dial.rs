//! Connections of probes: unix sockets, TCP, and TLS on it by the settings for servers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use switchyard_config::reason;
use switchyard_core::switchover::probe::{Failure, FailureKind};
use switchyard_core::switchover::topology::Endpoint;
use switchyard_wire::build;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::names::NameService;
use super::probe::ProbeLogin;

/// The way to a node.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) endpoint: Endpoint,
    pub(super) login: Arc<ProbeLogin>,
    pub(super) names: Arc<NameService>,
}

/// A connection of any kind.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

pub(super) fn failure(kind: FailureKind, text: impl Into<String>) -> Failure {
    Failure { kind, text: text.into() }
}

pub(super) fn lost(error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => FailureKind::Refused,
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionAborted => FailureKind::Closed,
        _ => FailureKind::Unreachable,
    };
    // A peer that ends TCP without the good-bye of TLS has closed the connection as well.
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return failure(kind, "the server closed the connection");
    }
    failure(kind, reason(error))
}

impl Way {
    /// Waits until the node's name leads elsewhere; without end if it was reached by an address.
    pub(super) async fn until_moved(&self, from: Option<IpAddr>) {
        match from {
            Some(from) => self.names.until_moved(&self.endpoint.host, from).await,
            None => std::future::pending().await,
        }
    }
}

/// Connects to a node, and answers the address if it was reached by a name; `connected` is called
/// when there is a connection.
pub(super) async fn dial(
    way: &Way,
    connected: impl FnOnce(),
) -> Result<(Box<dyn Socket>, Option<IpAddr>), Failure> {
    let (endpoint, tls) = (&way.endpoint, &way.login.tls);
    let port = endpoint.port;
    if endpoint.host.starts_with(['/', '@']) {
        let path = format!("{}/.s.PGSQL.{port}", unix_name(&endpoint.host));
        let stream = UnixStream::connect(path).await.map_err(|error| lost(&error))?;
        return Ok((Box::new(stream), None));
    }
    let own = endpoint.host.parse::<IpAddr>();
    let addresses = match own {
        Ok(address) => vec![SocketAddr::new(address, port)],
        Err(_) => {
            let mut found = way.names.addresses(&endpoint.host).await;
            found.iter_mut().for_each(|address| address.set_port(port));
            found
        }
    };
    if addresses.is_empty() {
        return Err(failure(FailureKind::Unreachable, "DNS lookup failed"));
    }
    let stream = TcpStream::connect(&addresses[..]).await;
    let mut stream = stream.map_err(|error| lost(&error))?;
    connected();
    let named = own.is_err().then(|| stream.peer_addr().ok()).flatten().map(|peer| peer.ip());
    stream.set_nodelay(true).map_err(|error| lost(&error))?;
    let Some((config, name)) = tls.config(&endpoint.host) else {
        return Ok((Box::new(stream), named));
    };
    let mut request = Vec::new();
    build::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(|error| lost(&error))?;
    match stream.read_u8().await.map_err(|error| lost(&error))? {
        b'S' => {
            // The handshake reads what comes next, so that bytes in the clear behind the answer
            // break it.
            let secured = TlsConnector::from(config).connect(name, stream).await;
            Ok((Box::new(secured.map_err(|error| refused(&error))?), named))
        }
        b'N' if !tls.is_required() => Ok((Box::new(stream), named)),
        b'N' => Err(failure(FailureKind::Denied, "server refused SSL")),
        _ => Err(failure(FailureKind::Denied, "bad sslreq answer")),
    }
}

/// A directory as the system wants it: the name of an abstract socket begins with a zero byte.
fn unix_name(directory: &str) -> String {
    match directory.strip_prefix('@') {
        Some(name) => format!("\0{name}"),
        None => directory.to_owned(),
    }
}

/// A handshake that came to nothing: a lost connection, or a certificate that is not good.
fn refused(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::InvalidData => {
            failure(FailureKind::Denied, format!("TLS handshake error: {error}"))
        }
        _ => lost(error),
    }
}
