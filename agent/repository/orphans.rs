//! Git children of an agent that was killed: ended before anything is touched that they might still write to.
//!
//! SIGKILL gives an agent no moment to end its children, and one that waits for a silent upstream notices nothing for
//! minutes. Every child carries the state of its agent in its environment, which its own children inherit; the state's
//! lock is exclusive, so whoever holds it knows that all others with this mark are left over.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::node::process::{ProcessId, alive, start_ticks};

/// The variable that names an agent's state to its children.
pub(super) const OWNER: &str = "STOKER_GIT_OF";

/// How long killed processes may take to go. One that waits for a dead disk takes longer, and is left to it.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// Ends the children that a killed agent of `state` left, with all that they started, and waits until they are gone.
/// Gives their number. The caller holds the state's lock. Blocks.
pub fn end_orphans(state: &Path) -> usize {
    let mark = [OWNER.as_bytes(), b"=", state.as_os_str().as_bytes()].concat();
    let limit = Instant::now() + GONE_WITHIN;
    let mut ended = 0;
    loop {
        let left: Vec<ProcessId> = marked(&mark).into_iter().filter(|process| end(*process, &mark)).collect();
        ended += left.len();
        // What a child started while we looked is found the next time.
        if left.is_empty() {
            return ended;
        }
        while left.iter().any(|process| alive(Path::new("/"), *process)) {
            if Instant::now() >= limit {
                tracing::warn!(?left, "git children of a killed agent do not end");
                return ended;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn marked(mark: &[u8]) -> Vec<ProcessId> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let found = pids.filter(|pid| *pid != own && has_mark(*pid, mark)).filter_map(|pid| {
        let pid = i32::try_from(pid).ok()?;
        Some(ProcessId { pid, start_ticks: start_ticks(pid)? })
    });
    found.filter(|process| alive(Path::new("/"), *process)).collect()
}

/// Processes of others cannot be read, and are not ours; zombies have no environment.
fn has_mark(pid: u32, mark: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|variable| variable == mark))
}

/// Kills it, if it is still the one: looked at again behind a descriptor that no later process can get.
fn end(process: ProcessId, mark: &[u8]) -> bool {
    let Some(pid) = Pid::from_raw(process.pid) else { return false };
    let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    has_mark(process.pid.unsigned_abs(), mark) && pidfd_send_signal(&descriptor, Signal::KILL).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn only_what_carries_the_mark_is_ended() {
        let state = tempfile::tempdir().unwrap();
        let start = |owner: &Path| {
            let mut command = Command::new("cat");
            command.env(OWNER, owner).stdin(Stdio::piped()).spawn().unwrap()
        };
        let (mut ours, mut longer) = (start(state.path()), start(&state.path().join("other")));
        let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        // The mark is there from `execve` on.
        let limit = Instant::now() + GONE_WITHIN;
        while end_orphans(state.path()) == 0 {
            assert!(Instant::now() < limit);
        }
        assert!(!ours.wait().unwrap().success());
        assert_eq!(end_orphans(state.path()), 0);
        for child in [&mut longer, &mut other] {
            assert!(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
