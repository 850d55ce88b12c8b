//! A session that stays open: psql behind pipes.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::postgres;

/// A session.
#[derive(Debug)]
pub struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Line that psql prints behind each answer.
const END: &str = "--end of answer--";

impl Session {
    /// Opens one; it is there when its first answer is.
    pub fn open(port: u16, user: &str, database: &str) -> io::Result<Self> {
        let mut child = Command::new(postgres::programs()?.join("psql"))
            .env("PGPASSWORD", "secret")
            .args(["-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-U", user, "-d", database])
            .args(["-p", &port.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = pipes else {
            return Err(io::Error::other("psql without pipes"));
        };
        Ok(Session { child, input, output: BufReader::new(output) })
    }

    /// Runs SQL; answers its rows. An error of the server makes the answer empty, the end of the
    /// connection is an error.
    pub fn run(&mut self, sql: &str) -> io::Result<String> {
        writeln!(self.input, "{sql};\n\\echo {END}")?;
        self.input.flush()?;
        let mut answer = String::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if line.trim_end() == END {
                return Ok(answer.trim_end().to_owned());
            }
            answer.push_str(&line);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
