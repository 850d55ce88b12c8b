//! What rustls asks about peers' certificates, answered by `verify` and `host`.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, ProtocolVersion,
    SignatureScheme,
};

use crate::tls::verify::{Anchors, Purpose, handshake_signature, supported};
use crate::tls::{certificate, host};

/// What a server's certificate has to be.
#[derive(Clone, Debug)]
pub(super) enum Servers {
    /// Its own: it has the key. Nothing else is looked at.
    Any,
    /// Issued by someone who is trusted.
    Trusted(Arc<Anchors>),
    /// The same, and for this host.
    Named(Arc<Anchors>, String),
}

/// Clients' certificates, which have to be issued by someone who is trusted.
#[derive(Debug)]
pub(super) struct Clients {
    anchors: Arc<Anchors>,
    subjects: Vec<DistinguishedName>,
}

impl Clients {
    pub(super) fn new(anchors: Arc<Anchors>) -> Self {
        let subjects = anchors.subjects();
        Clients { anchors, subjects }
    }
}

#[derive(Debug)]
struct OtherName(String);

impl fmt::Display for OtherName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "name \"{}\" not present in server certificate", self.0)
    }
}

impl std::error::Error for OtherName {}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self {
            Servers::Any => {}
            Servers::Trusted(anchors) => anchors.check(leaf, between, now, Purpose::Server)?,
            Servers::Named(anchors, host) => {
                anchors.check(leaf, between, now, Purpose::Server)?;
                let parsed = certificate::parse(leaf).ok_or(CertificateError::BadEncoding)?;
                if !host::fits(&parsed, host) {
                    let error = OtherError(Arc::new(OtherName(host.clone())));
                    return Err(CertificateError::Other(error).into());
                }
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        handshake_signature(message, leaf, signed, ProtocolVersion::TLSv1_2)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        handshake_signature(message, leaf, signed, ProtocolVersion::TLSv1_3)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        supported().supported_schemes()
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.anchors.check(leaf, between, now, Purpose::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        handshake_signature(message, leaf, signed, ProtocolVersion::TLSv1_2)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        handshake_signature(message, leaf, signed, ProtocolVersion::TLSv1_3)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        supported().supported_schemes()
    }
}
