//! Events on pods: why they wait, and what became of them. Each time that the reason is another one, and not too many in all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use stoker_core::placement::{Wanted, Why};
use stoker_core::quantity::{Amounts, Resource};
use tokio::sync::mpsc;

use super::elect::within;
use super::pod::Pod;

/// Events that are on their way; more are told later.
const UNSENT_MAX: usize = 256;
/// A pod is told another reason at the earliest after this.
const QUIET_FOR: Duration = Duration::from_secs(10);
/// A cluster keeps events for an hour, where nobody said otherwise: what is so for longer is told again.
const AGAIN_AFTER: Duration = Duration::from_secs(30 * 60);
/// An event's text, by the API's rules, has at most 1024 bytes.
const NOTE_BYTES_MAX: usize = 1000;

/// What is told of a pod.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// In one word.
    pub(super) reason: &'static str,
    pub(super) note: String,
    pub(super) bad: bool,
}

/// What a pod was told.
struct Last {
    reason: &'static str,
    told: Instant,
    /// When that was found to be so still.
    found: Instant,
}

/// Tells each pod a reason once, and again before the cluster forgets it.
pub(super) struct Teller {
    events: mpsc::Sender<(ObjectReference, Told)>,
    last: BTreeMap<String, Last>,
}

impl Teller {
    pub(super) fn new() -> (Self, mpsc::Receiver<(ObjectReference, Told)>) {
        let (events, told) = mpsc::channel(UNSENT_MAX);
        (Self { events, last: BTreeMap::new() }, told)
    }

    /// Whether a pod would be told this now.
    pub(super) fn is_due(&self, uid: &str) -> bool {
        self.events.capacity() > 0 && self.last.get(uid).is_none_or(|last| last.found.elapsed() >= QUIET_FOR)
    }

    /// Tells it, where that is something new.
    pub(super) fn tell(&mut self, pod: &Pod, told: Told) {
        let now = Instant::now();
        let same = |last: &&mut Last| last.reason == told.reason && last.told.elapsed() < AGAIN_AFTER;
        if let Some(last) = self.last.get_mut(&pod.uid).filter(same) {
            last.found = now;
            return;
        }
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        let reason = told.reason;
        if self.events.try_send((about, told)).is_ok() {
            self.last.insert(pod.uid.clone(), Last { reason, told: now, found: now });
        }
    }

    /// What it was told last.
    pub(super) fn last(&self, uid: &str) -> Option<&'static str> {
        self.last.get(uid).map(|last| last.reason)
    }

    /// Those that are known no more are forgotten.
    pub(super) fn keep_only(&mut self, known: impl Fn(&str) -> bool) {
        self.last.retain(|uid, _| known(uid));
    }

    pub(super) fn forget(&mut self, uid: &str) {
        self.last.remove(uid);
    }
}

/// Writes events, one after the other.
pub(super) async fn write(client: kube::Client, identity: String, mut told: mpsc::Receiver<(ObjectReference, Told)>) {
    let reporter = Reporter { controller: "stoker.build/controller".to_owned(), instance: Some(cut(identity, 128)) };
    while let Some((about, told)) = told.recv().await {
        // A recorder of its own for each: one takes what has the same reason for the same event, with the first one's words.
        let recorder = Recorder::new(client.clone(), reporter.clone());
        let event = Event {
            type_: if told.bad { EventType::Warning } else { EventType::Normal },
            reason: told.reason.to_owned(),
            note: Some(cut(told.note, NOTE_BYTES_MAX)),
            action: "Placement".to_owned(),
            secondary: None,
        };
        if let Err(error) = within(recorder.publish(&event, &about)).await {
            tracing::debug!(error, "an event was not written");
        }
    }
}

fn cut(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
    }
    text
}

/// Why no node takes it, with the figures.
pub(super) fn why(wanted: &Wanted, why: &Why) -> Told {
    let size = wanted.amounts();
    // What is not known of any node lacks nowhere.
    let lacks = |limit: Amounts| {
        move |resource: Resource| why.largest.get(resource) > 0 && size.get(resource) > limit.get(resource)
    };
    if why.nodes == 0 || why.away == why.nodes {
        let note = format!(
            "none of {} agents answers: the pod waits until one does. To let it go without a node's word: kubectl annotate \
             pod NAME stoker.build/admission=skip",
            why.nodes
        );
        return Told { reason: "AgentsAway", note, bad: true };
    }
    if why.never() {
        let note = format!(
            "it asks for {}, the largest of {} nodes that it may go to has {} in all: ask for less, or add a larger node",
            shown(size, lacks(why.largest)),
            why.too_small,
            shown(why.largest, lacks(why.largest))
        );
        return Told { reason: "NeverFits", note, bad: true };
    }
    let mut parts = Vec::new();
    let mut part = |count: usize, what: &str| {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    };
    part(why.full, "full");
    let codes: Vec<&str> = why.reasons.iter().map(|code| code.word()).collect();
    part(why.closed, &format!("take nothing now ({})", codes.join(", ")).replace(" ()", ""));
    part(why.too_small, "too small");
    part(why.others, "not by its selector, affinity or tolerations");
    part(why.away, "silent");
    let (size, free) = (shown(size, lacks(why.free)), shown(why.free, lacks(why.free)));
    let note = format!("it asks for {size}; of {} nodes: {}; free at most {free}", why.nodes, parts.join(", "));
    let reason = match (why.full, why.closed, why.too_small) {
        (0, 0, 0) => "NoSuchNode",
        (0, 0, _) => "NeverFits",
        (0, ..) => "NodesClosed",
        _ => "NodesFull",
    };
    Told { reason, note, bad: matches!(reason, "NoSuchNode" | "NeverFits") }
}

/// What is there, and what is lacking even where that is nothing; inodes only there.
fn shown(amounts: Amounts, lacks: impl Fn(Resource) -> bool) -> String {
    let parts = [Resource::Cpu, Resource::Memory, Resource::DiskBytes, Resource::DiskInodes];
    let parts = parts.map(|resource| (resource, amounts.get(resource)));
    let is_shown = |(resource, value): &(Resource, u64)| {
        lacks(*resource) || (*value > 0 && !matches!(resource, Resource::DiskInodes))
    };
    let parts = parts.into_iter().filter(is_shown).map(|(resource, value)| match resource {
        Resource::Cpu | Resource::DiskInodes => resource.show(value).to_string(),
        _ => format!("{} of {}", resource.show(value), resource.word()),
    });
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}
