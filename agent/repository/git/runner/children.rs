//! The helper's children. Those that it did not start are what a git left, and end with it.
//!
//! The helper is a subreaper: a process whose parent is gone becomes its child, wherever that went, to a session of its own
//! too. Git itself leaves nothing behind that way; what was taken over through it could, and would go on to change a store
//! that the agent has taken back.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

use crate::node::process::parent;

/// How many times those that are left are looked for: each time all that are found are killed, and what those began
/// meanwhile is found the next time.
const ROUNDS_MAX: usize = 1000;

/// Those that the helper started, and that were not awaited yet.
#[derive(Debug, Default)]
pub(super) struct Children {
    own: Mutex<BTreeSet<u32>>,
}

impl Children {
    /// Starts one. It is the helper's own until it is [`gone`](Self::gone).
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut own = self.lock();
        let child = command.spawn()?;
        own.insert(child.id());
        Ok(child)
    }

    /// Starts one, and waits for it. Blocks.
    pub(super) fn output(&self, command: &mut Command) -> io::Result<Output> {
        let child = self.spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let id = child.id();
        let output = child.wait_with_output();
        self.gone(id);
        output
    }

    /// One was awaited.
    pub(super) fn gone(&self, id: u32) {
        self.lock().remove(&id);
    }

    /// Kills all that the helper did not start, with what they began, and waits until they are gone. Blocks.
    pub(super) fn end_others(&self) {
        for _ in 0..ROUNDS_MAX {
            let others = self.others();
            if others.is_empty() {
                return;
            }
            tracing::warn!(count = others.len(), "processes that a git left out of its group are ended");
            for other in &others {
                let _ = pidfd_send_signal(other, Signal::KILL);
            }
            for other in &others {
                let _ = waitid(WaitId::PidFd(other.as_fd()), WaitIdOptions::EXITED);
            }
        }
        tracing::error!("processes that a git left begin others faster than they are ended");
    }

    /// By descriptors: another that ends a git may await one of them meanwhile, and its number may be given again.
    fn others(&self) -> Vec<OwnedFd> {
        let own = self.lock();
        let me = i32::try_from(std::process::id()).ok();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_own = |pid: i32| u32::try_from(pid).is_ok_and(|pid| own.contains(&pid));
        let mine = |pid: i32| !is_own(pid) && parent(pid) == me;
        let opened = pids.filter(|pid| mine(*pid)).filter_map(|pid| {
            let descriptor = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            mine(pid).then_some(descriptor)
        });
        opened.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        // Changes are single ones.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
