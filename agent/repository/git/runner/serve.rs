//! The helper: a process of another container, which starts git for an agent and parses nothing of what git does.
//!
//! It has no right but those of its user, and its own limit of memory. It takes no program from a message: it starts the
//! git that it found when it began, through this program ([`crate::repository::contain`]), as its own user. Only the
//! agent's user may ask for that: a git that was taken over is the helper's user, and would otherwise ask for one that
//! sees more than itself.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, set_child_subreaper, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::super::super::contain::{Bounds, Plan, Wrapper};
use super::super::super::orphans::{self, end_orphans};
use super::super::Git;
use super::child::{NICENESS_MAX, end_group};
use super::children::Children;
use super::helper::connect;
use super::wire::{self, Answer, Order, REQUEST_BYTES_MAX, Request, Run};
use crate::config::git::GitUser;

/// The most connections at once: of each git one, and one of the agent.
const CONNECTIONS_MAX: usize = 256;
/// Connections that wait to be taken.
const BACKLOG: i32 = 256;
/// How long a connection may take to say what it wants.
const SAYS_WITHIN: Duration = Duration::from_secs(10);
/// How long what another agent began may take to end: it is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// What runs gets so long to end by itself when the helper is to end, and as long to go once it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A helper that listens.
pub(crate) struct Server {
    listener: UnixListener,
    shared: Arc<Shared>,
}

struct Shared {
    socket: PathBuf,
    /// Who may ask.
    agent: u32,
    version: String,
    wrapper: Wrapper,
    /// Where programs are: no message says that.
    path: OsString,
    session: Mutex<Session>,
    places: Arc<Semaphore>,
    children: Arc<Children>,
}

/// What one agent began. It is over when its connection closes, or another agent begins.
#[derive(Default, Clone)]
struct Session {
    name: String,
    over: CancellationToken,
    running: TaskTracker,
}

impl Server {
    /// Becomes `user`, ends what a killed helper of this socket left, and listens for an agent of user `agent`.
    ///
    /// # Errors
    /// In words: git is not there, another helper listens, or the socket cannot be made.
    pub(crate) async fn start(socket: PathBuf, user: Option<GitUser>, agent: u32) -> Result<Self, String> {
        // Before the user changes: where it lies may be closed to that one.
        let wrapper = Wrapper::find();
        user.map_or(Ok(()), super::super::super::contain::child::change_user)?;
        if nix::unistd::geteuid().is_root() {
            return Err("git runs as the helper's user, and that is root: start it as another, or give --user".into());
        }
        let git = Git::find().await.map_err(|error| error.to_string())?;
        if connect(&socket).is_ok() {
            return Err(format!("another helper listens at {}", socket.display()));
        }
        // What is left of a git ends with it, wherever it went.
        set_child_subreaper(Some(rustix::process::getpid())).map_err(|error| format!("orphans are lost: {error}"))?;
        let place = socket.clone();
        match tokio::task::spawn_blocking(move || end_orphans(&place)).await {
            Ok(0) | Err(_) => {}
            Ok(ended) => tracing::warn!(ended, "git processes of a killed helper were ended"),
        }
        let listener = listen(&socket).map_err(|error| format!("{}: {error}", socket.display()))?;
        let shared = Shared {
            socket,
            agent,
            version: git.version().to_string(),
            wrapper,
            path: std::env::var_os("PATH").unwrap_or_default(),
            session: Mutex::default(),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            children: Arc::default(),
        };
        Ok(Self { listener, shared: Arc::new(shared) })
    }

    /// Which git it starts.
    pub(crate) fn version(&self) -> &str {
        &self.shared.version
    }

    /// Serves until `end`; then what runs is ended, and the socket goes.
    pub(crate) async fn serve(self, end: impl Future<Output = ()>) {
        let Self { listener, shared } = self;
        let connections = TaskTracker::new();
        tokio::pin!(end);
        loop {
            let accepted = tokio::select! {
                () = &mut end => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, _)) => drop(connections.spawn(Arc::clone(&shared).speak(socket))),
                Err(error) => {
                    tracing::error!(%error, "nobody can connect");
                    // Descriptors are short: those that end give some back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        let _ = std::fs::remove_file(&shared.socket);
        let session = shared.session();
        session.running.close();
        // An agent that ends as well ends them itself, so that git may clear up.
        let _ = timeout(GRACE, session.running.wait()).await;
        session.over.cancel();
        let _ = timeout(GRACE, session.running.wait()).await;
    }
}

/// Only the helper's user, and root, may connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = bind(&socket, &SocketAddrUnix::new(path)?);
    umask(before);
    bound?;
    listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

impl Shared {
    fn session(&self) -> Session {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Session> {
        // Changes are assignments.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection, to its end.
    async fn speak(self: Arc<Self>, socket: UnixStream) {
        let refused = match self.answer(&socket).await {
            Ok(()) => return,
            Err(why) => why,
        };
        tracing::warn!("refused: {refused}");
        let _ = wire::send(&socket, &Answer::Refused(refused).encode(), &[]);
    }

    async fn answer(self: &Arc<Self>, socket: &UnixStream) -> Result<(), String> {
        let uid = socket.peer_cred().map_err(|error| format!("who asks is not known: {error}"))?.uid();
        let Ok(_place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(format!("{CONNECTIONS_MAX} connections are open, and there are no more"));
        };
        let received = timeout(SAYS_WITHIN, wire::next(socket, REQUEST_BYTES_MAX)).await;
        let received = received.map_err(|_| "nothing was asked".to_owned())?.map_err(|error| error.to_string())?;
        let Some((message, descriptors)) = received else { return Ok(()) };
        let Some(request) = Request::decode(&message) else {
            return Err("this is no request: give the agent and its helper the same image".into());
        };
        // A probe is of the helper's own user.
        if request != Request::Ping && uid != self.agent {
            return Err(format!("user {uid} is no agent: that is user {}", self.agent));
        }
        match request {
            Request::Ping => self.say(socket, &Answer::Ready(self.version.clone())),
            Request::Begin { session } => self.begin(socket, session).await,
            Request::Look { session, path } => {
                let _running = self.join(&session)?;
                let shared = Arc::clone(self);
                let looked = tokio::task::spawn_blocking(move || {
                    shared.wrapper.probe_by(None, &path, |command| shared.children.output(command))
                });
                let looked = looked.await;
                self.say(socket, &Answer::Looked(looked.map_err(|error| error.to_string())?))
            }
            Request::Run(run) => {
                let (over, _running) = self.join(&run.session)?;
                self.run(socket, run, descriptors, &over).await
            }
        }
    }

    fn say(&self, socket: &UnixStream, answer: &Answer) -> Result<(), String> {
        wire::send(socket, &answer.encode(), &[]).map_err(|error| format!("nobody listens: {error}"))
    }

    /// An agent's life: all that others began ends before it begins.
    async fn begin(&self, socket: &UnixStream, name: String) -> Result<(), String> {
        let session = Session { name, ..Session::default() };
        let before = std::mem::replace(&mut *self.lock(), session.clone());
        before.over.cancel();
        before.running.close();
        if timeout(ENDS_WITHIN, before.running.wait()).await.is_err() {
            return Err("git processes of another agent do not end".into());
        }
        tracing::info!(session = session.name, "an agent begins");
        let said = self.say(socket, &Answer::Ready(self.version.clone()));
        // It says nothing more: what comes is its end.
        let _ = wire::next(socket, REQUEST_BYTES_MAX).await;
        tracing::info!(session = session.name, "an agent is gone");
        session.over.cancel();
        said
    }

    /// What ends a process of this session, and that it runs.
    fn join(&self, name: &str) -> Result<(CancellationToken, TaskTrackerToken), String> {
        let session = self.lock();
        match session.name == name && !session.over.is_cancelled() {
            true => Ok((session.over.clone(), session.running.token())),
            false => Err("the agent that asks has not begun, or another has".into()),
        }
    }

    /// One git, from its start until nothing is left of it.
    async fn run(
        &self,
        socket: &UnixStream,
        run: Run,
        descriptors: Vec<OwnedFd>,
        over: &CancellationToken,
    ) -> Result<(), String> {
        let child = self.spawn(run, descriptors)?;
        let group = Group::of(child, &self.children)?;
        let said = self.say(socket, &Answer::Started(group.child.id()));
        let watched = async {
            loop {
                tokio::select! {
                    status = group.ended() => return Some(status),
                    order = wire::next(socket, REQUEST_BYTES_MAX) => match order {
                        Ok(Some((order, _))) => group.signal(Order::parse(&order)),
                        _ => return None,
                    },
                }
            }
        };
        let ended = tokio::select! {
            ended = watched, if said.is_ok() => ended,
            () = over.cancelled() => None,
            else => None,
        };
        let gone = tokio::task::spawn_blocking(move || group.end()).await;
        gone.map_err(|error| error.to_string())?;
        said?;
        // Told when nothing of its group is left: the store is the agent's again from then on.
        ended.map_or(Ok(()), |status| self.say(socket, &Answer::Ended(status)))
    }

    fn spawn(&self, run: Run, descriptors: Vec<OwnedFd>) -> Result<Child, String> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or("a descriptor is missing");
        let place = work_dir(&run.work_dir, next()?);
        let stdin = if run.input { Stdio::from(next()?) } else { Stdio::null() };
        let (stdout, stderr) = (Stdio::from(next()?), Stdio::from(next()?));
        let plan =
            Plan { writes: run.writes, reads: run.reads, network: run.network, secret: run.secret, ..Plan::default() };
        let bounds = Bounds {
            memory_bytes: run.memory_bytes,
            user: None,
            processes: run.processes,
            plan: &plan,
            unconfined: false,
            tied: true,
        };
        let mut command = self.wrapper.command();
        command.args(bounds.arguments()).arg("git").args(&run.arguments);
        command.env_clear().envs(self.environment(run.environment)).process_group(0);
        // The place may be one that only its descriptor leads to.
        command.current_dir(format!("/proc/self/fd/{}", place.as_raw_fd()));
        let child = self.children.spawn(command.stdin(stdin).stdout(stdout).stderr(stderr));
        let child = child.map_err(|error| format!("git does not start: {error}"))?;
        if run.low_priority {
            let group = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::setpriority_pgrp(Some(group), NICENESS_MAX);
        }
        Ok(child)
    }

    /// What git is told, but for what says which programs run: that is the helper's own.
    fn environment(&self, told: Vec<(OsString, OsString)>) -> BTreeMap<OsString, OsString> {
        let decides = |key: &OsString| {
            let key = key.to_string_lossy();
            key == "PATH" || key == "GIT_EXEC_PATH" || key.starts_with("LD_")
        };
        let mut environment: BTreeMap<_, _> = told.into_iter().filter(|(key, _)| !decides(key)).collect();
        environment.insert("PATH".into(), self.path.clone());
        environment.insert(orphans::OWNER.into(), self.socket.clone().into());
        environment
    }
}

/// The helper's own way to a directory where it is the same: that one leads to nothing of the agent's container. `/` is
/// nowhere in particular, and no container's is another's: git cannot tell where it is in one of those, and ends.
fn work_dir(path: &Path, theirs: OwnedFd) -> OwnedFd {
    match wire::open_dir(path) {
        Ok(own) if path == Path::new("/") || wire::is_same(&own, &theirs) => own,
        _ => theirs,
    }
}

/// A git with its group, until nothing is left of it. Its leader is awaited last: until then the group's number is its own.
struct Group {
    child: Child,
    exit: AsyncFd<OwnedFd>,
    leader: Pid,
    children: Arc<Children>,
}

impl Group {
    fn of(mut child: Child, children: &Arc<Children>) -> Result<Self, String> {
        let opened = pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::NONBLOCK);
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that may close their descriptor early: no OwnedFd does"
        )]
        let exit = opened.map_err(io::Error::from).and_then(|exit| AsyncFd::with_interest(exit, Interest::READABLE));
        match (exit, i32::try_from(child.id())) {
            (Ok(exit), Ok(pid)) => Ok(Self { child, exit, leader: Pid::from_raw(pid), children: Arc::clone(children) }),
            (exit, _) => {
                let _ = child.kill().and_then(|()| child.wait());
                children.gone(child.id());
                Err(format!("its end would not be seen: {:?}", exit.err()))
            }
        }
    }

    /// How its leader ended, as wait(2) has it.
    async fn ended(&self) -> i32 {
        const LOST: i32 = 1 << 8;
        let Ok(_ready) = self.exit.readable().await else { return LOST };
        let found = waitid(WaitId::PidFd(self.exit.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        match found {
            Ok(Some(status)) => {
                let exited = status.exit_status().map(|code| code << 8);
                exited.or(status.terminating_signal()).unwrap_or(LOST)
            }
            _ => LOST,
        }
    }

    fn signal(&self, order: Option<Order>) {
        match order {
            Some(Order::Terminate) => drop(killpg(self.leader, Signal::SIGTERM)),
            Some(Order::Kill) => end_group(self.leader),
            None => {}
        }
    }

    /// Kills what is left of it, and waits until it is gone. What lost its parent is the helper's child by then; so is
    /// what left the group. Blocks.
    fn end(mut self) {
        end_group(self.leader);
        let _ = self.child.wait();
        self.children.gone(self.child.id());
        let all = Pid::from_raw(-self.leader.as_raw());
        while !matches!(waitpid(all, Some(WaitPidFlag::empty())), Err(_) | Ok(WaitStatus::StillAlive)) {}
        self.children.end_others();
    }
}
