//! The conformance suite on a backend that is not part of the crate: the one of the example.
#![cfg(feature = "conformance")]
// Clippy's own exception for tests knows only the test functions themselves.
#![allow(clippy::expect_used, clippy::panic)]

#[path = "../examples/custom_backend.rs"]
#[allow(dead_code, unreachable_pub, reason = "the example's own `main` is not run here")]
mod custom_backend;

use custom_backend::MapConnector;
use kvactor::conformance::Fixture;
use kvactor::{Options, Store};

/// Each case has a map of its own, so it needs no namespace.
async fn open(_namespace: String) -> Option<Fixture> {
    let connector = MapConnector::default();
    let store = Store::with_backend(connector, Options::default()).await.expect("a map always opens");
    Some(Fixture::exclusive(store))
}

kvactor::conformance_tests!(open);
