//! The Rust clients that kvactor stands on, used directly, in the way that tells of a change soonest.

pub(crate) mod consul;
pub(crate) mod etcd;
pub(crate) mod zookeeper;
