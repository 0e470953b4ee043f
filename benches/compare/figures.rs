//! What one turn measured.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) samples: u64,
    /// What was waited for and never came.
    pub(crate) lost: u64,
    /// How long the turn took, pauses included, and without what only prepared it.
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    /// The processor time of a sample, of all threads of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_us: Option<f64>,
    /// The most memory that the client's process had in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peak_bytes: Option<u64>,
    /// What of that the thing measured took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) growth: Option<Growth>,
}

/// How much the memory in use grew.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Growth {
    pub(crate) bytes: u64,
    /// For how much: bytes of keys and values, or subscriptions.
    pub(crate) units: u64,
}

impl Growth {
    pub(crate) fn per_unit(self) -> f64 {
        self.bytes as f64 / self.units.max(1) as f64
    }
}

impl Figures {
    /// Of latencies in nanoseconds.
    pub(crate) fn new(latencies: &Histogram<u64>, lost: u64, took: Duration) -> Self {
        let us = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        Figures {
            samples: latencies.len(),
            lost,
            seconds: took.as_secs_f64(),
            p50_us: us(latencies.value_at_quantile(0.5)),
            p99_us: us(latencies.value_at_quantile(0.99)),
            max_us: us(latencies.max()),
            ..Figures::default()
        }
    }

    /// With the processor time that all samples took together.
    pub(crate) fn with_processor_time(self, time: Duration) -> Self {
        Figures { cpu_us: Some(time.as_secs_f64() * 1e6 / self.samples.max(1) as f64), ..self }
    }
}
