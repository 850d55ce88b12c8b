//! Sessions whose writer is lost: clean ones go on with the next one, others are told why not.

use std::io;

use switchyard_testkit::raw::transcript;
use switchyard_testkit::{Change, Client, Cluster, Pooler, Raw, Writers, wait_until};

const WRITERS: usize = 6;
const PORT: &str = "select inet_server_port()";

fn start(settings: &str) -> io::Result<(Cluster, Pooler)> {
    let cluster = Cluster::start()?;
    let settings = format!("pool_mode = session\ndefault_pool_size = 20\n{settings}");
    let pooler = Pooler::start(super::program(), &cluster.entry("app"), &settings)?;
    let readers =
        || pooler.console("show nodes").is_ok_and(|text| text.matches("|reader|").count() > 1);
    wait_until("two standbys", readers)?;
    Ok((cluster, pooler))
}

fn session(pooler: &Pooler) -> io::Result<Raw> {
    let parameters = [("user", "postgres"), ("database", "app"), ("application_name", "mine")];
    Raw::connect(pooler.port, &parameters)
}

/// The rest of what comes on a connection that ends.
fn end(session: &mut Raw) -> io::Result<String> {
    let mut messages = Vec::new();
    while let Some(message) = session.message()? {
        messages.push(message);
    }
    Ok(transcript(&messages))
}

#[test]
fn clean_sessions_go_on_and_others_are_told_why_not() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (mut cluster, pooler) = start("")?;
    let mut clean = session(&pooler)?;
    clean.query("create table t (x int); set application_name = 'changed'")?;
    let mut unused = session(&pooler)?;
    let (mut listening, mut inside) = (session(&pooler)?, session(&pooler)?);
    listening.query("select 1; listen something")?;
    inside.query("begin")?;
    inside.query("insert into t values (1)")?;
    let mut reader = Client::connect(pooler.port, "app@reader")?;
    reader.run("select 1")?;

    let change = cluster.fail_over()?;
    let mut text =
        transcript(&clean.query(&format!("{PORT}, current_setting('application_name')"))?);
    assert!(text.contains(&format!("D {}|changed\n", change.new)), "{text}");
    text = transcript(&unused.query(PORT)?);
    assert!(text.contains(&format!("D {}\n", change.new)), "{text}");
    text = end(&mut listening)?;
    let wanted = "terminating connection due to switchover of the server";
    assert!(text.contains("FATAL") && text.contains("C57P01") && text.contains(wanted), "{text}");
    assert!(text.contains("DThe session has used LISTEN."), "{text}");
    text = end(&mut inside)?;
    assert!(text.contains("FATAL") && !text.contains(wanted), "{text}");
    reader.run("select 1")?;
    assert_eq!(transcript(&clean.query("select count(*) from t")?).matches("D 0\n").count(), 1);
    Ok(())
}

#[test]
fn sessions_survive_planned_switchovers() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (mut cluster, pooler) = start("promote_sql = 1")?;
    let mut idle = session(&pooler)?;
    idle.query("select 1")?;
    let writers = Writers::start(&cluster, pooler.port, "app", WRITERS)?;
    writers.run(300)?;
    let (old, target) = (cluster.writer().port, cluster.nodes()[1].port);
    pooler.console(&format!("switchover app \"127.0.0.1:{target}\""))?;
    let gone = std::time::Instant::now();
    cluster.follow(target)?;
    let change = Change { old, new: target, gone, accepted: gone };
    writers.run(300)?;
    let cost = writers.finish(&change)?;
    assert_eq!((cost.errors, cost.disconnects, cost.wrong), (0, 0, 0), "{:?}", cost.complaints);
    assert_eq!((cost.lost, cost.doubled), (0, 0));
    assert!(transcript(&idle.query(PORT)?).contains(&format!("D {target}\n")));
    Ok(())
}

#[test]
fn sessions_leave_with_their_server_if_the_operator_says_so() -> io::Result<()> {
    if !super::wanted() {
        return Ok(());
    }
    let (mut cluster, pooler) = start("session_relink = off")?;
    let mut idle = session(&pooler)?;
    idle.query("select 1")?;
    cluster.fail_over()?;
    assert!(end(&mut idle)?.contains("FATAL"));
    Ok(())
}
