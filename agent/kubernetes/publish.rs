//! What the cluster is told of this node: a condition, labels, annotations, where it is switched on a taint, and events.
//!
//! The node object is written when something turned over, never to repeat it: what others did to our fields meanwhile is
//! theirs. Writes come a little apart and at random moments, so that a farm whose builds all begin at once does not write
//! all its nodes at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use stoker_core::pressure::{Gate, GateState};
use stoker_core::reason::Code;
use tokio::sync::{mpsc, watch};

use super::ANSWER_WITHIN;
use super::events::{Events, Told};
use super::heartbeat::MANAGER;
use super::rights::{Missing, Refusals, Right};
use crate::config::Configured;
use crate::config::kubernetes::Taint;
use crate::node::jittered;

/// Between two writes of the node object.
const APART: Duration = Duration::from_secs(2);
/// Before each, give or take a fifth.
const PAUSE: Duration = Duration::from_secs(1);
/// A write that failed is tried again after so long.
const AGAIN: Duration = Duration::from_secs(10);
/// How often a taint that somebody else changed meanwhile is read and written anew.
const CONFLICTS_MAX: u32 = 5;
const CONDITION: &str = "BuildPressure";
pub(super) const TAINT: &str = "stoker.build/pressure";
const PREFIX: &str = "stoker.build/";
/// Of a label's key, behind the prefix.
const NAME_BYTES_MAX: usize = 63;
/// Of a condition, in the API.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What is told of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Face {
    /// The gate.
    pub gate: Gate,
    /// What the operator wants, in a word.
    pub mode: String,
    /// The repositories that are filled, and that anybody may read.
    pub cached: BTreeSet<String>,
}

/// What of a face makes a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    state: GateState,
    codes: Vec<&'static str>,
    mode: String,
    labels: BTreeSet<String>,
    taint: Option<bool>,
}

/// Who publishes.
pub(super) struct Publisher {
    pub(super) client: Client,
    pub(super) node: String,
    pub(super) config: Configured,
    pub(super) face: watch::Receiver<Face>,
    pub(super) told: mpsc::Receiver<Told>,
    pub(super) missing: Missing,
    /// The node object, as it is watched.
    pub(super) known: watch::Receiver<Known>,
}

/// What a watch says of the node object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Empty: there is none.
    pub(super) uid: String,
    /// It has our taint.
    pub(super) tainted: bool,
}

/// Since when it could, or could not, be tainted.
#[derive(Debug, Default)]
struct Hysteresis {
    tainted: bool,
    other_since: Option<Instant>,
}

impl Hysteresis {
    /// Whether it is tainted now, and how long until that may change with nothing else changing.
    fn after(&mut self, shut: bool, config: &Taint) -> (bool, Option<Duration>) {
        if shut == self.tainted {
            self.other_since = None;
            return (self.tainted, None);
        }
        let since = *self.other_since.get_or_insert_with(Instant::now);
        let lasts = if shut { config.after } else { config.until };
        let left = lasts.saturating_sub(since.elapsed());
        if left.is_zero() {
            (self.tainted, self.other_since) = (shut, None);
            return (shut, None);
        }
        (self.tainted, Some(left))
    }
}

impl Publisher {
    /// Until it is dropped, or nobody tells it anything any more.
    pub(super) async fn run(mut self) {
        let mut events = Events::new(self.client.clone(), &self.node, self.missing.clone());
        let mut refusals = Refusals::default();
        let (mut published, mut gate) = (None::<(Wanted, String)>, None::<GateState>);
        let mut taint = None::<Hysteresis>;
        let (mut wait, mut not_before) = (None::<Duration>, Instant::now());
        loop {
            let pause = async {
                match wait.into_iter().chain(events.due()).min() {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.face.changed() => if changed.is_err() { return },
                changed = self.known.changed() => if changed.is_err() { return },
                told = self.told.recv() => {
                    let Some(told) = told else { return };
                    events.tell(told).await;
                }
                () = pause => {}
            }
            events.again().await;
            let Known { uid, tainted } = self.known.borrow_and_update().clone();
            if uid.is_empty() {
                continue;
            }
            let face = self.face.borrow_and_update().clone();
            if gate.is_none() && face.gate.reasons.iter().any(|reason| reason.code == Code::ApiServerAway) {
                continue; // what it waited for has come, and the gate follows
            }
            // One that an agent before this one has tainted is tainted.
            let taint = taint.get_or_insert(Hysteresis { tainted, other_since: None });
            if gate.replace(face.gate.state).is_some_and(|before| before != face.gate.state) {
                events.tell(turned(&face.gate)).await;
            }
            let (wanted, until) = self.wanted(&face, taint);
            wait = until;
            if published.as_ref().is_some_and(|(before, of)| *before == wanted && *of == uid) {
                continue;
            }
            // What changes meanwhile does not bring it sooner.
            let left = not_before.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                wait = Some(left);
                continue;
            }
            tokio::time::sleep(jittered(PAUSE)).await;
            not_before = Instant::now()
                + match self.write(&face.gate, &wanted, &mut refusals).await {
                    Ok(()) => {
                        refusals.end();
                        published = Some((wanted, uid));
                        APART
                    }
                    Err((error, again)) => {
                        // Also where nothing is to be written any more: or nobody would know that the right came.
                        published = None;
                        tracing::warn!(error, "the node object is not written; tried again");
                        wait = Some(again);
                        again
                    }
                };
        }
    }

    fn wanted(&self, face: &Face, taint: &mut Hysteresis) -> (Wanted, Option<Duration>) {
        let config = self.config.borrow();
        let mut codes: Vec<&str> = face.gate.reasons.iter().map(|reason| reason.code.word()).collect();
        codes.sort_unstable();
        codes.dedup();
        let (tainted, until) = match &config.kubernetes.taint {
            Some(config) => {
                let (tainted, until) = taint.after(face.gate.state == GateState::Shut, config);
                (Some(tainted), until)
            }
            None => (None, None),
        };
        let labels = face.cached.iter().take(config.kubernetes.labels).map(|key| label(key)).collect();
        (Wanted { state: face.gate.state, codes, mode: face.mode.clone(), labels, taint: tainted }, until)
    }

    /// With the error, after how long it is tried again.
    async fn write(&self, gate: &Gate, wanted: &Wanted, refusals: &mut Refusals) -> Result<(), (String, Duration)> {
        let written = async {
            let nodes = Api::<Node>::all(self.client.clone());
            let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            let now = nodes.get(&self.node).await?;
            if let Some(changed) = marks(&now, wanted) {
                nodes.patch(&self.node, &params, &Patch::Merge(&changed)).await?;
            }
            if let Some(changed) = condition(&now, gate, self.missing.has(Right::WriteNode)) {
                nodes.patch_status(&self.node, &params, &Patch::Strategic(&changed)).await?;
            }
            // Switched off, it goes too.
            self.taint(&nodes, &params, wanted.taint.unwrap_or(false)).await
        };
        match tokio::time::timeout(ANSWER_WITHIN * 3, written).await {
            Ok(Ok(())) => {
                self.missing.note(Right::WriteNode, false);
                Ok(())
            }
            Ok(Err(error)) => {
                let denied = self.missing.note_error(Right::WriteNode, &error);
                Err((super::watch::words(&error), if denied { refusals.pause() } else { AGAIN }))
            }
            Err(_) => Err((super::LabelsError::Late.to_string(), AGAIN)),
        }
    }

    /// Read, changed and written with the version that was read: the list is one value, and others have taints in it.
    async fn taint(&self, nodes: &Api<Node>, params: &PatchParams, tainted: bool) -> Result<(), kube::Error> {
        let mut tries = 0;
        loop {
            let node = nodes.get(&self.node).await?;
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
            let is_there = taints.iter().any(|taint| taint.key == TAINT);
            if is_there == tainted {
                return Ok(());
            }
            let mut list: Vec<Value> = taints
                .iter()
                .filter(|taint| taint.key != TAINT)
                .filter_map(|taint| serde_json::to_value(taint).ok())
                .collect();
            if tainted {
                list.push(json!({"key": TAINT, "effect": "NoSchedule"}));
            }
            let version = node.metadata.resource_version;
            let changed = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": list}});
            match nodes.patch(&self.node, params, &Patch::Merge(&changed)).await {
                Err(kube::Error::Api(status)) if status.code == 409 && tries < CONFLICTS_MAX => tries += 1,
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
        }
    }
}

fn turned(gate: &Gate) -> Told {
    let notes: Vec<&str> = gate.reasons.iter().map(|reason| reason.message.as_str()).collect();
    let (reason, note) = match gate.state {
        GateState::Open => ("BuildPressureOver", "builds start again".to_owned()),
        GateState::Narrow => ("BuildPressure", format!("only small builds start: {}", notes.join("; "))),
        GateState::Shut => ("BuildPressure", format!("no builds start: {}", notes.join("; "))),
    };
    Told { pod: None, reason: reason.to_owned(), note, bad: gate.state != GateState::Open }
}

pub(super) fn cut(mut text: String) -> String {
    if text.len() > MESSAGE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX - 3));
        text.push_str("...");
    }
    text
}

/// `MEMORY_FLOOR` as the API writes such words: `MemoryFloor`.
fn camel(word: &str) -> String {
    let parts = word.split('_').map(|part| {
        let (first, rest) = part.split_at(part.len().min(1));
        format!("{first}{}", rest.to_ascii_lowercase())
    });
    parts.collect()
}

/// A label for a repository, by its canonical key: readable where it fits, and never the same for two.
fn label(key: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '.' };
    let name: String = key.chars().map(plain).collect();
    // A slash became a dot: what has both could meet another.
    let digest = Sha256::digest(key.as_bytes());
    let mark: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let most = NAME_BYTES_MAX - "mirror.".len() - mark.len() - 1;
    let name = &name[..name.len().min(most)];
    format!("{PREFIX}mirror.{name}-{mark}")
}

/// Labels and annotations that are to change; nothing where all is as it should be.
fn marks(node: &Node, wanted: &Wanted) -> Option<Value> {
    let is_mirror = |key: &&String| key.strip_prefix(PREFIX).is_some_and(|name| name.starts_with("mirror."));
    let has = node.metadata.labels.iter().flatten().map(|(key, _)| key).filter(is_mirror);
    let has: BTreeSet<&String> = has.collect();
    let mut labels: BTreeMap<&str, Value> = BTreeMap::new();
    labels.extend(has.iter().filter(|key| !wanted.labels.contains(**key)).map(|key| (key.as_str(), Value::Null)));
    labels.extend(wanted.labels.iter().filter(|key| !has.contains(key)).map(|key| (key.as_str(), json!("true"))));
    let of_wanted = BTreeMap::from([
        ("stoker.build/gate", wanted.state.to_string()),
        ("stoker.build/reasons", wanted.codes.join(",")),
        ("stoker.build/mode", wanted.mode.clone()),
        ("stoker.build/version", env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    let is = |key: &str| node.metadata.annotations.as_ref().and_then(|all| all.get(key));
    let annotations: BTreeMap<&str, String> =
        of_wanted.into_iter().filter(|(key, value)| is(key) != Some(value)).collect();
    let nothing = labels.is_empty() && annotations.is_empty();
    (!nothing).then(|| json!({"metadata": {"labels": labels, "annotations": annotations}}))
}

/// The condition, which says since when it is so; nothing where it says the same already, unless it is to be written anyhow.
fn condition(node: &Node, gate: &Gate, anyhow: bool) -> Option<Value> {
    let now = jiff::Timestamp::now();
    let status = if gate.state == GateState::Open { "False" } else { "True" };
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let before = conditions.into_iter().flatten().find(|found| found.type_ == CONDITION && found.status == status);
    let told = |found: &&NodeCondition| (found.reason.clone(), found.message.clone());
    let since = before.and_then(|found| found.last_transition_time.clone()).map_or(now, |time| time.0);
    let (reason, message) = match gate.reasons.first() {
        Some(first) => (camel(first.code.word()), first.message.clone()),
        None => ("BuildsMayStart".to_owned(), "builds may start".to_owned()),
    };
    let message = cut(message);
    if !anyhow && before.as_ref().map(told) == Some((Some(reason.clone()), Some(message.clone()))) {
        return None;
    }
    Some(json!({"status": {"conditions": [{
        "type": CONDITION,
        "status": status,
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "lastTransitionTime": since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }]}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_valid_readable_and_never_the_same_for_two() {
        let long = format!("git.example.org/{}", "a".repeat(300));
        let keys = ["github.com/a/b.c", "github.com/a.b/c", "github.com/a/b-c", "host:8443/ä/ü", "127.0.0.1/x", &long];
        let labels: BTreeSet<String> = keys.iter().map(|key| label(key)).collect();
        assert_eq!(labels.len(), keys.len());
        for label in &labels {
            let name = label.strip_prefix("stoker.build/").unwrap_or_default();
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            assert!(!name.is_empty() && name.len() <= 63 && name.bytes().all(plain), "{label}");
            assert!(name.as_bytes().last().is_some_and(u8::is_ascii_alphanumeric), "{label}");
        }
        assert!(
            label("github.com/a/b").starts_with("stoker.build/mirror.github.com.a.b-"),
            "{}",
            label("github.com/a/b")
        );
    }

    #[test]
    fn words_are_written_as_the_api_writes_them() {
        assert_eq!(camel("ROOT_DISK_INODES_FLOOR"), "RootDiskInodesFloor");
    }

    #[test]
    fn a_taint_comes_and_goes_only_after_its_time() {
        let config = Taint { after: Duration::ZERO, until: Duration::from_secs(600) };
        let mut taint = Hysteresis::default();
        assert_eq!(taint.after(false, &config), (false, None));
        assert_eq!(taint.after(true, &config), (true, None));
        let (tainted, left) = taint.after(false, &config);
        assert!(tainted && left.is_some_and(|left| left > Duration::from_secs(590)));
        assert_eq!(taint.after(true, &config), (true, None), "a wavering gate begins anew");
        assert!(taint.other_since.is_none());
    }
}
