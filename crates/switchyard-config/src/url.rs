//! Addresses of HTTP interfaces: `http://[USER:PASSWORD@]HOST[:PORT][/]`, in lists with commas.
//!
//! Not here: other schemes, paths and queries, which are refused.

/// Where an HTTP interface is.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl {
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `USER:PASSWORD` for basic authentication.
    pub credentials: Option<String>,
}

impl std::fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

impl HttpUrl {
    /// A list; `None` if any of it is not such an address.
    pub fn list(text: &str) -> Option<Vec<Self>> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(Self::parse).collect()
    }

    /// Host and port as in the header `Host`.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("http://")?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, at) = match rest.rsplit_once('@') {
            Some((credentials, at)) => (Some(credentials.to_owned()), at),
            None => (None, rest),
        };
        let (host, port) = match at.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                host.parse::<core::net::Ipv6Addr>().ok()?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
            }
            None => match at.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (at, None),
            },
        };
        let port = port.map_or(Some(DEFAULT_PORT), |port| port.parse().ok())?;
        let odd = |c: char| c.is_whitespace() || c.is_control() || "/?#@".contains(c);
        let fits = !host.is_empty() && !host.contains(odd) && port != 0;
        let secret = credentials.as_deref().unwrap_or_default();
        let fits = fits && !secret.contains(char::is_control);
        fits.then(|| HttpUrl { host: host.to_owned(), port, credentials })
    }
}

/// Port of an address that names none.
const DEFAULT_PORT: u16 = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_interfaces() {
        let list = |text: &str| HttpUrl::list(text).map(|list| format!("{list:?}"));
        let good = "http://a:8008, http://u:p@10.0.0.1/,http://[::1]:1";
        let read = "[http://a:8008, http://10.0.0.1:80, http://[::1]:1]";
        assert_eq!(list(good).as_deref(), Some(read), "no secret is shown");
        let first = HttpUrl::list("http://u:p@x").unwrap_or_default();
        assert_eq!(first[0].credentials.as_deref(), Some("u:p"));
        assert_eq!(list("").as_deref(), Some("[]"));
        for bad in [
            "a:1",
            "https://a",
            "http://",
            "http://a:0",
            "http://a:x",
            "http://a/b",
            "http://[x]:1",
            "http://a b",
            "http://a,b",
        ] {
            assert_eq!(list(bad), None, "{bad}");
        }
    }
}
