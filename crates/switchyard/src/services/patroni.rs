//! Patroni's REST interface: a hint at who leads, and the wish that another member should.
//!
//! A hint decides nothing. Where it names another leader than the writer, all nodes are asked at
//! once; what it says otherwise, wrongly, late or not at all changes nothing.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use switchyard_config::{HttpUrl, reason};
use switchyard_core::switchover::cluster::Cluster;
use switchyard_core::switchover::probe::SignalKind;
use switchyard_core::switchover::topology::Endpoint;
use switchyard_core::switchover::view::NodeView;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{sleep, timeout};

use super::promote::Order;
use super::{Input, lock};

/// Pause between two looks at the interface.
const INTERVAL: Duration = Duration::from_millis(500);
/// Longest wait for an answer to a look.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest answer, in bytes.
const ANSWER_MAX: usize = 256 * 1024;
/// Most of a refusal that is told, in characters.
const REASON_MAX: usize = 300;

/// A member of Patroni's cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: String,
    endpoint: Option<Endpoint>,
    leads: Leads,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leads {
    Yes,
    No,
}

/// An answer of the interface.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// Looks at the interface for as long as the cluster is watched.
pub(super) async fn watch(
    urls: Vec<HttpUrl>,
    machine: Arc<Mutex<Cluster>>,
    inputs: UnboundedSender<Input>,
) {
    let mut first = 0;
    loop {
        sleep(INTERVAL).await;
        for step in 0..urls.len() {
            let at = (first + step) % urls.len();
            let Some(members) = members(&urls[at], PATIENCE).await else { continue };
            first = at;
            let differs = {
                let machine = lock(&machine);
                let leader = members.iter().find(|member| member.leads == Leads::Yes);
                leader.is_some_and(|leader| !leader.is_any(machine.view().writer_node()))
            };
            if differs && inputs.send(Input::Signal(None, SignalKind::Topology)).is_err() {
                return;
            }
            break;
        }
    }
}

/// Asks for a switchover; comes back when Patroni has answered.
pub(super) async fn hand_over(
    urls: &[HttpUrl],
    order: &Order,
    target: &Endpoint,
) -> Result<(), String> {
    let mut reason = "no Patroni answers".to_owned();
    for url in urls {
        let Some(members) = members(url, PATIENCE).await else { continue };
        let named = members.iter().find(|member| member.name == order.name);
        let there = || members.iter().find(|member| member.endpoint.as_ref() == Some(target));
        let Some(candidate) = named.or_else(there) else {
            reason = format!("Patroni does not know node {}", order.name);
            continue;
        };
        let leader = members.iter().find(|member| member.leads == Leads::Yes);
        let leader = leader.map_or(&order.old, |leader| &leader.name);
        let wish = json!({"leader": leader, "candidate": candidate.name}).to_string();
        let left = order.deadline.saturating_duration_since(Instant::now());
        // From here on it may have happened: nobody else is asked.
        return match ask(url, "POST", "/switchover", &wish, left).await {
            Ok(Answer { status: 200..=299, .. }) => Ok(()),
            Ok(answer) => Err(format!("Patroni: {}: {}", answer.status, answer.text())),
            Err(text) => Err(format!("Patroni: {text}")),
        };
    }
    Err(reason)
}

async fn members(url: &HttpUrl, patience: Duration) -> Option<Vec<Member>> {
    let answer = ask(url, "GET", "/cluster", "", patience).await.ok()?;
    (answer.status == 200).then(|| read_members(&answer.body)).flatten()
}

fn read_members(body: &[u8]) -> Option<Vec<Member>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let member = |value: &Value| {
        let host = value.get("host").and_then(Value::as_str);
        let port = value.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
        let endpoint = host.zip(port).map(|(host, port)| Endpoint { host: host.into(), port });
        let role = value.get("role").and_then(Value::as_str);
        let leads = if matches!(role, Some("leader" | "master")) { Leads::Yes } else { Leads::No };
        Some(Member { name: value.get("name")?.as_str()?.to_owned(), endpoint, leads })
    };
    Some(value.get("members")?.as_array()?.iter().filter_map(member).collect())
}

impl Member {
    /// Whether it is this node.
    fn is_any(&self, node: Option<&NodeView>) -> bool {
        node.is_some_and(|node| {
            let at = Endpoint { host: node.host.clone(), port: node.port };
            self.name == node.name || self.endpoint.as_ref() == Some(&at)
        })
    }
}

impl Answer {
    /// The body in one line.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        text.chars().take(REASON_MAX).collect()
    }

    /// Reads an answer that has come whole.
    fn read(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut words = head.lines().next()?.split(' ');
        words.next().filter(|version| version.starts_with("HTTP/1."))?;
        let status = words.next()?.parse().ok()?;
        Some(Answer { status, body: bytes[end + 4..].to_vec() })
    }

    /// Where the answer ends, if its head has come and says so.
    fn end(bytes: &[u8]) -> Option<usize> {
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let text = std::str::from_utf8(&bytes[..head]).ok()?;
        let mut fields = text.lines().filter_map(|line| line.split_once(':'));
        let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?.1;
        head.checked_add(4)?.checked_add(length.trim().parse().ok()?)
    }
}

/// One request on a connection of its own.
async fn ask(
    url: &HttpUrl,
    method: &str,
    path: &str,
    body: &str,
    patience: Duration,
) -> Result<Answer, String> {
    let asking = async {
        let lost = |error: std::io::Error| reason(&error);
        let mut stream = TcpStream::connect((url.host.as_str(), url.port)).await.map_err(lost)?;
        let authority = url.authority();
        // Version 1.0: nobody answers in chunks, or keeps the connection.
        let mut text = format!("{method} {path} HTTP/1.0\r\nHost: {authority}\r\n");
        if let Some(credentials) = &url.credentials {
            text.push_str(&format!("Authorization: Basic {}\r\n", STANDARD.encode(credentials)));
        }
        if !body.is_empty() {
            let length = body.len();
            text.push_str("Content-Type: application/json\r\n");
            text.push_str(&format!("Content-Length: {length}\r\n"));
        }
        text.push_str("\r\n");
        text.push_str(body);
        stream.write_all(text.as_bytes()).await.map_err(lost)?;
        let mut answer = Vec::new();
        while Answer::end(&answer).is_none_or(|end| answer.len() < end) {
            if stream.read_buf(&mut answer).await.map_err(lost)? == 0 {
                break;
            }
            if answer.len() > ANSWER_MAX {
                return Err("the answer is too long".to_owned());
            }
        }
        Answer::read(&answer).ok_or_else(|| "no HTTP".to_owned())
    };
    timeout(patience, asking).await.unwrap_or_else(|_| Err("no answer in time".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_cluster_and_what_is_none() {
        let text = r#"{"members": [{"name": "n1", "role": "leader", "host": "a", "port": 1},
            {"name": "n2", "role": "sync_standby", "port": "x"}, {"role": "leader"}],
            "scope": "s"}"#;
        let members = read_members(text.as_bytes()).unwrap_or_default();
        let endpoint = Some(Endpoint { host: "a".into(), port: 1 });
        let one = Member { name: "n1".into(), endpoint, leads: Leads::Yes };
        let two = Member { name: "n2".into(), endpoint: None, leads: Leads::No };
        assert_eq!(members, [one, two]);
        for text in ["", "[]", "{}", r#"{"members": 1}"#, "\u{0}"] {
            assert_eq!(read_members(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn answers() {
        let read = |text: &str| Answer::read(text.as_bytes()).map(|a| (a.status, a.text()));
        let good = "HTTP/1.0 412 Precondition\r\nX: y\r\n\r\nno\n  way";
        assert_eq!(read(good), Some((412, "no way".into())));
        assert_eq!(Answer::end(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 3\r\n\r\nab"), Some(41));
        for text in ["", "HTTP/1.0 200 OK\r\n", "HTTP/1.0 x\r\n\r\n", "SSH-2.0\r\n\r\n"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
