//! How clients and servers prove who they are: secrets, MD5, SCRAM-SHA-256, the userlist, HBA and
//! ident files.
//! Pure: files, nonces and salts come in as arguments.

pub mod hba;
pub mod ident;
pub mod keyring;
pub mod md5;
pub mod scram;
pub mod secret;
pub mod userlist;
mod words;
