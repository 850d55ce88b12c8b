//! Certificates made by the openssl program, as operators make them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{directory, run, unprivileged};

/// A directory of certificates `NAME.crt` with keys `NAME.key`, which the unprivileged user owns.
#[derive(Debug)]
pub struct Certificates(tempfile::TempDir);

/// How a key is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA with 2048 bits.
    Rsa,
    /// ECDSA on P-256.
    Ecdsa,
}

impl KeyKind {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            KeyKind::Rsa => &["-newkey", "rsa:2048"],
            KeyKind::Ecdsa => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        }
    }
}

impl Certificates {
    /// An empty directory.
    pub fn new() -> io::Result<Self> {
        directory().map(Certificates)
    }

    /// A file in it.
    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    /// The same as text.
    pub fn text(&self, file: &str) -> String {
        self.path(file).display().to_string()
    }

    fn openssl(&self, arguments: &[&str]) -> io::Result<String> {
        let mut command = unprivileged(Path::new("openssl"));
        run(command.args(arguments).current_dir(self.0.path()))
    }

    /// Writes a file that the unprivileged user may read.
    pub fn write(&self, file: &str, text: &str) -> io::Result<()> {
        std::fs::write(self.path(file), text)
    }

    /// A self-signed certificate by the usual one-liner.
    pub fn self_signed(&self, name: &str, kind: KeyKind) -> io::Result<()> {
        let (key, crt) = (format!("{name}.key"), format!("{name}.crt"));
        let subject = format!("/CN={name}");
        let mut arguments = vec!["req"];
        arguments.extend(kind.arguments());
        arguments.extend(["-nodes", "-keyout", &key, "-x509", "-days", "365", "-out", &crt]);
        arguments.extend(["-subj", &subject]);
        self.openssl(&arguments).map(drop)
    }

    /// An authority by the recipe in PostgreSQL's documentation.
    pub fn authority(&self, name: &str) -> io::Result<()> {
        let (key, csr, crt) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
        let subject = format!("/CN={name}.yourdomain.com");
        self.openssl(&[
            "req", "-new", "-nodes", "-text", "-out", &csr, "-keyout", &key, "-subj", &subject,
        ])?;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-text",
            "-days",
            "3650",
            "-extfile",
            "/etc/ssl/openssl.cnf",
            "-extensions",
            "v3_ca",
            "-signkey",
            &key,
            "-out",
            &crt,
        ])
        .map(drop)
    }

    /// A certificate for `common` by the same recipe, of version 1; with `extensions`, of
    /// version 3.
    pub fn issue(
        &self,
        authority: &str,
        name: &str,
        common: &str,
        extensions: Option<&str>,
    ) -> io::Result<()> {
        let (key, csr, crt) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
        let subject = format!("/CN={common}");
        self.openssl(&[
            "req", "-new", "-nodes", "-text", "-out", &csr, "-keyout", &key, "-subj", &subject,
        ])?;
        let (ca, ca_key) = (format!("{authority}.crt"), format!("{authority}.key"));
        let mut arguments = vec!["x509", "-req", "-in", &csr, "-text", "-days", "365", "-CA", &ca];
        arguments.extend(["-CAkey", &ca_key, "-CAcreateserial", "-out", &crt]);
        let file = format!("{name}.ext");
        if let Some(extensions) = extensions {
            self.write(&file, extensions)?;
            arguments.extend(["-extfile", &file]);
        }
        self.openssl(&arguments).map(drop)
    }

    /// The certificate's fields in openssl's words.
    pub fn show(&self, name: &str) -> io::Result<String> {
        let crt = self.text(&format!("{name}.crt"));
        run(Command::new("openssl").args(["x509", "-noout", "-text", "-in", &crt]))
    }
}
