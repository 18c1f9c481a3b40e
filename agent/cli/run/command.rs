//! The build's command: started in the sources, measured while it runs, ended with all that it started.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use stoker_core::sizing::Outcome;
use stoker_proto::v1;
use tokio::signal::unix::{SignalKind, signal};
use tonic::Status;

use super::Failure;
use crate::cli::client::Client;
use crate::cli::measure::{Peaks, TreeSampler};
use crate::cli::screen::{self, Steps};
use crate::node::process;

/// Close together at first, because most commands are short.
const SAMPLE_FIRST: Duration = Duration::from_millis(10);
const SAMPLE_LAST: Duration = Duration::from_millis(500);
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);
/// How many pairs of git's configuration the environment has.
const GIT_CONFIG_COUNT: &str = "GIT_CONFIG_COUNT";
/// What a build leaves running gets so long.
const LEFT_OVER_GRACE: Duration = Duration::from_secs(2);

/// How a command ended.
pub(super) struct Ended {
    pub(super) code: u8,
    pub(super) outcome: Outcome,
    pub(super) not_started: bool,
    pub(super) signalled: bool,
    pub(super) elapsed: Duration,
    pub(super) peaks: Peaks,
}

impl Ended {
    pub(super) fn usage(&self) -> v1::Usage {
        let wire = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        v1::Usage {
            memory_bytes_peak: wire(self.peaks.memory_bytes_peak),
            cpu_millis_peak: wire(self.peaks.cpu_millis_peak),
            cpu_time: prost_types::Duration::try_from(self.peaks.cpu_time).ok(),
            elapsed: prost_types::Duration::try_from(self.elapsed).ok(),
            disk_bytes: 0,
            disk_inodes: 0,
            processes_peak: i32::try_from(self.peaks.processes_peak).unwrap_or(i32::MAX),
        }
    }

    pub(super) const fn wire_outcome(&self) -> v1::Outcome {
        match self.outcome {
            Outcome::Succeeded => v1::Outcome::Succeeded,
            Outcome::TimeBudgetExceeded => v1::Outcome::TimeBudgetExceeded,
            _ => v1::Outcome::Failed,
        }
    }
}

/// Ties the lease to this process: when it ends, however it does, the lease ends.
pub(super) async fn bind(client: &Client, lease_id: &str) -> Result<(), Status> {
    let pid = std::process::id();
    let ticks = i32::try_from(pid).ok().and_then(process::start_ticks).unwrap_or(0);
    let holder = v1::Process { pid: i64::from(pid), start_ticks: i64::try_from(ticks).unwrap_or(0) };
    let to = Some(v1::bind_request::To::Process(holder));
    client.admission().bind(v1::BindRequest { lease_id: lease_id.to_owned(), to }).await.map(|_| ())
}

/// Runs it to its end, or to the end of its time budget.
pub(super) async fn run(
    command: &[OsString],
    workspace: &v1::Workspace,
    budget: Option<Duration>,
    steps: &mut Steps,
) -> Result<Ended, Failure> {
    let Some((program, args)) = command.split_first() else { return Err(Failure::new("command", "none was given")) };
    // What the build leaves behind when its parents end comes to this process, and is found.
    let _ = nix::sys::prctl::set_child_subreaper(true);
    // Before the first signal could come: from here on they are the build's.
    let mut signals = Signals::listen().map_err(|error| Failure::new("command", format!("signals: {error}")))?;
    // A build that reads the terminal must stay in its foreground group; else it gets a group of its own.
    let own_group = !std::io::stdin().is_terminal();
    let mut child = tokio::process::Command::new(program);
    let inherited = std::env::var(GIT_CONFIG_COUNT).ok();
    child.args(args).current_dir(&workspace.src).envs(environment(&workspace.environment, inherited.as_deref()));
    if own_group {
        child.process_group(0);
    }
    let rss_before = max_rss_bytes();
    let begun = Instant::now();
    let mut child = match child.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(not_started(program, &error, steps)),
    };
    let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw) else {
        return Err(Failure::new("command", "it has no process id"));
    };
    let mut sampler = TreeSampler::new(pid);
    // Its end is seen before it is reaped: until then /proc still tells what it used.
    let mut over = tokio::task::spawn_blocking(move || {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags) == Err(nix::errno::Errno::EINTR) {}
    });
    let (mut every, mut over_budget, mut kill_at) = (SAMPLE_FIRST, false, None::<Instant>);
    let budget_ends = budget.map(|budget| begun + budget);
    let status = loop {
        let next = begun.elapsed() + every;
        let wake = begun + next;
        let wake =
            [Some(wake), budget_ends.filter(|_| !over_budget), kill_at].into_iter().flatten().min().unwrap_or(wake);
        tokio::select! {
            _ = &mut over => {
                sampler.sample();
                break child.wait().await;
            }
            signal = signals.next() => send(pid, own_group, signal),
            () = tokio::time::sleep_until(wake.into()) => {
                sampler.sample();
                every = (every * 5 / 4).min(SAMPLE_LAST);
            }
        }
        if !over_budget && budget_ends.is_some_and(|ends| ends <= Instant::now()) {
            over_budget = true;
            kill_at = Some(Instant::now() + GRACE);
            steps.note("its time budget is used up: it is being ended [TIME_BUDGET_EXCEEDED]");
            send(pid, own_group, Signal::SIGTERM);
        }
        if kill_at.is_some_and(|at| at <= Instant::now()) {
            kill_at = None;
            send(pid, own_group, Signal::SIGKILL);
        }
    };
    let elapsed = begun.elapsed();
    let status = status.map_err(|error| Failure::new("command", format!("waiting for it: {error}")))?;
    end_left_overs(&mut sampler, steps).await;
    Ok(Ended {
        code: exit_code(status),
        outcome: match status.success() {
            _ if over_budget => Outcome::TimeBudgetExceeded,
            true => Outcome::Succeeded,
            false => Outcome::Failed,
        },
        not_started: false,
        signalled: status.signal().is_some(),
        elapsed,
        // Larger than all that ended before, so it is of this tree: of use where it was too short to be sampled.
        peaks: sampler.finish(Some(max_rss_bytes()).filter(|after| *after > rss_before)),
    })
}

/// What the build gets beside this process's environment, `inherited` of which says how much configuration for git it
/// has: that stays, and the workspace's comes behind it (git-config(1), `GIT_CONFIG_COUNT`).
fn environment(workspace: &HashMap<String, String>, inherited: Option<&str>) -> Vec<(String, String)> {
    let first = inherited.map_or(Some(0), |count| count.trim().parse::<usize>().ok());
    let renumbered = |name: &str| {
        let first = first?;
        if name == GIT_CONFIG_COUNT {
            return Some(name.to_owned());
        }
        let (prefix, number) = name.split_at(name.rfind('_')?.saturating_add(1));
        Some(format!("{prefix}{}", number.parse::<usize>().ok()?.saturating_add(first)))
    };
    let own = |(name, value): (&String, &String)| {
        if !name.starts_with("GIT_CONFIG_") {
            return Some((name.clone(), value.clone()));
        }
        let value = match (name.as_str(), value.parse::<usize>(), first) {
            (GIT_CONFIG_COUNT, Ok(count), Some(first)) => count.saturating_add(first).to_string(),
            _ => value.clone(),
        };
        Some((renumbered(name)?, value))
    };
    workspace.iter().filter_map(own).collect()
}

/// The largest resident set of any child that has ended.
fn max_rss_bytes() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN);
    usage.map_or(0, |usage| u64::try_from(usage.max_rss()).unwrap_or(0).saturating_mul(1024))
}

/// 126 where it is there and cannot be run, 127 where it is not there, as shells say it.
fn not_started(program: &OsString, error: &std::io::Error, steps: &mut Steps) -> Ended {
    steps.failed("command", &format!("{}: {error}", screen::safe(&program.to_string_lossy())));
    Ended {
        code: if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 },
        outcome: Outcome::Failed,
        not_started: true,
        signalled: false,
        elapsed: Duration::ZERO,
        peaks: Peaks::default(),
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| signal.saturating_add(128)));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn send(pid: Pid, own_group: bool, signal: Signal) {
    // In the terminal's group a Ctrl-C has reached the build already.
    let _ = match own_group {
        true => killpg(pid, signal),
        false if signal == Signal::SIGINT => Ok(()),
        false => kill(pid, signal),
    };
}

/// A workspace is removed with nobody in it.
async fn end_left_overs(sampler: &mut TreeSampler, steps: &mut Steps) {
    sampler.sample();
    let left = sampler.descendants();
    if left.is_empty() {
        return;
    }
    let count = i64::try_from(left.len()).unwrap_or(i64::MAX);
    let processes = screen::counted(count, "process", "processes");
    steps.note(&format!("{processes} left running by the command: ending"));
    for (signal, grace) in [(Signal::SIGTERM, LEFT_OVER_GRACE), (Signal::SIGKILL, LEFT_OVER_GRACE)] {
        for pid in sampler.descendants() {
            let _ = kill(pid, signal);
        }
        let until = Instant::now() + grace;
        while Instant::now() < until {
            sampler.sample();
            if sampler.descendants().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The signals that are passed on to the build.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hangup.recv() => Signal::SIGHUP,
            _ = self.quit.recv() => Signal::SIGQUIT,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::*;

    fn with(inherited: Option<&str>) -> BTreeMap<String, String> {
        let pairs =
            [("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "k"), ("GIT_CONFIG_VALUE_0", "v"), ("TMPDIR", "/t")];
        let workspace = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        environment(&workspace, inherited).into_iter().collect()
    }

    #[test]
    fn git_configuration_of_the_caller_stays() {
        let alone = with(None);
        assert_eq!((alone["GIT_CONFIG_COUNT"].as_str(), alone["GIT_CONFIG_KEY_0"].as_str()), ("1", "k"));
        let behind = with(Some("2"));
        assert_eq!((behind["GIT_CONFIG_COUNT"].as_str(), behind["GIT_CONFIG_VALUE_2"].as_str()), ("3", "v"));
        assert!(!behind.contains_key("GIT_CONFIG_KEY_0"));
        // What git itself would refuse is not made worse.
        assert_eq!(with(Some("many")).keys().collect::<Vec<_>>(), ["TMPDIR"]);
    }
}
