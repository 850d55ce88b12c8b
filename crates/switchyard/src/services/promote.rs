//! Promotion of a node, by a program of the operator's, by Patroni or by `pg_promote`.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use switchyard_config::{HttpUrl, reason};
use switchyard_core::switchover::topology::Endpoint;
use tokio::time::timeout;

use super::dial::Way;
use super::patroni;
use super::probe::{Connection, Phase};

/// What is to be done.
pub(super) struct Order {
    /// The program with its arguments; without one Patroni is asked, and without that as well
    /// `pg_promote` is called.
    pub(super) command: Option<String>,
    /// Patroni's interfaces.
    pub(super) patroni: Vec<HttpUrl>,
    /// The node's name.
    pub(super) name: String,
    /// Name of the writer that goes.
    pub(super) old: String,
    /// When nobody waits any more.
    pub(super) deadline: Instant,
}

/// Pause between two looks at a program.
const LOOK: Duration = Duration::from_millis(5);
/// Most of a program's output that is told.
const OUTPUT_MAX: u64 = 500;

/// Promotes.
pub(super) async fn run(order: Order, way: &Way) -> Result<(), String> {
    let Some(command) = &order.command else {
        if !order.patroni.is_empty() {
            return patroni::hand_over(&order.patroni, &order, &way.endpoint).await;
        }
        return by_sql(&order, way).await;
    };
    let words = arguments(command, &order, &way.endpoint)?;
    let deadline = order.deadline;
    let (done, end) = tokio::sync::oneshot::channel();
    // A program may take minutes: it has a thread of its own for as long as it lasts.
    std::thread::spawn(move || {
        // Nobody waits any more if this fails.
        let _ = done.send(by_program(&words, deadline));
    });
    end.await.unwrap_or_else(|_| Err("the program was lost".into()))
}

async fn by_sql(order: &Order, way: &Way) -> Result<(), String> {
    let left = order.deadline.saturating_duration_since(Instant::now());
    let sql = format!("select pg_promote(true, {})", left.as_secs().clamp(1, 3600));
    let asking = async {
        let mut connection = Connection::open(way, &Mutex::new(Phase::Asking)).await?;
        connection.value(&sql).await
    };
    match timeout(left, asking).await {
        Ok(Ok(Some(answer))) if answer == "t" => Ok(()),
        Ok(Ok(_)) => Err("pg_promote has not finished in time".into()),
        Ok(Err(failure)) => Err(failure.text),
        Err(_) => Err("no answer in time".into()),
    }
}

/// The words of a command: separated by blanks, or quoted; with %h, %p, %n and %o filled in.
fn arguments(command: &str, order: &Order, at: &Endpoint) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            ('%', _) => word.get_or_insert_default().push_str(&match chars.next() {
                Some('h') => at.host.clone(),
                Some('p') => at.port.to_string(),
                Some('n') => order.name.clone(),
                Some('o') => order.old.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            }),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if words.is_empty() { Err("promote_command is empty".into()) } else { Ok(words) }
}

fn by_program(words: &[String], deadline: Instant) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("promote_command is empty")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{program}: {}", reason(&error)))?;
    let errors = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let mut errors = errors?;
        // What cannot be read is not told.
        let _ = (&mut errors).take(OUTPUT_MAX).read_to_string(&mut text);
        let _ = std::io::copy(&mut errors, &mut std::io::sink());
        Some(text)
    });
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::park_timeout(LOOK),
            Ok(None) => {
                // It may end by itself at this moment.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program} has not ended in time"));
            }
            Err(error) => return Err(format!("{program}: {}", reason(&error))),
        }
    };
    if status.success() {
        return Ok(());
    }
    let text = reader.join().ok().flatten().unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(format!("{program}: {status}{}{text}", if text.is_empty() { "" } else { ": " }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_words_with_places_filled_in() {
        let order = Order {
            command: None,
            patroni: Vec::new(),
            name: "n2".into(),
            old: "n1".into(),
            deadline: Instant::now(),
        };
        let at = Endpoint { host: "10.0.0.2".into(), port: 5433 };
        let words = arguments("ctl 'a b' --to=%n:%p -h %h \"%o\" 100%% ''", &order, &at);
        let wanted = ["ctl", "a b", "--to=n2:5433", "-h", "10.0.0.2", "n1", "100%", ""];
        assert_eq!(words, Ok(wanted.map(str::to_owned).to_vec()));
        assert!(arguments("  ", &order, &at).is_err());
    }
}
