//! A child, its process group, and how both end.

use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// Between SIGTERM and SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// The lowest priority that there is; schedulers of disks go by it too, where none of their own is set (ioprio_set(2)).
const NICENESS_MAX: i32 = 19;

/// All that the pipe gives, or nothing when it is more than `max` bytes.
pub(super) async fn capture(pipe: Option<impl AsyncRead + Unpin>, max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        // A pipe that breaks is a child that ended; its status tells.
        let _ = pipe.take(limit).read_to_end(&mut bytes).await;
    }
    (bytes.len() <= max).then_some(bytes)
}

/// A child and its process group, which never outlive it.
pub(super) struct Group {
    child: Option<Child>,
    abandoned: TaskTracker,
}

impl Group {
    pub(super) const fn new(child: Child, abandoned: TaskTracker) -> Self {
        Self { child: Some(child), abandoned }
    }

    pub(super) async fn wait(&mut self) -> std::io::Result<std::process::ExitStatus> {
        let status = match &mut self.child {
            Some(child) => child.wait().await,
            None => Err(std::io::Error::other("the child was awaited before")),
        };
        self.child = None;
        status
    }

    pub(super) async fn end(&mut self) {
        if let Some(child) = self.child.take() {
            end(child).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        signal(&child, Signal::SIGTERM);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.abandoned.spawn_on(end(child), &runtime);
        } else {
            signal(&child, Signal::SIGKILL);
        }
    }
}

async fn end(mut child: Child) {
    signal(&child, Signal::SIGTERM);
    let group = child.id();
    if timeout(KILL_GRACE, child.wait()).await.is_err() {
        signal(&child, Signal::SIGKILL);
        let _ = child.wait().await;
    } else if let Some(pid) = group.and_then(|pid| i32::try_from(pid).ok()) {
        // The leader is gone; what is left of its group (a transport helper) holds the group's number.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Lowers the priority of a child's group; what it starts from now on inherits it.
pub(super) fn lower(child: &Child) {
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    let _ = group.map(|group| rustix::process::setpriority_pgrp(Some(group), NICENESS_MAX));
}

/// Signals the group of a child that was not awaited yet.
fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}
