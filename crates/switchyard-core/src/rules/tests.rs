//! Rules from text to decision.

use super::*;
use proptest::prelude::*;

fn pairs(texts: &[&str]) -> Vec<(String, String)> {
    texts.iter().enumerate().map(|(i, text)| (format!("r{i}"), (*text).into())).collect()
}

/// Knows `select … from T`, `update T …`, and fails on the rest.
fn know(query: &[u8]) -> Result<Facts, String> {
    let text = String::from_utf8_lossy(query);
    let words: Vec<&str> = text.split_whitespace().collect();
    let (kind, table, effect) = match words[..] {
        ["select", _, "from", table, ..] => ("select", table, Effect::Reads),
        ["update", table, ..] => ("update", table, Effect::Writes),
        _ => return Err("no idea".into()),
    };
    Ok(Facts { kinds: vec![kind.into()], tables: vec![table.into()], effect })
}

fn subject(query: &str) -> Subject<'_> {
    Subject { user: b"app", database: "dev", query: query.as_bytes(), place: Place::Outside }
}

fn check(section: Section, texts: &[&str], query: &str) -> String {
    let rules = match Rules::new(section, &pairs(texts)) {
        Ok(rules) => rules,
        Err(errors) => return errors[0].cause.clone(),
    };
    let subject = subject(query);
    let decision = match section {
        Section::Routes => rules.route(&subject, &mut know),
        Section::Rewrites => rules.rewrite(&subject, &mut know),
    };
    match decision {
        Decision::None => "-".into(),
        Decision::Some(rule, outcome) => format!("{rule} {}", String::from_utf8_lossy(&outcome)),
        Decision::Failed(rule, cause) => format!("{rule} failed: {cause}"),
    }
}

#[test]
fn routes() {
    let by_text = ["query=.*tablea.* -> dev.1", "query=.*tableb.* -> dev.2"];
    for (texts, query, found) in [
        (&by_text[..], "select 1 from tablea", "r0 dev.1"),
        (&by_text, "select 1 from tableb", "r1 dev.2"),
        (&by_text, "select 1", "-"),
        (&["table=t,S.u -> a"], "select x from s.u", "r0 a"),
        (&["table=t,s.u -> a"], "select x from u", "-"),
        (&["table=t -> a"], "select x from any.t", "r0 a"),
        (&["table=\"T\" -> a", "table=T -> b"], "select x from t", "r1 b"),
        (&["kind=insert|update -> a"], "update t", "r0 a"),
        (&["kind=insert|update -> a"], "select x from t", "-"),
        (&["read_only=1 -> D@reader", "-> D"], "select x from t", "r0 D@reader"),
        (&["read_only=1 -> D@reader", "-> D"], "update t", "r1 D"),
        (&["read_only=1 -> D@reader", "-> D"], "what", "r0 failed: no idea"),
        (&["user=^app$ query='a  b' -> 'x y'"], "a  b", "r0 x y"),
        (&["user=^other -> x"], "a", "-"),
        (&["database=dev in_transaction=0 -> x"], "a", "r0 x"),
        (&["in_transaction=1 read_only=1 -> x"], "what", "-"),
        (&["query='a -> ''b''' -> c"], "a -> 'b'", "r0 c"),
    ] {
        assert_eq!(check(Section::Routes, texts, query), found, "{texts:?} {query}");
    }
}

#[test]
fn rewrites() {
    for (texts, query, found) in [
        (
            &["query=facts -> facts_by_day"],
            "select facts, facts",
            "r0 select facts_by_day, facts_by_day",
        ),
        (
            &["query='^select (?P<what>.*) from a$' -> select ${what} from b"],
            "select 1 from a",
            "r0 select 1 from b",
        ),
        (&["query=(a)(b) -> '$2$1 ''$$'''"], "ab", "r0 ba '$'"),
        (&["query=x -> "], "axb", "r0 ab"),
        (&["table=t query=t -> u"], "select 1 from t", "r0 selecu 1 from u"),
        (&["query=none -> x"], "select 1", "-"),
    ] {
        assert_eq!(check(Section::Rewrites, texts, query), found, "{texts:?} {query}");
    }
}

#[test]
fn errors() {
    for (section, text, cause) in [
        (Section::Routes, "query=a dev", "there is no \" -> \""),
        (Section::Routes, "query=a ->", "there is no key"),
        (Section::Routes, "quary=a -> x", "unknown condition \"quary\""),
        (Section::Routes, "query= -> x", "query= has no value"),
        (Section::Routes, "query='a -> x", "there is no \" -> \""),
        (Section::Routes, "query=( -> x", "error: unclosed group"),
        (Section::Routes, "query=a query=b -> x", "query= stands twice"),
        (Section::Routes, "read_only=maybe -> x", "read_only= takes 0 or 1, not \"maybe\""),
        (Section::Routes, "table=a..b -> x", "\"a..b\" is no list of tables"),
        (Section::Rewrites, "user=a -> x", "a rewrite needs query="),
    ] {
        assert_eq!(check(section, &[text], ""), cause, "{text}");
    }
    let missing = check(Section::Rewrites, &["query=(a) -> $1x"], "a");
    assert!(missing.starts_with("there is no group \"1x\""), "{missing}");
    let rules = Rules::new(Section::Routes, &pairs(&["user=a -> x", "kind=select -> y"]));
    assert_eq!(rules.ok().as_ref().and_then(Rules::needs_parser), Some("r1"));
}

proptest! {
    #[test]
    fn no_rule_panics(
        text in "(query=|table=|kind=|user=|read_only=| -> |'|\"|\\$|\\{|1|a|\\.|,| |\\(|é){0,12}",
        query in "[ -~é]{0,20}",
    ) {
        for section in [Section::Routes, Section::Rewrites] {
            let _ = check(section, &[&text, "query=a -> b"], &query);
        }
    }

    /// One pass over the text for all rules is a matter of speed only.
    #[test]
    fn the_first_that_fits_decides(query in "[abc]{0,5}") {
        let texts = ["query=ab -> 1", "query=^b -> 2", "query=c+$ -> 3", "query=a -> 4"];
        let first = texts.iter().position(|text| {
            check(Section::Routes, &[text], &query) != "-"
        });
        let found = check(Section::Routes, &texts, &query);
        match first {
            Some(index) => {
                let rule = format!("r{index} ");
                prop_assert!(found.starts_with(&rule), "{}", found);
            }
            None => prop_assert_eq!(found, "-"),
        }
    }
}
