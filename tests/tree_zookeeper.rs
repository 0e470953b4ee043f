//! What listings see and deletions leave among ZooKeeper's znodes.
#![cfg(feature = "zookeeper")]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Server, namespace};
use futures_util::future::try_join_all;
use kvactor::{Depth, ListOptions, LockOptions, Store};
use zookeeper_client::{Acls, Client, CreateMode};

/// Two stores in a namespace, a client of the server's own, and the path of what is at `a`.
async fn stage(server: &Server, test: &str) -> ([Store; 2], Client, String) {
    let name = namespace(test);
    let connect = async || Store::connect(&server.url(&name)).await.unwrap();
    let client = Client::connect(&server.address().to_string()).await.unwrap();
    ([connect().await, connect().await], client, format!("/{name}/a"))
}

/// A store that doesn't know how large its values are looks at one znode after the other, and at no data.
#[tokio::test]
async fn a_first_listing_of_children_knows_locks() {
    let Some(server) = common::zookeeper().await else { return };
    let ([store, _], _, path) = stage(server, "first").await;
    let name = path.split('/').nth(1).unwrap();
    let options = ListOptions { depth: Depth::Children, ..ListOptions::default() };
    let mut held = Vec::new();
    for expected in [&["d/1"][..], &["d/1", "d/2"]] {
        held.push(store.lock_with(expected[held.len()], LockOptions::default()).await.unwrap());
        let fresh = Store::connect(&server.url(name)).await.unwrap();
        let page = fresh.list_keys("d", options.clone()).await.unwrap();
        assert_eq!(page.items.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    }
}

/// The directory's own key is deleted at the same moment; in every other round it is made then, too.
#[tokio::test]
async fn nothing_is_left_of_a_tree_whose_directory_is_a_key_meanwhile() {
    let Some(server) = common::zookeeper().await else { return };
    let ([store, other], client, path) = stage(server, "meanwhile").await;
    for round in 0..80 {
        fill(&store).await;
        let is_made_before = round % 2 == 0;
        if is_made_before {
            store.put("a", "1").await.unwrap();
        }
        let key = async {
            if !is_made_before {
                other.put("a", "1").await?;
            }
            other.delete("a").await
        };
        let (tree, key) = tokio::join!(store.delete_tree("a"), key);
        assert!(matches!(tree, Ok(20)), "{tree:?}");
        key.unwrap();
        assert_eq!(client.check_stat(&path).await.unwrap(), None, "round {round}");
    }
}

async fn fill(store: &Store) {
    try_join_all((0..20).map(|number| store.put(format!("a/{number}"), "1"))).await.unwrap();
}

/// What isn't ours to delete keeps its directory.
#[tokio::test]
async fn a_directory_of_others_stays() {
    let Some(server) = common::zookeeper().await else { return };
    let ([store, _], client, path) = stage(server, "others").await;
    fill(&store).await;
    let alive = format!("{path}/alive");
    client.create(&alive, b"", &CreateMode::Ephemeral.with_acls(Acls::anyone_all())).await.unwrap();
    assert_eq!(store.delete_tree("a").await.unwrap(), 20);
    assert_eq!(client.list_children(&path).await.unwrap(), ["alive"]);
    client.delete(&alive, None).await.unwrap();
    fill(&store).await;
    store.put("a/b/c", "1").await.unwrap();
    assert_eq!(store.delete_tree("a").await.unwrap(), 21);
    assert_eq!(client.check_stat(&path).await.unwrap(), None);
}
