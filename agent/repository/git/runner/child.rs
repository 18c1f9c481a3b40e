//! Git as a child of the agent.

use std::process::Stdio;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::super::GitError;
use super::{Own, Process, Start, Started};

/// The lowest priority that there is; schedulers of disks go by it too, where none of their own is set (ioprio_set(2)).
pub(super) const NICENESS_MAX: i32 = 19;

/// Starts git itself, or this program, which becomes git.
pub(super) fn start(own: &Own, start: Start) -> Result<Started, GitError> {
    let mut command = match &own.containment {
        None => Command::new(&own.program),
        Some(containment) => {
            let mut command = Command::from(containment.command(&start.plan));
            command.arg(&own.program);
            command
        }
    };
    command.args(&start.arguments).env_clear().envs(start.environment);
    command.kill_on_drop(true).process_group(0).current_dir(&start.work_dir);
    command.stdin(if start.input { Stdio::piped() } else { Stdio::null() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(GitError::Start)?;
    if start.low_priority {
        lower(&child);
    }
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    Ok(Started { process: Process::Child(child), stdin, stdout, stderr })
}

/// Signals the group of a child that was not awaited yet.
pub(super) fn signal(child: &Child, signal: Signal) {
    let _ = group(child).map(|group| killpg(group, signal));
}

/// The leader is gone; what is left of its group (a transport helper) holds the group's number.
pub(super) fn end_group(group: Pid) {
    let _ = killpg(group, Signal::SIGKILL);
}

/// The number of its group; none once it was awaited.
pub(super) fn group(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw)
}

/// Lowers the priority of a child's group; what it starts from now on inherits it.
fn lower(child: &Child) {
    let group = group(child).and_then(|group| rustix::process::Pid::from_raw(group.as_raw()));
    let _ = group.map(|group| rustix::process::setpriority_pgrp(Some(group), NICENESS_MAX));
}
