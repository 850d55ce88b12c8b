//! The conversations of `transcripts/`, with the binary and with Debian's pgbouncer, both in front
//! of a real PostgreSQL. The simulator holds the core to the same.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use switchyard_testkit::{Pooler, Postgres};
use switchyard_wire::transcript::{self, Transcript, Turn};

use crate::wire::Wire;
use crate::{program, wanted};

/// Where Debian's package puts it.
const REFERENCE: &str = "/usr/sbin/pgbouncer";

/// All transcripts, by name.
fn all() -> io::Result<Vec<(String, Transcript)>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../transcripts");
    let mut paths: Vec<PathBuf> =
        directory.read_dir()?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path)?;
        let wrong = |error| io::Error::other(format!("{name}: {error}"));
        Ok((name.clone(), Transcript::parse(&text).map_err(wrong)?))
    };
    paths.iter().map(read).collect()
}

/// The next words that a client hears.
fn hear(wire: &mut Wire, reach: Option<usize>) -> io::Result<String> {
    wire.answers(reach.unwrap_or(usize::MAX))
}

/// Runs one conversation; answers how many of its answers were compared.
fn converse(name: &str, pooler: &str, port: u16, transcript: &Transcript) -> io::Result<usize> {
    let mut clients: BTreeMap<&str, Wire> = BTreeMap::new();
    let mut compared = 0;
    for turn in &transcript.turns {
        let (Turn::Send(client, _) | Turn::Expect(client, _)) = turn;
        if !clients.contains_key(client.as_str()) {
            clients.insert(client, Wire::login(port, "postgres")?);
        }
        let Some(wire) = clients.get_mut(client.as_str()) else { continue };
        match turn {
            Turn::Send(_, bytes) => wire.send(bytes)?,
            Turn::Expect(_, expected) => {
                let text = expected.of(pooler);
                let heard = hear(wire, transcript::reach(text)).map_err(|error| {
                    let line = expected.line;
                    io::Error::other(format!("{name}, line {line}, {pooler}: {error}"))
                })?;
                assert_eq!(heard, text, "{name}, line {}, {pooler}", expected.line);
                compared += 1;
            }
        }
    }
    Ok(compared)
}

/// Runs all conversations with a program.
fn check(pooler: &str, program: &Path) -> io::Result<()> {
    let postgres = Postgres::start("")?;
    let databases = format!("postgres = host=127.0.0.1 port={}", postgres.port);
    let mut compared = 0;
    for (name, transcript) in all()? {
        if transcript.skipped(pooler).is_some() {
            continue;
        }
        let settings = transcript.settings.join("\n");
        let running = Pooler::start(program, &databases, &settings)?;
        compared += converse(&name, pooler, running.port, &transcript)?;
    }
    assert!(compared > 20, "only {compared} answers were compared");
    Ok(())
}

#[test]
fn the_binary_keeps_to_the_transcripts() -> io::Result<()> {
    if wanted() { check("binary", program()) } else { Ok(()) }
}

#[test]
fn so_does_pgbouncer() -> io::Result<()> {
    let reference = Path::new(REFERENCE);
    if wanted() && reference.exists() { check("pgbouncer", reference) } else { Ok(()) }
}
