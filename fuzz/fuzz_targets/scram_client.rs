//! The side that logs in to servers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_auth::scram::{Binding, ClientExchange, Credential, keys};

fuzz_target!(|data: &[u8]| {
    // With keys at hand the rounds that a server asks for cost nothing.
    let credential = Credential::Keys(keys(b"pw", b"salt", 1));
    let mut exchange = ClientExchange::new(credential, "abc".into(), Binding::Unused);
    for message in data.split(|byte| *byte == 0xff) {
        let _ = exchange.last(message);
        let _ = exchange.check(message);
    }
});
