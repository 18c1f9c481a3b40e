//! Where git processes start: one description of what to start, and one handle on what runs.

mod child;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::time::timeout;

use super::super::contain::{Containment, Plan};
use super::GitError;

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
    Child {
        program: PathBuf,
        /// How they are kept; as this process is where unset.
        containment: Option<Containment>,
    },
}

impl Runner {
    /// Starts it, in a process group of its own.
    pub(super) async fn start(&self, start: Start) -> Result<Started, GitError> {
        match self {
            Self::Child { program, containment } => child::start(program, containment.as_ref(), start),
        }
    }

    /// From now on, what it starts is kept so.
    pub(super) fn contain(&mut self, kept: Containment) {
        match self {
            Self::Child { containment, .. } => *containment = Some(kept),
        }
    }

    pub(super) const fn containment(&self) -> Option<&Containment> {
        match self {
            Self::Child { containment, .. } => containment.as_ref(),
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
}

impl Process {
    /// How it ended. It is asked for only after its pipes have closed: until then its id, which names the group, is its own.
    pub(super) async fn wait(&mut self) -> Result<ExitStatus, GitError> {
        match self {
            Self::Child(child) => child.wait().await.map_err(GitError::Start),
        }
    }

    /// Signals the group, while the process was not awaited yet.
    pub(super) fn signal(&self, signal: Signal) {
        match self {
            Self::Child(child) => child::signal(child, signal),
        }
    }

    /// Ends the group: git may remove its temporary files first.
    pub(super) async fn end(mut self) {
        self.signal(Signal::SIGTERM);
        let group = self.group();
        if timeout(KILL_GRACE, self.wait()).await.is_err() {
            self.signal(Signal::SIGKILL);
            let _ = self.wait().await;
        } else if let Some(group) = group {
            child::end_group(group);
        }
    }

    /// The number of the group, where it is of this process's namespace.
    fn group(&self) -> Option<nix::unistd::Pid> {
        match self {
            Self::Child(child) => child::group(child),
        }
    }
}
