//! Files of cases: user, SQL, expected key, expected text.

use std::path::Path;

use switchyard_config::reason;

/// What a case expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// Nothing is said about it.
    Anything,
    /// No key, or the same text.
    Nothing,
    /// This.
    Text(String),
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// Its number.
    pub(super) line: usize,
    /// Login user.
    pub(super) user: String,
    /// Statement.
    pub(super) sql: String,
    /// Key that routing_rules names.
    pub(super) key: Expected,
    /// Text that rewrite_query makes of it.
    pub(super) text: Expected,
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Vec<Case>, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{}: {}", path.display(), reason(&error)))?;
    parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Case>, String> {
    let mut cases = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let fields = if line.contains('\t') {
            line.split('\t').map(String::from).collect()
        } else {
            comma_separated(line).ok_or(format!("line {}: a quote is not closed", index + 1))?
        };
        let mut fields = fields.into_iter();
        let (Some(user), Some(sql)) = (fields.next(), fields.next()) else {
            return Err(format!("line {}: user and SQL are wanted", index + 1));
        };
        let (key, text) = (expected(fields.next()), expected(fields.next()));
        if fields.next().is_some() {
            return Err(format!("line {}: more than four fields", index + 1));
        }
        cases.push(Case { line: index + 1, user, sql, key, text });
    }
    Ok(cases)
}

fn expected(field: Option<String>) -> Expected {
    match field {
        None => Expected::Anything,
        Some(text) if text.is_empty() || text == "-" => Expected::Nothing,
        Some(text) => Expected::Text(text),
    }
}

/// Fields with commas between them; one in double quotes may hold commas, and `""` for a quote.
fn comma_separated(line: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let trimmed = rest.trim_start();
        let field = if let Some(mut quoted) = trimmed.strip_prefix('"') {
            let mut field = String::new();
            loop {
                let (part, after) = quoted.split_once('"')?;
                field.push_str(part);
                match after.strip_prefix('"') {
                    Some(after) => {
                        field.push('"');
                        quoted = after;
                    }
                    None => {
                        rest = after.trim_start();
                        break field;
                    }
                }
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let field = rest[..end].trim().to_owned();
            rest = &rest[end..];
            field
        };
        fields.push(field);
        if rest.is_empty() {
            return Some(fields);
        }
        rest = rest.strip_prefix(',')?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(line: usize, sql: &str, key: Expected, text: Expected) -> Case {
        Case { line, user: "app".into(), sql: sql.into(), key, text }
    }

    #[test]
    fn tabs_or_commas() {
        let text = "# user\tsql\n\napp\tselect a, b from t\tdev.1\t\n\
                    app,\"select a, \"\"B\"\" from t\",-,select 1\r\napp, select 1\n";
        let some = |text: &str| Expected::Text(text.into());
        let cases = [
            case(3, "select a, b from t", some("dev.1"), Expected::Nothing),
            case(4, "select a, \"B\" from t", Expected::Nothing, some("select 1")),
            case(5, "select 1", Expected::Anything, Expected::Anything),
        ];
        assert_eq!(parse(text), Ok(cases.to_vec()));
        for wrong in ["app\n", "app,\"select\n", "a,b,c,d,e\n", "a\tb\tc\td\te\n", "a,\"b\"c\n"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
