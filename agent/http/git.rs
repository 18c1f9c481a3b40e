//! Git over HTTP: `/git/HOST[:PORT]/PATH`, with or without `.git`, as gitprotocol-http(5) has it. Read-only.
//!
//! Whatever protocol a mirror was declared with, its path is `HOST[:PORT]/PATH`. One that is not here yet is added over
//! https where the configuration allows (over http where that is the only of the two); `/git/http:/HOST/PATH` says http.
//! `/git/or-upstream:/HOST/PATH` is for the environment of builds: what is not served here is redirected to upstream,
//! where the build's own credentials count, so that no build fails for want of a cache.
//!
//! Clients without an identity read from this machine, or from everywhere where the configuration says so, and of the
//! repositories those of the configured trust classes. Callers with a role read those of theirs. What a client may not
//! read looks as if it were not there.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::{StreamExt, stream};
use stoker_core::source::RepositoryUrl;
use tokio::net::TcpStream;

use super::asker::Asker;
use crate::repository::serve::{
    Answer, Body as GitBody, BodyError, Client, IDLE_MAX, OR_UPSTREAM, Refusal, Serve, Version,
};

/// How long a whole request may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(600);
/// When a client that finds no place should come again, in seconds.
const RETRY_AFTER: &str = "5";

/// The paths below `/git/`, for one listener.
pub fn routes(serve: Serve) -> Router {
    Router::new().route("/git/", any(about)).route("/git/{*path}", any(answer)).with_state(serve)
}

/// Cuts clients that read nothing: what was sent stays unacknowledged, or their window stays shut. Called for each
/// connection.
pub fn cut_when_idle(connection: &mut TcpStream) {
    cut_after(connection, IDLE_MAX);
}

fn cut_after(connection: &TcpStream, idle: Duration) {
    let millis = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(connection, millis) {
        tracing::debug!(%error, "a connection without a time-out");
    }
}

async fn about() -> &'static str {
    "git over HTTP, read-only: git clone http://THIS-NODE/git/HOST/PATH\n"
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    /// `HOST[:PORT]/PATH`.
    rest: &'a str,
    scheme: Option<&'static str>,
    or_upstream: bool,
    service: Service,
}

/// What is asked of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// `info/refs`.
    Refs,
    UploadPack,
    ReceivePack,
    /// A file of it, as clients read it that know the dumb protocol only.
    File,
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Self {
        let (mut rest, mut or_upstream, mut scheme) = (path, false, None);
        if let Some(inner) = rest.strip_prefix(OR_UPSTREAM) {
            (rest, or_upstream) = (inner, true);
        }
        for (prefix, word) in [("https:/", "https"), ("http:/", "http")] {
            if let Some(inner) = rest.strip_prefix(prefix) {
                (rest, scheme) = (inner.trim_start_matches('/'), Some(word));
            }
        }
        let services = [
            ("/info/refs", Service::Refs),
            ("/git-upload-pack", Service::UploadPack),
            ("/git-receive-pack", Service::ReceivePack),
        ];
        let found = services.into_iter().find_map(|(suffix, service)| Some((rest.strip_suffix(suffix)?, service)));
        let (rest, service) = found.unwrap_or((rest, Service::File));
        Self { rest, scheme, or_upstream, service }
    }

    /// Where upstream lists its refs.
    fn upstream(&self, service: &str) -> String {
        format!("{}://{}/info/refs?service={service}", self.scheme.unwrap_or("https"), self.rest)
    }
}

/// Upstream, for a request of a build that need not be answered here.
pub(super) fn elsewhere(request: &Request) -> Option<Response> {
    let target = Target::of(request.uri().path().strip_prefix("/git/")?);
    let lists = target.service == Service::Refs && request.method() == Method::GET;
    let writes = request.uri().query().and_then(service_of) == Some("git-receive-pack");
    let service = if writes { "git-receive-pack" } else { "git-upload-pack" };
    (target.or_upstream && lists).then(|| to_upstream(&target.upstream(service)))
}

async fn answer(State(serve): State<Serve>, asker: Asker, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let target = Target::of(path.strip_prefix("/git/").unwrap_or(path));
    let service = parts.uri.query().and_then(service_of);
    let writes = target.service == Service::ReceivePack || service == Some("git-receive-pack");
    let upstream = |service: &str| target.upstream(service);
    let redirect = target.or_upstream && target.service == Service::Refs && parts.method == Method::GET;
    let may_ask = asker.caller.is_some() || asker.is_local || serve.serves_everyone();
    let serve = match asker.caller {
        Some(caller) => serve.reading(move |trust| caller.may_read(trust)),
        None => serve,
    };
    if !may_ask {
        serve.count("forbidden");
        if redirect {
            return to_upstream(&upstream(if writes { "git-receive-pack" } else { "git-upload-pack" }));
        }
        let why = "git is served to clients of this machine only; see repositories.serve.anonymous\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    if writes {
        serve.count("read-only");
        if redirect {
            return to_upstream(&upstream("git-receive-pack"));
        }
        let why = format!("this node's git is read-only: push to https://{}\n", target.rest);
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let scheme = target.scheme.unwrap_or_else(|| serve.scheme());
    let url: RepositoryUrl = match format!("{scheme}://{}", target.rest).parse() {
        Ok(url) => url,
        Err(_) if redirect => return to_upstream(&upstream("git-upload-pack")),
        Err(error) => {
            serve.count("invalid");
            return (StatusCode::BAD_REQUEST, format!("the path {error}\n")).into_response();
        }
    };
    let mut client = match serve.enter() {
        Ok(client) => client,
        Err(_) if redirect => return to_upstream(&upstream("git-upload-pack")),
        Err(refusal) => return refused(&refusal),
    };
    let version = Version::of(parts.headers.get("git-protocol").and_then(|value| value.to_str().ok()));
    let answered = match (target.service, &parts.method) {
        (Service::Refs, &Method::GET) if service == Some("git-upload-pack") => {
            let answered = serve.advertise(&url, version).await;
            answered.map(|answer| (answer, "application/x-git-upload-pack-advertisement"))
        }
        (Service::Refs | Service::File, &Method::GET | &Method::HEAD) => {
            client.ended("invalid");
            let why = "the dumb protocol is not served: use a client that speaks git's smart protocol\n";
            return (StatusCode::FORBIDDEN, why).into_response();
        }
        (Service::UploadPack, &Method::POST) => match receive(&serve, &parts.headers, body).await {
            Ok(body) => {
                let answered = serve.upload_pack(&url, version, body).await;
                answered.map(|answer| (answer, "application/x-git-upload-pack-result"))
            }
            Err(response) => {
                client.ended("invalid");
                return response;
            }
        },
        _ => {
            client.ended("invalid");
            return (StatusCode::METHOD_NOT_ALLOWED, "GET info/refs or POST git-upload-pack\n").into_response();
        }
    };
    match answered {
        Ok((answer, content_type)) => sent(answer, content_type, client),
        Err(refusal) => {
            client.ended(match &refusal {
                Refusal::Unknown(_) => "unknown",
                Refusal::Unavailable(_) => "unavailable",
                Refusal::Full => "full",
                Refusal::Invalid(_) => "invalid",
            });
            if redirect { to_upstream(&upstream("git-upload-pack")) } else { refused(&refusal) }
        }
    }
}

fn service_of(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("service="))
}

fn to_upstream(location: &str) -> Response {
    match HeaderValue::from_str(location) {
        Ok(location) => (StatusCode::FOUND, [(header::LOCATION, location)]).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

fn refused(refusal: &Refusal) -> Response {
    let again = [(header::RETRY_AFTER, RETRY_AFTER)];
    match refusal {
        Refusal::Unknown(reason) => {
            let text = format!("{} [{}]\n", reason.message, reason.code.word());
            (StatusCode::NOT_FOUND, text).into_response()
        }
        Refusal::Unavailable(reason) => {
            let text = format!("{} [{}]\n", reason.message, reason.code.word());
            (StatusCode::SERVICE_UNAVAILABLE, again, text).into_response()
        }
        Refusal::Full => {
            let text = "as many clients are served as may be; try again\n";
            (StatusCode::SERVICE_UNAVAILABLE, again, text).into_response()
        }
        Refusal::Invalid(why) => {
            (StatusCode::BAD_REQUEST, format!("not a request that is served: {why}\n")).into_response()
        }
    }
}

/// The whole body, unpacked; or what is said instead.
async fn receive(serve: &Serve, headers: &HeaderMap, body: Body) -> Result<GitBody, Response> {
    let is = |name: HeaderName, wanted: &str| headers.get(name).is_some_and(|value| value == wanted);
    if !is(header::CONTENT_TYPE, "application/x-git-upload-pack-request") {
        let why = "the content type is not application/x-git-upload-pack-request\n";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why).into_response());
    }
    let gzip = match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => false,
        Some(b"gzip" | b"x-gzip") => true,
        Some(_) => return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send it plain or as gzip\n").into_response()),
    };
    match tokio::time::timeout(BODY_WITHIN, read(serve, gzip, body.into_data_stream())).await {
        Ok(read) => read,
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "the request took too long to arrive\n").into_response()),
    }
}

async fn read(serve: &Serve, gzip: bool, mut parts: BodyDataStream) -> Result<GitBody, Response> {
    let wrong = |error: BodyError| match error {
        BodyError::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "the request is too long\n").into_response(),
        BodyError::Full => refused(&Refusal::Full),
        BodyError::Encoding => (StatusCode::BAD_REQUEST, "the request is not whole gzip\n").into_response(),
    };
    let mut inflow = serve.inflow(gzip);
    loop {
        match tokio::time::timeout(IDLE_MAX, parts.next()).await {
            Ok(Some(Ok(part))) => inflow.push(&part).map_err(wrong)?,
            Ok(None) => return inflow.finish().map_err(wrong),
            Ok(Some(Err(_))) => return Err((StatusCode::BAD_REQUEST, "the request broke off\n").into_response()),
            Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "nothing came for too long\n").into_response()),
        }
    }
}

/// An answer as a response: its headers, then its parts as fast as the client takes them.
fn sent(answer: Answer, content_type: &'static str, client: Client) -> Response {
    let Answer { freshness, stream: answer } = answer;
    let parts = stream::unfold(Some((answer, client)), async |state| {
        let (mut answer, mut client): (_, Client) = state?;
        match answer.next().await {
            Some(Ok(part)) => Some((io::Result::Ok(part), Some((answer, client)))),
            Some(Err(error)) => {
                client.ended("broken");
                Some((Err(io::Error::other(error)), None))
            }
            None => {
                client.ended(answer.outcome());
                None
            }
        }
    });
    let mut response = Response::new(Body::from_stream(parts));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0, must-revalidate"));
    if let Some(freshness) = freshness {
        headers.insert("stoker-cache", HeaderValue::from_static(freshness.word));
        if let Some(age) = freshness.age_seconds {
            headers.insert("stoker-age", HeaderValue::from(age));
        }
        if let Some(reason) = freshness.reason {
            headers.insert("stoker-reason", HeaderValue::from_static(reason.word()));
        }
    }
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn paths_name_repositories_and_services() {
        let target = |rest, scheme, or_upstream, service| Target { rest, scheme, or_upstream, service };
        for (path, expected) in [
            ("github.com/a/b/info/refs", target("github.com/a/b", None, false, Service::Refs)),
            ("github.com/a/b.git/git-upload-pack", target("github.com/a/b.git", None, false, Service::UploadPack)),
            ("h:80/a/git-receive-pack", target("h:80/a", None, false, Service::ReceivePack)),
            ("http:/h/a/info/refs", target("h/a", Some("http"), false, Service::Refs)),
            ("https://h/a/info/refs", target("h/a", Some("https"), false, Service::Refs)),
            ("or-upstream:/h/a/info/refs", target("h/a", None, true, Service::Refs)),
            ("or-upstream:/http://h/a/info/refs", target("h/a", Some("http"), true, Service::Refs)),
            ("h/a/objects/info/packs", target("h/a/objects/info/packs", None, false, Service::File)),
            ("", target("", None, false, Service::File)),
        ] {
            assert_eq!(Target::of(path), expected, "{path}");
        }
    }

    #[tokio::test]
    async fn who_reads_nothing_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut connection, _) = listener.accept().await.unwrap();
        cut_after(&connection, Duration::from_secs(1));
        let writes = async { while connection.write_all(&[0; 1 << 16]).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(30), writes).await.expect("the connection is cut");
        drop(client);
    }
}
