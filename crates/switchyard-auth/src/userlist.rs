//! The auth_file: lines of `"user" "secret"`, `""` inside quotes for one.

use std::collections::HashMap;

use crate::secret::Secret;

/// Users of a file, up to its first error.
#[derive(Debug, Default)]
pub struct Userlist {
    /// Secrets by name.
    pub users: HashMap<String, Secret>,
    /// Why reading stopped; PgBouncer's text.
    pub error: Option<&'static str>,
}

const USER_MAX: usize = 128;
const SECRET_MAX: usize = 65_531;

/// Reads a file's text.
pub fn parse(text: &[u8]) -> Userlist {
    let mut list = Userlist::default();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b";") {
            continue;
        }
        let parts = quoted(line).and_then(|(user, rest)| {
            quoted(rest.trim_ascii_start()).map(|(secret, _)| (user, secret))
        });
        let Some((user, secret)) = parts else {
            list.error = Some("broken auth file");
            return list;
        };
        if user.len() >= USER_MAX {
            list.error = Some("username too long in auth file");
            return list;
        }
        if secret.len() >= SECRET_MAX {
            list.error = Some("password too long in auth file");
            return list;
        }
        list.users.insert(String::from_utf8_lossy(&user).into_owned(), Secret::parse(&secret));
    }
    list
}

fn quoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut rest = text.strip_prefix(b"\"")?;
    let mut word = Vec::new();
    loop {
        let end = rest.iter().position(|byte| *byte == b'"')?;
        word.extend_from_slice(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix(b"\"") {
            Some(tail) => {
                word.push(b'"');
                rest = tail;
            }
            None => return Some((word, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_up_to_the_first_error() {
        let list = parse(b";c\n\"a\" \"p\"\"w\" x\n\n\"b\" \"\"\nc d\n\"e\" \"f\"\n");
        assert_eq!(list.error, Some("broken auth file"));
        assert_eq!(list.users["a"], Secret::Plain(b"p\"w".to_vec()));
        assert_eq!(list.users["b"], Secret::Empty);
        assert_eq!(list.users.len(), 2);
    }
}
