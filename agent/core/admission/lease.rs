//! The records of the ledger.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::cluster::Pod;
use crate::identity::{CommitId, LeaseId, RequestId, Scope, TicketId};
use crate::quantity::{Size, Span, Timestamp};
use crate::reason::{Code, Reason};
use crate::sizing::{Outcome, Sizing};

use super::Usage;

/// The right of one build to a size on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Ours.
    pub id: LeaseId,
    /// The caller's.
    pub request_id: RequestId,
    /// Over the content of the request: the same id with another digest is a conflict.
    pub digest: String,
    /// Where in its life it is.
    pub state: LeaseState,
    /// How big, and why.
    pub sizing: Sizing,
    /// What is built.
    pub source: Source,
    /// Who for.
    pub scope: Scope,
    /// Which of several things in the repository.
    pub target: String,
    /// The directories of the tenant that the build asked for.
    pub cache_keys: Vec<String>,
    /// 1 for the first.
    pub attempt: u32,
    /// When it was granted.
    pub created_at: Timestamp,
    /// A grant out of waiting goes to the next one where nobody confirms it by then.
    pub confirm_by: Option<Timestamp>,
    /// An unbound lease expires then.
    pub bind_by: Timestamp,
    /// When it was bound.
    pub bound_at: Option<Timestamp>,
    /// When the time budget of a bound lease is used up.
    pub ends_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Who uses it.
    pub holder: Option<Holder>,
    /// Whose pod may have it, and for how long.
    #[serde(default, skip_serializing_if = "Terms::is_unset")]
    pub terms: Terms,
    /// What controls the pod that holds it (a Job, a workflow), by its uid; empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub controller: String,
    /// Its pod ended then, and may come again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unheld_since: Option<Timestamp>,
    /// What it used at most.
    pub peak: Option<Usage>,
    /// It was looked at for a part of its life only, so that its peak may be missed.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub peak_at_least: bool,
    /// How the build ended.
    pub outcome: Option<Outcome>,
    /// The build's own code.
    pub exit_code: Option<i32>,
    /// What befell it: that its time is nearly over, that it must end; why it ended, where nobody released it.
    pub reasons: Vec<Reason>,
    /// Where it stood in the queue.
    #[serde(default)]
    pub place: Place,
    /// How long such a build usually takes, where earlier runs tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Span>,
    /// The lease that ran out of memory, where this one is its retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<LeaseId>,
    /// Its build spec wants no retry.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub no_retry: bool,
    /// What a retry would get, where it ran out of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

impl Lease {
    /// Whether it holds anything.
    #[must_use]
    pub const fn live(&self) -> bool {
        matches!(self.state, LeaseState::Reserved | LeaseState::Bound)
    }

    /// When a build of this lease ends by what is known: after as long as such builds usually take, else with its time
    /// budget. One that was not begun is taken to begin now; what is overdue may end at any moment.
    #[must_use]
    pub fn likely_end(&self, now: Timestamp) -> Timestamp {
        let lasts = self.expected.unwrap_or(Span(i64::MAX)).min(self.sizing.size.time_budget);
        let end = self.bound_at.unwrap_or(now).plus(lasts);
        self.ends_at.map_or(end, |at| end.min(at)).max(now)
    }

    /// The next moment at which it may end: a reservation may run out, and what is overdue ends with its budget.
    #[must_use]
    pub fn next_end(&self, now: Timestamp) -> Timestamp {
        let likely = self.likely_end(now);
        match self.state {
            LeaseState::Reserved => self.confirm_by.unwrap_or(self.bind_by).min(self.bind_by),
            _ if likely > now => likely,
            _ => self.ends_at.unwrap_or(now),
        }
    }

    /// Whether it was told this.
    #[must_use]
    pub fn was_told(&self, code: Code) -> bool {
        self.reasons.iter().any(|reason| reason.code == code)
    }

    /// When it has ended at the latest, where it is ended at its time budget.
    #[must_use]
    pub fn latest_end(&self) -> Timestamp {
        let by_budget = || self.bind_by.plus(self.sizing.size.time_budget);
        self.ends_at.unwrap_or_else(by_budget).plus(super::time::END_GRACE)
    }
}

/// Where a build stood in the queue, also one that never had to wait. A retry stands there again.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Lower asked earlier.
    pub order: u64,
    /// When it asked first.
    pub asked_at: Timestamp,
    /// Its tenant's turn moved on to here by it; see [`super::order`].
    pub turn: u64,
    /// How far the turns of all had come by then.
    pub clock: u64,
}

/// What a build that ran out of memory gets if it is tried once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Its size; unset where there is no retry.
    pub size: Option<Size>,
    /// Why there is none, and what to do instead.
    pub reasons: Vec<Reason>,
}

/// The life of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// Granted, not used yet.
    Reserved,
    /// In use.
    Bound,
    /// Ended by its caller.
    Released,
    /// Ended because nobody bound it in time, or its time budget was used up.
    Expired,
    /// Ended because its holder is gone.
    Orphaned,
}

/// What a lease builds: one commit, and what pins it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The repository's canonical key.
    pub repository: String,
    /// What the caller asked for, as `branch:main`.
    pub reference: String,
    /// The one commit.
    pub commit: CommitId,
    /// What any git client can clone.
    pub clone_url: String,
    /// The ref that goes with it.
    pub clone_ref: String,
    /// When upstream last confirmed it.
    pub as_of: Timestamp,
    /// `upstream`, `cache` or `stale`.
    pub origin: String,
    /// The snapshot that holds the commit.
    pub snapshot: String,
    /// First line of the commit's message.
    pub subject: String,
    /// No ref of the repository reaches the commit: the caller allowed what only another fork of its network has.
    #[serde(default)]
    pub other_fork: bool,
}

/// Who uses a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// A pod of the cluster.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
    /// A process of the node.
    Process {
        /// Its id.
        pid: i64,
        /// Field 22 of `/proc/PID/stat`.
        start_ticks: i64,
    },
}

/// Whose pod may have a lease.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The namespace of its pod; empty: no pod binds itself.
    pub namespace: String,
    /// The service account of its pod.
    pub service_account: String,
    /// Whether another pod may follow.
    pub rebind: Rebind,
    /// The uid of the one pod that it is for, where that was placed on the node before; empty: none is here yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
}

impl Terms {
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it was said whose pod may have it.
    #[must_use]
    pub const fn names_a_pod(&self) -> bool {
        !self.namespace.is_empty() && !self.service_account.is_empty()
    }

    /// Whether this pod may have it.
    #[must_use]
    pub fn admit(&self, pod: &Pod) -> bool {
        self.names_a_pod()
            && self.namespace == pod.namespace
            && self.service_account == pod.service_account
            && (self.pod.is_empty() || self.pod == pod.uid)
    }
}

/// Whether a lease lives on when its pod ends without success, for another pod of the same owner.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rebind {
    /// It ends with its pod.
    #[default]
    Never,
    /// The next pod of what controls it (a Job, a workflow) has it, where that comes soon.
    SameOwner,
}

/// One build's place in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Ours.
    pub id: TicketId,
    /// Its place: lower is earlier.
    pub order: u64,
    /// What it waits for, complete: a ticket is never resolved again.
    pub request: super::Request,
    /// When it was taken.
    pub created_at: Timestamp,
    /// It is gone then, unless somebody awaits it.
    pub expires_at: Timestamp,
    /// How far the turns of all had come when it was taken.
    #[serde(default)]
    pub joined: u64,
    /// What it moves its tenant's turn on by, at weight 1.
    #[serde(default)]
    pub cost: u64,
    /// Since when it is at the head, or was for the first time.
    #[serde(default)]
    pub head_since: Option<Timestamp>,
}

/// What the operator wants.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Builds are admitted.
    #[default]
    Accepting,
    /// Nothing new; what runs goes on.
    Maintenance,
    /// Nothing new until the node is empty.
    Drain,
}

/// The mode, until when, and why.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeState {
    /// Which.
    pub mode: Mode,
    /// When it goes back to accepting by itself.
    pub until: Option<Timestamp>,
    /// The operator's words.
    pub note: String,
    /// Of a drain: when what still runs must end. The node stays drained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
}
