//! Whether a peer's certificate may be trusted.
//!
//! webpki decides where it can. What it refuses on principle and OpenSSL takes is judged here:
//! certificates of version 1, made by PostgreSQL's own recipe, and one that is trusted itself,
//! such as a server's self-signed certificate given as the CA. The rules are those of RFC 5280
//! without names: validity, signatures, who may issue, for what. An authority with constraints on
//! names is left to webpki.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore};
use webpki::aws_lc_rs as algorithms;
use webpki::{EndEntityCert, KeyUsage, RawPublicKeyEntity};
use x509_parser::prelude::{ParsedExtension, X509Certificate, X509Version};

use crate::tls::certificate;

/// Certificates that are trusted.
#[derive(Debug)]
pub struct Anchors {
    store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

/// What a certificate is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be a server.
    Server,
    /// To be a client.
    Client,
}

/// Issuers between a certificate and a trusted one.
const DEPTH_MAX: u32 = 8;
/// Signatures checked for one certificate: a peer may send any number of look-alikes.
const CHECKS_MAX: u32 = 64;

impl Anchors {
    /// The certificates of a bundle.
    pub fn new(pem: &[u8]) -> Result<Self, &'static str> {
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
            .filter_map(Result::ok)
            .filter(|der| certificate::parse(der).is_some())
            .collect();
        if certificates.is_empty() {
            return Err("no certificate in it");
        }
        let mut store = RootCertStore::empty();
        for der in &certificates {
            // What webpki cannot read is still used below.
            let _ = store.add(der.clone());
        }
        Ok(Anchors { store, certificates })
    }

    /// Names of the trusted certificates.
    pub fn subjects(&self) -> Vec<rustls::DistinguishedName> {
        self.store.subjects()
    }

    /// Whether a chain of certificates leads to a trusted one.
    pub fn check(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        purpose: Purpose,
    ) -> Result<(), Error> {
        let usage = match purpose {
            Purpose::Server => KeyUsage::server_auth(),
            Purpose::Client => KeyUsage::client_auth(),
        };
        let all = supported().all;
        let strict = EndEntityCert::try_from(leaf).and_then(|leaf| {
            leaf.verify_for_usage(all, &self.store.roots, between, now, usage, None, None)
                .map(|_| ())
        });
        if strict.is_ok() {
            return Ok(());
        }
        let broken = CertificateError::BadEncoding;
        let leaf = certificate::parse(leaf).ok_or(broken)?;
        may_be_used(&leaf, purpose)?;
        let search = Search {
            trusted: self.certificates.iter().filter_map(|der| certificate::parse(der)).collect(),
            between: between.iter().filter_map(|der| certificate::parse(der)).collect(),
            now,
        };
        search.leads_to_trust(&leaf, 0, &mut CHECKS_MAX.clone()).map_err(Error::from)
    }
}

/// Algorithms of signatures.
pub(super) fn supported() -> WebPkiSupportedAlgorithms {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
}

/// Checks a signature of a handshake, whatever the version of the certificate.
pub(super) fn handshake_signature(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    tls: rustls::ProtocolVersion,
) -> Result<HandshakeSignatureValid, Error> {
    let key = certificate::public_key(leaf).ok_or(CertificateError::BadEncoding)?;
    let supported = supported();
    if tls == rustls::ProtocolVersion::TLSv1_3 {
        return verify_tls13_signature_with_raw_key(message, &key, signed, &supported);
    }
    // TLS 1.2 names the hash and not the curve: each of the scheme's algorithms may be meant.
    let schemes = supported.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme);
    for algorithm in schemes.flat_map(|(_, algorithms)| *algorithms) {
        if verify(&key, *algorithm, message, signed.signature()) {
            return Ok(HandshakeSignatureValid::assertion());
        }
    }
    Err(CertificateError::BadSignature.into())
}

fn verify(
    key: &SubjectPublicKeyInfoDer<'_>,
    algorithm: &dyn SignatureVerificationAlgorithm,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let entity = RawPublicKeyEntity::try_from(key);
    entity.is_ok_and(|entity| entity.verify_signature(algorithm, message, signature).is_ok())
}

struct Search<'a> {
    trusted: Vec<X509Certificate<'a>>,
    between: Vec<X509Certificate<'a>>,
    now: UnixTime,
}

impl Search<'_> {
    /// Follows the issuers of a certificate that is so many steps above the peer's own.
    fn leads_to_trust(
        &self,
        certificate: &X509Certificate<'_>,
        depth: u32,
        checks: &mut u32,
    ) -> Result<(), CertificateError> {
        self.is_valid_now(certificate)?;
        if self.trusted.iter().any(|trusted| trusted.as_raw() == certificate.as_raw()) {
            return Ok(());
        }
        let mut fault = CertificateError::UnknownIssuer;
        let is_issuer = |issuer: &&X509Certificate<'_>| {
            issuer.subject().as_raw() == certificate.issuer().as_raw()
                && issuer.as_raw() != certificate.as_raw()
        };
        for issuer in self.trusted.iter().filter(is_issuer) {
            match self.issued(issuer, Trust::Yes, certificate, depth, checks) {
                Ok(()) => return self.is_valid_now(issuer),
                Err(error) => fault = error,
            }
        }
        for issuer in self.between.iter().filter(is_issuer).filter(|_| depth < DEPTH_MAX) {
            let issued = self.issued(issuer, Trust::No, certificate, depth, checks);
            match issued.and_then(|()| self.leads_to_trust(issuer, depth + 1, checks)) {
                Ok(()) => return Ok(()),
                Err(error) => fault = error,
            }
        }
        Err(fault)
    }

    fn is_valid_now(&self, certificate: &X509Certificate<'_>) -> Result<(), CertificateError> {
        let now = i64::try_from(self.now.as_secs()).unwrap_or(i64::MAX);
        let validity = certificate.validity();
        if now < validity.not_before.timestamp() {
            Err(CertificateError::NotValidYet)
        } else if now > validity.not_after.timestamp() {
            Err(CertificateError::Expired)
        } else {
            Ok(())
        }
    }

    fn issued(
        &self,
        issuer: &X509Certificate<'_>,
        trust: Trust,
        certificate: &X509Certificate<'_>,
        depth: u32,
        checks: &mut u32,
    ) -> Result<(), CertificateError> {
        if !may_issue(issuer, trust, depth) || *checks == 0 {
            return Err(CertificateError::UnknownIssuer);
        }
        *checks -= 1;
        let key = issuer.public_key().raw.into();
        let (message, signature) =
            (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data[..]);
        let candidates = signers(certificate);
        if candidates.iter().any(|algorithm| verify(&key, *algorithm, message, signature)) {
            Ok(())
        } else {
            Err(CertificateError::BadSignature)
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    Yes,
    No,
}

/// Whether a certificate may issue others, `below` of which are between it and the peer's own.
fn may_issue(issuer: &X509Certificate<'_>, trust: Trust, below: u32) -> bool {
    if issuer.version() != X509Version::V3 {
        // It cannot say that it is an authority: only one that is trusted anyway may be one.
        return trust == Trust::Yes && issuer.subject().as_raw() == issuer.issuer().as_raw();
    }
    let Ok(Some(basic)) = issuer.basic_constraints() else { return false };
    let deep_enough = basic.value.path_len_constraint.is_none_or(|most| below <= most);
    let signs = match issuer.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    let constrained = !matches!(issuer.name_constraints(), Ok(None));
    basic.value.ca && deep_enough && signs && !constrained && is_understood(issuer)
}

/// Whether the peer's own certificate may be used for this.
fn may_be_used(leaf: &X509Certificate<'_>, purpose: Purpose) -> Result<(), CertificateError> {
    if !is_understood(leaf) {
        return Err(CertificateError::UnhandledCriticalExtension);
    }
    match leaf.extended_key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) => {
            let named = match purpose {
                Purpose::Server => usage.value.server_auth,
                Purpose::Client => usage.value.client_auth,
            };
            if named || usage.value.any { Ok(()) } else { Err(CertificateError::InvalidPurpose) }
        }
        Err(_) => Err(CertificateError::BadEncoding),
    }
}

/// Whether nothing critical stands in it that is not looked at here.
fn is_understood(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().filter(|extension| extension.critical).all(|extension| {
        matches!(
            extension.parsed_extension(),
            ParsedExtension::BasicConstraints(_)
                | ParsedExtension::KeyUsage(_)
                | ParsedExtension::ExtendedKeyUsage(_)
                | ParsedExtension::SubjectAlternativeName(_)
        )
    })
}

/// The algorithms that a certificate's signature may have been made with.
fn signers(certificate: &X509Certificate<'_>) -> Vec<&'static dyn SignatureVerificationAlgorithm> {
    let named = &certificate.signature_algorithm;
    if *named != certificate.tbs_certificate.signature {
        return Vec::new();
    }
    match named.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.11" => vec![algorithms::RSA_PKCS1_2048_8192_SHA256],
        "1.2.840.113549.1.1.12" => vec![algorithms::RSA_PKCS1_2048_8192_SHA384],
        "1.2.840.113549.1.1.13" => vec![algorithms::RSA_PKCS1_2048_8192_SHA512],
        "1.2.840.113549.1.1.10" => vec![
            algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
            algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
            algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        ],
        "1.2.840.10045.4.3.2" => vec![
            algorithms::ECDSA_P256_SHA256,
            algorithms::ECDSA_P384_SHA256,
            algorithms::ECDSA_P521_SHA256,
        ],
        "1.2.840.10045.4.3.3" => vec![
            algorithms::ECDSA_P256_SHA384,
            algorithms::ECDSA_P384_SHA384,
            algorithms::ECDSA_P521_SHA384,
        ],
        "1.2.840.10045.4.3.4" => vec![
            algorithms::ECDSA_P256_SHA512,
            algorithms::ECDSA_P384_SHA512,
            algorithms::ECDSA_P521_SHA512,
        ],
        "1.3.101.112" => vec![algorithms::ED25519],
        _ => Vec::new(),
    }
}
