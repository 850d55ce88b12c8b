//! The pooler's share of a switchover: how long after the new writer's first own commit the first,
//! the median and the last of twenty writing clients get through the pooler. A failover kills the
//! writer's postmaster, a planned change stops it; then a standby is promoted.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use switchyard_testkit::{Pooler, Postgres, wait_until};

const WRITERS: usize = 20;
const IDLE: usize = 10;
const INSERT: &str = "insert into t values (1)";

/// A connection without a library: simple queries, trust.
struct Client(TcpStream);

impl Client {
    fn connect(port: u16, database: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        let mut body = b"\0\x03\0\0user\0postgres\0database\0".to_vec();
        body.extend_from_slice(database.as_bytes());
        body.extend_from_slice(b"\0\0");
        let mut client = Client(stream);
        client.0.write_all(&(body.len() as u32 + 4).to_be_bytes())?;
        client.0.write_all(&body)?;
        client.answer()?;
        Ok(client)
    }

    fn run(&mut self, sql: &str) -> io::Result<()> {
        let mut message = vec![b'Q'];
        message.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
        message.extend_from_slice(sql.as_bytes());
        message.push(0);
        self.0.write_all(&message)?;
        self.answer()
    }

    /// Reads up to ReadyForQuery; an ErrorResponse on the way makes it an error.
    fn answer(&mut self) -> io::Result<()> {
        let mut failed = false;
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head)?;
            let [tag, a, b, c, d] = head;
            let len = u32::from_be_bytes([a, b, c, d]) as usize;
            let mut body = vec![0; len.saturating_sub(4)];
            self.0.read_exact(&mut body)?;
            match tag {
                b'E' => failed = true,
                b'Z' if failed => return Err(io::Error::other("the server said no")),
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    }
}

/// What one change cost.
struct Outcome {
    stalls: Vec<Duration>,
    disconnected: usize,
    idle_errors: usize,
}

/// Runs both kinds of change and prints a row for each run.
pub(crate) fn run(program: &Path, rounds: usize) -> io::Result<()> {
    println!("| change | first ms | median ms | last ms | writers disconnected | idle errors |");
    println!("|---|---|---|---|---|---|");
    for kind in ["planned", "kill -9"] {
        for _ in 0..rounds {
            let Outcome { mut stalls, disconnected, idle_errors } = change(program, kind)?;
            stalls.sort();
            let at = |index: usize| stalls.get(index).map_or(0.0, Duration::as_secs_f64) * 1000.0;
            println!(
                "| {kind} | {:.1} | {:.1} | {:.1} | {disconnected} | {idle_errors} |",
                at(0),
                at(stalls.len() / 2),
                at(stalls.len().saturating_sub(1))
            );
        }
    }
    Ok(())
}

fn change(program: &Path, kind: &str) -> io::Result<Outcome> {
    let first = Postgres::start("")?;
    let second = first.standby()?;
    let ports = [first.port, second.port];
    first.sql(&format!(
        "create table t (x int); create table nodes as select '127.0.0.1' endpoint, port \
         from unnest(array[{}, {}]) port",
        ports[0], ports[1]
    ))?;
    let entry = format!(
        "app = host=127.0.0.1 port={} dbname=postgres user=postgres pool_size=20 \
         topology_query='select endpoint, port from nodes'",
        ports[0]
    );
    let pooler = Pooler::start(program, &entry, "pool_mode = transaction")?;
    let standby_ready = || pooler.log().is_ok_and(|log| log.contains("up as reader"));
    wait_until("standby", standby_ready)?;
    let epoch = Instant::now();
    let phase = Arc::new(AtomicUsize::new(0));
    let lost = Arc::new(AtomicUsize::new(0));
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(Client::connect(pooler.port, "app")?);
    }
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (phase, lost, port) = (Arc::clone(&phase), Arc::clone(&lost), pooler.port);
            let done = Arc::new(AtomicU64::new(0));
            let mark = Arc::clone(&done);
            std::thread::spawn(move || write(port, &phase, &lost, &mark, epoch));
            done
        })
        .collect();
    std::thread::sleep(Duration::from_secs(2));
    if kind == "planned" {
        first.stop("fast")?
    } else {
        first.kill()?
    }
    wait_until("hold", || pooler.log().is_ok_and(|log| log.contains("holding clients")))?;
    phase.store(1, Ordering::SeqCst);
    let port = second.port;
    let direct = std::thread::spawn(move || -> io::Result<Instant> {
        let mut client = Client::connect(port, "postgres")?;
        while client.run(INSERT).is_err() {}
        Ok(Instant::now())
    });
    second.promote()?;
    let accepted = direct.join().map_err(|_| io::Error::other("a panic"))??;
    wait_until("writers", || writers.iter().all(|mark| mark.load(Ordering::SeqCst) > 0))?;
    phase.store(2, Ordering::SeqCst);
    let idle_errors = idle.iter_mut().filter_map(|client| client.run("select 1").err()).count();
    let stall = |mark: &Arc<AtomicU64>| {
        let at = epoch + Duration::from_micros(mark.load(Ordering::SeqCst));
        at.saturating_duration_since(accepted)
    };
    let stalls = writers.iter().map(stall).collect();
    Ok(Outcome { stalls, disconnected: lost.load(Ordering::SeqCst), idle_errors })
}

/// Writes without a pause; marks the first success after the old writer's end.
fn write(port: u16, phase: &AtomicUsize, lost: &AtomicUsize, mark: &AtomicU64, epoch: Instant) {
    let mut client = None;
    while phase.load(Ordering::SeqCst) < 2 {
        let result = match &mut client {
            None => Client::connect(port, "app").map(|fresh| client = Some(fresh)),
            Some(open) => {
                let began = phase.load(Ordering::SeqCst);
                let result = open.run(INSERT);
                if result.is_ok() && began == 1 && mark.load(Ordering::SeqCst) == 0 {
                    mark.store(epoch.elapsed().as_micros() as u64, Ordering::SeqCst);
                }
                result
            }
        };
        if result.is_err() && client.take().is_some() {
            lost.fetch_add(1, Ordering::SeqCst);
        }
    }
}
