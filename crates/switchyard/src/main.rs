//! The pooler.
fn main() {}
