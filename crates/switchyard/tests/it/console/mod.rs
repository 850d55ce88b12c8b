//! The admin console, beside Debian's pgbouncer where both have a thing.

mod commands;
mod queries;
mod shows;
mod statistics;
mod suspend;
mod tools;

use std::io;

use switchyard_testkit::raw::{self, Raw};

/// The answer to a query on a console, in short.
fn told(console: &mut Raw, sql: &str) -> io::Result<String> {
    Ok(raw::transcript(&console.query(sql)?))
}

/// Rows of a SHOW.
fn rows(console: &mut Raw, sql: &str) -> io::Result<Vec<String>> {
    Ok(raw::rows(&console.query(sql)?))
}

/// The row of a SHOW that starts so, split.
fn row(console: &mut Raw, sql: &str, start: &str) -> io::Result<Vec<String>> {
    let rows = rows(console, sql)?;
    let found = rows.iter().find(|row| row.starts_with(start)).cloned().unwrap_or_default();
    Ok(found.split('|').map(String::from).collect())
}
