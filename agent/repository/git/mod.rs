//! The one place where git starts: as a child, or in a helper (see `runner`).
//!
//! A child gets nothing of the environment but what is listed here, no user's or system's configuration, no prompts, no
//! hooks, a process group of its own, and a bound on its time and output. On time-out, on cancellation and when its
//! caller is dropped, the group gets SIGTERM (git then removes its temporary files) and, after a grace, SIGKILL.

mod command;
mod environment;
mod error;
mod group;
mod runner;
mod stream;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use stoker_core::reason::Reason;
use tokio_util::task::TaskTracker;

use super::contain::Containment;
pub use command::{Command, Output};
pub(super) use environment::{harmless, harmless_types};
pub use error::GitError;
pub(super) use runner::helper::{Helper, State as HelperState};
use runner::{Own, Runner};
pub(crate) use runner::{helper::check as check_helper, serve::Server as HelperServer};

/// The oldest git that has what is used here.
const VERSION_MIN: Version = Version(2, 39, 0);

/// A git version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16, pub u16);

impl Version {
    /// From what `git version` prints: `git version 2.39.5 (Apple Git-154)`.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers =
            text.trim().strip_prefix("git version ")?.split(['.', ' ', '-']).map(|part| part.parse().ok());
        Some(Self(numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The git of this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Git {
    inner: Arc<Inner>,
}

#[derive(Debug, Clone)]
struct Inner {
    runner: Runner,
    version: Version,
    /// Whose children they are; see [`super::orphans`].
    owner: Option<PathBuf>,
    /// Children whose callers were dropped, until they have ended.
    abandoned: TaskTracker,
}

impl Git {
    /// The `git` in `PATH`.
    ///
    /// # Errors
    /// When there is none, or it is older than 2.39.
    pub async fn find() -> Result<Self, GitError> {
        Self::at(PathBuf::from("git")).await
    }

    /// The git at `program`.
    ///
    /// # Errors
    /// When it does not start, or is older than 2.39.
    pub async fn at(program: PathBuf) -> Result<Self, GitError> {
        let abandoned = TaskTracker::new();
        let runner = Runner::Child(Own { program, containment: None });
        let inner = Inner { runner, version: VERSION_MIN, owner: None, abandoned };
        let unknown = Self { inner: Arc::new(inner) };
        let output = unknown.command(["version"]).time_limit(Duration::from_secs(10)).run().await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match Version::parse(&text) {
            Some(version) if version >= VERSION_MIN => Ok(unknown.with(|inner| inner.version = version)),
            _ => Err(GitError::Version(text.trim().to_owned())),
        }
    }

    /// The same, for the agent that has the exclusive lock of this state. Where that agent is killed, the next one of this
    /// state finds by it what its children still do, and ends them.
    #[must_use]
    pub fn of_state(&self, state: &Path) -> Self {
        self.with(|inner| inner.owner = Some(state.to_owned()))
    }

    /// The same, with children that are kept so.
    #[must_use]
    pub fn contained(&self, containment: Containment) -> Self {
        self.with(|inner| inner.runner = inner.runner.clone().contained(containment))
    }

    fn with(&self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Inner { abandoned: TaskTracker::new(), ..Inner::clone(&self.inner) };
        change(&mut inner);
        Self { inner: Arc::new(inner) }
    }

    /// Finds out whether children can be kept so below `root`; see [`Containment::settle`].
    ///
    /// # Errors
    /// When they cannot, and the configuration wants no others.
    pub(super) async fn settle(&self, root: &Path) -> Result<(), Reason> {
        let Some(containment) = self.containment().cloned() else { return Ok(()) };
        if let Some(helper) = containment.helper() {
            helper.ready().await?;
        }
        let root = root.to_owned();
        let subject = root.display().to_string();
        super::fetch::blocking(&subject, move || containment.settle(&root)).await?
    }

    /// Whether it runs in a helper, and that is not there.
    pub(super) fn waits_for_helper(&self) -> bool {
        self.containment().and_then(Containment::helper).is_some_and(|helper| !helper.is_ready())
    }

    /// Waits, where it runs in a helper, until what another agent began there has ended, or the helper is not there.
    pub(super) async fn alone(&self) {
        if let Some(helper) = self.containment().and_then(Containment::helper) {
            helper.known().await;
        }
    }

    /// Holds the connection to the helper that git runs in, where it does; never ends. Until then no such git starts.
    #[must_use]
    pub fn keep_helper(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let helper = self.containment().and_then(Containment::helper).cloned()?;
        Some(helper.keep(self.version().to_string()))
    }

    pub(super) fn containment(&self) -> Option<&Containment> {
        self.inner.runner.containment()
    }

    /// Which git it is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.inner.version
    }

    /// A command that is not started yet. The first argument is the subcommand.
    pub fn command<I, S>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Command::new(self.clone(), args.into_iter().map(|arg| arg.as_ref().to_owned()).collect())
    }

    /// Waits until children whose callers were dropped have ended. New commands may still be run.
    pub async fn idle(&self) {
        self.inner.abandoned.close();
        self.inner.abandoned.wait().await;
        self.inner.abandoned.reopen();
    }
}

#[cfg(test)]
mod tests;
