//! The TLS settings of one moment, read from the files that they name.
//!
//! Either a whole set-up comes out, or the lines for the log that say why not.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, Ipv4Addr, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest, Sha256};
use switchyard_config::settings::Settings;
use switchyard_config::value::SslMode;
use switchyard_config::{AuthType, reason};

use crate::tls::certificate;
use crate::tls::peers::{Clients, Servers};
use crate::tls::suites::{self, Unusable};
use crate::tls::verify::Anchors;

/// TLS towards clients and servers.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Towards clients.
    pub clients: ClientSide,
    /// Towards servers.
    pub servers: ServerSide,
}

/// TLS towards clients.
#[derive(Clone, Debug)]
pub struct ClientSide {
    /// client_tls_sslmode.
    pub mode: SslMode,
    /// What is offered; `None` when it is disabled.
    pub offer: Option<Arc<Offer>>,
}

/// What clients are offered.
#[derive(Debug)]
pub struct Offer {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    /// Hash of the certificate that binds a login to the connection, where one is defined.
    pub endpoint: Option<Arc<[u8]>>,
}

/// TLS towards servers.
#[derive(Clone, Debug)]
pub struct ServerSide {
    /// server_tls_sslmode.
    pub mode: SslMode,
    config: Option<Arc<ClientConfig>>,
    anchors: Option<Arc<Anchors>>,
    print: Print,
}

/// What a server-side set-up was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Print {
    values: Vec<String>,
    contents: Vec<u8>,
}

/// Which side of the pooler.
#[derive(Clone, Copy)]
enum Side {
    Client,
    Server,
}

impl Side {
    fn word(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Server => "server",
        }
    }
}

/// Values of one side, as configured.
struct Values<'a> {
    side: Side,
    mode: SslMode,
    key_file: &'a str,
    cert_file: &'a str,
    ca_file: &'a str,
    protocols: &'a str,
    ciphers: &'a str,
    tls13_ciphers: Option<&'a str>,
    dheparams: &'a str,
    ecdhcurve: &'a str,
}

/// Bundles of the system, for servers that are to be verified by nothing else.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Tickets for a client to come back with: drivers hardly use them, and each costs a record.
const TICKETS: usize = 1;
/// What is spoken inside, as PostgreSQL's clients name it.
const PROTOCOL: &[u8] = b"postgresql";

/// Reads a file.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<Vec<u8>>;

impl Setup {
    /// Neither side uses it.
    pub fn disabled() -> Self {
        let print = Print { values: Vec::new(), contents: Vec::new() };
        let mode = SslMode::Disable;
        Setup {
            clients: ClientSide { mode, offer: None },
            servers: ServerSide { mode, config: None, anchors: None, print },
        }
    }

    /// The set-up for these settings; the error is the lines for the log.
    pub fn new(settings: &Settings, read: ReadFile<'_>) -> Result<Self, Vec<String>> {
        let clients = ClientSide::new(settings, read);
        let servers = ServerSide::new(settings, read);
        match (clients, servers) {
            (Ok(clients), Ok(servers)) => Ok(Setup { clients, servers }),
            (clients, servers) => Err(clients.err().into_iter().chain(servers.err()).collect()),
        }
    }
}

impl ClientSide {
    fn new(settings: &Settings, read: ReadFile<'_>) -> Result<Self, String> {
        let values = Values {
            side: Side::Client,
            mode: settings.client_tls_sslmode,
            key_file: &settings.client_tls_key_file,
            cert_file: &settings.client_tls_cert_file,
            ca_file: &settings.client_tls_ca_file,
            protocols: &settings.client_tls_protocols,
            ciphers: &settings.client_tls_ciphers,
            tls13_ciphers: settings.client_tls13_ciphers.as_deref(),
            dheparams: &settings.client_tls_dheparams,
            ecdhcurve: &settings.client_tls_ecdhcurve,
        };
        let mode = values.mode;
        if settings.auth_type == AuthType::Cert {
            if mode != SslMode::VerifyFull {
                let line = "auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL";
                return Err(line.into());
            }
            if values.ca_file.is_empty() {
                return Err("auth_type=cert requires client_tls_ca_file".into());
            }
        }
        if mode == SslMode::Disable {
            return Ok(ClientSide { mode, offer: None });
        }
        if values.key_file.is_empty() || values.cert_file.is_empty() {
            let line = "To allow TLS connections from clients, client_tls_key_file and \
                        client_tls_cert_file must be set.";
            return Err(line.into());
        }
        let verifies = matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
        if verifies && values.ca_file.is_empty() {
            return Err("client_tls_sslmode requires client_tls_ca_file".into());
        }
        let (provider, versions) = values.provider()?;
        let own = values.own(&provider, read)?;
        let endpoint = own.cert.first().and_then(|leaf| certificate::endpoint(leaf));
        let verifier: Arc<dyn ClientCertVerifier> = match verifies {
            true => Arc::new(Clients::new(values.anchors(read)?)),
            false => Arc::new(NoClientAuth),
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(failed)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        config.ignore_client_order = true;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(failed)?;
        config.send_tls13_tickets = TICKETS;
        let (config, endpoint) = (Arc::new(config), endpoint.map(Arc::from));
        Ok(ClientSide { mode, offer: Some(Arc::new(Offer { config, endpoint })) })
    }

    /// Whether only encrypted clients may log in over TCP.
    pub fn is_required(&self) -> bool {
        is_required(self.mode)
    }
}

fn is_required(mode: SslMode) -> bool {
    match mode {
        SslMode::Disable | SslMode::Allow | SslMode::Prefer => false,
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => true,
    }
}

impl ServerSide {
    fn new(settings: &Settings, read: ReadFile<'_>) -> Result<Self, String> {
        let values = Values {
            side: Side::Server,
            mode: settings.server_tls_sslmode,
            key_file: &settings.server_tls_key_file,
            cert_file: &settings.server_tls_cert_file,
            ca_file: &settings.server_tls_ca_file,
            protocols: &settings.server_tls_protocols,
            ciphers: &settings.server_tls_ciphers,
            tls13_ciphers: settings.server_tls13_ciphers.as_deref(),
            dheparams: "auto",
            ecdhcurve: "auto",
        };
        let (mode, print) = (values.mode, values.print(read));
        if mode == SslMode::Disable {
            return Ok(ServerSide { mode, config: None, anchors: None, print });
        }
        let (provider, versions) = values.provider()?;
        let anchors = match mode {
            SslMode::VerifyCa | SslMode::VerifyFull => Some(values.anchors(read)?),
            SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => None,
        };
        let expected = anchors.clone().map_or(Servers::Any, Servers::Trusted);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(expected));
        let mut config = if values.key_file.is_empty() && values.cert_file.is_empty() {
            builder.with_no_client_auth()
        } else {
            let own = values.own(&provider, read)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
        };
        // PostgreSQL gives no tickets.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(ServerSide { mode, config: Some(Arc::new(config)), anchors, print })
    }

    /// Whether servers without TLS are refused.
    pub fn is_required(&self) -> bool {
        is_required(self.mode)
    }

    /// Whether servers are asked for TLS.
    pub fn is_wanted(&self) -> bool {
        self.config.is_some()
    }

    /// For a connection to a host; `None` when TLS is disabled.
    pub fn config(&self, host: &str) -> Option<(Arc<ClientConfig>, ServerName<'static>)> {
        let config = self.config.as_ref()?;
        // A host that is no name for the TLS greeting is verified all the same, by our own rules.
        let nameless = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0; 4])));
        let name = ServerName::try_from(host.to_owned()).unwrap_or(nameless);
        match (&self.anchors, self.mode) {
            (Some(anchors), SslMode::VerifyFull) => {
                let mut config = ClientConfig::clone(config);
                let expected = Servers::Named(Arc::clone(anchors), host.to_owned());
                config.dangerous().set_certificate_verifier(Arc::new(expected));
                Some((Arc::new(config), name))
            }
            _ => Some((Arc::clone(config), name)),
        }
    }

    /// Whether connections made with `old` are not those that this one would make. The contents
    /// of files count only if asked for.
    pub fn differs(&self, old: &ServerSide, contents: bool) -> bool {
        let (new, old) = (&self.print, &old.print);
        new.values != old.values || (contents && new.contents != old.contents)
    }
}

impl PartialEq for ServerSide {
    fn eq(&self, other: &Self) -> bool {
        !self.differs(other, true)
    }
}

fn failed(cause: impl std::fmt::Display) -> String {
    format!("TLS setup failed: {cause}")
}

impl Values<'_> {
    fn invalid(&self, key: &str, value: &str) -> String {
        format!("invalid {}_tls_{key}: {value}", self.side.word())
    }

    /// The line for a list that cannot be used.
    fn unusable(&self, key: &str, value: &str, why: Unusable) -> String {
        match why {
            Unusable::Word => self.invalid(key, value),
            Unusable::Nothing => {
                let side = self.side.word();
                failed(format_args!("{side}_tls_{key} selects nothing that is offered: {value}"))
            }
        }
    }

    /// Suites, groups and versions.
    fn provider(
        &self,
    ) -> Result<(Arc<CryptoProvider>, Vec<&'static SupportedProtocolVersion>), String> {
        let versions = suites::versions(self.protocols)
            .map_err(|why| self.unusable("protocols", self.protocols, why))?;
        if !["none", "auto", "legacy"].iter().any(|word| self.dheparams.eq_ignore_ascii_case(word))
        {
            return Err(self.invalid("dheparams", self.dheparams));
        }
        let kx_groups = suites::groups(self.ecdhcurve)
            .map_err(|why| self.unusable("ecdhecurve", self.ecdhcurve, why))?;
        let new = suites::new_suites(self.tls13_ciphers).map_err(|_| {
            let list = self.tls13_ciphers.unwrap_or_default();
            failed(format_args!("failed to set the TLSv1.3 cipher suites {list}"))
        })?;
        let old = suites::old_suites(self.ciphers)
            .map_err(|why| self.unusable("ciphers", self.ciphers, why))?;
        let cipher_suites = new.into_iter().chain(old).collect();
        let provider = CryptoProvider { cipher_suites, kx_groups, ..aws_lc_rs::default_provider() };
        Ok((Arc::new(provider), versions))
    }

    fn read(&self, key: &str, path: &str, read: ReadFile<'_>) -> Result<Vec<u8>, String> {
        read(Path::new(path)).map_err(|error| {
            let (side, reason) = (self.side.word(), reason(&error));
            failed(format_args!("{side}_tls_{key} {path}: {reason}"))
        })
    }

    /// The certificate that is shown, with its key.
    fn own(&self, provider: &CryptoProvider, read: ReadFile<'_>) -> Result<CertifiedKey, String> {
        let broken = |key: &str, path: &str, cause: &dyn std::fmt::Display| {
            failed(format_args!("{}_tls_{key} {path}: {cause}", self.side.word()))
        };
        let pem = self.read("cert_file", self.cert_file, read)?;
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| broken("cert_file", self.cert_file, &error))?;
        let own = chain.first().and_then(|leaf| certificate::public_key(leaf));
        let Some(own) = own else {
            return Err(broken("cert_file", self.cert_file, &"no certificate in it"));
        };
        let pem = self.read("key_file", self.key_file, read)?;
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|error| broken("key_file", self.key_file, &error))?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| broken("key_file", self.key_file, &error))?;
        if key.public_key().is_some_and(|public| public != own) {
            return Err(broken("key_file", self.key_file, &"not the key of the certificate"));
        }
        Ok(CertifiedKey::new(chain, key))
    }

    fn anchors(&self, read: ReadFile<'_>) -> Result<Arc<Anchors>, String> {
        let (path, pem) = if self.ca_file.is_empty() {
            let mut bundles = SYSTEM_BUNDLES.iter();
            let found = bundles.find_map(|path| Some((*path, read(Path::new(path)).ok()?)));
            found.ok_or_else(|| failed("server_tls_sslmode requires server_tls_ca_file"))?
        } else {
            (self.ca_file, self.read("ca_file", self.ca_file, read)?)
        };
        let side = self.side.word();
        let broken = |cause| failed(format_args!("{side}_tls_ca_file {path}: {cause}"));
        Anchors::new(&pem).map(Arc::new).map_err(broken)
    }

    fn print(&self, read: ReadFile<'_>) -> Print {
        let mode = format!("{:?}", self.mode);
        let values = [self.key_file, self.cert_file, self.ca_file, self.protocols, self.ciphers];
        let values = values.into_iter().chain([self.tls13_ciphers.unwrap_or_default(), &mode]);
        let mut contents = Sha256::new();
        for path in [self.key_file, self.cert_file, self.ca_file] {
            let bytes = if path.is_empty() { None } else { read(Path::new(path)).ok() };
            contents.update(bytes.map_or([0; 32], |bytes| Sha256::digest(bytes).into()));
        }
        Print {
            values: values.map(str::to_owned).collect(),
            contents: contents.finalize().to_vec(),
        }
    }
}
