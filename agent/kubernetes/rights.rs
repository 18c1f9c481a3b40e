//! What the agent may not do in the cluster. It starts with fewer rights than it could use, and says what is lost.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stoker_core::reason::{Code, Reason};

/// What it may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Right {
    WatchNode,
    WatchPods,
    Heartbeat,
    WriteNode,
    Events,
    Evict,
}

impl Right {
    /// The resource, what it may not, and what is lost.
    const fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::WatchNode => (
                "nodes",
                "list and watch its node",
                "a cordon, taints and what the scheduler has left do not hold builds back",
            ),
            Self::WatchPods => (
                "pods",
                "list and watch the pods of its node",
                "no pod binds its lease by itself, and leases end by control groups and time budgets alone",
            ),
            Self::Heartbeat => ("leases", "write its heartbeat", "who goes by heartbeats takes this node for dead"),
            Self::WriteNode => (
                "nodes",
                "patch its node and that node's status",
                "neither condition, labels, annotations nor taint tell of the gate",
            ),
            Self::Events => ("events", "create events", "reasons stand in the log and in this status alone"),
            Self::Evict => ("pods/eviction", "evict pods", "a build in a pod that outlives its time is only reported"),
        }
    }
}

/// How long to wait after refusals, one after the other: rights may come at any time, and an API server that has just
/// begun refuses everybody for a moment.
#[derive(Debug, Default)]
pub(super) struct Refusals(u32);

impl Refusals {
    const FIRST: Duration = Duration::from_secs(2);
    const LAST: Duration = Duration::from_secs(600);

    /// After one more.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = Self::FIRST.saturating_mul(1_u32.checked_shl(self.0).unwrap_or(u32::MAX)).min(Self::LAST);
        self.0 = self.0.saturating_add(1).min(16);
        pause
    }

    /// It may.
    pub(super) const fn end(&mut self) {
        self.0 = 0;
    }
}

/// Those that were found to be missing. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Missing(Arc<Mutex<BTreeSet<Right>>>);

impl Missing {
    /// Whether it is missing, as was just seen.
    pub(super) fn note(&self, right: Right, is_missing: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if is_missing {
            all.insert(right);
        } else {
            all.remove(&right);
        }
    }

    /// Whether it was missing when last seen.
    pub(super) fn has(&self, right: Right) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&right)
    }

    /// That it is missing, where that is what an error says: then true.
    pub(super) fn note_error(&self, right: Right, error: &kube::Error) -> bool {
        let denied = matches!(error, kube::Error::Api(status) if status.code == 403);
        if denied {
            self.note(right, true);
        }
        denied
    }

    /// In words.
    pub(super) fn reasons(&self) -> Vec<Reason> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let say = |right: &Right| {
            let (resource, what, lost) = right.words();
            let message = format!("the agent may not {what}: {lost}; see Rights in docs/kubernetes.md for the rule");
            Reason::new(Code::RightMissing, resource, message)
        };
        all.iter().map(say).collect()
    }
}
