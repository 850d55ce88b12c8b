//! The ident file: `MAP SYSTEM-NAME DATABASE-USER`, which says as whom a system's user may log in.
//! No regular expressions.

use std::collections::HashMap;

use crate::words::{Token, Words};

/// Whom a line lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// As this user.
    User(String),
    /// As anybody.
    All,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    system: String,
    target: Target,
}

/// The maps of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentMaps {
    maps: HashMap<String, Vec<Mapping>>,
}

impl IdentMaps {
    /// Reads a file's text; lines that cannot be read are told in `warnings` and count not.
    pub fn parse(text: &str, warnings: &mut Vec<String>) -> Self {
        let mut maps: HashMap<String, Vec<Mapping>> = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let mut words = Words::new(line);
            match (words.peek(), mapping(&mut words)) {
                (Token::End, _) => {}
                (_, Some((map, mapping))) => maps.entry(map).or_default().push(mapping),
                (_, None) => {
                    warnings.push(format!("could not parse ident config line {}", index + 1));
                }
            }
        }
        IdentMaps { maps }
    }

    /// Whether there is a map of this name.
    pub fn contains(&self, map: &str) -> bool {
        self.maps.contains_key(map)
    }

    /// Whether a map lets a system's user in as `user`.
    pub fn allows(&self, map: &str, system: &str, user: &str) -> bool {
        self.maps.get(map).is_some_and(|lines| {
            lines.iter().any(|line| {
                line.system == system
                    && match &line.target {
                        Target::User(name) => name == user,
                        Target::All => true,
                    }
            })
        })
    }
}

fn mapping(words: &mut Words<'_>) -> Option<(String, Mapping)> {
    let map = words.next().word()?;
    let system = match words.next() {
        Token::Bare(word) if word.starts_with('/') => return None,
        token => token.word()?,
    };
    let target = match words.next() {
        Token::Bare(word) if word.starts_with('+') => return None,
        Token::Bare(word) if word == "all" => Target::All,
        token => Target::User(token.word()?),
    };
    (words.next() == Token::End).then_some((map, Mapping { system, target }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        let text = "# c\n\nm  sys \"all\" # c\nm \"s y\" all\nbad line\nm /x y\nm x +y\nn a,b c\n";
        let mut warnings = Vec::new();
        let maps = IdentMaps::parse(text, &mut warnings);
        let lines: Vec<_> = warnings.iter().filter_map(|w| w.rsplit(' ').next()).collect();
        assert_eq!(lines, ["5", "6", "7", "8"]);
        assert!(maps.allows("m", "sys", "all") && !maps.allows("m", "sys", "u"));
        assert!(maps.allows("m", "s y", "u") && !maps.allows("o", "s y", "u"));
        assert!(maps.contains("m") && !maps.contains("n"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([a-z\"@+/# ,é]{0,8}\n?){0,6}") {
            IdentMaps::parse(&text, &mut Vec::new());
        }
    }
}
