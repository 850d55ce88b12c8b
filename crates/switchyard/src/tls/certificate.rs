//! What a certificate says: names, the hash for channel binding, its key.
//!
//! Read with x509-parser, because certificates of version 1 count: PostgreSQL's own recipe makes
//! them, and webpki refuses them.

use rustls::pki_types::SubjectPublicKeyInfoDer;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// Reads a certificate.
pub(super) fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        Ok(_) | Err(_) => None,
    }
}

/// The names for which a certificate stands: the dNSName entries of its subjectAltName if there
/// are any, else the common name of its subject.
pub fn names(der: &[u8]) -> Vec<String> {
    let Some(certificate) = parse(der) else { return Vec::new() };
    let names: Vec<String> = alternatives(&certificate)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect();
    if names.is_empty() { common_name(&certificate).into_iter().collect() } else { names }
}

/// Entries of the subjectAltName.
pub(super) fn alternatives<'a>(
    certificate: &'a X509Certificate<'a>,
) -> impl Iterator<Item = &'a GeneralName<'a>> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    extension.into_iter().flat_map(|extension| &extension.value.general_names)
}

/// The common name of the subject. One with a NUL in it is nobody's: other programs read such a
/// name up to there.
pub(super) fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    (!name.contains('\0')).then(|| name.to_owned())
}

/// The public key.
pub(super) fn public_key(der: &[u8]) -> Option<SubjectPublicKeyInfoDer<'static>> {
    parse(der).map(|certificate| certificate.public_key().raw.to_vec().into())
}

/// The hash of a certificate that binds a login to its connection: `tls-server-end-point` of
/// RFC 5929. `None` where that is not defined.
pub fn endpoint(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = parse(der)?;
    let algorithm = &certificate.signature_algorithm;
    let mut oid = algorithm.algorithm.to_id_string();
    if let Ok(SignatureAlgorithm::RSASSA_PSS(params)) = SignatureAlgorithm::try_from(algorithm) {
        oid = params.hash_algorithm_oid().to_id_string();
    }
    match oid.as_str() {
        // MD5 and SHA-1, alone or with RSA or ECDSA, count as SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.3.14.3.2.26"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2"
        | "2.16.840.1.101.3.4.2.1" => Some(Sha256::digest(der).to_vec()),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.2.4" => {
            Some(Sha224::digest(der).to_vec())
        }
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => {
            Some(Sha384::digest(der).to_vec())
        }
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => {
            Some(Sha512::digest(der).to_vec())
        }
        _ => None,
    }
}
