//! Why: the figures, who holds what, who is before whom, when it may change.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::identity::LeaseId;
use crate::quantity::{Amounts, Resource, Timestamp};
use crate::reason::Code;

use super::view::{Fit, View, Wanted};
use super::{Holds, Lease, Tenant, Ticket, Totals};

/// The most holders, and the most tenants before a build, that are named.
pub const NAMED_MAX: usize = 10;

/// All that speaks for and against one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// What it is told.
    pub fit: Fit,
    /// Both sides of the inequality.
    pub totals: Totals,
    /// Who holds most of what it lacks, or of memory where it lacks nothing; at most [`NAMED_MAX`].
    pub holders: Vec<Holding>,
    /// Live leases that are not named.
    pub holders_more: usize,
    /// How many are before it.
    pub ahead: usize,
    /// Of which tenants, most first; at most [`NAMED_MAX`].
    pub ahead_of: Vec<(alloc::string::String, usize)>,
    /// The head of the queue.
    pub head: Option<Arc<Ticket>>,
    /// When the head is likely to start.
    pub head_at: Option<Timestamp>,
    /// When there is likely to be room for this one, were it alone.
    pub room_at: Option<Timestamp>,
    /// Its tenant's share and caps.
    pub tenant: Tenant,
    /// What its tenant holds.
    pub holds: Holds,
}

/// What one lease holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// Which.
    pub lease: LeaseId,
    /// Whose.
    pub tenant: alloc::string::String,
    /// How much.
    pub held: Amounts,
    /// When it is likely to end.
    pub likely_end: Timestamp,
}

impl View<'_> {
    /// Why a build that asked now would be told so.
    #[must_use]
    pub fn explain(&self, wanted: &Wanted<'_>) -> Explanation {
        self.explained(self.would_be(wanted), wanted.tenant, wanted.size.amounts, None)
    }

    /// Why a ticket waits.
    #[must_use]
    pub fn explain_ticket(&self, ticket: &Ticket) -> Explanation {
        let request = &ticket.request;
        self.explained(self.waits(ticket), &request.scope.tenant, request.sizing.size.amounts, Some(ticket))
    }

    /// What a lease holds of all there is; ended ones hold nothing.
    #[must_use]
    pub fn explain_lease(&self, lease: &Lease) -> Explanation {
        let mut told = self.explained(Fit::Now, &lease.scope.tenant, lease.sizing.size.amounts, None);
        (told.ahead, told.ahead_of) = (0, Vec::new());
        told
    }

    fn explained(&self, fit: Fit, tenant: &str, wanted: Amounts, ticket: Option<&Ticket>) -> Explanation {
        let (holders, holders_more) = self.holders(lacks(&fit));
        let (ahead, ahead_of) = self.who_is_before(ticket);
        let head = self.head();
        Explanation {
            fit,
            totals: self.totals,
            holders,
            holders_more,
            ahead,
            ahead_of,
            head: head.map(|head| Arc::clone(&head.ticket)),
            head_at: head.and_then(|head| head.reservation).map(|kept| kept.at),
            room_at: self.reservation(wanted, None).map(|kept| kept.at),
            tenant: *self.facts.tenants.of(tenant),
            holds: self.held_by(tenant),
        }
    }

    fn holders(&self, of: Resource) -> (Vec<Holding>, usize) {
        let holding = |lease: &Arc<Lease>| Holding {
            lease: lease.id.clone(),
            tenant: lease.scope.tenant.clone(),
            held: self.facts.held(lease),
            likely_end: lease.likely_end(self.now),
        };
        let mut all: Vec<_> = self.ledger.live().map(holding).collect();
        all.sort_by_key(|holding| core::cmp::Reverse(holding.held.get(of)));
        let more = all.len().saturating_sub(NAMED_MAX);
        all.truncate(NAMED_MAX);
        (all, more)
    }

    /// Those before a ticket; before none, all that wait.
    fn who_is_before(&self, ticket: Option<&Ticket>) -> (usize, Vec<(alloc::string::String, usize)>) {
        let mut tenants: BTreeMap<&str, usize> = BTreeMap::new();
        let mut ahead = 0_usize;
        for other in self.queue().take_while(|other| ticket.is_none_or(|ticket| ticket.id != other.id)) {
            ahead = ahead.saturating_add(1);
            let count = tenants.entry(other.request.scope.tenant.as_str()).or_default();
            *count = count.saturating_add(1);
        }
        let mut tenants: Vec<_> = tenants.into_iter().map(|(name, count)| (name.into(), count)).collect();
        tenants.sort_by_key(|(_, count)| core::cmp::Reverse(*count));
        tenants.truncate(NAMED_MAX);
        (ahead, tenants)
    }
}

/// The first resource that it waits for.
fn lacks(fit: &Fit) -> Resource {
    let reasons: &[_] = match fit {
        Fit::Later { reasons, .. } | Fit::Never(reasons) => reasons,
        Fit::Now => &[],
    };
    let held = [Code::MemoryHeld, Code::CpuHeld, Code::DiskHeld, Code::DiskInodesHeld];
    let first = reasons.iter().find(|reason| held.contains(&reason.code));
    first.and_then(|reason| reason.resource).unwrap_or(Resource::Memory)
}
