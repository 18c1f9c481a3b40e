//! One request answered by `git http-backend`, bodies streamed both ways. The child and all that it starts end when the
//! answer is dropped, which is what happens when the client goes.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use hyper::{Request, Response, StatusCode};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

/// How much of a request's body is looked at to know what it asks for.
const HEAD_MAX: usize = 64 * 1024;

/// A body that is sent.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `GET .../info/refs`: capabilities, under protocol 0 also the refs.
    InfoRefs,
    /// `POST .../git-upload-pack` with the command `ls-refs`.
    LsRefs,
    /// `POST .../git-upload-pack` that asks for objects.
    Fetch,
    /// Anything else.
    Other,
}

/// A request of which enough was read to know its kind.
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    head: Vec<Bytes>,
    request: Request<Incoming>,
}

impl Asked {
    /// The same, as a server sees it that does not know `Git-Protocol`.
    pub(crate) fn of_protocol_0(mut self) -> Self {
        self.request.headers_mut().remove("git-protocol");
        self
    }
}

/// What lies below it has moved to the same path without it.
pub(crate) const MOVED: &str = "/moved/";

/// The redirect that such a request is answered by.
pub(crate) fn moved(asked: &Asked) -> Option<Response<Body>> {
    let uri = asked.request.uri();
    let path = uri.path_and_query()?.as_str().strip_prefix(MOVED)?;
    let location = HeaderValue::from_str(&format!("/{path}")).ok()?;
    let mut response = Response::new(Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, location);
    Some(response)
}

/// A list of refs by protocol 0, where it is the first answer, that goes on for as long as somebody reads.
pub(crate) fn endless_advertisement() -> Response<Body> {
    endless("advertisement", "001e# service=git-upload-pack\n0000")
}

fn endless(kind: &str, begin: &'static str) -> Response<Body> {
    let line = "0047aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa refs/heads/endless-branch\n";
    assert_eq!(usize::from_str_radix(&line[..4], 16), Ok(line.len()));
    let part = Bytes::from(line.repeat(1000));
    let parts = std::iter::once(Bytes::from_static(begin.as_bytes())).chain(std::iter::repeat(part));
    let parts = parts.filter(|part| !part.is_empty()).map(|part| Ok(Frame::data(part)));
    let mut response = Response::new(StreamBody::new(stream::iter(parts)).boxed_unsync());
    let kind = HeaderValue::from_str(&format!("application/x-git-upload-pack-{kind}")).unwrap();
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Reads as much of the body as the kind needs; the rest stays in its stream.
pub(crate) async fn ask(mut request: Request<Incoming>) -> Result<Asked, hyper::Error> {
    let path = request.uri().path().to_owned();
    let mut head = Vec::new();
    let kind = if path.ends_with("/info/refs") {
        Kind::InfoRefs
    } else if path.ends_with("/git-upload-pack") {
        let gzip = request.headers().get(CONTENT_ENCODING).is_some_and(|value| value == "gzip");
        let mut seen = Vec::new();
        loop {
            if let Some(kind) = classify(&seen, gzip) {
                break kind;
            }
            match request.body_mut().frame().await {
                Some(frame) if seen.len() < HEAD_MAX => {
                    if let Ok(data) = frame?.into_data() {
                        seen.extend_from_slice(&data);
                        head.push(data);
                    }
                }
                _ => break Kind::Other,
            }
        }
    } else {
        Kind::Other
    };
    Ok(Asked { kind, head, request })
}

/// What the beginning of an `upload-pack` request asks for; `None` where more must be read. Protocol 2 begins with
/// `command=`, protocols 0 and 1 with the first `want` (gitprotocol-v2, gitprotocol-pack).
fn classify(seen: &[u8], gzip: bool) -> Option<Kind> {
    const LENGTH: usize = 4;
    let mut plain = [0_u8; LENGTH + 15];
    let known = if gzip {
        let mut decoder = flate2::read::GzDecoder::new(seen);
        let mut filled = 0;
        while filled < plain.len() {
            match decoder.read(&mut plain[filled..]) {
                Ok(0) | Err(_) => break,
                Ok(count) => filled += count,
            }
        }
        filled
    } else {
        let count = seen.len().min(plain.len());
        plain[..count].copy_from_slice(&seen[..count]);
        count
    };
    let text = plain[..known].get(LENGTH..)?;
    if text.starts_with(b"command=ls-refs") {
        Some(Kind::LsRefs)
    } else if text.starts_with(b"command=fetch") || text.starts_with(b"want ") {
        Some(Kind::Fetch)
    } else if known == plain.len() {
        Some(Kind::Other)
    } else {
        None
    }
}

/// What is done to an answer's body on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bend {
    /// Nothing.
    Whole,
    /// It ends with an error after so many bytes.
    Cut(u64),
    /// Nothing comes after so many bytes, and the connection stays.
    Hang(u64),
    /// So many bytes later one is another.
    Flip(u64),
}

/// The child's process group, ended when this is dropped, and counted while it lives.
struct Running {
    child: Child,
    feeder: JoinHandle<()>,
    count: Arc<AtomicUsize>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.feeder.abort();
        // `id` is unset once the child was reaped: until then its number cannot have been given again.
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Answers by `git http-backend` over the repositories below `root`. `hook` makes the packs, where it is set
/// (`uploadpack.packObjectsHook`). `count` is the number of children that live.
pub(crate) async fn answer(
    asked: Asked,
    root: &Path,
    log: &Path,
    bend: Bend,
    hook: Option<&Path>,
    count: &Arc<AtomicUsize>,
) -> io::Result<Response<Body>> {
    let mut command = backend(&asked.request, root, log, hook)?;
    let mut child = command.spawn()?;
    count.fetch_add(1, Ordering::SeqCst);
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("no stdin"))?;
    let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no stdout"))?;
    let feeder = tokio::spawn(async move {
        let mut body = asked.request.into_body();
        for part in asked.head {
            if stdin.write_all(&part).await.is_err() {
                return;
            }
        }
        // A client that goes under way is an error here, and the child sees the end of its input.
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            if stdin.write_all(&data).await.is_err() {
                return;
            }
        }
    });
    let running = Running { child, feeder, count: Arc::clone(count) };

    let mut reader = BufReader::with_capacity(64 * 1024, stdout);
    let mut response = Response::new(());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "git http-backend ended within its header"));
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        if name == "Status" {
            let code = value.split(' ').next().unwrap_or_default();
            *response.status_mut() = code.parse::<StatusCode>().map_err(io::Error::other)?;
        } else {
            let name = name.parse::<HeaderName>().map_err(io::Error::other)?;
            response.headers_mut().append(name, HeaderValue::from_str(value).map_err(io::Error::other)?);
        }
    }
    Ok(response.map(|()| body(reader, running, bend)))
}

/// The command, with the variables of the common gateway interface (RFC 3875) that `git-http-backend(1)` reads.
fn backend(request: &Request<Incoming>, root: &Path, log: &Path, hook: Option<&Path>) -> io::Result<Command> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        // What the large forges allow.
        .env("GIT_CONFIG_COUNT", if hook.is_some() { "3" } else { "2" })
        .env("GIT_CONFIG_KEY_2", "uploadpack.packObjectsHook")
        .env("GIT_CONFIG_VALUE_2", hook.unwrap_or(Path::new("")))
        .env("GIT_CONFIG_KEY_0", "uploadpack.allowAnySHA1InWant")
        .env("GIT_CONFIG_VALUE_0", "true")
        .env("GIT_CONFIG_KEY_1", "uploadpack.allowFilter")
        .env("GIT_CONFIG_VALUE_1", "true")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GATEWAY_INTERFACE", "CGI/1.1")
        .env("SERVER_PROTOCOL", "HTTP/1.1")
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("REQUEST_METHOD", request.method().as_str())
        .env("QUERY_STRING", request.uri().query().unwrap_or_default())
        .env("PATH_INFO", decode(request.uri().path()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::options().create(true).append(true).open(log)?)
        .process_group(0)
        .kill_on_drop(true);
    for (variable, name) in [
        ("CONTENT_TYPE", CONTENT_TYPE.as_str()),
        // Unset for a chunked body: the backend then reads to the end.
        ("CONTENT_LENGTH", CONTENT_LENGTH.as_str()),
        ("HTTP_CONTENT_ENCODING", CONTENT_ENCODING.as_str()),
        ("HTTP_ACCEPT_ENCODING", "accept-encoding"),
        ("GIT_PROTOCOL", "git-protocol"),
    ] {
        if let Some(value) = header(name) {
            command.env(variable, value);
        }
    }
    Ok(command)
}

/// A path with its `%XX` turned back into bytes.
fn decode(path: &str) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match code {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes)
}

/// The child's output as a body. It owns the child: whoever drops it ends that.
fn body(reader: BufReader<ChildStdout>, running: Running, bend: Bend) -> Body {
    let parts = stream::unfold(Some((reader, running, bend)), |state| async {
        let (mut reader, running, bend) = state?;
        let left = match bend {
            Bend::Cut(left) | Bend::Hang(left) => left,
            Bend::Whole | Bend::Flip(_) => u64::MAX,
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(64 * 1024);
        if most == 0 {
            if matches!(bend, Bend::Hang(_)) {
                std::future::pending::<()>().await;
            }
            return Some((Err(io::Error::other("cut as asked")), None));
        }
        let mut buffer = vec![0; most];
        match reader.read(&mut buffer).await {
            Ok(0) => None,
            Ok(count) => {
                buffer.truncate(count);
                let less = |left: u64| left.saturating_sub(count as u64);
                let bend = match bend {
                    Bend::Whole => Bend::Whole,
                    Bend::Cut(left) => Bend::Cut(less(left)),
                    Bend::Hang(left) => Bend::Hang(less(left)),
                    Bend::Flip(left) if left < count as u64 => {
                        buffer[usize::try_from(left).unwrap()] ^= 0x55;
                        Bend::Whole
                    }
                    Bend::Flip(left) => Bend::Flip(less(left)),
                };
                Some((Ok(Frame::data(Bytes::from(buffer))), Some((reader, running, bend))))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    StreamBody::new(parts).boxed_unsync()
}
