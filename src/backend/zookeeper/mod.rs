//! The zookeeper driver.
