//! TLS and access control against servers that really have them, and that no secret gets out on the way.
#![cfg(all(feature = "consul", feature = "etcd", feature = "zookeeper", feature = "tls"))]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::tls::{Authority, Identity, trusting};
use common::{Kind, Server, Setup, etcd, http, namespace};
use futures_util::future::join_all;
use kvactor::{Check, Condition, Config, Error, Expected, Operation, OperationResult, Result, Store, TxnOutcome};
use std::fmt::Debug;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;

/// What stores are given to connect, on a machine with other things to do, and a little for what comes after it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const SLACK: Duration = Duration::from_secs(1);

/// A part of every password here: one word without anything that URLs write in another way.
const SECRET: &str = "xyzzygeheim";
/// A password with all that must be written in another way in a URL, and how it is written.
const PASSWORD: &str = "p@ss/w:rd?#%xyzzygeheim&ü, ";
const PASSWORD_IN_URL: &str = "p%40ss%2Fw%3Ard%3F%23%25xyzzygeheim%26%C3%BC%2C%20";
/// Consul's tokens are UUIDs.
const TOKEN: &str = "5ec2e700-c0de-4bad-8000-7e57ac1d0de5";
const WRONG_TOKEN: &str = "0bad0bad-c0de-4bad-8000-7e57ac1d0de5";

/// What kvactor itself has logged in this process, at every level.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct LogWriter;

impl std::io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What must show up nowhere.
#[derive(Clone)]
struct Secrets(Arc<[String]>);

impl Secrets {
    /// From here on everything is logged, by all threads.
    fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        static LOGGING: Once = Once::new();
        LOGGING.call_once(|| {
            let ours = filter_fn(|metadata| metadata.target().starts_with("kvactor"));
            let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(|| LogWriter).with_filter(ours);
            tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();
        });
        Secrets(secrets.into_iter().collect())
    }

    fn of_passwords() -> Self {
        Secrets::new([SECRET, TOKEN, WRONG_TOKEN].map(str::to_owned))
    }

    fn absent(&self, text: &str) {
        for secret in &*self.0 {
            assert!(!text.contains(secret), "`{secret}` shows up in: {text}");
        }
    }

    fn absent_in_debug(&self, thing: &impl Debug) {
        self.absent(&format!("{thing:?}"));
        self.absent(&format!("{thing:#?}"));
    }

    fn absent_in_error(&self, error: &Error) {
        let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
        for cause in causes {
            self.absent(&cause.to_string());
            self.absent_in_debug(&cause);
        }
    }

    /// Of all that was logged so far, also by other tests.
    fn absent_in_log(&self) {
        let log = LOG.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let log = String::from_utf8_lossy(&log).into_owned();
        assert!(log.contains("kvactor::supervisor"), "nothing is logged: {log}");
        self.absent(&log);
    }

    fn absent_in_store(&self, store: &Store) {
        self.absent_in_debug(store);
        self.absent_in_debug(&store.status());
    }

    /// Opens a store with which everything must go well.
    async fn open(&self, url: &str) -> Store {
        let store = self.try_open(url).await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
        self.absent_in_store(&store);
        store
    }

    /// Opens a store that can't be opened, and says why.
    async fn refused(&self, url: &str) -> Error {
        let start = Instant::now();
        let error = self.try_open(url).await.expect_err(url);
        assert!(start.elapsed() < CONNECT_TIMEOUT + SLACK, "{:?}: {error}", start.elapsed());
        self.absent_in_error(&error);
        error
    }

    async fn try_open(&self, url: &str) -> Result<Store> {
        let mut config = Config::from_url(url).unwrap();
        config.options.connect_timeout = CONNECT_TIMEOUT;
        self.absent_in_debug(&config);
        Store::open(config).await
    }

    /// The error of a call, in which no secret is.
    fn error<T: Debug>(&self, result: Result<T>) -> Error {
        let error = result.unwrap_err();
        self.absent_in_error(&error);
        error
    }
}

fn secure_url(server: &Server, host: &str, query: &str) -> String {
    let port = server.secure_address().port();
    format!("{}://{host}:{port}/{}?{query}", server.kind().secure_scheme(), namespace("tls"))
}

async fn put_and_get(store: &Store) {
    // More than TLS puts into one record.
    let value = vec![7; 100_000];
    store.put("a/b", value.clone()).await.unwrap();
    assert_eq!(store.get("a/b").await.unwrap().value, value);
    assert_eq!(store.delete_tree("a").await.unwrap(), 1);
}

/// The store is unreachable, and whoever reads the error knows which and what to look at.
fn assert_names(error: &Error, address: SocketAddr, word: &str) {
    let text = error.to_string();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(text.contains(&address.to_string()), "no address: {text}");
    assert!(text.to_lowercase().contains(word), "no word of a {word}: {text}");
}

async fn server_with_tls(kind: Kind, authority: &Authority, demanding: bool) -> Option<Server> {
    Server::start_as(kind, Setup { tls: Some(authority.server(demanding)), ..Setup::default() }).await
}

/// The server shows a certificate and asks for none.
async fn the_servers_certificate_is_checked(kind: Kind) {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let Some(server) = server_with_tls(kind, &ours, false).await else { return };
    let secrets = Secrets::of_passwords();
    let (right, wrong) = (trusting(&ours.file()), trusting(&theirs.file()));
    for host in ["127.0.0.1", "localhost"] {
        let store = secrets.open(&secure_url(&server, host, &right)).await;
        put_and_get(&store).await;
        store.close().await.unwrap();
    }
    let untrusted = secrets.refused(&secure_url(&server, "127.0.0.1", &wrong)).await;
    assert_names(&untrusted, server.secure_address(), "certificate");
    let (plain, secure) = (server.address(), server.secure_address());
    let no_tls = format!("{}://{plain}/x?{right}", kind.secure_scheme());
    assert_names(&secrets.refused(&no_tls).await, plain, "tls");
    let only_tls = format!("{}://{secure}/x", kind.scheme());
    // Consul's agent is a server of HTTP, and says so in its words.
    let tls = if kind == Kind::Consul { "https" } else { "tls" };
    assert_names(&secrets.refused(&only_tls).await, secure, tls);
}

/// The server asks for certificates.
async fn our_certificate_is_shown(kind: Kind) {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (me, stranger) = (ours.issue("me", &[]), theirs.issue("stranger", &[]));
    let Some(server) = server_with_tls(kind, &ours, true).await else { return };
    let secrets = Secrets::new([me.secrets(), stranger.secrets()].concat());
    let with = |identity: &Identity| format!("{}&{}", trusting(&ours.file()), identity.query());
    let store = secrets.open(&secure_url(&server, "localhost", &with(&me))).await;
    put_and_get(&store).await;
    store.close().await.unwrap();
    for query in [trusting(&ours.file()), with(&stranger)] {
        let error = secrets.refused(&secure_url(&server, "127.0.0.1", &query)).await;
        assert_names(&error, server.secure_address(), "certificate");
    }
    secrets.absent_in_log();
}

/// A certificate for another host is none.
async fn the_servers_name_is_checked(kind: Kind) {
    let authority = Authority::new("ours");
    let mut tls = authority.server(false);
    tls.identity = authority.issue("other", &["elsewhere.example"]);
    let Some(server) = Server::start_as(kind, Setup { tls: Some(tls), ..Setup::default() }).await else { return };
    let url = secure_url(&server, "127.0.0.1", &trusting(&authority.file()));
    let error = Secrets::of_passwords().refused(&url).await;
    assert_names(&error, server.secure_address(), "certificate");
}

macro_rules! on_each_server {
    ($($test:ident),*) => {
        mod etcd_tls { $(#[tokio::test] async fn $test() { super::$test(super::Kind::Etcd).await; })* }
        mod consul_tls { $(#[tokio::test] async fn $test() { super::$test(super::Kind::Consul).await; })* }
        mod zookeeper_tls { $(#[tokio::test] async fn $test() { super::$test(super::Kind::ZooKeeper).await; })* }
    };
}

on_each_server!(the_servers_certificate_is_checked, our_certificate_is_shown, the_servers_name_is_checked);

#[tokio::test]
async fn bad_files_are_named_before_anything_is_contacted() {
    let authority = Authority::new("ours");
    let (me, other) = (authority.issue("me", &[]), authority.issue("other", &[]));
    let secrets = Secrets::new([me.secrets(), other.secrets()].concat());
    let junk = authority.file().with_file_name("junk.pem");
    std::fs::write(&junk, "-----BEGIN CERTIFICATE-----\nMIIjunk\n-----END CERTIFICATE-----\n").unwrap();
    let empty = authority.file().with_file_name("empty.pem");
    std::fs::write(&empty, "no PEM\n").unwrap();
    let missing = authority.file().with_file_name("missing.pem");
    let trust = trusting(&authority.file());
    let identity = |cert: &Path, key: &Path| format!("{trust}&tls_cert={}&tls_key={}", cert.display(), key.display());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = listener.local_addr().unwrap();
    for kind in Kind::ALL {
        let mut cases = vec![(identity(&me.cert, &other.key), &me.cert)];
        for bad in [&junk, &empty, &missing] {
            cases.extend([(trusting(bad), bad), (identity(bad, &me.key), bad), (identity(&me.cert, bad), bad)]);
        }
        // Keys and certificates in each other's place.
        cases.extend([(trusting(&me.key), &me.key), (identity(&me.cert, &me.cert), &me.cert)]);
        for (query, file) in cases {
            for lazy in [false, true] {
                let url = format!("{}://{server}/x?{query}&lazy={lazy}", kind.secure_scheme());
                let error = secrets.refused(&url).await;
                let named = |reason: &str| reason.contains(&file.display().to_string());
                assert!(matches!(&error, Error::InvalidConfig { reason, .. } if named(reason)), "{url}: {error:?}");
            }
        }
    }
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "a server was contacted");
}

fn url_as(server: &Server, credentials: &str, namespace: &str) -> String {
    format!("{}://{credentials}@{}/{namespace}", server.kind().scheme(), server.address())
}

/// The server goes away, and nobody tells with what credentials it was asked.
async fn assert_silence_of(server: Server, store: Store, secrets: &Secrets) {
    server.kill();
    let store = store.with_request_timeout(Duration::from_millis(500));
    secrets.error(store.get("a").await);
    secrets.error(store.put("a", "1").await);
    assert!(store.status().last_error.is_some());
    secrets.absent_in_store(&store);
    secrets.absent_in_log();
}

/// Three users: `root`, `app` which has all rights on `app/` and no others, and `some` which has them on `app/open/`.
async fn etcd_with_users() -> Option<Server> {
    let server = Server::start(Kind::Etcd).await?;
    let user = |name: &str| format!(r#"{{"name":"{name}","password":"{PASSWORD}"}}"#);
    etcd::administer(&server, "auth/user/add", &user("root")).await;
    etcd::administer(&server, "auth/user/add", &user("app")).await;
    etcd::administer(&server, "auth/user/add", &user("some")).await;
    // `app/` and `app0`, `app/open/` and `app/open0`: in base64 as all that is bytes.
    for (name, key, end) in [("app", "YXBwLw==", "YXBwMA=="), ("some", "YXBwL29wZW4v", "YXBwL29wZW4w")] {
        let perm = format!(r#"{{"permType":"READWRITE","key":"{key}","range_end":"{end}"}}"#);
        etcd::administer(&server, "auth/role/add", &format!(r#"{{"name":"{name}"}}"#)).await;
        etcd::administer(&server, "auth/role/grant", &format!(r#"{{"name":"{name}","perm":{perm}}}"#)).await;
        etcd::administer(&server, "auth/user/grant", &format!(r#"{{"user":"{name}","role":"{name}"}}"#)).await;
    }
    etcd::administer(&server, "auth/user/grant", r#"{"user":"root","role":"root"}"#).await;
    etcd::administer(&server, "auth/enable", "{}").await;
    Some(server)
}

#[tokio::test]
async fn etcd_users_and_their_rights() {
    let Some(server) = etcd_with_users().await else { return };
    let secrets = Secrets::of_passwords();
    for user in ["root", "app"] {
        let store = secrets.open(&url_as(&server, &format!("{user}:{PASSWORD_IN_URL}"), "app")).await;
        put_and_get(&store).await;
        store.close().await.unwrap();
    }
    for wrong in [format!("root:{SECRET}"), format!("nobody:{PASSWORD_IN_URL}"), format!(":{PASSWORD_IN_URL}")] {
        let error = secrets.refused(&url_as(&server, &wrong, "app")).await;
        assert!(matches!(error, Error::Unauthenticated { .. }), "{error:?}");
    }
    let error = secrets.refused(&server.url("app")).await;
    assert!(matches!(error, Error::Unauthenticated { .. }), "{error:?}");
    let store = secrets.open(&url_as(&server, &format!("app:{PASSWORD_IN_URL}"), "other")).await;
    for error in [secrets.error(store.put("a", "1").await), secrets.error(store.get("a").await)] {
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
    }
    let some = secrets.open(&url_as(&server, &format!("some:{PASSWORD_IN_URL}"), "app")).await;
    each_gets_what_it_may(&some).await;
    each_swaps_what_it_may(&some).await;
    each_changes_what_it_may(&some).await;
    assert_silence_of(server, store, &secrets).await;
}

#[tokio::test]
async fn etcd_tokens_are_renewed() {
    let Some(server) = etcd_with_users().await else { return };
    let secrets = Secrets::of_passwords();
    let store = secrets.open(&url_as(&server, &format!("app:{PASSWORD_IN_URL}"), "app")).await;
    store.put("a", "1").await.unwrap();
    let proofs = async || common::etcd_grpc_count(&server, "Authenticate").await;
    let before = proofs().await;
    // Any sign of life that shows whether the token is still good makes it last for longer. The server looks once a second.
    sleep(Duration::from_secs(etcd::TOKEN_TTL + 2)).await;
    let many = (0..32).map(|_| store.get("a"));
    for pair in futures_util::future::join_all(many).await {
        assert_eq!(pair.unwrap().value, "1");
    }
    assert_eq!(proofs().await, before + 1, "one new token is enough for all");
    sleep(Duration::from_secs(etcd::TOKEN_TTL + 2)).await;
    store.put("a", "2").await.unwrap();
    assert_eq!(proofs().await, before + 2);
    assert_eq!(store.status().restarts, 0);
    secrets.absent_in_store(&store);
    secrets.absent_in_log();
}

#[tokio::test]
async fn consul_tokens() {
    let setup = Setup { token: Some(TOKEN.to_owned()), ..Setup::default() };
    let Some(server) = Server::start_as(Kind::Consul, setup).await else { return };
    let secrets = Secrets::of_passwords();
    let store = secrets.open(&url_as(&server, &format!(":{TOKEN}"), "ns")).await;
    put_and_get(&store).await;
    store.put("a", "1").await.unwrap();
    let error = secrets.refused(&url_as(&server, &format!(":{WRONG_TOKEN}"), "ns")).await;
    assert!(matches!(error, Error::Unauthenticated { .. }), "{error:?}");
    for misplaced in [TOKEN.to_owned(), format!(":{PASSWORD_IN_URL}%0A")] {
        let error = secrets.refused(&url_as(&server, &misplaced, "ns")).await;
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error:?}");
    }
    let nobody = secrets.open(&server.url("ns")).await;
    for error in [secrets.error(nobody.put("a", "2").await), secrets.error(nobody.get("a").await)] {
        assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
    }
    assert_eq!(store.get("a").await.unwrap().value, "1");
    let some = secrets.open(&url_as(&server, &format!(":{}", consul_token_for(&server, "ns/open/").await), "ns")).await;
    each_gets_what_it_may(&some).await;
    each_swaps_what_it_may(&some).await;
    each_changes_what_it_may(&some).await;
    // Consul makes sure of what the token may not see, and leaves it out of the answer.
    store.put("shut/there", "1").await.unwrap();
    let there = Check::new("shut/there", Condition::Exists).unwrap();
    let operations = ["open/b", "open/a"].map(|path| Operation::put(path, "1").unwrap());
    let outcome = some.txn(vec![there], operations.to_vec()).await.unwrap();
    let written = ["open/b", "open/a"].map(async |path| OperationResult::Put(some.get(path).await.unwrap().version));
    assert_eq!(outcome, TxnOutcome::Committed(join_all(written).await));
    assert_silence_of(server, store, &secrets).await;
}

/// A token that may read and write what begins so, and nothing else.
async fn consul_token_for(server: &Server, prefix: &str) -> String {
    let ask = async |path: &str, body: serde_json::Value| {
        let header = format!("X-Consul-Token: {TOKEN}\r\n");
        let answer = http::request_as(server.address(), "PUT", path, &header, &body.to_string()).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str::<serde_json::Value>(&answer.body).unwrap()
    };
    let rules = format!(r#"key_prefix "{prefix}" {{ policy = "write" }} session_prefix "" {{ policy = "write" }}"#);
    ask("/v1/acl/policy", serde_json::json!({ "Name": "some", "Rules": rules })).await;
    let token = ask("/v1/acl/token", serde_json::json!({ "Policies": [{ "Name": "some" }] })).await;
    token["SecretID"].as_str().unwrap().to_owned()
}

/// Of many calls at once each is allowed or refused by itself, though many go together.
async fn each_gets_what_it_may(store: &Store) {
    let path = |number: usize| format!("{}/{number}", if number.is_multiple_of(3) { "shut" } else { "open" });
    for round in 0..2 {
        let write = async |number| store.put(path(number), format!("{round}")).await;
        let written = join_all((0..64).map(write)).await;
        let read = join_all((0..64).map(async |number| store.get(path(number)).await)).await;
        for (number, (written, read)) in written.into_iter().zip(read).enumerate() {
            if number % 3 == 0 {
                assert!(matches!(written, Err(Error::PermissionDenied { .. })), "{number}: {written:?}");
                assert!(matches!(read, Err(Error::PermissionDenied { .. })), "{number}: {read:?}");
            } else {
                assert_eq!(written.unwrap(), read.unwrap().version, "{number}");
            }
        }
    }
}

/// The same of writes that depend on what is there, which servers check in other places.
async fn each_swaps_what_it_may(store: &Store) {
    let path = |number: usize| format!("{}/swap/{number}", if number.is_multiple_of(3) { "shut" } else { "open" });
    let known = store.put("open/known", "1").await.unwrap();
    let create = async |number| store.atomic_put(path(number), "1", Expected::Absent).await;
    let created = join_all((0..64).map(create)).await;
    let swap = async |number: usize| {
        let version = created[number].as_ref().map_or(known, |pair| pair.version);
        store.atomic_put(path(number), "2", version).await
    };
    let swapped = join_all((0..64).map(swap)).await;
    let delete = async |number: usize| {
        let version = swapped[number].as_ref().map_or(known, |pair| pair.version);
        store.atomic_delete(path(number), version).await
    };
    let deleted = join_all((0..64).map(delete)).await;
    // Some go together with deletions that are refused.
    join_all((0..64).filter(|number| number % 3 > 0).map(|number| store.put(path(number), "3"))).await;
    let erased = join_all((0..64).map(|number| store.delete(path(number)))).await;
    for (number, ((created, swapped), (deleted, erased))) in
        created.iter().zip(&swapped).zip(deleted.iter().zip(&erased)).enumerate()
    {
        let errors = [created.as_ref().err(), swapped.as_ref().err(), deleted.as_ref().err(), erased.as_ref().err()];
        if number % 3 == 0 {
            let denied = |error: &Option<&Error>| matches!(error, Some(Error::PermissionDenied { .. }));
            assert!(errors.iter().all(denied), "{number}: {errors:?}");
        } else {
            assert!(errors.iter().all(Option::is_none), "{number}: {errors:?}");
        }
    }
}

/// The same of transactions.
async fn each_changes_what_it_may(store: &Store) {
    let path = |number: usize| format!("{}/txn-{number}", if number.is_multiple_of(3) { "shut" } else { "open" });
    let run = async |number| {
        let put = |name: &str| Operation::put(format!("{}-{name}", path(number)), "1");
        store.txn(Vec::new(), vec![put("a")?, put("b")?]).await
    };
    for (number, outcome) in join_all((0..64).map(run)).await.into_iter().enumerate() {
        match outcome {
            Ok(TxnOutcome::Committed(results)) => assert!(number % 3 > 0 && results.len() == 2, "{number}"),
            Err(Error::PermissionDenied { .. }) => assert_eq!(number % 3, 0),
            other => panic!("{number}: {other:?}"),
        }
    }
}

/// ZooKeeper tells everybody what is there. So it does those who ask together with many others, as those who ask alone.
async fn may_look_at_what_it_may_not_read(store: &Store) {
    let shut = || (0..64).step_by(3).map(|number| format!("shut/{number}"));
    for _ in 0..2 {
        let there = shut().map(|key| (key, true));
        let missing = (0..64).map(|number| (format!("open/none/{number}"), false));
        let looks = there.chain(missing).map(async |(key, expected)| (store.exists(&key).await, expected, key));
        for (found, expected, key) in join_all(looks).await {
            assert_eq!(found.unwrap(), expected, "{key}");
        }
    }
}

#[tokio::test]
async fn zookeeper_digests() {
    let Some(server) = Server::start(Kind::ZooKeeper).await else { return };
    let secrets = Secrets::of_passwords();
    let owner = secrets.open(&url_as(&server, &format!("owner:{PASSWORD_IN_URL}"), "ns")).await;
    put_and_get(&owner).await;
    owner.put("a/b", "1").await.unwrap();
    let nobody = secrets.open(&server.url("ns")).await;
    let somebody = secrets.open(&url_as(&server, &format!("owner:{SECRET}"), "ns")).await;
    for other in [&nobody, &somebody] {
        let errors = [
            secrets.error(other.get("a/b").await),
            secrets.error(other.put("a/b", "2").await),
            secrets.error(other.put("a/c", "2").await),
            secrets.error(other.list("a").await),
            secrets.error(other.delete("a/b").await),
        ];
        for error in errors {
            assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
        }
    }
    assert_eq!(owner.get("a/b").await.unwrap().value, "1");
    let shut = secrets.open(&url_as(&server, &format!("owner:{PASSWORD_IN_URL}"), "some/shut")).await;
    let open = secrets.open(&server.url("some/open")).await;
    open.put("0", "1").await.unwrap();
    for number in (0..64).step_by(3) {
        shut.put(number.to_string(), "1").await.unwrap();
    }
    let some = secrets.open(&server.url("some")).await;
    each_gets_what_it_may(&some).await;
    each_changes_what_it_may(&some).await;
    may_look_at_what_it_may_not_read(&some).await;
    assert_silence_of(server, owner, &secrets).await;
}

#[tokio::test]
async fn nobody_listens() {
    let secrets = Secrets::of_passwords();
    for kind in Kind::ALL {
        let url = format!("{}://u:{PASSWORD_IN_URL}@127.0.0.1:1/x", kind.scheme());
        let url = if kind == Kind::Consul { url.replace(PASSWORD_IN_URL, TOKEN) } else { url };
        let error = secrets.refused(&url).await;
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
    secrets.absent_in_log();
}

/// Who forgets to write a password's special characters in the other way reads what is wrong, but not the password.
#[test]
fn passwords_that_tear_a_url_apart() {
    let secrets = Secrets::of_passwords();
    for scheme in ["etcd", "consul", "zk", "etcds", "nonsense"] {
        for password in [
            "/xyzzygeheim",
            "xyzzygeheim/",
            "?xyzzygeheim",
            "xyzzygeheim?",
            "xyzzygeheim?a=",
            "#xyzzygeheim",
            "xyzzygeheim#",
            "12?xyzzygeheim",
            "%ffxyzzygeheim",
            "xyzzygeheim\\",
            "xyz zy\u{7f}",
        ] {
            let url = format!("{scheme}://user:{password}@h1:1,h2/ns");
            match Config::from_url(&url) {
                Ok(config) => secrets.absent_in_debug(&config),
                Err(error) => secrets.absent_in_error(&error),
            }
        }
    }
}
