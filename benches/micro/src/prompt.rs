//! A backend whose session answers gets and puts by itself, so that what is counted is the way of a call to it and back.

use async_trait::async_trait;
use bytes::Bytes;
use kvactor::{
    Backend, BackendKind, Capabilities, Check, Connector, Consistency, Dir, Error, Expected, Key, KvPair, Lease,
    ListOptions, Operation, Page, Position, Result, Target, TxnOutcome, Updates, Version,
};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::yield_now;

/// When an answer comes.
#[derive(Clone, Copy)]
pub(crate) enum Answers {
    /// With the first look at the call.
    AtOnce,
    /// With the second, as from a server: the call has to wait, and is woken.
    Later,
}

#[async_trait(?Send)]
impl Connector for Answers {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(BackendKind::Custom)
    }

    fn endpoints(&self) -> Vec<String> {
        vec!["this process".into()]
    }

    async fn connect(&self, _: usize) -> Result<Rc<dyn Backend>> {
        Ok(Rc::new(Session(*self)))
    }
}

struct Session(Answers);

impl Session {
    async fn answer(&self) -> Version {
        if let Answers::Later = self.0 {
            yield_now().await;
        }
        Version::new(BackendKind::Custom, 1)
    }
}

fn unknown<T>() -> Result<T> {
    Err(Error::backend("only gets and puts are counted"))
}

#[async_trait(?Send)]
impl Backend for Session {
    async fn get(&self, key: &Key, _: Consistency) -> Result<KvPair> {
        let version = self.answer().await;
        Ok(KvPair { key: key.clone(), value: Bytes::from_static(b"10.0.0.1:80"), version })
    }

    async fn exists(&self, _: &Key, _: Consistency) -> Result<bool> {
        unknown()
    }

    async fn put(&self, _: &Key, _: &Bytes) -> Result<Version> {
        Ok(self.answer().await)
    }

    async fn put_leased(&self, _: &Key, _: &Bytes, _: Duration) -> Result<(Version, Lease)> {
        unknown()
    }

    async fn renew(&self, _: &Lease) -> Result<()> {
        unknown()
    }

    async fn expire(&self, _: &Lease) -> Result<()> {
        unknown()
    }

    async fn delete(&self, _: &Key) -> Result<()> {
        unknown()
    }

    async fn list(&self, _: &Dir, _: &ListOptions) -> Result<Page<KvPair>> {
        unknown()
    }

    async fn list_keys(&self, _: &Dir, _: &ListOptions) -> Result<Page<Key>> {
        unknown()
    }

    async fn delete_tree(&self, _: &Dir) -> Result<u64> {
        unknown()
    }

    async fn atomic_put(&self, _: &Key, _: &Bytes, _: &Expected) -> Result<Version> {
        unknown()
    }

    async fn atomic_delete(&self, _: &Key, _: &Version) -> Result<()> {
        unknown()
    }

    async fn txn(&self, _: &[Check], _: &[Operation]) -> Result<TxnOutcome> {
        unknown()
    }

    async fn watch(&self, _: &Target, _: Option<&Position>) -> Result<Updates> {
        unknown()
    }

    async fn recover(&self) -> Result<()> {
        Ok(())
    }
}
