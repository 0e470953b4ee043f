//! The conformance suite on every backend that this build has: `cargo test --test conformance etcd::`.

// Clippy takes only the test functions themselves for tests.
#![allow(clippy::expect_used)]

#[cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
mod common;

/// A fixture on the shared server of one kind.
#[cfg(any(feature = "consul", feature = "etcd", feature = "zookeeper"))]
macro_rules! on_server {
    ($server:ident) => {
        mod $server {
            use kvactor::conformance::Fixture;

            async fn open(namespace: String) -> Option<Fixture> {
                let server = crate::common::$server().await?;
                Some(Fixture::connect(&server.url(&namespace)).await.expect("the server just started"))
            }

            kvactor::conformance_tests!(open);
        }
    };
}

#[cfg(feature = "consul")]
on_server!(consul);
#[cfg(feature = "etcd")]
on_server!(etcd);
#[cfg(feature = "zookeeper")]
on_server!(zookeeper);

#[cfg(feature = "local")]
mod local {
    use kvactor::Store;
    use kvactor::conformance::Fixture;

    /// Each case has a file of its own, which only one store can open at a time.
    async fn open(namespace: String) -> Option<Fixture> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let url = format!("local://{}/store.redb?namespace={namespace}", directory.path().display());
        let store = Store::connect(&url).await.expect("a new file opens");
        Some(Fixture::exclusive(store).keeping(directory))
    }

    kvactor::conformance_tests!(open);
}

#[cfg(feature = "memory")]
mod memory {
    use kvactor::conformance::Fixture;

    /// All cases share one memory, as they share one server.
    async fn open(namespace: String) -> Option<Fixture> {
        let url = format!("memory://conformance/{namespace}");
        Some(Fixture::connect(&url).await.expect("a store in memory always opens"))
    }

    kvactor::conformance_tests!(open);
}

/// The suite always has a namespace; this is what holds without one.
#[cfg(feature = "memory")]
#[tokio::test]
async fn what_zookeeper_reserves_is_refused_without_a_namespace() {
    let store = kvactor::Store::connect("memory://no-namespace").await.unwrap();
    for path in ["zookeeper", "zookeeper/quota", "//zookeeper//x"] {
        let put = store.put(path, "1").await;
        assert!(matches!(put, Err(kvactor::Error::InvalidKey { .. })), "{path}: {put:?}");
        let list = store.list(path).await;
        assert!(matches!(list, Err(kvactor::Error::InvalidKey { .. })), "{path}: {list:?}");
    }
    store.put("zookeeperish/x", "1").await.unwrap();
    store.put("a/zookeeper", "1").await.unwrap();
    store.close().await.unwrap();
}
