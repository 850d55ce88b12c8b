//! Entries of `[peers]`: other poolers that may hold the client behind a cancel request.

use crate::connstr::{self, Numbers};

/// An entry of `[peers]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Host, `/dir` or `@name`.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Cancel requests under way to it; `None` means default_pool_size.
    pub pool_size: Option<i64>,
}

/// Highest id.
const ID_MAX: u32 = 65_536;
/// Port of a peer that names none.
const PORT: u16 = 6432;

impl Peer {
    /// Id and entry; the error is PgBouncer's text.
    pub(crate) fn read(
        key: &str,
        text: &str,
        numbers: &mut Numbers,
    ) -> Result<(u32, Self), String> {
        let id: u32 = key.parse().unwrap_or(0);
        if !(1..=ID_MAX).contains(&id) {
            return Err(format!(
                "ids of peers must be a number larger than 0 and at most {ID_MAX}"
            ));
        }
        let (mut host, mut port, mut pool_size) = (None, PORT, None);
        for (key, value) in connstr::pairs(text).ok_or("syntax error in connection string")? {
            match key.as_str() {
                "host" => host = Some(value),
                "port" => {
                    let number = u16::try_from(numbers.count(&key, &value)).unwrap_or(0);
                    if number == 0 {
                        return Err(format!("invalid port: {value}"));
                    }
                    port = number;
                }
                "pool_size" => pool_size = Some(numbers.count(&key, &value)),
                _ => return Err(format!("unrecognized connection parameter: {key}")),
            }
        }
        let host = host.ok_or_else(|| format!("host was not provided for peer {id}"))?;
        Ok((id, Peer { host, port, pool_size }))
    }
}
