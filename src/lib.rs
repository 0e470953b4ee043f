//! One key/value and coordination API over [Consul], [etcd] and [ZooKeeper], and over two embedded stores that need no
//! server, with the same behaviour whichever runs underneath.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> kvactor::Result<()> {
//! use kvactor::{Expected, Store};
//!
//! let store = Store::connect("memory://example").await?; // or consul://…, etcd://…, zk://…, local:///…
//! store.put("services/web/1", "10.0.0.1:80").await?;
//! for pair in store.list("services").await? {
//!     println!("{} is at {:?}", pair.key, pair.value);
//! }
//! let leader = store.atomic_put("leader", "me", Expected::Absent).await?;
//! store.atomic_put("leader", "still me", &leader).await?;
//! store.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where to begin
//! - [`Store`] is the handle with all calls, and says what holds for each of them.
//! - [`Store::watch`] and [`Store::watch_tree`] tell what becomes of a key or directory, in [`WatchEvent`]s and [`TreeEvent`]s.
//! - [`Store::lock`], [`Store::campaign`] and [`Store::register`] coordinate processes: a [`LockGuard`], a [`Leadership`], a
//!   [`Registration`].
//! - [`Config`] has the store URLs and the settings.
//! - [`Error`] says what can go wrong, and above all what is known of a write that failed.
//! - [`messages`] is for actix applications that would rather send a message than call a method.
//! - [`Backend`] and [`Connector`] are for a backend of your own; the feature `conformance` has the suite it must pass.
//!   [`connector`] has the drivers of this crate, for a backend that wraps one.
//!
//! # Features
//! | feature | what for | default |
//! |---|---|---|
//! | `local` | a durable store in one file | yes |
//! | `memory` | a store in memory, by name within the process | yes |
//! | `consul` | Consul | |
//! | `etcd` | etcd 3.5 and newer; building it needs `protoc` | |
//! | `zookeeper` | ZooKeeper 3.5 and newer; watches need 3.6 | |
//! | `tls` | TLS to the servers | |
//! | `conformance` | the suite for authors of backends | |
//!
//! # How it works
//! A store is a small family of actors on one thread: the [`Connection`] takes a message for each call and runs it as a task
//! of its own on the session of the moment; a supervisor opens sessions, notices when one is lost, and opens the next, with
//! backoff and jitter, on the next endpoint. Calls wait for the link up to their deadline. A watcher for each key or
//! directory that is watched follows it over all sessions and tells its subscribers what is news. Each lock has an actor that
//! contends for it and tells its holder in time when it is lost. The drivers beneath speak
//! to servers and nothing else: retries, deadlines, TTLs and validation are written once, above them.
//!
//! [Consul]: https://www.consul.io
//! [etcd]: https://etcd.io
//! [ZooKeeper]: https://zookeeper.apache.org

mod actors;
mod backend;
mod backoff;
mod call;
mod clock;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod election;
#[cfg(all(test, feature = "memory"))]
mod election_tests;
mod error;
#[cfg(all(test, feature = "memory"))]
mod flaky;
mod key;
mod link;
mod lock;
#[cfg(all(test, feature = "memory"))]
mod lock_tests;
pub mod messages;
mod near;
#[cfg(all(test, feature = "memory"))]
mod queue_tests;
mod registration;
#[cfg(all(test, feature = "memory"))]
mod resilience_tests;
mod runtime;
mod store;
mod supervisor;
#[cfg(feature = "tls")]
mod tls;
mod types;
mod watch;
#[cfg(all(test, feature = "memory"))]
mod watch_tests;

pub use actors::connection::Connection;
pub use backend::{
    Backend, Bid, Change, Connector, Grant, Holder, Lease, Locking, Place, Position, Progress, Standing, Target,
    Update, Updates, connector,
};
pub use config::{Config, Credentials, Endpoint, Options, TlsConfig};
pub use election::{CampaignOptions, Leader, LeaderEvent, LeaderStream, Leadership, LeadershipEvent, LeadershipEvents};
pub use error::{Error, Result, Source};
pub use key::{Dir, Key, Namespace};
pub use lock::{LockEvent, LockEvents, LockGuard, LockOptions};
pub use registration::{Registration, RegistrationEvent, RegistrationEvents};
pub use store::{DeleteTreeOptions, Store};
pub use types::{
    BackendKind, Capabilities, Check, Condition, Consistency, Depth, Expected, KvPair, LinkState, ListOptions,
    MAX_TXN_OPERATIONS, Operation, OperationResult, Page, PutOptions, Status, TxnOutcome, Version, Written,
};
pub use watch::{Lists, Subscription, TreeEvent, TreeStream, WatchEvent, WatchStream};
