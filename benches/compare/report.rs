//! What was measured: a line of JSON for each turn, and a table of the medians over all rounds.

use crate::Peer;
use crate::client::Result;
use crate::options::Options;
use crate::site::Backend;
use hdrhistogram::Histogram;
use serde_json::json;
use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::Write;

/// Of one turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) samples: u64,
    /// Puts that never arrived.
    pub(crate) lost: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
}

impl Figures {
    /// Of latencies in nanoseconds.
    pub(crate) fn new(latencies: &Histogram<u64>, lost: u64) -> Self {
        let us = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        Figures {
            samples: latencies.len(),
            lost,
            p50_us: us(latencies.value_at_quantile(0.5)),
            p99_us: us(latencies.value_at_quantile(0.99)),
            max_us: us(latencies.max()),
        }
    }
}

/// What became of a peer on a backend.
struct Entry {
    backend: Backend,
    peer: Peer,
    turns: Vec<Figures>,
    /// Why there is none, or one less.
    remark: Option<String>,
    failed: bool,
}

pub(crate) struct Report {
    title: String,
    json: Option<File>,
    entries: Vec<Entry>,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let Options { rounds, samples, gap, value_size, .. } = options;
        let cores = std::thread::available_parallelism()?;
        let title = format!(
            "Put to event: medians over {rounds} rounds (lowest to highest) of {samples} puts each, {value_size} bytes, \
             {gap:?} apart; {cores} cores for clients and server together"
        );
        let json = options.json.as_ref().map(File::create).transpose()?;
        Ok(Report { title, json, entries: Vec::new() })
    }

    pub(crate) fn add(&mut self, backend: Backend, peer: Peer, round: u32, figures: Figures) -> Result<()> {
        let Figures { samples, lost, p50_us, p99_us, max_us } = figures;
        eprintln!("{backend} {peer} round {round}: p50 {p50_us:.0} us, p99 {p99_us:.0} us, lost {lost}");
        if let Some(file) = &mut self.json {
            let line = json!({
                "subject": "watch_latency", "backend": backend.to_string(), "peer": peer.to_string(), "round": round,
                "samples": samples, "lost": lost, "p50_us": p50_us, "p99_us": p99_us, "max_us": max_us,
            });
            writeln!(file, "{line}")?;
        }
        self.entry(backend, peer).turns.push(figures);
        Ok(())
    }

    pub(crate) fn skip(&mut self, backend: Backend, peer: Peer, reason: &str) {
        eprintln!("SKIPPED: {backend} {peer}: {reason}");
        self.entry(backend, peer).remark = Some(format!("skipped: {reason}"));
    }

    pub(crate) fn fail(&mut self, backend: Backend, peer: Peer, error: &(dyn Error + Send + Sync)) {
        eprintln!("FAILED: {backend} {peer}: {error}");
        let entry = self.entry(backend, peer);
        entry.remark = Some(format!("failed: {error}"));
        entry.failed = true;
    }

    pub(crate) fn has_failures(&self) -> bool {
        self.entries.iter().any(|entry| entry.failed)
    }

    fn entry(&mut self, backend: Backend, peer: Peer) -> &mut Entry {
        let is_it = |entry: &Entry| (entry.backend, entry.peer) == (backend, peer);
        let at = self.entries.iter().position(is_it).unwrap_or(self.entries.len());
        if at == self.entries.len() {
            self.entries.push(Entry { backend, peer, turns: Vec::new(), remark: None, failed: false });
        }
        &mut self.entries[at]
    }

    /// The median of what `figure` says of a peer's turns.
    fn of(&self, backend: Backend, peer: Peer, figure: Figure) -> Option<f64> {
        let entry = self.entries.iter().find(|entry| (entry.backend, entry.peer) == (backend, peer))?;
        Some(Spread::of(&entry.turns, figure)?.median)
    }

    /// How a figure of this entry compares with the one of another peer.
    fn ratio(&self, entry: &Entry, other: Peer, figure: Figure) -> String {
        let own = Spread::of(&entry.turns, figure).map(|spread| spread.median);
        match (own, self.of(entry.backend, other, figure)) {
            (Some(own), Some(other)) => format!("{:.2}", own / other),
            _ => "-".to_owned(),
        }
    }

    fn row(&self, entry: &Entry) -> [String; 9] {
        let spread = |figure| Spread::of(&entry.turns, figure).map_or("-".to_owned(), |spread| spread.to_string());
        let lost = entry.turns.iter().map(|figures| figures.lost).sum::<u64>().to_string();
        [
            entry.backend.to_string(),
            entry.peer.to_string(),
            spread(P50),
            self.ratio(entry, Peer::Raw, P50),
            self.ratio(entry, Peer::Libkv, P50),
            spread(P99),
            self.ratio(entry, Peer::Raw, P99),
            self.ratio(entry, Peer::Libkv, P99),
            entry.remark.clone().unwrap_or(lost),
        ]
    }
}

type Figure = fn(&Figures) -> f64;
const P50: Figure = |figures| figures.p50_us;
const P99: Figure = |figures| figures.p99_us;

/// A figure over all rounds.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(turns: &[Figures], figure: Figure) -> Option<Self> {
        let mut all: Vec<_> = turns.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        let (least, most) = (*all.first()?, *all.last()?);
        let median = f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2]);
        Some(Spread { least, median, most })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} ({:.0} to {:.0})", self.median, self.least, self.most)
    }
}

const HEADER: [&str; 9] = ["backend", "peer", "p50 us", "/ raw", "/ libkv", "p99 us", "/ raw", "/ libkv", "lost"];

/// The table, in Markdown.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![HEADER.map(str::to_owned)];
        rows.extend(self.entries.iter().map(|entry| self.row(entry)));
        let widths: [usize; 9] = std::array::from_fn(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0));
        rows.insert(1, widths.map(|width| "-".repeat(width)));
        writeln!(f, "\n{}\n", self.title)?;
        for row in rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("| {cell:width$} "));
            writeln!(f, "{}|", cells.collect::<String>())?;
        }
        Ok(())
    }
}
