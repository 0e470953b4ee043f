//! Certificates for servers and clients, made anew by each test.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A certificate authority, and the directory with everything that it has issued.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

/// A certificate and its key, in PEM files.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Both in one, as ZooKeeper wants them.
    pub both: PathBuf,
}

/// How a server speaks TLS.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub identity: Identity,
    /// Whose certificates are good for clients.
    pub clients: PathBuf,
    /// Whether a client must show one.
    pub demanding: bool,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("the authority's certificate");
        let dir = tempfile::tempdir().expect("a directory for certificates");
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).expect("the authority's file");
        Authority { issuer, dir }
    }

    /// The file with the authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for whoever is at these names and addresses; for a client, which has none, anyone's.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let cert = params(name, hosts).signed_by(&key, &self.issuer).expect("a certificate");
        let (cert, key) = (cert.pem(), key.serialize_pem());
        Identity {
            both: self.write(name, "both.pem", &format!("{key}{cert}")),
            cert: self.write(name, "cert.pem", &cert),
            key: self.write(name, "key.pem", &key),
        }
    }

    /// What a server on the loopback interface needs that takes this authority's clients.
    pub fn server(&self, demanding: bool) -> ServerTls {
        let identity = self.issue("server", &["127.0.0.1", "localhost"]);
        ServerTls { identity, clients: self.file(), demanding }
    }

    fn write(&self, name: &str, kind: &str, pem: &str) -> PathBuf {
        let file = self.dir.path().join(format!("{name}.{kind}"));
        std::fs::write(&file, pem).expect("a PEM file");
        file
    }
}

impl Identity {
    /// The parameters of a store URL with this identity.
    pub fn query(&self) -> String {
        format!("tls_cert={}&tls_key={}", self.cert.display(), self.key.display())
    }

    /// What must be nowhere but in its file: a part of the private key, as PEM has it and as `Debug` shows bytes.
    pub fn secrets(&self) -> [String; 2] {
        let pem = std::fs::read_to_string(&self.key).expect("the key's file");
        let line = pem.lines().nth(1).expect("a key").to_owned();
        let key = KeyPair::from_pem(&pem).expect("the key");
        // Where the number is in a PKCS #8 key of a P-256 curve.
        let bytes = format!("{:?}", &key.serialized_der()[36..68]);
        [line, bytes.trim_matches(['[', ']']).to_owned()]
    }
}

fn params(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(hosts).expect("names and addresses");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// The parameter of a store URL that trusts the authorities in `file`.
pub fn trusting(file: &Path) -> String {
    format!("tls_ca={}", file.display())
}
