//! A configuration as the makers of the managed service print it, as it stands: nodes are found by
//! their names through `rds_tools.show_topology`, and everything is encrypted.

use std::io;

use switchyard_testkit::{Certificates, NameServer, Pooler, Postgres, wait_until};

use super::{program, wanted};

/// What the service's function answers: names of nodes, whose port is the entry's.
const TOPOLOGY: &str = "create schema rds_tools; \
    create table rds_tools.nodes (id text, endpoint text, port int); \
    insert into rds_tools.nodes values ('instance-1', 'instance-1.cluster.test', PORT), \
    ('instance-2', 'instance-2.cluster.test', PORT); \
    create function rds_tools.show_topology(text) returns table (id text, endpoint text, port int) \
    language sql as $$ select * from rds_tools.nodes where $1 = 'pgbouncer' $$; \
    create table written (x int)";

#[test]
fn the_printed_configuration_works_as_it_stands() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let certificates = Certificates::new()?;
    certificates.authority("root")?;
    certificates.issue("root", "node", "elsewhere", None)?;
    let first = Postgres::start("")?;
    first.use_tls(&certificates, "node", None)?;
    let second = first.standby_at("127.0.0.2", first.port)?;
    first.sql(&TOPOLOGY.replace("PORT", &first.port.to_string()))?;
    let names = NameServer::start()?;
    names.set("cluster.test", &["127.0.0.1"]);
    names.set("instance-1.cluster.test", &["127.0.0.1"]);
    names.set("instance-2.cluster.test", &["127.0.0.2"]);
    let topology = r"'select endpoint from rds_tools.show_topology(\'pgbouncer\')'";
    let entry = format!(
        "app = host=cluster.test port={} user=postgres dbname=postgres password=secret \
         topology_query={topology}",
        first.port
    );
    let settings = format!(
        "auth_type = plain\nserver_tls_sslmode = require\npool_mode = session\n{}",
        names.setting()
    );
    let pooler = Pooler::start(program(), &entry, &settings)?;
    wait_until("both nodes", || {
        pooler
            .console("show nodes")
            .is_ok_and(|rows| rows.contains("|writer|") && rows.contains("|reader|"))
    })?;
    let here = "select inet_server_addr() || ' ' || ssl from pg_stat_ssl \
                where pid = pg_backend_pid()";
    assert_eq!(pooler.sql("app", "app", here)?.trim(), "127.0.0.1/32 true");
    assert_eq!(pooler.sql("app", "app@instance-2", here)?.trim(), "127.0.0.2/32 true");
    assert_eq!(pooler.sql("app", "app@reader", here)?.trim(), "127.0.0.2/32 true");
    let wrong = pooler.sql("nobody", "app", here).map_err(|error| error.to_string());
    assert!(wrong.is_err_and(|error| error.contains("password authentication failed")));
    pooler.sql("app", "app", "insert into written values (1)")?;
    let synced = "select count(*) from written";
    wait_until("the row", || second.sql(synced).is_ok_and(|count| count.trim() == "1"))?;
    let mut session = pooler.session("app", "app")?;
    assert_eq!(session.run(here)?, "127.0.0.1/32 true");
    first.stop("immediate")?;
    second.promote()?;
    // A session goes on with the new writer if it has left nothing in the old one, or it ends; who
    // comes next is led to the new writer.
    let found = session.run(here).unwrap_or_default();
    assert!(found.is_empty() || found == "127.0.0.2/32 true", "{found}");
    wait_until("the new writer", || {
        pooler.sql("app", "app", here).is_ok_and(|row| row.trim() == "127.0.0.2/32 true")
    })?;
    pooler.sql("app", "app", "insert into written values (2)")?;
    assert_eq!(second.sql(synced)?.trim(), "2");
    Ok(())
}
