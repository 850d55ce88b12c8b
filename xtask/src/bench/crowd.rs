//! Nearly ten thousand clients: what they cost while they are silent, and how evenly they are
//! served when all of them ask at the same moment.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use switchyard_testkit::Postgres;

use super::{Plan, Subject, start};

/// Clients; the descriptors of one process go no further by default on many systems.
const CLIENTS: usize = 9900;
/// How long their silence is measured.
const SILENCE: Duration = Duration::from_secs(10);
/// Longest wait for all answers.
const PATIENCE: Duration = Duration::from_secs(120);
/// A query that takes about as long as a short transaction.
const QUERY: &[u8] = b"Q\0\0\0\x1bselect pg_sleep(0.001)\0";
/// Its answer ends with this.
const READY: &[u8] = b"Z\0\0\0\x05I";

/// Measures each subject once.
pub(super) fn run(plan: &Plan, subjects: &[Subject], server: &Postgres) -> io::Result<()> {
    let settings = format!("max_client_conn = {}\nclient_idle_timeout = 0", CLIENTS + 100);
    for subject in subjects {
        let pooler = start(subject, server, &settings)?;
        pooler.sql("postgres", "postgres", "select 1")?;
        let before = pooler.resident()?;
        let mut clients = Vec::with_capacity(CLIENTS);
        for _ in 0..CLIENTS {
            clients.push(login(pooler.port)?);
        }
        let grown = pooler.resident()?.saturating_sub(before) as f64 / CLIENTS as f64;
        println!("| KiB per idle client of {CLIENTS} | {} | {grown:.2} | |", subject.name);
        let (cpu, since) = (pooler.cpu()?, Instant::now());
        std::thread::sleep(SILENCE);
        let percent = (pooler.cpu()? - cpu).as_secs_f64() / since.elapsed().as_secs_f64() * 100.0;
        println!("| % CPU of {CLIENTS} idle clients | {} | {percent:.2} | |", subject.name);
        for _ in 0..plan.rounds.max(1) {
            let mut waits = ask_all(&mut clients)?;
            waits.sort_unstable();
            let at = |percent: usize| waits[(waits.len() - 1) * percent / 100].as_secs_f64();
            let (half, most) = (at(50) * 1000.0, at(99) * 1000.0);
            println!(
                "| ms until served, p50 / p99 / ratio, of {} that ask at once | {} | {half:.0} / \
                 {most:.0} / {:.2} | |",
                waits.len(),
                subject.name,
                most / half
            );
        }
    }
    Ok(())
}

/// A client without anything around its socket: two descriptors each would be too many.
fn login(port: u16) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0")?;
    let (mut answer, mut part) = (Vec::new(), [0; 1024]);
    while !answer.ends_with(READY) {
        let count = stream.read(&mut part)?;
        if count == 0 {
            return Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
        }
        answer.extend_from_slice(&part[..count]);
    }
    Ok(stream)
}

/// All ask at once; answers how long each waited.
fn ask_all(clients: &mut [TcpStream]) -> io::Result<Vec<Duration>> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, client) in clients.iter().enumerate() {
        epoll::add(&poll, client, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
    }
    let mut asked = Vec::with_capacity(clients.len());
    for client in clients.iter_mut() {
        asked.push(Instant::now());
        client.write_all(QUERY)?;
    }
    let started = Instant::now();
    let mut answers = vec![Vec::new(); clients.len()];
    let (mut waits, mut part) = (Vec::with_capacity(clients.len()), [0; 4096]);
    while waits.len() < clients.len() {
        if started.elapsed() > PATIENCE {
            let text = format!("{} of {} were served", waits.len(), clients.len());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let mut events = Vec::with_capacity(1024);
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&second))?;
        let now = Instant::now();
        for event in events {
            let index = event.data.u64() as usize;
            let count = clients[index].read(&mut part)?;
            if count == 0 {
                return Err(io::Error::other("a client was closed"));
            }
            answers[index].extend_from_slice(&part[..count]);
            if answers[index].ends_with(READY) {
                waits.push(now - asked[index]);
            }
        }
    }
    Ok(waits)
}
