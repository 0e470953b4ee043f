//! One session: a client tied to one endpoint, who we are to it, and the two ways to call it.

use super::line;
use super::sentinel::Sentinel;
use super::status::{self, Effect};
use super::term::Term;
use crate::config::Credentials;
use crate::error::{Error, Result};
use crate::key::{Dir, Key, Namespace};
use crate::types::{BackendKind, Consistency, Version};
use etcd_client::proto::PbKeyValue;
use etcd_client::{
    Channel, Client, ConnectOptions, Error as ClientError, GetOptions, KvClient, LeaseClient, ResponseHeader,
    WatchFilterType, WatchOptions, WatchStream,
};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use std::cell::Cell;
use tokio::sync::Mutex;
use tonic::transport::Endpoint;

/// The largest answer to take: gRPC's own limit. What etcd sends is bounded by what the driver asks for.
const MAX_ANSWER: usize = i32::MAX as usize;

/// What a call of the client returns.
pub(super) type Answer<T> = Result<T, ClientError>;

/// A session with one server.
pub(super) struct Session {
    server: String,
    namespace: Namespace,
    client: Client,
    kv: KvClient,
    identity: Option<Identity>,
    sentinel: Sentinel,
    term: Term,
}

/// Who we are to the server, and how often we have proved it.
struct Identity {
    credentials: Credentials,
    proofs: Cell<u64>,
    /// Held while a new token is fetched, so that a thousand calls with an expired one fetch one.
    proving: Mutex<()>,
}

impl Session {
    /// Opens a session and proves that it works.
    pub(super) async fn open(
        endpoint: &Endpoint,
        server: String,
        namespace: Namespace,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        // With a leader required, a member without one refuses a call at once and before doing anything. Otherwise it would
        // hold a write until its own timeout and leave the outcome open.
        let options = ConnectOptions::new().with_require_leader(true);
        let channel = Channel::Tonic(endpoint.connect_lazy());
        let client = Client::from_channel(channel, Some(options))
            .await
            .map_err(|failure| status::error(failure, Effect::Read, &server))?;
        let kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
        let identity = credentials.map(Identity::new);
        let (sentinel, term) = (Sentinel::default(), Term::default());
        let session = Session { server, namespace, client, kv, identity, sentinel, term };
        session.authenticate(0).await?;
        session.prove().await?;
        Ok(session)
    }

    /// Proves that the server answers, belongs to a working quorum and takes our credentials; from then on
    /// [`broken`](Session::broken) watches the connection.
    pub(super) async fn prove(&self) -> Result<()> {
        let key = self.guard();
        match self.read(async || self.ask_quorum().await).await {
            Ok(()) => {}
            // Told after the quorum was asked: the link is as good as it can be for this user.
            Err(Error::PermissionDenied { .. }) => {}
            Err(error) => return Err(error),
        }
        let silent = || WatchOptions::new().with_filters([WatchFilterType::NoPut, WatchFilterType::NoDelete]);
        let watch = async || self.client.watch_client().watch(key.as_slice(), Some(silent())).await;
        self.sentinel.arm(self.read(watch).await?);
        Ok(())
    }

    /// Waits until the connection breaks or the server loses its leader.
    pub(super) async fn broken(&self) -> Error {
        match self.sentinel.ended().await {
            Some(failure) => self.error(failure, Effect::Read),
            None => self.hung_up(),
        }
    }

    /// The error for a stream that the server has ended.
    pub(super) fn hung_up(&self) -> Error {
        Error::unreachable(format!("etcd at {} ended the connection", self.server))
    }

    /// The error for a server that says nothing.
    pub(super) fn silent(&self) -> Error {
        Error::unreachable(format!("etcd at {} says nothing any more (`idle_timeout`)", self.server))
    }

    /// A call that changes nothing. `send` makes the request; it is asked again where the token has to be renewed.
    pub(super) async fn read<T>(&self, send: impl AsyncFn() -> Answer<T>) -> Result<T> {
        self.call(send).await?.map_err(|failure| self.error(failure, Effect::Read))
    }

    /// A call that changes something.
    pub(super) async fn write<T>(&self, send: impl AsyncFn() -> Answer<T>) -> Result<T> {
        self.call(send).await?.map_err(|failure| self.error(failure, Effect::Write))
    }

    /// Sends a request, and once more with a new token where the server says that ours is no good: it says so before it
    /// changes anything. The outer error is that of fetching the token.
    pub(super) async fn call<T>(&self, send: impl AsyncFn() -> Answer<T>) -> Result<Answer<T>> {
        let proofs = self.proofs();
        let answer = self.answer(send().boxed_local()).await;
        match &answer {
            Err(failure) if self.identity.is_some() && status::wants_new_token(failure) => {}
            _ => return Ok(answer),
        }
        // What is rare takes room in the state of every call unless it is boxed.
        Box::pin(self.authenticate(proofs)).await?;
        Ok(self.answer(send().boxed_local()).await)
    }

    /// The answer to a call, unless it was lost with the leader that should have given it. The client library's futures have kilobytes:
    /// boxed, they aren't moved through the state of every function that waits for them.
    async fn answer<T>(&self, call: LocalBoxFuture<'_, Answer<T>>) -> Answer<T> {
        let ask = async || {
            // A failure says nothing: there may be no leader yet.
            let _ = Box::pin(self.ask_quorum()).await;
        };
        tokio::select! {
            biased;
            answer = call => answer,
            () = self.term.passed_by(ask) => Err(status::leader_changed()),
        }
    }

    /// Asks something that takes a quorum to answer, and hears of the term.
    async fn ask_quorum(&self) -> Answer<()> {
        let answer = self.kv().get(self.guard(), Some(GetOptions::new().with_count_only())).await?;
        self.hear(answer.header());
        Ok(())
    }

    fn hear(&self, header: Option<&ResponseHeader>) {
        self.term.heard(header.map_or(0, ResponseHeader::raft_term));
    }

    /// Work of several requests, done once more with a new token where it finds ours to be no good.
    pub(super) async fn authenticated<T>(&self, work: impl AsyncFn() -> Result<T>) -> Result<T> {
        let proofs = self.proofs();
        match work().await {
            Err(Error::Unauthenticated { .. }) if self.identity.is_some() => {
                self.authenticate(proofs).await?;
                work().await
            }
            done => done,
        }
    }

    /// What a read of a past revision finds; none where the server hasn't got that revision, or not for us.
    pub(super) async fn past<T>(&self, send: impl AsyncFn() -> Answer<T>) -> Result<Option<T>> {
        match self.call(send).await? {
            Ok(found) => Ok(Some(found)),
            Err(failure) if status::is_revision_missing(&failure) => Ok(None),
            Err(failure) => match self.error(failure, Effect::Read) {
                Error::PermissionDenied { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Opens a stream of watches, with a first one.
    pub(super) async fn watch(&self, options: WatchOptions) -> Result<WatchStream> {
        let mut client = self.client.watch_client().max_decoding_message_size(MAX_ANSWER);
        client.watch(self.guard(), Some(options)).await.map_err(|failure| self.error(failure, Effect::Read))
    }

    /// How often we have proved who we are.
    fn proofs(&self) -> u64 {
        self.identity.as_ref().map_or(0, |identity| identity.proofs.get())
    }

    /// Fetches a token, unless somebody else did since there were `seen` proofs.
    async fn authenticate(&self, seen: u64) -> Result<()> {
        let Some(identity) = &self.identity else { return Ok(()) };
        let _turn = identity.proving.lock().await;
        if identity.proofs.get() != seen {
            return Ok(());
        }
        let answer = match self.client.clone().update_user(Some(identity.pair())).await {
            // As etcd's own clients do: credentials for a server that wants none are no mistake.
            Err(failure) if status::is_auth_disabled(&failure) => Ok(()),
            answer => answer.map_err(|failure| self.error(failure, Effect::Read)),
        };
        // A refusal is an outcome too: those who wait their turn would hear the same, one slow hashing after another.
        if !matches!(answer, Err(Error::Unreachable { .. })) {
            identity.proofs.set(seen.wrapping_add(1));
        }
        answer
    }

    /// A client of one's own for one call.
    pub(super) fn kv(&self) -> KvClient {
        self.kv.clone()
    }

    /// A client of one's own for one call.
    pub(super) fn leases(&self) -> LeaseClient {
        self.client.lease_client()
    }

    /// A key to ask about for the sake of asking: none that we can be asked for ends in a slash, and whoever may use the
    /// namespace may use this one.
    pub(super) fn guard(&self) -> Vec<u8> {
        (self.namespace.dir().to_string() + "/").into_bytes()
    }

    /// The server's name for `key`.
    pub(super) fn path(&self, key: &Key) -> Vec<u8> {
        self.namespace.path(key).into_bytes()
    }

    /// What the server's names of all keys beneath `dir` start with.
    pub(super) fn prefix(&self, dir: &Dir) -> Vec<u8> {
        self.namespace.prefix(dir).into_bytes()
    }

    /// The caller's key for what was found; none for contenders of locks, and where another program wrote what is no key here.
    pub(super) fn key(&self, found: &PbKeyValue) -> Option<Key> {
        if line::is_contender(found) {
            return None;
        }
        self.namespace.key(std::str::from_utf8(&found.key).ok()?)
    }

    /// The version of a write that the server has answered.
    pub(super) fn written(&self, header: Option<&ResponseHeader>) -> Result<Version> {
        self.hear(header);
        header.map(|header| version(header.revision())).ok_or_else(|| status::senseless(Effect::Write, &self.server))
    }

    /// The error for an answer that no etcd server gives.
    pub(super) fn senseless(&self, effect: Effect) -> Error {
        status::senseless(effect, &self.server)
    }

    /// The error for a failure of the client.
    pub(super) fn error(&self, failure: ClientError, effect: Effect) -> Error {
        status::error(failure, effect, &self.server)
    }
}

impl Identity {
    fn new(credentials: Credentials) -> Self {
        Identity { credentials, proofs: Cell::new(0), proving: Mutex::new(()) }
    }

    fn pair(&self) -> (String, String) {
        (self.credentials.user.clone(), self.credentials.password.clone())
    }
}

/// The version of a key last changed at `revision`.
pub(super) fn version(revision: i64) -> Version {
    Version::new(BackendKind::Etcd, u64::try_from(revision).unwrap_or_default())
}

/// The revision that a key of this version was last changed at, or one that no key has where the version is made up.
///
/// # Errors
/// [`Error::Unsupported`] for another backend's version.
pub(super) fn revision(version: &Version) -> Result<i64> {
    const OF_NO_KEY: i64 = -1;
    if version.backend() != BackendKind::Etcd {
        return Err(Error::unsupported(format!("a version made by {} means nothing to etcd", version.backend())));
    }
    // 0 would match a key that doesn't exist.
    Ok(i64::try_from(version.index()).ok().filter(|revision| *revision > 0).unwrap_or(OF_NO_KEY))
}

/// How to read with this consistency.
pub(super) fn reading(consistency: Consistency) -> GetOptions {
    match consistency {
        Consistency::Linearizable => GetOptions::new(),
        Consistency::Stale => GetOptions::new().with_serializable(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_revisions() {
        assert_eq!(revision(&version(7)).unwrap(), 7);
        assert_eq!(revision(&version(i64::MAX)).unwrap(), i64::MAX);
    }

    #[test]
    fn made_up_versions_match_no_key() {
        for index in [0, u64::MAX, 1 << 63] {
            assert_eq!(revision(&Version::new(BackendKind::Etcd, index)).unwrap(), -1, "{index}");
        }
        let foreign = revision(&Version::new(BackendKind::Consul, 7));
        assert!(matches!(foreign, Err(Error::Unsupported { .. })));
    }
}
