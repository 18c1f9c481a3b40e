//! An upstream: git repositories served over HTTP/1.1 by git's own `http-backend`, with faults that are switched while
//! it runs, and counts by which a test shows that nothing was fetched.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::cgi::{self, Bend, Body, Kind};
use super::large::LargeFiles;
use super::repository::TestRepo;

/// How long a command to the server's thread may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(10);

/// What was asked since the start or the last [`Upstream::reset`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// `GET .../info/refs`.
    pub(crate) info_refs: usize,
    /// Refs, by protocol 2.
    pub(crate) ls_refs: usize,
    /// Objects.
    pub(crate) fetches: usize,
    /// Anything else.
    pub(crate) others: usize,
}

impl Counts {
    /// All requests.
    pub(crate) fn total(self) -> usize {
        self.info_refs + self.ls_refs + self.fetches + self.others
    }
}

/// What is wrong with the upstream. A request is counted, then delayed, then fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Requests get no answer while this is so; then they are answered.
    Hang,
    /// Fetches get no answer while this is so; then they are answered. Refs are listed.
    HangFetch,
    /// Every request is answered by this status.
    Status(u16),
    /// Answers to fetches end after so many bytes, in the middle of the pack; refs are answered whole.
    CutPack(u64),
    /// It is old: it knows protocol 0 alone.
    Protocol0,
    /// Nothing comes after so many bytes of a pack, and the connection stays.
    HangPack(u64),
    /// One byte of each pack, so far in, is another.
    FlipPack(u64),
    /// Packs have a commit and its tree, and no file.
    BarePack,
    /// Packs of clones never end: some 10 MB a second.
    EndlessPack,
    /// The same for those who have something already.
    EndlessFetch,
    /// Lists of refs never end: as fast.
    EndlessRefs,
    /// Connections end without an answer.
    Reset,
    /// Everything is answered by a page for people.
    Html,
    /// It knows protocol 0 alone, whose list of refs has no end.
    EndlessProtocol0,
}

/// What a handler reads on each request.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    fault: Fault,
    delay: Duration,
}

/// What the server's thread and the test share.
struct Shared {
    root: PathBuf,
    log: PathBuf,
    counts: Mutex<Counts>,
    children: Arc<AtomicUsize>,
    weather: watch::Receiver<Weather>,
    door: Mutex<Door>,
    large: LargeFiles,
}

/// Who gets in, and who knocked.
#[derive(Debug, Default)]
struct Door {
    /// The `Authorization` that is wanted.
    wanted: Option<String>,
    /// What came as `Authorization`, in its order; requests without any are not in it.
    seen: Vec<String>,
    /// Where requests are sent instead.
    redirect: Option<String>,
}

impl Door {
    /// The answer to who does not get in.
    fn answer(&mut self, path: &str, authorization: Option<&str>) -> Option<Response<()>> {
        self.seen.extend(authorization.map(str::to_owned));
        let mut response = Response::new(());
        if let Some(base) = &self.redirect {
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            response.headers_mut().insert(LOCATION, format!("{base}{path}").parse().unwrap());
            return Some(response);
        }
        if self.wanted.is_none() || self.wanted.as_deref() == authorization {
            return None;
        }
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response.headers_mut().insert(WWW_AUTHENTICATE, "Basic realm=\"builds\"".parse().unwrap());
        Some(response)
    }
}

/// What the server's thread is told.
enum Command {
    /// Close the port and every connection.
    Stop(std::sync::mpsc::Sender<()>),
    /// Listen on the same port again.
    Start(std::sync::mpsc::Sender<()>),
}

/// A server of repositories. It has a thread of its own, so that it serves tests with and without a runtime; dropped, it
/// ends with all its connections and children.
pub(crate) struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    weather: watch::Sender<Weather>,
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
    root: TempDir,
}

impl Upstream {
    /// Starts to serve nothing yet, on a free port of the loopback address.
    pub(crate) fn start() -> Self {
        let root = tempfile::Builder::new().prefix("upstream-").tempdir().unwrap();
        let repositories = root.path().join("repositories");
        std::fs::create_dir(&repositories).unwrap();
        // By a child: a test beside may fork while this process has it open for writing, and it could not be started.
        let script = "printf '#!/bin/sh\\ncat > /dev/null\\ngit rev-parse HEAD HEAD^{tree} | git pack-objects --stdout -q\\n' > \"$1\" && chmod 755 \"$1\"";
        let written =
            std::process::Command::new("sh").args(["-c", script, "sh"]).arg(root.path().join("bare-pack")).status();
        assert!(written.unwrap().success());
        let (weather, seen) = watch::channel(Weather::default());
        let shared = Arc::new(Shared {
            root: repositories,
            log: root.path().join("log"),
            counts: Mutex::default(),
            children: Arc::default(),
            weather: seen,
            door: Mutex::default(),
            large: LargeFiles::default(),
        });
        let (commands, receiver) = mpsc::unbounded_channel();
        let (bound, address) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("upstream".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
                    bound.send(listener.local_addr().unwrap()).unwrap();
                    serve(listener, &shared, receiver).await;
                });
            }
        });
        let address = address.recv_timeout(COMMAND_WITHIN).unwrap();
        Self { address, shared, weather, commands: Some(commands), thread: Some(thread.unwrap()), root }
    }

    /// An upstream that serves one repository, and that repository's URL.
    pub(crate) fn of(repo: &TestRepo) -> (Self, String) {
        let upstream = Self::start();
        let url = upstream.host("team/project.git", repo);
        (upstream, url)
    }

    /// Serves `repo` below `path` (`team/project.git`) and gives its URL. What is changed in the repository is seen at
    /// once.
    pub(crate) fn host(&self, path: &str, repo: &TestRepo) -> String {
        let place = self.shared.root.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(repo.path(), place).unwrap();
        self.url(path)
    }

    /// No longer serves what was hosted at `path`.
    pub(crate) fn forget(&self, path: &str) {
        std::fs::remove_file(self.shared.root.join(path)).unwrap();
    }

    /// A URL of `path` that redirects to its real one.
    pub(crate) fn moved_url(&self, path: &str) -> String {
        self.url(&format!("{}{path}", cgi::MOVED.trim_start_matches('/')))
    }

    /// The URL of `path`, whether something is hosted there or not.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// The folder whose content is served.
    pub(crate) fn root(&self) -> &Path {
        &self.shared.root
    }

    /// The large files of all repositories here; what is asked of them is counted apart.
    pub(crate) fn large_files(&self) -> &LargeFiles {
        &self.shared.large
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Counts {
        *self.shared.counts.lock().unwrap()
    }

    /// Counts from zero again.
    pub(crate) fn reset(&self) {
        *self.shared.counts.lock().unwrap() = Counts::default();
    }

    /// How many `git http-backend` run.
    pub(crate) fn children(&self) -> usize {
        self.shared.children.load(Ordering::SeqCst)
    }

    /// Has this fault from now on; [`Fault::None`] ends it, and requests that hang are answered.
    pub(crate) fn fault(&self, fault: Fault) {
        self.weather.send_modify(|weather| weather.fault = fault);
    }

    /// Answers each request so much later: the latency of a network, for one round trip.
    pub(crate) fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Answers 401 to everybody who does not come with this user name and password.
    pub(crate) fn demand(&self, user: &str, password: &str) {
        let encoded = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}"));
        self.shared.door.lock().unwrap().wanted = Some(format!("Basic {encoded}"));
    }

    /// Answers everybody again.
    pub(crate) fn demand_nothing(&self) {
        self.shared.door.lock().unwrap().wanted = None;
    }

    /// Every `Authorization` that was sent here, since the start.
    pub(crate) fn authorizations(&self) -> Vec<String> {
        self.shared.door.lock().unwrap().seen.clone()
    }

    /// Sends everybody on to the same path below `base` (`http://127.0.0.1:1234`).
    pub(crate) fn redirect(&self, base: &str) {
        self.shared.door.lock().unwrap().redirect = Some(base.to_owned());
    }

    /// `http://` and its address.
    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Refuses connections, and ends those that are open.
    pub(crate) fn stop(&self) {
        self.tell(Command::Stop);
    }

    /// Listens on the same port again.
    pub(crate) fn resume(&self) {
        self.tell(Command::Start);
    }

    fn tell(&self, command: impl FnOnce(std::sync::mpsc::Sender<()>) -> Command) {
        let (done, wait) = std::sync::mpsc::channel();
        assert!(self.commands.as_ref().unwrap().send(command(done)).is_ok(), "the upstream's thread ended");
        wait.recv_timeout(COMMAND_WITHIN).unwrap();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.commands = None;
        let ended = self.thread.take().map(JoinHandle::join);
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.shared.log).unwrap_or_default();
            eprintln!("--- upstream {}: {:?}\n{log}---", self.address, self.requests());
        } else {
            assert!(!matches!(ended, Some(Err(_))), "the upstream's thread panicked");
        }
    }
}

/// Listens. `SO_REUSEADDR` is set, so that the port can be had again while old connections linger.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    hold(address)?.listen(128)
}

/// Has the port without listening: connections are refused, and nobody else gets it. `SO_REUSEPORT` is set, so that a
/// port on which this process listens can be held before that ends: in between, another process could take it.
fn hold(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Whether the port is open.
enum Port {
    Open(TcpListener),
    Held(TcpSocket),
}

impl Port {
    async fn accept(&self) -> io::Result<TcpStream> {
        match self {
            Self::Open(listener) => listener.accept().await.map(|(stream, _)| stream),
            Self::Held(_) => std::future::pending().await,
        }
    }
}

/// Serves until nobody can send commands any more.
async fn serve(listener: TcpListener, shared: &Arc<Shared>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let address = listener.local_addr().unwrap();
    let mut port = Port::Open(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::Stop(done)) => {
                    if matches!(port, Port::Open(_)) {
                        port = Port::Held(hold(address).unwrap());
                    }
                    connections.shutdown().await;
                    let _ = done.send(());
                }
                Some(Command::Start(done)) => {
                    port = match port {
                        Port::Held(socket) => Port::Open(socket.listen(128).unwrap()),
                        open @ Port::Open(_) => open,
                    };
                    let _ = done.send(());
                }
            },
            accepted = port.accept() => {
                if let Ok(stream) = accepted {
                    let shared = Arc::clone(shared);
                    connections.spawn(async move {
                        let service = service_fn(move |request| handle(Arc::clone(&shared), request));
                        // A client that goes, and a cut that was asked for, are errors here: the test sees their effect.
                        let _ = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

/// Counts a request, waits and fails as the weather says, and has it answered by git.
async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    if LargeFiles::is_for(request.uri().path()) {
        let closed = shared.door.lock().unwrap().answer(&path, authorization.as_deref());
        if let Some(response) = closed {
            return Ok(response.map(|()| empty()));
        }
        return shared.large.answer(request).await;
    }
    let asked = cgi::ask(request).await.map_err(io::Error::other)?;
    let kind = asked.kind;
    {
        let mut counts = shared.counts.lock().unwrap();
        match kind {
            Kind::InfoRefs => counts.info_refs += 1,
            Kind::LsRefs => counts.ls_refs += 1,
            Kind::Fetch => counts.fetches += 1,
            Kind::Other => counts.others += 1,
        }
    }
    if let Some(answer) = cgi::moved(&asked) {
        return Ok(answer);
    }
    let mut weather = shared.weather.clone();
    let now = *weather.borrow_and_update();
    tokio::time::sleep(now.delay).await;
    let answered = |weather: &Weather| match weather.fault {
        Fault::Hang => false,
        Fault::HangFetch => kind != Kind::Fetch,
        _ => true,
    };
    let fault = match weather.wait_for(answered).await {
        Ok(weather) => weather.fault,
        Err(_) => return Err(io::Error::other("the upstream ends")),
    };
    if let Fault::Status(code) = fault {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::from_u16(code).map_err(io::Error::other)?;
        return Ok(response);
    }
    let closed = shared.door.lock().unwrap().answer(&path, authorization.as_deref());
    if let Some(response) = closed {
        return Ok(response.map(|()| empty()));
    }
    match fault {
        Fault::Reset => return Err(io::Error::other("reset as asked")),
        Fault::Html => return Ok(answer("text/html", once(b"<html><body>Sign in</body></html>".to_vec()))),
        Fault::EndlessRefs if kind == Kind::LsRefs => return Ok(answer(RESULT, endless(0, ref_lines))),
        Fault::EndlessPack if kind == Kind::Fetch => return Ok(answer(RESULT, endless(0, pack_lines))),
        Fault::EndlessFetch if kind == Kind::Fetch => return Ok(answer(RESULT, endless(0, acknowledged))),
        _ => {}
    }
    let bend = match fault {
        Fault::CutPack(bytes) if kind == Kind::Fetch => Bend::Cut(bytes),
        Fault::HangPack(bytes) if kind == Kind::Fetch => Bend::Hang(bytes),
        Fault::FlipPack(bytes) if kind == Kind::Fetch => Bend::Flip(bytes),
        _ => Bend::Whole,
    };
    if fault == Fault::EndlessProtocol0 && kind == Kind::InfoRefs {
        return Ok(cgi::endless_advertisement());
    }
    let old = matches!(fault, Fault::Protocol0 | Fault::EndlessProtocol0);
    let asked = if old { asked.of_protocol_0() } else { asked };
    let hook = shared.root.with_file_name("bare-pack");
    let hook = (fault == Fault::BarePack).then_some(hook.as_path());
    cgi::answer(asked, &shared.root, &shared.log, bend, hook, &shared.children).await
}

/// The content type of answers to `git-upload-pack`.
const RESULT: &str = "application/x-git-upload-pack-result";
/// Between two pieces of what never ends.
const PIECE_EVERY: Duration = Duration::from_millis(5);

fn answer(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

fn once(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

/// Pieces without end: `piece` makes the one of a number.
fn endless(first: u64, piece: fn(u64) -> Vec<u8>) -> Body {
    let parts = futures_util::stream::unfold(first, move |number| async move {
        tokio::time::sleep(PIECE_EVERY).await;
        Some((Ok(hyper::body::Frame::data(Bytes::from(piece(number)))), number + 1))
    });
    http_body_util::StreamBody::new(parts).boxed_unsync()
}

/// Packet lines (gitprotocol-common(5)).
fn packet(bytes: &[u8]) -> Vec<u8> {
    [format!("{:04x}", bytes.len() + 4).as_bytes(), bytes].concat()
}

/// A thousand refs.
fn ref_lines(number: u64) -> Vec<u8> {
    let line = |i: u64| packet(format!("{:040x} refs/heads/branch-{}\n", i + 1, number * 1000 + i).as_bytes());
    (0..1000).flat_map(line).collect()
}

/// What comes before a pack for those who said what they have (gitprotocol-v2(5)), then as [`pack_lines`].
fn acknowledged(number: u64) -> Vec<u8> {
    let before = if number == 0 {
        [packet(b"acknowledgments\n"), packet(b"ready\n"), b"0001".to_vec()].concat()
    } else {
        Vec::new()
    };
    [before, pack_lines(number)].concat()
}

/// The beginning of a pack with one file of a terabyte (gitformat-pack(5)), then that file, in stored blocks of RFC 1951.
fn pack_lines(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if number == 0 {
        bytes.extend(packet(b"packfile\n"));
        let mut begin = b"\x01PACK\0\0\0\x02\0\0\0\x01".to_vec();
        let mut size = 1_u64 << 40;
        begin.push(0xb0 | u8::try_from(size & 15).unwrap());
        size >>= 4;
        while size > 0 {
            let more = if size > 0x7f { 0x80 } else { 0 };
            begin.push(more | u8::try_from(size & 0x7f).unwrap());
            size >>= 7;
        }
        begin.extend([0x78, 0x01]);
        bytes.extend(packet(&begin));
    }
    let block = [&[0x01, 0x00][..], &50_000_u16.to_le_bytes(), &(!50_000_u16).to_le_bytes(), &[b'x'; 50_000]].concat();
    bytes.extend(packet(&block));
    bytes
}
