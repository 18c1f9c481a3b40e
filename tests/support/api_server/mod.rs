//! An API server that keeps what it is given, over real HTTP: lists in pages, watches that resume, bookmarks and end,
//! `410 Gone` for what is too old, conflicts, server-side apply, evictions; and, where a test says so, one that throttles,
//! hangs, cuts connections or is not there.
//!
//! [`store`]: what it keeps. [`mod@answer`]: what is asked for. [`read`], [`write`]: the answers.

mod answer;
mod read;
mod rules;
mod store;
mod write;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::wait;
use answer::answer;
use store::{Store, key};

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

    /// Watches from before now cannot resume. Whoever lives beside it remembers.
    pub(crate) fn forget_history(&self) {
        let mut store = self.shared.store();
        store.forgotten = store.version;
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
        assert!(version >= store.lost, "it remembers too little");
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
