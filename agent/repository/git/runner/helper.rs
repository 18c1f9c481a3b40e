//! Git as a process of a helper: the agent's side. See [`super::serve`] for the other.
//!
//! One connection lasts as long as the agent, and says whether the helper is there; each git has one of its own.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as Blocking;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use stoker_core::reason::{Code, Reason};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::super::GitError;
use super::wire::{self, ANSWER_BYTES_MAX, Answer, Order, REQUEST_BYTES_MAX, Request, Run};
use super::{Process, Start, Started};

/// How long a git waits for a helper that is not there: one that starts is there in less.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a helper that is away is looked for.
const AGAIN: Duration = Duration::from_millis(250);
/// How long a helper may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to end what another agent left there.
const BEGINS_WITHIN: Duration = Duration::from_secs(30);
/// What this is about.
const FIELD: &str = "repositories.git.helper";

/// A helper, as this agent knows it. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(in crate::repository) struct Helper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    /// This agent, among all that this helper knew.
    session: String,
    /// As whom it must run.
    uid: u32,
    state: watch::Sender<State>,
}

/// Whether it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::repository) enum State {
    /// Nobody looked yet.
    Unknown,
    Ready,
    Away(Reason),
}

impl Helper {
    /// The one that listens at `socket`, and runs as user `uid`.
    pub(in crate::repository) fn new(socket: PathBuf, uid: u32) -> Self {
        let session = uuid::Uuid::now_v7().to_string();
        Self { shared: Arc::new(Shared { socket, session, uid, state: watch::Sender::new(State::Unknown) }) }
    }

    /// Ticks when it comes and goes.
    pub(in crate::repository) fn watch(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Whether it is there.
    pub(in crate::repository) fn is_ready(&self) -> bool {
        *self.shared.state.borrow() == State::Ready
    }

    /// Why it is away, where it is.
    pub(in crate::repository) fn alarm(&self) -> Option<Reason> {
        match &*self.shared.state.borrow() {
            State::Away(reason) => Some(reason.clone()),
            State::Unknown | State::Ready => None,
        }
    }

    /// Waits until it is there, for a moment.
    ///
    /// # Errors
    /// That it is not.
    pub(in crate::repository) async fn ready(&self) -> Result<(), Reason> {
        let mut state = self.watch();
        let came = timeout(PATIENCE, state.wait_for(|state| *state == State::Ready)).await;
        match came {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.alarm().unwrap_or_else(|| self.away("it does not answer"))),
        }
    }

    /// Waits until it is known whether it is there: then what an agent before this one began there has ended.
    pub(in crate::repository) async fn known(&self) {
        let mut state = self.watch();
        let known = state.wait_for(|state| *state != State::Unknown);
        let _ = timeout(BEGINS_WITHIN, known).await;
    }

    /// Holds the connection that says that this agent lives, and begins a new one whenever it breaks. Never ends: dropped,
    /// all that the helper does for this agent is over. `version` is that of the agent's own git.
    pub(in crate::repository) async fn keep(self, version: String) {
        loop {
            let away = match self.begin(&version).await {
                Ok(held) => {
                    tracing::info!(socket = %self.shared.socket.display(), "git runs in a helper");
                    self.shared.state.send_replace(State::Ready);
                    // It says nothing more: what comes is the end.
                    let _ = wire::next(&held, ANSWER_BYTES_MAX).await;
                    self.away("it ended: where that was for want of memory, its container needs a higher limit")
                }
                Err(reason) => reason,
            };
            let is_new = self.alarm().as_ref() != Some(&away);
            if is_new {
                tracing::error!(reason = away.code.word(), "{}", away.message);
                self.shared.state.send_replace(State::Away(away));
            }
            sleep(AGAIN).await;
        }
    }

    async fn begin(&self, version: &str) -> Result<UnixStream, Reason> {
        let socket = self.connect()?;
        let request = Request::Begin { session: self.shared.session.clone() };
        match self.ask(&socket, &request, &[], BEGINS_WITHIN).await? {
            Answer::Ready(theirs) if theirs == version => Ok(socket),
            Answer::Ready(theirs) => {
                Err(self.away(&format!("it has {theirs}, and the agent {version}: give both the same image")))
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// Starts a git there.
    pub(super) async fn start(
        &self,
        memory_bytes: u64,
        processes: Option<u64>,
        start: Start,
    ) -> Result<Started, GitError> {
        self.ready().await.map_err(GitError::Refused)?;
        let socket = self.connect().map_err(GitError::Refused)?;
        let work_dir = wire::open_dir(&start.work_dir).map_err(GitError::Start)?;
        let mut pipes = Pipes::new(start.input).map_err(GitError::Start)?;
        let plan = start.plan;
        let request = Request::Run(Run {
            session: self.shared.session.clone(),
            memory_bytes,
            processes,
            network: plan.network,
            secret: plan.secret,
            input: start.input,
            low_priority: start.low_priority,
            work_dir: start.work_dir,
            writes: plan.writes,
            reads: plan.reads,
            arguments: start.arguments,
            environment: start.environment,
        });
        let theirs = pipes.theirs.take();
        let mut descriptors = vec![work_dir.as_fd()];
        descriptors.extend(theirs.iter().flat_map(Theirs::descriptors));
        let answer = self.ask(&socket, &request, &descriptors, ANSWERS_WITHIN).await.map_err(GitError::Refused)?;
        match answer {
            Answer::Started(pid) => tracing::debug!(pid, "git runs in the helper"),
            other => return Err(GitError::Refused(self.unexpected(other))),
        }
        let process = Process::Helped(Helped { helper: self.clone(), socket, status: None });
        pipes.started(process).map_err(GitError::Start)
    }

    /// Whether the helper's user gets to `path`: what it says of the kernel, or where the way ends. Blocks, within a
    /// runtime.
    ///
    /// # Errors
    /// When the helper is away.
    pub(in crate::repository) fn look(&self, path: &Path) -> Result<Result<String, String>, Reason> {
        let asked = (|| {
            let socket: Blocking = self.connect()?.into_std().map_err(|error| self.away(&error.to_string()))?;
            let request = Request::Look { session: self.shared.session.clone(), path: path.to_owned() };
            let answer = (|| {
                socket.set_nonblocking(false)?;
                socket.set_read_timeout(Some(ANSWERS_WITHIN))?;
                wire::send(&socket, &request.encode(), &[])?;
                wire::receive(&socket, ANSWER_BYTES_MAX)
            })();
            let answer = answer.map_err(|error: io::Error| self.away(&format!("it does not answer: {error}")))?;
            Ok(answer.and_then(|(message, _)| Answer::decode(&message)))
        })();
        match asked? {
            Some(Answer::Looked(said)) => Ok(said),
            Some(other) => Err(self.unexpected(other)),
            None => Err(self.away("it ended")),
        }
    }

    /// A connection to it, and to nobody else.
    fn connect(&self) -> Result<UnixStream, Reason> {
        let failed = |error: &io::Error| self.away(&format!("{}: {error}", self.shared.socket.display()));
        let socket = connect(&self.shared.socket).map_err(|error| failed(&error))?;
        let uid = socket.peer_cred().map_err(|error| failed(&error))?.uid();
        if uid != self.shared.uid {
            let message = format!(
                "git does not run: the helper at {} is user {uid}, and not {}: run it as that user, or name user {uid} \
                 in `repositories.git.user`",
                self.shared.socket.display(),
                self.shared.uid
            );
            return Err(Reason::new(Code::ContainmentReduced, FIELD, message));
        }
        Ok(socket)
    }

    async fn ask(
        &self,
        socket: &UnixStream,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        within: Duration,
    ) -> Result<Answer, Reason> {
        let message = request.encode();
        if message.len() > REQUEST_BYTES_MAX {
            return Err(self.away(&format!("a command of {} bytes is more than it takes", message.len())));
        }
        let send = wire::send(socket, &message, descriptors);
        send.map_err(|error| self.away(&format!("it takes nothing: {error}")))?;
        match timeout(within, wire::answer(socket)).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.away("it ended")),
            Err(_) => Err(self.away("it does not answer")),
        }
    }

    fn unexpected(&self, answer: Answer) -> Reason {
        match answer {
            Answer::Refused(why) => self.away(&why),
            _ => self.away("it speaks another language: give both the same image"),
        }
    }

    fn away(&self, why: &str) -> Reason {
        let socket = self.shared.socket.display();
        let message =
            format!("git waits for its helper at {socket}: {why}; what failed is tried again when it is back");
        Reason::new(Code::GitHelperAway, FIELD, message)
    }
}

/// A connection to `path` that never waits.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    UnixStream::from_std(socket.into())
}

/// Both ends of a git's streams.
struct Pipes {
    stdin: Option<PipeWriter>,
    stdout: PipeReader,
    stderr: PipeReader,
    /// Held until they are sent.
    theirs: Option<Theirs>,
}

struct Theirs {
    stdin: Option<PipeReader>,
    stdout: PipeWriter,
    stderr: PipeWriter,
}

impl Theirs {
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.stdin.iter().map(|pipe| pipe.as_fd()).chain([self.stdout.as_fd(), self.stderr.as_fd()])
    }
}

impl Pipes {
    fn new(input: bool) -> io::Result<Self> {
        let (read, stdin) = if input { Some(io::pipe()?) } else { None }.unzip();
        let ((stdout, write), (stderr, errors)) = (io::pipe()?, io::pipe()?);
        Ok(Self { stdin, stdout, stderr, theirs: Some(Theirs { stdin: read, stdout: write, stderr: errors }) })
    }

    fn started(self, process: Process) -> io::Result<Started> {
        let stdin = self.stdin.map(|pipe| tokio::process::ChildStdin::from_std(OwnedFd::from(pipe).into()));
        Ok(Started {
            process,
            stdin: stdin.transpose()?,
            stdout: Some(tokio::process::ChildStdout::from_std(OwnedFd::from(self.stdout).into())?),
            stderr: Some(tokio::process::ChildStderr::from_std(OwnedFd::from(self.stderr).into())?),
        })
    }
}

/// A git in the helper. Dropped, its group is killed.
pub(in super::super) struct Helped {
    helper: Helper,
    socket: UnixStream,
    status: Option<ExitStatus>,
}

impl Helped {
    pub(super) async fn wait(&mut self) -> Result<ExitStatus, GitError> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        match wire::answer(&self.socket).await {
            Some(Answer::Ended(status)) => Ok(*self.status.insert(ExitStatus::from_raw(status))),
            Some(other) => Err(GitError::Refused(self.helper.unexpected(other))),
            None => {
                let why =
                    "it ended before git did: where that was for want of memory, its container needs a higher limit";
                Err(GitError::Refused(self.helper.away(why)))
            }
        }
    }

    /// The helper ended before it; never, where it did not.
    pub(super) async fn lost(&mut self) -> GitError {
        match self.wait().await {
            Err(error) => error,
            Ok(_) => std::future::pending().await,
        }
    }

    pub(super) fn order(&self, order: Order) {
        // One that does not arrive is one that has no addressee any more.
        let _ = wire::send(&self.socket, order.word(), &[]);
    }
}

/// Whether a helper listens at `path`.
///
/// # Errors
/// When none does.
pub(crate) async fn check(path: &Path) -> Result<String, String> {
    let failed = |why: &str| format!("{}: {why}", path.display());
    let socket = connect(path).map_err(|error| failed(&error.to_string()))?;
    wire::send(&socket, &Request::Ping.encode(), &[]).map_err(|error| failed(&error.to_string()))?;
    match timeout(ANSWERS_WITHIN, wire::answer(&socket)).await {
        Ok(Some(Answer::Ready(version))) => Ok(version),
        Ok(Some(Answer::Refused(why))) => Err(failed(&why)),
        _ => Err(failed("no answer")),
    }
}
