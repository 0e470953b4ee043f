//! Stores under faults drawn from a seed: what clients do meanwhile, what is recorded of it, and what must be true of the record.
//!
//! - [`plan`]: which faults, in which order, for how long: the same for the same seed.
//! - [`clients`]: random calls on few keys; [`history`] has what was called and answered, and [`model`] what a store may answer.
//! - [`holders`]: locks and leaders, whose times must not overlap.
//! - [`run`]: one run with all of it, on a cluster; [`report`] adds up what was seen; [`footprint`] is what a run leaves behind.

// Every test crate compiles this module for itself and uses a part of it.
#![allow(dead_code, unreachable_pub)]
// Helpers of tests end the test where something can't be; Clippy's own exception knows only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod clients;
pub mod footprint;
pub mod history;
pub mod holders;
pub mod model;
pub mod plan;
pub mod report;
pub mod run;
