//! The connection to one endpoint: timeouts, keep-alive, flow control, TLS.

use crate::config::{Config, TlsConfig};
use crate::error::{Error, Result};
use std::time::Duration;
use tonic::transport::Endpoint;

/// A connection that was silent for so long is asked for a sign of life. etcd takes no such question within 5 s of another.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(6);
/// A connection that gives none within so long is given up: 9 s after the last sign, that is.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How soon that shows at the latest, whatever is on the connection.
pub(super) const NOTICED_WITHIN: Duration = KEEP_ALIVE_INTERVAL.saturating_add(KEEP_ALIVE_TIMEOUT);
/// How much of an answer, and of all answers together, may be on its way: more than the largest value.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

/// How to connect to the endpoint `server`.
///
/// # Errors
/// [`Error::InvalidConfig`] for an impossible name or bad TLS files, [`Error::Unsupported`] for TLS in a build without it.
pub(super) fn endpoint(config: &Config, server: &str) -> Result<Endpoint> {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let wrong = |error| Error::invalid_config(format!("host `{server}`"), format!("{error}"));
    let endpoint = Endpoint::from_shared(format!("{scheme}://{server}"))
        .and_then(|endpoint| endpoint.user_agent(concat!("kvactor/", env!("CARGO_PKG_VERSION"))))
        .map_err(wrong)?
        .connect_timeout(config.options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        // etcd forbids it without an open stream; the session's sentinel is one.
        .keep_alive_while_idle(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    match &config.tls {
        Some(tls) => with_tls(endpoint, tls, config.options.connect_timeout),
        None => Ok(endpoint),
    }
}

#[cfg(not(feature = "tls"))]
fn with_tls(_: Endpoint, _: &TlsConfig, _: Duration) -> Result<Endpoint> {
    Err(Error::unsupported("TLS needs kvactor's cargo feature `tls`; enable it, or use an etcd:// URL"))
}

/// The files are read for each connection, so that renewed certificates are taken up.
#[cfg(feature = "tls")]
fn with_tls(endpoint: Endpoint, tls: &TlsConfig, timeout: Duration) -> Result<Endpoint> {
    use tonic::transport::{Certificate, ClientTlsConfig, Identity};

    let mut client = ClientTlsConfig::new().timeout(timeout);
    client = match &tls.ca {
        Some(ca) => client.ca_certificate(Certificate::from_pem(pem("tls_ca", ca)?)),
        None => client.with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        client = client.identity(Identity::from_pem(pem("tls_cert", cert)?, pem("tls_key", key)?));
    }
    endpoint.tls_config(client).map_err(|error| {
        let mut reason = error.to_string();
        if let Some(cause) = std::error::Error::source(&error) {
            reason = format!("{reason}: {cause}");
        }
        Error::invalid_config("tls_ca, tls_cert or tls_key", reason)
    })
}

#[cfg(feature = "tls")]
fn pem(field: &str, path: &std::path::Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::invalid_config(field, format!("can't read {}: {error}", path.display())))
}

/// Whether the files are any good, told more precisely than tonic does.
#[cfg(feature = "tls")]
pub(super) fn check_files(tls: &TlsConfig) -> Result<()> {
    crate::tls::client_config(tls).map(drop)
}

/// Connections can't be made anyway.
#[cfg(not(feature = "tls"))]
pub(super) fn check_files(_: &TlsConfig) -> Result<()> {
    Ok(())
}
