//! What the server keeps, and what happened to it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::MutexGuard;

use serde_json::{Value, json};

use super::Shared;

/// As many changes are remembered for watches that resume.
const CHANGES_MAX: usize = 20_000;

/// What happened to an object.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) kind: &'static str,
    pub(super) resource: String,
    pub(super) object: Value,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) version: u64,
    /// By resource, namespace and name.
    pub(super) objects: BTreeMap<(String, String, String), Value>,
    pub(super) changes: VecDeque<Change>,
    /// Watches from before this version are told that it is gone.
    pub(super) forgotten: u64,
    /// Until this version nobody remembers what happened.
    pub(super) lost: u64,
    /// What each manager applied to an object last.
    pub(super) applied: BTreeMap<(String, String, String, String), Value>,
    pub(super) requests: Vec<(String, String)>,
    pub(super) refuse_evictions: bool,
    /// Methods and resources that nobody may use.
    pub(super) forbidden: Vec<(&'static str, &'static str)>,
}

impl Store {
    /// What happened after a version, as far as it is remembered.
    pub(super) fn since(&self, version: u64) -> impl Iterator<Item = &Change> {
        let from = self.changes.partition_point(|change| change.version <= version);
        self.changes.range(from..)
    }

    /// Remembers a change, and not more than so many.
    pub(super) fn remember(&mut self, change: Change) {
        self.changes.push_back(change);
        if self.changes.len() > CHANGES_MAX
            && let Some(oldest) = self.changes.pop_front()
        {
            self.lost = oldest.version;
            self.forgotten = self.forgotten.max(oldest.version);
        }
    }
}

pub(super) fn key(resource: &str, namespace: &str, name: &str) -> (String, String, String) {
    (resource.to_owned(), namespace.to_owned(), name.to_owned())
}

pub(super) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

impl Shared {
    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    pub(super) fn put(&self, resource: &str, object: Value) -> Value {
        self.put_in(self.store(), resource, object)
    }

    /// What was read under the same lock is what is written over.
    pub(super) fn put_in(&self, mut store: MutexGuard<'_, Store>, resource: &str, mut object: Value) -> Value {
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

    pub(super) fn delete(&self, resource: &str, namespace: &str, name: &str) -> bool {
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
