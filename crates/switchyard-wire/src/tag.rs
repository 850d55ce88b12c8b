//! First bytes of messages ("Message Formats").
//!
//! One byte can mean different things in the two directions, hence two modules.

/// Messages that clients send.
pub mod frontend {
    /// Bind parameters to a statement, making a portal.
    pub const BIND: u8 = b'B';
    /// Close a statement or portal.
    pub const CLOSE: u8 = b'C';
    /// Data of a COPY.
    pub const COPY_DATA: u8 = b'd';
    /// End of a COPY.
    pub const COPY_DONE: u8 = b'c';
    /// Failed end of a COPY.
    pub const COPY_FAIL: u8 = b'f';
    /// Describe a statement or portal.
    pub const DESCRIBE: u8 = b'D';
    /// Execute a portal.
    pub const EXECUTE: u8 = b'E';
    /// Ask for pending output.
    pub const FLUSH: u8 = b'H';
    /// Fast-path function call.
    pub const FUNCTION_CALL: u8 = b'F';
    /// Make a statement.
    pub const PARSE: u8 = b'P';
    /// Password, or a SASL response.
    pub const PASSWORD: u8 = b'p';
    /// Simple query.
    pub const QUERY: u8 = b'Q';
    /// End of an extended-protocol group.
    pub const SYNC: u8 = b'S';
    /// Good-bye.
    pub const TERMINATE: u8 = b'X';
}

/// Messages that servers send.
pub mod backend {
    /// Authentication request or success.
    pub const AUTHENTICATION: u8 = b'R';
    /// Secret for cancel requests.
    pub const BACKEND_KEY_DATA: u8 = b'K';
    /// Bind succeeded.
    pub const BIND_COMPLETE: u8 = b'2';
    /// Close succeeded.
    pub const CLOSE_COMPLETE: u8 = b'3';
    /// A command ended.
    pub const COMMAND_COMPLETE: u8 = b'C';
    /// COPY in both directions starts.
    pub const COPY_BOTH: u8 = b'W';
    /// Data of a COPY.
    pub const COPY_DATA: u8 = b'd';
    /// End of a COPY.
    pub const COPY_DONE: u8 = b'c';
    /// COPY from the client starts.
    pub const COPY_IN: u8 = b'G';
    /// COPY to the client starts.
    pub const COPY_OUT: u8 = b'H';
    /// A row.
    pub const DATA_ROW: u8 = b'D';
    /// Answer to an empty query.
    pub const EMPTY_QUERY: u8 = b'I';
    /// Something failed.
    pub const ERROR: u8 = b'E';
    /// Answer to a function call.
    pub const FUNCTION_CALL_RESPONSE: u8 = b'V';
    /// The server speaks an older minor version or lacks options.
    pub const NEGOTIATE_PROTOCOL: u8 = b'v';
    /// The described statement returns no rows.
    pub const NO_DATA: u8 = b'n';
    /// A notice.
    pub const NOTICE: u8 = b'N';
    /// Answer to LISTEN's channel.
    pub const NOTIFICATION: u8 = b'A';
    /// Types of a statement's parameters.
    pub const PARAMETER_DESCRIPTION: u8 = b't';
    /// Value of a reported parameter.
    pub const PARAMETER_STATUS: u8 = b'S';
    /// Parse succeeded.
    pub const PARSE_COMPLETE: u8 = b'1';
    /// Execute reached its row limit.
    pub const PORTAL_SUSPENDED: u8 = b's';
    /// The server waits for the next query.
    pub const READY_FOR_QUERY: u8 = b'Z';
    /// Columns of the rows that follow.
    pub const ROW_DESCRIPTION: u8 = b'T';
}
