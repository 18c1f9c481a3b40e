//! What is written: made, put in the place of what was, patched, applied, evicted, deleted.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Value, json};

use super::Shared;
use super::answer::{Target, object, status};
use super::rules;
use super::store::{key, text};

pub(super) fn create(shared: &Shared, target: &Target, body: &Bytes) -> Response {
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
pub(super) fn replace(shared: &Shared, target: &Target, body: &Bytes) -> Response {
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

pub(super) fn evict(shared: &Shared, target: &Target, body: &Bytes) -> Response {
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

pub(super) fn patch(
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
    let refused = old.as_ref().filter(|_| target.resource == "pods").and_then(|old| rules::refused(old, &merged));
    if let Some(why) = refused {
        return status(422, "Invalid", why);
    }
    object(200, &shared.put_in(store, &target.resource, merged))
}

/// Not where it is another than who deletes it means.
pub(super) fn remove(shared: &Shared, target: &Target, body: &Bytes) -> Response {
    let options: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(found) = shared.store().objects.get(&key(&target.resource, &target.namespace, &target.name)).cloned()
    else {
        return status(404, "NotFound", &target.name);
    };
    for part in ["uid", "resourceVersion"] {
        let (wanted, is) = (&options["preconditions"][part], &found["metadata"][part]);
        if !wanted.is_null() && wanted != is {
            return status(409, "Conflict", &format!("the {part} in the precondition does not match"));
        }
    }
    shared.delete(&target.resource, &target.namespace, &target.name);
    object(200, &json!({}))
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
