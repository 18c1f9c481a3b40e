//! One command: what it is told, what it may touch, and its run to the end.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_core::source::RepositoryUrl;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::contain::{Containment, Plan, lend};
use super::super::credentials::{Credentials, handover};
use super::super::orphans;
use super::super::progress::{Progress, StderrReader};
use super::environment::{CONFIG, ENVIRONMENT, FIXED, HARMLESS_FAULTS};
use super::group::{Group, capture};
use super::runner::{Process, Start, Started};
use super::{Git, GitError};

/// Of standard output, unless a command asks for more.
const STDOUT_BYTES_MAX: usize = 1 << 20;

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
    /// Not started yet; the first argument is the subcommand.
    pub(super) fn new(git: Git, args: Vec<OsString>) -> Self {
        let user = git.containment().and_then(Containment::user);
        Self {
            git,
            plan: Plan { user, ..Plan::default() },
            upstream: None,
            args,
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
        let input = secret.is_some() || !self.stdin.is_empty();
        let Started { process, stdin, stdout, stderr } = self.start(input).await?;
        let mut group = self.group(process);
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
            error = group.lost() => Err(error),
        };
        let stdout = match stdout {
            Ok(stdout) => stdout,
            Err(error) => {
                group.end().await;
                return Err(error);
            }
        };
        // It has closed its pipes and is about to end, unless it means harm.
        let ended = tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(GitError::Cancelled),
            ended = timeout(self.time_limit, group.wait()) => {
                ended.unwrap_or(Err(GitError::TimedOut(self.time_limit)))
            }
        };
        let status = match ended {
            Ok(status) => status,
            Err(error) => {
                group.end().await;
                return Err(error);
            }
        };
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

    /// The child's group, which is ended when its caller drops it.
    pub(super) fn group(&self, process: Process) -> Group {
        Group::new(process, self.git.inner.abandoned.clone())
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

    /// Starts it. `input`: it reads from a pipe.
    pub(super) async fn start(&self, input: bool) -> Result<Started, GitError> {
        let mut plan = self.plan.clone();
        plan.reads.extend(self.global_config.clone());
        let start = Start {
            arguments: self.args.clone(),
            environment: self.environment(),
            work_dir: self.work_dir.clone().unwrap_or_else(|| PathBuf::from("/")),
            plan,
            input,
            low_priority: self.low_priority,
        };
        self.git.inner.runner.start(start).await
    }

    fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut all: BTreeMap<OsString, OsString> =
            ENVIRONMENT.iter().filter_map(|key| Some(((*key).into(), std::env::var_os(key)?))).collect();
        // A git whose HTTP is over GnuTLS does not know the variables that everything else knows.
        for (known, own) in [("SSL_CERT_FILE", "GIT_SSL_CAINFO"), ("SSL_CERT_DIR", "GIT_SSL_CAPATH")] {
            // One place that is there: `SSL_CERT_DIR` may be a list.
            if let (Some(value), None) = (std::env::var_os(known), std::env::var_os(own))
                && Path::new(&value).exists()
            {
                all.insert(own.into(), value);
            }
        }
        if let Some(owner) = &self.git.inner.owner {
            all.insert(orphans::OWNER.into(), owner.into());
        }
        let containment = self.git.containment();
        let personal = containment.is_some_and(Containment::is_personal);
        let ssh = if personal { handover::ssh_personal() } else { handover::ssh_without() };
        let protocols = if self.protocols.is_empty() { "none".into() } else { self.protocols.join(":") };
        let global = self.global_config.as_deref().unwrap_or(Path::new("/dev/null"));
        let fixed = FIXED.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        all.extend(fixed);
        all.extend([
            ("GIT_CONFIG_GLOBAL".into(), global.into()),
            ("GIT_SSH_COMMAND".into(), ssh.into()),
            ("GIT_ALLOW_PROTOCOL".into(), protocols.into()),
        ]);
        all.extend(self.git_dir.iter().map(|dir| ("GIT_DIR".into(), dir.into())));
        let config = self.whole_config();
        all.insert("GIT_CONFIG_COUNT".into(), config.len().to_string().into());
        for (i, (key, value)) in config.into_iter().enumerate() {
            all.insert(format!("GIT_CONFIG_KEY_{i}").into(), key.into());
            all.insert(format!("GIT_CONFIG_VALUE_{i}").into(), value.into());
        }
        all.extend(self.env.iter().cloned());
        all.into_iter().collect()
    }

    fn whole_config(&self) -> Vec<(String, String)> {
        let fsck = HARMLESS_FAULTS.iter().map(|fault| (format!("fetch.fsck.{fault}"), "ignore".to_owned()));
        let fixed = CONFIG.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let kept = self.git.containment().map(Containment::config).unwrap_or_default();
        fixed.chain(fsck).chain(kept).chain(self.config.iter().cloned()).collect()
    }
}

/// File work on a store, off the async threads.
async fn on_disk(dir: &Path, work: impl FnOnce(&Path) -> std::io::Result<()> + Send + 'static) -> Result<(), GitError> {
    let dir = dir.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&dir)).await;
    done.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(GitError::Disk)
}
