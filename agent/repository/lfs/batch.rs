//! The messages of the batch API (git-lfs, docs/api/batch.md). What a server answers is judged here, whatever it is.

use std::collections::BTreeMap;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use stoker_core::reason::{Code, Reason};

use super::endpoint::Policy;
use super::pointer::{LfsOid, Pointer};

/// How many objects one request names.
pub(super) const OBJECTS_MAX: usize = 100;
/// Of an answer; signed addresses have some thousand bytes each.
pub(super) const ANSWER_BYTES_MAX: usize = 4 << 20;
pub(super) const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";
/// How many headers an action may ask for.
const HEADERS_MAX: usize = 32;
/// Of a server's own words.
const WORDS_CHARS_MAX: usize = 200;
/// What frames a request, and is not the server's to choose.
const OURS: [&str; 9] =
    ["connection", "content-length", "expect", "host", "range", "te", "trailer", "transfer-encoding", "upgrade"];

#[derive(Serialize)]
struct Request<'a> {
    operation: &'a str,
    transfers: [&'a str; 1],
    objects: Vec<Asked>,
    hash_algo: &'a str,
}

#[derive(Serialize)]
struct Asked {
    oid: LfsOid,
    size: u64,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    transfer: Option<String>,
    #[serde(default)]
    hash_algo: Option<String>,
    #[serde(default)]
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    #[serde(default)]
    size: Option<i64>,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Actions {
    #[serde(default)]
    download: Option<Wire>,
}

#[derive(Deserialize)]
struct Wire {
    href: String,
    #[serde(default)]
    header: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

/// What the error of an answer says.
#[derive(Deserialize)]
struct Words {
    #[serde(default)]
    message: String,
}

/// How an object is had. It is not to be shown: address and headers are credentials.
pub(super) struct Action {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
}

/// What asks for these.
pub(super) fn request(pointers: &[Pointer]) -> Result<Vec<u8>, serde_json::Error> {
    let objects = pointers.iter().map(|pointer| Asked { oid: pointer.oid, size: pointer.bytes }).collect();
    serde_json::to_vec(&Request { operation: "download", transfers: ["basic"], objects, hash_algo: "sha256" })
}

/// The action for each of these, or why there is none.
///
/// # Errors
/// When the whole answer is none.
pub(super) fn read(
    body: &[u8],
    pointers: &[Pointer],
    policy: &Policy,
) -> Result<BTreeMap<Pointer, Result<Action, Reason>>, Reason> {
    let odd = |what: String| {
        let message = format!("the LFS server of {} answered with {what}", policy.url());
        Reason::new(Code::UpstreamUnreachable, policy.url().key(), message)
    };
    let answer: Answer = serde_json::from_slice(body).map_err(|_| odd("something that is no answer".to_owned()))?;
    if let Some(transfer) = answer.transfer.filter(|transfer| transfer != "basic") {
        return Err(odd(format!("the transfer {:?}, which nobody asked for", brief(&transfer))));
    }
    if let Some(name) = answer.hash_algo.filter(|name| name != "sha256") {
        return Err(odd(format!("objects that are named by {:?}", brief(&name))));
    }
    let mut objects: BTreeMap<LfsOid, Object> = BTreeMap::new();
    for object in answer.objects {
        // What nobody asked for is not looked at.
        if let Some(oid) = LfsOid::parse(&object.oid) {
            objects.entry(oid).or_insert(object);
        }
    }
    let judged = pointers.iter().map(|pointer| {
        let object = objects.remove(&pointer.oid);
        (*pointer, judge(object, *pointer, policy))
    });
    Ok(judged.collect())
}

fn judge(object: Option<Object>, pointer: Pointer, policy: &Policy) -> Result<Action, Reason> {
    let oid = pointer.oid;
    let Some(object) = object else { return Err(missing(oid, "its LFS server says nothing of it")) };
    if let Some(fault) = object.error {
        let words = brief(&fault.message);
        return Err(match fault.code {
            404 | 410 => missing(oid, &format!("its LFS server does not have it ({words})")),
            code => missing(oid, &format!("its LFS server does not give it: {words} ({code})")),
        });
    }
    if object.size.is_some_and(|size| u64::try_from(size) != Ok(pointer.bytes)) {
        let size = object.size.unwrap_or_default();
        let message = format!("its LFS server has {size} bytes of it, its pointer says {}", pointer.bytes);
        return Err(Reason::new(Code::LfsObjectCorrupt, oid.to_string(), message));
    }
    let action = object.actions.and_then(|actions| actions.download);
    let action = action.ok_or_else(|| missing(oid, "its LFS server says not how to get it"))?;
    let uri = policy.judge(&action.href, "the address of a large file")?;
    let headers = headers(action.header.unwrap_or_default());
    let headers = headers.ok_or_else(|| missing(oid, "its LFS server asks for headers that are none"))?;
    Ok(Action { uri, headers })
}

/// The reason for an object that is not to be had.
pub(super) fn missing(oid: LfsOid, why: &str) -> Reason {
    Reason::new(Code::LfsObjectMissing, oid.to_string(), why)
}

fn headers(wire: BTreeMap<String, String>) -> Option<HeaderMap> {
    if wire.len() > HEADERS_MAX {
        return None;
    }
    let mut headers = HeaderMap::new();
    for (name, value) in wire {
        let name: HeaderName = name.parse().ok()?;
        let mut value: HeaderValue = value.parse().ok()?;
        value.set_sensitive(true);
        if !OURS.contains(&name.as_str()) {
            headers.append(name, value);
        }
    }
    Some(headers)
}

/// What a status means for all that was asked. Nothing: it may be better soon.
pub(super) fn refused(status: StatusCode, body: &[u8], policy: &Policy) -> Option<Reason> {
    let key = policy.url().key();
    let words = serde_json::from_slice(body).map_or_else(|_| String::new(), |words: Words| brief(&words.message));
    let hint = match policy.url().protocol() {
        stoker_core::source::Protocol::Ssh => {
            "; over ssh git-lfs would ask for credentials first, which is not supported: name the repository by HTTPS"
        }
        _ => "",
    };
    let what = |why: &str| format!("the LFS server of {} {why} ({status}) {words}{hint}", policy.url());
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => None,
        _ if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => None,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Some(Reason::new(Code::UpstreamUnauthorized, key, what("does not let us in")))
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            Some(Reason::new(Code::UpstreamNotFound, key, what("is not there")))
        }
        _ => Some(Reason::new(Code::UpstreamUnreachable, key, what("does not take the question"))),
    }
}

/// A server's words, for people: no control characters, and not many.
pub(super) fn brief(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(WORDS_CHARS_MAX).collect()
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
