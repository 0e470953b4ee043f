//! TLS to ZooKeeper.

use crate::config::{Endpoint, TlsConfig};
use crate::error::{Error, Result};
use zookeeper_client::{Client, Connector, Error as Failure};

#[cfg(not(feature = "tls"))]
pub(super) enum Tls {}

#[cfg(not(feature = "tls"))]
impl Tls {
    pub(super) fn load(_config: &TlsConfig, _endpoints: &[Endpoint]) -> Result<Self> {
        Err(Error::unsupported("TLS to ZooKeeper needs kvactor built with its feature `tls`"))
    }

    pub(super) async fn connect(&self, _connector: Connector, _servers: &str) -> Result<Client, Failure> {
        match *self {}
    }
}

#[cfg(feature = "tls")]
pub(super) use with_rustls::Tls;

#[cfg(feature = "tls")]
mod with_rustls {
    use super::{Client, Connector, Endpoint, Error, Failure, Result, TlsConfig};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rustls::crypto::{CryptoProvider, aws_lc_rs};
    use rustls::pki_types::ServerName;
    use std::fmt::Write as _;
    use std::path::Path;
    use zookeeper_client::TlsOptions;

    /// Certificates and keys, read and understood.
    pub(in super::super) struct Tls(TlsOptions);

    impl Tls {
        pub(in super::super) fn load(config: &TlsConfig, endpoints: &[Endpoint]) -> Result<Self> {
            endpoints.iter().try_for_each(check_name)?;
            // The client library skips certificates that it can't read, and its errors name no file.
            crate::tls::client_config(config)?;
            // The client library takes the process's provider, and panics if there is none and rustls is built with several.
            if CryptoProvider::get_default().is_none() {
                // An error says that another thread was faster.
                let _ = aws_lc_rs::default_provider().install_default();
            }
            let roots = match &config.ca {
                Some(path) => read("tls_ca", path)?,
                None => system_roots()?,
            };
            let mut options = TlsOptions::new().with_pem_ca(&roots).map_err(|failure| wrong("tls_ca", &failure))?;
            if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
                let (cert, key) = (read("tls_cert", cert)?, read("tls_key", key)?);
                options = options
                    .with_pem_identity(&cert, &key)
                    .map_err(|failure| wrong("tls_cert and tls_key", &failure))?;
            }
            Ok(Tls(options))
        }

        pub(in super::super) async fn connect(&self, connector: Connector, servers: &str) -> Result<Client, Failure> {
            connector.with_tls(self.0.clone()).secure_connect(servers).await
        }
    }

    /// The client library panics at a host that can be in no certificate.
    fn check_name(endpoint: &Endpoint) -> Result<()> {
        let name = endpoint.host.trim_start_matches('[').trim_end_matches(']');
        match ServerName::try_from(name) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::invalid_config(format!("host `{}`", endpoint.host), error.to_string())),
        }
    }

    fn read(part: &str, path: &Path) -> Result<String> {
        let unreadable = |error| Error::invalid_config(part, format!("{} can't be read: {error}", path.display()));
        std::fs::read_to_string(path).map_err(unreadable)
    }

    /// The certificate authorities that the system trusts, as PEM.
    fn system_roots() -> Result<String> {
        let mut pem = String::new();
        for cert in rustls_native_certs::load_native_certs().certs {
            // Writing to a `String` can't fail.
            let _ = writeln!(pem, "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----", STANDARD.encode(cert));
        }
        if pem.is_empty() {
            return Err(Error::invalid_config(
                "tls_ca",
                "it is not set, and the system trusts no certificate authority",
            ));
        }
        Ok(pem)
    }

    fn wrong(part: &str, failure: &Failure) -> Error {
        Error::invalid_config(part, failure.to_string())
    }
}
