//! A simulated world whose first choices are made up: what happens, when, and to whom.
#![no_main]

use libfuzzer_sys::fuzz_target;
use switchyard_sim::{Kind, Seed, run};

fuzz_target!(|choices: &[u8]| {
    if let Err(text) = run(Kind::Cluster, Seed::Choices(choices), None) {
        panic!("{text}");
    }
});
