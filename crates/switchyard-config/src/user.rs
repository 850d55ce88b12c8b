//! Entries of `[users]`.

use std::time::Duration;

use crate::connstr::{self, Numbers};
use crate::value::{PoolMode, Value as _};

/// An entry of `[users]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Own pool_mode.
    pub pool_mode: Option<PoolMode>,
    /// Size of its pools.
    pub pool_size: Option<i64>,
    /// Size of its reserve pools.
    pub reserve_pool_size: Option<i64>,
    /// Limit of servers.
    pub max_user_connections: Option<i64>,
    /// Limit of clients.
    pub max_user_client_connections: Option<i64>,
    /// Own query_timeout.
    pub query_timeout: Option<Duration>,
    /// Own query_wait_timeout.
    pub query_wait_timeout: Option<Duration>,
    /// Own idle_transaction_timeout.
    pub idle_transaction_timeout: Option<Duration>,
    /// Own transaction_timeout.
    pub transaction_timeout: Option<Duration>,
    /// Own client_idle_timeout.
    pub client_idle_timeout: Option<Duration>,
}

impl User {
    /// The entry of a settings string; the error is PgBouncer's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::read(text, &mut Numbers::default())
    }

    pub(crate) fn read(text: &str, numbers: &mut Numbers) -> Result<Self, String> {
        let mut user = User::default();
        for (key, value) in connstr::pairs(text).ok_or("syntax error in user settings")? {
            user.take(&key, &value, numbers)?;
        }
        Ok(user)
    }

    fn take(&mut self, key: &str, value: &str, numbers: &mut Numbers) -> Result<(), String> {
        let set = |limit: i64| Some(limit).filter(|limit| *limit > 0);
        let some = |time: Duration| Some(time).filter(|time| !time.is_zero());
        match key {
            "pool_mode" => {
                let mode = PoolMode::parse(value);
                self.pool_mode = Some(mode.ok_or(format!("invalid pool mode: {value}"))?);
            }
            "pool_size" => self.pool_size = Some(numbers.count(key, value)),
            "reserve_pool_size" => self.reserve_pool_size = Some(numbers.count(key, value)),
            "max_user_connections" => self.max_user_connections = set(numbers.count(key, value)),
            "max_user_client_connections" => {
                self.max_user_client_connections = set(numbers.count(key, value));
            }
            "query_timeout" => self.query_timeout = some(numbers.seconds(key, value)),
            "query_wait_timeout" => self.query_wait_timeout = Some(numbers.seconds(key, value)),
            "idle_transaction_timeout" => {
                self.idle_transaction_timeout = some(numbers.seconds(key, value));
            }
            "transaction_timeout" => self.transaction_timeout = some(numbers.seconds(key, value)),
            "client_idle_timeout" => self.client_idle_timeout = some(numbers.seconds(key, value)),
            _ => return Err(format!("unrecognized user parameter: {key}")),
        }
        Ok(())
    }
}
