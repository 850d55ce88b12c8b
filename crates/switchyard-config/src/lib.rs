//! `pgbouncer.ini` to validated settings. Pure: files are read through a function of the caller.
//!
//! `settings` is the table of all keys, `ini` the grammar, `connstr` that of connection strings,
//! `database`, `user` and `peer` the entries, `overrides` who wins over whom. `load` puts them
//! together and reports every error with its place; `remarks` adds what else is worth knowing.

mod connstr;
pub mod database;
pub mod diagnostic;
mod ini;
pub mod load;
pub mod overrides;
pub mod peer;
mod remarks;
pub mod settings;
mod url;
pub mod user;
pub mod value;

pub use database::Database;
pub use diagnostic::{Diagnostic, Severity, reason};
pub use load::{Config, Loaded, load};
pub use overrides::Overrides;
pub use peer::Peer;
pub use settings::{ConfigRow, Settings, Taken};
pub use url::HttpUrl;
pub use user::User;
pub use value::{AuthType, LoadBalance, LostTransaction, Names, PoolMode};
