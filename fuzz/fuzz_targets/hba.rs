//! HBA and ident files, and auth_file.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use switchyard_auth::hba::{Applicant, Purpose, Rules, Source, Transport};
use switchyard_auth::ident::IdentMaps;
use switchyard_auth::userlist;

fuzz_target!(|data: &[u8]| {
    userlist::parse(data);
    let text = String::from_utf8_lossy(data);
    let mut warnings = Vec::new();
    let maps = IdentMaps::parse(&text, &mut warnings);
    let mut read = |name: &str| match name {
        "self" => Ok(data.to_vec()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    let mut source = Source { file: "hba", maps: &maps, read: &mut read };
    let (rules, _) = Rules::parse(&text, &mut source, &mut warnings);
    for transport in [Transport::Local, Transport::Plain([127, 0, 0, 1].into())] {
        let purpose = Purpose::Session;
        rules.find(&Applicant { transport, database: "d", user: "u", purpose });
    }
});
