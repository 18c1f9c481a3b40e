//! What the ledger is told, and what it answers.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::identity::{LeaseId, RequestId, Scope, TicketId};
use crate::quantity::Span;
use crate::reason::{Code, Reason};
use crate::sizing::{Asked, Outcome, Sizing};

use super::{Holder, Lease, LeaseState, ModeState, Source, Terms, Ticket, Usage};

/// The highest priority that a request may have; the lowest is as far below 0.
pub const PRIORITY_MAX: i32 = 100;

/// A request with all that is needed to decide it: resolved and sized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The caller's id.
    pub id: RequestId,
    /// Over its content.
    pub digest: String,
    /// What is built.
    pub source: Source,
    /// How big.
    pub sizing: Sizing,
    /// Who for.
    pub scope: Scope,
    /// Which of several things in the repository.
    pub target: String,
    /// The directories of the tenant that it asks for.
    pub cache_keys: Vec<String>,
    /// 1 for the first.
    pub attempt: u32,
    /// How long a grant may stay unbound.
    pub bind_within: Span,
    /// Higher goes first among its tenant's; see [`PRIORITY_MAX`].
    #[serde(default)]
    pub priority: i32,
    /// How long such a build usually takes, where earlier runs tell.
    #[serde(default)]
    pub expected: Option<Span>,
    /// A lease that ran out of memory: this is its retry, and the ledger says how big that is.
    #[serde(default)]
    pub retry_of: Option<LeaseId>,
    /// Its build spec wants no retry.
    #[serde(default)]
    pub no_retry: bool,
    /// Whose pod may have the lease.
    #[serde(default)]
    pub terms: Terms,
    /// What its size was made of; unset for a retry, which has the size that its first attempt led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Box<Asked>>,
}

/// What somebody, or the clock, wants of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// May this build start? New ids come with it: the core makes no randomness.
    Admit {
        /// The build.
        request: Box<Request>,
        /// The id of the lease, where one is granted.
        lease: LeaseId,
        /// The id of the ticket, where it may take one.
        ticket: Option<TicketId>,
        /// Its caller is told of a grant, and need not ask again in time.
        awaited: bool,
    },
    /// A caller who waits is still there.
    Await(RequestId),
    /// The build begins, or goes on in the next pod of the same controller.
    Bind {
        /// Which.
        lease: LeaseId,
        /// The process, or the pod.
        holder: Holder,
        /// What controls the pod; empty: nothing, or that is not known.
        controller: String,
    },
    /// The pod of this lease ended, and another may follow.
    Unheld(LeaseId),
    /// The reservation is still wanted.
    Renew(LeaseId, Span),
    /// The build ended.
    Release {
        /// Which.
        lease: LeaseId,
        /// How.
        outcome: Outcome,
        /// The build's own code.
        exit_code: Option<i32>,
        /// What it used.
        usage: Option<Usage>,
    },
    /// These holders are gone without a word.
    Gone(Vec<LeaseId>, Code),
    /// Builds that wait are now so big: their runs, or the operator, taught better meanwhile. They keep their places.
    Resize(Vec<(TicketId, Sizing)>),
    /// A place in the queue is given up.
    Cancel(TicketId),
    /// The journal comes near its bound: so many of the oldest ended leases are forgotten before their time.
    Forget(usize),
    /// The operator's wish.
    SetMode(ModeState),
    /// Time passed: what ran out ends. Nobody is granted anything by it.
    Advance,
    /// Whoever is next and fits is granted: one at most. Nothing ends by it.
    Next {
        /// The id of the lease, where one is granted.
        lease: LeaseId,
    },
}

/// What the caller is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`Command::Admit`].
    Answer(Answer),
    /// The lease as it is now.
    Lease(Box<Lease>),
    /// Done.
    Done,
    /// The command makes no sense.
    Refused(Refused),
}

/// Granted, wait or rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A lease.
    Granted(Box<Lease>),
    /// Not now.
    Waiting(Box<Waiting>),
    /// Not here, ever.
    Rejected(Vec<Reason>, Option<Box<Sizing>>),
}

/// Why, for how long, at which place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The place, where one was taken.
    pub ticket: Option<Ticket>,
    /// 1 is the head.
    pub position: usize,
    /// When to ask again.
    pub retry_after: Span,
    /// Why.
    pub reasons: Vec<Reason>,
    /// How big it was found to be.
    pub sizing: Sizing,
}

/// Why a command makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The request id was used for something else.
    #[error("request id {0} was used for a request with other content: use a new id for a new request")]
    Conflict(RequestId),
    /// There is no such lease.
    #[error("no lease {0}: it never was, or it ended more than 24 hours ago")]
    NoLease(LeaseId),
    /// There is no such ticket.
    #[error("no ticket {0}: it was granted, cancelled or ran out")]
    NoTicket(TicketId),
    /// The lease ended.
    #[error("lease {0} has ended ({1:?}): ask for admission again under a new request id")]
    Ended(LeaseId, LeaseState),
    /// Somebody else holds it.
    #[error("lease {0} is bound to another holder")]
    BoundToAnother(LeaseId),
    /// Only what has ended can be tried again.
    #[error("lease {0} has not ended: release it with its outcome before it is tried again")]
    NotOver(LeaseId),
    /// Only what ran out of memory is tried again.
    #[error("lease {0} did not run out of memory: send a new build without retry_of")]
    NotOutOfMemory(LeaseId),
    /// A retry builds what its first attempt did.
    #[error("lease {0} builds {1}: name that repository, or no build at all, to try it again")]
    OtherRepository(LeaseId, String),
    /// There is one retry, and another request has it.
    #[error("lease {0} is tried again by request {1} already: ask under that id")]
    Retried(LeaseId, RequestId),
}
