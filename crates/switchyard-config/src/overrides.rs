//! Who wins: the one place that decides between `[users]`, `[databases]` and `[pgbouncer]`.

use std::time::Duration;

use crate::database::Database;
use crate::load::Config;
use crate::settings::Settings;
use crate::user::User;
use crate::value::{PoolMode, Value};

/// The values in force for the clients of one login user on one entry, and for their pool.
#[derive(Clone, Copy, Debug)]
pub struct Overrides<'a> {
    settings: &'a Settings,
    database: &'a Database,
    /// Of the forced user if there is one.
    pool_user: Option<&'a User>,
    login_user: Option<&'a User>,
}

impl Config {
    /// The values in force for a login user on an entry. A pool's values are found by its own user
    /// as well, for that is the forced user where there is one.
    pub fn overrides<'a>(&'a self, database: &'a Database, login_user: &str) -> Overrides<'a> {
        let pool_user = database.user.as_deref().unwrap_or(login_user);
        Overrides {
            settings: &self.settings,
            database,
            pool_user: self.users.get(pool_user),
            login_user: self.users.get(login_user),
        }
    }

    /// max_user_client_connections of a login user, wherever it goes; 0 means no limit.
    pub fn max_user_client_connections(&self, user: &str) -> usize {
        let own = self.users.get(user).and_then(|user| user.max_user_client_connections);
        limit(own, self.settings.max_user_client_connections)
    }

    /// The shortest time after which a session of anybody may be ended without waiting for a
    /// server; `None` if no session is.
    pub fn shortest_session_timeout(&self) -> Option<Duration> {
        let global = &self.settings;
        let global = [
            global.client_idle_timeout,
            global.query_timeout,
            global.idle_transaction_timeout,
            global.transaction_timeout,
        ];
        let own = self.users.values().flat_map(|user| {
            [
                user.client_idle_timeout,
                user.query_timeout,
                user.idle_transaction_timeout,
                user.transaction_timeout,
            ]
        });
        global.into_iter().chain(own.flatten()).filter(|limit| !limit.is_zero()).min()
    }
}

fn size(number: i64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// Numbers up to 0 count as unset.
fn limit(own: Option<i64>, global: i64) -> usize {
    size(own.filter(|own| *own > 0).unwrap_or(global))
}

/// Of the pool's user first.
impl Overrides<'_> {
    /// pool_mode. Replication connections are always of session mode, whatever this says.
    pub fn pool_mode(&self) -> PoolMode {
        let own = self.pool_user.and_then(|user| user.pool_mode).or(self.database.pool_mode);
        own.unwrap_or(self.settings.pool_mode)
    }

    /// pool_size; 0 means no limit.
    pub fn pool_size(&self) -> usize {
        let own = self.pool_user.and_then(|user| user.pool_size).or(self.database.pool_size);
        size(own.unwrap_or(self.settings.default_pool_size))
    }

    /// reserve_pool_size.
    pub fn reserve_pool_size(&self) -> usize {
        let own = self.pool_user.and_then(|user| user.reserve_pool_size);
        let own = own.or(self.database.reserve_pool_size);
        size(own.unwrap_or(self.settings.reserve_pool_size))
    }

    /// max_user_connections; 0 means no limit.
    pub fn max_user_connections(&self) -> usize {
        let own = self.pool_user.and_then(|user| user.max_user_connections);
        limit(own, self.settings.max_user_connections)
    }

    /// query_timeout; zero means none.
    pub fn query_timeout(&self) -> Duration {
        let own = self.pool_user.and_then(|user| user.query_timeout);
        own.unwrap_or(self.settings.query_timeout)
    }

    /// idle_transaction_timeout; zero means none.
    pub fn idle_transaction_timeout(&self) -> Duration {
        let own = self.pool_user.and_then(|user| user.idle_transaction_timeout);
        own.unwrap_or(self.settings.idle_transaction_timeout)
    }

    /// transaction_timeout; zero means none.
    pub fn transaction_timeout(&self) -> Duration {
        let own = self.pool_user.and_then(|user| user.transaction_timeout);
        own.unwrap_or(self.settings.transaction_timeout)
    }
}

/// Of the login user first.
impl Overrides<'_> {
    /// client_idle_timeout; zero means none.
    pub fn client_idle_timeout(&self) -> Duration {
        let own = self.login_user.and_then(|user| user.client_idle_timeout);
        own.unwrap_or(self.settings.client_idle_timeout)
    }

    /// query_wait_timeout; zero means for ever, also where an entry says so.
    pub fn query_wait_timeout(&self) -> Duration {
        let own = self.login_user.and_then(|user| user.query_wait_timeout);
        let own = own.or(self.database.query_wait_timeout);
        own.unwrap_or(self.settings.query_wait_timeout)
    }
}

/// Of the entry first.
impl Overrides<'_> {
    /// min_pool_size.
    pub fn min_pool_size(&self) -> usize {
        size(self.database.min_pool_size.unwrap_or(self.settings.min_pool_size))
    }

    /// server_lifetime; zero means that a server is used once.
    pub fn server_lifetime(&self) -> Duration {
        self.database.server_lifetime.unwrap_or(self.settings.server_lifetime)
    }

    /// max_db_connections; 0 means no limit.
    pub fn max_db_connections(&self) -> usize {
        limit(self.database.max_db_connections, self.settings.max_db_connections)
    }

    /// max_db_client_connections; 0 means no limit.
    pub fn max_db_client_connections(&self) -> usize {
        limit(self.database.max_db_client_connections, self.settings.max_db_client_connections)
    }

    /// auth_user.
    pub fn auth_user(&self) -> Option<&str> {
        let global = self.settings.auth_user.as_deref();
        self.database.auth_user.as_deref().or(global).filter(|user| !user.is_empty())
    }

    /// auth_query.
    pub fn auth_query(&self) -> &str {
        self.database.auth_query.as_deref().unwrap_or(&self.settings.auth_query)
    }

    /// auth_dbname; `None` means the entry itself.
    pub fn auth_dbname(&self) -> Option<&str> {
        let global = self.settings.auth_dbname.as_deref();
        self.database.auth_dbname.as_deref().or(global).filter(|name| !name.is_empty())
    }

    /// A key that entries and `[pgbouncer]` share, with its value there.
    pub fn own<T: Value>(&self, key: &str, global: &T) -> T {
        self.database.other(key).and_then(T::parse).unwrap_or_else(|| global.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(text: &str) -> Config {
        let loaded = crate::load(Path::new("a"), &mut |_| Ok(text.as_bytes().to_vec()));
        loaded.config.expect("a valid file")
    }

    /// Values of every override for a login user on an entry.
    fn check(config: &Config, user: &str, database: &str) -> String {
        let database = &config.databases[database];
        let o = config.overrides(database, user);
        format!(
            "{:?} {} {} {} {} | {} {} {} {} {:?} {} {:?} | {} {} {} | {} {} {}",
            o.pool_mode(),
            o.pool_size(),
            o.reserve_pool_size(),
            o.min_pool_size(),
            o.server_lifetime().as_secs(),
            o.max_db_connections(),
            o.max_db_client_connections(),
            o.max_user_connections(),
            config.max_user_client_connections(user),
            o.auth_user(),
            o.auth_query(),
            o.auth_dbname(),
            o.query_timeout().as_secs(),
            o.idle_transaction_timeout().as_secs(),
            o.transaction_timeout().as_secs(),
            o.client_idle_timeout().as_secs(),
            o.query_wait_timeout().as_secs(),
            o.own("probe_timeout", &config.settings.probe_timeout).as_secs(),
        )
    }

    #[test]
    fn the_first_that_is_set_wins() {
        let config = config(
            "[databases]\nplain =\nfull = pool_mode=transaction pool_size=11 \
             reserve_pool_size=12 min_pool_size=13 server_lifetime=14 max_db_connections=15 \
             max_db_client_connections=16 auth_user=du auth_query=dq auth_dbname=dd \
             query_wait_timeout=17 probe_timeout=18\nforced = user=f pool_size=11\n\
             zero = server_lifetime=0 max_db_connections=0 max_db_client_connections=-1 \
             query_wait_timeout=0\n\
             [users]\nu = pool_mode=statement pool_size=21 reserve_pool_size=22 \
             max_user_connections=23 max_user_client_connections=24 query_timeout=25 \
             idle_transaction_timeout=26 transaction_timeout=27 client_idle_timeout=28 \
             query_wait_timeout=29\nf = pool_size=31 query_timeout=32 client_idle_timeout=33 \
             query_wait_timeout=34 max_user_client_connections=35 max_user_connections=36\n\
             z = query_timeout=0 max_user_connections=0 max_user_client_connections=-1 \
             client_idle_timeout=0 query_wait_timeout=0\n\
             [pgbouncer]\npool_mode=session\ndefault_pool_size=1\nreserve_pool_size=2\n\
             min_pool_size=3\nserver_lifetime=4\nmax_db_connections=5\n\
             max_db_client_connections=6\nmax_user_connections=7\nmax_user_client_connections=8\n\
             auth_user=gu\nauth_query=gq\nquery_timeout=9\nidle_transaction_timeout=10\n\
             transaction_timeout=40\nclient_idle_timeout=41\nquery_wait_timeout=42\n\
             probe_timeout=43\n",
        );
        let global = "Session 1 2 3 4 | 5 6 7 8 Some(\"gu\") gq None | 9 10 40 | 41 42 43";
        assert_eq!(check(&config, "nobody", "plain"), global);
        assert_eq!(
            check(&config, "nobody", "full"),
            "Transaction 11 12 13 14 | 15 16 7 8 Some(\"du\") dq Some(\"dd\") | 9 10 40 | 41 17 18"
        );
        assert_eq!(
            check(&config, "u", "full"),
            "Statement 21 22 13 14 | 15 16 23 24 Some(\"du\") dq Some(\"dd\") | 25 26 27 | 28 29 18"
        );
        // The forced user counts for the pool, the login user for the client.
        assert_eq!(
            check(&config, "u", "forced"),
            "Session 31 2 3 4 | 5 6 36 24 Some(\"gu\") gq None | 32 10 40 | 28 29 43"
        );
        // Zero is unset, but for query_wait_timeout.
        let zero = "Session 1 2 3 4 | 5 6 7 8 Some(\"gu\") gq None | 9 10 40 | 41 0 43";
        assert_eq!(check(&config, "nobody", "zero"), zero);
        assert_eq!(check(&config, "z", "plain"), zero);
    }

    #[test]
    fn the_shortest_time_of_a_session_is_anybody_s() {
        let shortest = |text: &str| {
            let config = config(&format!("[databases]\na =\n{text}"));
            config.shortest_session_timeout().map(|limit| limit.as_secs_f64())
        };
        assert_eq!(shortest("[pgbouncer]\nquery_wait_timeout=1\n"), None);
        assert_eq!(shortest("[users]\nu = query_timeout=0\n[pgbouncer]\n"), None);
        assert_eq!(shortest("[pgbouncer]\nclient_idle_timeout=7\n"), Some(7.0));
        assert_eq!(
            shortest("[users]\nu = transaction_timeout=3\n[pgbouncer]\nquery_timeout=4\n"),
            Some(3.0)
        );
        assert_eq!(shortest("[pgbouncer]\nidle_transaction_timeout=0.5\n"), Some(0.5));
    }
}
