//! etcd-client: Put, and a Watch stream. A lock is what etcd's own Go package makes of it, in fewer requests: a transaction puts
//! the contender and tells who came before it; another takes it away. Who waits watches the one ahead, and then looks again.

use super::NAMESPACE;
use crate::calls::{Calls, Freshness};
use crate::client::{self, HOLDER, Result};
use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue, PutOptions, SortOrder, SortTarget, Txn,
    TxnOp, TxnOpResponse, WatchFilterType, WatchOptions, WatchStream,
};
use futures_util::future::try_join_all;

/// How long a lock lasts that isn't renewed: longer than a turn.
const LEASE_SECONDS: i64 = 60;

pub(crate) struct Peer {
    addresses: Vec<String>,
}

impl Peer {
    pub(crate) fn at(address: &str) -> Self {
        Peer::among(&[address.to_owned()])
    }

    /// The client balances among all of them.
    pub(crate) fn among(hosts: &[String]) -> Self {
        Peer { addresses: hosts.to_vec() }
    }
}

impl client::Peer for Peer {
    type Client = Connection;

    async fn connect(&self) -> Result<Connection> {
        let mut client = Client::connect(&self.addresses, None).await?;
        let lease = client.lease_grant(LEASE_SECONDS, None).await?.id();
        Ok(Connection { client, lease })
    }
}

#[derive(Clone)]
pub(crate) struct Connection {
    client: Client,
    lease: i64,
}

impl client::Client for Connection {
    type Watch = WatchStream;
    type Held = Contender;

    async fn put(&mut self, key: &str, value: Bytes) -> Result<()> {
        self.client.put(path(key), value, None).await?;
        Ok(())
    }

    async fn watch(&mut self, key: &str) -> Result<WatchStream> {
        let mut stream = self.client.watch(path(key), None).await?;
        let first = stream.message().await?;
        match first.is_some_and(|first| first.created()) {
            true => Ok(stream),
            false => Err("the watch wasn't created".into()),
        }
    }

    async fn lock(&mut self, key: &str) -> Result<Contender> {
        let line = format!("{}/", path(key));
        let name = format!("{line}{:x}", self.lease);
        let put = TxnOp::put(name.as_str(), HOLDER, Some(PutOptions::new().with_lease(self.lease)));
        let is_new = Compare::create_revision(name.as_str(), CompareOp::Equal, 0);
        let last_two = TxnOp::get(line.as_str(), Some(latest().with_limit(2)));
        let answer = self.client.txn(Txn::new().when([is_new]).and_then([put, last_two])).await?;
        let made = answer.header().ok_or("an answer without a revision")?.revision();
        let Some(TxnOpResponse::Get(found)) = answer.op_responses().into_iter().nth(1) else {
            return Err("the contender was there already".into());
        };
        let mut ahead = found.kvs().get(1).map(KeyValue::key).map(<[u8]>::to_vec);
        while let Some(rival) = ahead {
            self.until_deleted(rival, made).await?;
            let before = latest().with_limit(1).with_max_create_revision(made - 1);
            let found = self.client.get(line.as_str(), Some(before)).await?;
            ahead = found.kvs().first().map(KeyValue::key).map(<[u8]>::to_vec);
        }
        Ok(Contender { name, made })
    }

    async fn unlock(&mut self, Contender { name, made }: Contender) -> Result<()> {
        let is_it = Compare::create_revision(name.as_str(), CompareOp::Equal, made);
        let answer = self.client.txn(Txn::new().when([is_it]).and_then([TxnOp::delete(name, None)])).await?;
        if answer.succeeded() { Ok(()) } else { Err("the lock was lost".into()) }
    }

    async fn close(mut self) -> Result<()> {
        self.client.lease_revoke(self.lease).await?;
        Ok(())
    }
}

impl Connection {
    /// Waits until a key is deleted that was there at a revision.
    async fn until_deleted(&mut self, key: Vec<u8>, seen: i64) -> Result<()> {
        let options = WatchOptions::new().with_start_revision(seen + 1).with_filters([WatchFilterType::NoPut]);
        let mut stream = self.client.watch(key, Some(options)).await?;
        while let Some(response) = stream.message().await? {
            if response.events().iter().any(|event| event.event_type() == EventType::Delete) {
                return Ok(());
            }
        }
        Err("the stream ended".into())
    }
}

/// How many keys are read at a time, as our driver does it: gRPC's limit for an answer is 4 MiB in most clients.
const PAGE: i64 = 1000;
/// How many keys are made at a time.
const BATCH: usize = 100;

impl Calls for Connection {
    /// The revision of the last write.
    type Version = i64;

    async fn get(&self, key: &str, freshness: Freshness) -> Result<usize> {
        let options = (freshness == Freshness::Stale).then(|| GetOptions::new().with_serializable());
        let found = self.client.kv_client().get(path(key), options).await?.take_kvs().pop();
        let (_, value) = found.ok_or("no such key")?.into_key_value();
        Ok(value.len())
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<i64> {
        let answer = self.client.kv_client().put(path(key), value, None).await?;
        Ok(answer.header().ok_or("an answer without a revision")?.revision())
    }

    async fn atomic_put(&self, key: &str, value: Bytes, expected: &i64) -> Result<i64> {
        let path = path(key);
        let compare = Compare::mod_revision(path.as_str(), CompareOp::Equal, *expected);
        let put = TxnOp::put(path.as_str(), value, None);
        let look = TxnOp::get(path, Some(GetOptions::new().with_keys_only()));
        let txn = Txn::new().when([compare]).and_then([put]).or_else([look]);
        let answer = self.client.kv_client().txn(txn).await?;
        match answer.succeeded() {
            true => Ok(answer.header().ok_or("an answer without a revision")?.revision()),
            false => Err("somebody else wrote the key".into()),
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        match self.client.kv_client().delete(path(key), None).await?.deleted() {
            1 => Ok(()),
            _ => Err("no such key".into()),
        }
    }

    async fn list(&self, dir: &str) -> Result<usize> {
        let (mut start, end) = (format!("{}/", path(dir)).into_bytes(), format!("{}0", path(dir)));
        let (mut at, mut pairs) = (0, Vec::new());
        loop {
            let options = GetOptions::new().with_range(end.as_str()).with_limit(PAGE).with_revision(at);
            let mut answer = self.client.kv_client().get(start, Some(options)).await?;
            at = answer.header().map_or(at, |header| if at == 0 { header.revision() } else { at });
            let more = answer.more();
            for found in answer.take_kvs() {
                let version = found.mod_revision();
                let (key, value) = found.into_key_value();
                pairs.push((String::from_utf8(key)?, Bytes::from(value), version));
            }
            match pairs.last() {
                Some((last, ..)) if more => start = [last.as_bytes(), b"\0"].concat(),
                _ => return Ok(pairs.len()),
            }
        }
    }

    async fn delete_tree(&self, dir: &str) -> Result<usize> {
        let options = DeleteOptions::new().with_range(format!("{}0", path(dir)));
        let answer = self.client.kv_client().delete(format!("{}/", path(dir)), Some(options)).await?;
        Ok(usize::try_from(answer.deleted())?)
    }

    async fn txn(&self, keys: &[String], value: Bytes) -> Result<()> {
        let puts: Vec<_> = keys.iter().map(|key| TxnOp::put(path(key), value.as_ref(), None)).collect();
        match self.client.kv_client().txn(Txn::new().and_then(puts)).await?.succeeded() {
            true => Ok(()),
            false => Err("refused".into()),
        }
    }

    async fn fill(&self, dir: &str, names: Vec<String>, value: Bytes) -> Result<()> {
        let keys: Vec<_> = names.iter().map(|name| format!("{dir}/{name}")).collect();
        try_join_all(keys.chunks(BATCH).map(|batch| self.txn(batch, value.clone()))).await?;
        Ok(())
    }

    async fn close(self) -> Result<()> {
        client::Client::close(self).await
    }
}

/// The key by which a lock is held, and the revision that made it.
pub(crate) struct Contender {
    name: String,
    made: i64,
}

/// Of a line of contenders, those who came last.
fn latest() -> GetOptions {
    GetOptions::new().with_prefix().with_keys_only().with_sort(SortTarget::Create, SortOrder::Descend)
}

impl client::Watch for WatchStream {
    async fn next(&mut self) -> Result<Bytes> {
        let response = self.message().await?.ok_or("the stream ended")?;
        let event = response.events().last().ok_or("a response without an event")?;
        let pair = event.kv().ok_or("an event without a pair")?;
        Ok(Bytes::copy_from_slice(pair.value()))
    }
}

fn path(key: &str) -> String {
    format!("{NAMESPACE}/{key}")
}
