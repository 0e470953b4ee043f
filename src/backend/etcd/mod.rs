//! The etcd driver.
