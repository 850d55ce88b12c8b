//! What a client is told about the loss of its server when operators ask for details
//! (`server_error_detail`): a SQLSTATE that drivers act on, and the cause.
//!
//! Not here: clients of clusters, who may stay (`client/lost`).

/// What is known of a server's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The connection ended without a word.
    Silent,
    /// The system's word for it.
    System(String),
    /// The server said so itself: SQLSTATE and text.
    Said([u8; 5], String),
}

/// SQLSTATEs by which a server tells that it shuts down.
const SHUTDOWN: &[u8] = b"57P";

impl Cause {
    /// The SQLSTATE for the client.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Cause::Said(code, _) if code.starts_with(SHUTDOWN) => "57P01",
            Cause::Said(..) | Cause::System(_) | Cause::Silent => "08006",
        }
    }

    /// The DETAIL for the client.
    pub fn detail(&self) -> String {
        match self {
            Cause::Silent => "The server has closed the connection without a word.".into(),
            Cause::System(text) => format!("The connection to the server failed: {text}."),
            Cause::Said(code, text) => {
                format!("The server said: {text} ({}).", String::from_utf8_lossy(code))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_are_told() {
        let said = |code: &[u8; 5]| Cause::Said(*code, "good night".into());
        for (cause, sqlstate, detail) in [
            (said(b"57P01"), "57P01", "The server said: good night (57P01)."),
            (said(b"57P02"), "57P01", "The server said: good night (57P02)."),
            (said(b"XX000"), "08006", "The server said: good night (XX000)."),
            (Cause::System("reset".into()), "08006", "The connection to the server failed: reset."),
            (Cause::Silent, "08006", "The server has closed the connection without a word."),
        ] {
            assert_eq!((cause.sqlstate(), cause.detail().as_str()), (sqlstate, detail));
        }
    }
}
