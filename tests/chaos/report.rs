//! [`Report`]: what was done and seen in all runs on one backend, as a row of the table in docs/reliability.md.

use std::path::Path;
use std::sync::Mutex;

/// What was seen in one run, or in several.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub runs: u64,
    pub faults: u64,
    /// Calls in the histories that were checked.
    pub calls: u64,
    /// Those of them whose answers were lost.
    pub lost: u64,
    /// Runs whose reads were not linearizable, where that isn't promised.
    pub stale_runs: u64,
    /// What watches told.
    pub events: u64,
    pub suspensions: u64,
    pub locks: u64,
    pub terms: u64,
}

const HEAD: [&str; 10] = [
    "backend",
    "runs",
    "faults",
    "calls checked",
    "answers lost",
    "watch events",
    "suspensions",
    "locks held",
    "terms",
    "violations",
];

impl Report {
    pub fn add(&mut self, other: &Report) {
        self.runs += other.runs;
        self.faults += other.faults;
        self.calls += other.calls;
        self.lost += other.lost;
        self.stale_runs += other.stale_runs;
        self.events += other.events;
        self.suspensions += other.suspensions;
        self.locks += other.locks;
        self.terms += other.terms;
    }

    fn row(&self, backend: &str, violations: usize) -> String {
        let numbers = [
            self.runs,
            self.faults,
            self.calls,
            self.lost,
            self.events,
            self.suspensions,
            self.locks,
            self.terms,
            violations as u64,
        ];
        let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
        format!("| {backend} | {} |", numbers.join(" | "))
    }

    /// Puts the row of this backend into the table of the file at `path`, in place of its former one.
    pub fn write(&self, path: &Path, backend: &str, violations: usize) {
        // The backends' tests run side by side.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let text = std::fs::read_to_string(path).expect("the file with the table");
        std::fs::write(path, with_row(&text, backend, &self.row(backend, violations)))
            .expect("the file with the table");
    }
}

fn with_row(text: &str, backend: &str, row: &str) -> String {
    let head = format!("| {} |", HEAD.join(" | "));
    let rule = HEAD.map(|_| "---").join(" | ");
    let start = format!("| {backend} |");
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(&start)).collect();
    let rule = format!("| {rule} |");
    let at = match lines.iter().position(|line| *line == head) {
        Some(at) => at + 2,
        None => {
            lines.extend(["", &head, &rule]);
            lines.len()
        }
    };
    // In the order of the alphabet, whoever is done first.
    let rows = lines[at..].iter().take_while(|line| line.starts_with("| ") && **line < row).count();
    lines.insert(at + rows, row);
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_take_their_places() {
        let row = |backend: &str, runs| Report { runs, ..Report::default() }.row(backend, 0);
        let text = with_row("# Title\n", "etcd", &row("etcd", 1));
        let text = with_row(&(text + "\nThe end.\n"), "consul", &row("consul", 2));
        let text = with_row(&text, "etcd", &row("etcd", 3));
        let rows: Vec<&str> =
            text.lines().filter(|line| line.starts_with("| consul") || line.starts_with("| etcd")).collect();
        assert_eq!(rows, [row("consul", 2), row("etcd", 3)]);
        assert!(text.starts_with("# Title\n") && text.ends_with("\nThe end.\n"), "{text}");
    }
}
