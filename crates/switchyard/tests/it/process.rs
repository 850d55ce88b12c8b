//! The process from outside: command line, start, background, files, sockets, signals, end.

use std::io;
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use switchyard_testkit::{Session, Workplace, signal, wait_until};

use super::{program, wanted};

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A console that is there.
fn console(place: &Workplace) -> io::Result<Session> {
    let mut session = Session::open(place.port, "postgres", "pgbouncer")?;
    session.run("show version")?;
    Ok(session)
}

/// Whether somebody listens.
fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn the_command_line() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    let name = program().display();
    let again = format!("Try \"{name} --help\" for more information.");
    for (arguments, first) in [
        (&["--nope"][..], "unrecognized option '--nope'"),
        (&["-x"], "invalid option -- 'x'"),
        (&[], "no configuration file specified"),
        (&["a", "b"], "no configuration file specified"),
    ] {
        let said = place.run(place.command(program()).args(arguments))?;
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""));
        assert_eq!(said.stderr, format!("{name}: {first}\n{again}"));
    }
    let said = place.run(place.command(program()).arg("-V"))?;
    assert!(said.code == Some(0) && said.stdout.starts_with("Switchyard "), "{said:?}");
    assert!(said.stdout.contains("(PgBouncer 1.25.2)\n"), "{said:?}");
    let said = place.run(place.command(program()).arg("--help"))?;
    assert!(said.code == Some(0) && said.stdout.contains("--daemon"), "{said:?}");
    let said = place.run(place.command(program()).arg("nofile"))?;
    assert_eq!(said.code, Some(1));
    assert_eq!(
        said.stderr,
        "ERROR could not load file \"nofile\": No such file or directory\n\
         FATAL cannot load config file"
    );
    let said = place.run(place.command(program()).args(["nofile", "-q"]))?;
    assert_eq!((said.code, said.stderr.as_str()), (Some(1), ""));
    Ok(())
}

#[test]
fn errors_of_a_file_read_as_pgbouncers() -> io::Result<()> {
    let reference = std::path::Path::new("/usr/sbin/pgbouncer");
    if !wanted() || !reference.exists() {
        return Ok(());
    }
    let place = Workplace::new()?;
    let long = "x".repeat(70);
    for text in [
        "[databases]\n",
        "[pgbouncer]\nlisten_port = many\n",
        "[pgbouncer]\npool_mode = foo\n",
        "[pgbouncer]\nserver_lifetime = -1\n",
        "[pgbouncer]\nmax_client_conn =\n",
        "[pgbouncer]\nauth_type = foo\n",
        "[pgbouncer]\n[databases]\npgbouncer = host=h\n",
        "[pgbouncer]\n[databases]\nd = host=\n",
        "[pgbouncer]\n[databases]\nd = port=0\n",
        "[pgbouncer]\n[databases]\nd = hist=1\n",
        "[pgbouncer]\n[databases]\nd = pool_mode=x\n",
        "[pgbouncer]\n[databases]\nd = client_encoding='a' 'b'\n",
        &format!("[pgbouncer]\n[databases]\n{long} = host=a\n"),
        "[pgbouncer]\n[users]\nu = pool_mode=x\n",
        "[pgbouncer]\n[users]\nu = foo=x\n",
        "[pgbouncer]\n[users]\nu = foo\n",
        "[pgbouncer]\n%include nofile\n",
        "[pgbouncer]\n%include\n",
        "[pgbouncer]\n[databases\n",
        "[pgbouncer]\nkey\n",
    ] {
        place.write("bad.ini", text)?;
        let theirs = place.run(place.command(reference).arg("bad.ini"))?;
        let ours = place.run(place.command(program()).arg("bad.ini"))?;
        // Ours reads on, and shows the line in question.
        let theirs_text = theirs.stderr.replace(", stopping loading", "");
        let shown = ours.stderr.lines().filter(|line| !line.starts_with('\t'));
        assert_eq!(shown.collect::<Vec<_>>().join("\n"), theirs_text, "{text}");
        assert_eq!(ours.code, theirs.code);
    }
    Ok(())
}

#[test]
fn errors_at_start_are_told_in_the_log_file_that_is_named() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    for (lines, errors) in [
        ("max_client_conn = many\nnope = 1", "ERROR unknown parameter: pgbouncer/nope\n"),
        ("[databases]\nd = port=0", "ERROR invalid port: 0\n"),
        ("[routes]\nx = query='(' -> d", "ERROR "),
        ("client_tls_sslmode = require", "ERROR To allow TLS connections from clients, "),
    ] {
        place.ini(lines)?;
        let said = place.run(place.command(program()).args(["-q", "pooler.ini"]))?;
        assert_eq!((said.code, said.stderr.as_str()), (Some(1), ""));
        let log = place.read("log");
        let last =
            if lines.contains("tls") { "TLS setup failed" } else { "cannot load config file" };
        assert!(log.contains(errors) && log.ends_with(&format!("FATAL {last}\n")), "{log}");
        std::fs::remove_file(place.path("log"))?;
    }
    if root() {
        // Root's file would be in the way of the user who has to write it once all is well.
        place.ini("user = postgres\nnope = 1")?;
        let said = place.run(place.own_command(program()).args(["-q", "pooler.ini"]))?;
        assert_eq!(said.code, Some(1));
        assert_ne!(std::fs::metadata(place.path("log"))?.uid(), 0);
    }
    Ok(())
}

#[test]
fn a_file_is_checked() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    place.ini(
        "server_lifetime = 1min\nio = auto\npkt_buf = 8192\n[databases]\n\"d\" = pool_size=3,",
    )?;
    let check = |file: &str| place.run(place.command(program()).args(["check", file]));
    let said = check("pooler.ini")?;
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    for line in [
        "WARNING d: pool_size=3, is not a number, read as 3\n",
        "IGNORED pkt_buf is accepted and does nothing: buffers grow as needed and limit nothing\n",
        "BETTER server_lifetime = 1min: a time or size with a unit\n",
        "BETTER a name in double quotes (pooler.ini:13)\n",
        "pooler.ini: 0 errors, 1 warnings, 0 pieces of advice, ",
    ] {
        assert!(said.stdout.contains(line), "{line}{}", said.stdout);
    }
    place.ini("nope = 1\nlisten_port = x\nauth_file = nofile")?;
    let said = check("pooler.ini")?;
    assert_eq!(said.code, Some(1));
    assert!(said.stdout.contains("ERROR unknown parameter: pgbouncer/nope\n"));
    assert!(said.stdout.contains("pooler.ini: 2 errors, "), "{}", said.stdout);
    place.ini("auth_file = nofile")?;
    let said = check("pooler.ini")?;
    let line = "ADVICE auth_file was set before (pooler.ini:8), this line wins\n";
    assert!(said.stdout.contains(line), "{}", said.stdout);
    let said = check("pooler.ini")?;
    let line = "ERROR could not open auth_file nofile: No such file or directory\n";
    assert!(said.stdout.contains(line) && said.code == Some(1), "{}", said.stdout);
    Ok(())
}

#[test]
fn a_check_reads_what_a_start_reads() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    place.write("hba", "local all all trust\nhost all all nonsense md5\n")?;
    place.write("broken", "\"a\" \"b\"\nbroken\n")?;
    let check = || place.run(place.command(program()).args(["check", "pooler.ini"]));
    for (settings, lines) in [
        (
            "auth_type = hba\nauth_hba_file = hba",
            &[
                "WARNING hba line 2: failed to parse address - nonsense\n",
                "WARNING could not parse hba config line 2\n",
                "ERROR hba config file hba has lines that cannot be used\n",
            ][..],
        ),
        (
            "auth_type = hba\nauth_hba_file = none",
            &["ERROR could not open hba config file none: No such file or directory\n"],
        ),
        ("auth_file = broken", &["ERROR broken auth file\n"]),
        (
            "client_tls_sslmode = require",
            &["ERROR To allow TLS connections from clients, client_tls_key_file and \
               client_tls_cert_file must be set.\n"],
        ),
        (
            "server_tls_sslmode = verify-full\nserver_tls_ca_file = none",
            &["ERROR TLS setup failed: ", "No such file or directory\n"],
        ),
        ("server_tls_ciphers = NONSENSE", &["ERROR invalid server_tls_ciphers: NONSENSE\n"]),
        ("[routes]\nx = query='(' -> d", &["ERROR "]),
        ("[databases]\nd = topology_query=q", &["ERROR topology_query of database \"d\" needs"]),
    ] {
        place.ini(settings)?;
        let said = check()?;
        assert_eq!(said.code, Some(1), "{settings} {said:?}");
        for line in lines {
            assert!(said.stdout.contains(line), "{line} {}", said.stdout);
        }
    }
    Ok(())
}

#[test]
fn the_example_is_right() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    for file in ["switchyard.ini", "userlist.txt"] {
        place.write(file, &std::fs::read_to_string(docs.join(file))?)?;
    }
    let said = place.run(place.command(program()).args(["check", "switchyard.ini"]))?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.starts_with("switchyard.ini: 0 errors, 0 warnings, "), "{said:?}");
    Ok(())
}

#[test]
fn a_start_says_what_it_does_in_order() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    // The file is only known when all of it was read.
    place.ini(
        "pidfile = pid\nlisten_addr = 127.0.0.1, 192.0.2.1\nmax_client_conn = 50\nsyslog = 0",
    )?;
    let pooler = place.up(program())?;
    let log = place.read("log");
    let mut rest = log.as_str();
    for text in [
        " WARNING setting syslog has no effect in this version\n".to_string(),
        " LOG kernel file descriptor limit: ".into(),
        "); max_client_conn: 50, max expected fd use: 62\n".into(),
        format!(" LOG listening on 127.0.0.1:{}\n", place.port),
        format!(
            " WARNING cannot listen on 192.0.2.1:{}: bind(): Cannot assign requested address\n",
            place.port
        ),
        format!(" LOG listening on unix:{}/.s.PGSQL.{}\n", place.path("").display(), place.port)
            .replace("/.s", ".s")
            .replace("//", "/"),
        " LOG process up: Switchyard ".into(),
    ] {
        let found = rest.split_once(&text);
        assert!(found.is_some(), "{text} in {log}");
        rest = found.map_or("", |(_, rest)| rest);
    }
    assert_eq!(place.read("pid"), format!("{}\n", pooler.pid()));
    assert_eq!(std::fs::metadata(place.path("pid"))?.permissions().mode() & 0o777, 0o644);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pooler.pid()))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = files.unwrap_or_default().split_whitespace().collect();
    assert_eq!(words[3], words[4], "the soft limit is as high as the hard one");
    Ok(())
}

#[test]
fn the_background_is_entered_when_everything_is_up() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    place.ini("pidfile = pid\njob_name = depot")?;
    let said = place.run(place.command(program()).args(["-d", "pooler.ini"]))?;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(listens(place.port));
    let pid: u32 = place.read("pid").trim().parse().map_err(io::Error::other)?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    assert!(stat.contains("(depot)"), "{stat}");
    // Its own session, and nothing of ours.
    let session = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(3));
    assert_eq!(session, Some(pid.to_string().as_str()));
    for number in 0..3 {
        let target = std::fs::read_link(format!("/proc/{pid}/fd/{number}"))?;
        assert_eq!(target.to_str(), Some("/dev/null"));
    }
    signal(pid, "INT")?;
    wait_until("end", || !place.path("pid").exists())?;
    assert!(!place.path(&format!(".s.PGSQL.{}", place.port)).exists());
    place.ini("")?;
    let said = place.run(place.command(program()).args(["-d", "pooler.ini"]))?;
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.ends_with("FATAL daemon needs pidfile configured"), "{said:?}");
    place.ini("pidfile = pid\nlisten_addr = 192.0.2.1")?;
    let said = place.run(place.command(program()).args(["-d", "pooler.ini"]))?;
    assert_eq!(said.code, Some(1));
    let last = "FATAL failed to listen on any address in listen_addr list: 192.0.2.1";
    assert!(said.stderr.ends_with(last), "{said:?}");
    assert!(!place.path("pid").exists());
    Ok(())
}

#[test]
fn root_becomes_another_user_or_nothing() -> io::Result<()> {
    if !wanted() || !root() {
        return Ok(());
    }
    let place = Workplace::new()?;
    place.ini("")?;
    let said = place.run(place.own_command(program()).arg("pooler.ini"))?;
    assert_eq!(said.code, Some(1));
    assert_eq!(said.stderr, "FATAL Switchyard should not run as root");
    let arguments = ["-u", "no such user", "pooler.ini"];
    let said = place.run(place.own_command(program()).args(arguments))?;
    assert_eq!(said.stderr, "FATAL could not find user 'no such user' to switch to");
    std::fs::remove_file(place.path("log"))?;
    place.ini("user = no such user, -u wins")?;
    let arguments = ["-q", "--user=postgres", "pooler.ini"];
    let pooler = place.start(place.own_command(program()).args(arguments))?;
    wait_until("process up", || place.read("log").contains("process up: "))?;
    let owner = std::fs::metadata(place.path("log"))?.uid();
    assert_ne!(owner, 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", pooler.pid()))?;
    let ids = format!("Uid:\t{owner}\t{owner}\t{owner}\t{owner}\n");
    assert!(status.contains(&ids), "{status}");
    assert!(!status.contains("\nGroups:\t0 "), "{status}");
    Ok(())
}

#[test]
fn pid_files_of_the_living_and_the_dead() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    place.ini("pidfile = pid")?;
    place.write("pid", "1\n")?;
    let said = place.run(place.command(program()).arg("pooler.ini"))?;
    assert_eq!(said.code, Some(1));
    assert_eq!(said.stderr, "FATAL pidfile 'pid' exists, another instance running?");
    place.write("pid", "2147483647\n")?;
    let mut pooler = place.up(program())?;
    assert!(place.read("log").contains("LOG stale pidfile, removing\n"));
    assert_eq!(place.read("pid"), format!("{}\n", pooler.pid()));
    pooler.signal("QUIT")?;
    assert_eq!(pooler.wait()?.code(), Some(0));
    assert!(!place.path("pid").exists());
    assert!(place.read("log").ends_with("LOG got SIGQUIT, fast exit\n"));
    Ok(())
}

#[test]
fn unix_sockets() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    let (socket, lock) = (format!(".s.PGSQL.{}", place.port), ".lock");
    let socket_path = place.path(&socket);
    // The file of a process that died is replaced.
    drop(UnixListener::bind(&socket_path)?);
    let groups = place.run(place.command(std::path::Path::new("id")).arg("-G"))?.stdout;
    let group = groups.split_whitespace().next_back().and_then(|group| group.parse().ok());
    let group: u32 = group.ok_or_else(|| io::Error::other("no groups"))?;
    place.ini(&format!("unix_socket_mode = 0750\nunix_socket_group = {group}"))?;
    let mut pooler = place.up(program())?;
    let file = std::fs::metadata(&socket_path)?;
    assert!(file.file_type().is_socket());
    assert_eq!((file.permissions().mode() & 0o777, file.gid()), (0o750, group));
    drop(UnixStream::connect(&socket_path)?);
    let said = place.run(place.command(program()).arg("pooler.ini"))?;
    assert_eq!(said.code, Some(1));
    assert_eq!(said.stderr, "FATAL unix socket is in use, cannot continue");
    assert!(socket_path.exists(), "the other process keeps its socket");
    pooler.signal("QUIT")?;
    pooler.wait()?;
    assert!(!socket_path.exists());

    place.write(&format!("{socket}{lock}"), "")?;
    let said = place.run(place.command(program()).arg("pooler.ini"))?;
    assert_eq!(said.code, Some(1));
    let text = format!("FATAL unix port {} is in use", place.port);
    assert!(said.stderr.ends_with(&text), "{said:?}");
    std::fs::remove_file(place.path(&format!("{socket}{lock}")))?;

    place.ini("unix_socket_group = no such group")?;
    let said = place.run(place.command(program()).arg("pooler.ini"))?;
    assert!(said.stderr.contains("could not find group 'no such group'"), "{said:?}");
    assert!(said.stderr.ends_with("FATAL failed to create unix socket"), "{said:?}");
    place.ini(&format!("unix_socket_dir = /tmp/{}", "x".repeat(100)))?;
    let said = place.run(place.command(program()).arg("pooler.ini"))?;
    assert!(said.stderr.ends_with("FATAL failed to create unix socket"), "{said:?}");
    place.ini("unix_socket_dir =\nlisten_addr =")?;
    let said = place.run(place.command(program()).arg("pooler.ini"))?;
    assert!(said.stderr.ends_with("FATAL nowhere to listen on"), "{said:?}");
    Ok(())
}

#[test]
fn abstract_unix_sockets() -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    place.ini(&format!("unix_socket_dir = @switchyard{}", place.port))?;
    let _pooler = place.up(program())?;
    let name = format!("switchyard{0}/.s.PGSQL.{0}", place.port);
    let address = SocketAddr::from_abstract_name(name.as_bytes())?;
    drop(UnixStream::connect_addr(&address)?);
    assert!(place.read("log").contains(&format!("listening on unix:@{name}\n")));
    let said = place.run(place.command(program()).arg("pooler.ini"))?;
    assert_eq!(said.stderr, "FATAL unix socket is in use, cannot continue");
    Ok(())
}

#[test]
fn processes_share_a_port_when_told_so() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let (one, mut two) = (Workplace::new()?, Workplace::new()?);
    two.port = one.port;
    one.ini("so_reuseport = 1")?;
    two.ini("")?;
    let _first = one.up(program())?;
    let said = two.run(two.command(program()).arg("pooler.ini"))?;
    assert!(said.stderr.contains(": bind(): Address already in use\n"), "{said:?}");
    two.ini("so_reuseport = 1")?;
    std::fs::remove_file(two.path("log"))?;
    let _second = two.up(program())?;
    Ok(())
}

#[test]
fn socket_options_that_fail_are_told() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    place.ini("tcp_keepcnt = 1000\ntcp_defer_accept = 0")?;
    let mut pooler = place.up(program())?;
    assert!(listens(place.port));
    let text = " WARNING setsockopt/TCP_KEEPCNT(";
    wait_until("a warning", || place.read("log").contains(text))?;
    assert!(place.read("log").contains(") failed: Invalid argument\n"));
    assert!(pooler.is_running());
    Ok(())
}

#[test]
fn accepting_waits_for_the_first_byte() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    place.ini("client_login_timeout = 0.3")?;
    let pooler = place.up(program())?;
    let silent = TcpStream::connect(("127.0.0.1", place.port))?;
    let admin = console(&place);
    assert!(admin.is_ok(), "whoever speaks is served");
    // The silent one is not known to the process, until the setting changes.
    assert!(!place.read("log").contains("client_login_timeout"));
    place.ini("client_login_timeout = 0.3\ntcp_defer_accept = 0")?;
    pooler.signal("HUP")?;
    wait_until("an end of who comes now", || {
        let _other = TcpStream::connect(("127.0.0.1", place.port));
        place.read("log").contains("closing because: client_login_timeout")
    })?;
    drop(silent);
    Ok(())
}

#[test]
fn a_log_file_that_was_moved_is_made_again() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    place.ini("")?;
    let pooler = place.up(program())?;
    std::fs::rename(place.path("log"), place.path("log.1"))?;
    pooler.signal("HUP")?;
    wait_until("the signal's line", || place.read("log.1").contains("got SIGHUP, re-reading"))?;
    pooler.signal("USR1")?;
    wait_until("a new file", || place.read("log").contains("LOG got SIGUSR1, pausing all"))?;
    pooler.signal("USR1")?;
    wait_until("a line", || place.read("log").contains("got SIGUSR1, but already paused"))?;
    pooler.signal("USR2")?;
    wait_until("a line", || place.read("log").contains("got SIGUSR2, continuing from PAUSE\n"))?;
    pooler.signal("USR2")?;
    wait_until("a line", || place.read("log").contains("got SIGUSR2, but not paused/suspended"))?;
    Ok(())
}

#[test]
fn an_end_that_waits_for_clients() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    let place = Workplace::new()?;
    place.ini("workers = 2")?;
    let mut pooler = place.up(program())?;
    let admin = console(&place)?;
    pooler.signal("TERM")?;
    let text = "LOG got SIGTERM, shutting down, waiting for all clients disconnect\n";
    wait_until("a line", || place.read("log").contains(text))?;
    wait_until("refusal", || !listens(place.port))?;
    assert!(pooler.is_running(), "a console holds the process");
    let socket = place.path(&format!(".s.PGSQL.{}", place.port));
    drop(UnixStream::connect(&socket)?);
    let refused = Command::new("psql")
        .args(["-X", "-h"])
        .arg(place.path(""))
        .args(["-p", &place.port.to_string(), "-U", "postgres", "nowhere"])
        .output()?;
    assert!(!refused.status.success());
    pooler.signal("USR2")?;
    let text = "got SIGUSR2 while shutting down, ignoring\n";
    wait_until("a line", || place.read("log").contains(text))?;
    drop(admin);
    assert_eq!(pooler.wait()?.code(), Some(0));
    assert!(place.read("log").ends_with("LOG client connections dropped, exiting\n"));
    assert!(!socket.exists());
    Ok(())
}

#[test]
fn a_second_signal_ends_at_once() -> io::Result<()> {
    if !wanted() {
        return Ok(());
    }
    for (first, second) in [("TERM", "TERM"), ("TERM", "INT"), ("INT", "QUIT")] {
        let place = Workplace::new()?;
        place.ini("")?;
        let mut pooler = place.up(program())?;
        let _admin = console(&place)?;
        pooler.signal(first)?;
        if first == "TERM" {
            wait_until("a line", || place.read("log").contains("got SIGTERM"))?;
            pooler.signal(second)?;
            let text = format!("LOG got SIG{second} while shutting down, fast exit\n");
            wait_until("a line", || place.read("log").ends_with(&text))?;
        } else {
            // Nobody uses a server, so that the first one is enough.
            let text = "LOG server connections dropped, exiting\n";
            wait_until("a line", || place.read("log").ends_with(text))?;
        }
        assert_eq!(pooler.wait()?.code(), Some(0));
    }
    Ok(())
}
