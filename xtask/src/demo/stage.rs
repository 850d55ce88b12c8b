//! The servers of the demonstration and the pooler in front of them.

use std::io;
use std::path::Path;

use switchyard_testkit::{Cluster, Pooler, Postgres, Rules};

use super::screen::Screen;

/// Server connections that 200 clients share.
pub(crate) const POOL: usize = 10;

/// Everything that runs.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) singles: [Postgres; 2],
    pub(crate) rules: Rules,
    pub(crate) pooler: Pooler,
}

/// Tables of the single servers. Each tells which server it is on.
const TABLES: &str = "
    create table tablea as select current_setting('port') server;
    create table tableb as select current_setting('port') server;
    create table tablec as select current_setting('port') server;";

/// A fact table, its dimension, and the sums by month that a rewritten query reads instead.
const STARS: &str = "
    create table sales as
        select g % 50 store_id, g % 24 month_id, g % 100 amount from generate_series(1, 300000) g;
    create table store as
        select g store_id, 'store ' || g as store_name from generate_series(0, 49) g;
    create table month as
        select g month_id, 'month ' || g as month_name from generate_series(0, 23) g;
    create table sales_by_store as
        select store_name, sum(amount) total from sales join store using (store_id) group by 1;
    create table sales_by_month as
        select month_name, sum(amount) total from sales join month using (month_id) group by 1;
    vacuum analyze";

/// Routing that leaves everybody where they are.
pub(crate) const UNROUTED: &str = "
def routing_rules(username, query, in_transaction):
    return None
";

/// Rewriting that changes nothing.
pub(crate) const UNCHANGED: &str = "
def rewrite_query(username, query, in_transaction):
    return query
";

/// A module of both functions, with what they import.
fn rules(routing: &str, rewriting: &str) -> String {
    format!("{}\n\n{}", routing.trim(), rewriting.trim_start())
}

impl Stage {
    /// Starts five servers and the pooler.
    pub(crate) fn set(program: &Path, screen: &mut Screen) -> io::Result<Self> {
        screen.title(
            "PostgreSQL: a writer, two standbys (commits wait for one), two single servers",
        )?;
        screen.progress(0, 5, "servers")?;
        let cluster = Cluster::start()?;
        screen.progress(3, 5, "servers")?;
        let singles = [Postgres::start("")?, Postgres::start("")?];
        screen.progress(5, 5, "servers")?;
        for server in &singles {
            for statement in TABLES.split(';').chain(STARS.split(';')) {
                server.sql(statement)?;
            }
        }
        let ports: Vec<_> = cluster.nodes().iter().map(|node| node.port.to_string()).collect();
        screen.say(&format!(
            "cluster on ports {}; single servers on {} and {}",
            ports.join(", "),
            singles[0].port,
            singles[1].port
        ));
        let rules = Rules::new(&rules(UNROUTED, UNCHANGED))?;
        let single = |name: &str, server: &Postgres| {
            format!("{name} = host=127.0.0.1 port={} dbname=postgres\n", server.port)
        };
        let databases = format!(
            "{}{}{}{}",
            single("dev", &singles[0]),
            single("dev.1", &singles[0]),
            single("dev.2", &singles[1]),
            cluster.entry("app")
        );
        let settings = format!(
            "pool_mode = transaction\ndefault_pool_size = {POOL}\nmax_client_conn = 500\n\
             promote_sql = 1\n{}",
            rules.settings(&["routing_rules", "rewrite_query"])
        );
        screen.title("switchyard in front of them")?;
        let pooler = Pooler::start(program, &databases, &settings)?;
        screen.say(&std::fs::read_to_string(pooler.ini())?);
        Ok(Stage { cluster, singles, rules, pooler })
    }

    /// Writes both functions and has the pooler take them; shows what matters of them.
    pub(crate) fn load(
        &self,
        screen: &mut Screen,
        routing: &str,
        rewriting: &str,
    ) -> io::Result<()> {
        for source in [routing, rewriting] {
            if ![UNROUTED, UNCHANGED].contains(&source) {
                screen.say(source.trim());
            }
        }
        self.rules.write(&rules(routing, rewriting))?;
        self.pooler.console("reload").map(drop)
    }

    /// Leaves everything running and tells how to use and how to end it.
    pub(crate) fn keep(self) {
        let nodes = self.cluster.nodes().iter().chain(&self.singles);
        let (mut pids, mut directories) = (vec![self.pooler.pid().to_string()], Vec::new());
        for node in nodes {
            // A killed node has left its file behind.
            let running = |pid: &String| Path::new(&format!("/proc/{pid}")).exists();
            pids.extend(node.pid().ok().filter(running));
            directories.push(node.socket_dir().display().to_string());
        }
        directories.extend(self.pooler.ini().parent().map(|path| path.display().to_string()));
        directories.extend(self.rules.path().parent().map(|path| path.display().to_string()));
        let port = self.pooler.port;
        println!("\nEverything is left running. To try:");
        for (database, sql) in [
            ("app", "select inet_server_port(), pg_is_in_recovery()"),
            ("app@reader", "select inet_server_port(), pg_is_in_recovery()"),
            ("dev", "select * from tableb"),
            ("pgbouncer", "show nodes"),
        ] {
            println!("  psql -h 127.0.0.1 -p {port} -U postgres {database} -c '{sql}'");
        }
        println!("To end it:\n  kill {}; rm -rf {}", pids.join(" "), directories.join(" "));
        std::mem::forget(self);
    }
}
