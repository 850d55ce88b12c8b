//! What clients send: random messages of both protocols, as bytes.

use std::time::Duration;

use switchyard_wire::build;
use switchyard_wire::tag::frontend;

use crate::hooks::Hooks;
use crate::random::Random;

/// Statements that clients prepare.
const TEXTS: [&str; 10] =
    ["rows", "ok", "begin", "commit", "rollback", "fail", "bad", "", "show application_name", "$"];
/// What they send as simple queries besides.
const SIMPLE: [&str; 4] = ["deallocate all", "copy", "copy early", "show TimeZone"];
/// What they set.
const SETTINGS: [(&str, &[&str]); 4] = [
    ("application_name", &["a", "b", "it"]),
    ("TimeZone", &["utc", "Zulu", "CET"]),
    ("DateStyle", &["ISO, MDY", "ISO, DMY"]),
    ("search_path", &["public", "other"]),
];

/// One thing that a client does.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends this and waits until all of it is answered.
    Ask(Vec<u8>),
    /// Sends this and goes on.
    Pipe(Vec<u8>),
    /// A statement that takes time, and is cancelled after some of it.
    Sleep(Vec<u8>, Option<Duration>),
    /// Does nothing for a while.
    Think(Duration),
    /// Leaves.
    Leave(Leave),
}

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Says good-bye.
    Politely,
    /// Closes its end.
    Silently,
    /// Sends something and closes its end before it is answered.
    Midway,
}

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Habits {
    /// Blocks, which statement pooling does not allow.
    pub blocks: bool,
    /// Number of the client, which its rows carry.
    pub number: usize,
    /// Whether it cancels queries.
    pub cancels: bool,
    /// Whether its statements are shown to hooks.
    pub hooks: Hooks,
}

/// A client's life.
pub fn life(random: &mut Random, habits: Habits, steps: usize) -> Vec<Step> {
    let mut life = Vec::new();
    let mut serial = 0;
    for _ in 0..steps {
        serial += 1;
        let mark = format!("c{}.{serial}", habits.number);
        match random.below(20) {
            0 => life.push(Step::Think(random.micros(100, 50_000))),
            1..=2 => {
                let cancels = habits.cancels && random.one_in(2);
                let time = *random.pick(&[1, 2, 5, 60]);
                // Some come too late, and must hit nobody else.
                let after = match random.below(2) {
                    0 => Duration::from_millis(time) + random.micros(0, 3000),
                    _ => random.micros(10, 1000 * time),
                };
                let after = cancels.then_some(after);
                let mut out = Vec::new();
                let sql = format!("sleep {time} {mark}");
                build::query(&mut out, sql.as_bytes());
                life.push(Step::Sleep(out, after));
            }
            3..=4 => life.extend(pipeline(random, &mark)),
            5..=6 => life.push(Step::Ask(setting(random))),
            7..=10 => life.push(Step::Ask(simple(random, habits, &mark))),
            11..=12 if habits.blocks => life.extend(block(random, habits, &mark)),
            _ => life.push(Step::Ask(group(random, habits, &mark))),
        }
    }
    if habits.blocks && random.below(4) > 0 {
        let mut out = Vec::new();
        build::query(&mut out, b"rollback");
        life.push(Step::Ask(out));
    }
    life.push(Step::Leave(match random.below(6) {
        0 => Leave::Midway,
        1..=2 => Leave::Silently,
        _ => Leave::Politely,
    }));
    life
}

/// What a client leaves unanswered.
pub fn unanswered(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    match random.below(6) {
        0 => build::query(&mut out, b"sleep 30 gone"),
        // It needs a server, and nothing of it can be passed on.
        4..=5 => {
            build::parse(&mut out, b"gone", b"rows", &[0, 0]);
            out.truncate(9);
        }
        1 => unnamed(&mut out, "rows"),
        2 => {
            build::query(&mut out, b"echo gone");
            out.truncate(8);
        }
        _ => {
            build::query(&mut out, b"begin");
            build::query(&mut out, b"echo gone");
        }
    }
    out
}

fn text(random: &mut Random, habits: Habits, mark: &str) -> String {
    if habits.hooks == Hooks::On && random.one_in(3) {
        let grows = random.below(2);
        return if random.one_in(4) { "deny".into() } else { format!("turn {mark}.{grows}") };
    }
    loop {
        let text = *random.pick(&TEXTS);
        if text == "$" {
            return format!("echo {mark}");
        }
        if habits.blocks || text != "begin" {
            return text.into();
        }
    }
}

fn simple(random: &mut Random, habits: Habits, mark: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let sql = match random.below(6) {
        0 => (*random.pick(&SIMPLE)).to_owned(),
        1 => {
            build::message(&mut out, frontend::FUNCTION_CALL, |_| {});
            return out;
        }
        2 => format!("echo {mark}{}", "x".repeat(random.between(1, 9000))),
        3 => format!("echo {mark}"),
        _ => text(random, habits, mark),
    };
    build::query(&mut out, sql.as_bytes());
    if sql.starts_with("copy") {
        copy_data(&mut out, random.one_in(2), 0);
    }
    out
}

fn setting(random: &mut Random) -> Vec<u8> {
    let (name, values) = random.pick(&SETTINGS);
    let sql = format!("set {name}='{}'", random.pick(values));
    let mut out = Vec::new();
    if random.one_in(3) {
        unnamed(&mut out, &sql);
        build::empty(&mut out, frontend::SYNC);
    } else {
        build::query(&mut out, sql.as_bytes());
    }
    out
}

fn block(random: &mut Random, habits: Habits, mark: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut ask = |sql: String| {
        let mut out = Vec::new();
        build::query(&mut out, sql.as_bytes());
        steps.push(Step::Ask(out));
    };
    ask("begin".into());
    for index in 0..random.below(4) {
        if habits.hooks == Hooks::On && random.one_in(4) {
            ask(if random.one_in(2) { "deny".into() } else { format!("turn {mark}.{index}") });
            continue;
        }
        ask(match random.below(5) {
            0 => "fail".into(),
            1 => format!("set application_name='{mark}'"),
            2 => "show application_name".into(),
            _ => format!("echo {mark}.{index}"),
        });
    }
    ask(if random.one_in(2) { "commit" } else { "rollback" }.into());
    steps
}

/// Groups one behind the other, of statements that were prepared before.
fn pipeline(random: &mut Random, mark: &str) -> Vec<Step> {
    let names = [name(5), name(6)];
    let mut out = Vec::new();
    for name in &names {
        build::close(&mut out, b'S', name);
    }
    build::parse(&mut out, &names[0], b"rows", &[0, 0]);
    build::parse(&mut out, &names[1], format!("echo {mark}").as_bytes(), &[0, 0]);
    build::empty(&mut out, frontend::SYNC);
    let mut steps = vec![Step::Ask(out)];
    for index in 0..random.between(1, 8) {
        let mut out = Vec::new();
        if random.one_in(3) {
            build::query(&mut out, format!("echo {mark}.{index}").as_bytes());
        } else {
            for _ in 0..random.between(1, 3) {
                let name = random.pick(&names).clone();
                bind(&mut out, b"", &name);
                if random.one_in(2) {
                    describe(&mut out, b'P', b"");
                }
                execute(&mut out, b"");
            }
            build::empty(&mut out, frontend::SYNC);
        }
        steps.push(Step::Pipe(out));
    }
    steps.push(Step::Ask(Vec::new()));
    steps
}

/// Messages of the extended protocol up to a Sync.
fn group(random: &mut Random, habits: Habits, mark: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..random.below(7) {
        let (index, to) = (random.below(5), random.below(2));
        match random.below(20) {
            0..=3 => {
                let sql = text(random, habits, mark);
                build::parse(&mut out, &name(index), sql.as_bytes(), &[0, 0]);
            }
            4..=7 => bind(&mut out, &portal(to), &name(index)),
            8..=9 => describe(&mut out, b'S', &name(index)),
            10 => describe(&mut out, b'P', &portal(to)),
            11..=13 => execute(&mut out, &portal(to)),
            14..=15 => build::close(&mut out, b'S', &name(index)),
            16 => build::close(&mut out, b'P', &portal(to)),
            17 => build::empty(&mut out, frontend::FLUSH),
            _ => unnamed(&mut out, &text(random, habits, mark)),
        }
    }
    match random.below(8) {
        0 => unnamed(&mut out, "deallocate all"),
        1 => {
            unnamed(&mut out, if random.one_in(2) { "copy" } else { "copy early" });
            let syncs = random.below(4);
            if syncs & 1 != 0 {
                build::empty(&mut out, frontend::SYNC);
            }
            copy_data(&mut out, random.one_in(2), syncs & 2);
        }
        _ => {}
    }
    build::empty(&mut out, frontend::SYNC);
    out
}

fn name(index: usize) -> Vec<u8> {
    format!("s{index}").into_bytes()
}

fn portal(index: usize) -> Vec<u8> {
    if index == 0 { Vec::new() } else { format!("p{index}").into_bytes() }
}

fn bind(out: &mut Vec<u8>, portal: &[u8], statement: &[u8]) {
    build::message(out, frontend::BIND, |out| {
        build::cstr(out, portal);
        build::cstr(out, statement);
        out.extend_from_slice(&[0; 6]);
    });
}

fn describe(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    build::message(out, frontend::DESCRIBE, |out| {
        out.push(kind);
        build::cstr(out, name);
    });
}

fn execute(out: &mut Vec<u8>, portal: &[u8]) {
    build::message(out, frontend::EXECUTE, |out| {
        build::cstr(out, portal);
        out.extend_from_slice(&[0; 4]);
    });
}

/// Parse, Bind, Describe and Execute of the unnamed statement.
pub fn unnamed(out: &mut Vec<u8>, sql: &str) {
    build::parse(out, b"", sql.as_bytes(), &[0, 0]);
    bind(out, b"", b"");
    describe(out, b'P', b"");
    execute(out, b"");
}

fn copy_data(out: &mut Vec<u8>, done: bool, sync: usize) {
    build::message(out, frontend::COPY_DATA, |out| out.extend_from_slice(b"a\n"));
    if sync != 0 {
        build::empty(out, frontend::SYNC);
    }
    build::message(out, frontend::COPY_DATA, |out| out.extend_from_slice(b"b\n"));
    if done {
        build::empty(out, frontend::COPY_DONE);
    } else {
        build::message(out, frontend::COPY_FAIL, |out| build::cstr(out, b"no"));
    }
}
