//! What is asked for, and who answers it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::read::{follow, list};
use super::store::key;
use super::write::{create, evict, patch, remove, replace};
use super::{Health, Shared};

/// `/api/v1/...` or `/apis/GROUP/VERSION/...`.
#[derive(Debug, Default)]
pub(super) struct Target {
    pub(super) resource: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) sub: String,
}

impl Target {
    fn of(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/');
        match parts.next()? {
            "api" => drop(parts.next()?),
            "apis" => drop((parts.next()?, parts.next()?)),
            _ => return None,
        }
        let mut next = || parts.next().unwrap_or_default().to_owned();
        let first = next();
        let (namespace, resource) = if first == "namespaces" { (next(), next()) } else { (String::new(), first) };
        Some(Self { resource, namespace, name: next(), sub: next() })
    }
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Response {
    let body = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason,
        "message": message});
    let code = StatusCode::from_u16(code).unwrap();
    (code, [("content-type", "application/json")], body.to_string()).into_response()
}

pub(super) fn object(code: u16, value: &Value) -> Response {
    let code = StatusCode::from_u16(code).unwrap();
    (code, [("content-type", "application/json")], value.to_string()).into_response()
}

pub(super) async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    shared.store().requests.push((method.to_string(), uri.path().to_owned()));
    let mut health = shared.health.subscribe();
    loop {
        let now = *health.borrow_and_update();
        match now {
            Health::Well => break,
            Health::Status(429) => {
                let refused = status(429, "TooManyRequests", "try again later");
                return ([("retry-after", "1")], refused).into_response();
            }
            Health::Status(code) => return status(code, "InternalError", "the test says so"),
            Health::Hangs => drop(health.changed().await),
        }
    }
    if method == Method::PATCH {
        let text = String::from_utf8_lossy(&body);
        let _ = shared.held.subscribe().wait_for(|words| words.is_empty() || !text.contains(words)).await;
    }
    let asked: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/")))
        .collect();
    if uri.path() == "/version" {
        return object(
            200,
            &json!({"major": "1", "minor": "34", "gitVersion": "v1.34.0", "gitCommit": "",
            "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}),
        );
    }
    let Some(target) = Target::of(uri.path()) else { return status(404, "NotFound", uri.path()) };
    let is_forbidden =
        shared.store().forbidden.iter().any(|(of, resource)| *of == method.as_str() && *resource == target.resource);
    if is_forbidden {
        return status(403, "Forbidden", &format!("the test does not let the agent {method} {}", target.resource));
    }
    match (method.as_str(), target.sub.as_str()) {
        ("GET", "") if target.name.is_empty() && asked.get("watch").is_some_and(|word| word != "false") => {
            follow(shared, target, &asked)
        }
        ("GET", "") if target.name.is_empty() => list(&shared, &target, &asked),
        ("GET", _) => match shared.store().objects.get(&key(&target.resource, &target.namespace, &target.name)) {
            Some(found) => object(200, found),
            None => status(404, "NotFound", &format!("{} {:?} not found", target.resource, target.name)),
        },
        ("POST", "eviction") => evict(&shared, &target, &body),
        ("POST", _) => create(&shared, &target, &body),
        ("PUT", _) => replace(&shared, &target, &body),
        ("PATCH", _) => patch(&shared, &target, &asked, &headers, &body),
        ("DELETE", _) => remove(&shared, &target, &body),
        _ => status(405, "MethodNotAllowed", method.as_str()),
    }
}
