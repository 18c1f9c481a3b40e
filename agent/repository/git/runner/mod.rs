//! Where git processes start: one description of what to start, and one handle on what runs.

//!
//! Two ways: as the agent's own child, or as a process of a helper in another container ([`helper`], [`serve`]), which
//! has no rights and its own limit of memory. Both bound git and lay off its rights the same way.

mod child;
mod children;
pub(in crate::repository) mod helper;
pub(in crate::repository) mod serve;
mod wire;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::time::timeout;

use super::super::contain::{Containment, Plan};
use super::GitError;
use helper::{Helped, Helper};
use wire::Order;

/// Between SIGTERM and SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// One git to start. Its standard output and error are pipes.
#[derive(Debug)]
pub(super) struct Start {
    /// Those of git, with the subcommand first.
    pub(super) arguments: Vec<OsString>,
    /// All of it: nothing else is passed on.
    pub(super) environment: Vec<(OsString, OsString)>,
    pub(super) work_dir: PathBuf,
    /// What it may do.
    pub(super) plan: Plan,
    /// It reads from a pipe, and otherwise nothing.
    pub(super) input: bool,
    /// It gets the processor and the disk when nobody else wants them.
    pub(super) low_priority: bool,
}

/// What starts git.
#[derive(Debug, Clone)]
pub(super) enum Runner {
    /// The agent itself: git is its child.
    Child(Own),
    /// A helper; what works on the agent's own files as the agent's own user is still a child.
    Helper { helper: Helper, containment: Containment, own: Own },
}

/// The agent's own git.
#[derive(Debug, Clone)]
pub(super) struct Own {
    pub(super) program: PathBuf,
    /// How children are kept; as this process is where unset.
    pub(super) containment: Option<Containment>,
}

impl Runner {
    /// Starts it, in a process group of its own.
    pub(super) async fn start(&self, start: Start) -> Result<Started, GitError> {
        match self {
            Self::Helper { helper, containment, .. } if !start.plan.as_agent => {
                let (memory_bytes, processes) = containment.limits(&start.plan);
                helper.start(memory_bytes, processes, start).await
            }
            Self::Child(own) | Self::Helper { own, .. } => child::start(own, start),
        }
    }

    /// The same, for what is kept so.
    pub(super) fn contained(self, containment: Containment) -> Self {
        let (Self::Child(own) | Self::Helper { own, .. }) = self;
        let own = Own { containment: Some(containment.clone()), ..own };
        match containment.helper().cloned() {
            Some(helper) => Self::Helper { helper, containment, own },
            None => Self::Child(own),
        }
    }

    pub(super) const fn containment(&self) -> Option<&Containment> {
        match self {
            Self::Child(own) | Self::Helper { own, .. } => own.containment.as_ref(),
        }
    }
}

/// A git that was started, and this side of its pipes.
pub(super) struct Started {
    pub(super) process: Process,
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

/// A git that runs, with its group.
pub(super) enum Process {
    Child(tokio::process::Child),
    Helped(Helped),
}

impl Process {
    /// How it ended. It is asked for only after its pipes have closed: until then its id, which names the group, is its own.
    pub(super) async fn wait(&mut self) -> Result<ExitStatus, GitError> {
        match self {
            Self::Child(child) => child.wait().await.map_err(GitError::Start),
            Self::Helped(helped) => helped.wait().await,
        }
    }

    /// Signals the group, while the process was not awaited yet.
    pub(super) fn signal(&self, signal: Signal) {
        match self {
            Self::Child(child) => child::signal(child, signal),
            Self::Helped(helped) => helped.order(match signal {
                Signal::SIGKILL => Order::Kill,
                _ => Order::Terminate,
            }),
        }
    }

    /// What it ran in ended before it did; never, where that cannot be.
    pub(super) async fn lost(&mut self) -> GitError {
        match self {
            Self::Child(_) => std::future::pending().await,
            Self::Helped(helped) => helped.lost().await,
        }
    }

    /// Ends the group: git may remove its temporary files first.
    pub(super) async fn end(mut self) {
        self.signal(Signal::SIGTERM);
        let group = self.group();
        if timeout(KILL_GRACE, self.wait()).await.is_err() {
            self.signal(Signal::SIGKILL);
            match &mut self {
                Self::Child(child) => drop(child.wait().await),
                // One that says nothing ends it when the connection closes.
                Self::Helped(helped) => drop(timeout(KILL_GRACE, helped.wait()).await),
            }
        } else if let Some(group) = group {
            child::end_group(group);
        }
    }

    /// The number of the group, where it is of this process's namespace.
    fn group(&self) -> Option<nix::unistd::Pid> {
        match self {
            Self::Child(child) => child::group(child),
            // The helper sees to it when the connection closes.
            Self::Helped(_) => None,
        }
    }
}
