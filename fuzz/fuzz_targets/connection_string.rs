//! Connection strings of entries, users and peers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_config::{Database, User};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let _ = Database::parse("name", &text);
    let _ = User::parse(&text);
});
