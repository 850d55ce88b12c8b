//! What made-up hooks say about a statement: model functions that rewrite, refuse, and take their
//! time. References ask them as well, so that they know what clients should hear.
//!
//! `turn X` becomes `echo X`, and `deny` is refused. Nodes know neither word: one that reached them
//! would be answered differently.

use switchyard_core::client::session::{Approval, Denial};
use switchyard_wire::build::{self, Report};

/// Whether hooks are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooks {
    /// Nobody is.
    Off,
    /// Each Query and Parse is shown to them.
    On,
}

/// SQLSTATE and text of what is refused.
pub const REFUSAL: (&str, &str) = ("42501", "not with us");

/// Bytes by which some statements grow beyond what was sent.
const GROWTH: usize = 9000;

/// What becomes of a statement.
pub fn judge(sql: &[u8]) -> Approval {
    if sql == b"deny" {
        let (sqlstate, message) = REFUSAL;
        let mut error = Vec::new();
        let report = Report { severity: "ERROR", sqlstate, message, detail: None };
        build::error_response(&mut error, report);
        return Approval::Refused(Box::new(Denial { error, instead: None }));
    }
    let Some(rest) = sql.strip_prefix(b"turn ") else { return Approval::Unchanged };
    let mut text = [b"echo ", rest].concat();
    if rest.ends_with(b"0") {
        text.resize(text.len() + GROWTH, b'y');
    }
    Approval::Text(text)
}
