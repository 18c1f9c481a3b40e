//! Lists and watches.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::Shared;
use super::answer::{Target, object};
use super::store::{Change, text};

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

pub(super) fn list(shared: &Shared, target: &Target, asked: &BTreeMap<String, String>) -> Response {
    shared.lists.lock().unwrap().push(asked.get("resourceVersion").cloned().unwrap_or_default());
    let store = shared.store();
    // Of a list in parts nothing is left out, whatever goes meanwhile: each begins after the last one's name, and what
    // changed since the first is told to who watches from its version.
    let begun = asked.get("continue").and_then(|token| {
        let mut parts = token.splitn(3, '/');
        Some((parts.next()?.to_owned(), (parts.next()?.to_owned(), parts.next()?.to_owned())))
    });
    let (version, after) = begun.map_or((store.version.to_string(), None), |(version, after)| (version, Some(after)));
    let limit: usize =
        asked.get("limit").and_then(|limit| limit.parse().ok()).filter(|max| *max > 0).unwrap_or(usize::MAX);
    let mut all = store.objects.iter().filter(|((of, namespace, name), object)| {
        *of == target.resource
            && (target.namespace.is_empty() || *namespace == target.namespace)
            && after.as_ref().is_none_or(|(last, of_it)| (namespace, name) > (last, of_it))
            && matches(asked.get("fieldSelector"), object)
    });
    let page: Vec<_> = all.by_ref().take(limit).collect();
    let mut metadata = json!({"resourceVersion": version});
    if let (Some(((_, namespace, name), _)), true) = (page.last(), all.next().is_some()) {
        metadata["continue"] = json!(format!("{version}/{namespace}/{name}"));
    }
    let page: Vec<&Value> = page.into_iter().map(|(_, object)| object).collect();
    let (version, kind) = kind_of(&target.resource);
    object(200, &json!({"apiVersion": version, "kind": format!("{kind}List"), "metadata": metadata, "items": page}))
}

/// A line for each change since the version that was asked for, with a bookmark from time to time.
pub(super) fn follow(shared: Arc<Shared>, target: Target, asked: &BTreeMap<String, String>) -> Response {
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
                let of = |object: &Value| {
                    target.namespace.is_empty() || text(object, "/metadata/namespace") == target.namespace
                };
                let new = store.since(seen);
                let new = new.filter(|change| change.resource == target.resource && of(&change.object));
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
