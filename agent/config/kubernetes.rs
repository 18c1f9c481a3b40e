//! What the agent asks of the cluster that its node belongs to: as written, and as validated.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::Time;

/// The cluster that the node belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubernetesSection {
    /// Whether the API server is asked about this node and its pods.
    pub watch: Watch,
    /// How long the API server may be away until nothing new starts: a time from 1s to 1h. What runs goes on in any case.
    pub away_after: Time,
    /// How often the agent's heartbeat is written, a `Lease` object: a time from 1s to 10m.
    pub heartbeat: Time,
    /// The namespace of that object. Unset: that of the agent's own pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Keys of taints that the pods of builds tolerate: at most 64. Other taints hold builds back.
    pub tolerates: Vec<String>,
    /// How many labels `stoker.build/mirror.*` the node gets, one for each repository of the trust class `default` that is
    /// filled: at most 256. 0: none.
    pub labels: u64,
    /// The taint `stoker.build/pressure:NoSchedule` while nothing may start. Unset: none is ever made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taint: Option<TaintSection>,
    /// What a bound pod counts as that has no limit of CPU or of memory within its lease's size.
    pub unlimited: Unlimited,
    /// How long a lease that asks for `rebind: same-owner` waits for the next pod: a time up to 1h.
    pub rebind_within: Time,
}

impl Default for KubernetesSection {
    fn default() -> Self {
        Self {
            watch: Watch::Auto,
            away_after: "60s".into(),
            heartbeat: "20s".into(),
            namespace: None,
            tolerates: Vec::new(),
            labels: 32,
            taint: None,
            unlimited: Unlimited::Node,
            rebind_within: "60s".into(),
        }
    }
}

/// When the node is tainted, and when no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TaintSection {
    /// The gate was shut for so long: a time up to 1h.
    pub after: Time,
    /// It was not shut for so long: a time up to 1h.
    pub until: Time,
}

impl Default for TaintSection {
    fn default() -> Self {
        Self { after: "10s".into(), until: "60s".into() }
    }
}

/// Whether there is a cluster to ask.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Watch {
    /// Where the agent runs in a pod.
    #[default]
    Auto,
    /// Always: in a pod, or by `KUBECONFIG`.
    On,
    /// Never: leases of pods then end by their release or their time budget alone.
    Off,
}

/// What takes what it gets.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unlimited {
    /// The whole node, of what it is not limited in: nothing else starts beside it.
    #[default]
    Node,
    /// Its size, as any other; it is reported.
    Size,
}

/// The same, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// Whether the API server is asked.
    pub watch: Watch,
    /// It may be away for so long.
    pub away_after: Duration,
    /// The heartbeat is written so often.
    pub heartbeat: Duration,
    /// Where; unset: in the namespace of the agent's pod.
    pub namespace: Option<String>,
    /// Keys of taints that hold nothing back.
    pub tolerates: Vec<String>,
    /// The most labels for repositories.
    pub labels: usize,
    /// When it is tainted.
    pub taint: Option<Taint>,
    /// What a bound pod without limits counts as.
    pub unlimited: Unlimited,
    /// A lease waits so long for its next pod.
    pub rebind_within: Duration,
}

/// When the node is tainted, and when no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// The gate was shut for so long.
    pub after: Duration,
    /// It was not shut for so long.
    pub until: Duration,
}

impl Kubernetes {
    /// No cluster.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            watch: Watch::Off,
            away_after: Duration::from_secs(60),
            heartbeat: Duration::from_secs(20),
            namespace: None,
            tolerates: Vec::new(),
            labels: 0,
            taint: None,
            unlimited: Unlimited::Node,
            rebind_within: Duration::from_secs(60),
        }
    }
}
