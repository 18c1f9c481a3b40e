//! What the cluster says of this node and of its pods, and what follows from it for builds.
//!
//! - [`requests`]: what a pod asks of the scheduler. [`node`]: whether a build's pod may come to this node at all.
//! - [`user`]: whom its volumes belong to.
//! - [`bind`]: which pod holds which lease, and what ends with it.

pub mod bind;
pub mod node;
pub mod requests;
pub mod user;

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::quantity::{Amounts, Timestamp};
use crate::reason::Reason;
use crate::sizing::PodEnd;

pub use node::{Node, NodeState, Taint};
pub use requests::{Container, Resources};
pub use user::RunAs;

/// The annotation by which a pod names its lease. It is a claim: who proves it is said in [`bind`].
pub const LEASE: &str = "stoker.build/lease";

/// The driver of volumes, as pods name it.
pub const DRIVER: &str = "stoker.build";

/// A pod of this node, as far as it matters here.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: another pod of that name has another.
    pub uid: String,
    /// The service account that it runs as.
    pub service_account: String,
    /// The uid of what controls it (a Job, a workflow); empty: nothing does.
    pub controller: String,
    /// The lease that it says it has; empty: none.
    pub lease: String,
    /// Where in its life it is.
    pub life: PodLife,
    /// It is asked to end, or is removed.
    pub ending: bool,
    /// The node's own: no API server can remove it. Unset: it is none.
    pub own: Option<Arc<StaticPod>>,
    /// What it asks of the scheduler.
    pub requests: Amounts,
    /// Whom its volumes belong to.
    pub owner: RunAs,
    /// Those of the driver's that belong to somebody else, by their names.
    pub volumes: BTreeMap<String, RunAs>,
    /// One of its volumes is a build's workspace.
    pub builds: bool,
    /// It has a user namespace of its own (`hostUsers: false`).
    pub own_users: bool,
}

impl Pod {
    /// Whom one of its volumes belongs to.
    #[must_use]
    pub fn owner_of(&self, volume: &str) -> RunAs {
        self.volumes.get(volume).copied().unwrap_or(self.owner)
    }

    /// Whether it holds or will hold anything of the node.
    #[must_use]
    pub const fn live(&self) -> bool {
        !matches!(self.life, PodLife::Ended(_))
    }
}

/// A pod that the kubelet runs from a file of the node, and of which the API server has a mirror.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct StaticPod {
    /// The hash of its file. By this the kubelet names its control group: the uid is that of the mirror.
    pub hash: String,
    /// Its containers without the init ones, by name, and what each asks for.
    pub containers: Vec<(String, Amounts)>,
    /// Where etcd keeps its data, as a path of the node; empty: it runs no etcd, or does not say.
    pub etcd_data: String,
}

/// The life of a pod.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum PodLife {
    /// It has not begun.
    #[default]
    Waiting,
    /// Something of it runs.
    Running,
    /// All of it has ended, for good.
    Ended(Ended),
}

/// How a pod ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Every container with 0.
    pub succeeded: bool,
    /// The first code that is not 0, of the containers in their order, init containers last.
    pub exit_code: Option<i32>,
    /// What its status says beside that.
    pub end: PodEnd,
}

/// The pods of the node, and what they add up to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pods {
    by_uid: BTreeMap<String, Arc<Pod>>,
    requested: Amounts,
    live: u64,
}

impl Pods {
    /// By their uid.
    #[must_use]
    pub fn new(by_uid: BTreeMap<String, Arc<Pod>>) -> Self {
        let live = by_uid.values().filter(|pod| pod.live());
        let (requested, live) = live
            .fold((Amounts::default(), 0_u64), |(sum, count), pod| (sum.plus(pod.requests), count.saturating_add(1)));
        Self { by_uid, requested, live }
    }

    /// The one with this uid.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Pod> {
        self.by_uid.get(uid).map(Arc::as_ref)
    }

    /// All, in the order of their uids.
    pub fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.by_uid.values().map(Arc::as_ref)
    }

    /// What those that run, or will, ask of the scheduler.
    #[must_use]
    pub const fn requested(&self) -> Amounts {
        self.requested
    }

    /// How many run, or will.
    #[must_use]
    pub const fn live(&self) -> u64 {
        self.live
    }
}

/// What is known of the cluster.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Stoker runs in one, and asks it.
    pub asked: bool,
    /// This node.
    pub node: NodeState,
    /// The pods of this node; unset until all were told for the first time.
    pub pods: Option<Arc<Pods>>,
    /// The API server does not answer since then.
    pub away_since: Option<Timestamp>,
    /// It has been away for longer than that is borne: what is known is too old to go by.
    pub stale: bool,
    /// The agent may not look at the node object: nothing is known of it, and nobody waits for that.
    pub node_denied: bool,
    /// The same of its pods: they are known by their control groups alone.
    pub pods_denied: bool,
    /// In words, why it does not answer.
    pub trouble: String,
}

impl Cluster {
    /// Whether the pods that are known are those that there are.
    #[must_use]
    pub const fn is_current(&self) -> bool {
        self.asked && self.pods.is_some() && self.away_since.is_none()
    }

    /// Why nothing new may start here.
    #[must_use]
    pub fn held_back(&self, tolerated: &[String]) -> Vec<Reason> {
        if self.asked { node::held_back(self, tolerated) } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests;
