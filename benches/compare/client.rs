//! What the peers have in common that run in this process.

use bytes::Bytes;
use std::error::Error;

pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// What a lock's key has as its value while it is held.
pub(crate) const HOLDER: &str = "v";

/// A library and the server that it is to speak to.
pub(crate) trait Peer: Sync {
    type Client: Client;

    /// Connects anew, on the thread and in the runtime in which the client is used.
    async fn connect(&self) -> Result<Self::Client>;
}

/// One connection, as an application has it.
pub(crate) trait Client {
    type Watch: Watch;
    /// What is known of a lock that is held.
    type Held;

    async fn put(&mut self, key: &str, value: Bytes) -> Result<()>;

    /// Tries another server from now on, where the client doesn't do that by itself.
    async fn turn_elsewhere(&mut self) -> Result<()> {
        Ok(())
    }

    /// Follows a key that exists. What is written from when this returns is told.
    async fn watch(&mut self, key: &str) -> Result<Self::Watch>;

    /// Gets a lock, when nobody else has it any more.
    async fn lock(&mut self, key: &str) -> Result<Self::Held>;

    /// Gives the lock back. It is free when this returns.
    async fn unlock(&mut self, held: Self::Held) -> Result<()>;

    async fn close(self) -> Result<()>;
}

/// A key that is followed.
pub(crate) trait Watch {
    /// The value of the key, whenever the application is told it. The first may be the one that was there before.
    async fn next(&mut self) -> Result<Bytes>;
}

/// In what an application's thread runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Runtime {
    /// An actix system.
    Actix,
    /// A tokio runtime of this thread.
    Tokio,
}

impl Runtime {
    pub(crate) fn block_on<T>(self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self {
            Runtime::Actix => actix_rt::System::new().block_on(work),
            Runtime::Tokio => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work),
        }
    }
}
