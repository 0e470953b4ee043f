//! What kvactor stands on, used directly: the Rust clients, in the way that tells of a change soonest, and the storage engine.

pub(crate) mod consul;
pub(crate) mod etcd;
pub(crate) mod redb;
pub(crate) mod zookeeper;

/// Beneath this are the keys of the raw clients. It is as long as the namespace of our own stores here: longer keys are more work.
const NAMESPACE: &str = "rawpeer";
