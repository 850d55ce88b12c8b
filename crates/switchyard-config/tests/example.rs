//! The example in the documentation: complete, true, and valid.

use std::path::Path;

use switchyard_config::{Settings, Severity, load};

fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/switchyard.ini");
    std::fs::read_to_string(path).expect("the example")
}

#[test]
fn it_is_valid_and_nothing_is_wrong_with_it() {
    let loaded = load(Path::new("example"), &mut |_| Ok(example().into_bytes()));
    let said: Vec<_> = loaded.found.iter().map(ToString::to_string).collect();
    assert!(loaded.config.is_some() && said.is_empty(), "{said:?}");
}

#[test]
fn every_setting_stands_there_with_its_default() {
    let text = example();
    for row in Settings::default().rows() {
        let value = row.default.unwrap_or_default();
        let line = format!(";{} = {value}", row.key);
        let found = text.lines().filter(|other| *other == line.trim_end()).count();
        assert_eq!(found, 1, "{line}");
    }
    // Nothing else stands there: whatever is commented out may be turned on.
    let (_, settings) = text.split_once("[pgbouncer]\n").expect("the main section");
    let mut all = String::from("[pgbouncer]\n");
    for line in settings.lines().filter_map(|line| line.strip_prefix(';')) {
        if !line.starts_with([' ', ';']) && !line.ends_with('=') {
            all.push_str(line);
            all.push('\n');
        }
    }
    let loaded = load(Path::new("all"), &mut |_| Ok(all.clone().into_bytes()));
    let wrong = loaded.found.iter().find(|one| one.severity == Severity::Error);
    assert_eq!(wrong, None);
    let mut config = loaded.config.expect("a valid file");
    config.settings.conffile = None;
    assert_eq!(config.settings, Settings::default());
}
