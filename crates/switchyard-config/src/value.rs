//! Types of values: how each is written and shown.

use std::time::Duration;

/// A type of value.
pub trait Value: Sized + Clone + PartialEq {
    /// Reads a value; `None` if the text is not one.
    fn parse(text: &str) -> Option<Self>;
    /// Text of SHOW CONFIG; `None` shows as NULL.
    fn show(&self) -> Option<String>;
    /// In which form a value is written.
    fn written(_text: &str) -> Written {
        Written::Plain
    }
}

/// The form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// As PgBouncer reads it.
    Plain,
    /// With a unit.
    Unit,
    /// A word in place of 0 or 1.
    Word,
}

impl Value for bool {
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" | "on" => Some(true),
            "0" | "false" | "no" | "off" => Some(false),
            other => integer(other).map(|number| number != 0),
        }
    }

    fn show(&self) -> Option<String> {
        Some(u8::from(*self).to_string())
    }

    fn written(text: &str) -> Written {
        if integer(text).is_some() { Written::Plain } else { Written::Word }
    }
}

/// A truth that is one of eight words, and shown as `true` or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truth(pub bool);

impl Value for Truth {
    fn parse(text: &str) -> Option<Self> {
        let number = !matches!(text, "0" | "1") && integer(text).is_some();
        if number { None } else { bool::parse(text).map(Truth) }
    }

    fn show(&self) -> Option<String> {
        Some(self.0.to_string())
    }
}

/// Decimal, `0x` hexadecimal or `0` octal, whole text.
fn integer(text: &str) -> Option<i64> {
    let (digits, sign) = match text.strip_prefix('-') {
        Some(digits) => (digits, -1),
        None => (text.strip_prefix('+').unwrap_or(text), 1),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let digits = digits.to_ascii_lowercase();
    let number = if let Some(hex) = digits.strip_prefix("0x") {
        i64::from_str_radix(hex, 16).ok()?
    } else if digits.len() > 1 && digits.starts_with('0') {
        i64::from_str_radix(&digits[1..], 8).ok()?
    } else {
        digits.parse().ok()?
    };
    Some(sign * number)
}

impl Value for i64 {
    fn parse(text: &str) -> Option<Self> {
        integer(text)
    }

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// A hundred years: what is added to a moment must stay one.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Value for Duration {
    fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let scale = match unit.trim() {
            "" | "s" => 1.0,
            "ms" => 0.001,
            "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        let seconds: f64 = number.parse().ok()?;
        Some(Duration::from_secs_f64((seconds * scale).min(LONGEST.as_secs_f64())))
    }

    fn show(&self) -> Option<String> {
        Some(self.as_secs_f64().to_string())
    }

    fn written(text: &str) -> Written {
        let unit = text.contains(|c: char| c.is_ascii_alphabetic());
        if unit { Written::Unit } else { Written::Plain }
    }
}

impl Value for String {
    fn parse(text: &str) -> Option<Self> {
        Some(text.into())
    }

    fn show(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl Value for Option<String> {
    fn parse(text: &str) -> Option<Self> {
        Some(Some(text.into()))
    }

    fn show(&self) -> Option<String> {
        self.clone()
    }
}

impl Value for Option<i64> {
    fn parse(text: &str) -> Option<Self> {
        integer(text).map(Some)
    }

    fn show(&self) -> Option<String> {
        self.map(|number| number.to_string())
    }
}

/// A number of bytes, with an optional unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Value for Bytes {
    fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let scale = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1 << 10,
            "mb" => 1 << 20,
            "gb" => 1 << 30,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(scale).map(Bytes)
    }

    fn show(&self) -> Option<String> {
        Some(self.0.to_string())
    }
}

/// Names separated by commas and blanks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    text: String,
    /// The names.
    pub list: Vec<String>,
}

impl Value for Names {
    fn parse(text: &str) -> Option<Self> {
        let words = text.split([',', ' ', '\t']).filter(|word| !word.is_empty());
        Some(Names { text: text.into(), list: words.map(String::from).collect() })
    }

    fn show(&self) -> Option<String> {
        Some(self.text.clone())
    }
}

impl Names {
    /// Whether a name is in the list.
    pub fn contains(&self, name: &str) -> bool {
        self.list.iter().any(|known| known == name)
    }
}

macro_rules! words {
    ($(
        $(#[$doc:meta])* $name:ident {
            $($(#[$vdoc:meta])* $variant:ident = $word:literal),*
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub enum $name {
                $($(#[$vdoc])* $variant,)*
            }

            impl Value for $name {
                fn parse(text: &str) -> Option<Self> {
                    match text.to_ascii_lowercase().as_str() {
                        $($word => Some($name::$variant),)*
                        _ => None,
                    }
                }

                fn show(&self) -> Option<String> {
                    Some(match self { $($name::$variant => $word,)* }.into())
                }
            }
        )*
    };
}

words! {
    /// auth_type.
    AuthType {
        /// No question.
        Any = "any",
        /// No question for known users.
        Trust = "trust",
        /// Password in the clear.
        Plain = "plain",
        /// MD5, or SCRAM for users with a SCRAM secret.
        Md5 = "md5",
        /// Client certificates.
        Cert = "cert",
        /// Rules of a file.
        Hba = "hba",
        /// A directory server.
        Ldap = "ldap",
        /// The system's modules.
        Pam = "pam",
        /// SCRAM-SHA-256.
        Scram = "scram-sha-256"
    }
    /// When a server goes back to its pool.
    PoolMode {
        /// When the client leaves.
        Session = "session",
        /// At the end of each transaction.
        Transaction = "transaction",
        /// After each statement.
        Statement = "statement"
    }
    /// sslmode.
    SslMode {
        /// No TLS.
        Disable = "disable",
        /// As prefer.
        Allow = "allow",
        /// TLS where the other side has it.
        Prefer = "prefer",
        /// TLS only.
        Require = "require",
        /// TLS with a valid certificate.
        VerifyCa = "verify-ca",
        /// TLS with a valid certificate of the right name.
        VerifyFull = "verify-full"
    }
    /// lost_transaction.
    LostTransaction {
        /// An error; the client stays.
        Error = "error",
        /// The client is closed.
        Disconnect = "disconnect"
    }
    /// io.
    Io {
        /// The best there is.
        Auto = "auto",
        /// Readiness.
        Epoll = "epoll",
        /// Completion.
        IoUring = "io_uring"
    }
    /// writer_fencing.
    Fencing {
        /// All rules.
        Strict = "strict",
        /// Timelines only.
        Timeline = "timeline",
        /// None.
        Off = "off"
    }
    /// drain_action.
    DrainAction {
        /// Give up.
        Abort = "abort",
        /// Close what runs.
        Kill = "kill"
    }
    /// session_relink.
    SessionRelink {
        /// Never.
        Off = "off",
        /// Clean sessions.
        Clean = "clean"
    }
    /// What happens after a failed hook.
    OnError {
        /// Nothing.
        Pass = "pass",
        /// The statement fails.
        Error = "error",
        /// The client is closed.
        Disconnect = "disconnect"
    }
    /// route_unknown.
    RouteUnknown {
        /// Nothing.
        Stay = "stay",
        /// The statement fails.
        Error = "error"
    }
    /// route_none.
    RouteNone {
        /// Stay.
        Current = "current",
        /// Go back to the login database.
        Default = "default"
    }
    /// route_in_transaction.
    RouteInTransaction {
        /// Stay.
        Stay = "stay",
        /// The transaction fails.
        Error = "error",
        /// The transaction is rolled back.
        Switch = "switch"
    }
    /// rewrite_query_tag.
    Tag {
        /// None.
        Off = "off",
        /// The process id.
        Pid = "pid"
    }
    /// untracked_set.
    UntrackedSet {
        /// Nothing.
        Ignore = "ignore",
        /// A line in the log.
        Warn = "warn",
        /// The server stays with the client.
        Pin = "pin",
        /// The server is reset.
        Reset = "reset"
    }
    /// load_balance_hosts.
    LoadBalance {
        /// Stay on one host.
        Disable = "disable",
        /// Take turns.
        RoundRobin = "round-robin"
    }
}
