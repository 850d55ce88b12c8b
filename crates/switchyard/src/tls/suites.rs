//! Lists of cipher suites, protocols and curves in OpenSSL's words, and rustls' suites for them.
//!
//! OpenSSL knows many suites that are not offered here: without forward secrecy or with CBC. Their
//! names are understood and select nothing; only a list that selects nothing at all, or a word
//! that is no name, is an error.

use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::{cipher_suite as suite, kx_group};
use rustls::{CipherSuite, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion, version};

/// Why a list cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It has a word that is no name.
    Word,
    /// All its words are known, and nothing of it is offered here.
    Nothing,
}

/// A suite of TLS 1.2: OpenSSL's name, the words that select it, its strength in bits.
struct Old {
    name: &'static str,
    words: &'static [&'static str],
    bits: u16,
    suite: SupportedCipherSuite,
}

const OLD: [Old; 6] = [
    Old {
        name: "ECDHE-ECDSA-AES256-GCM-SHA384",
        words: &["aECDSA", "ECDSA", "AES", "AES256", "AESGCM", "FIPS"],
        bits: 256,
        suite: suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    },
    Old {
        name: "ECDHE-RSA-AES256-GCM-SHA384",
        words: &["aRSA", "AES", "AES256", "AESGCM", "FIPS"],
        bits: 256,
        suite: suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    },
    Old {
        name: "ECDHE-ECDSA-CHACHA20-POLY1305",
        words: &["aECDSA", "ECDSA", "CHACHA20"],
        bits: 256,
        suite: suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    },
    Old {
        name: "ECDHE-RSA-CHACHA20-POLY1305",
        words: &["aRSA", "CHACHA20"],
        bits: 256,
        suite: suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    },
    Old {
        name: "ECDHE-ECDSA-AES128-GCM-SHA256",
        words: &["aECDSA", "ECDSA", "AES", "AES128", "AESGCM", "FIPS"],
        bits: 128,
        suite: suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    },
    Old {
        name: "ECDHE-RSA-AES128-GCM-SHA256",
        words: &["aRSA", "AES", "AES128", "AESGCM", "FIPS"],
        bits: 128,
        suite: suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    },
];

/// Words that select every suite of ours.
const EVERY: [&str; 9] =
    ["ALL", "DEFAULT", "HIGH", "TLSv1.2", "ECDHE", "EECDH", "kECDHE", "kEECDH", "ECDH"];

/// Words and parts of names that OpenSSL knows and that select nothing here.
const KNOWN: &[&str] = &[
    "128",
    "256",
    "3DES",
    "ADH",
    "AECDH",
    "AES",
    "AES128",
    "AES256",
    "AESCCM",
    "AESCCM8",
    "ANULL",
    "ARIA",
    "ARIA128",
    "ARIA256",
    "ARIAGCM",
    "CAMELLIA",
    "CAMELLIA128",
    "CAMELLIA256",
    "CBC",
    "CBC3",
    "CCM",
    "CCM8",
    "CHACHA20",
    "COMPLEMENTOFALL",
    "COMPLEMENTOFDEFAULT",
    "DES",
    "DH",
    "DHE",
    "DSS",
    "ADSS",
    "ECDHE",
    "ECDSA",
    "EDE3",
    "EDH",
    "ENULL",
    "EXP",
    "EXPORT",
    "EXPORT40",
    "EXPORT56",
    "GCM",
    "GOST",
    "IDEA",
    "KDHE",
    "KDHEPSK",
    "KECDHEPSK",
    "KEDH",
    "KPSK",
    "KRSA",
    "KRSAPSK",
    "KSRP",
    "LOW",
    "MD5",
    "MEDIUM",
    "NULL",
    "POLY1305",
    "PSK",
    "RC2",
    "RC4",
    "RSA",
    "SEED",
    "SHA",
    "SHA1",
    "SHA256",
    "SHA384",
    "SRP",
    "SSLV2",
    "SSLV3",
    "SUITEB128",
    "SUITEB192",
    "TLSV1",
    "TLSV1.0",
];

/// Words of PgBouncer for the library's own choice.
const LIBRARY: [&str; 5] = ["default", "secure", "fast", "normal", "all"];

fn selects(atom: &str, old: &Old) -> bool {
    EVERY.contains(&atom)
        || old.words.contains(&atom)
        || old.name == atom
        || old.suite.suite().as_str() == Some(atom)
}

fn is_known(word: &str) -> bool {
    let known = |part: &str| KNOWN.contains(&part.to_ascii_uppercase().as_str());
    word.split('+').all(|atom| {
        let ours = OLD.iter().any(|old| selects(atom, old));
        let standard = || atom.strip_prefix("TLS_").is_some_and(|rest| rest.contains("_WITH_"));
        ours || known(atom) || atom.split('-').all(known) || standard()
    })
}

/// Suites of TLS 1.2 for a list in OpenSSL's grammar.
pub(super) fn old_suites(list: &str) -> Result<Vec<SupportedCipherSuite>, Unusable> {
    if LIBRARY.iter().any(|word| list.trim().eq_ignore_ascii_case(word)) {
        return Ok(OLD.iter().map(|old| old.suite).collect());
    }
    let (mut chosen, mut banned): (Vec<&Old>, Vec<&str>) = (Vec::new(), Vec::new());
    let same = |one: &Old, other: &Old| one.name == other.name;
    for part in list.split([':', ',', ' ', ';']).filter(|part| !part.is_empty()) {
        let (sign, word) = match part.as_bytes() {
            [sign @ (b'!' | b'-' | b'+' | b'@'), ..] => (*sign, &part[1..]),
            _ => (b' ', part),
        };
        if sign == b'@' {
            match word {
                "STRENGTH" => chosen.sort_by_key(|old| std::cmp::Reverse(old.bits)),
                _ if word.starts_with("SECLEVEL=") => {}
                _ => return Err(Unusable::Word),
            }
            continue;
        }
        if !is_known(word) {
            return Err(Unusable::Word);
        }
        let meant = |old: &&Old| word.split('+').all(|atom| selects(atom, old));
        let meant: Vec<&Old> = OLD.iter().filter(meant).collect();
        let is_meant = |old: &Old| meant.iter().any(|other| same(other, old));
        match sign {
            b'+' => chosen.sort_by_key(|old| is_meant(old)),
            b' ' => {
                for old in meant {
                    if !chosen.iter().any(|other| same(other, old)) && !banned.contains(&old.name) {
                        chosen.push(old);
                    }
                }
            }
            _ => {
                chosen.retain(|old| !is_meant(old));
                if sign == b'!' {
                    banned.extend(meant.iter().map(|old| old.name));
                }
            }
        }
    }
    if chosen.is_empty() {
        return Err(Unusable::Nothing);
    }
    Ok(chosen.into_iter().map(|old| old.suite).collect())
}

/// Suites of TLS 1.3 for a list of their names; none given means all.
pub(super) fn new_suites(list: Option<&str>) -> Result<Vec<SupportedCipherSuite>, Unusable> {
    let all = [
        ("TLS_AES_256_GCM_SHA384", Some(suite::TLS13_AES_256_GCM_SHA384)),
        ("TLS_CHACHA20_POLY1305_SHA256", Some(suite::TLS13_CHACHA20_POLY1305_SHA256)),
        ("TLS_AES_128_GCM_SHA256", Some(suite::TLS13_AES_128_GCM_SHA256)),
        ("TLS_AES_128_CCM_SHA256", None),
        ("TLS_AES_128_CCM_8_SHA256", None),
    ];
    let Some(list) = list.map(str::trim).filter(|list| !list.is_empty()) else {
        return Ok(all.iter().filter_map(|(_, suite)| *suite).collect());
    };
    let mut chosen = Vec::new();
    for word in list.split([':', ',', ' ']).filter(|word| !word.is_empty()) {
        let found = all.iter().find(|(name, _)| *name == word).ok_or(Unusable::Word)?;
        chosen.extend(found.1.filter(|suite| !chosen.contains(suite)));
    }
    if chosen.is_empty() { Err(Unusable::Nothing) } else { Ok(chosen) }
}

/// Versions for a list of protocols. Those before 1.2 are understood and not offered.
pub(super) fn versions(list: &str) -> Result<Vec<&'static SupportedProtocolVersion>, Unusable> {
    let (mut old, mut new) = (false, false);
    for word in list.split([',', ':']).map(str::trim) {
        let (value, word) = match word.strip_prefix('!') {
            Some(word) => (false, word),
            None => (true, word),
        };
        match word.to_ascii_lowercase().as_str() {
            "all" | "legacy" | "default" | "secure" | "tlsv1" => (old, new) = (value, value),
            "tlsv1.0" | "tlsv1.1" => {}
            "tlsv1.2" => old = value,
            "tlsv1.3" => new = value,
            _ => return Err(Unusable::Word),
        }
    }
    let chosen: Vec<_> = [(new, &version::TLS13), (old, &version::TLS12)]
        .into_iter()
        .filter_map(|(wanted, version)| wanted.then_some(version))
        .collect();
    if chosen.is_empty() { Err(Unusable::Nothing) } else { Ok(chosen) }
}

/// Groups for the key exchange: all for `auto` and `none`, else the one of that name.
pub(super) fn groups(curve: &str) -> Result<Vec<&'static dyn SupportedKxGroup>, Unusable> {
    let group: &'static dyn SupportedKxGroup = match curve.to_ascii_lowercase().as_str() {
        "auto" | "none" | "" => {
            return Ok(vec![
                kx_group::X25519,
                kx_group::SECP256R1,
                kx_group::SECP384R1,
                kx_group::X25519MLKEM768,
            ]);
        }
        "x25519" => kx_group::X25519,
        "prime256v1" | "secp256r1" | "p-256" => kx_group::SECP256R1,
        "secp384r1" | "p-384" => kx_group::SECP384R1,
        "x25519mlkem768" => kx_group::X25519MLKEM768,
        "secp521r1" | "p-521" | "x448" | "secp224r1" | "secp256k1" => {
            return Err(Unusable::Nothing);
        }
        _ => return Err(Unusable::Word),
    };
    Ok(vec![group])
}

/// OpenSSL's name of a suite.
pub(super) fn suite_name(wanted: CipherSuite) -> &'static str {
    let old = OLD.iter().find(|old| old.suite.suite() == wanted).map(|old| old.name);
    old.or(match wanted {
        CipherSuite::TLS13_AES_256_GCM_SHA384 => Some("TLS_AES_256_GCM_SHA384"),
        CipherSuite::TLS13_AES_128_GCM_SHA256 => Some("TLS_AES_128_GCM_SHA256"),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some("TLS_CHACHA20_POLY1305_SHA256"),
        _ => None,
    })
    .unwrap_or("unknown")
}

/// OpenSSL's name of a group.
pub(super) fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "prime256v1",
        NamedGroup::secp384r1 => "secp384r1",
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> Result<String, Unusable> {
        let short = |suite: SupportedCipherSuite| {
            let name = suite_name(suite.suite()).trim_start_matches("ECDHE-");
            name.replace("-GCM", "").replace("-POLY1305", "")
        };
        old_suites(list).map(|suites| suites.into_iter().map(short).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn lists_of_openssl() {
        let all = "ECDSA-AES256-SHA384 RSA-AES256-SHA384 ECDSA-CHACHA20 RSA-CHACHA20 \
                   ECDSA-AES128-SHA256 RSA-AES128-SHA256";
        for list in ["default", "secure", "Fast", "ALL", "HIGH:!aNULL:!MD5", "DEFAULT@SECLEVEL=2"] {
            let list = list.replace('@', ":@");
            assert_eq!(names(&list).as_deref(), Ok(all), "{list}");
        }
        let chacha_last = "ECDSA-AES256-SHA384 RSA-AES256-SHA384 ECDSA-AES128-SHA256 \
                           RSA-AES128-SHA256 ECDSA-CHACHA20 RSA-CHACHA20";
        assert_eq!(names("ALL:+CHACHA20").as_deref(), Ok(chacha_last));
        let rsa = "RSA-AES128-SHA256 RSA-AES256-SHA384";
        let list = "AES256-SHA:ECDHE-RSA-AES128-GCM-SHA256:ECDHE+aRSA+AES256";
        assert_eq!(names(list).as_deref(), Ok(rsa));
        assert_eq!(names("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384").as_deref(), {
            Ok("RSA-AES256-SHA384")
        });
        assert_eq!(names("ALL:!ECDSA:-AES:aRSA:ECDSA").as_deref(), {
            Ok("RSA-CHACHA20 RSA-AES256-SHA384 RSA-AES128-SHA256")
        });
        assert_eq!(names("AES128:AES256:@STRENGTH").as_deref(), {
            Ok("ECDSA-AES256-SHA384 RSA-AES256-SHA384 ECDSA-AES128-SHA256 RSA-AES128-SHA256")
        });
        assert_eq!(names("DHE-RSA-AES256-SHA:kRSA"), Err(Unusable::Nothing));
        assert_eq!(names("HIGH:nonsense"), Err(Unusable::Word));
        assert_eq!(names(""), Err(Unusable::Nothing));
    }

    #[test]
    fn lists_of_1_3_protocols_and_curves() {
        assert_eq!(new_suites(None).map(|all| all.len()), Ok(3));
        let one = new_suites(Some("TLS_AES_128_CCM_SHA256:TLS_AES_128_GCM_SHA256"));
        assert_eq!(one.map(|all| all.len()), Ok(1));
        assert_eq!(new_suites(Some("AES")), Err(Unusable::Word));
        let count = |list| versions(list).map(|all| all.len());
        assert_eq!(count("secure"), Ok(2));
        assert_eq!(count("all, !tlsv1.3"), Ok(1));
        assert_eq!(count("tlsv1.1,TLSv1.2"), Ok(1));
        assert_eq!(count("tlsv1.0"), Err(Unusable::Nothing));
        assert_eq!(count("ssl3"), Err(Unusable::Word));
        assert_eq!(groups("auto").map(|all| all.len()).ok(), Some(4));
        assert_eq!(groups("prime256v1").map(|all| all[0].name()).ok(), Some(NamedGroup::secp256r1));
        assert_eq!(groups("curve").err(), Some(Unusable::Word));
    }
}
