//! crate docs later
mod backend;
mod config;
mod error;
mod key;
mod types;
pub use backend::{Backend, Connector, Lease};
pub use config::{Config, Credentials, Endpoint, Options, TlsConfig};
pub use error::{Error, Result, Source};
pub use key::{Dir, Key, Namespace};
pub use types::*;
