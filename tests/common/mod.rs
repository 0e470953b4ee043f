//! Real servers for the tests, each started on free loopback ports with its data in a temporary directory.
//!
//! ```ignore
//! let Some(server) = common::etcd().await else { return };              // shared by the tests of this binary
//! let Some(server) = Server::start(Kind::Consul).await else { return }; // the test's own, to kill, freeze, wipe
//! let Some(cluster) = Cluster::start(Kind::Etcd).await else { return }; // three nodes, each behind a proxy
//! let proxy = server.proxy();                                           // to cut, hold up, and count requests
//! ```
//!
//! Where a server isn't installed the test is skipped, loudly; in CI, and where `KVACTOR_REQUIRE_SERVERS` is set, it fails.

// Every test crate compiles this module for itself and uses a part of it.
#![allow(dead_code, unused_imports, unreachable_pub)]
// Helpers of tests end the test where something can't be; Clippy's own exception knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod cluster;
pub mod consul;
pub mod etcd;
pub mod http;
pub mod meter;
mod ports;
mod process;
pub mod proxy;
mod server;
pub mod tls;
pub mod told;
pub mod worker;
pub mod wrapped;
pub mod zookeeper;

pub use cluster::Cluster;
pub use etcd::etcd_grpc_count;
pub use meter::Counts;
pub use proxy::Proxy;
pub use server::{Kind, Member, Server, Setup, skip};

use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::OnceCell;

/// Each of these tests once for each server that this build has a driver for.
#[allow(unused_macros)]
macro_rules! on_servers {
    ($($name:ident)*) => {
        #[cfg(feature = "consul")]
        mod consul {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::common::Kind::Consul).await;
            })*
        }
        #[cfg(feature = "etcd")]
        mod etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::common::Kind::Etcd).await;
            })*
        }
        #[cfg(feature = "zookeeper")]
        mod zookeeper {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::common::Kind::ZooKeeper).await;
            })*
        }
    };
}
pub(crate) use on_servers;

/// The etcd server that the tests of this binary share.
pub async fn etcd() -> Option<&'static Server> {
    shared(Kind::Etcd).await
}

/// The Consul agent that the tests of this binary share.
pub async fn consul() -> Option<&'static Server> {
    shared(Kind::Consul).await
}

/// The ZooKeeper server that the tests of this binary share.
pub async fn zookeeper() -> Option<&'static Server> {
    shared(Kind::ZooKeeper).await
}

/// The server of this kind that the tests of this binary share: keep to a namespace of your own, and don't disturb it.
///
/// It belongs to no runtime, because each test has its own. Statics are never dropped: the server ends with the process.
pub async fn shared(kind: Kind) -> Option<&'static Server> {
    static SERVERS: [OnceCell<Option<Server>>; Kind::ALL.len()] = [const { OnceCell::const_new() }; Kind::ALL.len()];
    SERVERS[kind as usize].get_or_init(|| Server::start(kind)).await.as_ref()
}

/// A namespace that no other test of this binary uses.
pub fn namespace(test: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{test}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
