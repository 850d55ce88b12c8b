//! HBA and ident files, auth_file, the console's doors, and SCRAM keys that pass through.

use super::*;

#[test]
fn lines_decide_who_is_asked_for_what() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let files = Files::new()?;
    files.write("names", "listed, app\n")?;
    let ident = files.write("ident", "people root app\npeople \"no body\" all\nbroken\n")?;
    let hba = files.write(
        "hba",
        "local all app peer map=people\nlocal all postgres peer\nlocal all all reject\n\
         host other @names all password\nhost sameuser all 127.0.0.1/32 trust\n\
         host postgres app 127.0.0.1 255.255.255.255 scram-sha-256\nhost all unknown all trust\n\
         hostssl all all all trust\nhost all all 10.0.0.0/8 trust\n\
         host all bad 127.0.0.1/40 trust\n",
    )?;
    let settings = format!(
        "auth_type = hba\nauth_hba_file = {hba}\nauth_ident_file = {ident}\nauth_error_codes = 1\n\
         server_tls_sslmode = disable"
    );
    let entries = "postgres = SERVER\nother = SERVER dbname=postgres\napp = SERVER dbname=postgres \
                   user=postgres";
    let (_postgres, pooler) = stage(entries, &settings)?;
    let port = pooler.port;
    let user = |words: &str, password: &str| psql(port, words, password, "select current_user");
    let directory = pooler.ini().parent().map(|at| at.display().to_string()).unwrap_or_default();
    let local = |user: &str| format!("host={directory} user={user} dbname=postgres");
    let root = run(Command::new("id").arg("-un"))?.trim() == "root";
    if root {
        // psql runs as root, which the map lets in as app only.
        assert_eq!(user(&local("app"), "secret"), Ok("app".into()));
        refused(user(&local("postgres"), "secret"), "unix socket login rejected");
    }
    refused(user(&local("nobody"), ""), "login rejected");
    assert_eq!(user("user=app dbname=other", "secret"), Ok("app".into()));
    refused(user("user=app dbname=other", "wrong"), "password authentication failed");
    assert_eq!(user("user=app dbname=app", ""), Ok("postgres".into()));
    assert_eq!(user("user=app dbname=postgres", "secret"), Ok("app".into()));
    refused(user("user=app dbname=postgres", "wrong"), "SASL authentication failed");
    refused(user("user=unknown dbname=postgres", ""), "\"trust\" authentication failed");
    let mut raw = Raw::start(port, &[("user", "postgres"), ("database", "other")])?;
    assert_eq!(raw.fatal(), "28000 no authentication method is found");
    let log = pooler.log()?;
    for line in [
        "WARNING could not parse ident config line 3",
        "WARNING hba line 10: invalid mask",
        "WARNING could not parse hba config line 10",
    ] {
        assert!(log.contains(line), "{line}");
    }
    Ok(())
}

#[test]
fn files_are_read_again_and_broken_ones_leave_the_old_lines() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let files = Files::new()?;
    let hba = files.write("hba", "host all all 127.0.0.1/32 trust\n")?;
    let users = files.write("users", "\"postgres\" \"s\"\n\"app\" \"secret\"\n")?;
    let settings = format!("auth_type = hba\nauth_hba_file = {hba}\nauth_file = {users}");
    let (_postgres, pooler) = stage("postgres = SERVER", &settings)?;
    let user = |user: &str, password: &str| {
        psql(pooler.port, &format!("user={user} dbname=postgres"), password, "select 1")
    };
    let one = || Ok("1".to_owned());
    assert_eq!(user("app", ""), one());
    files.write("users", "\"postgres\" \"secret\"\n\"third\" \"x\"\n")?;
    assert_eq!(user("app", ""), one(), "nothing is read without a reload");
    pooler.console("reload")?;
    refused(user("app", ""), "\"trust\" authentication failed");
    std::fs::remove_file(&hba)?;
    pooler.console("reload")?;
    assert_eq!(user("postgres", ""), one());
    assert!(pooler.log()?.contains(&format!(
        "ERROR could not open hba config file {hba}: No such file or directory"
    )));
    files.write("hba", "host all all 127.0.0.1/32 md5\nnonsense\n")?;
    pooler.console("reload")?;
    refused(user("postgres", "wrong"), "password authentication failed");
    let ini = std::fs::read_to_string(pooler.ini())?;
    std::fs::write(pooler.ini(), format!("{ini}\nauth_hba_strict = 1\n"))?;
    files.write("hba", "nonsense\nhost all all 127.0.0.1/32 trust\n")?;
    assert!(pooler.console("reload").is_err());
    refused(user("postgres", "wrong"), "password authentication failed");
    files.write("users", "\"postgres\" \"secret\"\nbroken\n\"app\" \"secret\"\n")?;
    files.write("hba", "host all all 127.0.0.1/32 md5\n")?;
    pooler.console("reload")?;
    assert!(pooler.log()?.contains("ERROR broken auth file"));
    assert_eq!(user("postgres", "secret"), one());
    refused(user("app", "secret"), "password authentication failed");
    Ok(())
}

#[test]
fn keys_of_a_scram_login_pass_through_to_the_server() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let (postgres, _) = stage("postgres = SERVER", "")?;
    let verifier = postgres.sql("select rolpassword from pg_authid where rolname = 'app'")?;
    let files = Files::new()?;
    let users = format!("\"app\" \"{}\"\n\"postgres\" \"secret\"\n", verifier.trim());
    let users = files.write("users", &users)?;
    for method in ["scram-sha-256", "md5"] {
        let settings = format!("auth_type = {method}\nauth_file = {users}");
        let pooler = pooler(program(), &postgres, "postgres = SERVER", &settings)?;
        let user = |password| {
            psql(pooler.port, "user=app dbname=postgres", password, "select current_user")
        };
        refused(user("wrong"), "SASL authentication failed");
        assert_eq!(user("secret"), Ok("app".into()), "{method}");
        pooler.console("reconnect")?;
        assert_eq!(user("secret"), Ok("app".into()), "{method}");
    }
    Ok(())
}

#[test]
fn the_console_lets_in_whom_it_should() -> io::Result<()> {
    if !crate::wanted() {
        return Ok(());
    }
    let settings =
        "auth_type = md5\nadmin_users = postgres\nstats_users = app\nmax_client_conn = 0";
    let files = Files::new()?;
    let users =
        files.write("users", "\"postgres\" \"secret\"\n\"app\" \"secret\"\n\"x\" \"x\"\n")?;
    let (postgres, console) =
        stage("postgres = SERVER", &format!("{settings}\nauth_file = {users}"))?;
    let user = |words: &str, sql: &str| psql(console.port, words, "secret", sql);
    assert!(user("user=postgres dbname=pgbouncer", "reload").is_ok());
    assert!(user("user=app dbname=pgbouncer", "show version").is_ok());
    refused(user("user=app dbname=pgbouncer", "reload"), "admin access needed");
    // Refused before it is asked for a password.
    let mut raw = Raw::start(console.port, &[("user", "x"), ("database", "pgbouncer")])?;
    assert_eq!(raw.fatal(), "08P01 not allowed");
    let directory = console.ini().parent().map(|at| at.display().to_string()).unwrap_or_default();
    let local = format!("host={directory} user=pgbouncer dbname=pgbouncer");
    // Only for a process of the pooler's own user; tests may run as another one.
    let own = run(Command::new("setpriv")
        .args(["--reuid", "postgres", "--regid", "postgres", "--init-groups", "--"])
        .arg(programs()?.join("psql"))
        .args(["-X", "-A", "-t", &format!("{local} port={}", console.port), "-c", "reload"]));
    if run(Command::new("id").arg("-u"))?.trim() == "0" {
        own?;
        assert!(console.log()?.contains("pgbouncer access from unix socket"));
        refused(user(&local, "show version"), "not allowed");
    }
    let any = pooler(
        program(),
        &postgres,
        "postgres = SERVER\nforced = SERVER dbname=postgres \
        user=postgres",
        "auth_type = any",
    )?;
    let user = |words: &str, sql: &str| psql(any.port, words, "", sql);
    assert!(user("user=postgres dbname=pgbouncer", "reload").is_ok());
    refused(user("user=zoe dbname=pgbouncer", "reload"), "admin access needed");
    assert_eq!(user("user=zoe dbname=forced", "select current_user"), Ok("postgres".into()));
    refused(user("user=zoe dbname=postgres", "select 1"), "bouncer config error");
    refused(user("user=zoe dbname=nonexistent", "select 1"), "bouncer config error");
    assert!(any.log()?.contains("auth_type=any requires forced user"));
    Ok(())
}
