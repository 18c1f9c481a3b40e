//! The watch of this node and of its pods, as one published view.
//!
//! The client library lists, watches, resumes after a lost connection and lists again after a `410 Gone`. What is kept
//! of each object is what the core looks at. Changes that come together are published together.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{Config, Error, Event, watcher};
use kube::{Api, Client};
use stoker_core::cluster::{self, Cluster, NodeState, Pods};
use stoker_core::quantity::Timestamp;
use tokio::sync::watch;

use super::convert;
use super::publish::{Known, TAINT};
use super::rights::{Missing, Right};
use crate::config::Configured;
use crate::node::{jittered, now};

/// More pods than these are not looked at: a kubelet takes 110 by default.
const PODS_MAX: usize = 8192;
/// A watch is asked for so long, and begun anew: what died without a word is noticed then at the latest.
const WATCH_SECONDS: u32 = 60;
/// Between two attempts, from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(8));
/// Nothing wrong for so long after an error: the watch is well again, though nothing may have changed since.
const WELL_AFTER: Duration = Duration::from_secs(12);
/// An API server that has just begun lets nobody in until it has read all roles. Who is refused for longer lacks the right.
const DENIED_AFTER: Duration = Duration::from_secs(15);
/// Changes that come within it are told together.
const TOGETHER: Duration = Duration::from_millis(20);
/// So many at most before they are told.
const BATCH: usize = 512;
/// What the heartbeat says of the API server.
pub(super) type Reached = watch::Receiver<Result<(), String>>;

/// Doubles from [`BACKOFF`]'s first to its last, give or take a fifth.
pub(crate) struct Growing {
    delay: Duration,
    asked: Option<Instant>,
}

impl Growing {
    pub(crate) const fn new() -> Self {
        Self { delay: BACKOFF.0, asked: None }
    }
}

impl Iterator for Growing {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let delay = self.delay;
        (self.delay, self.asked) = ((delay * 2).min(BACKOFF.1), Some(Instant::now()));
        Some(jittered(delay))
    }
}

impl Backoff for Growing {
    /// Each attempt begins with a word that is no error: only a while without one is success.
    fn reset(&mut self) {
        if self.asked.is_some_and(|at| at.elapsed() > WELL_AFTER * 2) {
            self.delay = BACKOFF.0;
        }
    }
}

/// Objects by uid, and those of a list that has not come to its end.
struct Seen<T> {
    all: Option<BTreeMap<String, Arc<T>>>,
    listed: BTreeMap<String, Arc<T>>,
    /// The last error, and when.
    failed: Option<(Instant, String)>,
    /// Since when the API server says that we may not look.
    refused: Option<Instant>,
    /// It has said so for a while.
    denied: bool,
    /// It was away: what changed meanwhile was not told yet.
    behind: bool,
    /// A watch that may go on tells what changes from then on: what is there has to be listed.
    unlisted: bool,
}

impl<T> Seen<T> {
    const fn new() -> Self {
        Self {
            all: None,
            listed: BTreeMap::new(),
            failed: None,
            refused: None,
            denied: false,
            behind: false,
            unlisted: false,
        }
    }

    /// True where something may have changed.
    fn take<K>(&mut self, event: Result<Event<K>, Error>, of: impl Fn(&K) -> Option<(String, T)>) -> bool {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let words = words(&error);
                tracing::debug!(error = %words, "a watch of the API server");
                match is_denied(&error) {
                    true => self.refused = self.refused.or_else(|| Some(Instant::now())),
                    false => (self.refused, self.denied) = (None, false),
                }
                // A watch that is let in again goes on from where it was.
                self.unlisted |= self.refused.is_some();
                self.failed = Some((Instant::now(), words));
                return true;
            }
        };
        // A list that is begun has told nothing yet.
        if !matches!(event, Event::Init) {
            (self.failed, self.refused, self.denied) = (None, None, false);
        }
        let add = |all: &mut BTreeMap<String, Arc<T>>, object: &K| {
            if let Some((uid, one)) = of(object)
                && (all.len() < PODS_MAX || all.contains_key(&uid))
            {
                all.insert(uid, Arc::new(one));
            }
        };
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                add(&mut self.listed, &object);
                return false;
            }
            Event::InitDone => {
                self.all = Some(std::mem::take(&mut self.listed));
                (self.behind, self.unlisted) = (false, false);
            }
            Event::Apply(object) => add(self.all.get_or_insert_default(), &object),
            Event::Delete(object) => {
                if let (Some((uid, _)), Some(all)) = (of(&object), &mut self.all) {
                    all.remove(&uid);
                }
            }
        }
        true
    }

    /// Takes a refusal that lasts for the lack of a right: what was seen before is not what is. True where that is new.
    fn deny_where_due(&mut self) -> bool {
        let lasts = self.refused.is_some_and(|since| since.elapsed() >= DENIED_AFTER);
        let is_new = lasts && !self.denied;
        if is_new {
            (self.denied, self.all) = (true, None);
        }
        is_new
    }

    fn trouble(&self) -> Option<&str> {
        if self.denied {
            return None;
        }
        let failed = self.failed.as_ref().filter(|(at, _)| at.elapsed() < WELL_AFTER).map(|(_, words)| words.as_str());
        failed.or_else(|| self.behind.then_some("what changed while it was away is asked for"))
    }
}

/// Who may not list or watch is told so at the beginning of either.
fn is_denied(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(kube::Error::Api(status)) | Error::WatchStartFailed(kube::Error::Api(status)) => {
            status.code == 403
        }
        _ => false,
    }
}

/// The innermost sentence says what is wrong.
pub(crate) fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let mut words = deepest.to_string();
    if words.len() > 300 {
        words.truncate(words.floor_char_boundary(300));
    }
    words
}

type Events<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, Error>> + Send>>;

/// Objects that a field selects, as their watch tells of them.
struct Watched<K, T> {
    api: Api<K>,
    fields: String,
    events: Events<K>,
    begun: Instant,
    seen: Seen<T>,
}

impl<K, T> Watched<K, T>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    fn new(api: Api<K>, fields: String) -> Self {
        Self { events: Self::events(&api, &fields), api, fields, begun: Instant::now(), seen: Seen::new() }
    }

    fn events(api: &Api<K>, fields: &str) -> Events<K> {
        // Any version that the server has at hand, as kubelets ask: the newest would be read from the disk of etcd, with
        // all pods of the cluster, for each node.
        // With pages the library would ask for the newest all the same.
        let mut config = Config::default().fields(fields).timeout(WATCH_SECONDS).any_semantic();
        config.page_size = None;
        Box::pin(watcher(api.clone(), config).backoff(Growing::new()))
    }

    /// Lists what is there, and follows from there on.
    fn begin_anew(&mut self) {
        (self.events, self.begun) = (Self::events(&self.api, &self.fields), Instant::now());
        self.seen.behind = true;
    }

    /// Lists anew where the watch alone would never tell what is there.
    fn list_where_due(&mut self) {
        if self.seen.unlisted && self.begun.elapsed() > BACKOFF.1 {
            self.begin_anew();
        }
    }

    /// What came meanwhile; true where something may have changed.
    fn take_more(&mut self, of: impl Fn(&K) -> Option<(String, T)>) -> bool {
        let mut changed = false;
        for _ in 0..BATCH {
            let Some(Some(event)) = self.events.next().now_or_never() else { break };
            changed |= self.seen.take(event, &of);
        }
        changed
    }
}

/// Publishes until the sender's receivers are gone, or the task is dropped.
pub(super) async fn follow(
    client: Client,
    node: String,
    config: Configured,
    mut reached: Reached,
    missing: Missing,
    (view, known): (watch::Sender<Arc<Cluster>>, watch::Sender<Known>),
) {
    let mut pods = Watched::new(Api::<Pod>::all(client.clone()), format!("spec.nodeName={node}"));
    let mut nodes = Watched::new(Api::<Node>::all(client), format!("metadata.name={node}"));
    let mut was_reached = true;
    let mut away_since: Option<(Timestamp, Instant)> = None;
    let mut published: Option<Arc<Pods>> = None;
    let of_pod = |pod: &Pod| convert::pod(pod).map(|pod| (pod.uid.clone(), pod));
    let of_node = |node: &Node| Some((String::new(), convert::node(node)));
    loop {
        let mut changed = false;
        tokio::select! {
            Some(event) = pods.events.next() => changed |= pods.seen.take(event, of_pod),
            Some(event) = nodes.events.next() => { nodes.seen.take(event, of_node); }
            answer = reached.changed() => if answer.is_err() { return },
            // Time alone makes what is known too old.
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        tokio::time::sleep(TOGETHER).await;
        changed |= pods.take_more(of_pod);
        nodes.take_more(of_node);
        let unreached = reached.borrow_and_update().as_ref().err().cloned();
        // After it was away the watches may be dead, or have slept: what is there is listed anew before it counts.
        if unreached.is_none() && !was_reached {
            pods.begin_anew();
            nodes.begin_anew();
        }
        pods.list_where_due();
        nodes.list_where_due();
        if pods.seen.deny_where_due() {
            tracing::warn!("the agent may not list and watch the pods of its node");
            changed = true;
        }
        if nodes.seen.deny_where_due() {
            tracing::warn!("the agent may not list and watch its node");
        }
        let (pods, nodes) = (&pods.seen, &nodes.seen);
        was_reached = unreached.is_none();
        let trouble = unreached.or_else(|| pods.trouble().or_else(|| nodes.trouble()).map(str::to_owned));
        match (&trouble, away_since) {
            (None, _) => away_since = None,
            (Some(words), None) => {
                tracing::warn!(error = words, "the API server does not answer");
                away_since = Some((now(), Instant::now()));
            }
            (Some(_), Some(_)) => {}
        }
        if changed {
            published = pods.all.as_ref().map(|all| Arc::new(Pods::new(all.clone())));
        }
        missing.note(Right::WatchNode, nodes.denied);
        missing.note(Right::WatchPods, pods.denied);
        let away_after = config.borrow().kubernetes.away_after;
        let cluster = Cluster {
            asked: true,
            node: match nodes.all.as_ref().map(|all| all.values().next()) {
                None => NodeState::Unknown,
                Some(None) => NodeState::Gone,
                Some(Some(node)) => NodeState::Here(cluster::Node::clone(node)),
            },
            pods: published.clone(),
            node_denied: nodes.denied,
            pods_denied: pods.denied,
            away_since: away_since.map(|(at, _)| at),
            stale: away_since.is_some_and(|(_, since)| since.elapsed() >= away_after),
            trouble: trouble.unwrap_or_default(),
        };
        let of_node = match &cluster.node {
            // Before the first word on pods the gate is shut for want of it, which is nobody's affair.
            NodeState::Here(node) if published.is_some() || pods.denied => {
                Known { uid: node.uid.clone(), tainted: node.taints.iter().any(|taint| taint.key == TAINT) }
            }
            NodeState::Here(_) | NodeState::Unknown | NodeState::Gone => Known::default(),
        };
        known.send_if_modified(|before| {
            let differs = *before != of_node;
            *before = of_node;
            differs
        });
        view.send_if_modified(|before| {
            let differs = **before != cluster;
            if differs {
                *before = Arc::new(cluster);
            }
            differs
        });
        if view.is_closed() {
            return;
        }
    }
}
