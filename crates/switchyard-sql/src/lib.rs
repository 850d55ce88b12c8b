//! What a text of SQL does: kinds of its statements, tables, functions, whether it only reads.
//! By PostgreSQL's own parser; nothing here guesses at grammar.
//!
//! Deliberately not here: what follows from it. Texts longer than [`TEXT_MAX`] are refused, so
//! that nobody's message makes a worker parse for long.

mod words;

use std::sync::{Mutex, PoisonError};

use pg_query::NodeEnum;
use pg_query::protobuf::summary_result::{Context, Table};
use pg_query::protobuf::{ParseResult, RawStmt};

/// Longest text that is parsed, in bytes.
pub const TEXT_MAX: usize = 64 * 1024;

/// The parser redirects the process' stderr while it runs: two at once would leave it redirected.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A text of SQL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Its statements, in order.
    pub statements: Vec<Statement>,
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// `select`, `insert`, `create_table_as`, …; PostgreSQL's name of the statement in lower case.
    pub kind: String,
    /// Tables, with their schema where it was written.
    pub tables: Vec<String>,
    /// Functions, with their schema where it was written.
    pub functions: Vec<String>,
    /// Whether it can run on a standby, as far as its text tells.
    pub is_read_only: bool,
}

impl Parsed {
    /// Tables of all statements, each once.
    pub fn tables(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for table in self.statements.iter().flat_map(|statement| &statement.tables) {
            if !all.contains(&table.as_str()) {
                all.push(table);
            }
        }
        all
    }

    /// Whether every statement only reads. A text without statements does.
    pub fn is_read_only(&self) -> bool {
        self.statements.iter().all(|statement| statement.is_read_only)
    }
}

/// Parses a text. The error is PostgreSQL's message, or says that the text is too long.
pub fn parse(sql: &str) -> Result<Parsed, String> {
    admit(sql)?;
    let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let statements = if words::has_one_statement(sql) {
        vec![sql]
    } else {
        pg_query::split_with_parser(sql).map_err(|error| error.to_string())?
    };
    let mut parsed = Parsed::default();
    for text in statements {
        parsed.statements.extend(statement(text)?);
    }
    Ok(parsed)
}

/// A text that is the same for statements that differ in constants only.
pub fn fingerprint(sql: &str) -> Result<String, String> {
    admit(sql)?;
    let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    pg_query::fingerprint(sql, 0, 0).map(|found| found.hex).map_err(|error| error.to_string())
}

fn admit(sql: &str) -> Result<(), String> {
    if sql.len() > TEXT_MAX {
        return Err(format!("text of {} bytes is too long for the parser", sql.len()));
    }
    Ok(())
}

/// The statement in a text that holds one at most.
fn statement(sql: &str) -> Result<Option<Statement>, String> {
    let summary = pg_query::summary(sql, 0, -1).map_err(|error| error.to_string())?;
    let found = &summary.protobuf;
    let Some(first) = found.statement_types.first() else { return Ok(None) };
    let kind = kind_name(first);
    let mut tables = Vec::new();
    for table in &found.tables {
        push_once(&mut tables, qualified(&table.schema_name, &table.table_name));
    }
    if UNSEEN.contains(&first.as_str()) {
        // The summary does not look into these statements.
        inner_tables(sql, &mut tables)?;
    }
    let mut functions = Vec::new();
    for function in &found.functions {
        push_once(&mut functions, qualified(&function.schema_name, &function.function_name));
    }
    let reads = found.statement_types.iter().all(|name| READING.contains(&name.as_str()));
    let writes = |table: &Table| matches!(table.context(), Context::Dml | Context::Ddl);
    let is_read_only = reads
        && !found.tables.iter().any(writes)
        && !found.functions.iter().any(|function| is_writing(&function.function_name))
        && !words::locks_rows(sql);
    Ok(Some(Statement { kind, tables, functions, is_read_only }))
}

/// Tables of a statement into which the summary does not look.
fn inner_tables(sql: &str, tables: &mut Vec<String>) -> Result<(), String> {
    let text = |error: pg_query::Error| error.to_string();
    let parsed = pg_query::parse(sql, 0).map_err(text)?;
    parsed.tables().into_iter().for_each(|name| push_once(tables, name));
    for raw in parsed.protobuf.stmts {
        let Some(NodeEnum::DeclareCursorStmt(cursor)) = raw.stmt.and_then(|stmt| stmt.node) else {
            continue;
        };
        let query = RawStmt { stmt: cursor.query, ..RawStmt::default() };
        let query = ParseResult { version: parsed.protobuf.version, stmts: vec![query] };
        let query = pg_query::deparse(&query, pg_query::DeparseOptions::default()).map_err(text)?;
        for table in pg_query::summary(&query, 0, -1).map_err(text)?.protobuf.tables {
            push_once(tables, qualified(&table.schema_name, &table.table_name));
        }
    }
    Ok(())
}

fn push_once(list: &mut Vec<String>, name: String) {
    if !list.contains(&name) {
        list.push(name);
    }
}

fn qualified(schema: &str, name: &str) -> String {
    if schema.is_empty() { name.to_owned() } else { format!("{schema}.{name}") }
}

/// Statements whose inner queries the summary leaves out.
const UNSEEN: [&str; 2] = ["MergeStmt", "DeclareCursorStmt"];

/// Statements that may be part of one that only reads.
const READING: [&str; 4] = ["SelectStmt", "VariableShowStmt", "ExplainStmt", "TransactionStmt"];

/// Whether a function of PostgreSQL's writes, or does what a standby refuses or another session
/// would notice. Functions of the user's are taken as reading: their text is not at hand.
fn is_writing(function: &str) -> bool {
    let exact = [
        "nextval",
        "setval",
        "pg_notify",
        "lo_create",
        "lo_creat",
        "lo_from_bytea",
        "lo_put",
        "lo_import",
        "lo_unlink",
        "lo_open",
        "lowrite",
        "lo_truncate",
        "dblink_exec",
        "pg_promote",
        "pg_switch_wal",
        "pg_create_restore_point",
        "txid_current",
        "pg_current_xact_id",
        "pg_terminate_backend",
        "pg_cancel_backend",
        "pg_reload_conf",
        "set_config",
        "pg_import_system_collations",
        "query_to_xml",
    ];
    let families = [
        "pg_advisory_",
        "pg_try_advisory_",
        "pg_logical_",
        "pg_replication_",
        "pg_create_",
        "pg_drop_",
        "pg_stat_reset",
        "lo_",
    ];
    exact.contains(&function) || families.iter().any(|family| function.starts_with(family))
}

/// `SelectStmt` becomes `select`, `CreateTableAsStmt` `create_table_as`.
fn kind_name(node: &str) -> String {
    let name = node.strip_suffix("Stmt").unwrap_or(node);
    match name {
        "VariableSet" => return "set".into(),
        "VariableShow" => return "show".into(),
        _ => {}
    }
    let mut kind = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !kind.is_empty() {
            kind.push('_');
        }
        kind.push(letter.to_ascii_lowercase());
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(sql: &str) -> String {
        match parse(sql) {
            Err(error) => format!("error: {error}"),
            Ok(parsed) => {
                let one = |s: &Statement| {
                    let word = if s.is_read_only { "reads" } else { "writes" };
                    let (tables, functions) = (s.tables.join(","), s.functions.join(","));
                    format!("{} {word} [{tables}] [{functions}]", s.kind)
                };
                parsed.statements.iter().map(one).collect::<Vec<_>>().join("; ")
            }
        }
    }

    #[test]
    fn statements() {
        for (sql, found) in [
            ("select 1", "select reads [] []"),
            ("select * from a join s.b using (c)", "select reads [a,s.b] []"),
            ("SELECT now() FROM \"Big\"; -- end", "select reads [Big] [now]"),
            ("insert into t select * from u", "insert writes [t,u] []"),
            ("with x as (delete from t returning *) select * from x", "select writes [t] []"),
            ("select * into u from t", "select writes [t,u] []"),
            ("select * from t for update", "select writes [t] []"),
            ("select * from t for no key update", "select writes [t] []"),
            ("select 'for update' from t", "select reads [t] []"),
            ("select nextval('s')", "select writes [] [nextval]"),
            ("explain select * from t", "explain reads [t] []"),
            ("explain analyze update t set a = 1", "explain writes [t] []"),
            ("show all", "show reads [] []"),
            ("set a = 1", "set writes [] []"),
            (
                "begin; select 1; commit",
                "transaction reads [] []; select reads [] []; transaction reads [] []",
            ),
            ("create table t as select 1", "create_table_as writes [t] []"),
            ("copy t from stdin", "copy writes [t] []"),
            ("", ""),
            (" ; ", ""),
            ("selec 1", "error: Invalid statement: syntax error at or near \"selec\""),
        ] {
            assert_eq!(check(sql), found, "{sql}");
        }
        let long = format!("select '{}'", "x".repeat(TEXT_MAX));
        assert!(check(&long).contains("too long"));
    }

    #[test]
    fn the_python_package_finds_the_same() {
        for line in include_str!("../../../python/tests/statements.txt").lines() {
            let (sql, found) = line.split_once(" => ").unwrap_or((line, ""));
            assert_eq!(check(sql), found, "{sql}");
        }
    }

    #[test]
    fn constants_do_not_matter_to_a_fingerprint() {
        assert_eq!(fingerprint("select 1"), fingerprint("select  2"));
        assert_ne!(fingerprint("select a from t"), fingerprint("select a from u"));
        assert!(fingerprint("nonsense").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(
            sql in "[ -~é\n;'\"$]{0,60}|\
                    (select |;|for update|'|\\$a\\$|--\n|/\\*|\\*/){0,8}"
        ) {
            let _ = parse(&sql);
            let _ = fingerprint(&sql);
        }
    }
}
