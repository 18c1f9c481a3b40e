//! A git that runs, its process group, and how both end.

use std::process::ExitStatus;

use nix::sys::signal::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::task::TaskTracker;

use super::GitError;
use super::runner::Process;

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

/// A git and its process group, which never outlive it.
pub(super) struct Group {
    process: Option<Process>,
    abandoned: TaskTracker,
}

impl Group {
    pub(super) const fn new(process: Process, abandoned: TaskTracker) -> Self {
        Self { process: Some(process), abandoned }
    }

    pub(super) async fn wait(&mut self) -> Result<ExitStatus, GitError> {
        let status = match &mut self.process {
            Some(process) => process.wait().await,
            None => Err(GitError::Start(std::io::Error::other("the child was awaited before"))),
        };
        self.process = None;
        status
    }

    /// See [`Process::lost`].
    pub(super) async fn lost(&mut self) -> GitError {
        match &mut self.process {
            Some(process) => process.lost().await,
            None => std::future::pending().await,
        }
    }

    pub(super) async fn end(&mut self) {
        if let Some(process) = self.process.take() {
            process.end().await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        process.signal(Signal::SIGTERM);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.abandoned.spawn_on(process.end(), &runtime);
        } else {
            process.signal(Signal::SIGKILL);
        }
    }
}
