//! How clients and servers prove who they are: secrets, MD5, SCRAM-SHA-256, the userlist file.
//! Pure: nonces and salts come in as arguments.

pub mod md5;
pub mod scram;
pub mod secret;
pub mod userlist;
