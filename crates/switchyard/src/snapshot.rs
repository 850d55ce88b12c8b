//! Settings of one moment, as the workers use them. Built from the configuration by `options`;
//! replaced as a whole at reload, so that nobody sees half of a change.

use std::sync::Arc;
use std::time::Duration;

use switchyard_config::{Config, Database, Overrides, PoolMode};
use switchyard_core::params::Tracked;
use switchyard_io::SocketOptions;

use crate::access::Access;
use crate::tls::Setup;

/// How clients prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// No question; the entry's forced user.
    Any,
    /// No question; the user must be known.
    Trust,
    /// Password in the clear.
    Plain,
    /// MD5, or SCRAM for users with a SCRAM secret.
    Md5,
    /// SCRAM-SHA-256.
    Scram,
    /// A certificate.
    Cert,
    /// What the first line that fits in the HBA file says.
    Hba,
    /// A method that is not served; every login fails.
    Unsupported,
}

/// Whether a kind of line is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logged {
    /// It is.
    Yes,
    /// It is not.
    No,
}

impl From<bool> for Logged {
    fn from(yes: bool) -> Self {
        if yes { Logged::Yes } else { Logged::No }
    }
}

/// What is logged about connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRules {
    /// log_connections.
    pub connections: Logged,
    /// log_disconnections.
    pub disconnections: Logged,
    /// log_pooler_errors.
    pub pooler_errors: Logged,
}

/// Settings of one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The configuration it was made from.
    pub config: Config,
    /// Who may log in, and how.
    pub access: Access,
    /// The shortest time after which a session may be ended.
    pub shortest: Option<Duration>,
    /// Names of tracked parameters.
    pub tracked: Arc<Tracked>,
    /// auth_type.
    pub auth: AuthMethod,
    /// What is logged.
    pub log: LogRules,
    /// Options for sockets.
    pub sockets: SocketOptions,
    /// TLS on both sides.
    pub tls: Arc<Setup>,
    /// Secret of the process for the salts of users that do not exist.
    pub mock_key: [u8; 16],
}

impl Snapshot {
    /// Number of this process among its peers, if it has any.
    pub fn peer_id(&self) -> Option<u16> {
        u16::try_from(self.config.settings.peer_id).ok().filter(|id| *id > 0)
    }

    /// Pool mode of a pool: user, database, global.
    pub fn pool_mode(&self, database: &Database, user: &str) -> PoolMode {
        self.overrides(database, user).pool_mode()
    }

    /// Values in force for a login user on an entry, or for a pool of it.
    pub fn overrides<'a>(&'a self, database: &'a Database, user: &str) -> Overrides<'a> {
        self.config.overrides(database, user)
    }
}
