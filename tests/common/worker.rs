//! [`Worker`]: a process of this test binary that runs one of its ignored tests, to be killed and frozen.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// What a worker says begins so; the test runner's own words don't.
const MARK: &str = "worker: ";

/// Says something to whoever started this worker.
pub fn say(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // A parent that is gone doesn't listen.
    let _ = writeln!(out, "\n{MARK}{line}");
    let _ = out.flush();
}

/// What whoever started this worker wants it to know; none where this isn't a worker.
pub fn told(name: &str) -> Option<String> {
    std::env::var(format!("KVACTOR_TEST_{name}")).ok()
}

/// A process that runs one test of this binary.
pub struct Worker {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Worker {
    /// Starts the ignored test `name` with what it is to know.
    pub fn start(name: &str, knows: &[(&str, &str)]) -> Worker {
        let program = std::env::current_exe().expect("this test binary");
        let mut command = Command::new(program);
        command.args(["--exact", "--ignored", name, "--nocapture", "--test-threads=1"]);
        command.envs(knows.iter().map(|(name, value)| (format!("KVACTOR_TEST_{name}"), value)));
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a second process");
        let out = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let said = out.lines().map_while(Result::ok).filter_map(|line| Some(line.split_once(MARK)?.1.to_owned()));
            said.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
        });
        Worker { child, lines }
    }

    /// The next thing that it says, if it says anything in time.
    pub fn hear(&self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok()
    }

    /// Waits until it says something that begins so, and returns the rest.
    pub fn hear_of(&self, begin: &str, patience: Duration) -> String {
        loop {
            let line = self.hear(patience).unwrap_or_else(|| panic!("no `{begin}` within {patience:?}"));
            if let Some(rest) = line.strip_prefix(begin) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Everything that it has yet to say until it ends.
    pub fn hear_all(mut self) -> Vec<String> {
        let said = self.lines.iter().collect();
        self.child.wait().expect("its end");
        said
    }

    /// Whether it has ended by itself, and how.
    pub fn ended(&mut self) -> Option<bool> {
        self.child.try_wait().expect("its state").map(|status| status.success())
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("its end");
    }

    /// Stops it in its tracks.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it runs");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A clock that all processes of this machine share, in nanoseconds.
pub fn clock() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
