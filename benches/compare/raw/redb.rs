//! redb, as libkv uses BoltDB: a transaction for each call, and an fsync for each that writes. Who writes waits for whoever
//! writes already, on a thread of its own, as a goroutine would.

use crate::calls::{Calls, Freshness};
use crate::client::Result;
use ::redb::{Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;

/// Key -> version, value.
const KEYS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("keys");

#[derive(Clone)]
pub(crate) struct Engine {
    database: Arc<Database>,
}

impl Engine {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let database = Database::create(folder.join("raw.redb"))?;
        let transaction = database.begin_write()?;
        transaction.open_table(KEYS)?;
        transaction.commit()?;
        Ok(Engine { database: Arc::new(database) })
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Table<'_, &str, (u64, &[u8])>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let database = self.database.clone();
        let written = move || {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            let done = work(&mut transaction.open_table(KEYS)?)?;
            transaction.commit()?;
            Ok(done)
        };
        tokio::task::spawn_blocking(written).await?
    }
}

/// Writes one key in its next version.
fn put(table: &mut Table<'_, &str, (u64, &[u8])>, key: &str, value: &[u8]) -> Result<u64> {
    let version = 1 + table.get(key)?.map_or(0, |row| row.value().0);
    table.insert(key, (version, value))?;
    Ok(version)
}

/// The keys in a directory: `0` is what comes after `/`.
fn range(dir: &str) -> [String; 2] {
    [format!("{dir}/"), format!("{dir}0")]
}

impl Calls for Engine {
    type Version = u64;

    async fn get(&self, key: &str, _: Freshness) -> Result<usize> {
        let table = self.database.begin_read()?.open_table(KEYS)?;
        let row = table.get(key)?.ok_or("no such key")?;
        Ok(Bytes::copy_from_slice(row.value().1).len())
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<u64> {
        let key = key.to_owned();
        self.write(move |table| put(table, &key, &value)).await
    }

    async fn atomic_put(&self, key: &str, value: Bytes, expected: &u64) -> Result<u64> {
        let (key, expected) = (key.to_owned(), *expected);
        let work = move |table: &mut Table<'_, &str, (u64, &[u8])>| {
            match table.get(key.as_str())?.map(|row| row.value().0) {
                Some(version) if version == expected => {}
                _ => return Err("somebody else wrote the key".into()),
            }
            put(table, &key, &value)
        };
        self.write(work).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        let work = move |table: &mut Table<'_, &str, (u64, &[u8])>| match table.remove(key.as_str())? {
            Some(_) => Ok(()),
            None => Err("no such key".into()),
        };
        self.write(work).await
    }

    async fn list(&self, dir: &str) -> Result<usize> {
        let table = self.database.begin_read()?.open_table(KEYS)?;
        let [from, to] = range(dir);
        let mut pairs = Vec::new();
        for row in table.range(from.as_str()..to.as_str())? {
            let (key, row) = row?;
            let (version, value) = row.value();
            pairs.push((key.value().to_owned(), Bytes::copy_from_slice(value), version));
        }
        Ok(pairs.len())
    }

    async fn delete_tree(&self, dir: &str) -> Result<usize> {
        let [from, to] = range(dir);
        let work = move |table: &mut Table<'_, &str, (u64, &[u8])>| {
            let mut count = 0;
            for row in table.extract_from_if(from.as_str()..to.as_str(), |_, _| true)? {
                row?;
                count += 1;
            }
            Ok(count)
        };
        self.write(work).await
    }

    async fn txn(&self, keys: &[String], value: Bytes) -> Result<()> {
        let keys = keys.to_vec();
        let put_all = move |table: &mut Table<'_, &str, (u64, &[u8])>| {
            keys.iter().try_for_each(|key| put(table, key, &value).map(drop))
        };
        self.write(put_all).await
    }

    async fn fill(&self, dir: &str, names: Vec<String>, value: Bytes) -> Result<()> {
        let keys: Vec<_> = names.iter().map(|name| format!("{dir}/{name}")).collect();
        self.txn(&keys, value).await
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}
