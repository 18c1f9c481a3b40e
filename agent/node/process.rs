//! Whether a process still lives.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Stat;
use procfs::{FromRead as _, ProcError};

/// Of a process's environment that is looked at.
const ENVIRONMENT_BYTES_MAX: u64 = 2 << 20;

/// A process that is not taken for a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Its number, in the namespace that `/proc` shows.
    pub pid: i32,
    /// When it started: field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_ticks: u64,
}

/// Whether it still runs, as `<host_root>/proc` says. A zombie has ended, unless its other threads still run (only its
/// first thread has ended then). Where its state cannot be read it counts as alive: what it holds must not be taken
/// away on a guess.
#[must_use]
pub fn alive(host_root: &Path, process: ProcessId) -> bool {
    match stat(host_root, process.pid) {
        Ok(Some(stat)) => {
            let ended = match stat.state {
                'Z' => stat.num_threads <= 1,
                'X' | 'x' => true,
                _ => false,
            };
            stat.starttime == process.start_ticks && !ended
        }
        Ok(None) => false,
        Err(_) => true,
    }
}

/// The user that a process runs as; nothing where there is none of this number.
#[must_use]
pub fn owner(host_root: &Path, pid: i32) -> Option<u32> {
    let place = host_root.join("proc").join(pid.to_string());
    std::fs::metadata(place).ok().map(|found| std::os::unix::fs::MetadataExt::uid(&found))
}

/// When a process of our own `/proc` started; nothing where there is none of this number, or it cannot be read.
#[must_use]
pub fn start_ticks(pid: i32) -> Option<u64> {
    start_ticks_below(Path::new("/"), pid)
}

/// As [`start_ticks`], from `<host_root>/proc`.
#[must_use]
pub fn start_ticks_below(host_root: &Path, pid: i32) -> Option<u64> {
    stat(host_root, pid).ok().flatten().map(|stat| stat.starttime)
}

/// Its parent's id; nothing where it is gone.
#[must_use]
pub fn parent(pid: i32) -> Option<i32> {
    stat(Path::new("/"), pid).ok().flatten().map(|stat| stat.ppid)
}

/// The processes whose environment has `NAME=value`, as it was when they were started; those that cannot be read are
/// left out. For finding what belongs to a build whose parents are gone.
#[must_use]
pub fn with_variable(host_root: &Path, name: &str, value: &str) -> Vec<ProcessId> {
    let Ok(entries) = std::fs::read_dir(host_root.join("proc")) else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| variable(host_root, *pid, name).is_some_and(|found| found == value.as_bytes()))
        .filter_map(|pid| Some(ProcessId { pid, start_ticks: start_ticks_below(host_root, pid)? }))
        .filter(|process| alive(host_root, *process))
        .collect()
}

/// A variable of a process's environment, as it was when it was started; nothing where it cannot be read.
#[must_use]
pub fn variable(host_root: &Path, pid: i32, name: &str) -> Option<Vec<u8>> {
    let mut environment = Vec::new();
    let file = File::open(host_root.join("proc").join(pid.to_string()).join("environ")).ok()?;
    file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    variables.find_map(|variable| Some(variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.to_vec()))
}

/// Sends a signal, to this very process or to none. The host's `/proc` may count other pids than ours (a container
/// without the host's pid namespace): a number that is not the same process here is left alone.
pub fn send(process: ProcessId, signal: Signal) {
    if start_ticks(process.pid) == Some(process.start_ticks) {
        // One that ended meanwhile has what it was to have.
        let _ = kill(Pid::from_raw(process.pid), signal);
    }
}

fn stat(host_root: &Path, pid: i32) -> Result<Option<Stat>, ProcError> {
    let read = || -> Result<Stat, ProcError> {
        let file = File::open(host_root.join("proc").join(pid.to_string()).join("stat"))?;
        Stat::from_read(file)
    };
    // A process that ends between `open` and `read` gives ESRCH.
    let gone = |error: &std::io::Error| {
        matches!(rustix::io::Errno::from_io_error(error), Some(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH))
    };
    match read() {
        Ok(stat) => Ok(Some(stat)),
        Err(ProcError::NotFound(_)) => Ok(None),
        Err(ProcError::Io(error, _)) if gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use std::process::{Command, Stdio};

    const ROOT: &str = "/";

    #[test]
    fn a_process_lives_until_it_ends_even_before_it_is_waited_for() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let process = ProcessId { pid, start_ticks: start_ticks(pid).unwrap() };
        assert!(alive(Path::new(ROOT), process));
        let later = ProcessId { start_ticks: process.start_ticks + 1, ..process };
        assert!(!alive(Path::new(ROOT), later), "the same number, another process");
        drop(child.stdin.take());
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while alive(Path::new(ROOT), process) {
            assert!(std::time::Instant::now() < limit, "the zombie still counts as alive");
            std::thread::yield_now();
        }
        assert!(stat(Path::new(ROOT), pid).unwrap().is_some(), "it is still there, as a zombie");
        child.wait().unwrap();
        assert!(!alive(Path::new(ROOT), process));
        assert_eq!(start_ticks(pid), None);
    }

    #[test]
    fn a_recorded_process_is_read_below_its_root_whatever_its_name_holds() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/proc/node-32cpu-62g"));
        assert_eq!(start_ticks_below(root, 4242), Some(1_234_567));
        assert!(alive(root, ProcessId { pid: 4242, start_ticks: 1_234_567 }));
        // Its first thread has ended, four others run.
        assert!(alive(root, ProcessId { pid: 4300, start_ticks: 1_300_000 }));
        assert!(!alive(root, ProcessId { pid: 4301, start_ticks: 1_300_100 }), "a zombie");
    }
}
