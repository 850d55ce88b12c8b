//! The side that clients log in to: every message of a dialogue, for every kind of secret.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use switchyard_auth::secret::{Known, Secret};
use switchyard_core::client::login::{Login, Material, Method, Step};
use switchyard_wire::read;

fuzz_target!(|data: &[u8]| {
    let Some((choice, data)) = data.split_first() else { return };
    let secret = match choice & 3 {
        0 => None,
        1 => Some(Secret::Empty),
        2 => Some(Secret::parse(b"pw")),
        _ => Some(Secret::parse(b"md50123456789abcdef0123456789abcdef")),
    };
    let method = match choice >> 2 & 3 {
        0 => Method::Plain,
        1 => Method::Md5([1, 2, 3, 4]),
        _ => Method::Scram,
    };
    let material =
        Material { nonce: "ours".into(), salt: vec![1; 16], mock_salt: vec![2; 16], iterations: 1 };
    let known = secret.map(|secret| Arc::new(Known::new(secret)));
    let mut login = Login::new(method, "u", known, material);
    // Part of no message that makes sense, so it parts them.
    for message in data.split(|byte| *byte == 0xff) {
        let _ = read::sasl_initial(message);
        let _ = read::cstr(message);
        if login.handle_message(b'p', message, &mut Vec::new()) != Step::More {
            return;
        }
    }
});
