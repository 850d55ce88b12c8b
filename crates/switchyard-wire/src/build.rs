//! Builders: each appends one whole message to a buffer ("Message Formats").
//!
//! Texts that would contain a zero byte are cut there, because the protocol ends strings with it.

use crate::tag::{backend, frontend};

/// Appends a message of type `tag` whose body `fill` writes.
pub fn message(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    sized(out, fill);
}

/// Appends a length word and the body that `fill` writes; the length counts itself.
pub fn sized(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let len = (out.len() - at) as u32;
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends a zero-terminated string.
pub fn cstr(out: &mut Vec<u8>, text: &[u8]) {
    let end = memchr::memchr(0, text).unwrap_or(text.len());
    out.extend_from_slice(&text[..end]);
    out.push(0);
}

/// Fields of an error or notice that the pooler makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report<'a> {
    /// `FATAL`, `ERROR`, `NOTICE` …
    pub severity: &'a str,
    /// Five characters.
    pub sqlstate: &'a str,
    /// Field M.
    pub message: &'a str,
    /// Field D, left out when `None`.
    pub detail: Option<&'a str>,
}

fn report(out: &mut Vec<u8>, tag: u8, report: Report<'_>) {
    message(out, tag, |out| {
        let fields = [(b'S', report.severity), (b'C', report.sqlstate), (b'M', report.message)];
        let detail = report.detail.map(|text| (b'D', text));
        for (kind, text) in fields.into_iter().chain(detail) {
            out.push(kind);
            cstr(out, text.as_bytes());
        }
        out.push(0);
    });
}

/// ErrorResponse.
pub fn error_response(out: &mut Vec<u8>, error: Report<'_>) {
    report(out, backend::ERROR, error);
}

/// NoticeResponse.
pub fn notice_response(out: &mut Vec<u8>, notice: Report<'_>) {
    report(out, backend::NOTICE, notice);
}

/// Authentication requests of "Start-up" and "SASL Authentication".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// AuthenticationOk.
    Ok,
    /// AuthenticationCleartextPassword.
    Cleartext,
    /// AuthenticationMD5Password with its salt.
    Md5([u8; 4]),
    /// AuthenticationSASL with the names of the mechanisms.
    Sasl(&'a [&'a str]),
    /// AuthenticationSASLContinue.
    SaslContinue(&'a [u8]),
    /// AuthenticationSASLFinal.
    SaslFinal(&'a [u8]),
}

/// An authentication message.
pub fn authentication(out: &mut Vec<u8>, request: Authentication<'_>) {
    message(out, backend::AUTHENTICATION, |out| match request {
        Authentication::Ok => out.extend_from_slice(&0u32.to_be_bytes()),
        Authentication::Cleartext => out.extend_from_slice(&3u32.to_be_bytes()),
        Authentication::Md5(salt) => {
            out.extend_from_slice(&5u32.to_be_bytes());
            out.extend_from_slice(&salt);
        }
        Authentication::Sasl(mechanisms) => {
            out.extend_from_slice(&10u32.to_be_bytes());
            mechanisms.iter().for_each(|name| cstr(out, name.as_bytes()));
            out.push(0);
        }
        Authentication::SaslContinue(data) => {
            out.extend_from_slice(&11u32.to_be_bytes());
            out.extend_from_slice(data);
        }
        Authentication::SaslFinal(data) => {
            out.extend_from_slice(&12u32.to_be_bytes());
            out.extend_from_slice(data);
        }
    });
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    message(out, backend::PARAMETER_STATUS, |out| {
        cstr(out, name);
        cstr(out, value);
    });
}

/// BackendKeyData: process id and secret, which has four bytes in protocol 3.0.
pub fn backend_key_data(out: &mut Vec<u8>, key: &[u8]) {
    message(out, backend::BACKEND_KEY_DATA, |out| out.extend_from_slice(key));
}

/// NegotiateProtocolVersion: the newest version spoken and the options not known.
pub fn negotiate_protocol(out: &mut Vec<u8>, version: u32, options: &[Vec<u8>]) {
    message(out, backend::NEGOTIATE_PROTOCOL, |out| {
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(&(options.len() as u32).to_be_bytes());
        options.iter().for_each(|name| cstr(out, name));
    });
}

/// ReadyForQuery with status `I`, `T` or `E`.
pub fn ready_for_query(out: &mut Vec<u8>, status: u8) {
    message(out, backend::READY_FOR_QUERY, |out| out.push(status));
}

/// CommandComplete.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, backend::COMMAND_COMPLETE, |out| cstr(out, tag.as_bytes()));
}

/// A message without body, such as ParseComplete, Sync or Flush.
pub fn empty(out: &mut Vec<u8>, tag: u8) {
    message(out, tag, |_| {});
}

/// A column of a RowDescription; table 0, attribute 0, modifier -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// Name.
    pub name: &'a str,
    /// Type's object id.
    pub oid: u32,
    /// Type's length in bytes, -1 for variable.
    pub len: i16,
    /// 0 for text, 1 for binary.
    pub format: u16,
}

/// RowDescription.
pub fn row_description<'a>(out: &mut Vec<u8>, columns: impl ExactSizeIterator<Item = Column<'a>>) {
    message(out, backend::ROW_DESCRIPTION, |out| {
        out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
        for column in columns {
            cstr(out, column.name.as_bytes());
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&column.oid.to_be_bytes());
            out.extend_from_slice(&column.len.to_be_bytes());
            out.extend_from_slice(&(-1i32).to_be_bytes());
            out.extend_from_slice(&column.format.to_be_bytes());
        }
    });
}

/// DataRow; `None` is NULL.
pub fn data_row<'a>(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = Option<&'a [u8]>>) {
    message(out, backend::DATA_ROW, |out| {
        out.extend_from_slice(&(values.len() as u16).to_be_bytes());
        for value in values {
            match value {
                None => out.extend_from_slice(&(-1i32).to_be_bytes()),
                Some(bytes) => {
                    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
                    out.extend_from_slice(bytes);
                }
            }
        }
    });
}

/// StartupMessage of `version` (196608 = 3.0).
pub fn startup<'a>(
    out: &mut Vec<u8>,
    version: u32,
    parameters: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) {
    sized(out, |out| {
        out.extend_from_slice(&version.to_be_bytes());
        for (name, value) in parameters {
            cstr(out, name);
            cstr(out, value);
        }
        out.push(0);
    });
}

/// SSLRequest.
pub fn ssl_request(out: &mut Vec<u8>) {
    sized(out, |out| out.extend_from_slice(&crate::startup::SSL_CODE.to_be_bytes()));
}

/// CancelRequest with the key of the query's connection.
pub fn cancel_request(out: &mut Vec<u8>, key: &[u8]) {
    sized(out, |out| {
        out.extend_from_slice(&crate::startup::CANCEL_CODE.to_be_bytes());
        out.extend_from_slice(key);
    });
}

/// Query.
pub fn query(out: &mut Vec<u8>, sql: &[u8]) {
    message(out, frontend::QUERY, |out| cstr(out, sql));
}

/// Parse; `types` is the rest of the message: count and object ids.
pub fn parse(out: &mut Vec<u8>, name: &[u8], sql: &[u8], types: &[u8]) {
    message(out, frontend::PARSE, |out| {
        cstr(out, name);
        cstr(out, sql);
        out.extend_from_slice(types);
    });
}

/// Close of a statement (`S`) or portal (`P`).
pub fn close(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    message(out, frontend::CLOSE, |out| {
        out.push(kind);
        cstr(out, name);
    });
}

/// PasswordMessage.
pub fn password(out: &mut Vec<u8>, password: &[u8]) {
    message(out, frontend::PASSWORD, |out| cstr(out, password));
}

/// SASLInitialResponse.
pub fn sasl_initial(out: &mut Vec<u8>, mechanism: &str, data: &[u8]) {
    message(out, frontend::PASSWORD, |out| {
        cstr(out, mechanism.as_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
    });
}

/// SASLResponse.
pub fn sasl_response(out: &mut Vec<u8>, data: &[u8]) {
    message(out, frontend::PASSWORD, |out| out.extend_from_slice(data));
}
