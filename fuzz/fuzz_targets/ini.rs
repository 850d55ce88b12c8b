//! A configuration file that may include itself.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use switchyard_config::load;

fuzz_target!(|data: &[u8]| {
    let mut left = 20;
    let loaded = load(Path::new("main.ini"), &mut |_| {
        left -= 1;
        if left > 0 { Ok(data.to_vec()) } else { Err(std::io::ErrorKind::NotFound.into()) }
    });
    loaded.found.iter().for_each(|one| drop(one.to_string()));
});
