//! Whether a build's pod may come to this node: what the scheduler of the cluster would say.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{Cluster, Pods};
use crate::admission::Scheduler;
use crate::quantity::Amounts;
use crate::reason::{Code, Reason};

/// What is known of the node.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum NodeState {
    /// The API server has not said yet.
    #[default]
    Unknown,
    /// There is none of this name.
    Gone,
    /// As it is.
    Here(Node),
}

/// A node object, as far as it matters here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its uid: one that is added again under its name has another.
    pub uid: String,
    /// What the machine has, by the kubelet's word: CPU and memory.
    pub capacity: Amounts,
    /// What the scheduler gives to pods: CPU and memory.
    pub allocatable: Amounts,
    /// How many pods it takes.
    pub pods_max: u64,
    /// `kubectl cordon`.
    pub cordoned: bool,
    /// Its condition `Ready`.
    pub ready: bool,
    /// In their order.
    pub taints: Vec<Taint>,
    /// By which pods choose it.
    pub labels: Arc<BTreeMap<String, String>>,
}

/// A taint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value; often empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl Taint {
    /// Whether it keeps pods away that do not tolerate it. Cordons and nodes that are not ready have one too: those are
    /// told as what they are, and ours says what the gate says.
    fn keeps_away(&self, tolerated: &[String]) -> bool {
        let told =
            ["node.kubernetes.io/unschedulable", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
        self.effect != "PreferNoSchedule"
            && !self.key.starts_with("stoker.build/")
            && !told.contains(&self.key.as_str())
            && !tolerated.contains(&self.key)
    }
}

impl Cluster {
    /// Of CPU and memory of the machine what there is for pods and what the operator keeps, and what the scheduler of the
    /// cluster has left. `pods_limit`: the bytes of memory that the kernel gives all pods together.
    #[must_use]
    pub fn room(&self, machine: Amounts, reserve: Amounts, pods_limit: Option<u64>) -> (Amounts, Option<Scheduler>) {
        let NodeState::Here(node) = &self.node else { return (machine, None) };
        // A node object that says nothing of it yet bounds nothing.
        let known = |part: u64| if part == 0 { u64::MAX } else { part };
        let allocatable = Amounts {
            cpu_millis: known(node.allocatable.cpu_millis),
            memory_bytes: known(node.allocatable.memory_bytes),
            ..Amounts::default()
        };
        let room = |pods: &Arc<Pods>| Scheduler {
            free: allocatable.less(pods.requested()),
            pods: known(node.pods_max).saturating_sub(pods.live()),
        };
        // A limit of the kernel's counts like allocatable: what is kept for the system lies beside it.
        let memory_bytes = allocatable.memory_bytes.min(pods_limit.unwrap_or(u64::MAX));
        let for_pods = Amounts { memory_bytes, ..allocatable };
        (machine.min(for_pods.plus(reserve)), self.pods.as_ref().map(room))
    }
}

/// Why nothing new may start.
pub(super) fn held_back(cluster: &Cluster, tolerated: &[String]) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut say = |code, message: String| reasons.push(Reason::new(code, "node", message));
    let unheard = (cluster.pods.is_none() && !cluster.pods_denied)
        || (cluster.node == NodeState::Unknown && !cluster.node_denied);
    if cluster.stale || unheard {
        let why = if cluster.trouble.is_empty() { String::new() } else { format!(": {}", cluster.trouble) };
        let message = match unheard {
            true => format!("the API server has not told yet which pods run here{why}; builds start when it has"),
            false => format!("the API server does not answer{why}; what runs goes on, new builds start when it does"),
        };
        say(Code::ApiServerAway, message);
    }
    match &cluster.node {
        NodeState::Unknown => {}
        NodeState::Gone => {
            say(
                Code::NodeGone,
                "the cluster has no node of this name: no pod can come here until it is added".to_string(),
            );
        }
        NodeState::Here(node) => {
            if node.cordoned {
                say(Code::NodeCordoned, "the node is cordoned: uncordon it, and builds start again".to_string());
            }
            if !node.ready {
                let message =
                    "the cluster takes the node for not ready: look at its condition `Ready` and at its kubelet";
                say(Code::NodeNotReady, message.to_string());
            }
            for taint in node.taints.iter().filter(|taint| taint.keeps_away(tolerated)) {
                let message = format!(
                    "the node is tainted with {}:{}: remove the taint, or list its key in `kubernetes.tolerates` where \
                     the builds' pods tolerate it",
                    taint.key, taint.effect
                );
                say(Code::NodeTainted, message);
            }
        }
    }
    reasons
}
