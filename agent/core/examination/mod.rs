//! What of a node does not fit what Stoker keeps for it, and what to write where so that it does.
//!
//! An API server dies under builds although each of them fits: because nobody asked enough for it, because the kubelet
//! evicts before the gate shuts, or because builds write to the disk that etcd waits for. All of that can be read from the
//! node before the first build comes. In come facts, out go findings and patches; the gate and the ledger know none of it.
//!
//! - `requests`: static pods and what they use against the reserve.
//! - [`kubelet`]: its reservations and thresholds against the reserve and the floors.
//! - [`places`]: pools against etcd's disk and the root filesystem.
//! - [`patch`]: the fragments, as YAML.

pub mod kubelet;
pub mod patch;
pub mod places;
mod requests;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use crate::cluster::{Cluster, NodeState, Pod, StaticPod};
use crate::quantity::{Amounts, Resource};

pub use kubelet::{Kubelet, Threshold};
pub use patch::Patch;
pub use places::Place;

/// What is known of the node.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The node object and the pods.
    pub cluster: &'a Cluster,
    /// The node's name, with which mirrors of static pods end.
    pub node_name: &'a str,
    /// CPU and memory of the machine.
    pub machine: Amounts,
    /// `node.reserve`.
    pub reserve: Amounts,
    /// What is in use of the machine outside of leases and of pods that are not the node's own. Unset: not known yet.
    pub system: Option<Amounts>,
    /// What static pods were seen to use, by the hash of their file.
    pub static_pods: &'a BTreeMap<String, Amounts>,
    /// What the group of all pods is kept to.
    pub pods_limit: PodsLimit,
    /// `pressure.memoryFloor`, in bytes.
    pub memory_floor: u64,
    /// `pressure.memoryNarrow`, in bytes.
    pub memory_narrow: u64,
    /// How the kubelet is configured, or why that cannot be seen.
    pub kubelet: Result<Kubelet, String>,
    /// Where things lie, or why that cannot be seen.
    pub places: Result<places::Places, String>,
}

/// What the control group of all pods is kept to, by itself or by one above it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum PodsLimit {
    /// There is no such group here.
    #[default]
    Unseen,
    /// To nothing.
    Nothing,
    /// To so many bytes of memory.
    Bytes(u64),
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// What is promised does not hold.
    Fault,
    /// It holds, but for how long.
    Warning,
}

/// What does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The static pods ask for more than the reserve.
    ReserveBelowRequests,
    /// The system and the static pods use more than the reserve.
    ReserveBelowUse,
    /// A static pod asks for less CPU than it uses.
    StaticPodStarves,
    /// The kubelet evicts before the gate shuts for memory.
    MemoryFloorBelowEviction,
    /// The kubelet evicts before the gate shuts for disk.
    DiskFloorBelowEviction,
    /// The scheduler gives away what the reserve keeps.
    KubeletReservesLess,
    /// Nothing keeps all pods together within what is theirs.
    PodsUnlimited,
    /// Builds write to etcd's disk.
    PoolOnEtcdDisk,
    /// Builds write to the root filesystem.
    PoolOnRoot,
}

/// Something that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// How bad.
    pub severity: Severity,
    /// Which pod, pool or filesystem; empty where there is but one.
    pub subject: String,
    /// What was seen, in figures.
    pub what: String,
    /// Why that matters.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

/// What an examination says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Examination {
    /// Faults first.
    pub findings: Vec<Finding>,
    /// One a file.
    pub patches: Vec<Patch>,
    /// What could not be looked at or does not apply, and why.
    pub unseen: Vec<String>,
}

/// What is written into, while it grows.
#[derive(Debug, Default)]
struct Draft {
    findings: Vec<Finding>,
    unseen: Vec<String>,
    agent: patch::AgentPatch,
    kubelet: patch::KubeletPatch,
    pods: Vec<patch::PodPatch>,
}

/// Holds the node against what is kept for it.
#[must_use]
pub fn examine(facts: &Facts<'_>) -> Examination {
    let mut draft = Draft::default();
    if facts.cluster.asked {
        requests::examine(facts, &mut draft);
        kubelet::examine(facts, &mut draft);
    } else {
        let message = "there is no Kubernetes here: static pods, the kubelet's reservations and its thresholds do not \
                       apply";
        draft.unseen.push(message.to_string());
    }
    match &facts.places {
        Ok(known) => places::examine(known, &mut draft),
        Err(why) => draft.unseen.push(format!("which disks pools and etcd are on: {why}")),
    }
    draft.findings.sort_by(|a, b| (a.severity, a.kind, &a.subject).cmp(&(b.severity, b.kind, &b.subject)));
    let manifests = facts.kubelet.as_ref().map_or(kubelet::MANIFESTS, |known| known.manifests.as_str());
    let configuration = facts.kubelet.as_ref().map_or("", |known| known.path.as_str());
    let mut patches = Vec::new();
    patches.extend(draft.agent.write());
    patches.extend(draft.kubelet.write(configuration));
    patches.extend(draft.pods.iter().filter_map(|pod| pod.write(manifests)));
    Examination { findings: draft.findings, patches, unseen: draft.unseen }
}

/// Where a static pod of this node says that its etcd keeps its data.
#[must_use]
pub fn etcd_data(cluster: &Cluster) -> Option<&str> {
    own_pods(cluster).map(|(_, own)| own.etcd_data.as_str()).find(|path| !path.is_empty())
}

/// The static pods that run, or will.
fn own_pods(cluster: &Cluster) -> impl Iterator<Item = (&Pod, &StaticPod)> {
    let pods = cluster.pods.iter().flat_map(|pods| pods.iter());
    pods.filter(|pod| pod.live()).filter_map(|pod| Some((pod, pod.own.as_deref()?)))
}

/// CPU and memory for people.
fn shown(amounts: Amounts) -> String {
    format!("{} and {} of memory", cpu(amounts.cpu_millis), Resource::Memory.show(amounts.memory_bytes))
}

/// CPU for people, to the thousandth: small requests differ there.
fn cpu(millis: u64) -> String {
    if millis.is_multiple_of(100) { Resource::Cpu.show(millis).to_string() } else { format!("{millis}m CPU") }
}

/// The next multiple.
fn round_up(value: u64, step: u64) -> u64 {
    value.div_ceil(step.max(1)).saturating_mul(step.max(1))
}

/// What the kubelet keeps from pods, its threshold for evictions included: by the node object.
fn kept_by_kubelet(cluster: &Cluster) -> Option<Amounts> {
    match &cluster.node {
        NodeState::Here(node) if node.capacity.memory_bytes > 0 && node.allocatable.memory_bytes > 0 => {
            Some(node.capacity.less(node.allocatable))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
