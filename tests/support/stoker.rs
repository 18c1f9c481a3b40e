//! The real binary: one command with a deadline, in a home of its own ([`Stoker`]), or an agent with its logs and its
//! clients ([`Agent`]). Neither ever reaches an agent of the machine.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use stoker_proto::v1::admission_service_client::AdmissionServiceClient;
use stoker_proto::v1::node_service_client::NodeServiceClient;
use stoker_proto::v1::repository_service_client::RepositoryServiceClient;
use stoker_proto::v1::workspace_service_client::WorkspaceServiceClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::git_helper::GitHelper;
use super::{free_port, wait};

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_stoker");
/// How long one command may take, unless a test says otherwise: a debug build on two busy cores.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long an agent may take to answer.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long an agent may take to end when told.
const END_WITHIN: Duration = Duration::from_secs(20);
/// How long what a command left behind may hold its output open.
const OUTPUT_WITHIN: Duration = Duration::from_secs(3);

/// Lines of a command's output that are printed where a test panics.
const LINES_SHOWN: usize = 200;

/// How a command ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    /// Bytes that are not UTF-8 are replaced.
    pub(crate) stdout: String,
    /// Bytes that are not UTF-8 are replaced.
    pub(crate) stderr: String,
}

impl Output {
    /// The exit code; `None` where a signal ended it.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Itself, where the exit code is `code`.
    ///
    /// # Panics
    ///
    /// Where it is not, with all that was written.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{}\n--- stdout\n{}--- stderr\n{}", self.status, self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in: {}\n{}", self.stdout, self.stderr))
    }
}

/// A home for commands: state, configuration and socket of their own, all gone when this is dropped.
pub(crate) struct Stoker {
    home: TempDir,
}

impl Stoker {
    /// An empty home.
    pub(crate) fn new() -> Self {
        let home = super::place("stoker-");
        for folder in ["state", "run", "cache", "config", "tmp"] {
            std::fs::create_dir(home.path().join(folder)).unwrap();
        }
        Self { home }
    }

    /// The home, which is also `HOME`.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// `XDG_STATE_HOME`.
    pub(crate) fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// `STOKER_SOCKET`. Nothing listens there, unless a test sees to it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join("run/stoker.sock")
    }

    /// Runs `stoker ARGS` to its end, within a minute.
    #[track_caller]
    pub(crate) fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        self.command(args).run()
    }

    /// `stoker ARGS`, to be run when the test has said more.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Invocation {
        self.program(BINARY, args)
    }

    /// Any program, in this home and with its environment.
    pub(crate) fn program<A: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = A>) -> Invocation {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.home()).stdin(Stdio::null());
        // Whatever the machine's environment has must not decide a test.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("HOME", self.home())
            .env("TMPDIR", self.home().join("tmp"))
            .env("XDG_STATE_HOME", self.state())
            .env("XDG_RUNTIME_DIR", self.home().join("run"))
            .env("XDG_CACHE_HOME", self.home().join("cache"))
            .env("XDG_CONFIG_HOME", self.home().join("config"))
            .env("STOKER_SOCKET", self.socket())
            .env("LC_ALL", "C.UTF-8")
            .env("RUST_BACKTRACE", "1");
        // The bench's slow disk is one for the agent as well.
        for name in ["LD_PRELOAD", "STOKER_SYNC_DELAY_US"] {
            if let Some(value) = std::env::var_os(name).filter(|_| std::env::var_os("STOKER_SYNC_DELAY_US").is_some()) {
                command.env(name, value);
            }
        }
        Invocation { command, deadline: DEADLINE }
    }
}

/// A command that was not started yet.
pub(crate) struct Invocation {
    command: Command,
    deadline: Duration,
}

impl Invocation {
    /// With this variable in its environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// In this folder; the home otherwise.
    pub(crate) fn current_dir(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Within this time; a minute otherwise.
    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(self) -> Output {
        self.spawn().wait()
    }

    /// Starts it, as the leader of a process group.
    pub(crate) fn spawn(mut self) -> Running {
        let shown = format!("{:?} {:?}", self.command.get_program(), self.command.get_args().collect::<Vec<_>>());
        let mut child = self.command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
        Running { child, shown, stdout, stderr, deadline: self.deadline }
    }
}

/// Reads to the end on a thread of its own.
fn collect(mut from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// A command that runs. Dropped, its process group is killed; where a test panics, the end of what it wrote is printed.
pub(crate) struct Running {
    child: Child,
    shown: String,
    stdout: mpsc::Receiver<Vec<u8>>,
    stderr: mpsc::Receiver<Vec<u8>>,
    deadline: Duration,
}

impl Running {
    /// Its process id, which is also that of its process group.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the command alone, as a supervisor does.
    pub(crate) fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Sends a signal to the whole process group, as a terminal does.
    pub(crate) fn signal_group(&self, signal: Signal) {
        killpg(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits until it ends.
    ///
    /// # Panics
    ///
    /// Where it does not before its deadline, or where what it left behind still holds its output open.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Output {
        let ended = wait::holds_within(self.deadline, || matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)));
        if !ended {
            self.kill();
        }
        let status = self.child.wait().unwrap();
        let stdout = self.stdout.recv_timeout(OUTPUT_WITHIN);
        let stderr = self.stderr.recv_timeout(OUTPUT_WITHIN);
        let whole = stdout.is_ok() && stderr.is_ok();
        if !whole {
            // A group with members keeps its number from being given again.
            let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let output =
            Output { status, stdout: text(stdout.unwrap_or_default()), stderr: text(stderr.unwrap_or_default()) };
        let (shown, deadline) = (&self.shown, self.deadline);
        assert!(ended, "{shown} did not end within {deadline:?}\n{}\n{}", output.stdout, output.stderr);
        assert!(whole, "{shown} left processes that hold its output\n{}\n{}", output.stdout, output.stderr);
        output
    }

    /// Kills the process group, while its leader was not reaped.
    fn kill(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            for written in [&self.stdout, &self.stderr] {
                let text = written.recv_timeout(OUTPUT_WITHIN).unwrap_or_default();
                let text = String::from_utf8_lossy(&text).into_owned();
                let last: Vec<&str> = text.lines().rev().take(LINES_SHOWN).collect();
                eprintln!("--- the end of what {} wrote", self.shown);
                last.iter().rev().for_each(|line| eprintln!("{line}"));
            }
            eprintln!("---");
        }
    }
}

/// `stoker agent`, and what it wrote. Where a test panics, its log is printed.
///
/// In the configuration `$ROOT` stands for a folder that is the agent's own, `$PORT` for a free port. What a test does
/// not care about is filled in: `apiVersion` and `kind`, `state: $ROOT/state`, `listen: {socket: $ROOT/run/stoker.sock}`.
pub(crate) struct Agent {
    stoker: Stoker,
    configuration: PathBuf,
    http: Option<u16>,
    child: Option<Child>,
    environment: Vec<(OsString, OsString)>,
    through: Vec<OsString>,
    helper: Option<GitHelper>,
}

impl Agent {
    /// Starts an agent and waits until it answers.
    #[track_caller]
    pub(crate) fn start(configuration: &str) -> Self {
        let mut agent = Self::prepare(configuration);
        agent.launch();
        agent.wait_ready();
        agent
    }

    /// An agent that was not started: the test fills its folder, or its environment, first.
    pub(crate) fn prepare(configuration: &str) -> Self {
        let stoker = Stoker::new();
        let port = free_port();
        let mut text = String::new();
        for (key, value) in [
            ("apiVersion", "stoker.build/v1"),
            ("kind", "AgentConfig"),
            ("state", "$ROOT/state"),
            ("listen", "{socket: $ROOT/run/stoker.sock}"),
        ] {
            let there =
                configuration.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
            if !there {
                text.push_str(&format!("{key}: {value}\n"));
            }
        }
        text.push_str(configuration);
        let http = text.contains("$PORT").then_some(port);
        let path = stoker.home().join("agent.yaml");
        let agent = Self {
            stoker,
            configuration: path,
            http,
            child: None,
            environment: Vec::new(),
            through: Vec::new(),
            helper: None,
        };
        agent.configure(&text);
        agent
    }

    /// Writes another configuration in place of the one before: whole, with `$ROOT` and `$PORT`.
    pub(crate) fn configure(&self, configuration: &str) {
        let root = self.root().to_str().unwrap();
        let port = self.http.unwrap_or_default().to_string();
        let configuration =
            if GitHelper::is_for_all() { GitHelper::configured(configuration) } else { configuration.to_owned() };
        std::fs::write(&self.configuration, configuration.replace("$ROOT", root).replace("$PORT", &port)).unwrap();
    }

    /// Sets a variable of the environment for the next start.
    pub(crate) fn env(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.push((name.into(), value.into()));
    }

    /// Starts it through another program, which becomes it, from the next start on.
    pub(crate) fn through<A: Into<OsString>>(&mut self, program: impl IntoIterator<Item = A>) {
        self.through = program.into_iter().map(Into::into).collect();
    }

    /// Starts the process and waits for nothing.
    #[track_caller]
    pub(crate) fn launch(&mut self) {
        assert!(self.child.is_none(), "the agent runs already");
        if GitHelper::is_for_all() && self.helper.is_none() {
            self.helper = Some(GitHelper::for_all(self.root(), &self.environment));
        }
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let own = [BINARY.as_ref(), "agent".as_ref(), "--config".as_ref(), self.configuration.as_os_str()];
        let mut all = self.through.iter().map(OsString::as_os_str).chain(own);
        let program = all.next().unwrap().to_str().unwrap();
        let mut command = self.stoker.program(program, all).command;
        command.envs(self.environment.iter().cloned()).process_group(0).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until the socket answers, and `/readyz` where the configuration has `$PORT`.
    #[track_caller]
    pub(crate) fn wait_ready(&mut self) {
        let ready = wait::holds_within(READY_WITHIN, || {
            if let Some(status) = self.ended() {
                panic!("the agent ended: {status}\n{}", self.log());
            }
            self.answers()
        });
        assert!(ready, "the agent did not answer within {READY_WITHIN:?}\n{}", self.log());
    }

    /// Whether it can be asked now.
    pub(crate) fn answers(&self) -> bool {
        UnixStream::connect(self.socket()).is_ok()
            && (self.http.is_none() || self.http_get("/readyz").is_some_and(|(status, _)| status == 200))
    }

    /// The folder that `$ROOT` stands for.
    pub(crate) fn root(&self) -> &Path {
        self.stoker.home()
    }

    /// Its unix socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.stoker.socket()
    }

    /// The home in which a command finds this agent: `agent.stoker().run(["status"])`.
    pub(crate) fn stoker(&self) -> &Stoker {
        &self.stoker
    }

    /// What it wrote so far, over all its starts.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// How it ended, where it did by itself.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().unwrap())
    }

    /// Kills the agent alone: what it started is left behind, as a crash leaves it.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            if matches!(child.try_wait(), Ok(None)) {
                let _ = nix::sys::signal::kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            }
            let _ = child.wait();
        }
    }

    /// Asks it to end, and waits until it did.
    ///
    /// # Panics
    ///
    /// Where it does not within 20 seconds.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        let ended = wait::holds_within(END_WITHIN, || matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
        if !ended {
            let _ = killpg(pid, Signal::SIGKILL);
        }
        let status = child.wait().unwrap();
        assert!(ended, "the agent did not end within {END_WITHIN:?} of SIGTERM\n{}", self.log());
        status
    }

    /// Starts it again, killed or ended, on the same state, and waits until it answers.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.kill9();
        self.launch();
        self.wait_ready();
    }

    /// The port of its HTTP side.
    pub(crate) fn http_port(&self) -> u16 {
        self.http.unwrap()
    }

    /// `GET PATH` from its HTTP side: the status and the body; `None` where nothing answers.
    pub(crate) fn http_get(&self, path: &str) -> Option<(u16, String)> {
        http_get(self.http?, path)
    }

    /// A connection to its socket.
    pub(crate) async fn channel(&self) -> Channel {
        let address = format!("unix://{}", self.socket().display());
        Endpoint::try_from(address).unwrap().connect().await.unwrap()
    }

    /// A client of `NodeService`.
    pub(crate) async fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel().await)
    }

    /// A client of `AdmissionService`.
    pub(crate) async fn admission(&self) -> AdmissionServiceClient<Channel> {
        AdmissionServiceClient::new(self.channel().await)
    }

    /// A client of `RepositoryService`.
    pub(crate) async fn repository(&self) -> RepositoryServiceClient<Channel> {
        RepositoryServiceClient::new(self.channel().await)
    }

    /// A client of `WorkspaceService`.
    pub(crate) async fn workspace(&self) -> WorkspaceServiceClient<Channel> {
        WorkspaceServiceClient::new(self.channel().await)
    }

    fn log_path(&self) -> PathBuf {
        self.root().join("agent.log")
    }
}

impl Drop for Stoker {
    fn drop(&mut self) {
        super::disk::take_overlays_away(self.home.path());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}---", self.log());
        }
    }
}

/// `GET PATH` from a port of the loopback address: the status and the body; `None` where nothing answers within 5 s.
pub(crate) fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    // HTTP/1.0: the answer comes unchunked and ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
