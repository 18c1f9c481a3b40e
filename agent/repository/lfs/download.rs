//! Brings objects: asks for them a hundred at a time, and takes several at once, each checked as it comes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http_body_util::Full;
use hyper::body::Incoming as Body;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use stoker_core::reason::{Code, Reason};
use tokio::sync::{mpsc, watch};

use super::Coming;
use super::batch::{self, Action, MEDIA_TYPE, OBJECTS_MAX};
use super::counts::Counters;
use super::endpoint::Policy;
use super::pointer::{LfsOid, Pointer};
use super::store::{Incoming, KeepError, ObjectStore};
use crate::repository::disk::io_reason;
use crate::repository::fetch::blocking;
use crate::repository::progress::Progress;
use crate::repository::upstream_http::{Http, HttpError, next_part, read_whole};

/// How many objects come at once.
const PARALLEL: usize = 4;
/// How long a server may take to begin its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// The pauses before what failed is tried again: as many as there are further attempts.
const PAUSES: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(3)];
/// How often one object may be said to be elsewhere.
const REDIRECTS_MAX: usize = 3;
/// Parts of one object that wait for the disk.
const PARTS_WAITING_MAX: usize = 8;
/// What is read at once of a file.
const PART_BYTES: usize = 128 << 10;

/// What one commit's objects are brought with.
pub(super) struct Session<'a> {
    pub(super) http: Http,
    pub(super) policy: &'a Policy,
    /// Who we are to upstream; told to no other server.
    pub(super) authorization: Option<HeaderValue>,
    pub(super) store: &'a ObjectStore,
    pub(super) trust: &'a str,
    /// A path of each, for people.
    pub(super) paths: &'a BTreeMap<LfsOid, String>,
    pub(super) steps: &'a watch::Sender<Progress>,
    pub(super) done: AtomicU64,
    pub(super) total: u64,
    pub(super) counters: &'a Counters,
    /// What is on its way.
    pub(super) coming: Coming,
}

/// Why something was not had.
enum Failed {
    /// And will not be.
    Finally(Reason),
    /// This time.
    Now(Reason),
}

impl Session<'_> {
    /// Brings all of these from a server of the batch API.
    pub(super) async fn bring(&self, server: &Uri, wanted: &[Pointer]) -> Result<(), Reason> {
        for some in wanted.chunks(OBJECTS_MAX) {
            self.bring_some(server, some).await?;
        }
        Ok(())
    }

    /// Each attempt asks anew: addresses are signed, and live for minutes.
    async fn bring_some(&self, server: &Uri, wanted: &[Pointer]) -> Result<(), Reason> {
        let mut missing = wanted.to_vec();
        let mut pauses = PAUSES.iter();
        loop {
            let (left, why) = match self.attempt(server, &missing).await {
                Ok(left) if left.is_empty() => return Ok(()),
                Ok(left) => left.into_iter().unzip::<_, _, Vec<_>, Vec<_>>(),
                Err(Failed::Finally(reason)) => return Err(reason),
                Err(Failed::Now(reason)) => (missing.clone(), vec![reason]),
            };
            match (pauses.next(), why.into_iter().next()) {
                (Some(pause), _) => tokio::time::sleep(*pause).await,
                (None, Some(reason)) => return Err(reason),
                (None, None) => return Ok(()),
            }
            missing = left;
        }
    }

    /// Gives those that are to be tried again.
    async fn attempt(&self, server: &Uri, missing: &[Pointer]) -> Result<Vec<(Pointer, Reason)>, Failed> {
        let actions = self.ask(server, missing).await?;
        let mut ways = Vec::with_capacity(actions.len());
        for (pointer, action) in actions {
            ways.push((pointer, action.map_err(|reason| Failed::Finally(self.named(pointer, reason)))?));
        }
        let coming =
            ways.into_iter().map(|(pointer, action)| async move { (pointer, self.fetch(pointer, action).await) });
        let mut coming = stream::iter(coming).buffer_unordered(PARALLEL);
        let mut again = Vec::new();
        while let Some((pointer, came)) = coming.next().await {
            match came {
                Ok(()) => self.count(pointer),
                Err(Failed::Now(reason)) => again.push((pointer, self.named(pointer, reason))),
                Err(Failed::Finally(reason)) => return Err(Failed::Finally(self.named(pointer, reason))),
            }
        }
        Ok(again)
    }

    async fn ask(
        &self,
        server: &Uri,
        missing: &[Pointer],
    ) -> Result<BTreeMap<Pointer, Result<Action, Reason>>, Failed> {
        let (url, key) = (self.policy.url(), self.policy.url().key());
        let odd = |why: String| Failed::Finally(Reason::new(Code::UpstreamUnreachable, key, why));
        let body = batch::request(missing).map_err(|error| odd(error.to_string()))?;
        let mut request = Request::post(format!("{}/objects/batch", server.to_string().trim_end_matches('/')))
            .header(USER_AGENT, agent())
            .header(ACCEPT, MEDIA_TYPE)
            .header(CONTENT_TYPE, MEDIA_TYPE);
        if let Some(value) = self.authorization.as_ref().filter(|_| self.policy.is_upstream(server)) {
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| odd(error.to_string()))?;
        let doing = format!("asking the LFS server of {url}");
        let failed = |error: HttpError| failed(key, &doing, &error);
        let response = self.http.send(request, ANSWER_WITHIN).await.map_err(&failed)?;
        let status = response.status();
        let body = read_whole(response.into_body(), batch::ANSWER_BYTES_MAX, ANSWER_WITHIN).await.map_err(&failed)?;
        if status != StatusCode::OK {
            return Err(match batch::refused(status, &body, self.policy) {
                Some(reason) => Failed::Finally(reason),
                None => failed(HttpError::Broken(status.to_string())),
            });
        }
        batch::read(&body, missing, self.policy).map_err(Failed::Finally)
    }

    async fn fetch(&self, pointer: Pointer, action: Action) -> Result<(), Failed> {
        let mut body = self.open(pointer, action).await?;
        let (store, trust) = (self.store.clone(), self.trust.to_owned());
        let (parts, coming) = mpsc::channel(PARTS_WAITING_MAX);
        let written = tokio::task::spawn_blocking(move || write(store.begin(&trust, pointer)?, coming));
        let subject = pointer.oid.to_string();
        let mut broken = None;
        loop {
            match next_part(&mut body).await {
                Ok(None) => break,
                Ok(Some(part)) => {
                    if parts.send(Ok(part)).await.is_err() {
                        break; // the writer says why
                    }
                }
                Err(error) => {
                    let _ = parts.send(Err(())).await;
                    broken = Some(failed(&subject, "fetching a large file", &error));
                    break;
                }
            }
        }
        drop(parts);
        let written = written.await.unwrap_or_else(|error| Err(KeepError::Disk(io::Error::other(error))));
        match (broken, written) {
            (Some(failed), _) => Err(failed),
            (None, written) => written.map_err(|error| not_kept(&subject, &error)),
        }
    }

    /// Asks for an object, wherever it is said to be; each address is judged. The action's headers are for its host alone.
    async fn open(&self, pointer: Pointer, action: Action) -> Result<Body, Failed> {
        let (mut uri, mut headers) = (action.uri, action.headers);
        let subject = pointer.oid.to_string();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::get(uri.clone()).header(USER_AGENT, agent()).header(ACCEPT, "*/*");
            if let Some(all) = request.headers_mut() {
                all.extend(headers.clone());
            }
            let request = request.body(Full::default());
            let request = request.map_err(|_| Failed::Finally(batch::missing(pointer.oid, "its address is none")))?;
            let sent = self.http.send(request, ANSWER_WITHIN).await;
            let response = sent.map_err(|error| failed(&subject, "fetching a large file", &error))?;
            if !response.status().is_redirection() {
                return self.judge(pointer, response);
            }
            let next = elsewhere(&uri, &response);
            let next = next
                .ok_or_else(|| Failed::Finally(batch::missing(pointer.oid, "it is elsewhere, and not said where")))?;
            let next = self.policy.judge(&next, "the address of a large file").map_err(Failed::Finally)?;
            if next.authority() != uri.authority() || next.scheme() != uri.scheme() {
                headers.clear();
            }
            uri = next;
        }
        Err(Failed::Finally(batch::missing(pointer.oid, &format!("it is elsewhere, more than {REDIRECTS_MAX} times"))))
    }

    fn judge(&self, pointer: Pointer, response: Response<Body>) -> Result<Body, Failed> {
        let status = response.status();
        let subject = pointer.oid.to_string();
        match status {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                return Err(failed(&subject, "fetching a large file", &HttpError::Broken(status.to_string())));
            }
            _ if status.is_server_error() => {
                return Err(failed(&subject, "fetching a large file", &HttpError::Broken(status.to_string())));
            }
            _ => {
                let why = format!("its LFS server does not give it ({status})");
                return Err(Failed::Finally(batch::missing(pointer.oid, &why)));
            }
        }
        let length = hyper::body::Body::size_hint(response.body()).exact();
        match length {
            Some(bytes) if bytes != pointer.bytes => {
                Err(not_kept(&subject, &KeepError::Length { bytes, expected: pointer.bytes }))
            }
            _ => Ok(response.into_body()),
        }
    }

    /// Copies all of these from a local repository's own objects.
    pub(super) async fn copy(&self, dirs: &[PathBuf], wanted: &[Pointer]) -> Result<(), Reason> {
        for pointer in wanted {
            let (store, trust, dirs, pointer) = (self.store.clone(), self.trust.to_owned(), dirs.to_vec(), *pointer);
            let subject = pointer.oid.to_string();
            let copied = blocking(&subject, move || copy(&store, &trust, &dirs, pointer)).await?;
            match copied {
                Ok(true) => self.count(pointer),
                Ok(false) => {
                    let why = "its repository does not have it; run `git lfs fetch --all` there";
                    return Err(self.named(pointer, batch::missing(pointer.oid, why)));
                }
                Err(error) => {
                    let (Failed::Now(reason) | Failed::Finally(reason)) = not_kept(&subject, &error);
                    return Err(self.named(pointer, reason));
                }
            }
        }
        Ok(())
    }

    fn count(&self, pointer: Pointer) {
        self.coming.landed(pointer.bytes);
        self.counters.came(pointer.bytes);
        let done = self.done.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.steps.send_replace(Progress { phase: "large files", done, total: self.total, ..Progress::default() });
    }

    fn named(&self, pointer: Pointer, reason: Reason) -> Reason {
        let path = self.paths.get(&pointer.oid).map_or("", String::as_str);
        let message = format!("{path} (LFS object {}): {}", pointer.oid, reason.message);
        Reason { message, ..reason }
    }
}

fn agent() -> &'static str {
    concat!("git-lfs/3 (stoker/", env!("CARGO_PKG_VERSION"), ")")
}

/// Where a redirect leads.
fn elsewhere(from: &Uri, response: &Response<Body>) -> Option<String> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    match location.starts_with('/') && !location.starts_with("//") {
        true => Some(format!("{}://{}{location}", from.scheme_str()?, from.authority()?)),
        false => Some(location.to_owned()),
    }
}

fn failed(subject: &str, doing: &str, error: &HttpError) -> Failed {
    let reason = Reason::new(error.code(), subject, format!("{doing}: {error}"));
    match error {
        HttpError::Local(_) | HttpError::TooMuch(_) => Failed::Finally(reason),
        HttpError::Connect(_) | HttpError::Broken(_) | HttpError::TimedOut(_) => Failed::Now(reason),
    }
}

fn not_kept(subject: &str, error: &KeepError) -> Failed {
    match error {
        KeepError::Disk(error) => Failed::Finally(io_reason(subject, "keeping a large file", error)),
        KeepError::Length { .. } | KeepError::Hash(_) => {
            Failed::Now(Reason::new(Code::LfsObjectCorrupt, subject, error.to_string()))
        }
    }
}

/// Writes what comes. A sender that says so, or is gone in the middle, keeps nothing.
fn write(mut incoming: Incoming, mut parts: mpsc::Receiver<Result<Bytes, ()>>) -> Result<(), KeepError> {
    while let Some(part) = parts.blocking_recv() {
        let Ok(part) = part else { return Err(KeepError::Disk(io::ErrorKind::UnexpectedEof.into())) };
        incoming.write(&part)?;
    }
    incoming.keep()
}

fn copy(store: &ObjectStore, trust: &str, dirs: &[PathBuf], pointer: Pointer) -> Result<bool, KeepError> {
    let Some(mut from) = dirs.iter().find_map(|dir| open_plain(&dir.join(pointer.oid.path()))) else {
        return Ok(false);
    };
    let mut incoming = store.begin(trust, pointer)?;
    let mut part = vec![0; PART_BYTES];
    loop {
        match from.read(&mut part)? {
            0 => break,
            count => incoming.write(part.get(..count).unwrap_or_default())?,
        }
    }
    incoming.keep().map(|()| true)
}

/// A regular file; nothing that a symlink leads to.
fn open_plain(path: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}
