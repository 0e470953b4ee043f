//! What this process takes of the machine. The servers are other processes.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// The processor time of all threads of this process so far.
pub(crate) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or_default())
}

/// The memory that this process has in use, in bytes. None where the system doesn't tell.
pub(crate) fn resident() -> Option<u64> {
    field("self", "VmRSS:")
}

/// The most memory that a process has had in use, in bytes. None where the system doesn't tell, and of a process that is over.
pub(crate) fn peak(process: &str) -> Option<u64> {
    field(process, "VmHWM:")
}

/// Lets the peak begin anew with what is in use now.
pub(crate) fn forget_peak() {
    // A system that doesn't know this tells a peak that is too high, if any.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn field(process: &str, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
