//! The connection on which one node is asked: login, the cheap question (an empty Sync), the full
//! question, and the topology query. It is kept open, so that its end is noticed at once.

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use switchyard_auth::secret::Secret;
use switchyard_core::server::login::{Credentials, ServerLogin, ServerLoginError, ServerLoginStep};
use switchyard_core::switchover::planned::PromotionId;
use switchyard_core::switchover::probe::{
    Answer, Cheap, Facts, Failure, FailureKind, ProbeId, Proof, Question, Status, Stream,
    TopologyId, Via,
};
use switchyard_core::switchover::topology;
use switchyard_core::switchover::view::NodeId;
use switchyard_wire::tag::{backend, frontend};
use switchyard_wire::{build, frame, read};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::dial::{Socket, Way, dial, failure, lost};
use super::{Input, lock};
use crate::options;
use crate::tls::setup::ServerSide;

/// How probes log in and what they ask.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeLogin {
    /// User.
    pub user: String,
    /// Its secret.
    pub secret: Option<Secret>,
    /// Database at the server.
    pub database: String,
    /// TLS towards the node.
    pub tls: ServerSide,
    /// The question for the role.
    pub recovery_query: String,
}

/// What a node's task is told.
#[derive(Debug)]
pub(super) enum Request {
    Ask { id: ProbeId, question: Question, via: Via, deadline: Instant },
    Topology { id: TopologyId, sql: String },
    Verify(PromotionId),
}

/// Longest topology query, and longest sleep without anything to do.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Longest check of a new writer.
const VERIFY: Duration = Duration::from_secs(1);
/// Why a connection is given up that nobody has closed.
const MOVED: &str = "the name has another address";
/// The question for the role that makes the cheap question enough.
const DEFAULT_RECOVERY: &str = "select pg_is_in_recovery()";
/// Longest message of a node, in bytes.
const MESSAGE_MAX: usize = 1 << 20;
/// Most rows of a result.
const ROWS_MAX: usize = 10_000;

/// What a node tells of itself beside its role, from the most to the least that a user may ask.
/// A standby's timeline is that of its stream; `pg_control_checkpoint()` lags behind a promotion,
/// so a writer's is read from the name of its current WAL file.
const FACTS: [&str; 2] = [
    "select (select system_identifier from pg_control_system())::text, \
     case when pg_is_in_recovery() then coalesce((select received_tli from pg_stat_wal_receiver), \
     (select timeline_id from pg_control_checkpoint()))::text \
     else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int::text end, \
     (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end \
     - '0/0'::pg_lsn)::text, \
     (extract(epoch from pg_postmaster_start_time()) * 1000000)::int8::text, \
     case when pg_is_in_recovery() then (select count(*) from pg_stat_wal_receiver)::text end, \
     current_setting('transaction_read_only')",
    "select null, case when pg_is_in_recovery() then null \
     else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int::text end, \
     null, null, null, current_setting('transaction_read_only')",
];

/// What the node has reported of its role on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    /// It does not tell.
    Silent,
    /// `in_hot_standby` as at the last full question.
    Steady,
    /// It has changed since.
    Changed,
}

/// A connection to a node.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    /// The address that the node's name led to.
    named: Option<IpAddr>,
    input: Vec<u8>,
    /// Answers that end with ReadyForQuery and have not come.
    owed: u32,
    report: Report,
    /// First statement of [`FACTS`] that the user may run.
    level: usize,
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
    error: Option<Failure>,
}

/// Serves one node until its sender is dropped.
pub(super) async fn serve(
    node: NodeId,
    way: Way,
    mut requests: UnboundedReceiver<Request>,
    inputs: UnboundedSender<Input>,
) {
    let mut connection: Option<Connection> = None;
    let mut lister: Option<UnboundedSender<(TopologyId, String)>> = None;
    let mut last = ProbeId(0);
    loop {
        let request = match &mut connection {
            None => requests.recv().await,
            Some(open) => tokio::select! {
                biased;
                request = requests.recv() => request,
                gone = open.end(&way) => {
                    connection = None;
                    let _ = inputs.send(Input::Answer(node, last, Answer::Failed(gone)));
                    continue;
                }
            },
        };
        match request {
            None => return,
            Some(Request::Ask { id, question, via, deadline }) => {
                // On a new connection nothing is as it was.
                let question = if connection.is_none() { Question::Full } else { question };
                if question == Question::Full {
                    way.names.refresh(&way.endpoint.host);
                }
                if via == Via::Fresh {
                    connection = None;
                }
                last = id;
                let phase = Mutex::new(Phase::Asking);
                let asking = ask(&mut connection, &way, question, &phase);
                let answer = match tokio::time::timeout_at(deadline.into(), asking).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(failure)) => {
                        connection = None;
                        Answer::Failed(failure)
                    }
                    Err(_) => Answer::Failed(failure(FailureKind::Timeout, lock(&phase).text())),
                };
                let _ = inputs.send(Input::Answer(node, id, answer));
            }
            Some(Request::Topology { id, sql }) => {
                let lister = lister.get_or_insert_with(|| {
                    let (sender, wishes) = unbounded_channel();
                    tokio::spawn(list(way.clone(), wishes, inputs.clone()));
                    sender
                });
                let _ = lister.send((id, sql));
            }
            Some(Request::Verify(id)) => {
                let checking = verify(&mut connection, &way);
                let result = match tokio::time::timeout(VERIFY, checking).await {
                    Ok(result) => result.map_err(|failure| failure.text),
                    Err(_) => Err("no answer in time".into()),
                };
                let _ = inputs.send(Input::Verified(id, result));
            }
        }
    }
}

/// Opens a transaction that could write, and ends it: on the open connection, because clients wait
/// and a new one takes longer than everything else.
async fn verify(connection: &mut Option<Connection>, way: &Way) -> Result<(), Failure> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(Connection::open(way, &Mutex::new(Phase::Asking)).await?),
    };
    let result = open.value("begin read write; rollback").await;
    if open.owed > 0 {
        *connection = None;
    }
    result.map(drop)
}

/// Runs topology queries on a connection of their own: a slow one must not look like a node that
/// does not answer.
async fn list(
    way: Way,
    mut wishes: UnboundedReceiver<(TopologyId, String)>,
    inputs: UnboundedSender<Input>,
) {
    let mut connection: Option<Connection> = None;
    loop {
        let wish = match &mut connection {
            None => wishes.recv().await,
            Some(open) => tokio::select! {
                biased;
                wish = wishes.recv() => wish,
                _ = open.end(&way) => {
                    connection = None;
                    continue;
                }
            },
        };
        let Some((id, sql)) = wish else { return };
        let running = run_topology(&mut connection, &way, &sql);
        let rows = match tokio::time::timeout(PATIENCE, running).await {
            Ok(rows) => rows,
            Err(_) => {
                connection = None;
                Err("no answer in time".into())
            }
        };
        let _ = inputs.send(Input::Topology(id, rows));
    }
}

async fn run_topology(
    connection: &mut Option<Connection>,
    way: &Way,
    sql: &str,
) -> Result<Vec<topology::TopologyRow>, String> {
    let open = match connection {
        Some(open) => open,
        None => {
            let phase = Mutex::new(Phase::Asking);
            let opened = Connection::open(way, &phase).await.map_err(|failure| failure.text)?;
            connection.insert(opened)
        }
    };
    let result = match open.query(sql).await {
        Ok(()) => match open.error.take() {
            Some(error) => Err(error.text),
            None => {
                let rows = std::mem::take(&mut open.rows);
                return Ok(topology::rows(&open.columns, rows));
            }
        },
        Err(failure) => Err(failure.text),
    };
    if result.is_err() && open.owed > 0 {
        *connection = None;
    }
    result
}

/// How far a question has come: tells a host that does not answer from a server that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits for its answer on an open connection.
    Asking,
    /// It waits for a connection.
    Dialling,
    /// It waits for the greeting on a connection.
    Greeting,
}

impl Phase {
    fn text(self) -> &'static str {
        match self {
            Phase::Asking => "no answer in time",
            Phase::Dialling => "no connection in time: the host does not answer",
            Phase::Greeting => "connected, but the server does not answer",
        }
    }
}

async fn ask(
    connection: &mut Option<Connection>,
    way: &Way,
    question: Question,
    phase: &Mutex<Phase>,
) -> Result<Answer, Failure> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(Connection::open(way, phase).await?),
    };
    match question {
        Question::Cheap => {
            let mut bytes = Vec::new();
            build::empty(&mut bytes, frontend::SYNC);
            open.exchange(&bytes).await?;
            match open.report {
                Report::Changed => Ok(Answer::Promoted),
                Report::Steady | Report::Silent => Ok(Answer::Same),
            }
        }
        Question::Full => open.facts(&way.login).await.map(Answer::Full),
    }
}

impl Connection {
    /// Connects and logs in.
    pub(super) async fn open(way: &Way, phase: &Mutex<Phase>) -> Result<Self, Failure> {
        *lock(phase) = Phase::Dialling;
        let (socket, named) = dial(way, || *lock(phase) = Phase::Greeting).await?;
        let mut connection = Connection {
            socket,
            named,
            input: Vec::new(),
            owed: 0,
            report: Report::Silent,
            level: 0,
            columns: Vec::new(),
            rows: Vec::new(),
            error: None,
        };
        connection.log_in(&way.login).await?;
        *lock(phase) = Phase::Asking;
        Ok(connection)
    }

    async fn log_in(&mut self, login: &ProbeLogin) -> Result<(), Failure> {
        let parameters = vec![
            ("database".to_string(), login.database.clone()),
            ("application_name".to_string(), "switchyard-probe".to_string()),
        ];
        let credentials = Credentials {
            user: login.user.clone(),
            secret: login.secret.clone(),
            keys: None,
            nonce: options::nonce(),
        };
        let mut dialogue = ServerLogin::new(parameters, credentials);
        let mut out = Vec::new();
        dialogue.start(&mut out);
        loop {
            self.send(&out).await?;
            out.clear();
            let (tag, body) = self.message().await?;
            match dialogue.handle_message(tag, &body, &mut out) {
                Ok(ServerLoginStep::More) => {}
                Ok(ServerLoginStep::Derive(work)) => {
                    let keys = if work.is_quick() {
                        work.run()
                    } else {
                        let keys = tokio::task::spawn_blocking(move || work.run()).await;
                        keys.map_err(|error| lost(&error.into()))?
                    };
                    let denied = |_| failure(FailureKind::Denied, "no answer to SCRAM");
                    dialogue.derived(&keys, &mut out).map_err(denied)?;
                }
                Ok(ServerLoginStep::Done(welcome)) => {
                    let tells = |(name, _): &(Vec<u8>, Vec<u8>)| name == b"in_hot_standby";
                    if welcome.parameters.iter().any(tells) {
                        self.report = Report::Steady;
                    }
                    return Ok(());
                }
                Err(ServerLoginError::Refused { sqlstate, message, .. }) => {
                    let starting = sqlstate == "57P03";
                    let kind = if starting { FailureKind::Refused } else { FailureKind::Denied };
                    return Err(failure(kind, message));
                }
                Err(ServerLoginError::CannotAnswer(text, _)) => {
                    return Err(failure(FailureKind::Denied, text));
                }
                Err(ServerLoginError::Broken(text)) => {
                    return Err(failure(FailureKind::Denied, text));
                }
            }
        }
    }

    async fn facts(&mut self, login: &ProbeLogin) -> Result<Facts, Failure> {
        let role = login.recovery_query.trim().trim_end_matches(';');
        if self.report == Report::Changed {
            self.report = Report::Steady;
        }
        loop {
            let more = FACTS.get(self.level);
            let sql = more.map_or(role.to_owned(), |more| format!("{role}; {more}"));
            self.query(&sql).await?;
            let error = self.error.take();
            if let Some(error) = &error
                && error.kind == FailureKind::Closed
            {
                return Err(error.clone());
            }
            let rows = std::mem::take(&mut self.rows);
            if error.is_some() && !rows.is_empty() && self.level < FACTS.len() {
                // Something that this role may not ask, or a server that does not know it.
                self.level += 1;
                continue;
            }
            let cell = |row: usize, column: usize| rows.get(row)?.get(column)?.as_deref();
            let cheap = self.report != Report::Silent && role == DEFAULT_RECOVERY;
            return Ok(Facts {
                status: Status::of(cell(0, 0)),
                system: cell(1, 0).and_then(|text| text.parse().ok()),
                timeline: cell(1, 1).and_then(|text| text.parse().ok()),
                lsn: cell(1, 2).and_then(|text| text.parse().ok()),
                started: cell(1, 3).and_then(|text| text.parse().ok()),
                cheap: if cheap { Cheap::Enough } else { Cheap::TooLittle },
                stream: match cell(1, 4) {
                    None => Stream::Unknown,
                    Some("0") => Stream::Broken,
                    Some(_) => Stream::Flowing,
                },
                proof: match cell(1, 5) {
                    None => Proof::Unknown,
                    Some("off") => Proof::Writes,
                    Some(_) => Proof::ReadOnly,
                },
            });
        }
    }

    /// Runs SQL; answers the first column of its first row.
    pub(super) async fn value(&mut self, sql: &str) -> Result<Option<String>, Failure> {
        self.query(sql).await?;
        match self.error.take() {
            Some(error) => Err(error),
            None => Ok(self.rows.first().and_then(|row| row.first()?.clone())),
        }
    }

    async fn query(&mut self, sql: &str) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        build::query(&mut bytes, sql.as_bytes());
        self.exchange(&bytes).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.socket.write_all(bytes).await.map_err(|error| lost(&error))?;
        // TLS may have kept what the socket did not take at once.
        self.socket.flush().await.map_err(|error| lost(&error))
    }

    /// Sends and reads until everything that is owed has come; what came last is kept.
    async fn exchange(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.owed += 1;
        self.send(bytes).await?;
        while self.owed > 0 {
            let (tag, body) = self.message().await?;
            self.take(tag, &body)?;
        }
        Ok(())
    }

    /// Waits for the end of a connection on which nothing is asked: it is lost, or it does not
    /// lead to where the node's name leads.
    async fn end(&mut self, way: &Way) -> Failure {
        let named = self.named;
        tokio::select! {
            biased;
            lost = self.idle() => lost,
            () = way.until_moved(named) => failure(FailureKind::Closed, MOVED),
        }
    }

    /// Watches a connection on which nothing is asked; comes back when it is lost.
    async fn idle(&mut self) -> Failure {
        loop {
            let result = self.message().await;
            match result.and_then(|(tag, body)| self.take(tag, &body)) {
                Ok(()) if self.error.is_none() => {}
                Ok(()) => return failure(FailureKind::Closed, "the server is shutting down"),
                Err(failure) => return failure,
            }
        }
    }

    fn take(&mut self, tag: u8, body: &[u8]) -> Result<(), Failure> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match tag {
            backend::READY_FOR_QUERY => {
                self.owed = self.owed.saturating_sub(1);
                if self.owed > 0 {
                    // The late answer to an earlier question is nobody's.
                    self.rows.clear();
                    self.error = None;
                }
            }
            backend::PARAMETER_STATUS => {
                let pair = read::parameter_status(body);
                if pair.is_some_and(|(name, _)| name == b"in_hot_standby") {
                    self.report = Report::Changed;
                }
            }
            backend::ROW_DESCRIPTION => {
                self.columns = read::row_description(body).map(text).collect();
            }
            backend::DATA_ROW if self.rows.len() < ROWS_MAX => {
                self.rows.push(read::data_row(body).map(|cell| cell.map(text)).collect());
            }
            backend::ERROR => {
                let code = read::field(body, b'C').unwrap_or_default();
                let fatal = code.starts_with(b"57P");
                let kind = if fatal { FailureKind::Closed } else { FailureKind::Denied };
                let message = text(read::field(body, b'M').unwrap_or_default());
                if fatal {
                    return Err(failure(kind, message));
                }
                self.error = Some(failure(kind, message));
            }
            _ => {}
        }
        Ok(())
    }

    /// The next message. Nothing is lost when the caller stops waiting.
    async fn message(&mut self) -> Result<(u8, Vec<u8>), Failure> {
        loop {
            let broken = |_| failure(FailureKind::Denied, "broken message");
            if let Some(head) = frame::peek(&self.input, MESSAGE_MAX).map_err(broken)?
                && self.input.len() >= head.len
            {
                let rest = self.input.split_off(head.len);
                let mut message = std::mem::replace(&mut self.input, rest);
                let body = message.split_off(frame::HEADER);
                return Ok((head.tag, body));
            }
            let count =
                self.socket.read_buf(&mut self.input).await.map_err(|error| lost(&error))?;
            if count == 0 {
                return Err(failure(FailureKind::Closed, "the server closed the connection"));
            }
        }
    }
}
