//! Reading keys: the two ways that Consul has for it.
//!
//! Agents answer `400 Bad Request` to a URL whose path has characters that Go doesn't take for printable, such as U+00A0
//! or U+200B. Which ones these are depends on the version of Go that the server was built with. So only paths of ASCII
//! are read by their URLs, and all others by transactions, whose bodies aren't checked. What many callers read together is read by
//! transactions too, see `gathered`.

use super::Consul;
use super::codec::{Entry, Meta, Op, encode_path};
use super::http::{Answer, Effect, Http, Transaction, freshness};
use super::write::Placed;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::types::Consistency;
use bytes::Bytes;
use serde::Deserialize;

/// How the server is asked for what is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By a URL.
    Url,
    /// By a transaction of one operation, which takes no more than the right to read. It always shows values.
    Txn,
}

impl Way {
    pub(super) fn to(path: &str) -> Self {
        // Keys have no control characters, and all else in ASCII is printable.
        match path.is_ascii() {
            true => Way::Url,
            false => Way::Txn,
        }
    }
}

/// What of the keys at a path is asked for.
#[derive(Clone, Copy)]
pub(super) enum Extent {
    /// The key with this very path.
    Key,
    /// All keys whose path starts so.
    Tree,
}

/// Keys in the server's words.
pub(super) enum Shown {
    Nothing,
    List(Answer),
    Txn(Bytes),
}

impl Consul {
    /// Whether there is such a key.
    ///
    /// A transaction tells without carrying the value, but takes the right to write the key. Who was denied that once
    /// reads the value from then on.
    pub(super) async fn is_there(&self, key: &Key, consistency: Consistency) -> Result<bool> {
        let path = self.namespace.path(key);
        if !self.reads_only.get() {
            match self.run(&[Op::CheckNotExists { path: &path }], consistency).await {
                Err(Error::PermissionDenied { .. }) => self.reads_only.set(true),
                applied => return applied.map(|applied| applied.is_none()),
            }
        }
        Ok(Box::pin(self.together.read(&path, consistency)).await?.is_some())
    }

    /// The session that holds the key.
    pub(super) async fn session_of(&self, key: &Key) -> Result<Option<String>> {
        let path = self.namespace.path(key);
        let shown = self.http.show(&path, Extent::Key, Consistency::Linearizable).await?;
        let meta: Option<Meta<'_>> = self.http.only(&path, &shown)?;
        Ok(meta.and_then(|meta| Placed::from(&meta).session))
    }
}

impl Http {
    /// The value at a path and its index.
    pub(super) async fn read(&self, path: &str, consistency: Consistency) -> Result<Option<(Bytes, u64)>> {
        if Way::to(path) == Way::Url {
            return self.read_raw(path, consistency).await;
        }
        let shown = Box::pin(self.show(path, Extent::Key, consistency)).await?;
        let entry: Option<Entry<'_>> = self.only(path, &shown)?;
        entry.map(|entry| Ok((self.value(&entry)?, entry.index))).transpose()
    }

    /// The value as it is, without base64. Where one key is asked for, the index of the answer is the key's own, however
    /// many others change.
    async fn read_raw(&self, path: &str, consistency: Consistency) -> Result<Option<(Bytes, u64)>> {
        let query = format!("raw&{}", freshness(consistency));
        let read = self.read_keys(&format!("kv/{}", encode_path(path)), query).await?;
        Ok(read.map(|(answer, index)| (answer.body, index)))
    }

    /// What the server has at a path, to be [parsed](Self::parse).
    pub(super) async fn show(&self, path: &str, extent: Extent, consistency: Consistency) -> Result<Shown> {
        match Way::to(path) {
            Way::Url => self.show_by_url(path, extent, consistency).await,
            Way::Txn => self.show_by_txn(path, extent, consistency).await,
        }
    }

    async fn show_by_url(&self, path: &str, extent: Extent, consistency: Consistency) -> Result<Shown> {
        let recurse = match extent {
            Extent::Key => "",
            Extent::Tree => "recurse&",
        };
        let query = format!("{recurse}{}", freshness(consistency));
        let read = self.read_keys(&format!("kv/{}", encode_path(path)), query).await?;
        Ok(read.map_or(Shown::Nothing, |(answer, _)| Shown::List(answer)))
    }

    async fn show_by_txn(&self, path: &str, extent: Extent, consistency: Consistency) -> Result<Shown> {
        let op = match extent {
            Extent::Key => Op::Get { path },
            Extent::Tree => Op::GetTree { prefix: path },
        };
        match (self.txn(&[op], consistency).await?, extent) {
            (Transaction::Applied(body), _) => Ok(Shown::Txn(body)),
            (Transaction::Refused(_), Extent::Key) => Ok(Shown::Nothing),
            (Transaction::Refused(refusals), Extent::Tree) => {
                Err(Error::backend(format!("Consul refused to show a directory: {refusals:?}")))
            }
            (Transaction::TooLarge(said), _) => Err(Error::backend(said)),
        }
    }

    /// The keys that were shown, with as much of each as `T` holds.
    pub(super) fn parse<'a, T: Deserialize<'a>>(&self, shown: &'a Shown) -> Result<Vec<T>> {
        match shown {
            Shown::Nothing => Ok(Vec::new()),
            Shown::List(answer) => self.json(answer),
            Shown::Txn(body) => Ok(self.entries(body, Effect::Repeatable)?.collect()),
        }
    }

    /// The key at `path`, which alone was asked for.
    pub(super) fn only<'a, T: Deserialize<'a>>(&self, path: &str, shown: &'a Shown) -> Result<Option<T>> {
        match (shown, self.parse(shown)?.into_iter().next()) {
            // A transaction fails where there is no key, and shows nothing where there is one that the token can't see.
            (Shown::Txn(_), None) => {
                let reason = format!("{} hides `{}`; the token needs `key:read`", self.name(), path.escape_debug());
                Err(Error::PermissionDenied { reason, source: None })
            }
            (_, key) => Ok(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_url_can_carry_is_read_by_it() {
        let printable: String = (' '..='~').collect();
        for path in ["", "a/b", "a b?#%+&\"\\", &printable] {
            assert_eq!(Way::to(path), Way::Url, "{path}");
        }
    }

    #[test]
    fn what_a_server_may_refuse_in_a_url_is_read_by_a_transaction() {
        // Printable or not: the server's Go decides, which knows fewer characters the older it is.
        for odd in
            ['\u{a0}', '\u{ad}', '\u{200b}', '\u{2028}', '\u{202e}', '\u{3000}', '\u{feff}', '\u{1fae8}', '\u{e9}']
        {
            assert_eq!(Way::to(&format!("a/{odd}/b")), Way::Txn, "{odd:?}");
        }
    }
}
