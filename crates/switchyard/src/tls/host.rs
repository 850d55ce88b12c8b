//! Whether a server's certificate is for the host that was connected to, by libpq's rules.
//!
//! Names of the host's kind in the subjectAltName count; the common name counts only where there
//! is none of that kind. A `*.` stands for one label. Addresses are compared as addresses, or as
//! text with a name, and never by a wildcard.

use std::net::IpAddr;

use x509_parser::prelude::{GeneralName, X509Certificate};

use crate::tls::certificate::{alternatives, common_name};

/// Whether a certificate is for `host`.
pub(super) fn fits(certificate: &X509Certificate<'_>, host: &str) -> bool {
    let address = host.parse::<IpAddr>().ok();
    let mut any = false;
    for name in alternatives(certificate) {
        match (name, address) {
            (GeneralName::DNSName(name), _) => {
                any |= address.is_none();
                if name_fits(name, host, address) {
                    return true;
                }
            }
            (GeneralName::IPAddress(bytes), Some(address)) => {
                any = true;
                if address_fits(bytes, address) {
                    return true;
                }
            }
            _ => {}
        }
    }
    !any && common_name(certificate).is_some_and(|name| name_fits(&name, host, address))
}

fn address_fits(bytes: &[u8], address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => bytes == address.octets(),
        IpAddr::V6(address) => bytes == address.octets(),
    }
}

fn name_fits(pattern: &str, host: &str, address: Option<IpAddr>) -> bool {
    if pattern.is_empty() || pattern.contains('\0') {
        return false;
    }
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let (None, Some(suffix)) = (address, pattern.strip_prefix('*')) else { return false };
    // `*.x`: the suffix begins with the dot, and the label before it has none.
    if !suffix.starts_with('.') || suffix.len() < 2 || host.len() <= suffix.len() {
        return false;
    }
    let (Some(label), Some(rest)) =
        (host.get(..host.len() - suffix.len()), host.get(host.len() - suffix.len()..))
    else {
        return false;
    };
    rest.eq_ignore_ascii_case(suffix) && !label.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_patterns() {
        let fits = |pattern, host: &str| name_fits(pattern, host, host.parse().ok());
        assert!(fits("db.example.com", "DB.example.COM"));
        assert!(fits("*.example.com", "db.example.com"));
        assert!(!fits("*.example.com", "a.db.example.com"));
        assert!(!fits("*.example.com", "example.com"));
        assert!(!fits("*.example.com", ".example.com"));
        assert!(!fits("*", "db"));
        assert!(!fits("*.", "db."));
        assert!(!fits("d*.example.com", "db.example.com"));
        assert!(!fits("db\0.example.com", "db"));
        assert!(fits("127.0.0.1", "127.0.0.1"));
        assert!(!fits("*.0.0.1", "127.0.0.1"));
        assert!(!fits("*.é", "aé"));
        assert!(address_fits(&[127, 0, 0, 1], IpAddr::from([127, 0, 0, 1])));
        assert!(!address_fits(&[127, 0, 0, 1, 0], IpAddr::from([127, 0, 0, 1])));
    }
}
