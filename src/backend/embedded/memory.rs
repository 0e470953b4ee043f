//! `memory`: a store that lives as long as some [`Store`](crate::Store) of this process has it open under its name.

use super::state::{Command, Done, Entry, Refused};
use super::{Embedded, Engine, Published, Submitted};
use crate::backend::{Backend, Connector};
use crate::config::Config;
use crate::error::Result;
use crate::key::Namespace;
use crate::types::{BackendKind, Capabilities};
use async_trait::async_trait;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep_until};

/// The stores of this process by name.
static STORES: LazyLock<Mutex<HashMap<PathBuf, Weak<Shared>>>> = LazyLock::new(Mutex::default);

/// What all stores of one name share.
#[derive(Debug, Default)]
struct Shared {
    published: Arc<Published>,
    /// An entry that goes by itself was written.
    expiry_added: Notify,
}

impl Shared {
    fn named(name: &Path) -> Arc<Self> {
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = stores.get(name).and_then(Weak::upgrade) {
            return shared;
        }
        stores.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::<Shared>::default();
        stores.insert(name.to_owned(), Arc::downgrade(&shared));
        shared
    }

    fn run(&self, command: &Command) -> Result<Done, Refused> {
        let mut shown = self.published.write();
        let (changes, done) = shown.state.decide(command, Instant::now())?;
        let expires = changes.iter().any(|change| change.entry.as_ref().is_some_and(Entry::goes_away));
        shown.apply(changes);
        if expires {
            self.expiry_added.notify_waiters();
        }
        Ok(done)
    }

    /// Removes entries whose time is over, when it is.
    async fn purge(self: Arc<Self>) {
        loop {
            let added = self.expiry_added.notified();
            let next = self.published.read().state.next_expiry();
            tokio::select! {
                () = added => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    let mut shown = self.published.write();
                    let due = shown.state.due(Instant::now());
                    shown.apply(due);
                }
            }
        }
    }
}

/// One session's hold on a store in memory.
struct Memory {
    shared: Arc<Shared>,
    purge: AbortHandle,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.purge.abort();
    }
}

#[async_trait(?Send)]
impl Engine for Memory {
    fn published(&self) -> &Arc<Published> {
        &self.shared.published
    }

    fn submit(&self, command: Command, _: Option<OwnedSemaphorePermit>) -> Submitted {
        Submitted::Done(Ok(self.shared.run(&command)))
    }

    fn outlives_process_by(&self, _: Duration) -> Duration {
        Duration::ZERO
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Opens stores in memory. Holds the store itself, so that it outlives the sessions.
struct MemoryConnector {
    name: PathBuf,
    namespace: Namespace,
    shared: Arc<Shared>,
}

pub(in crate::backend) fn connector(config: &Config) -> Result<Arc<dyn Connector>> {
    let (name, namespace) = (config.location.clone(), config.namespace.clone());
    let shared = Shared::named(&name);
    Ok(Arc::new(MemoryConnector { name, namespace, shared }))
}

#[async_trait(?Send)]
impl Connector for MemoryConnector {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(BackendKind::Memory)
    }

    fn endpoints(&self) -> Vec<String> {
        vec![format!("memory://{}", self.name.display())]
    }

    async fn connect(&self, _: usize) -> Result<Rc<dyn Backend>> {
        let shared = self.shared.clone();
        let purge = spawn_local(shared.clone().purge()).abort_handle();
        let namespace = self.namespace.clone();
        let session = Embedded { kind: BackendKind::Memory, namespace, engine: Memory { shared, purge } };
        Ok(Rc::new(Arc::new(session)))
    }
}
