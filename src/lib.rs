//! crate docs later
mod actors;
mod backend;
mod call;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
#[cfg(all(test, feature = "memory"))]
mod flaky;
mod key;
mod link;
pub mod messages;
#[cfg(all(test, feature = "memory"))]
mod resilience_tests;
mod runtime;
mod store;
mod supervisor;
#[cfg(feature = "tls")]
mod tls;
mod types;

pub use actors::connection::Connection;
pub use backend::{Backend, Connector, Lease};
pub use config::{Config, Credentials, Endpoint, Options, TlsConfig};
pub use error::{Error, Result, Source};
pub use key::{Dir, Key, Namespace};
pub use store::{DeleteTreeOptions, Store};
pub use types::*;
