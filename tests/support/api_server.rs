//! An API server that keeps what it is given, over real HTTP: lists in pages, watches that resume, bookmarks and end,
//! `410 Gone` for what is too old, conflicts, server-side apply, evictions; and, where a test says so, one that throttles,
//! hangs, cuts connections or is not there.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::wait;

/// As many changes are remembered for watches that resume.
const CHANGES_MAX: usize = 20_000;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// As it should.
    Well,
    /// Each request gets this status.
    Status(u16),
    /// No request is answered.
    Hangs,
}

/// What happened to an object.
#[derive(Debug, Clone)]
struct Change {
    version: u64,
    kind: &'static str,
    resource: String,
    object: Value,
}

#[derive(Debug, Default)]
struct Store {
    version: u64,
    /// By resource, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    changes: VecDeque<Change>,
    /// Watches from before this version are told that it is gone.
    forgotten: u64,
    /// What each manager applied to an object last.
    applied: BTreeMap<(String, String, String, String), Value>,
    requests: Vec<(String, String)>,
    refuse_evictions: bool,
    /// Methods and resources that nobody may use.
    forbidden: Vec<(&'static str, &'static str)>,
}

impl Store {
    /// What happened after a version, as far as it is remembered.
    fn since(&self, version: u64) -> impl Iterator<Item = &Change> {
        let from = self.changes.partition_point(|change| change.version <= version);
        self.changes.range(from..)
    }

    /// Remembers a change, and not more than so many.
    fn remember(&mut self, change: Change) {
        self.changes.push_back(change);
        if self.changes.len() > CHANGES_MAX
            && let Some(oldest) = self.changes.pop_front()
        {
            self.forgotten = oldest.version;
        }
    }
}

struct Shared {
    store: Mutex<Store>,
    ticks: watch::Sender<u64>,
    health: watch::Sender<Health>,
    /// Patches that have this in them are held.
    held: watch::Sender<&'static str>,
    /// Ends the watches of now.
    cut: Mutex<CancellationToken>,
    watches: AtomicU64,
    /// Of each list the version that was asked for.
    lists: Mutex<Vec<String>>,
}

/// The server; gone when it is dropped.
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    address: OnceLock<SocketAddr>,
    listening: Mutex<Option<CancellationToken>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl ApiServer {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            ticks: watch::Sender::new(0),
            health: watch::Sender::new(Health::Well),
            held: watch::Sender::new(""),
            cut: Mutex::default(),
            watches: AtomicU64::new(0),
            lists: Mutex::default(),
        });
        let server = Self { shared, address: OnceLock::new(), listening: Mutex::default(), runtime: Some(runtime) };
        server.come_back();
        server
    }

    /// Listens, where it listened before.
    pub(crate) fn come_back(&self) {
        // What was cut may hold the port for a moment.
        let address = self.address.get().copied().unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let bind = || std::net::TcpListener::bind(address).ok();
        let mut listener = None;
        wait::until(Duration::from_secs(20), "the port comes free", || {
            listener = bind();
            listener.is_some()
        });
        let listener = listener.unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address.get_or_init(|| listener.local_addr().unwrap());
        let routes = axum::Router::new().fallback(answer).with_state(Arc::clone(&self.shared));
        let stop = CancellationToken::new();
        *self.listening.lock().unwrap() = Some(stop.clone());
        let runtime = self.runtime.as_ref().unwrap();
        let _entered = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        runtime.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                served = axum::serve(listener, routes) => served.unwrap(),
            }
        });
    }

    /// Nobody listens any more, and what was open is cut.
    pub(crate) fn go_away(&self) {
        if let Some(listening) = self.listening.lock().unwrap().take() {
            listening.cancel();
        }
        // Connections that are kept open get no more answers either.
        self.shared.health.send_replace(Health::Status(503));
        self.cut_watches();
    }

    pub(crate) fn listens(&self) -> bool {
        self.listening.lock().unwrap().is_some()
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.shared.health.send_replace(health);
    }

    /// From now on patches that have these words in them are held; none: what was held goes on.
    pub(crate) fn hold(&self, words: &'static str) {
        self.shared.held.send_replace(words);
    }

    /// Ends all watches of now in the middle.
    pub(crate) fn cut_watches(&self) {
        let cut = std::mem::take(&mut *self.shared.cut.lock().unwrap());
        cut.cancel();
    }

    /// Watches from before now cannot resume.
    pub(crate) fn forget_history(&self) {
        let mut store = self.shared.store();
        store.forgotten = store.version;
        store.changes.clear();
    }

    pub(crate) fn refuse_evictions(&self, refuse: bool) {
        self.shared.store().refuse_evictions = refuse;
    }

    /// Takes rights away: methods and resources.
    pub(crate) fn forbid(&self, all: &[(&'static str, &'static str)]) {
        self.shared.store().forbidden = all.to_vec();
    }

    /// Of each list the version that was asked for.
    pub(crate) fn lists(&self) -> Vec<String> {
        self.shared.lists.lock().unwrap().clone()
    }

    /// How many watches were begun.
    pub(crate) fn watches(&self) -> u64 {
        self.shared.watches.load(Ordering::SeqCst)
    }

    /// Method and path of all that was asked.
    pub(crate) fn requests(&self) -> Vec<(String, String)> {
        self.shared.store().requests.clone()
    }

    /// Keeps an object as it is given, with a new version, and a uid where it has none.
    pub(crate) fn put(&self, resource: &str, object: Value) {
        self.shared.put(resource, object);
    }

    /// Changes an object that is there.
    pub(crate) fn change(&self, resource: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let store = self.shared.store();
        let found = store.objects.get(&key(resource, namespace, name)).cloned();
        let mut object = found.unwrap_or_else(|| panic!("no {resource} {name}"));
        change(&mut object);
        self.shared.put_in(store, resource, object);
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.shared.store().objects.get(&key(resource, namespace, name)).cloned()
    }

    pub(crate) fn all(&self, resource: &str) -> Vec<Value> {
        let store = self.shared.store();
        store.objects.iter().filter(|((of, ..), _)| of == resource).map(|(_, object)| object.clone()).collect()
    }

    /// How far it is, for whoever lives beside it; see [`since`](Self::since).
    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.shared.ticks.subscribe()
    }

    /// What happened to objects of a kind after a version, and the version until which that is all.
    pub(crate) fn since(&self, resource: &str, version: u64) -> (Vec<(&'static str, Value)>, u64) {
        let store = self.shared.store();
        assert!(version >= store.forgotten, "it remembers too little");
        let new = store.since(version).filter(|change| change.resource == resource);
        (new.map(|change| (change.kind, change.object.clone())).collect(), store.version)
    }

    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.shared.delete(resource, namespace, name);
    }

    /// A kubeconfig that leads here.
    pub(crate) fn kubeconfig(&self) -> String {
        kubeconfig(*self.address.get().unwrap())
    }
}

/// A kubeconfig that leads to an address.
pub(crate) fn kubeconfig(address: SocketAddr) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
    .to_string()
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.go_away();
        // Not waited for: a test may drop it within a runtime of its own.
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn key(resource: &str, namespace: &str, name: &str) -> (String, String, String) {
    (resource.to_owned(), namespace.to_owned(), name.to_owned())
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    fn put(&self, resource: &str, object: Value) -> Value {
        self.put_in(self.store(), resource, object)
    }

    /// What was read under the same lock is what is written over.
    fn put_in(&self, mut store: MutexGuard<'_, Store>, resource: &str, mut object: Value) -> Value {
        store.version += 1;
        let version = store.version;
        let at = key(resource, text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
        let before = store.objects.get(&at).cloned();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if text(&object, "/metadata/uid").is_empty() {
            let uid = before
                .as_ref()
                .map_or_else(|| uuid::Uuid::now_v7().to_string(), |old| text(old, "/metadata/uid").to_owned());
            object["metadata"]["uid"] = json!(uid);
        }
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        store.objects.insert(at, object.clone());
        store.remember(Change { version, kind, resource: resource.to_owned(), object: object.clone() });
        drop(store);
        self.ticks.send_replace(version);
        object
    }

    fn delete(&self, resource: &str, namespace: &str, name: &str) -> bool {
        let mut store = self.store();
        let Some(mut object) = store.objects.remove(&key(resource, namespace, name)) else { return false };
        store.version += 1;
        let version = store.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        store.remember(Change { version, kind: "DELETED", resource: resource.to_owned(), object });
        drop(store);
        self.ticks.send_replace(version);
        true
    }
}

/// `/api/v1/...` or `/apis/GROUP/VERSION/...`.
#[derive(Debug, Default)]
struct Target {
    resource: String,
    namespace: String,
    name: String,
    sub: String,
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

fn status(code: u16, reason: &str, message: &str) -> Response {
    let body = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason,
        "message": message});
    let code = StatusCode::from_u16(code).unwrap();
    (code, [("content-type", "application/json")], body.to_string()).into_response()
}

fn object(code: u16, value: &Value) -> Response {
    let code = StatusCode::from_u16(code).unwrap();
    (code, [("content-type", "application/json")], value.to_string()).into_response()
}

async fn answer(
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
        ("DELETE", _) if shared.delete(&target.resource, &target.namespace, &target.name) => object(200, &json!({})),
        ("DELETE", _) => status(404, "NotFound", &target.name),
        _ => status(405, "MethodNotAllowed", method.as_str()),
    }
}

fn kind_of(resource: &str) -> (&'static str, &'static str) {
    match resource {
        "pods" => ("v1", "Pod"),
        "nodes" => ("v1", "Node"),
        "events" => ("events.k8s.io/v1", "Event"),
        "leases" => ("coordination.k8s.io/v1", "Lease"),
        "endpointslices" => ("discovery.k8s.io/v1", "EndpointSlice"),
        _ => ("v1", "Object"),
    }
}

fn matches(selector: Option<&String>, object: &Value) -> bool {
    selector.into_iter().flat_map(|all| all.split(',')).filter(|one| !one.is_empty()).all(|one| {
        let (path, wanted) = one.split_once('=').unwrap();
        text(object, &format!("/{}", path.replace('.', "/"))) == wanted
    })
}

fn list(shared: &Shared, target: &Target, asked: &BTreeMap<String, String>) -> Response {
    shared.lists.lock().unwrap().push(asked.get("resourceVersion").cloned().unwrap_or_default());
    let store = shared.store();
    let all: Vec<&Value> = store
        .objects
        .iter()
        .filter(|((of, namespace, _), object)| {
            *of == target.resource
                && (target.namespace.is_empty() || *namespace == target.namespace)
                && matches(asked.get("fieldSelector"), object)
        })
        .map(|(_, object)| object)
        .collect();
    let from: usize = asked.get("continue").and_then(|at| at.parse().ok()).unwrap_or(0);
    let limit: usize =
        asked.get("limit").and_then(|limit| limit.parse().ok()).filter(|max| *max > 0).unwrap_or(usize::MAX);
    let page: Vec<&Value> = all.iter().skip(from).take(limit).copied().collect();
    let mut metadata = json!({"resourceVersion": store.version.to_string()});
    let next = from.saturating_add(page.len());
    if next < all.len() {
        metadata["continue"] = json!(next.to_string());
    }
    let (version, kind) = kind_of(&target.resource);
    object(200, &json!({"apiVersion": version, "kind": format!("{kind}List"), "metadata": metadata, "items": page}))
}

/// A line for each change since the version that was asked for, with a bookmark from time to time.
fn follow(shared: Arc<Shared>, target: Target, asked: &BTreeMap<String, String>) -> Response {
    shared.watches.fetch_add(1, Ordering::SeqCst);
    let since: u64 = asked.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let ends = Duration::from_secs(asked.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(60));
    let (selector, bookmarks) = (asked.get("fieldSelector").cloned(), asked.contains_key("allowWatchBookmarks"));
    let cut = shared.cut.lock().unwrap().clone();
    let (lines, out) = tokio::sync::mpsc::channel::<Result<Bytes, Infallible>>(64);
    tokio::spawn(async move {
        let line =
            |kind: &str, object: &Value| Ok(Bytes::from(format!("{}\n", json!({"type": kind, "object": object}))));
        let mut ticks = shared.ticks.subscribe();
        let ended = tokio::time::sleep(ends);
        tokio::pin!(ended);
        let mut seen = since;
        loop {
            let (changes, gone, version) = {
                let store = shared.store();
                let new = store.since(seen).filter(|change| change.resource == target.resource);
                // What is selected no more is told as deleted.
                let was_selected = |change: &Change| {
                    let uid = text(&change.object, "/metadata/uid");
                    let mut before = store.changes.iter().rev().filter(|old| old.version < change.version);
                    let before = before.find(|old| text(&old.object, "/metadata/uid") == uid);
                    change.kind == "MODIFIED" && before.is_some_and(|old| matches(selector.as_ref(), &old.object))
                };
                let left = |change: &Change| Change { kind: "DELETED", ..change.clone() };
                let new = new.filter_map(|change| match matches(selector.as_ref(), &change.object) {
                    true => Some(change.clone()),
                    false => was_selected(change).then(|| left(change)),
                });
                (new.collect::<Vec<_>>(), seen < store.forgotten, store.version)
            };
            if gone {
                let object = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 410,
                    "reason": "Expired", "message": "too old resource version"});
                let _ = lines.send(line("ERROR", &object)).await;
                return;
            }
            for change in &changes {
                if lines.send(line(change.kind, &change.object)).await.is_err() {
                    return;
                }
            }
            let (api, kind) = kind_of(&target.resource);
            if bookmarks && version > seen && changes.is_empty() {
                let mark =
                    json!({"apiVersion": api, "kind": kind, "metadata": {"resourceVersion": version.to_string()}});
                if lines.send(line("BOOKMARK", &mark)).await.is_err() {
                    return;
                }
            }
            seen = version;
            tokio::select! {
                () = cut.cancelled() => return,
                () = &mut ended => return,
                () = lines.closed() => return,
                changed = ticks.changed() => if changed.is_err() { return },
            }
        }
    });
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(out));
    ([("content-type", "application/json")], body).into_response()
}

fn create(shared: &Shared, target: &Target, body: &Bytes) -> Response {
    let mut new: Value = serde_json::from_slice(body).unwrap();
    if !target.namespace.is_empty() {
        new["metadata"]["namespace"] = json!(target.namespace);
    }
    let at = key(&target.resource, &target.namespace, text(&new, "/metadata/name"));
    let store = shared.store();
    if store.objects.contains_key(&at) {
        return status(409, "AlreadyExists", "it is there");
    }
    object(201, &shared.put_in(store, &target.resource, new))
}

/// An update with a version that is not the newest is a conflict.
fn replace(shared: &Shared, target: &Target, body: &Bytes) -> Response {
    let new: Value = serde_json::from_slice(body).unwrap();
    let at = key(&target.resource, &target.namespace, &target.name);
    let store = shared.store();
    let Some(old) = store.objects.get(&at) else { return status(404, "NotFound", &target.name) };
    let (has, is) = (text(&new, "/metadata/resourceVersion"), text(old, "/metadata/resourceVersion"));
    if !has.is_empty() && has != is {
        return status(
            409,
            "Conflict",
            "the object has been modified; please apply your changes to the latest version",
        );
    }
    object(200, &shared.put_in(store, &target.resource, new))
}

fn evict(shared: &Shared, target: &Target, body: &Bytes) -> Response {
    if shared.store().refuse_evictions {
        return status(429, "TooManyRequests", "Cannot evict pod as it would violate the pod's disruption budget.");
    }
    let wanted: Value = serde_json::from_slice(body).unwrap();
    let Some(pod) = shared.store().objects.get(&key("pods", &target.namespace, &target.name)).cloned() else {
        return status(404, "NotFound", &target.name);
    };
    let uid = text(&wanted, "/deleteOptions/preconditions/uid");
    if !uid.is_empty() && uid != text(&pod, "/metadata/uid") {
        return status(409, "Conflict", "the UID in the precondition does not match the UID in record");
    }
    let mut pod = pod;
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    shared.put("pods", pod);
    object(201, &json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
}

fn patch(
    shared: &Shared,
    target: &Target,
    asked: &BTreeMap<String, String>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Response {
    let new: Value = serde_json::from_slice(body).unwrap();
    let kind = headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
    let at = key(&target.resource, &target.namespace, &target.name);
    let mut store = shared.store();
    let old = store.objects.get(&at).cloned();
    let apply = kind.starts_with("application/apply-patch");
    let Some(mut merged) = old.clone().or_else(|| apply.then(|| json!({}))) else {
        return status(404, "NotFound", &target.name);
    };
    let wanted = text(&new, "/metadata/resourceVersion");
    if !wanted.is_empty() && old.as_ref().is_some_and(|old| text(old, "/metadata/resourceVersion") != wanted) {
        return status(409, "Conflict", "the object has been modified");
    }
    if apply {
        let manager = asked.get("fieldManager").cloned().unwrap_or_default();
        let of = (at.0.clone(), at.1.clone(), at.2.clone(), manager);
        let before = store.applied.insert(of, new.clone());
        if let Some(before) = before {
            withdraw(&mut merged, &before, &new);
        }
    }
    merge(&mut merged, &new, !kind.starts_with("application/merge-patch"));
    object(200, &shared.put_in(store, &target.resource, merged))
}

/// Takes away what a manager had applied and applies no more.
fn withdraw(object: &mut Value, before: &Value, now: &Value) {
    let (Value::Object(all), Value::Object(before)) = (object, before) else { return };
    for (name, old) in before {
        match now.get(name) {
            None => drop(all.remove(name)),
            Some(now) => {
                if let Some(inner) = all.get_mut(name) {
                    withdraw(inner, old, now);
                }
            }
        }
    }
}

/// Maps field by field; conditions by their type, where lists are no single values; null takes away.
fn merge(object: &mut Value, new: &Value, lists_by_key: bool) {
    match (object, new) {
        (Value::Object(all), Value::Object(new)) => {
            for (name, value) in new {
                if value.is_null() {
                    all.remove(name);
                } else {
                    merge(all.entry(name.clone()).or_insert(Value::Null), value, lists_by_key);
                }
            }
        }
        (Value::Array(all), Value::Array(new)) if lists_by_key && new.iter().all(|one| one.get("type").is_some()) => {
            for value in new {
                match all.iter_mut().find(|old| old["type"] == value["type"]) {
                    Some(old) => merge(old, value, lists_by_key),
                    None => all.push(value.clone()),
                }
            }
        }
        (object, new) => *object = new.clone(),
    }
}
