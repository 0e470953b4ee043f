//! [`Config`]: which store to open and how, from a URL or from code.

use crate::error::{Error, Result};
use crate::key::{Dir, Namespace};
use crate::types::BackendKind;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

/// Which store to open and how. [`Config::from_url`] makes one from a store URL; the fields can then be changed.
///
/// | store | URL |
/// |---|---|
/// | Consul | `consul://host:8500/prefix`, with TLS `consul+tls://` |
/// | etcd | `etcd://h1:2379,h2:2379,h3:2379/prefix`, with TLS `etcds://` or `etcd+tls://` |
/// | ZooKeeper | `zk://h1:2181,h2:2181/prefix` or `zookeeper://`, with TLS `zk+tls://` |
/// | a file | `local:///path/to/file.redb` |
/// | memory | `memory://name` |
///
/// The path of a server's URL is a namespace: every key lives under it, and callers never see it. Several hosts are tried in
/// turn. A user and password are written `user:password@`, percent-encoded; `@` anywhere else is written `%40`. Where the URL
/// has none, the environment's `KVACTOR_USER` and `KVACTOR_PASSWORD` are taken. Consul's token is the password. Query
/// parameters set the fields of [`Options`] by their names: `?request_timeout=3s&lazy=true`.
///
/// Credentials appear in no `Debug` output, error or log.
///
/// ```
/// use kvactor::{BackendKind, Config};
/// use std::time::Duration;
///
/// let mut config = Config::from_url("etcd://h1:2379,h2:2379/apps/shop?request_timeout=3s")?;
/// assert_eq!(config.backend, BackendKind::Etcd);
/// assert_eq!(config.endpoints.len(), 2);
/// assert_eq!(config.options.request_timeout, Duration::from_secs(3));
/// config.options.max_in_flight = 64;
/// # Ok::<(), kvactor::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The backend.
    pub backend: BackendKind,
    /// The servers, in the order in which they are tried. Empty for the embedded stores.
    pub endpoints: Vec<Endpoint>,
    /// The file of a `local` store, or the name of a `memory` store.
    pub location: PathBuf,
    /// Where the keys live on the server.
    pub namespace: Namespace,
    /// Who we are to the server.
    pub credentials: Option<Credentials>,
    /// Whether and how to speak TLS.
    pub tls: Option<TlsConfig>,
    /// Everything with a default.
    pub options: Options,
}

/// A server's host name or address, and its port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The host name or address; an IPv6 address in brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A user and a password, or a token as the password. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user; empty where a token says it all.
    pub user: String,
    /// The password or token.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

/// How to speak TLS. With all fields empty the system's certificate authorities are trusted and no client certificate is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM file with the certificate authorities to trust instead of the system's (`tls_ca`).
    pub ca: Option<PathBuf>,
    /// PEM file with our own certificate (`tls_cert`), for servers that ask for one; needs `key`.
    pub cert: Option<PathBuf>,
    /// PEM file with the certificate's private key (`tls_key`).
    pub key: Option<PathBuf>,
}

/// The settings with defaults; each can be set in the URL's query by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// How long a call may take, waiting for the link included. 5 s.
    pub request_timeout: Duration,
    /// How long one attempt to connect may take. 3 s.
    pub connect_timeout: Duration,
    /// The session timeout asked of ZooKeeper: how long the server keeps the session, and with it keys with a TTL, without
    /// hearing of us. 8 s. The others have no session of that kind.
    pub session_timeout: Duration,
    /// Open the store at once and connect in the background. Otherwise opening waits for the first connection and fails with
    /// its error. `false`.
    pub lazy: bool,
    /// How many calls may be with the server at once; further ones wait their turn up to their deadlines. 1024.
    pub max_in_flight: u32,
    /// Largest value in bytes. 512 KiB, which every backend takes; at most
    /// [`Capabilities::max_value_size`](crate::Capabilities::max_value_size).
    pub max_value_size: usize,
    /// The wait before the second round of attempts to connect; it doubles with each, with jitter of as much again. 50 ms.
    pub backoff_min: Duration,
    /// The longest wait between two attempts. 5 s.
    pub backoff_max: Duration,
    /// A link that was up for this long starts again from `backoff_min` when it is lost. 10 s.
    pub backoff_reset: Duration,
    /// How long a watched connection may be silent before it is taken for dead; at least 3 s. 10 s. ZooKeeper's bound is less:
    /// two fifths of `session_timeout`.
    pub idle_timeout: Duration,
    /// How many connections the watches of this store hold at Consul at the most, whose agents grant a client 200; with more
    /// watches than that, neighbours share one. 64. The other backends need one connection for all watches.
    pub max_watch_connections: u32,
    /// How many events wait for a subscriber before they are merged by key. 1024.
    pub watch_buffer: u32,
    /// For how long Consul gives a lock to nobody after its holder's session ended without a release: time for what the holder
    /// still has on its way to arrive. At most 60 s. 15 s. Locks that are released are free at once.
    pub lock_delay: Duration,
    /// Consul's data center, where it isn't the agent's own.
    pub datacenter: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            request_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(3),
            session_timeout: Duration::from_secs(8),
            lazy: false,
            max_in_flight: 1024,
            max_value_size: 512 * 1024,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(5),
            backoff_reset: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10),
            max_watch_connections: 64,
            watch_buffer: 1024,
            lock_delay: Duration::from_secs(15),
            datacenter: None,
        }
    }
}

/// The longest time that any setting may have.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

impl Options {
    pub(crate) fn validate(&self) -> Result<()> {
        let durations = [
            ("request_timeout", self.request_timeout),
            ("connect_timeout", self.connect_timeout),
            ("session_timeout", self.session_timeout),
            ("backoff_min", self.backoff_min),
        ];
        for (name, duration) in durations {
            if duration < Duration::from_millis(1) {
                return Err(Error::invalid_config(name, "it must be at least 1ms"));
            }
        }
        let all = durations.iter().map(|(name, duration)| (*name, *duration));
        let longest = all.chain([
            ("backoff_max", self.backoff_max),
            ("backoff_reset", self.backoff_reset),
            ("idle_timeout", self.idle_timeout),
        ]);
        if let Some((name, _)) = longest.into_iter().find(|(_, duration)| *duration > MAX_TIMEOUT) {
            return Err(Error::invalid_config(name, "it must be at most 365 days"));
        }
        if self.backoff_max < self.backoff_min {
            return Err(Error::invalid_config("backoff_max", "it must not be below `backoff_min`"));
        }
        if self.lock_delay > Duration::from_secs(60) {
            return Err(Error::invalid_config("lock_delay", "it must be at most 60s"));
        }
        if self.idle_timeout < Duration::from_secs(3) {
            return Err(Error::invalid_config("idle_timeout", "it must be at least 3s"));
        }
        for (name, bound) in
            [("max_watch_connections", self.max_watch_connections), ("watch_buffer", self.watch_buffer)]
        {
            if bound == 0 || bound > 1 << 20 {
                return Err(Error::invalid_config(name, "it must be from 1 to 1048576"));
            }
        }
        if self.max_in_flight == 0 || self.max_in_flight > 1 << 20 {
            return Err(Error::invalid_config("max_in_flight", "it must be from 1 to 1048576"));
        }
        Ok(())
    }
}

/// What a URL's scheme stands for.
struct Scheme {
    backend: BackendKind,
    tls: bool,
    port: u16,
}

impl Scheme {
    fn parse(name: &str) -> Result<Self> {
        let (backend, tls, port) = match name {
            "consul" => (BackendKind::Consul, false, 8500),
            "consul+tls" => (BackendKind::Consul, true, 8501),
            "etcd" => (BackendKind::Etcd, false, 2379),
            "etcds" | "etcd+tls" => (BackendKind::Etcd, true, 2379),
            "zk" | "zookeeper" => (BackendKind::ZooKeeper, false, 2181),
            "zk+tls" | "zookeeper+tls" => (BackendKind::ZooKeeper, true, 2281),
            "local" => (BackendKind::Local, false, 0),
            "memory" => (BackendKind::Memory, false, 0),
            _ => {
                // Credentials may have strayed to where the scheme should be.
                let is_scheme = name.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
                return Err(Error::invalid_config(
                    if is_scheme { format!("URL scheme `{name}`") } else { "URL scheme".to_owned() },
                    "known are consul, consul+tls, etcd, etcds, etcd+tls, zk, zookeeper, zk+tls, local and memory",
                ));
            }
        };
        Ok(Scheme { backend, tls, port })
    }
}

impl Config {
    /// The configuration that a store URL describes.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], naming the part of the URL that is wrong. Nothing is contacted and no file is opened.
    pub fn from_url(url: &str) -> Result<Self> {
        let (name, rest) = url.split_once("://").ok_or_else(|| {
            Error::invalid_config("store URL", "it has no `://`; an example is etcd://127.0.0.1:2379/prefix")
        })?;
        let scheme = Scheme::parse(name)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if rest.contains('#') || query.contains('#') {
            return Err(Error::invalid_config("URL fragment", "a store URL has none; write `#` in a path as %23"));
        }
        let mut config = match scheme.backend {
            BackendKind::Local => {
                // A path may have an `@`; what follows has none.
                check_credentials("", query)?;
                Config::local(rest)?
            }
            BackendKind::Memory => {
                check_credentials(rest, query)?;
                Config::memory(rest)?
            }
            _ => {
                check_credentials(rest, query)?;
                Config::server(&scheme, rest)?
            }
        };
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            config.set(&name, &value)?;
        }
        config.validate()?;
        Ok(config)
    }

    fn new(backend: BackendKind) -> Self {
        Config {
            backend,
            endpoints: Vec::new(),
            location: PathBuf::new(),
            namespace: Namespace::default(),
            credentials: None,
            tls: None,
            options: Options::default(),
        }
    }

    fn local(rest: &str) -> Result<Self> {
        let path = decode(rest).map_err(|_| Error::invalid_config("path of the URL", "it is no UTF-8 when decoded"))?;
        if !path.starts_with('/') {
            return Err(Error::invalid_config(
                "path of the URL",
                "a local store needs an absolute path: local:///path/to/file.redb",
            ));
        }
        if path.ends_with('/') {
            return Err(Error::invalid_config("path of the URL", format!("`{path}` is a directory, not a file")));
        }
        Ok(Config { location: path.into(), ..Config::new(BackendKind::Local) })
    }

    fn memory(rest: &str) -> Result<Self> {
        let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
        if name.contains('@') {
            return Err(Error::invalid_config("credentials in the URL", "a memory store has none; write `@` as %40"));
        }
        if name.is_empty() {
            return Err(Error::invalid_config("host of the URL", "a memory store needs a name: memory://name"));
        }
        let name = decode(name).map_err(|_| Error::invalid_config("host of the URL", "it is no UTF-8 when decoded"))?;
        Ok(Config { location: name.into(), namespace: namespace(path)?, ..Config::new(BackendKind::Memory) })
    }

    fn server(scheme: &Scheme, rest: &str) -> Result<Self> {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user_info, hosts) = match authority.rsplit_once('@') {
            Some((user_info, hosts)) => (Some(user_info), hosts),
            None => (None, authority),
        };
        let endpoints = hosts.split(',').map(|host| endpoint(host, scheme.port)).collect::<Result<_>>()?;
        let credentials = match user_info {
            Some(user_info) => Some(credentials(user_info)?),
            None => environment_credentials(),
        };
        Ok(Config {
            endpoints,
            namespace: namespace(path)?,
            credentials,
            tls: scheme.tls.then(TlsConfig::default),
            ..Config::new(scheme.backend)
        })
    }

    /// Sets the option `name` from its text, as a query parameter does.
    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let options = &mut self.options;
        match name {
            "request_timeout" => options.request_timeout = duration(name, value)?,
            "connect_timeout" => options.connect_timeout = duration(name, value)?,
            "session_timeout" => options.session_timeout = duration(name, value)?,
            "backoff_min" => options.backoff_min = duration(name, value)?,
            "backoff_max" => options.backoff_max = duration(name, value)?,
            "backoff_reset" => options.backoff_reset = duration(name, value)?,
            "lazy" => options.lazy = parsed(name, value, "`true` or `false`")?,
            "max_in_flight" => options.max_in_flight = parsed(name, value, "a whole number")?,
            "max_value_size" => options.max_value_size = parsed(name, value, "a number of bytes")?,
            "idle_timeout" => options.idle_timeout = duration(name, value)?,
            "max_watch_connections" => options.max_watch_connections = parsed(name, value, "a whole number")?,
            "watch_buffer" => options.watch_buffer = parsed(name, value, "a whole number")?,
            "lock_delay" if self.backend == BackendKind::Consul => options.lock_delay = duration(name, value)?,
            "datacenter" if self.backend == BackendKind::Consul => options.datacenter = Some(value.to_owned()),
            // Decoded already, as every parameter's value is.
            "namespace" => self.namespace = decoded_namespace(value)?,
            "tls_ca" => self.tls_field(name)?.ca = Some(value.into()),
            "tls_cert" => self.tls_field(name)?.cert = Some(value.into()),
            "tls_key" => self.tls_field(name)?.key = Some(value.into()),
            _ => return Err(unknown_parameter(name, self.backend)),
        }
        Ok(())
    }

    fn tls_field(&mut self, name: &str) -> Result<&mut TlsConfig> {
        self.tls
            .as_mut()
            .ok_or_else(|| Error::invalid_config(format!("parameter `{name}`"), "the URL's scheme is one without TLS"))
    }

    /// Checks what the types don't: called for every store that is opened.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], naming the field.
    pub fn validate(&self) -> Result<()> {
        self.options.validate()?;
        if self.tls.as_ref().is_some_and(|tls| tls.cert.is_some() != tls.key.is_some()) {
            return Err(Error::invalid_config("tls_cert and tls_key", "one doesn't go without the other"));
        }
        Ok(())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("backend", &self.backend)
            .field("endpoints", &self.endpoints)
            .field("location", &self.location)
            .field("namespace", &self.namespace.dir())
            .field("credentials", &self.credentials)
            .field("tls", &self.tls)
            .field("options", &self.options)
            .finish()
    }
}

fn namespace(path: &str) -> Result<Namespace> {
    let path = decode(path).map_err(|_| Error::invalid_config("namespace", "it is no UTF-8 when decoded"))?;
    decoded_namespace(&path)
}

fn decoded_namespace(path: &str) -> Result<Namespace> {
    match Dir::parse(path) {
        Ok(dir) => Ok(Namespace::new(dir)),
        Err(error) => Err(Error::invalid_config("namespace", error.to_string())),
    }
}

/// A host and port; `url` knows the rules for names, addresses and ports.
fn endpoint(text: &str, default_port: u16) -> Result<Endpoint> {
    let wrong = |reason: String| Error::invalid_config(format!("host `{text}`"), reason);
    if text.is_empty() {
        return Err(wrong("a host is missing; give at least one, and several as h1:port,h2:port".into()));
    }
    if text.contains(['/', '?', '#', '@', '\\']) || text.contains(char::is_whitespace) {
        return Err(wrong("it has characters that no host has".into()));
    }
    // `http` is one of the schemes for which the URL standard normalises hosts; its default port, 80, is left out there.
    let url = Url::parse(&format!("http://{text}/")).map_err(|error| wrong(error.to_string()))?;
    let host = url.host_str().ok_or_else(|| wrong("it is empty".into()))?.to_owned();
    let explicit = text.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.contains(']'));
    let port = match (explicit, url.port_or_known_default()) {
        (true, Some(port)) => port,
        _ => default_port,
    };
    if port == 0 {
        return Err(wrong("no server listens on port 0".into()));
    }
    Ok(Endpoint { host, port })
}

/// Refuses a URL that a `/` or `?` in a password has torn apart, before parts of the password pass for something else, which
/// errors and `Debug` output may show.
fn check_credentials(rest: &str, query: &str) -> Result<()> {
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    match path.contains('@') || query.contains('@') {
        true => Err(Error::invalid_config(
            "`@` behind the hosts of the URL",
            "write it as %40; and write `/`, `?`, `#`, `:` and `%` in a user or password as %2F, %3F, %23, %3A and %25",
        )),
        false => Ok(()),
    }
}

fn credentials(user_info: &str) -> Result<Credentials> {
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let decoded = |text: &str| {
        decode(text).map_err(|_| Error::invalid_config("credentials in the URL", "they are no UTF-8 when decoded"))
    };
    Ok(Credentials { user: decoded(user)?, password: decoded(password)? })
}

fn environment_credentials() -> Option<Credentials> {
    let user = std::env::var("KVACTOR_USER").unwrap_or_default();
    let password = std::env::var("KVACTOR_PASSWORD").unwrap_or_default();
    (!user.is_empty() || !password.is_empty()).then_some(Credentials { user, password })
}

fn duration(name: &str, value: &str) -> Result<Duration> {
    humantime::parse_duration(value).map_err(|error| {
        Error::invalid_config(
            format!("parameter `{name}`"),
            format!("`{value}` is no duration like 3s or 250ms: {error}"),
        )
    })
}

fn parsed<T: std::str::FromStr>(name: &str, value: &str, expected: &str) -> Result<T> {
    value
        .parse()
        .map_err(|_| Error::invalid_config(format!("parameter `{name}`"), format!("`{value}` is not {expected}")))
}

fn unknown_parameter(name: &str, backend: BackendKind) -> Error {
    let known = "request_timeout, connect_timeout, session_timeout, lazy, max_in_flight, max_value_size, backoff_min, \
                 backoff_max, backoff_reset, idle_timeout, max_watch_connections, watch_buffer, namespace, with TLS tls_ca, tls_cert and tls_key, with Consul datacenter and lock_delay";
    Error::invalid_config(format!("parameter `{name}`"), format!("unknown for {backend}; known are {known}"))
}

fn decode(text: &str) -> Result<String, std::str::Utf8Error> {
    percent_encoding::percent_decode_str(text).decode_utf8().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wrong_part(url: &str) -> String {
        match Config::from_url(url) {
            Err(Error::InvalidConfig { part, .. }) => part,
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn servers_hosts_and_namespace() {
        let config = Config::from_url("etcd://h1,h2:1,[::1]:2/a%20b//c/").unwrap();
        let hosts: Vec<_> = config.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, ["h1:2379", "h2:1", "[::1]:2"]);
        assert_eq!(config.namespace.dir().as_str(), "a b/c");
        assert_eq!(Config::from_url("consul://h:80").unwrap().endpoints[0].port, 80);
        assert!(Config::from_url("zk+tls://h").unwrap().tls.is_some());
        assert_eq!(Config::from_url("zookeeper://h").unwrap().endpoints[0].port, 2181);
    }

    #[test]
    fn embedded_stores() {
        let local = Config::from_url("local:///tmp/a%20b.redb?namespace=x/y").unwrap();
        assert_eq!(local.location, PathBuf::from("/tmp/a b.redb"));
        assert_eq!(local.namespace.dir().as_str(), "x/y");
        assert_eq!(Config::from_url("memory://m/ns").unwrap().location, PathBuf::from("m"));
    }

    #[test]
    fn credentials_are_taken_and_never_shown() {
        let config = Config::from_url("etcd://me:s%40cret@h/").unwrap();
        let credentials = config.credentials.clone().unwrap();
        assert_eq!((credentials.user.as_str(), credentials.password.as_str()), ("me", "s@cret"));
        assert!(!format!("{config:?}").contains("s@cret"));
        let error = Config::from_url("etcd://me:s%40cret@h:x/").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("cret"));
        for cut in ["etcd://me:s/cret@h/x", "etcd://me:s?cret@h", "etcd://me:s#cret@h", "etcd://me:1?cret@h=1"] {
            let error = Config::from_url(cut).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("cret"), "{error}");
        }
        assert_eq!(Config::from_url("etcd://h/a%40b").unwrap().namespace.dir().as_str(), "a@b");
    }

    #[test]
    fn the_offending_part_is_named() {
        for (url, part) in [
            ("etcd:/h", "store URL"),
            ("redis://h", "URL scheme `redis`"),
            ("etcd://", "host ``"),
            ("etcd://h1,,h2", "host ``"),
            ("etcd://h:port", "host `h:port`"),
            ("etcd://h:70000", "host `h:70000`"),
            ("etcd://h:0", "host `h:0`"),
            ("etcd://a b", "host `a b`"),
            ("etcd://h/a/../b", "namespace"),
            ("etcd://h/#x", "URL fragment"),
            ("etcd://h?nope=1", "parameter `nope`"),
            ("etcd://h?datacenter=dc1", "parameter `datacenter`"),
            ("etcd://h?lock_delay=1s", "parameter `lock_delay`"),
            ("consul://h?lock_delay=61s", "lock_delay"),
            ("etcd://h?request_timeout=3", "parameter `request_timeout`"),
            ("etcd://h?request_timeout=0s", "request_timeout"),
            ("etcd://h?request_timeout=1000years", "request_timeout"),
            ("etcd://h?lazy=maybe", "parameter `lazy`"),
            ("etcd://h?max_in_flight=0", "max_in_flight"),
            ("etcd://h?max_value_size=-1", "parameter `max_value_size`"),
            ("etcd://h?tls_ca=x", "parameter `tls_ca`"),
            ("etcds://h?tls_cert=x", "tls_cert and tls_key"),
            ("etcd://h?backoff_max=1ms", "backoff_max"),
            ("local://relative/path", "path of the URL"),
            ("local:///dir/", "path of the URL"),
            ("memory://", "host of the URL"),
            ("local://me:secret@h/f", "path of the URL"),
            ("local:///f?:secret@h", "`@` behind the hosts of the URL"),
            ("memory://me:secret@name", "credentials in the URL"),
            ("me:secret@etcd://h", "URL scheme"),
        ] {
            assert_eq!(wrong_part(url), part, "{url}");
        }
    }

    const OPTIONS: [&str; 18] = [
        "request_timeout",
        "connect_timeout",
        "session_timeout",
        "backoff_min",
        "backoff_max",
        "backoff_reset",
        "lazy",
        "max_in_flight",
        "max_value_size",
        "idle_timeout",
        "max_watch_connections",
        "watch_buffer",
        "lock_delay",
        "datacenter",
        "namespace",
        "tls_ca",
        "tls_cert",
        "tls_key",
    ];

    /// Texts with what URLs are made of.
    fn pieces() -> impl Strategy<Value = String> {
        prop_oneof![any::<String>(), "[:/?#@%&=,\\[\\]a0.+ -]{0,12}", "(%[0-9a-fA-F]{2}|a|%){0,6}"]
    }

    fn values() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[0-9]{1,40}",
            "[0-9]{0,25}(ns|us|ms|s|m|h|d|w|M|y|years?)?( [0-9]{1,25}(ns|ms|h))?",
            "-?[0-9]{0,5}\\.?[0-9]{0,5}e?[0-9]{0,3}s",
            "true|false|TRUE|1| true",
        ]
    }

    fn all_texts(error: &Error) -> String {
        let mut texts = format!("{error} {error:?}");
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            texts.push_str(&format!(" {error} {error:?}"));
            source = error.source();
        }
        texts
    }

    fn check_valid(config: &Config) {
        config.validate().unwrap();
        let is_server = matches!(config.backend, BackendKind::Consul | BackendKind::Etcd | BackendKind::ZooKeeper);
        assert_eq!(config.endpoints.is_empty(), !is_server);
        for known in &config.endpoints {
            assert_eq!(endpoint(&known.to_string(), 1).unwrap(), *known);
        }
        let dir = config.namespace.dir();
        assert_eq!(Dir::parse(dir).unwrap(), *dir);
    }

    fn check(url: &str) -> Result<(), TestCaseError> {
        match Config::from_url(url) {
            Ok(config) => check_valid(&config),
            Err(Error::InvalidConfig { part, reason }) => prop_assert!(!part.is_empty() && !reason.is_empty()),
            Err(other) => prop_assert!(false, "{other:?}"),
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn an_option_is_taken_or_named(
            scheme in "consul|etcds|zk|local|memory",
            option in prop::sample::select(&OPTIONS[..]),
            value in values(),
        ) {
            let encoded = url::form_urlencoded::Serializer::new(String::new()).append_pair(option, &value).finish();
            let url = format!("{scheme}:///h?{encoded}").replace("///", if scheme == "local" { "///" } else { "//" });
            check(&url)?;
            if let Err(Error::InvalidConfig { part, .. }) = Config::from_url(&url) {
                let known = part == option || part == format!("parameter `{option}`");
                // Of two that don't fit each other either may be named.
                let pair = part == "tls_cert and tls_key" || part == "backoff_max" && option == "backoff_min";
                prop_assert!(known || pair, "{url}: {part}");
            }
        }

        #[test]
        fn a_mutated_url_is_taken_or_named(
            url in prop::sample::select(vec![
                "consul+tls://user:pass@h1:8500,h2/ns/a?datacenter=dc1&tls_ca=/x&lock_delay=1s",
                "etcd://h1:2379,[::1]:2,127.0.0.1/a%20b?request_timeout=3s&lazy=true",
                "zk://h/a?session_timeout=8s&namespace=x/y",
                "local:///a/b.redb?namespace=x&max_value_size=1",
                "memory://name/ns?watch_buffer=1",
            ]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), 0..4_usize, pieces()), 1..4),
        ) {
            let mut text: Vec<char> = url.chars().collect();
            for (at, gone, new) in changes {
                let at = at.index(text.len() + 1);
                text.splice(at..(at + gone).min(text.len()), new.chars());
            }
            check(&text.into_iter().collect::<String>())?;
        }

        /// Whatever else is wrong with the URL and wherever it tears the password apart.
        #[test]
        fn credentials_are_never_told(
            scheme in prop_oneof![3 => "consul|etcd|etcds|zk\\+tls|memory|local".boxed(), 1 => pieces().boxed()],
            user in pieces(),
            (before, behind) in (pieces(), pieces()),
            rest in prop_oneof![pieces(), "h:[a-z0-9]{0,6}(/[a.]{0,3})?(\\?[a-z_]{0,6}=?.{0,3})?"],
        ) {
            // That would be the path of a file.
            prop_assume!(scheme != "local" || !user.starts_with('/'));
            let url = format!("{scheme}://{user}:{before}s3cr3t{behind}@{rest}");
            let said = match Config::from_url(&url) {
                Ok(config) => format!("{config:?} {:?}", config.endpoints),
                Err(error) => all_texts(&error),
            };
            prop_assert!(!said.contains("s3cr3t"), "{url:?}: {said}");
        }

        #[test]
        fn no_text_makes_it_panic(scheme in "consul|etcds|zk|local|memory", rest in any::<String>()) {
            let _ = Config::from_url(&format!("{scheme}://{rest}"));
            let _ = Config::from_url(&rest);
        }
    }
}
