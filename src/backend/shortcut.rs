//! [`Shortcut`]: how an embedded store carries calls out where they are made, on whatever thread that is.

use crate::error::Result;
use crate::key::Key;
use crate::types::{Expected, KvPair, Version, Written};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;

/// The calls that a session with an embedded store can carry out on any thread. Their rules are those of
/// [`Backend`](crate::Backend)'s calls, and so is what they do.
///
/// A write gives its permit back when it has its answer, whether or not somebody looks at it.
pub trait Shortcut: Send + Sync {
    /// As [`Backend::get`](crate::Backend::get).
    fn get(&self, key: &Key) -> Result<KvPair>;

    /// As [`Backend::exists`](crate::Backend::exists).
    fn exists(&self, key: &Key) -> Result<bool>;

    /// As [`Backend::put`](crate::Backend::put).
    fn put(&self, key: &Key, value: &Bytes, permit: OwnedSemaphorePermit) -> Begun<Written>;

    /// As [`Backend::delete`](crate::Backend::delete).
    fn delete(&self, key: &Key, permit: OwnedSemaphorePermit) -> Begun<()>;

    /// As [`Backend::atomic_put`](crate::Backend::atomic_put); returns the pair as it was written.
    fn atomic_put(&self, key: &Key, value: &Bytes, expected: &Expected, permit: OwnedSemaphorePermit) -> Begun<KvPair>;

    /// As [`Backend::atomic_delete`](crate::Backend::atomic_delete).
    fn atomic_delete(&self, key: &Key, version: &Version, permit: OwnedSemaphorePermit) -> Begun<()>;

    /// The session is over: what waits for its answer ends now.
    fn end_calls(&self);
}

/// A call that was begun.
pub enum Begun<T> {
    /// It is over.
    Done(Result<T>),
    /// Its answer comes.
    Waits(BoxFuture<'static, Result<T>>),
}
