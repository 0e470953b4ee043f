//! What was measured: a line of JSON for each turn, and tables of the medians over all rounds.

use crate::case::{Backend, Call, Case, Peer, Subject, Task, Work};
use crate::client::Result;
use crate::figures::{Figures, Growth};
use crate::linear;
use crate::options::{Amounts, Options};
use crate::progress::Progress;
use crate::table::{NOTHING, Table};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

/// A line of JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Setting(Setting),
    Turn(Turn),
}

/// How all turns of a run were measured.
#[derive(Clone, Serialize, Deserialize)]
struct Setting {
    amounts: Amounts,
    cores: usize,
    /// Those that servers have for themselves. Former runs didn't say: none.
    #[serde(default)]
    server_cores: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct Turn {
    #[serde(flatten)]
    case: Case,
    round: u32,
    #[serde(flatten)]
    figures: Figures,
}

/// What became of a case.
struct Entry {
    case: Case,
    turns: Vec<Figures>,
}

pub(crate) struct Report {
    setting: Setting,
    json: Option<File>,
    progress: Progress,
    entries: Vec<Entry>,
    /// What was skipped, and what failed.
    remarks: Vec<String>,
    failed: bool,
}

impl Report {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let (cores, server_cores) = options.cores.counts();
        let setting = Setting { amounts: options.amounts.clone(), cores, server_cores };
        let mut json = options.json.as_ref().map(File::create).transpose()?;
        if let Some(file) = &mut json {
            writeln!(file, "{}", serde_json::to_string(&setting)?)?;
        }
        let progress = Progress::new(if options.from.is_empty() { turns(options) } else { 0 });
        Ok(Report { setting, json, progress, entries: Vec::new(), remarks: Vec::new(), failed: false })
    }

    pub(crate) fn begin(&self, case: Case, round: u32) {
        self.progress.begin(&format!("{case}, round {round}"));
    }

    pub(crate) fn add(&mut self, case: Case, round: u32, figures: Figures) -> Result<()> {
        let Figures { p50_us, p99_us, lost, .. } = figures;
        let rate = RATE(&figures).unwrap_or_default();
        self.progress.end(&format!(
            "{case} round {round}: {rate:.0} per s, p50 {p50_us:.0} us, p99 {p99_us:.0} us, lost {lost}"
        ));
        if let Some(file) = &mut self.json {
            writeln!(file, "{}", serde_json::to_string(&Turn { case, round, figures })?)?;
        }
        self.keep(case, figures);
        Ok(())
    }

    fn keep(&mut self, case: Case, figures: Figures) {
        match self.entries.iter_mut().find(|entry| entry.case == case) {
            Some(entry) => entry.turns.push(figures),
            None => self.entries.push(Entry { case, turns: vec![figures] }),
        }
    }

    /// Takes in what a run has written.
    pub(crate) fn read(&mut self, file: &Path) -> Result<()> {
        for line in BufReader::new(File::open(file)?).lines() {
            match serde_json::from_str(&line?)? {
                Line::Setting(setting) => self.setting = setting,
                Line::Turn(Turn { case, figures, .. }) => self.keep(case, figures),
            }
        }
        Ok(())
    }

    pub(crate) fn skip(&mut self, subject: Subject, backend: Backend, peer: Peer, reason: &str) {
        self.remark(format!("SKIPPED: {subject} on {backend} by {peer}: {reason}"));
    }

    pub(crate) fn fail(&mut self, case: Case, error: &(dyn Error + Send + Sync)) {
        self.failed = true;
        self.remark(format!("FAILED: {} {case}: {error}", case.task.subject()));
    }

    fn remark(&mut self, remark: String) {
        self.progress.say(&remark);
        self.remarks.push(remark);
    }

    pub(crate) fn finish(&self) -> Result<()> {
        self.progress.finish();
        match self.entries.is_empty() && self.remarks.is_empty() {
            true => Err("nothing of what was chosen can be measured".into()),
            false => Ok(()),
        }
    }

    pub(crate) fn has_failures(&self) -> bool {
        self.failed
    }

    /// The median of what `figure` says of the turns of a case.
    pub(crate) fn median(&self, case: Case, figure: Figure) -> Option<f64> {
        self.spread(case, figure).map(|spread| spread.median)
    }

    fn spread(&self, case: Case, figure: Figure) -> Option<Spread> {
        let entry = self.entries.iter().find(|entry| entry.case == case)?;
        Spread::of(&entry.turns, figure)
    }

    /// How a figure of this case compares with the one of another peer.
    fn ratio(&self, case: Case, other: Peer, figure: Figure) -> String {
        let other = self.median(Case { peer: other, ..case }, figure);
        shown(self.median(case, figure).zip(other).map(|(own, other)| format!("{:.2}", own / other)))
    }

    /// By how much a figure of this case is above the raw client's.
    fn over_raw(&self, case: Case, figure: Figure) -> String {
        let raw = self.median(Case { peer: Peer::Raw, ..case }, figure);
        shown(self.median(case, figure).zip(raw).map(|(own, raw)| format!("{:+.1}", own - raw)))
    }

    fn with_spread(&self, case: Case, figure: Figure) -> String {
        shown(self.spread(case, figure).map(|spread| spread.to_string()))
    }

    fn number(&self, case: Case, figure: Figure) -> String {
        shown(self.median(case, figure).map(precise))
    }

    /// Those of a subject; the peers in the same order each time, whoever was first.
    fn cases(&self, subject: Subject) -> Vec<Case> {
        let all = self.entries.iter().map(|entry| entry.case);
        let mut cases: Vec<_> = all.filter(|case| case.task.subject() == subject).collect();
        for same in cases.chunk_by_mut(|one, other| (one.task, one.backend) == (other.task, other.backend)) {
            same.sort_by_key(|case| case.peer as u8);
        }
        cases
    }

    /// The tasks of a subject on a backend that anybody has done, each once.
    pub(crate) fn tasks(&self, subject: Subject, backend: Backend) -> Vec<Task> {
        let mut tasks = Vec::new();
        for case in self.cases(subject).into_iter().filter(|case| case.backend == backend) {
            if !tasks.contains(&case.task) {
                tasks.push(case.task);
            }
        }
        tasks
    }

    fn rounds(&self, subject: Subject) -> usize {
        let turns = self.entries.iter().filter(|entry| entry.case.task.subject() == subject);
        turns.map(|entry| entry.turns.len()).max().unwrap_or(0)
    }

    fn title(&self, subject: Subject) -> String {
        let Amounts {
            call_time,
            value_size,
            samples,
            gap,
            subscribers,
            fan_outs,
            idle,
            lock_time,
            handoffs,
            failovers,
        } = &self.setting.amounts;
        let (what, turn) = match subject {
            Subject::Calls => ("Calls", format!("{call_time:?} each, {value_size} bytes")),
            Subject::Linear => ("Work once, 10 and 100 times", format!("{call_time:?} each, {value_size} bytes")),
            Subject::Watch => ("Put to event", format!("{samples} puts each, {value_size} bytes, {gap:?} apart")),
            Subject::Fanout => {
                ("Put to the last subscriber's event", format!("{fan_outs} puts, {subscribers} subscribers"))
            }
            Subject::Idle => ("Subscriptions at rest", format!("{idle} of them")),
            Subject::Lock => ("Lock and unlock, one caller, nobody else", format!("{lock_time:?} each")),
            Subject::Handoff => ("Release to the next holder", format!("{handoffs} hand-offs each")),
            Subject::Failover => {
                ("No put succeeds, as the leader of three is killed", format!("{failovers} kills each"))
            }
        };
        let (rounds, cores) = (self.rounds(subject), self.setting.cores);
        let cores = match self.setting.server_cores {
            Some(servers) if subject != Subject::Failover => {
                format!("of the cores {cores} for clients and {servers} for the server, where there is one")
            }
            servers => format!("{} cores for clients and server together", cores + servers.unwrap_or(0)),
        };
        format!("{what}: medians over {rounds} rounds (lowest to highest) of {turn}; {cores}")
    }

    fn tables(&self, subject: Subject) -> Vec<Table> {
        match subject {
            Subject::Calls => {
                let each = Backend::ALL.iter().flat_map(|backend| self.call_tables(*backend));
                [self.calls_overview()].into_iter().chain(each).collect()
            }
            Subject::Linear => vec![self.linear_table()],
            Subject::Watch | Subject::Handoff => vec![self.latency_table(subject, [("p50 us", P50), ("p99 us", P99)])],
            Subject::Lock => vec![self.latency_table(subject, [("per second", RATE), ("p50 us", P50)])],
            Subject::Failover => vec![self.latency_table(subject, [("p50 ms", P50_MS), ("worst ms", MAX_MS)])],
            Subject::Fanout => vec![self.fanout_table()],
            Subject::Idle => vec![self.idle_table()],
        }
    }

    /// What most ask for: each call by as many callers as an application with something to do has, and by one.
    fn calls_overview(&self) -> Table {
        let header = [
            "backend",
            "call",
            "callers",
            "kvactor / s",
            "/ raw",
            "tokio / raw",
            "/ libkv",
            "CPU over raw",
            "one caller: p50 raw",
            "over raw",
        ];
        let title = format!("{}. An overview, times in us", self.title(Subject::Calls));
        let mut table = Table::new(title, &header);
        for backend in Backend::ALL {
            for call in Call::ALL {
                let points = self.points(*backend, *call);
                let Some(callers) = points.iter().copied().filter(|callers| *callers <= 64).max() else { continue };
                let of = |peer, callers| Case { task: Task::Calls { call: *call, callers }, backend: *backend, peer };
                let many = of(Peer::Kvactor, callers);
                let mut row = vec![backend.to_string(), call.to_string(), callers.to_string()];
                row.extend([self.number(many, RATE), self.ratio(many, Peer::Raw, RATE)]);
                row.push(self.ratio(of(Peer::KvactorTokio, callers), Peer::Raw, RATE));
                row.push(self.beside_libkv(many, of(Peer::Kvactor, 1)));
                row.push(self.over_raw(many, CPU));
                row.extend([self.number(of(Peer::Raw, 1), P50), self.over_raw(of(Peer::Kvactor, 1), P50)]);
                table.push(row);
            }
        }
        table
    }

    /// By many callers, or by one where libkv has no more.
    fn beside_libkv(&self, many: Case, one: Case) -> String {
        let ratio = |case| self.ratio(case, Peer::Libkv, RATE);
        match (ratio(many).as_str(), ratio(one).as_str()) {
            (NOTHING, NOTHING) => NOTHING.to_owned(),
            (NOTHING, by_one) => format!("{by_one} (by 1)"),
            (by_many, _) => by_many.to_owned(),
        }
    }

    /// Throughput, latency, and what the client takes of the machine, for each call and number of callers.
    fn call_tables(&self, backend: Backend) -> [Table; 3] {
        let title = |what: &str| format!("{}. On {backend}: {what}", self.title(Subject::Calls));
        let mut throughput = Table::new(
            title("calls per second"),
            &["call", "callers", "kvactor", "/ raw", "/ libkv", "kvactor-tokio", "/ raw", "/ libkv", "raw", "libkv"],
        );
        let mut latency = Table::new(
            title("latency in us, p50 and p99"),
            &[
                "call",
                "callers",
                "p50 kvactor",
                "over raw",
                "kvactor-tokio",
                "over raw",
                "raw",
                "libkv",
                "p99 kvactor",
                "kvactor-tokio",
                "raw",
                "libkv",
            ],
        );
        let mut resources = Table::new(
            title("the client's processor time per call in us, and its peak memory in MiB"),
            &[
                "call",
                "callers",
                "CPU kvactor",
                "over raw",
                "kvactor-tokio",
                "over raw",
                "raw",
                "libkv",
                "MiB kvactor",
                "kvactor-tokio",
                "raw",
                "libkv",
            ],
        );
        for task in self.tasks(Subject::Calls, backend) {
            let Task::Calls { call, callers } = task else { continue };
            let of = |peer| Case { task, backend, peer };
            let begin = || vec![call.to_string(), callers.to_string()];
            throughput.push([begin(), self.rates(of)].concat());
            latency.push([begin(), self.costs(of, P50), self.plain(of, P99)].concat());
            resources.push([begin(), self.costs(of, CPU), self.plain(of, PEAK)].concat());
        }
        [throughput, latency, resources]
    }

    fn rates(&self, of: impl Fn(Peer) -> Case) -> Vec<String> {
        let ours = |peer| {
            let case = of(peer);
            let ratio = |other| self.ratio(case, other, RATE);
            [self.with_spread(case, RATE), ratio(Peer::Raw), ratio(Peer::Libkv)]
        };
        let theirs = [self.with_spread(of(Peer::Raw), RATE), self.with_spread(of(Peer::Libkv), RATE)];
        [&ours(Peer::Kvactor)[..], &ours(Peer::KvactorTokio)[..], &theirs[..]].concat()
    }

    fn costs(&self, of: impl Fn(Peer) -> Case, figure: Figure) -> Vec<String> {
        let ours = |peer| [self.number(of(peer), figure), self.over_raw(of(peer), figure)];
        let theirs = [self.number(of(Peer::Raw), figure), self.number(of(Peer::Libkv), figure)];
        [ours(Peer::Kvactor), ours(Peer::KvactorTokio), theirs].concat()
    }

    fn plain(&self, of: impl Fn(Peer) -> Case, figure: Figure) -> Vec<String> {
        Peer::ALL.iter().map(|peer| self.number(of(*peer), figure)).collect()
    }

    fn linear_table(&self) -> Table {
        let header = [
            "backend",
            "work",
            "peer",
            "x1 ms",
            "x10 ms",
            "x100 ms",
            "x10 / x1",
            "x100 / x1",
            "CPU x100 / x1",
            "memory x100 / payload",
        ];
        let title = format!(
            "{}. Once is a listing of {keys} keys, or {keys} puts by 64 callers",
            self.title(Subject::Linear),
            keys = linear::KEYS
        );
        let mut table = Table::new(title, &header);
        for once in self.cases(Subject::Linear) {
            let Task::Linear { work, times: 1 } = once.task else { continue };
            let of = |times| Case { task: Task::Linear { work, times }, ..once };
            let grown = |times, figure| {
                let many = self.median(of(times), figure).zip(self.median(once, figure));
                shown(many.map(|(many, once)| format!("{:.1}", many / once)))
            };
            let mut row = vec![once.backend.to_string(), work.to_string(), once.peer.to_string()];
            row.extend([1, 10, 100].map(|times| self.number(of(times), P50_MS)));
            row.extend([grown(10, P50), grown(100, P50), grown(100, CPU)]);
            row.push(if work == Work::List { self.number(of(100), GROWTH) } else { NOTHING.to_owned() });
            table.push(row);
        }
        table
    }

    fn latency_table(&self, subject: Subject, [(first, first_of), (second, second_of)]: [(&str, Figure); 2]) -> Table {
        let header = ["backend", "peer", first, "/ raw", "/ libkv", second, "/ raw", "/ libkv", "lost"];
        let mut table = Table::new(self.title(subject), &header);
        for case in self.cases(subject) {
            let compared = |figure| {
                let ratio = |other| self.ratio(case, other, figure);
                [self.with_spread(case, figure), ratio(Peer::Raw), ratio(Peer::Libkv)]
            };
            let names = [case.backend.to_string(), case.peer.to_string()];
            table.push([&names[..], &compared(first_of), &compared(second_of), &[self.lost(case)]].concat());
        }
        table
    }

    fn fanout_table(&self) -> Table {
        let mut table =
            Table::new(self.title(Subject::Fanout), &["backend", "peer", "p50 ms", "worst ms", "CPU ms", "lost"]);
        for case in self.cases(Subject::Fanout) {
            let names = [case.backend.to_string(), case.peer.to_string()];
            let figures = [P50_MS, MAX_MS, CPU_MS].map(|figure| self.number(case, figure));
            table.push([&names[..], &figures, &[self.lost(case)]].concat());
        }
        table
    }

    fn idle_table(&self) -> Table {
        let header = ["backend", "peer", "MB for all", "bytes each", "us to subscribe"];
        let mut table = Table::new(self.title(Subject::Idle), &header);
        for case in self.cases(Subject::Idle) {
            let names = [case.backend.to_string(), case.peer.to_string()];
            let figures = [GROWTH_MB, GROWTH, EACH_OF_100].map(|figure| self.number(case, figure));
            table.push([names.to_vec(), figures.to_vec()].concat());
        }
        table
    }

    fn lost(&self, case: Case) -> String {
        let turns = self.entries.iter().filter(|entry| entry.case == case).flat_map(|entry| &entry.turns);
        turns.map(|figures| figures.lost).sum::<u64>().to_string()
    }
}

/// How many turns there are to take.
fn turns(options: &Options) -> u64 {
    let mut turns = 0;
    for (backend, subject) in
        options.backends.iter().flat_map(|backend| options.subjects.iter().map(move |s| (*backend, *s)))
    {
        for task in options.tasks(subject) {
            let takes_part = |peer: &&Peer| **peer != Peer::Libkv || options.libkv.is_some();
            let peers = options.peers.iter().filter(takes_part);
            let existing = peers.filter(|peer| Case { task, backend, peer: **peer }.exists()).count();
            turns += u64::from(options.rounds(subject)) * existing as u64;
        }
    }
    turns
}

pub(crate) type Figure = fn(&Figures) -> Option<f64>;
pub(crate) const RATE: Figure = |figures| (figures.seconds > 0.0).then(|| figures.samples as f64 / figures.seconds);
const P50: Figure = |figures| Some(figures.p50_us);
const P50_MS: Figure = |figures| Some(figures.p50_us / 1000.0);
const P99: Figure = |figures| Some(figures.p99_us);
const MAX_MS: Figure = |figures| Some(figures.max_us / 1000.0);
const CPU: Figure = |figures| figures.cpu_us;
const CPU_MS: Figure = |figures| Some(figures.cpu_us? / 1000.0);
const PEAK: Figure = |figures| Some(figures.peak_bytes? as f64 / f64::from(1024 * 1024));
const GROWTH: Figure = |figures| figures.growth.map(Growth::per_unit);
const GROWTH_MB: Figure = |figures| Some(figures.growth?.bytes as f64 / 1e6);
/// Subscriptions are made a hundred at a time.
const EACH_OF_100: Figure = |figures| Some(figures.p50_us / 100.0);

/// A figure over all rounds.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(turns: &[Figures], figure: Figure) -> Option<Self> {
        let mut all: Vec<_> = turns.iter().filter_map(figure).collect();
        all.sort_by(f64::total_cmp);
        let (least, most) = (*all.first()?, *all.last()?);
        let median = f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2]);
        Some(Spread { least, median, most })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { least, median, most } = self;
        // Of few that take long the first places behind the point say something.
        let places = if *median < 100.0 { 1 } else { 0 };
        write!(f, "{median:.places$} ({least:.places$} to {most:.places$})")
    }
}

fn precise(number: f64) -> String {
    match number {
        small if small < 10.0 => format!("{small:.2}"),
        middle if middle < 100.0 => format!("{middle:.1}"),
        large => format!("{large:.0}"),
    }
}

fn shown(text: Option<String>) -> String {
    text.unwrap_or_else(|| NOTHING.to_owned())
}

/// The tables of each subject, in Markdown, and what isn't in them.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in Subject::ALL.iter().flat_map(|subject| self.tables(*subject)) {
            write!(f, "{table}")?;
        }
        if !self.remarks.is_empty() {
            writeln!(f)?;
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "- {remark}"))
    }
}

impl Report {
    /// The calls that were compared on a backend, and by how many callers.
    pub(crate) fn points(&self, backend: Backend, call: Call) -> Vec<usize> {
        let callers = |task| match task {
            Task::Calls { call: made, callers } if made == call => Some(callers),
            _ => None,
        };
        self.tasks(Subject::Calls, backend).into_iter().filter_map(callers).collect()
    }
}
