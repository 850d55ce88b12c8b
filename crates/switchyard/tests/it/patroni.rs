//! Patroni's REST interface as a hint and in switchovers: a small HTTP server that answers like it,
//! and others that answer garbage, slowly, without an end, or not at all.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use switchyard_testkit::{Client, Cluster, Pooler, wait_until};

const PORT: &str = "select inet_server_port()";

/// How the interface answers.
#[derive(Clone, Debug)]
enum Manner {
    /// With this status and body.
    Http(&'static str, String),
    /// With this and nothing more; then it hangs up.
    Bytes(&'static [u8]),
    /// A byte now and then.
    Slowly,
    /// Without an end.
    Endlessly,
    /// Not at all.
    Silently,
}

/// An interface. What it is asked is kept.
struct Interface {
    port: u16,
    looks: Arc<Mutex<Manner>>,
    wishes: Arc<Mutex<(Manner, Vec<String>)>>,
    asked: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers about a cluster with this leader.
fn led_by(cluster: &Cluster, leader: u16) -> Manner {
    let member = |port: u16| {
        let role = if port == leader { "leader" } else { "replica" };
        format!(
            "{{\"name\": \"n{port}\", \"role\": \"{role}\", \"state\": \"running\", \
             \"host\": \"127.0.0.1\", \"port\": {port}}}"
        )
    };
    let members: Vec<_> = cluster.nodes().iter().map(|node| member(node.port)).collect();
    Manner::Http("200 OK", format!("{{\"members\": [{}]}}", members.join(", ")))
}

impl Interface {
    fn start(looks: Manner) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let refuse = Manner::Http("503 Service Unavailable", String::new());
        let interface = Interface {
            port: listener.local_addr()?.port(),
            looks: Arc::new(Mutex::new(looks)),
            wishes: Arc::new(Mutex::new((refuse, Vec::new()))),
            asked: Arc::default(),
            ended: Arc::default(),
        };
        let (looks, wishes) = (Arc::clone(&interface.looks), Arc::clone(&interface.wishes));
        let (asked, ended) = (Arc::clone(&interface.asked), Arc::clone(&interface.ended));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                asked.fetch_add(1, Ordering::SeqCst);
                let (looks, wishes) = (Arc::clone(&looks), Arc::clone(&wishes));
                // Whoever asked may have given up.
                std::thread::spawn(move || drop(serve(stream, &looks, &wishes)));
            }
        });
        Ok(interface)
    }

    fn url(&self) -> String {
        format!("http://user:secret@127.0.0.1:{}", self.port)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(
    mut stream: TcpStream,
    looks: &Mutex<Manner>,
    wishes: &Mutex<(Manner, Vec<String>)>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::new();
    let wish = loop {
        let mut more = [0; 1024];
        let count = stream.read(&mut more)?;
        request.extend_from_slice(&more[..count]);
        let text = String::from_utf8_lossy(&request);
        if text.starts_with("GET") && text.ends_with("\r\n\r\n") {
            break None;
        }
        if text.starts_with("POST") && text.ends_with('}') {
            break Some(text.into_owned());
        }
        if count == 0 {
            return Ok(());
        }
    };
    let manner = match wish {
        None => lock(looks).clone(),
        Some(text) => {
            let mut wishes = lock(wishes);
            wishes.1.push(text);
            wishes.0.clone()
        }
    };
    match manner {
        Manner::Http(status, body) => {
            let length = body.len();
            write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {length}\r\n\r\n{body}")
        }
        Manner::Bytes(bytes) => stream.write_all(bytes),
        Manner::Slowly => loop {
            stream.write_all(b"H")?;
            std::thread::park_timeout(Duration::from_millis(100));
        },
        Manner::Endlessly => {
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 8192])?;
            }
        }
        // Until the other side has given up.
        Manner::Silently => stream.read(&mut [0]).map(drop),
    }
}

fn start(cluster: &Cluster, interfaces: &str, settings: &str) -> io::Result<Pooler> {
    let entry = format!("{} patroni_url={interfaces}", cluster.entry("app"));
    let settings = format!("pool_mode = transaction\n{settings}");
    let pooler = Pooler::start(super::program(), &entry, &settings)?;
    let readers = || pooler.log().is_ok_and(|log| log.matches("up as reader").count() > 1);
    wait_until("two standbys", readers)?;
    Ok(pooler)
}

#[test]
fn a_hint_makes_nodes_be_asked_at_once() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let (old, new) = (cluster.writer().port, cluster.nodes()[1].port);
    let interface = Interface::start(led_by(&cluster, old))?;
    // Nobody is asked anything for an hour, but for the full question.
    let rest = "polling_frequency = 3600\nrecovery_query = select pg_is_in_recovery() and true";
    let pooler = start(&cluster, &interface.url(), rest)?;
    let mut client = Client::connect(pooler.port, "app")?;
    assert_eq!(client.run(PORT)?, [old.to_string()]);
    wait_until("looks", || interface.asked() > 2)?;
    assert!(!pooler.log()?.contains("holding clients"));
    cluster.nodes()[1].promote()?;
    let looked = interface.asked();
    wait_until("looks", || interface.asked() > looked + 2)?;
    assert!(!pooler.log()?.contains("holding clients"), "nobody has told");
    let began = Instant::now();
    *lock(&interface.looks) = led_by(&cluster, new);
    wait_until("election", || {
        pooler.log().is_ok_and(|log| log.contains(&format!("new writer 127.0.0.1:{new}")))
    })?;
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(client.run(PORT)?, [new.to_string()]);
    Ok(())
}

#[test]
fn what_patroni_says_decides_nothing() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let cluster = Cluster::start()?;
    let (writer, other) = (cluster.writer().port, cluster.nodes()[1].port);
    let interface = Interface::start(led_by(&cluster, other))?;
    let pooler = start(&cluster, &interface.url(), "")?;
    let mut client = Client::connect(pooler.port, "app")?;
    let garbage = "{\"members\": [{\"name\": 7, \"role\": [\"leader\"], \"port\": 99999999}]}";
    let manners = [
        led_by(&cluster, other),
        led_by(&cluster, 1),
        Manner::Http("200 OK", garbage.into()),
        Manner::Http("200 OK", "]".into()),
        Manner::Http("500 No", "{}".into()),
        Manner::Bytes(b"\x00\xff\r\n\r\n"),
        Manner::Bytes(b"HTTP/1.0 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n"),
        Manner::Bytes(b""),
        Manner::Slowly,
        Manner::Endlessly,
        Manner::Silently,
    ];
    for manner in manners {
        *lock(&interface.looks) = manner.clone();
        let looked = interface.asked();
        wait_until("looks", || {
            client.run(PORT).is_ok_and(|port| port == [writer.to_string()])
                && interface.asked() > looked + 2
        })?;
    }
    assert!(!pooler.log()?.contains("holding clients"), "{}", pooler.log()?);
    assert_eq!(pooler.console("show switchovers")?, "");
    assert!(!pooler.log()?.contains("secret"), "no password is told");
    Ok(())
}

#[test]
fn a_switchover_is_patroni_s_to_do() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let mut cluster = Cluster::start()?;
    let (old, new) = (cluster.writer().port, cluster.nodes()[1].port);
    let interface = Interface::start(led_by(&cluster, old))?;
    // The first of them is not there; nothing is promoted by SQL where Patroni is in charge.
    let urls = format!("'http://127.0.0.1:1,{}'", interface.url());
    let pooler = start(&cluster, &urls, "promote_sql = 1\nquery_wait_timeout = 60")?;
    let mut client = Client::connect(pooler.port, "app")?;
    let mut admin = Client::connect(pooler.port, "pgbouncer")?;
    let order = format!("switchover app \"127.0.0.1:{new}\"");
    lock(&interface.wishes).0 = Manner::Http("412 No", "candidate name\n is wrong".into());
    let told = admin.run(&order).map_or_else(|error| error.to_string(), |rows| rows.join(" "));
    assert_eq!(told, "55000 promotion failed: Patroni: 412: candidate name is wrong");
    assert_eq!(client.run(PORT)?, [old.to_string()], "clients go on where they were");

    lock(&interface.wishes).0 = Manner::Http("200 OK", "Successfully switched over".into());
    let wishes = Arc::clone(&interface.wishes);
    let asked = std::thread::spawn(move || admin.run(&order));
    wait_until("a wish", || lock(&wishes).1.len() == 2)?;
    cluster.nodes()[1].promote()?;
    cluster.follow(new)?;
    asked.join().map_err(|_| io::Error::other("a panic"))??;
    assert_eq!(client.run(PORT)?, [new.to_string()]);
    let wish = lock(&interface.wishes).1.pop().unwrap_or_default();
    assert!(wish.starts_with("POST /switchover HTTP/1.0\r\n"), "{wish}");
    assert!(wish.contains("\r\nAuthorization: Basic dXNlcjpzZWNyZXQ=\r\n"), "{wish}");
    let body = wish.rsplit("\r\n").next().unwrap_or_default();
    let body: serde_json::Value = serde_json::from_str(body)?;
    assert_eq!(
        (&body["leader"], &body["candidate"]),
        (&serde_json::json!(format!("n{old}")), &serde_json::json!(format!("n{new}")),)
    );
    Ok(())
}
