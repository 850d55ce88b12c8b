//! First bytes of a connection and the startup packet's parameters.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_core::client::startup::{StartupRules, read};
use switchyard_core::params::Tracked;
use switchyard_wire::startup::{First, first};

fuzz_target!(|data: &[u8]| {
    let tracked = Tracked::new(&["search_path".into()]);
    let ignore = ["extra_float_digits".to_string()];
    let rules = StartupRules { tracked: &tracked, ignore: &ignore, suffix: Some(" - x") };
    // A body by itself gets further than bytes that have to be a whole packet first.
    let _ = read(3 << 16, data, rules);
    if let First::Startup(version, body, len) = first(data) {
        assert!(len <= data.len());
        let _ = read(version, body, rules);
    }
});
