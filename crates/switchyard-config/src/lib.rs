//! `pgbouncer.ini` to validated settings. Pure: files are read through a function of the caller.
//!
//! `settings` is the table of all keys, `ini` the grammar, `database` connection strings and
//! overrides, `load` puts them together and reports every error with its place.

pub mod database;
mod ini;
pub mod load;
pub mod settings;
pub mod value;

pub use database::{Database, User};
pub use load::{Config, Diagnostic, Loaded, load};
pub use settings::{ConfigRow, Settings, Taken};
pub use value::{AuthType, LoadBalance, LostTransaction, Names, PoolMode};
