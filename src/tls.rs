//! TLS settings for the drivers' connections, from [`TlsConfig`].

use crate::config::TlsConfig;
use crate::error::{Error, Result};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

/// What rustls needs for connections as `tls` describes them. Reads the files that it names.
///
/// # Errors
/// [`Error::InvalidConfig`], naming the setting and its file.
pub(crate) fn client_config(tls: &TlsConfig) -> Result<ClientConfig> {
    // Named here, as rustls panics where a build has several providers and no default.
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::invalid_config("tls", error.to_string()))?
        .with_root_certificates(authorities(tls.ca.as_deref())?);
    match (&tls.cert, &tls.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), Some(key)) => {
            let private_key = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("tls_key", key, error))?;
            builder.with_client_auth_cert(certificates("tls_cert", cert)?, private_key).map_err(|error| {
                wrong("tls_cert", cert, format_args!("it doesn't go with `{}`: {error}", key.display()))
            })
        }
        _ => Err(Error::invalid_config("tls_cert and tls_key", "one doesn't go without the other")),
    }
}

/// The authorities to trust: those in the file, or the system's.
fn authorities(file: Option<&Path>) -> Result<RootCertStore> {
    match file {
        Some(file) => authorities_in(file),
        None => system_authorities(),
    }
}

fn authorities_in(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("tls_ca", file)? {
        roots.add(certificate).map_err(|error| wrong("tls_ca", file, error))?;
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // Some of a system's many certificates may be unreadable or outdated; that is none of our business while others are
    // left.
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let reason = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
    Err(Error::invalid_config(
        "tls_ca",
        format!("it isn't set, and the system has no certificate authorities to trust instead{reason}"),
    ))
}

/// The certificates in a PEM file, at least one.
fn certificates(setting: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(wrong(setting, file, "it has no certificate in PEM form")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(wrong(setting, file, error)),
    }
}

fn wrong(setting: &str, file: &Path, reason: impl Display) -> Error {
    Error::invalid_config(setting, format!("the file `{}` is of no use: {reason}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn wrong_setting(tls: &TlsConfig) -> (String, String) {
        match client_config(tls) {
            Err(Error::InvalidConfig { part, reason }) => (part, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_setting_and_its_file_are_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "no certificate").unwrap();
        let path = file.path().to_path_buf();
        let (part, reason) = wrong_setting(&TlsConfig { ca: Some(path.clone()), ..TlsConfig::default() });
        assert_eq!(part, "tls_ca");
        assert!(reason.contains(path.to_str().unwrap()), "{reason}");
        let missing = TlsConfig { ca: Some("/nonexistent/ca.pem".into()), ..TlsConfig::default() };
        assert!(wrong_setting(&missing).1.contains("/nonexistent/ca.pem"));
    }
}
