//! A server's process and its directory, both of which go when the test process ends, however it ends.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

/// Makes the directory, and learns the server's pid by a line on stdin (an empty one when there is no server). Its stdin ends
/// when the test process does, even by `kill -9`; then it kills the server, which may be stopped, and removes the directory.
/// The signals that reach it bring that forward, and none may end it before its work is done.
const GUARDIAN: &str = r#"
trap : HUP INT TERM
trap '' PIPE
dir=$(mktemp -d -t kvactor-test.XXXXXX) || exit 1
echo "$dir"
server=
while read -r line; do
  server=$line
  echo noted
done
[ -z "$server" ] || kill -9 "$server"
for attempt in 1 2 3 4 5; do
  rm -rf "$dir" && exit
  sleep 0.2
done
"#;

/// Becomes the server, with the same pid, once the guardian knows that pid; never if the test process dies before.
const LAUNCHER: &str = r#"read -r go && exec "$@" </dev/null"#;

/// What is left of a log when a test fails for it.
const TAIL_LINES: usize = 40;

/// At most one server process at a time, and the directory that is the same for all of them.
pub struct Process {
    guardian: Guardian,
    child: Option<Child>,
    frozen: bool,
}

impl Process {
    pub fn new() -> Self {
        Process { guardian: Guardian::start(), child: None, frozen: false }
    }

    /// The directory for everything that the server writes.
    pub fn dir(&self) -> &Path {
        &self.guardian.dir
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Starts `command`; ends the one before.
    pub fn start(&mut self, command: &[String]) {
        self.kill();
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).expect("the server's log");
        let mut child = Command::new("sh")
            .args(["-c", LAUNCHER, "sh"])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("the log once more"))
            .stderr(log)
            .current_dir(self.dir())
            .process_group(0)
            .spawn()
            .expect("a shell");
        self.guardian.watch(Some(child.id()));
        let mut go = child.stdin.take().expect("the launcher's stdin");
        self.child = Some(child);
        writeln!(go).expect("a launcher that listens");
    }

    /// Kills the server as `kill -9` does, and returns when it is gone.
    pub fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().expect("a process of our own");
            child.wait().expect("a child of our own");
            self.forget();
        }
    }

    /// Stops the server in its tracks: its connections stay open and nothing answers.
    pub fn freeze(&mut self) {
        let pid = self.signal(Signal::STOP);
        // The signal goes to one thread and others may answer for a moment still: the parent is told when all have stopped.
        // The status is left in place, so that an exit is still there for the one who asks for it.
        let stopped_or_dead = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), stopped_or_dead).expect("a child of our own");
        self.frozen = true;
    }

    /// Lets a frozen server go on.
    pub fn thaw(&mut self) {
        self.signal(Signal::CONT);
        self.frozen = false;
    }

    /// How the server ended, if it did so by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().expect("a child of our own")?;
        self.forget();
        Some(status)
    }

    /// The end of what the server has written to stdout and stderr.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn log_path(&self) -> PathBuf {
        self.dir().join("server.log")
    }

    fn signal(&self, signal: Signal) -> Pid {
        let pid = Pid::from_child(self.child.as_ref().expect("a server that runs"));
        kill_process(pid, signal).expect("a process of our own");
        pid
    }

    /// The process is gone and reaped: its pid may become somebody else's.
    fn forget(&mut self) {
        self.child = None;
        self.frozen = false;
        self.guardian.watch(None);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Guardian {
    dir: PathBuf,
    shell: Child,
    /// Open as long as this process lives; an option so that it can be closed before waiting for the shell.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Guardian {
    fn start() -> Self {
        let mut shell = Command::new("sh")
            .args(["-c", GUARDIAN, "guardian"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Outlives the test process a little, and must not keep the pipe open that cargo's output may go to.
            .stderr(Stdio::null())
            // Ctrl-C is for the group in the foreground.
            .process_group(0)
            .spawn()
            .expect("a shell");
        let orders = shell.stdin.take();
        let mut answers = BufReader::new(shell.stdout.take().expect("the guardian's stdout"));
        let dir = PathBuf::from(line(&mut answers));
        Guardian { dir, shell, orders, answers }
    }

    /// Returns when the guardian has taken note of the pid.
    fn watch(&mut self, pid: Option<u32>) {
        let pid = pid.map(|pid| pid.to_string()).unwrap_or_default();
        let orders = self.orders.as_mut().expect("open until the drop");
        writeln!(orders, "{pid}").expect("a guardian that listens");
        line(&mut self.answers);
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        self.orders = None;
        // Best effort: a panic here could hide the one that the test ends with.
        let _ = self.shell.wait();
    }
}

fn line(answers: &mut impl BufRead) -> String {
    let mut line = String::new();
    answers.read_line(&mut line).expect("an answer of the guardian");
    assert!(line.ends_with('\n'), "the guardian ended, or could make no temporary directory");
    line.trim_end().to_owned()
}
