//! The one place where git starts.
//!
//! A child gets nothing of the environment but what is listed here, no user's or system's configuration, no prompts, no
//! hooks, a process group of its own, and a bound on its time and output. On time-out, on cancellation and when its
//! caller is dropped, the group gets SIGTERM (git then removes its temporary files) and, after a grace, SIGKILL.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use stoker_core::reason::Reason;
use stoker_core::source::RepositoryUrl;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::contain::{Containment, Plan, lend};
use super::credentials::{Credentials, handover};
pub use super::git_error::GitError;
use super::progress::{Progress, StderrReader};

/// The oldest git that has what is used here.
const VERSION_MIN: Version = Version(2, 39, 0);
/// Between SIGTERM and SIGKILL.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// The lowest priority that there is; schedulers of disks go by it too, where none of their own is set (ioprio_set(2)).
const NICENESS_MAX: i32 = 19;
/// Of standard output, unless a command asks for more.
const STDOUT_BYTES_MAX: usize = 1 << 20;

/// What is passed on: where programs are, and how the node reaches the network.
const ENVIRONMENT: [&str; 13] = [
    "PATH",
    "https_proxy",
    "HTTPS_PROXY",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
];

/// Holds for every command. No hook, no prompt, no helper, no upkeep that nobody asked for.
const CONFIG: [(&str, &str); 17] = [
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.askPass", ""),
    ("credential.helper", ""),
    // So that a credential for a path is not given for others.
    ("credential.useHttpPath", "true"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("protocol.version", "2"),
    ("advice.detachedHead", "false"),
    ("init.defaultBranch", "main"),
    ("fetch.unpackLimit", "1"),
    ("fetch.writeCommitGraph", "false"),
    ("submodule.recurse", "false"),
    // An upstream that accepts and then says nothing.
    ("http.lowSpeedLimit", "100"),
    ("http.lowSpeedTime", "60"),
    ("transfer.fsckObjects", "true"),
    // Git syncs packs, and renames refs into their place without: after a power cut one can be there and empty, which is a
    // broken store for git.
    ("core.fsync", "reference"),
];

/// Faults that the history of well-known projects has and that harm nobody; see git-fsck(1). What could harm a checkout
/// (`.git` in trees, `.gitmodules`, symlinks in its place) stays fatal.
const HARMLESS_FAULTS: [&str; 12] = [
    "badDateOverflow",
    "badEmail",
    "badName",
    "badTimezone",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "multipleAuthors",
    "nulInCommit",
    "zeroPaddedDate",
    "zeroPaddedFilemode",
];

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
    program: PathBuf,
    version: Version,
    /// Whose children they are; see [`super::orphans`].
    owner: Option<PathBuf>,
    /// How they are kept; as this process is where unset.
    containment: Option<Containment>,
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
        let inner = Inner { program, version: VERSION_MIN, owner: None, containment: None, abandoned };
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
        self.with(|inner| inner.containment = Some(containment))
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
        let Some(containment) = self.inner.containment.clone() else { return Ok(()) };
        let root = root.to_owned();
        let subject = root.display().to_string();
        super::fetch::blocking(&subject, move || containment.settle(&root)).await?
    }

    pub(super) fn containment(&self) -> Option<&Containment> {
        self.inner.containment.as_ref()
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
        let user = self.containment().and_then(Containment::user);
        Command {
            git: self.clone(),
            plan: Plan { user, ..Plan::default() },
            upstream: None,
            args: args.into_iter().map(|arg| arg.as_ref().to_owned()).collect(),
            env: Vec::new(),
            config: Vec::new(),
            work_dir: None,
            git_dir: None,
            global_config: None,
            protocols: Vec::new(),
            stdin: Vec::new(),
            progress: None,
            cancel: CancellationToken::new(),
            time_limit: Duration::from_secs(600),
            stdout_bytes_max: STDOUT_BYTES_MAX,
            low_priority: false,
        }
    }

    /// Waits until children whose callers were dropped have ended. New commands may still be run.
    pub async fn idle(&self) {
        self.inner.abandoned.close();
        self.inner.abandoned.wait().await;
        self.inner.abandoned.reopen();
    }
}

/// What a child printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output, whole.
    pub stdout: Vec<u8>,
    /// The last lines of standard error, without progress.
    pub stderr: String,
}

/// One git command; see [`Git::command`].
#[derive(Debug)]
#[must_use = "a command does nothing until it is run"]
pub struct Command {
    git: Git,
    /// What it may do.
    plan: Plan,
    /// With whom it speaks, and as whom.
    upstream: Option<(RepositoryUrl, Credentials)>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    config: Vec<(String, String)>,
    work_dir: Option<PathBuf>,
    git_dir: Option<PathBuf>,
    global_config: Option<PathBuf>,
    protocols: Vec<String>,
    stdin: Vec<u8>,
    progress: Option<watch::Sender<Progress>>,
    cancel: CancellationToken,
    time_limit: Duration,
    stdout_bytes_max: usize,
    low_priority: bool,
}

impl Command {
    /// Further arguments.
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// One configuration value, as `-c key=value`, but not seen in the list of processes.
    pub fn config(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((key.into(), value.into()));
        self
    }

    /// One variable of the environment.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Where it runs; `/` where unset.
    pub fn work_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.work_dir = Some(dir.as_ref().to_owned());
        self
    }

    /// The repository that it works on. Without one, git finds none.
    pub fn git_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.git_dir = Some(dir.as_ref().to_owned());
        self
    }

    /// A configuration file that reaches git's own children too (`safe.directory` must stand in one).
    pub fn global_config(mut self, file: Option<PathBuf>) -> Self {
        self.global_config = file;
        self
    }

    /// The protocols that it may speak (`https`); none where unset.
    pub fn protocols<I, S>(mut self, protocols: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.protocols = protocols.into_iter().map(Into::into).collect();
        self
    }

    /// A directory that it changes. What it may not write or read, it does not see, as far as the kernel can.
    pub fn writes(mut self, dir: impl AsRef<Path>) -> Self {
        self.plan.writes.push(dir.as_ref().to_owned());
        self
    }

    /// A directory or file that it reads, beside the system's programs and what it changes.
    pub fn reads(mut self, path: impl AsRef<Path>) -> Self {
        self.plan.reads.push(path.as_ref().to_owned());
        self
    }

    /// Runs as the agent's own user and on all of the agent's files, with limits alone: only for what reads and writes
    /// nothing but what the agent made itself.
    pub fn as_agent(mut self) -> Self {
        self.plan.user = None;
        self.plan.as_agent = true;
        self
    }

    /// With whom it speaks: it gets the network, or the path, and the credential that is declared for that.
    pub fn upstream(mut self, url: &RepositoryUrl, credentials: &Credentials) -> Self {
        self.plan.network = url.local_path().is_none();
        self.plan.reads.extend(url.local_path().map(PathBuf::from));
        self.upstream = Some((url.clone(), credentials.clone()));
        self
    }

    /// What it reads.
    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = bytes;
        self
    }

    /// Where its progress goes. The command must be told `--progress`.
    pub fn progress(mut self, progress: watch::Sender<Progress>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// When cancelled, the child is ended.
    pub fn cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// How long it may take; ten minutes where unset.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// How much it may print to standard output, in bytes; 1 MiB where unset.
    pub fn stdout_bytes_max(mut self, bytes: usize) -> Self {
        self.stdout_bytes_max = bytes;
        self
    }

    /// It gets the processor and the disk when nobody else wants them.
    pub fn low_priority(mut self) -> Self {
        self.low_priority = true;
        self
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// Every end but exit status 0; see [`GitError`].
    pub async fn run(mut self) -> Result<Output, GitError> {
        if self.cancel.is_cancelled() {
            return Err(GitError::Cancelled);
        }
        let secret = self.secret().await?;
        self.plan.secret = secret.is_some();
        let mut child = self.build().spawn().map_err(GitError::Start)?;
        if self.low_priority {
            lower(&child);
        }
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut group = Group { child: Some(child), abandoned: self.git.inner.abandoned.clone() };
        let input = [secret.unwrap_or_default(), std::mem::take(&mut self.stdin)].concat();
        let mut lines = StderrReader::new(self.progress.take());
        let write = async {
            if let Some(mut pipe) = stdin {
                // A child that does not read all of it says why in its status.
                let _ = pipe.write_all(&input).await;
            }
        };
        let max = self.stdout_bytes_max;
        // The child is awaited only after its pipes have closed: until then its id, which names the group, is its own.
        let talk = async { tokio::join!(write, capture(stdout, max), lines.read(stderr)).1 };
        let stdout = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(GitError::Cancelled),
            talked = timeout(self.time_limit, talk) => match talked {
                Ok(Some(stdout)) => Ok(stdout),
                Ok(None) => Err(GitError::TooMuch(max)),
                Err(_) => Err(GitError::TimedOut(self.time_limit)),
            },
        };
        let stdout = match stdout {
            Ok(stdout) => stdout,
            Err(error) => {
                group.end().await;
                return Err(error);
            }
        };
        let status = group.wait().await.map_err(GitError::Start)?;
        let stderr = lines.into_text();
        if status.success() { Ok(Output { stdout, stderr }) } else { Err(GitError::failed(status, stderr, stdout)) }
    }

    /// Runs a command that changes the store at `dir`, which is git's for that time and the agent's before and after.
    ///
    /// # Errors
    /// As [`run`](Self::run), and where the store cannot be given or taken back.
    pub async fn run_in_store(self, dir: &Path) -> Result<Output, GitError> {
        // By no path where it runs in the store: the place stays the same when something else is mounted there.
        let writes = if self.git_dir.as_deref() == Some(Path::new(".")) { Path::new(".") } else { dir };
        let command = self.writes(writes);
        let Some(user) = command.plan.user else {
            on_disk(dir, lend::keep).await?;
            return command.run().await;
        };
        on_disk(dir, move |dir| lend::lend(dir, user)).await?;
        let done = command.run().await;
        // Also after a failure: what is left there is the agent's to remove.
        let taken = on_disk(dir, lend::take_back).await;
        let output = done?;
        taken.map(|()| output)
    }

    /// The credential for its upstream, as it is written to the child.
    async fn secret(&self) -> Result<Option<Vec<u8>>, GitError> {
        let Some((url, credentials)) = self.upstream.clone() else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || credentials.secret_for(&url)).await;
        let secret = read.map_err(|error| GitError::Start(std::io::Error::other(error)))?.map_err(GitError::Refused)?;
        let frame = secret.map(|secret| handover::frame(&secret)).transpose().map_err(GitError::Start)?;
        match (&frame, self.git.containment()) {
            (Some(_), None) => Err(GitError::Start(std::io::Error::other("credentials need a contained git"))),
            _ => Ok(frame),
        }
    }

    /// Git itself, or this program, which becomes git.
    fn program(&self) -> tokio::process::Command {
        let program = &self.git.inner.program;
        let Some(containment) = self.git.containment() else { return tokio::process::Command::new(program) };
        let mut plan = self.plan.clone();
        plan.reads.extend(self.global_config.clone());
        let mut command = containment.command(&plan);
        command.arg(program);
        command
    }

    fn build(&self) -> tokio::process::Command {
        let mut command = self.program();
        command.env_clear().kill_on_drop(true).process_group(0);
        let silent = self.stdin.is_empty() && !self.plan.secret;
        command.stdin(if silent { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.current_dir(self.work_dir.as_deref().unwrap_or(Path::new("/")));
        for key in ENVIRONMENT {
            if let Some(value) = std::env::var_os(key) {
                command.env(key, value);
            }
        }
        if let Some(owner) = &self.git.inner.owner {
            command.env(super::orphans::OWNER, owner);
        }
        let containment = self.git.containment();
        let personal = containment.is_some_and(Containment::is_personal);
        let global = self.global_config.as_deref().unwrap_or(Path::new("/dev/null"));
        command
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", global)
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "")
            .env("SSH_ASKPASS", "")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_DEFAULT_REF_FORMAT", "files")
            .env("GIT_SSH_COMMAND", if personal { handover::ssh_personal() } else { handover::ssh_without() })
            .env("GIT_ALLOW_PROTOCOL", if self.protocols.is_empty() { "none".into() } else { self.protocols.join(":") })
            // A directory without a repository is no reason to look above it.
            .env("GIT_CEILING_DIRECTORIES", "/");
        if let Some(dir) = &self.git_dir {
            command.env("GIT_DIR", dir);
        }
        let fsck = HARMLESS_FAULTS.iter().map(|fault| (format!("fetch.fsck.{fault}"), "ignore".to_owned()));
        let fixed = CONFIG.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let kept = containment.map(Containment::config).unwrap_or_default();
        let config: Vec<(String, String)> = fixed.chain(fsck).chain(kept).chain(self.config.iter().cloned()).collect();
        command.env("GIT_CONFIG_COUNT", config.len().to_string());
        for (i, (key, value)) in config.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{i}"), key).env(format!("GIT_CONFIG_VALUE_{i}"), value);
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value))).args(&self.args);
        command
    }
}

/// File work on a store, off the async threads.
async fn on_disk(dir: &Path, work: impl FnOnce(&Path) -> std::io::Result<()> + Send + 'static) -> Result<(), GitError> {
    let dir = dir.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&dir)).await;
    done.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(GitError::Disk)
}

/// The same command, for which faults that harm nobody are none: `section` is `fsck` or `fetch.fsck`.
pub(super) fn harmless(command: Command, section: &str) -> Command {
    HARMLESS_FAULTS.iter().fold(command, |command, fault| command.config(format!("{section}.{fault}"), "ignore"))
}

/// The same as an option's value, for `git index-pack --strict=`.
pub(super) fn harmless_types() -> String {
    HARMLESS_FAULTS.map(|fault| format!("{fault}=ignore")).join(",")
}

/// All that the pipe gives, or nothing when it is more than `max` bytes.
async fn capture(pipe: Option<impl AsyncRead + Unpin>, max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        // A pipe that breaks is a child that ended; its status tells.
        let _ = pipe.take(limit).read_to_end(&mut bytes).await;
    }
    (bytes.len() <= max).then_some(bytes)
}

/// A child and its process group, which never outlive it.
struct Group {
    child: Option<Child>,
    abandoned: TaskTracker,
}

impl Group {
    async fn wait(&mut self) -> std::io::Result<std::process::ExitStatus> {
        let status = match &mut self.child {
            Some(child) => child.wait().await,
            None => Err(std::io::Error::other("the child was awaited before")),
        };
        self.child = None;
        status
    }

    async fn end(&mut self) {
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
fn lower(child: &Child) {
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    let _ = group.map(|group| rustix::process::setpriority_pgrp(Some(group), NICENESS_MAX));
}

/// Signals the group of a child that was not awaited yet.
fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

#[path = "git_stream.rs"]
mod stream;

#[cfg(test)]
#[path = "git_tests.rs"]
mod tests;
