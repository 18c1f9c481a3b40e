//! Outputs over HTTP: `/outputs/ID/` lists what a build left, `/outputs/ID/PATH` is a file as it is, `?tar` a folder as a
//! tar archive. Read-only.
//!
//! Who may read is decided as for git (see [`super::git`]): clients on this machine, or all where the configuration says
//! so, and of the outputs those whose repository is of a trust class that is served; callers with a role read those of
//! their tenants and trust classes. Another one looks as if it were not there. What a build left may be hostile:
//! everything is opened beneath the output, links are shown and never followed, pipes and devices are never opened, and
//! names are written so that nothing takes them for something else.

mod archive;
mod range;

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use futures_util::stream;
use rustix::fs::Dir;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::asker::{Asker, refused};
use super::html::Text;
use crate::access::{Denied, Role};
use crate::node::Opened;
use crate::rpc::Rooms;
use crate::workspace::outputs::{Output, name};
use range::Range;

/// The most downloads at a time; more are told to come again.
const DOWNLOADS_MAX: usize = 8;
/// When a client that finds no place should come again, in seconds.
const RETRY_AFTER: &str = "5";
/// The most names of one listing.
const NAMES_MAX: usize = 10_000;
/// How much of a file is read at a time.
const PART_BYTES: usize = 256 << 10;
/// What a browser may show as text; everything else is bytes.
const TEXT: [&str; 12] = ["log", "txt", "out", "err", "json", "xml", "yaml", "yml", "md", "csv", "diff", "toml"];

/// What the handlers share.
#[derive(Clone)]
struct Face {
    rooms: Rooms,
    places: Arc<Semaphore>,
}

/// The paths below `/outputs/`, for one listener.
pub(super) fn routes(rooms: Rooms) -> Router {
    let face = Face { rooms, places: Arc::new(Semaphore::new(DOWNLOADS_MAX)) };
    Router::new().route("/outputs/", any(answer)).route("/outputs/{*path}", any(answer)).with_state(face)
}

async fn answer(State(face): State<Face>, asker: Asker, request: Request) -> Response {
    if asker.caller.is_none() && !face.rooms.serve.serves_everyone() && !asker.is_local {
        let why = "outputs are served to clients of this machine only; see repositories.serve.anonymous";
        return refused(&face.rooms.metrics, &Denied::forbidden("outputs", why));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")], "outputs are read-only\n")
            .into_response();
    }
    let Ok(place) = Arc::clone(&face.places).try_acquire_owned() else {
        let again = [(header::RETRY_AFTER, RETRY_AFTER)];
        return (StatusCode::SERVICE_UNAVAILABLE, again, "too many downloads at once; try again\n").into_response();
    };
    let asked = Asked::of(&request);
    let shown = tokio::task::spawn_blocking(move || show(&face, &asker, &asked, place)).await;
    shown.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// What a request wants.
struct Asked {
    path: String,
    tar: bool,
    html: bool,
    head: bool,
    headers: HeaderMap,
}

impl Asked {
    fn of(request: &Request) -> Self {
        let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Self {
            path: request.uri().path().strip_prefix("/outputs/").unwrap_or_default().to_owned(),
            tar: request.uri().query() == Some("tar"),
            html: accept.contains("text/html"),
            head: request.method() == Method::HEAD,
            headers: request.headers().clone(),
        }
    }
}

fn show(face: &Face, asker: &Asker, asked: &Asked, place: OwnedSemaphorePermit) -> Response {
    let outputs = face.rooms.workspaces.outputs();
    let all = match outputs.list() {
        Ok(all) => all,
        Err(reason) => {
            let text = format!("{} [{}]\n", reason.message, reason.code.word());
            return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, RETRY_AFTER)], text).into_response();
        }
    };
    let may_read = |output: &&Arc<Output>| match &asker.caller {
        Some(caller) => caller.may_of(Role::Viewer, &output.scope.tenant, &output.trust),
        // Beyond this machine a tenant's are its own.
        None => face.rooms.serve.may_read(&output.trust) && (asker.is_local || output.scope.tenant.is_empty()),
    };
    if asked.path.is_empty() {
        return index(all.iter().filter(may_read), asked.html);
    }
    let (id, within) = asked.path.split_once('/').unwrap_or((&asked.path, ""));
    let Some(output) = all.iter().find(|output| output.id == id).filter(may_read) else { return absent() };
    if !asked.path.contains('/') {
        return to_folder(&name::escape(output.id.as_ref()));
    }
    let Some(within) = name::unescape(within).map(PathBuf::from) else {
        return (StatusCode::BAD_REQUEST, "the path has a % without two digits after it\n").into_response();
    };
    match outputs.open(id, &within) {
        Ok(Opened::File(_, _) | Opened::Link(_) | Opened::Other) if asked.tar => {
            (StatusCode::BAD_REQUEST, "only folders are sent as tar; leave ?tar out\n").into_response()
        }
        Ok(Opened::File(file, length)) => file_response(face, asked, &within, (file, length), place),
        Ok(Opened::Directory(folder)) if asked.tar => archive::response(face, asked, output, folder, place),
        Ok(Opened::Directory(_)) if !asked.path.ends_with('/') => {
            to_folder(&name::escape(within.file_name().unwrap_or_default()))
        }
        Ok(Opened::Directory(folder)) => match names(folder) {
            Ok((names, all)) => listing(&within, &names, all, asked.html),
            Err(error) => unreadable(&error),
        },
        Ok(Opened::Link(_)) => {
            (StatusCode::NOT_FOUND, "this is a link, which is not followed; `?tar` has it\n").into_response()
        }
        Ok(Opened::Other) => (StatusCode::FORBIDDEN, "this is no file: a pipe, a socket or a device\n").into_response(),
        Err(error) => unreadable(&error),
    }
}

fn absent() -> Response {
    (StatusCode::NOT_FOUND, "no such output, or nothing of that name in it\n").into_response()
}

fn unreadable(error: &io::Error) -> Response {
    match error.kind() {
        io::ErrorKind::NotFound => absent(),
        io::ErrorKind::PermissionDenied => {
            (StatusCode::FORBIDDEN, "its owner lets nobody read it, the agent neither\n").into_response()
        }
        _ => {
            tracing::warn!(%error, "an output cannot be read");
            (StatusCode::INTERNAL_SERVER_ERROR, "it cannot be read; the agent's log says why\n").into_response()
        }
    }
}

/// The same with a slash, so that relative names lie below it.
fn to_folder(last: &str) -> Response {
    match HeaderValue::from_str(&format!("{last}/")) {
        Ok(location) => (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, location)]).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

/// One name of a listing: escaped, with a slash behind a folder; and where a link leads.
type Name = (String, Option<String>);

fn names(folder: std::os::fd::OwnedFd) -> io::Result<(Vec<Name>, bool)> {
    let mut names = Vec::new();
    let mut all = true;
    let directory = Dir::read_from(&folder)?;
    for entry in directory {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        if names.len() >= NAMES_MAX {
            all = false;
            break;
        }
        let name = std::os::unix::ffi::OsStrExt::from_bytes(entry.file_name().to_bytes());
        let escaped = name::escape(name);
        let Ok(seen) = crate::node::tree::stat(folder.as_fd(), name) else { continue };
        names.push(match crate::node::tree::kind(&seen) {
            rustix::fs::FileType::Directory => (format!("{escaped}/"), None),
            rustix::fs::FileType::Symlink => {
                let target = rustix::fs::readlinkat(&folder, entry.file_name(), Vec::new());
                let target = target.map(|to| name::escape(std::os::unix::ffi::OsStrExt::from_bytes(to.to_bytes())));
                (escaped, Some(target.unwrap_or_default()))
            }
            _ => (escaped, None),
        });
    }
    names.sort();
    Ok((names, all))
}

fn listing(within: &Path, names: &[Name], all: bool, html: bool) -> Response {
    if !html {
        let mut text: String = names.iter().map(|(name, _)| format!("{name}\n")).collect();
        if !all {
            text.push_str("#more\n");
        }
        return text.into_response();
    }
    let title = format!("/{}", name::escape(within.as_os_str()));
    let rows = names.iter().map(|(name, link)| match link {
        Some(target) => format!("<li>{} → {}</li>", Text(name), Text(target)),
        None => format!("<li><a href=\"{0}\">{0}</a></li>", Text(name)),
    });
    page(&title, &format!("<p><a href=\"?tar\">as tar</a></p><ul>{}</ul>", rows.collect::<String>()), all)
}

fn index<'a>(outputs: impl Iterator<Item = &'a Arc<Output>>, html: bool) -> Response {
    let mut rows: Vec<&Arc<Output>> = outputs.collect();
    rows.sort_by_key(|output| std::cmp::Reverse(output.created_at));
    let all = rows.len() <= NAMES_MAX;
    rows.truncate(NAMES_MAX);
    if !html {
        return rows.iter().map(|output| format!("{}/\n", output.id)).collect::<String>().into_response();
    }
    let row = |output: &&Arc<Output>| {
        let at =
            jiff::Timestamp::from_millisecond(output.created_at.0).map(|at| format!("{at:.0}")).unwrap_or_default();
        let scope = [&output.scope.tenant, &output.scope.project, &output.scope.branch].map(String::as_str).join(" / ");
        format!(
            "<li><a href=\"{0}/\">{0}</a> {1} {2} <code>{3}</code> {at}</li>",
            Text(name::escape(output.id.as_ref())),
            Text(&output.repository),
            Text(scope),
            output.commit.short(),
        )
    };
    page("Outputs", &format!("<ul>{}</ul>", rows.iter().map(row).collect::<String>()), all)
}

fn page(title: &str, body: &str, all: bool) -> Response {
    let more = if all { "" } else { "<p>and more</p>" };
    let title = Text(title);
    let head = format!("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>");
    Html(format!("{head}<body><h1>{title}</h1>{body}{more}</body></html>\n")).into_response()
}

fn content_type(within: &Path) -> &'static str {
    let known = within.extension().and_then(|word| word.to_str()).is_some_and(|word| TEXT.contains(&word));
    if known { "text/plain; charset=utf-8" } else { "application/octet-stream" }
}

/// A file, or the part of it that was asked for; read as fast as the client takes it.
fn file_response(
    face: &Face,
    asked: &Asked,
    within: &Path,
    (file, length): (std::fs::File, u64),
    place: OwnedSemaphorePermit,
) -> Response {
    let range = match range::of(asked.headers.get(header::RANGE), length) {
        Ok(range) => range,
        Err(()) => {
            let of = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, of, "the file is shorter\n").into_response();
        }
    };
    let Range { first, bytes } = range.unwrap_or(Range { first: 0, bytes: length });
    let mut response = match asked.head {
        true => Response::new(Body::empty()),
        false => Response::new(Body::from_stream(parts(face, file, first, bytes, place))),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(within)));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if range.is_some() {
        let told = format!("bytes {first}-{}/{length}", first.saturating_add(bytes).saturating_sub(1));
        if let Ok(told) = HeaderValue::from_str(&told) {
            headers.insert(header::CONTENT_RANGE, told);
        }
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

fn parts(
    face: &Face,
    file: std::fs::File,
    first: u64,
    bytes: u64,
    place: OwnedSemaphorePermit,
) -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (is_ready, cancel) = (face.rooms.workspaces.outputs().is_ready(), face.rooms.cancel.clone());
    let state = (Arc::new(file), first, bytes, is_ready);
    stream::unfold(Some((state, place, cancel)), async |state| {
        let ((file, at, left, is_ready), place, cancel) = state?;
        if left == 0 {
            return None;
        }
        // What is open on a pool keeps it from being unmounted.
        if cancel.is_cancelled() || !is_ready() {
            return Some((Err(io::Error::other("the pool is being let go of")), None));
        }
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(PART_BYTES);
        let reader = Arc::clone(&file);
        let read = move || {
            let mut part = vec![0; want];
            let got = std::os::unix::fs::FileExt::read_at(&*reader, &mut part, at)?;
            part.truncate(got);
            Ok(part)
        };
        match tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            // Whoever still writes to it cut it: an answer that breaks is better than one that looks whole.
            Ok(part) if part.is_empty() => Some((Err(io::ErrorKind::UnexpectedEof.into()), None)),
            Ok(part) => {
                let got = u64::try_from(part.len()).unwrap_or(u64::MAX);
                let next = (file, at.saturating_add(got), left.saturating_sub(got), is_ready);
                Some((Ok(Bytes::from(part)), Some((next, place, cancel))))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}
