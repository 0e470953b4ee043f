//! Requests to one agent and what their answers mean.

use super::codec::{Applied, Entry, MAX_TXN_BODY, Op, Refusal, Refused};
use super::elements::{Elements, Flaw};
use super::errors::{failure, lost, said};
use crate::config::Endpoint;
use crate::error::{Error, Result};
use crate::types::Consistency;
use awc::error::{ConnectError, PayloadError, SendRequestError};
use awc::http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use awc::http::{Method, StatusCode};
use awc::{Client, ClientResponse};
use bytes::{Bytes, BytesMut};
use futures_util::future::Either;
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use serde::Deserialize;
use std::cell::Cell;
use std::io::ErrorKind;
use std::time::Duration;
use tokio::time::timeout;

/// Connections to the agent for calls. It takes 200 per client address by default, and resets what comes above: four stores on
/// one machine stay below that however busy they are, as long as they don't watch, for which they have further ones
/// ([`Options::max_watch_connections`](crate::Options::max_watch_connections)). Chosen for that bound, not by measuring what
/// an agent does best with.
const MAX_CONNECTIONS: usize = 48;
/// How long an unused connection is kept. The agent itself never closes one.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long a connection is used, so that a change of the agent's address is followed some time.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(3600);
/// The most memory that is set aside for an answer before it has arrived.
const MAX_PREALLOCATION: usize = 1024 * 1024;

const TOKEN: &str = "X-Consul-Token";
const INDEX: &str = "X-Consul-Index";

/// What all sessions with an agent have in common.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) connect_timeout: Duration,
    pub(super) token: Option<HeaderValue>,
    pub(super) datacenter: Option<String>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<std::sync::Arc<rustls::ClientConfig>>,
}

/// The way to one agent: a client with a pool of connections.
pub(super) struct Http {
    client: Client,
    /// `http://host:port/v1`
    base: String,
    /// What people know the agent by.
    name: String,
    token: Option<HeaderValue>,
    /// `dc=name`, or empty.
    datacenter: String,
    /// Whether the agent has answered any request.
    answered: Cell<bool>,
    /// How long the agent may be silent. Where there is no bound, callers have deadlines.
    silence: Option<Duration>,
}

/// Whether it matters if a request whose answer is lost was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It has no effect, or may be repeated: [`Error::Unreachable`].
    Repeatable,
    /// It writes: [`Error::Indeterminate`].
    Write,
}

impl Effect {
    /// The effect of a transaction.
    pub(super) fn of(ops: &[Op<'_>]) -> Self {
        match ops.iter().any(Op::is_write) {
            true => Effect::Write,
            false => Effect::Repeatable,
        }
    }
}

/// A request: the path below `/v1/` with its query, if any.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) body: Bytes,
    pub(super) effect: Effect,
}

impl Request {
    pub(super) fn get(path: impl Into<String>, query: impl Into<String>) -> Self {
        let (path, query) = (path.into(), query.into());
        Request { method: Method::GET, path, query, body: Bytes::new(), effect: Effect::Repeatable }
    }

    pub(super) fn put(path: impl Into<String>, body: impl Into<Bytes>, effect: Effect) -> Self {
        let (path, body) = (path.into(), body.into());
        Request { method: Method::PUT, path, query: String::new(), body, effect }
    }
}

/// An answer, whatever its status.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// `X-Consul-Index`, which the agent sends with each answer to a read of keys.
    pub(super) index: Option<u64>,
    pub(super) body: Bytes,
    pub(super) effect: Effect,
}

/// What became of a transaction.
pub(super) enum Transaction {
    /// All of it was applied.
    Applied(Bytes),
    /// An operation failed, nothing was applied.
    Refused(Vec<Refusal>),
    /// The agent takes no transaction of this size; nothing was applied. The server's words.
    TooLarge(String),
}

impl Http {
    /// For calls: whoever makes them has a deadline, and those that go together end with the last who waits.
    pub(super) fn new(endpoint: &Endpoint, settings: &Settings) -> Self {
        Http::with_connections(MAX_CONNECTIONS, endpoint, settings)
    }

    /// For a query that waits on the server, on one connection. Its answers begin and go on within `silence`.
    pub(super) fn for_one_query(silence: Duration, endpoint: &Endpoint, settings: &Settings) -> Self {
        Http { silence: Some(silence), ..Http::with_connections(1, endpoint, settings) }
    }

    fn with_connections(connections: usize, endpoint: &Endpoint, settings: &Settings) -> Self {
        let connector = awc::Connector::new()
            .timeout(settings.connect_timeout)
            .handshake_timeout(settings.connect_timeout)
            .limit(connections)
            .conn_keep_alive(KEEP_ALIVE)
            .conn_lifetime(CONNECTION_LIFETIME);
        #[cfg(feature = "tls")]
        let (connector, scheme) = match &settings.tls {
            Some(tls) => (connector.rustls_0_23(tls.clone()), "https"),
            None => (connector, "http"),
        };
        #[cfg(not(feature = "tls"))]
        let scheme = "http";
        Http {
            // Deadlines are the caller's: it drops the future. Redirects are only for keys that aren't in normal form.
            client: Client::builder().connector(connector).disable_timeout().disable_redirects().finish(),
            base: format!("{scheme}://{endpoint}/v1"),
            name: format!("Consul at {endpoint}"),
            token: settings.token.clone(),
            datacenter: settings.datacenter.as_deref().map(datacenter_query).unwrap_or_default(),
            answered: Cell::new(false),
            silence: None,
        }
    }

    /// What people know the agent by.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether requests carry a token.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sends a request and returns the answer, whatever its status.
    pub(super) fn send(&self, request: Request) -> impl Future<Output = Result<Answer>> {
        let effect = request.effect;
        self.begin(request).and_then(move |response| self.finish(Box::new(response), effect))
    }

    /// Sends a request and returns the beginning of the answer.
    fn begin(&self, request: Request) -> impl Future<Output = Result<ClientResponse>> {
        let effect = request.effect;
        let mut http = self.client.request(request.method, self.url(&request.path, &request.query));
        if let Some(token) = &self.token {
            http = http.insert_header((TOKEN, token.clone()));
        }
        self.heard(effect, http.send_body(request.body)).map(move |response| {
            let response = response?.map_err(|error| self.not_sent(error, effect))?;
            self.answered.set(true);
            Ok(response)
        })
    }

    /// The response is boxed, as the state of this would have room for it twice otherwise.
    async fn finish(&self, mut response: Box<ClientResponse>, effect: Effect) -> Result<Answer> {
        let body = self.read_body(&mut response, effect).await?;
        Ok(Answer { status: response.status(), index: index(response.headers()), body, effect })
    }

    /// Sends a request whose answer is of no use unless its status is 200.
    pub(super) async fn expect_ok(&self, request: Request) -> Result<Answer> {
        let answer = self.send(request).await?;
        match answer.status {
            StatusCode::OK => Ok(answer),
            _ => Err(self.failure(&answer)),
        }
    }

    /// Reads keys; none where there is nothing. The answer carries the index.
    pub(super) async fn read_keys(&self, path: &str, query: String) -> Result<Option<(Answer, u64)>> {
        let (answer, index) = self.read_keys_at(path, query).await?;
        Ok(answer.map(|answer| (answer, index)))
    }

    /// The same with the index also where there is nothing.
    pub(super) async fn read_keys_at(&self, path: &str, query: String) -> Result<(Option<Answer>, u64)> {
        let answer = self.send(Request::get(path, query)).await?;
        match (answer.status, answer.index) {
            (StatusCode::OK, Some(index)) => Ok((Some(answer), index)),
            (StatusCode::NOT_FOUND, Some(index)) => Ok((None, index)),
            _ => Err(self.failure(&answer)),
        }
    }

    /// Shows `take` all keys that are asked for, one after the other as they arrive: of an answer with very many no more is kept
    /// than what is taken of it.
    pub(super) async fn each_key(
        &self,
        path: &str,
        query: String,
        mut take: impl FnMut(Entry<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut response = self.begin(Request::get(path, query)).await?;
        let is_about_keys = index(response.headers()).is_some();
        match response.status() {
            StatusCode::OK if is_about_keys => {}
            StatusCode::NOT_FOUND if is_about_keys => {
                return self.finish(Box::new(response), Effect::Repeatable).await.map(drop);
            }
            _ => return Err(self.failure(&self.finish(Box::new(response), Effect::Repeatable).await?)),
        }
        let mut elements = Elements::new();
        while let Some(chunk) = self.chunk(&mut response, Effect::Repeatable).await? {
            elements.take(&chunk, &mut take).map_err(|error| self.flawed(error))?;
        }
        elements.end(&mut take).map_err(|error| self.flawed(error))
    }

    fn flawed(&self, flaw: Flaw) -> Error {
        match flaw {
            Flaw::Garbled(error) => self.garbled(Effect::Repeatable, error),
            Flaw::CutOff => self.cut_off(PayloadError::Incomplete(None), Effect::Repeatable),
            Flaw::Refused(error) => error,
        }
    }

    /// Runs a transaction. One that only reads is as fresh as `consistency` says.
    pub(super) async fn txn(&self, ops: &[Op<'_>], consistency: Consistency) -> Result<Transaction> {
        let body = serde_json::to_vec(ops)
            .map_err(|error| Error::backend("a transaction could not be written as JSON").with_source(error))?;
        if body.len() > MAX_TXN_BODY {
            return Err(too_large_a_txn(body.len()));
        }
        let answer = self.send_txn(body, Effect::of(ops), consistency).await?;
        match answer.status {
            StatusCode::OK => Ok(Transaction::Applied(answer.body)),
            StatusCode::CONFLICT => self.refused(&answer),
            StatusCode::PAYLOAD_TOO_LARGE => Ok(Transaction::TooLarge(said(&answer.body))),
            _ => Err(self.failure(&answer)),
        }
    }

    fn send_txn(
        &self,
        body: Vec<u8>,
        effect: Effect,
        consistency: Consistency,
    ) -> impl Future<Output = Result<Answer>> {
        let request = Request::put("txn", body, effect);
        self.send(match effect {
            Effect::Repeatable => Request { query: freshness(consistency).into(), ..request },
            Effect::Write => request,
        })
    }

    fn refused(&self, answer: &Answer) -> Result<Transaction> {
        let refused: Refused = self.json(answer)?;
        match refused.errors.iter().find(|refusal| refusal.is_permission()) {
            Some(refusal) => Err(Error::PermissionDenied { reason: self.says(&refusal.what), source: None }),
            None if refused.errors.is_empty() => Err(self.failure(answer)),
            None => Ok(Transaction::Refused(refused.errors)),
        }
    }

    /// The entries of an applied transaction's answer, with as much of each as `T` holds.
    pub(super) fn entries<'a, T: Deserialize<'a>>(
        &self,
        body: &'a Bytes,
        effect: Effect,
    ) -> Result<impl Iterator<Item = T>> {
        let applied: Applied<T> = serde_json::from_slice(body).map_err(|error| self.garbled(effect, error))?;
        Ok(applied.entries())
    }

    /// A transaction was applied, and its answer doesn't say all that it did.
    pub(super) fn too_few_results(&self) -> Error {
        Error::indeterminate(format!("{} answered a transaction with too few results", self.name))
    }

    /// What an answer says as JSON.
    pub(super) fn json<'a, T: Deserialize<'a>>(&self, answer: &'a Answer) -> Result<T> {
        serde_json::from_slice(&answer.body).map_err(|error| self.garbled(answer.effect, error))
    }

    /// An answer came that isn't one of Consul's.
    pub(super) fn garbled(&self, effect: Effect, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        lost(effect, format!("{} sent an answer that isn't one of Consul's: {error}", self.name)).with_source(error)
    }

    /// The error that an answer with an unexpected status stands for.
    pub(super) fn failure(&self, answer: &Answer) -> Error {
        failure(&self.name, answer.status, &said(&answer.body), answer.effect)
    }

    /// The value of a key that was shown.
    pub(super) fn value(&self, entry: &Entry<'_>) -> Result<Bytes> {
        entry.value().map_err(|error| {
            let reason = format!("{} sent a value of `{}` that isn't base64", self.name, entry.path);
            Error::backend(reason).with_source(error)
        })
    }

    fn says(&self, what: &str) -> String {
        format!("{} says: {what}", self.name)
    }

    fn url(&self, path: &str, query: &str) -> String {
        let Http { base, datacenter, .. } = self;
        match (query, datacenter.as_str()) {
            ("", "") => format!("{base}/{path}"),
            (query, "") => format!("{base}/{path}?{query}"),
            ("", datacenter) => format!("{base}/{path}?{datacenter}"),
            (query, datacenter) => format!("{base}/{path}?{query}&{datacenter}"),
        }
    }

    /// A request that got no answer.
    fn not_sent(&self, error: SendRequestError, effect: Effect) -> Error {
        match error {
            // awc's word for a connection that was closed before the answer: the request was sent.
            SendRequestError::Connect(ConnectError::Disconnected) => {
                lost(effect, format!("{} closed the connection before it answered{}", self.name, self.hint()))
            }
            SendRequestError::Connect(error) => self.not_connected(error),
            SendRequestError::Send(error) => {
                let reason = format!("the connection to {} broke: {error}{}", self.name, self.hint());
                lost(effect, reason).with_source(error)
            }
            SendRequestError::Response(error) => {
                let reason = format!("the answer of {} can't be read as HTTP: {error}{}", self.name, self.hint());
                lost(effect, reason).with_source(error)
            }
            SendRequestError::Url(error) => {
                Error::backend(format!("a URL for {} is wrong", self.name)).with_source(error)
            }
            error => lost(effect, format!("the request to {} failed: {error}", self.name)),
        }
    }

    /// What may be wrong where an agent takes a connection and answers nothing. Agents that want another certificate do so,
    /// and the alert that says it may be lost.
    fn hint(&self) -> &'static str {
        match (self.answered.get(), self.has_tls()) {
            (true, _) => "",
            (false, true) => "; does it ask for a client certificate (`tls_cert`, `tls_key`), or for another one?",
            (false, false) => "; is this an agent's port for HTTP, or does it want TLS (consul+tls://)?",
        }
    }

    fn has_tls(&self) -> bool {
        self.base.starts_with("https:")
    }

    /// Nothing was sent, as there is no connection.
    fn not_connected(&self, error: ConnectError) -> Error {
        let name = &self.name;
        let connection = if self.has_tls() { "TLS connection" } else { "connection" };
        match error {
            ConnectError::Io(error) if error.kind() == ErrorKind::ConnectionRefused => {
                Error::unreachable(format!("{name} refuses connections; is an agent listening there?"))
                    .with_source(error)
            }
            ConnectError::Io(error) => {
                Error::unreachable(format!("no {connection} to {name}: {error}")).with_source(error)
            }
            ConnectError::Timeout => Error::unreachable(format!("{name} didn't take a connection in time")),
            ConnectError::Resolver(error) => {
                Error::unreachable(format!("the host of {name} can't be resolved: {error}"))
            }
            error => Error::unreachable(format!("no {connection} to {name}: {error}")),
        }
    }

    /// What comes of a step towards an answer, unless the agent is silent for too long.
    fn heard<T>(&self, effect: Effect, step: impl Future<Output = T>) -> impl Future<Output = Result<T>> {
        let Some(silence) = self.silence else { return Either::Left(step.map(Ok)) };
        let silent = move |_| lost(effect, format!("nothing was heard of {} for {silence:?}", self.name));
        Either::Right(timeout(silence, step).map_err(silent))
    }

    /// The whole body. awc takes the end of the connection for the end of the body, so the length is checked here; a
    /// chunked body is always JSON, which doesn't parse when its end is missing.
    async fn read_body(&self, response: &mut ClientResponse, effect: Effect) -> Result<Bytes> {
        let length: Option<usize> =
            response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let whole = |body| whole(body, length).map_err(|error| self.cut_off(error, effect));
        let Some(first) = self.chunk(response, effect).await? else { return whole(Bytes::new()) };
        let Some(second) = self.chunk(response, effect).await? else { return whole(first) };
        let expected = length.unwrap_or_default().min(MAX_PREALLOCATION);
        let mut body = BytesMut::with_capacity(expected.max(first.len() + second.len()));
        body.extend_from_slice(&first);
        body.extend_from_slice(&second);
        while let Some(chunk) = self.chunk(response, effect).await? {
            body.extend_from_slice(&chunk);
        }
        whole(body.freeze())
    }

    /// The next piece of a body; none at its end.
    async fn chunk(&self, response: &mut ClientResponse, effect: Effect) -> Result<Option<Bytes>> {
        let chunk = self.heard(effect, response.next()).await?;
        chunk.transpose().map_err(|error| self.cut_off(error, effect))
    }

    /// The answer began and didn't end.
    fn cut_off(&self, error: PayloadError, effect: Effect) -> Error {
        lost(effect, format!("the answer of {} was cut off", self.name)).with_source(error)
    }
}

/// The query parameter for how fresh a read must be.
pub(super) fn freshness(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Linearizable => "consistent",
        Consistency::Stale => "stale",
    }
}

pub(super) fn too_large_a_txn(size: usize) -> Error {
    Error::unsupported(format!(
        "the transaction has {size} bytes as Consul wants them, with values in base64, and Consul takes \
         {MAX_TXN_BODY}; write less at once"
    ))
}

fn datacenter_query(name: &str) -> String {
    format!("dc={}", super::codec::encode(name))
}

fn index(headers: &HeaderMap) -> Option<u64> {
    headers.get(INDEX)?.to_str().ok()?.parse().ok()
}

fn whole(body: Bytes, length: Option<usize>) -> Result<Bytes, PayloadError> {
    match length {
        Some(length) if length != body.len() => Err(PayloadError::Incomplete(None)),
        _ => Ok(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_was_cut_off_is_noticed() {
        assert!(whole(Bytes::from_static(b"ab"), Some(2)).is_ok() && whole(Bytes::new(), None).is_ok());
        assert!(matches!(whole(Bytes::from_static(b"a"), Some(2)), Err(PayloadError::Incomplete(None))));
    }

    #[test]
    fn urls() {
        let endpoint = Endpoint { host: "h".into(), port: 8500 };
        let settings = Settings {
            connect_timeout: Duration::from_secs(1),
            token: None,
            datacenter: Some("a&b".into()),
            #[cfg(feature = "tls")]
            tls: None,
        };
        let http = Http::new(&endpoint, &settings);
        assert_eq!(http.url("kv/a", "raw"), "http://h:8500/v1/kv/a?raw&dc=a%26b");
        let http = Http::new(&endpoint, &Settings { datacenter: None, ..settings });
        assert_eq!(http.url("kv/a", "raw"), "http://h:8500/v1/kv/a?raw");
        assert_eq!(http.url("txn", ""), "http://h:8500/v1/txn");
    }
}
