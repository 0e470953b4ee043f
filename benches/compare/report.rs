//! What was measured: a line of JSON for each turn, and a table of the medians over all rounds for each subject.

use crate::client::Result;
use crate::options::Options;
use crate::site::Backend;
use crate::{Peer, Subject};
use hdrhistogram::Histogram;
use serde_json::json;
use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

/// Of one turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) samples: u64,
    /// Puts that never arrived.
    pub(crate) lost: u64,
    /// How long the turn took, pauses included.
    pub(crate) seconds: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
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
        }
    }
}

/// What is compared with what, and on what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) subject: Subject,
    pub(crate) backend: Backend,
    pub(crate) peer: Peer,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.subject, self.backend, self.peer)
    }
}

/// What became of it.
struct Entry {
    case: Case,
    turns: Vec<Figures>,
    /// Why there is none, or one less.
    remark: Option<String>,
    failed: bool,
}

pub(crate) struct Report {
    options: Options,
    cores: usize,
    json: Option<File>,
    entries: Vec<Entry>,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let cores = std::thread::available_parallelism()?.get();
        let json = options.json.as_ref().map(File::create).transpose()?;
        Ok(Report { options: options.clone(), cores, json, entries: Vec::new() })
    }

    pub(crate) fn add(&mut self, case: Case, round: u32, figures: Figures) -> Result<()> {
        let Figures { samples, lost, seconds, p50_us, p99_us, max_us } = figures;
        let rate = RATE(&figures);
        eprintln!("{case} round {round}: {rate:.0} per s, p50 {p50_us:.0} us, p99 {p99_us:.0} us, lost {lost}");
        if let Some(file) = &mut self.json {
            let line = json!({
                "subject": case.subject.to_string(), "backend": case.backend.to_string(), "peer": case.peer.to_string(),
                "round": round, "samples": samples, "lost": lost, "seconds": seconds, "p50_us": p50_us, "p99_us": p99_us,
                "max_us": max_us,
            });
            writeln!(file, "{line}")?;
        }
        self.entry(case).turns.push(figures);
        Ok(())
    }

    pub(crate) fn skip(&mut self, case: Case, reason: &str) {
        eprintln!("SKIPPED: {case}: {reason}");
        self.entry(case).remark = Some(format!("skipped: {reason}"));
    }

    pub(crate) fn fail(&mut self, case: Case, error: &(dyn Error + Send + Sync)) {
        eprintln!("FAILED: {case}: {error}");
        let entry = self.entry(case);
        entry.remark = Some(format!("failed: {error}"));
        entry.failed = true;
    }

    pub(crate) fn has_failures(&self) -> bool {
        self.entries.iter().any(|entry| entry.failed)
    }

    fn entry(&mut self, case: Case) -> &mut Entry {
        let at = self.entries.iter().position(|entry| entry.case == case).unwrap_or(self.entries.len());
        if at == self.entries.len() {
            self.entries.push(Entry { case, turns: Vec::new(), remark: None, failed: false });
        }
        &mut self.entries[at]
    }

    /// The median of what `figure` says of the turns of a case.
    fn median(&self, case: Case, figure: Figure) -> Option<f64> {
        let entry = self.entries.iter().find(|entry| entry.case == case)?;
        Some(Spread::of(&entry.turns, figure)?.median)
    }

    /// How a figure of this case compares with the one of another peer.
    fn ratio(&self, case: Case, other: Peer, figure: Figure) -> String {
        match (self.median(case, figure), self.median(Case { peer: other, ..case }, figure)) {
            (Some(own), Some(other)) => format!("{:.2}", own / other),
            _ => "-".to_owned(),
        }
    }

    fn row(&self, entry: &Entry) -> [String; 9] {
        let case = entry.case;
        let [(_, first), (_, second)] = columns(case.subject);
        let spread = |figure| Spread::of(&entry.turns, figure).map_or("-".to_owned(), |spread| spread.to_string());
        let lost = entry.turns.iter().map(|figures| figures.lost).sum::<u64>().to_string();
        [
            case.backend.to_string(),
            case.peer.to_string(),
            spread(first),
            self.ratio(case, Peer::Raw, first),
            self.ratio(case, Peer::Libkv, first),
            spread(second),
            self.ratio(case, Peer::Raw, second),
            self.ratio(case, Peer::Libkv, second),
            entry.remark.clone().unwrap_or(lost),
        ]
    }

    fn title(&self, subject: Subject) -> String {
        let Options { rounds, samples, gap, value_size, lock_time, handoffs, failovers, .. } = &self.options;
        let (what, turn) = match subject {
            Subject::Watch => ("Put to event", format!("{samples} puts each, {value_size} bytes, {gap:?} apart")),
            Subject::Lock => ("Lock and unlock, one caller, nobody else", format!("{lock_time:?} each")),
            Subject::Handoff => ("Release to the next holder", format!("{handoffs} hand-offs each")),
            Subject::Failover => {
                ("No put succeeds, as the leader of three is killed", format!("{failovers} kills each"))
            }
        };
        let cores = self.cores;
        format!(
            "{what}: medians over {rounds} rounds (lowest to highest) of {turn}; {cores} cores for clients and server together"
        )
    }

    fn table(&self, subject: Subject) -> Vec<[String; 9]> {
        let [(first, _), (second, _)] = columns(subject);
        let header = ["backend", "peer", first, "/ raw", "/ libkv", second, "/ raw", "/ libkv", "lost"];
        let entries = self.entries.iter().filter(|entry| entry.case.subject == subject);
        std::iter::once(header.map(str::to_owned)).chain(entries.map(|entry| self.row(entry))).collect()
    }
}

type Figure = fn(&Figures) -> f64;
const P50: Figure = |figures| figures.p50_us;
const P50_MS: Figure = |figures| figures.p50_us / 1000.0;
const MAX_MS: Figure = |figures| figures.max_us / 1000.0;
const P99: Figure = |figures| figures.p99_us;
const RATE: Figure = |figures| figures.samples as f64 / figures.seconds;

/// The two figures that matter, by name.
fn columns(subject: Subject) -> [(&'static str, Figure); 2] {
    match subject {
        Subject::Watch | Subject::Handoff => [("p50 us", P50), ("p99 us", P99)],
        Subject::Failover => [("p50 ms", P50_MS), ("worst ms", MAX_MS)],
        Subject::Lock => [("per second", RATE), ("p50 us", P50)],
    }
}

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

/// A table for each subject, in Markdown.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for subject in &self.options.subjects {
            let mut rows = self.table(*subject);
            let widths: [usize; 9] = std::array::from_fn(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0));
            rows.insert(1, widths.map(|width| "-".repeat(width)));
            writeln!(f, "\n{}\n", self.title(*subject))?;
            for row in rows {
                let cells = row.iter().zip(widths).map(|(cell, width)| format!("| {cell:width$} "));
                writeln!(f, "{}|", cells.collect::<String>())?;
            }
        }
        Ok(())
    }
}
