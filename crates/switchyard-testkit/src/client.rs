//! A client without a library: simple queries over TCP, no password. For loads whose own cost must
//! stay small and whose every answer counts.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest wait for an answer; a client that is held longer is stuck.
const LONGEST: Duration = Duration::from_secs(60);

/// A connection.
#[derive(Debug)]
pub struct Client {
    pub(crate) output: TcpStream,
    pub(crate) input: BufReader<TcpStream>,
    ended: bool,
}

impl Client {
    /// Connects to 127.0.0.1 and logs in as `postgres`.
    pub fn connect(port: u16, database: &str) -> io::Result<Self> {
        let output = TcpStream::connect(("127.0.0.1", port))?;
        output.set_nodelay(true)?;
        output.set_read_timeout(Some(LONGEST))?;
        let input = BufReader::new(output.try_clone()?);
        let mut body = b"\0\x03\0\0user\0postgres\0database\0".to_vec();
        body.extend_from_slice(database.as_bytes());
        body.extend_from_slice(b"\0\0");
        let mut client = Client { output, input, ended: false };
        let mut message = (body.len() as u32 + 4).to_be_bytes().to_vec();
        message.append(&mut body);
        client.output.write_all(&message)?;
        client.answer()?;
        Ok(client)
    }

    /// Runs SQL; answers its rows, columns joined by `|`. An error of kind `Other` came from the
    /// server and leaves the connection usable, any other kind is its end.
    pub fn run(&mut self, sql: &str) -> io::Result<Vec<String>> {
        let mut message = vec![b'Q'];
        message.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
        message.extend_from_slice(sql.as_bytes());
        message.push(0);
        let answer = self.output.write_all(&message).and_then(|()| self.answer());
        self.ended = answer.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Other);
        answer
    }

    /// Whether the connection has not ended.
    pub fn is_open(&self) -> bool {
        !self.ended
    }

    /// Reads up to ReadyForQuery.
    fn answer(&mut self) -> io::Result<Vec<String>> {
        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            let mut head = [0; 5];
            self.input.read_exact(&mut head).map_err(|error| match &failure {
                Some(text) => io::Error::new(io::ErrorKind::UnexpectedEof, String::clone(text)),
                None => error,
            })?;
            let [tag, a, b, c, d] = head;
            let len = u32::from_be_bytes([a, b, c, d]) as usize;
            let mut body = vec![0; len.saturating_sub(4)];
            self.input.read_exact(&mut body)?;
            match tag {
                b'E' => failure = Some(complaint(&body)),
                b'D' => rows.push(row(&body)),
                b'Z' => return failure.map_or(Ok(rows), |text| Err(io::Error::other(text))),
                _ => {}
            }
        }
    }
}

/// SQLSTATE and text of an ErrorResponse.
pub(crate) fn complaint(body: &[u8]) -> String {
    let mut text = String::new();
    for field in body.split(|byte| *byte == 0) {
        if let Some((b'C' | b'M', value)) = field.split_first() {
            let gap = if text.is_empty() { "" } else { " " };
            text = format!("{text}{gap}{}", String::from_utf8_lossy(value));
        }
    }
    text
}

/// The columns of a DataRow.
pub(crate) fn row(body: &[u8]) -> String {
    let mut columns = Vec::new();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        // A NULL has the length -1 and no bytes.
        let len = usize::try_from(i32::from_be_bytes(*head)).unwrap_or(0).min(tail.len());
        let (value, after) = tail.split_at(len);
        columns.push(String::from_utf8_lossy(value).into_owned());
        rest = after;
    }
    columns.join("|")
}
