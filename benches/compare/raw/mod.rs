//! What kvactor stands on, used directly: the Rust clients, in the way that tells of a change soonest, and the storage engine.

pub(crate) mod consul;
pub(crate) mod etcd;
pub(crate) mod redb;
pub(crate) mod zookeeper;
