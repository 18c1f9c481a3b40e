//! The records of the ledger.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::identity::{CommitId, LeaseId, RequestId, Scope, TicketId};
use crate::quantity::{Amounts, Span, Timestamp};
use crate::reason::Reason;
use crate::sizing::{Outcome, Sizing};

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
    /// What it uses now, where that is known.
    pub in_use: Option<Amounts>,
    /// What it used at most.
    pub peak: Option<Usage>,
    /// How the build ended.
    pub outcome: Option<Outcome>,
    /// The build's own code.
    pub exit_code: Option<i32>,
    /// Why it ended, where nobody released it.
    pub reasons: Vec<Reason>,
}

impl Lease {
    /// Whether it holds anything.
    #[must_use]
    pub const fn live(&self) -> bool {
        matches!(self.state, LeaseState::Reserved | LeaseState::Bound)
    }

    /// What it holds: its size, or its use where that is more.
    #[must_use]
    pub fn held(&self) -> Amounts {
        let size = self.sizing.size.amounts;
        self.in_use.map_or(size, |now| size.max(now))
    }
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

/// What a build really used.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes, without reclaimable cache.
    pub memory_bytes_peak: u64,
    /// Thousandths of a core, over about a second.
    pub cpu_millis_peak: u64,
    /// CPU time.
    pub cpu_time: Span,
    /// Time from start to end.
    pub elapsed: Span,
    /// Bytes on the pool.
    pub disk_bytes: u64,
    /// Inodes on the pool.
    pub disk_inodes: u64,
    /// Processes at once.
    pub processes_peak: u32,
}

/// One build's place in the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Ours.
    pub id: TicketId,
    /// Its place: lower is earlier.
    pub order: u64,
    /// What it waits for, complete: a ticket is never resolved or sized again.
    pub request: super::Request,
    /// When it was taken.
    pub created_at: Timestamp,
    /// It is gone then, unless somebody awaits it.
    pub expires_at: Timestamp,
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
}
