//! An LFS server (git-lfs, docs/api): the batch API with the `basic` transfer, for every repository of an upstream, and
//! what can be wrong with one.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::cgi::Body;

/// What the server gives with each address, and wants to see again. Nobody else may.
pub(crate) const TOKEN: &str = "planted-token-5ad1c3";
/// Where objects are.
const OBJECTS: &str = "/lfs-objects/";
const MOVED: &str = "/lfs-moved/";

/// What was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LargeCounts {
    /// Of the batch API.
    pub(crate) batches: usize,
    /// Objects.
    pub(crate) objects: usize,
}

/// What is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum LargeFault {
    /// Nothing.
    #[default]
    None,
    /// Objects of the right length and other content.
    WrongBytes,
    /// Objects with one byte more.
    LongBytes,
    /// The batch API tells another size.
    WrongSize,
    /// Objects end in the middle.
    Truncated,
    /// Objects are not found.
    Gone,
    /// The batch API does not know them.
    Unknown,
    /// So many requests for objects fail, then all is well.
    FailFirst(usize),
    /// Objects get no answer while this is so.
    Hang,
    /// The batch API answers by this status.
    Status(u16),
    /// Addresses are these.
    Href(String),
    /// Objects are elsewhere, once.
    Moved,
}

/// The objects of an upstream.
pub(crate) struct LargeFiles {
    objects: Mutex<BTreeMap<String, Bytes>>,
    counts: Mutex<LargeCounts>,
    fault: watch::Sender<LargeFault>,
}

impl Default for LargeFiles {
    fn default() -> Self {
        Self { objects: Mutex::default(), counts: Mutex::default(), fault: watch::Sender::new(LargeFault::None) }
    }
}

impl LargeFiles {
    /// Keeps an object and gives its pointer.
    pub(crate) fn put(&self, content: &[u8]) -> String {
        let oid = oid(content);
        self.objects.lock().unwrap().insert(oid, Bytes::copy_from_slice(content));
        pointer(content)
    }

    pub(crate) fn counts(&self) -> LargeCounts {
        *self.counts.lock().unwrap()
    }

    pub(crate) fn reset(&self) {
        *self.counts.lock().unwrap() = LargeCounts::default();
    }

    /// Has this fault from now on.
    pub(crate) fn fault(&self, fault: LargeFault) {
        self.fault.send_replace(fault);
    }

    pub(crate) fn is_for(path: &str) -> bool {
        path.ends_with("/objects/batch") || path.starts_with(OBJECTS) || path.starts_with(MOVED)
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let path = request.uri().path().to_owned();
        if let Some(oid) = path.strip_prefix(MOVED) {
            let mut response = plain(StatusCode::TEMPORARY_REDIRECT, Bytes::new());
            response.headers_mut().insert(LOCATION, HeaderValue::from_str(&format!("{OBJECTS}{oid}")).unwrap());
            return Ok(response);
        }
        match path.strip_prefix(OBJECTS) {
            Some(oid) => self.object(oid, &request).await,
            None => self.batch(request).await,
        }
    }

    async fn batch(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        self.counts.lock().unwrap().batches += 1;
        let host = request.headers()[HOST].to_str().unwrap().to_owned();
        let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        let asked: Value = serde_json::from_slice(&body)?;
        assert_eq!(asked["operation"], "download");
        let fault = self.fault.borrow().clone();
        if let LargeFault::Status(code) = fault {
            let words = json!({"message": "as asked"}).to_string();
            return Ok(plain(StatusCode::from_u16(code).unwrap(), words.into()));
        }
        let objects = asked["objects"].as_array().unwrap().iter();
        let answers: Vec<_> = objects.map(|object| self.action(&host, &fault, object)).collect();
        let answer = json!({"transfer": "basic", "objects": answers}).to_string();
        let mut response = plain(StatusCode::OK, answer.into());
        let kind = HeaderValue::from_static("application/vnd.git-lfs+json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }

    fn action(&self, host: &str, fault: &LargeFault, object: &Value) -> Value {
        let oid = object["oid"].as_str().unwrap();
        let Some(size) = self.objects.lock().unwrap().get(oid).map(Bytes::len) else {
            return json!({"oid": oid, "size": object["size"], "error": {"code": 404, "message": "Object does not exist"}});
        };
        if *fault == LargeFault::Unknown {
            return json!({"oid": oid, "size": size, "error": {"code": 404, "message": "Object does not exist"}});
        }
        let href = match fault {
            LargeFault::Href(href) => href.clone(),
            LargeFault::Moved => format!("http://{host}{MOVED}{oid}"),
            _ => format!("http://{host}{OBJECTS}{oid}"),
        };
        let size = if *fault == LargeFault::WrongSize { size + 1 } else { size };
        let download = json!({"href": href, "header": {"X-Token": TOKEN}});
        json!({"oid": oid, "size": size, "authenticated": true, "actions": {"download": download}})
    }

    async fn object(&self, oid: &str, request: &Request<Incoming>) -> io::Result<Response<Body>> {
        let number = {
            let mut counts = self.counts.lock().unwrap();
            counts.objects += 1;
            counts.objects
        };
        if request.headers().get("x-token").is_none_or(|token| token != TOKEN) {
            return Ok(plain(StatusCode::FORBIDDEN, Bytes::new()));
        }
        let mut seen = self.fault.subscribe();
        let fault = seen.wait_for(|fault| *fault != LargeFault::Hang).await.map_err(io::Error::other)?.clone();
        let Some(content) = self.objects.lock().unwrap().get(oid).cloned() else {
            return Ok(plain(StatusCode::NOT_FOUND, Bytes::new()));
        };
        Ok(match fault {
            LargeFault::Gone => plain(StatusCode::NOT_FOUND, Bytes::new()),
            LargeFault::FailFirst(count) if number <= count => plain(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new()),
            LargeFault::WrongBytes => plain(StatusCode::OK, content.iter().map(|byte| !byte).collect()),
            LargeFault::LongBytes => chunked(vec![Ok(content), Ok(Bytes::from_static(b"x"))]),
            LargeFault::Truncated => {
                let half = content.slice(..content.len() / 2);
                let mut response = chunked(vec![Ok(half), Err(io::Error::other("cut as asked"))]);
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(content.len()));
                response
            }
            _ => plain(StatusCode::OK, content),
        })
    }
}

/// The name of a content.
pub(crate) fn oid(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What stands in a commit for a content.
pub(crate) fn pointer(content: &[u8]) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n", oid(content), content.len())
}

fn plain(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn chunked(parts: Vec<io::Result<Bytes>>) -> Response<Body> {
    Response::new(StreamBody::new(stream::iter(parts.into_iter().map(|part| part.map(Frame::data)))).boxed_unsync())
}
