#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};

use super::*;

/// A shell that runs `script` in a process group of its own, and is gone with its group at the end of the test.
struct Shell(Child);

impl Shell {
    fn new(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    fn says(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// The line that it reads to go on.
    fn go(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = nix::sys::signal::killpg(self.pid(), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// Samples until `done`, for at most 30 s.
fn sample_until(sampler: &mut TreeSampler, what: &str, mut done: impl FnMut(&TreeSampler) -> bool) {
    let begin = Instant::now();
    loop {
        sampler.sample();
        if done(sampler) {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}: not within 30 s: {sampler:?}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

#[test]
fn memory_of_a_grandchild_is_seen() {
    // `tail` keeps all of it while its input is open and has no line.
    let mut shell = Shell::new("sh -c '{ head -c 67108864 /dev/zero; read go; } | tail >/dev/null'; :");
    let mut sampler = TreeSampler::new(shell.pid());
    sample_until(&mut sampler, "64 MiB", |sampler| sampler.memory_bytes_peak >= 64 << 20);
    assert!(sampler.memory_bytes_peak < 256 << 20, "{sampler:?}");
    shell.go();
    shell.0.wait().unwrap();
    let peaks = sampler.finish(None);
    assert!(peaks.memory_bytes_peak >= 64 << 20 && peaks.processes_peak >= 3, "{peaks:?}");
}

#[test]
fn the_kernels_own_count_stands_only_where_no_sample_saw_memory() {
    let mut shell = Shell::new("read go");
    let sampler = TreeSampler::new(shell.pid());
    shell.go();
    let seen = sampler.finish(Some(1 << 40)).memory_bytes_peak;
    assert!(seen > 0 && seen < 1 << 40, "{seen}");

    let mut gone = Command::new("true").spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(gone.id()).unwrap());
    gone.wait().unwrap();
    assert_eq!(TreeSampler::new(pid).finish(Some(1 << 20)).memory_bytes_peak, 1 << 20);
}

#[test]
fn busy_processes_show_the_cpu_that_the_machine_gives_them() {
    let begin = Instant::now();
    let shell = Shell::new("(while :; do :; done) & (while :; do :; done) & wait");
    let mut sampler = TreeSampler::new(shell.pid());
    sample_until(&mut sampler, "a second of CPU over more than a window", |sampler| {
        sampler.cpu.millis_peak.is_some() && sampler.cpu.time() >= Duration::from_secs(1)
    });
    let peaks = sampler.finish(None);
    let cores = u64::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    assert!(peaks.cpu_millis_peak <= cores * 1000 && peaks.processes_peak >= 3, "{peaks:?}");
    // On a loaded machine nobody knows how much they get; the best second is no worse than the mean.
    let mean = peaks.cpu_time.as_millis() * 1000 / begin.elapsed().as_millis();
    assert!(u128::from(peaks.cpu_millis_peak) * 5 >= mean * 4, "{peaks:?}, mean {mean}");
}

#[test]
fn cpu_time_of_children_that_ended_counts_once() {
    // Each lives until a sample saw it, however rarely the machine lets samples be taken.
    let mut shell = Shell::new(
        "for n in 1 2 3 4; do (i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; read go); done; echo done; read go",
    );
    let mut sampler = TreeSampler::new(shell.pid());
    // The shell waited for all of them, so the kernel has the sum in its own figures.
    let ticks = |pid: Pid| Seen::of(&Process::new(pid.as_raw()).unwrap().stat().unwrap());
    let mut seen = BTreeSet::new();
    for children in 1..=4 {
        sample_until(&mut sampler, "one more child", |sampler| {
            seen.extend(sampler.descendants());
            seen.len() >= children
        });
        shell.go();
    }
    assert_eq!(shell.says(), "done");
    sampler.sample();
    let truth = ticks(shell.pid());
    assert!(truth.waited >= 4, "{truth:?}");
    assert!(
        sampler.cpu.ticks.total().abs_diff(truth.ticks()) <= 8,
        "{} is not {}",
        sampler.cpu.ticks.total(),
        truth.ticks()
    );
}

#[test]
fn a_daemon_that_lost_its_parent_is_left_over() {
    let mut shell = Shell::new("setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!; read go");
    let daemon = Pid::from_raw(shell.says().parse().unwrap());
    let mut sampler = TreeSampler::new(shell.pid());
    sample_until(&mut sampler, "a session of its own", |sampler| {
        sampler.members.get(&daemon.as_raw()).is_some_and(|member| member.session == daemon.as_raw())
    });
    shell.go();
    shell.0.wait().unwrap();
    sampler.sample();
    assert_eq!(sampler.descendants(), [daemon]);
    kill(daemon, Signal::SIGKILL).unwrap();
    sample_until(&mut sampler, "the daemon's end", |sampler| sampler.descendants().is_empty());
}

#[test]
fn an_orphan_that_was_never_seen_with_its_parent_is_found_by_its_group() {
    let mut shell = Shell::new("(sleep 600 </dev/null >/dev/null 2>&1 & echo $!); read go");
    let orphan = Pid::from_raw(shell.says().parse().unwrap());
    let parent = || Process::new(orphan.as_raw()).unwrap().stat().unwrap().ppid;
    let mut sampler = TreeSampler::new(shell.pid());
    sample_until(&mut sampler, "another parent", |_| {
        // The subshell has ended when the orphan's parent is neither it nor anything else of the tree.
        parent() == 1
            || Process::new(parent())
                .and_then(|process| process.stat())
                .is_ok_and(|stat| stat.pgrp != shell.pid().as_raw())
    });
    let mut late = TreeSampler::new(shell.pid());
    assert_eq!(late.descendants(), [orphan]);
    shell.go();
    shell.0.wait().unwrap();
    late.sample();
    assert_eq!(late.descendants(), [orphan]);
}

#[test]
fn others_are_not_members() {
    let shell = Shell::new("read go");
    let other = Shell::new("read go");
    let sampler = TreeSampler::new(shell.pid());
    assert_eq!(sampler.members.keys().copied().collect::<Vec<_>>(), [shell.pid().as_raw()]);
    assert!(sampler.descendants().is_empty());
    drop(other);
}
